"""Ways to judge: each begins without the keys of the recipe's own way."""

from pathlib import Path

import pytest

import sao.preview.ways
from sao.config import Config, make_config
from sao.engines.scripted import ScriptedEngine
from sao.preview import preview
from sao.preview.ways import differing, judge_ways, varied
from support import planted


def recipe(**judging: object) -> Config:
    personas = {"source": "builtin:general", "n": 40, "held_out": 0}
    sections = {"model": "planted", "engine": {"name": "scripted"}, "personas": personas}
    return make_config({**sections, "judging": judging})


REASONS = {"method": "text", "reasoning": True, "template": "judge_reasoning", "max_tokens": 128}


@pytest.mark.parametrize(
    "judging",
    [
        {"content_free": True},
        {"method": "text", "samples": 3},
        REASONS,
        {"panel": [{"template": "judge_short"}]},
        {"method": "function", "function": "some.module:name"},
        {"method": "reward", "engine": {"model": "some-reward-model"}},
        {"wordings": ["judge", "judge_short"], "prefill": "Number ", "choices": ["A", "B"]},
    ],
)
def test_each_way_leaves_out_what_belongs_to_the_recipes(judging: dict[str, object]) -> None:
    config = recipe(**judging)
    ways = judge_ways(config)
    assert [name for name, _, is_recipe in ways if is_recipe] == ["the recipe's"]
    made = {name: varied(config, keys).judging for name, keys, _ in ways}
    assert made["the recipe's"] == config.judging
    longest = config.judging.max_tokens  # it counts for sampled verdicts only
    usual = recipe(method="pointwise", max_tokens=longest).judging
    assert made["one answer at a time"] == usual
    assert made["prefill"] == recipe(prefill="The best answer is number ", max_tokens=longest).judging


def test_the_resets_are_written_with_the_way() -> None:
    config = recipe(**REASONS)
    keys = next(keys for name, keys, _ in judge_ways(config) if name == "one answer at a time")
    assert differing(config, keys) == {
        "judging.reasoning": "false",
        "judging.template": "judge",
        "judging.method": "pointwise",
    }


def test_a_template_and_a_judge_of_ones_own_stay() -> None:
    config = recipe(template="judge_short", engine={"name": "scripted"})
    for _, keys, _ in judge_ways(config):
        judging = varied(config, keys).judging
        assert judging.template == "judge_short" and judging.engine == config.judging.engine


def test_a_way_that_does_not_fit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = (*sao.preview.ways.JUDGE_WAYS, ("broken", {"judging.choices": "[A, A]"}))
    monkeypatch.setattr(sao.preview.ways, "JUDGE_WAYS", ways)
    engine = ScriptedEngine(reply=planted.reply, choose=lambda messages, words: (-0.7, -0.7))
    found = preview(recipe(content_free=True), tmp_path, engine=engine, minutes=0.2)
    skipped = {way.name: way.skipped for way in found.judging if way.skipped}
    assert list(skipped) == ["broken"]
    assert "choices are both 'A'" in str(skipped["broken"])
