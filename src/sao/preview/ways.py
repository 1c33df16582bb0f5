"""What is tried: ways to get prompts and ways to judge, as data. A way is its name and the keys of the recipe
that make it; another one is one more line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sao.config import Config, make_config, overridden
from sao.config.judging import JudgingConfig
from sao.errors import ConfigError

Settings = Mapping[str, str]
Way = tuple[str, Settings, bool]
"""Name, keys of the recipe, and whether it is the recipe's own."""

PROMPT_WAYS: tuple[tuple[str, Settings], ...] = (
    ("instruct", {"prompts.method": "instruct", "prompts.prefill": "false"}),
    ("instruct, prefill", {"prompts.method": "instruct", "prompts.prefill": "true"}),
    ("user_turn", {"prompts.method": "user_turn", "prompts.prefill": "false", "prompts.mix": "{}"}),
)
"""Ways to get prompts."""
RECIPE = "the recipe's"
"""The recipe's own way."""
JUDGE_WAYS: tuple[tuple[str, Settings], ...] = (
    (RECIPE, {}),
    ("prefill", {"judging.method": "logprob", "judging.prefill": "The best answer is number "}),
    (
        "first or second",
        {
            "judging.method": "logprob",
            "judging.choices": "[first, second]",
            "judging.prefill": "The better answer is the ",
        },
    ),
    ("one answer at a time", {"judging.method": "pointwise"}),
)
"""Ways to judge, the recipe's first (docs/method.md, "Verdicts")."""
RESET = (
    "function", "samples", "reasoning", "content_free", "panel", "wordings", "prefill", "choices",
)  # fmt: skip
"""Keys of section judging that belong to one way to judge: another way begins with their defaults."""
SHORT = "You are a helpful AI assistant. Answer in one short paragraph of plain text, without lists."
"""A system message that makes answers shorter (SmolLM2: 63 % of the answers past 192 tokens without it, 19 %
with it)."""
BRIEF = "Answer briefly, and do all that is asked."
"""A system message that makes answers shorter and leaves their form to the prompt."""
GIVEN = "given prompts"
"""The one way where the recipe names a set of prompts."""


def varied(config: Config, settings: Settings) -> Config:
    """The recipe with these keys set. Raises ConfigError where they do not fit together."""
    return make_config(overridden(config.model_dump(mode="json"), settings), "preview")


def differing(config: Config, settings: Settings) -> dict[str, str]:
    """Those of the keys whose value is not what the recipe has."""
    new, old = varied(config, settings).model_dump(), config.model_dump()
    return {key: value for key, value in settings.items() if _at(new, key) != _at(old, key)}


def _at(section: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        section = section[key]
    return section


def prompt_ways(config: Config) -> list[Way]:
    """The ways to get prompts for a recipe."""
    if config.prompts.source is not None:
        return [(GIVEN, {}, True)]
    return [(name, keys, _writes_as(config, keys)) for name, keys in PROMPT_WAYS]


def _writes_as(config: Config, keys: Settings) -> bool:
    try:
        return varied(config, keys).prompts == config.prompts
    except ConfigError:
        return False


def judge_ways(config: Config) -> list[Way]:
    """The ways to judge for a recipe. A way that is the recipe's own is tried once; one whose keys do not fit
    the recipe is among them."""
    found: list[Way] = [(RECIPE, {}, True)]
    seen = [config.judging]
    for name, keys in JUDGE_WAYS:
        settings = {**resets(config), **keys} if keys else {}
        try:
            judging = varied(config, settings).judging
        except ConfigError:
            found.append((name, settings, False))
            continue
        if judging not in seen:
            seen.append(judging)
            found.append((name, settings, False))
    return found


def resets(config: Config) -> dict[str, str]:
    """The keys that belong to the recipe's own way to judge, with their defaults."""
    own, usual = config.judging, JudgingConfig()
    keys = [key for key in RESET if getattr(own, key) != getattr(usual, key)]
    if own.template == "judge_reasoning":
        keys.append("template")
    if own.method == "reward":
        keys.append("engine")  # a reward model reads no verdicts
    values = usual.model_dump(mode="json")
    return {f"judging.{key}": _written(values[key]) for key in keys}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
