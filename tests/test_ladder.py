"""The ladder of judges (benchmarks/ladder.py): figures by hand, and a cell that was killed."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from sao.config import JudgingConfig
from sao.engines.scripted import ScriptedEngine, read_answers
from sao.records import Judgment
from sao.stages.calibration import sigmoid
from sao.store.stage import Stage
from support.repository import load_script

ladder = load_script("benchmarks/ladder.py")
GOLD = [
    # The longer answer is better in three of four; the last two pairs are of one prompt.
    {"prompt": "p", "first": "long answer", "second": "short", "gold": "first", "kinds": ["a"]},
    {"prompt": "q", "first": "short", "second": "long answer", "gold": "second", "kinds": ["a", "b"]},
    {"prompt": "r", "first": "long answer", "second": "short", "gold": "first", "kinds": ["b"]},
    {"prompt": "r", "first": "other", "second": "longer answer", "gold": "first", "kinds": ["b"]},
]


def longer(messages: Any, choices: Any) -> tuple[float, ...]:
    """Log-odds of 1 for the longer answer, and of 3 for the first slot."""
    first, second = read_answers(messages) or ("", "")
    odds = 3.0 + (1.0 if len(first) > len(second) else -1.0)
    return math.log(0.5 * sigmoid(odds)), math.log(0.5 * sigmoid(-odds))


def test_the_figures_by_hand(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "verdicts", {"a": 1}).open()
    ladder.measured(stage, GOLD, ScriptedEngine(choose=longer), JudgingConfig())
    found = ladder.figures(stage, GOLD)
    assert (found["accuracy"]["rate"], found["accuracy"]["n"]) == (0.5, 8)
    assert (found["accuracy_both_orders"]["rate"], found["accuracy_both_orders"]["n"]) == (0.75, 4)
    assert (found["first_slot"], found["readable"], found["verdict_prob"]) == (1.0, 1.0, 0.5)
    assert found["bias"] == pytest.approx(3.0)
    assert found["margin_for_gold"] == pytest.approx(0.5)
    assert found["kinds"] == {"a": [2.0, 2], "b": [2.0, 3]}
    assert found["requests_a_pair"] == 2


def test_a_pair_with_one_unread_order_counts_as_half_right(tmp_path: Path) -> None:
    def unread_once(messages: Any, choices: Any) -> tuple[float, ...]:
        is_first = (read_answers(messages) or ("", ""))[0] == "long answer"
        return longer(messages, choices) if is_first else (-20.0, -20.0)

    stage = Stage(tmp_path, "verdicts", {"a": 1}).open()
    ladder.measured(stage, GOLD[:1], ScriptedEngine(choose=unread_once), JudgingConfig())
    found = ladder.figures(stage, GOLD[:1])
    assert (found["readable"], found["accuracy"]["rate"]) == (0.5, 1.0)
    assert (found["accuracy_both_orders"]["rate"], found["bias"]) == (0.5, None)


def test_the_table(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "verdicts", {"a": 1}).open()
    ladder.measured(stage, GOLD, ScriptedEngine(choose=longer), JudgingConfig())
    row = {"model": "m.gguf", "way": "logprob", "pairs": 4, **ladder.figures(stage, GOLD)}
    last = list(ladder.markdown([row]))[-1]
    assert last.startswith("| m | logprob | 4 | 0.75 | [")
    assert "| 1.0 | 0.5 | 3.0 |" in last


def test_after_a_kill_nothing_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*given: Any) -> Iterator[Any]:
        yield from islice(real(*given), 3)
        raise KeyboardInterrupt

    real, stage = ladder.judge, Stage(tmp_path, "verdicts", {"a": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ladder, "judge", killed)
        ladder.measured(stage.open(), GOLD, ScriptedEngine(choose=longer), JudgingConfig())
    engine = ScriptedEngine(choose=longer)
    ladder.measured(stage.open(), GOLD, engine, JudgingConfig())
    assert engine.calls == 5
    assert [verdict.row for verdict in stage.records(Judgment)] == list(range(8))
    assert ladder.figures(stage, GOLD)["accuracy_both_orders"]["rate"] == 0.75
