"""Intervals over prompts and seeds: values worked by hand, and how often they hold the truth."""

import math

import numpy as np
import pytest

from sao.sweep.estimate import by_prompts, by_seeds, differences, estimate, interval_of, student95
from support.checks import known


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (30, 2.0423), (1e4, 1.9602), (1e9, 1.96)],
)
def test_quantiles_of_students_t(freedom: float, quantile: float) -> None:
    """From any table of the distribution."""
    assert student95(freedom) == pytest.approx(quantile, abs=1e-4)


def test_one_seed_is_the_interval_of_the_mean() -> None:
    """Values 0, 1, 2: mean 1, variance 1 / 3, two degrees of freedom."""
    found = known(estimate([{"a": 0.0, "b": 1.0, "c": 2.0}]))
    assert (found.value, found.prompts, found.seeds) == (1.0, 3, 1)
    reach = 4.302653 * math.sqrt(1 / 3)
    assert known(found.interval) == pytest.approx((1 - reach, 1 + reach), abs=1e-5)


def test_two_seeds_worked_by_hand() -> None:
    """Prompts' means 1 and 3 less the seeds' effects: variance 2 / 2 = 1. Seeds' means 1 and 3: 2 / 2 = 1.
    Together 2, with 2² / (1² / 1 + 1² / 1) = 2 degrees of freedom."""
    repeats = [{"a": 0.0, "b": 2.0}, {"a": 2.0, "b": 4.0}]
    assert by_prompts(repeats).value == pytest.approx(1)
    assert by_seeds([1.0, 3.0]).value == pytest.approx(1)
    found = known(estimate(repeats))
    reach = 4.302653 * math.sqrt(2)
    assert found.value == 2
    assert known(found.interval) == pytest.approx((2 - reach, 2 + reach), abs=1e-4)


def test_other_prompts_in_each_repeat() -> None:
    """Four prompts, each in one repeat with weight 1/4 and a distance of 1: 4/3 · 4 · 1/16 = 1/3."""
    repeats = [{"a": 0.0, "b": 2.0}, {"c": 2.0, "d": 4.0}]
    assert by_prompts(repeats).value == pytest.approx(1 / 3)
    assert by_prompts(repeats).freedom == 3


def test_differences_by_prompt_are_narrower() -> None:
    base = [{"a": 0.0, "b": 10.0, "c": 20.0}]
    cell = [{"a": 1.0, "b": 12.0, "c": 21.0}]
    found, paired = differences(cell, base)
    assert paired
    assert known(found).value == pytest.approx(4 / 3)
    assert known(known(found).interval)[0] > -1
    apart, unpaired = differences([{f"x{key}": value for key, value in cell[0].items()}], base)
    assert not unpaired
    assert known(apart).value == pytest.approx(4 / 3)
    assert known(known(apart).interval)[0] < -10


def test_seeds_are_paired_too() -> None:
    """Both settings are 5 better with the second seed: their difference does not vary."""
    base = [{"a": 0.0, "b": 1.0}, {"a": 5.0, "b": 6.0}]
    cell = [{"a": 1.0, "b": 2.5}, {"a": 6.0, "b": 7.5}]
    found, _ = differences(cell, base)
    assert known(found).value == pytest.approx(1.25)
    alone = known(estimate(cell))
    assert known(known(found).interval)[1] - 1.25 < known(alone.interval)[1] - alone.value


def test_no_spread_is_no_certainty() -> None:
    low, high = known(known(estimate([dict.fromkeys("abcd", 0.0)], (-1, 1))).interval)
    assert low == -high == pytest.approx(-(1 - 0.025**0.25))
    assert known(estimate([dict.fromkeys("abcd", 0.0)])).interval is None


def test_one_prompt_or_none() -> None:
    assert known(estimate([{"a": 1.0}, {"a": 2.0}])).interval is None
    assert estimate([]) is None
    assert estimate([{"a": 1.0}, {}]) is None
    assert differences([], []) == (None, False)
    assert differences([{}], [{"a": 1.0}]) == (None, False)


def test_an_interval_stays_where_values_can_be() -> None:
    low, high = known(known(estimate([{"a": 0.0, "b": 1.0}], (0, 1))).interval)
    assert (low, high) == (0, 1)
    assert interval_of(0.0, []) is None


@pytest.mark.parametrize(("prompt", "seed", "rest"), [(1, 0, 1), (0.3, 1, 0.3), (1, 0.1, 0.2), (0, 0, 1)])
def test_the_interval_holds_the_truth_often_enough(prompt: float, seed: float, rest: float) -> None:
    """Made values with prompts, seeds and noise of these standard deviations around 0."""
    rng, seeds, n, times, hits = np.random.default_rng(7), 3, 40, 200, 0
    for _ in range(times):
        noise = rng.normal(0, rest, (seeds, n))
        values = rng.normal(0, seed, (seeds, 1)) + rng.normal(0, prompt, (1, n)) + noise
        repeats = [{str(k): float(value) for k, value in enumerate(row)} for row in values]
        low, high = known(known(estimate(repeats)).interval)
        hits += low <= 0 <= high
    assert hits / times > 0.9
