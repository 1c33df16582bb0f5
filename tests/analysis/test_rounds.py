"""Rounds measured, stopped and chosen among, on made-up figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from sao.analysis.rounds import RULES, answers_of, best_of, judged_by_rules, logp_at_the_end, winners
from sao.config import RoundsConfig, make_config
from sao.errors import DropError, EngineError, ModelError, SAOError, TrainingError
from sao.method import is_models_fault
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS
from sao.results.base import Rate
from sao.results.rounds import Against, Answers, Gold, RoundJudge
from support.made_up import START, A, B, a_round, answers, said


def texts(**changes: float) -> Answers:
    return START.model_copy(update=changes)


def judge(**changes: Any) -> RoundJudge:
    plain: dict[str, Any] = {"first_slot_rate": 0.55, "flip_rate": 0.2, "agreement": None}
    return RoundJudge(**plain | changes)


def gold(after: float, step: float) -> Gold:
    return Gold(
        n=300, before=0.3, after=after, gain=after - 0.3, ci95=(after - 0.33, after - 0.27),
        step=step, step_ci95=(step - 0.03, step + 0.03),
    )  # fmt: skip


def agreed(rate: float) -> Rate:
    return Rate(rate=rate, ci95=(rate - 0.05, rate + 0.05), n=200)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"answers": texts(words=64.0)}, "answers 1.6 × as long as at the start"),
    "repetition": ({"answers": texts(repetition=0.3)}, "30% of an answer repeats itself, 5% at the start"),
    "cut_off": ({"answers": texts(cut_off=0.2)}, "20% of the answers do not end, 2% at the start"),
    "win_rate": (
        {"previous": Against(n=500, win_rate=0.4, ci95=(0.36, 0.44))},
        "it wins 40% against the model before, by the first judge",
    ),
    "gold": ({"checks": gold(0.35, -0.1)}, "the share of kept constraints moved by -0.100"),
    "pairs": ({"kept_share": 0.2}, "20% of the pairs were kept, 50% in the first round"),
    "judge": (
        {"judge": judge(agreement=agreed(0.6))},
        "the judge agrees with the one before on 60% of the pairs",
    ),
    "converged": ({"margin": 1.0}, "the mean margin of two answers is 1.00 nats, 3.00 in the first round"),
}


def test_every_rule_of_the_recipe_exists_and_is_tried_here() -> None:
    assert set(RoundsConfig().stop) == set(RULES) == set(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_stops_the_round_in_which_it_happens_and_no_other(name: str) -> None:
    changes, sentence = BROKEN[name]
    sound = [a_round(1), a_round(2)]
    assert judged_by_rules(sound, RULES).stopped_by == []
    assert judged_by_rules([*sound, a_round(3, **changes)], RULES).stopped_by == [sentence]
    assert judged_by_rules([*sound, a_round(3, **changes)], []).stopped_by == []


FOR_THE_SLOT = [
    ({"first_slot_rate": 0.2}, "20% of the verdicts are for the answer shown first, 55% in the first round"),
    ({"first_slot_rate": 0.8}, "80% of the verdicts are for the answer shown first, 55% in the first round"),
    ({"flip_rate": 0.4}, "40% of the verdicts flip with the order, 20% in the first round"),
]


@pytest.mark.parametrize(("changes", "sentence"), FOR_THE_SLOT)
def test_verdicts_that_begin_to_hang_on_the_slot_are_noticed(changes: dict[str, Any], sentence: str) -> None:
    """A judge that moves with the model drifts; to one that stays the answers have become alike."""
    frozen, moving = (judge(**changes, agreement=rate) for rate in (None, agreed(0.9)))
    for now, rule, other in ((frozen, "converged", "judge"), (moving, "judge", "converged")):
        sound = [a_round(1), a_round(2, judge=now)]
        assert judged_by_rules(sound, [rule]).stopped_by == [sentence]
        assert judged_by_rules(sound, [other]).stopped_by == []


def test_a_step_within_its_interval_stops_nothing() -> None:
    last = a_round(2, checks=gold(0.29, -0.01), previous=Against(n=50, win_rate=0.45, ci95=(0.35, 0.55)))
    assert judged_by_rules([a_round(1), last], RULES).stopped_by == []


def test_rules_say_nothing_of_what_is_not_measured() -> None:
    nothing: dict[str, Any] = {
        "judge": None,
        "initial": None,
        "previous": None,
        "margin": None,
        "kept_share": None,
    }
    last = a_round(2, **nothing)
    assert judged_by_rules([a_round(1, **nothing), last], RULES).stopped_by == []


def test_the_best_round_is_the_soundest_that_wins_most_and_constraints_count_more() -> None:
    assert best_of([a_round(1, 0.6), a_round(2, 0.7), a_round(3, 0.65)]).round == 2
    assert best_of([a_round(1, 0.6), a_round(2, 0.6)]).round == 1
    stopped = a_round(3, 0.9, stopped_by=["answers 3 × as long"])
    assert best_of([a_round(1, 0.6), a_round(2, 0.7), stopped]).round == 2
    assert best_of([stopped.model_copy(update={"round": 1})]).round == 1
    kept = [a_round(1, 0.6, checks=gold(0.5, 0.2)), a_round(2, 0.7, checks=gold(0.45, -0.05))]
    assert best_of(kept).round == 1


@pytest.mark.parametrize(
    ("error", "is_models"),
    [
        (TrainingError("NaN", key="loss"), True),
        (TrainingError("no room", key="train.processes"), False),
        (ModelError("NaN", key="weights"), True),
        (ModelError("out of memory", key="engine.device"), False),
        (DropError("too many"), True),
        (EngineError("gone"), False),
    ],
)
def test_what_ends_the_rounds_and_what_ends_the_run(error: SAOError, is_models: bool) -> None:
    assert is_models_fault(error) == is_models


def test_log_probabilities_are_those_of_the_last_quarter(tmp_path: Path) -> None:
    run = Round(make_config({"model": "builtin:world"}), tmp_path, STEPS)
    assert logp_at_the_end(run, "chosen") is None
    rows: list[dict[str, float | None]] = [{"step": i, "logps/chosen": -float(i)} for i in range(1, 9)]
    rows.insert(8, {"step": 8, "logps/chosen": None})
    path = run.stage("train").path / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert logp_at_the_end(run, "chosen") == -7.5


def test_what_answers_are_as_texts() -> None:
    written = answers(["one two three", "one two", "", "a b c d a b c d a b c d"])
    found = answers_of([*written[:3], written[3]])
    assert found.words == pytest.approx((3 + 2 + 0 + 12) / 4)
    assert found.distinct_2 == pytest.approx((2 + 4) / (2 + 1 + 11))
    assert found.repetition == pytest.approx((1 - 4 / 9) / 4)
    assert found.cut_off == 0.25
    assert answers_of([]).distinct_2 is None


def test_both_orders_of_a_pair_are_summed_and_ties_left_out() -> None:
    assert winners([said(A, B, 0.9), said(B, A, 0.4)]) == {frozenset((A.id, B.id)): A.id}
    assert winners([said(A, B, 0.9), said(B, A, 0.9)]) == {}
    assert winners([said(A, B, None, "second"), said(B, A, None, None)]) == {frozenset((A.id, B.id)): B.id}
    assert winners([said(A, B, None, None)]) == {}
