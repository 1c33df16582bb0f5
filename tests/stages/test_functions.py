"""judging.method function: the user's own function gives scores or preferences."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from sao.config import make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError
from sao.method import run
from sao.pipeline.folder import reader
from sao.stages.judging import read_preference
from support.errors import raises

CODE = """
def longest(prompt, answers):
    return [len(answer) for answer in answers]


def polite(prompt, answers):
    first, second = ("please" in answer for answer in answers)
    return "tie" if first == second else "first" if first else "second"


def broken(prompt, answers):
    raise RuntimeError("no idea")


def wrong(prompt, answers):
    return 3


number = 4
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "taste.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "taste", raising=False)
    return tmp_path / "taste.py"


def judged(root: Path, function: str, **more: Any) -> Any:
    recipe = {
        "engine": {"name": "scripted"},
        "personas": {"source": "builtin:world", "n": 15, "held_out": 0},
        "judging": {"method": "function", "function": f"taste:{function}", **more},
    }
    config = make_config(recipe)
    engine = ScriptedEngine(reply=lambda _, seed, sampling: f"Prompt: {'so ' * (seed % 9)}{seed % 7}")
    summary = run(config, root, until="pairs", engine=engine)
    return summary, reader(config, root, engine)


def test_scores_choose_in_both_orders(module: Path, tmp_path: Path) -> None:
    summary, found = judged(tmp_path / "run", "longest")
    for _, pair, chosen, rejected in found.labelled():
        assert len(chosen.text) > len(rejected.text)
        assert pair.p_chosen > 0.9  # it never contradicts itself
    for _, answers, judgments in found.judged():
        lengths = {answer.id: len(answer.text) for answer in answers}
        assert all(j.judge == "taste:longest" for j in judgments)
        for j in judgments:
            longer = lengths[j.first_id] - lengths[j.second_id]
            assert j.verdict == ("first" if longer > 0 else "second" if longer < 0 else "tie")
    assert summary.judge.flip_rate in (0.0, None)
    assert found.stage("pairs").counts.records > 5


def test_words_are_verdicts(module: Path, tmp_path: Path) -> None:
    _, found = judged(tmp_path / "run", "polite", orders="one")
    assert {j.verdict for _, _, judgments in found.judged() for j in judgments} == {"tie"}


def test_another_function_or_other_code_is_another_judge(module: Path, tmp_path: Path) -> None:
    def folder(function: str) -> Path:
        recipe = {"model": "m", "engine": {"name": "scripted"},
                  "judging": {"method": "function", "function": f"taste:{function}"}}  # fmt: skip
        return reader(make_config(recipe), tmp_path / "run").stage("judgments").path

    first, other = folder("longest"), folder("polite")
    module.write_text(CODE + "\n# changed\n")
    assert len({first, other, folder("longest")}) == 3


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("broken", "RuntimeError: no idea; on prompt"),
        ("wrong", "TypeError: .*on prompt"),
        ("none", "no such function"),
        ("number", "no such function"),
    ],
)
def test_what_cannot_be_is_said(module: Path, tmp_path: Path, function: str, said: str) -> None:
    with raises(ConfigError, key="judging.function", match=said):
        judged(tmp_path / "run", function)


def test_the_two_keys_go_together() -> None:
    for judging in ({"method": "function"}, {"function": "a:b"}):
        with raises(ConfigError, key="judging"):
            make_config({"judging": judging})


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ([1, 0], "first"), ((0.1, 0.2), "second"), ([2.0, 2], "tie"), ([None, 1], None), ([math.nan, 1],
        None),
        ([math.inf, 1], "first"), ("first", "first"), ("tie", "tie"), (None, None),
    ],
)  # fmt: skip
def test_what_is_read(said: Any, verdict: str | None) -> None:
    assert read_preference(said) == verdict


@pytest.mark.parametrize(
    "said", ["First", "", 1, [1], [1, 2, 3], {"a": 1, "b": 2}, ["x", "y"], b"ab", object()]
)
def test_what_is_not(said: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        read_preference(said)
