"""Rounds measured, stopped and chosen among, on made-up figures."""

from typing import Any

import pytest

from sao.analysis.rounds import RULES, answers_of, best_of, judged_by_rules, winners
from sao.config import RoundsConfig
from sao.results.base import Rate
from sao.results.rounds import Against, Answers, Gold, RoundJudge, RoundResult
from support.made_up import A, B, answers, said

START = Answers(words=40.0, distinct_2=0.5, repetition=0.05, cut_off=0.02)


def a_round(number: int = 1, win: float = 0.6, **changes: Any) -> RoundResult:
    """A round in which nothing is wrong, with some figures changed."""
    against = Against(n=500, win_rate=win, ci95=(win - 0.04, win + 0.04))
    figures: dict[str, Any] = {
        "round": number, "model": f"round-{number}", "prompts": 1000, "pairs": 500, "kept_share": 0.5,
        "identical": 0.1,
        "margin": 3.0, "chosen_logp": -1.0, "rejected_logp": -2.0, "base": START, "answers": START,
        "initial": against, "previous": against, "checks": None, "oracle": None,
        "judge": RoundJudge(first_slot_rate=0.55, flip_rate=0.2, agreement=None),
    }  # fmt: skip
    return RoundResult(**figures | changes)


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
    "converged": ({"margin": 1.0}, "the mean margin of the pairs is 1.00 nats, 3.00 in the first round"),
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


def test_a_judge_that_begins_to_look_at_the_slot_is_noticed() -> None:
    for rate in (0.2, 0.8):
        last = a_round(2, judge=judge(first_slot_rate=rate))
        (sentence,) = judged_by_rules([a_round(1), last], RULES).stopped_by
        assert (
            sentence == f"{rate:.0%} of the verdicts are for the answer shown first, 55% in the first round"
        )


def test_a_judge_whose_verdicts_begin_to_flip_is_noticed() -> None:
    (sentence,) = judged_by_rules([a_round(1), a_round(2, judge=judge(flip_rate=0.4))], RULES).stopped_by
    assert sentence == "40% of the verdicts flip with the order, 20% in the first round"


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
