"""What the words of a command line stand for: recipe keys with their values, a target, a run folder."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from sao.errors import ConfigError

if TYPE_CHECKING:
    from sao.config import Config
    from sao.pipeline.reader import Reader

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

TOP_KEYS = ("model", "revision", "max_drop_share")
"""The keys of a recipe that stand in no section (`seed` is an option of its own)."""
NEAR = 0.75
"""From this likeness on (difflib's ratio) a name is taken for a mistyped recipe."""


class Renamed(argparse.Action):
    """An option's old name: raises ConfigError with the new one."""

    def __init__(self, option_strings: Sequence[str], dest: str, to: str) -> None:
        super().__init__(option_strings, dest, nargs="*", help=argparse.SUPPRESS)
        self.to = to

    def __call__(self, *args: object, **kwargs: object) -> None:
        """The old name was given."""
        old = self.option_strings[0]
        raise ConfigError(f"{old} is called {self.to} now", key=old)


def add_json(command: argparse.ArgumentParser) -> None:
    """The option --json, which all commands with a result have."""
    command.add_argument("--json", action="store_true", help="print the result as one JSON line last")


RANGES: dict[str, tuple[int, float]] = {
    "seed": (0, 2**32 - 1), "n": (1, inf), "self_tests": (0, inf), "held_out": (0, inf), "limit": (1, inf),
    "round": (1, inf), "batch_size": (1, inf), "gpus": (1, inf), "nodes": (1, inf), "prompt_tokens": (1, inf),
    "response_tokens": (1, inf),
}  # fmt: skip
"""Least and greatest value of each option that is a whole number, whichever command it belongs to. Shares are
checked where they are used."""


def check_ranges(args: argparse.Namespace) -> None:
    """Raise ConfigError for an option outside its range."""
    for name, (least, greatest) in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not least <= value <= greatest:
            option = "--" + name.replace("_", "-")
            allowed = f"from {least} to {greatest}" if greatest < inf else f"{least} or more"
            raise ConfigError(f"{option} {value}: it must be {allowed}", key=option)


def no_more(extra: list[str]) -> None:
    """Raise ConfigError where words are left of a command that takes no recipe keys."""
    if extra:
        raise ConfigError(f"unknown argument {extra[0]}", key=extra[0])


def join_overrides(argv: list[str]) -> list[str]:
    """`--train.beta 2` as `--train.beta=2`, so that the value is never taken for TARGET."""
    joined: list[str] = []
    words = iter(argv)
    for word in words:
        key = word.removeprefix("--")
        is_key = "." in key or key in TOP_KEYS
        if word.startswith("--") and "=" not in word and is_key:
            word = f"{word}={_value(key, words)}"
        joined.append(word)
    return joined


def read_overrides(extra: list[str]) -> dict[str, str]:
    """{"train.beta": "2.0"} from ["--train.beta", "2.0"] or ["--train.beta=2.0"]."""
    overrides: dict[str, str] = {}
    words = iter(extra)
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(
                f"unexpected argument {word!r}; recipe keys are given as --section.key value", key=word
            )
        key, equals, value = word[2:].partition("=")
        overrides[key] = value if equals else _value(key, words)
    return overrides


def _value(key: str, words: Iterator[str]) -> str:
    """The word after a key; an empty one is a value."""
    value = next(words, None)
    if value is None or value.startswith("--"):
        raise ConfigError(f"--{key}: no value given", key=f"--{key}")
    return value


def read_target(target: str, overrides: dict[str, str]) -> Config:
    """The config of a recipe, a recipe file or a model (with the recipe `default`).

    A model on a server (engine.name openai) may have any name that is not nearly a recipe's.
    """
    from sao.config import load_recipe, recipe_names

    is_served = overrides.get("engine.name") == "openai"
    is_recipe = target in recipe_names() or target.endswith((".yaml", ".yml"))
    is_model = (
        target.startswith("builtin:")
        or target.lower().endswith(".gguf")
        or "/" in target
        or Path(target).is_dir()
        or (is_served and not get_close_matches(target, recipe_names(), 1, NEAR))
    )
    if is_model and not is_recipe:
        recipe = "demo" if target == "builtin:world" else "default"
        return load_recipe(recipe, {"model": target, **overrides})
    return load_recipe(target, overrides)  # an unknown name raises, and names the nearest recipe


def add_round(command: argparse.ArgumentParser) -> None:
    """The option --round, of commands that read one round of a run."""
    command.add_argument(
        "--round",
        type=int,
        metavar="K",
        help="the run's round (default: the one whose model it gave back, or the first)",
    )


def run_folder(root: Path, number: int | None = None) -> Reader:
    """A round of a run folder with the recipe it was last used with, read as its manifest has it."""
    from sao.pipeline.folder import recorded

    return recorded(root, number)


def own_pairs(root: Path, number: int | None = None) -> Reader:
    """The same. Raises ConfigError where the run made no pairs of its own."""
    run = run_folder(root, number)
    if run.config.pairs.source is not None:
        raise ConfigError(
            f"{root}: trained on given pairs ({run.config.pairs.source}); it made none of its own. `sao "
            "import` makes a run of them",
            key="pairs.source",
        )
    return run


def quiet_libraries() -> None:
    """Keep warnings and progress bars of the model libraries off the screen. Call it before they load."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says which kernels of its own it lacks
