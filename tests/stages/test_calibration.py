"""Calibration and ranks against hand-worked and simulated truth."""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sao.stages.calibration import Calibration, Calibrator, bradley_terry, sigmoid
from support.made_up import answers, said


def test_calibration_by_hand() -> None:
    """Log-odds for the first slot of 3 and −1, then 1 and −3: a bias of 0 each; shifted by 0.7."""
    a, b = answers(["a", "b"])
    seen = Calibrator()
    for x, y in ((3.0, -1.0), (1.0, -3.0), (2.0, -2.0)):
        seen.see([said(a, b, sigmoid(x + 0.7)), said(b, a, sigmoid(y + 0.7))])
    found = seen.calibration()
    assert found.bias == pytest.approx(0.7)
    assert (found.agreement, found.pairs) == (1.0, 3)
    assert found.temperature == pytest.approx(1.0)  # never surer than it says
    assert found.first(said(a, b, sigmoid(2.7))) == pytest.approx(2.0)
    assert found.first(said(a, b, None, None)) is None


def words(skill: float, bias: float, n: int = 4000) -> Calibration:
    """The calibration of a judge of words with that skill and slot bias (nats), its two orders erring
    alone."""
    rng, seen = random.Random(1), Calibrator()
    a, b = answers(["a", "b"])  # a is the better one
    for _ in range(n):
        one = "first" if rng.random() < sigmoid(skill + bias) else "second"
        two = "second" if rng.random() < sigmoid(skill - bias) else "first"
        seen.see([said(a, b, None, one), said(b, a, None, two)])
    return seen.calibration()


@pytest.mark.parametrize(("skill", "bias"), [(1.5, 0.0), (1.5, 1.0), (2.5, -2.0), (0.5, 0.3)])
def test_skill_and_slot_bias_of_a_judge_of_words_are_recovered(skill: float, bias: float) -> None:
    found = words(skill, bias)
    assert found.bias == pytest.approx(bias, abs=0.2)  # of 4,000 pairs few go to the slot that is disliked
    assert found.skill == pytest.approx(skill, abs=0.2)


def test_two_words_that_agree_count_twice_and_two_for_one_slot_not_at_all() -> None:
    a, b = answers(["a", "b"])
    known = Calibration(bias=1.0, skill=1.5)
    mine = [known.first(said(a, b, None, "first")) or 0.0, -(known.first(said(b, a, None, "second")) or 0.0)]
    assert sum(mine) / 2 == pytest.approx(2 * 1.5)
    slot = [known.first(said(a, b, None, "first")) or 0.0, -(known.first(said(b, a, None, "first")) or 0.0)]
    assert sum(slot) / 2 == pytest.approx(0.0)
    assert known.first(said(a, b, None, "tie")) == 0.0
    assert Calibrator().calibration().skill is None
    # What an agreeing pair is worth is what is true of it: right in both orders against wrong in both.
    right, wrong = sigmoid(2.5) * sigmoid(0.5), sigmoid(-2.5) * sigmoid(-0.5)
    assert sigmoid(3.0) == pytest.approx(right / (right + wrong))


def test_in_one_order_the_mean_is_the_bias() -> None:
    a, b = answers(["a", "b"])
    seen = Calibrator()
    for x in [2.0, -2.0, 1.0, -1.0] * 100:
        seen.see([said(a, b, sigmoid(x - 0.3))])
    assert seen.calibration().bias == pytest.approx(-0.3)
    chance = Calibrator()
    for x in (2.0, -1.0, 1.5, -2.0):
        chance.see([said(a, b, sigmoid(x))])
    assert chance.calibration().bias == 0.0  # no more than chance


@given(st.floats(-40, 40), st.floats(0.5, 20), st.floats(-3, 3))
def test_swapping_the_answers_swaps_calibrated_log_odds(x: float, temperature: float, bias: float) -> None:
    a, b = answers(["a", "b"])
    known = Calibration(bias=bias, temperature=temperature)
    one, two = known.first(said(a, b, sigmoid(x))), known.first(said(b, a, sigmoid(2 * bias - x)))
    assert one is not None
    assert two is not None
    if abs(x) < 25 and abs(2 * bias - x) < 25:
        assert one == pytest.approx(-two, abs=1e-3)


# Bradley–Terry


def test_two_answers_by_hand() -> None:
    """Without a prior to speak of, 3 wins in 4 are log 3."""
    found = bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]), prior_sd=1e4)
    assert found.margin(0, 1) == pytest.approx(math.log(3), abs=1e-4)
    assert found.sd(0, 1) == pytest.approx(math.sqrt(1 / (4 * 0.75 * 0.25)), rel=1e-3)


def test_strengths_are_recovered_and_their_intervals_cover() -> None:
    rng, truth = np.random.default_rng(0), np.array([1.2, 0.4, -0.3, -1.3])
    inside = total = 0
    for _ in range(100):
        wins = np.zeros((4, 4))
        for i, j in combinations(range(4), 2):
            k = rng.binomial(30, 1 / (1 + np.exp(truth[j] - truth[i])))
            wins[i, j], wins[j, i] = k, 30 - k
        found = bradley_terry(wins)
        for i, j in combinations(range(4), 2):
            inside += abs(found.margin(i, j) - (truth[i] - truth[j])) < 1.96 * found.sd(i, j)
            total += 1
    assert 0.92 < inside / total < 0.98


@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_strengths_do_not_hang_on_the_order_and_unbeaten_ones_stay_finite(n: int, rng: random.Random) -> None:
    wins = np.array([[0.0 if i == j else rng.choice([0.0, 1.0, 2.0]) for j in range(n)] for i in range(n)])
    found = bradley_terry(wins)
    assert np.isfinite(found.values).all()
    order = rng.sample(range(n), n)
    mixed = bradley_terry(wins[np.ix_(order, order)])
    assert np.allclose(mixed.values, found.values[order], atol=1e-6)
    back = bradley_terry(wins.T)
    assert np.allclose(back.values, -found.values, atol=1e-6)
