"""Intervals and tests: worked by hand, and against simulations with a known truth
(benchmarks/coverage.py)."""

import itertools
import math
import random
from functools import partial
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.statistics import (
    bootstrap_ci,
    cohen_kappa,
    detectable_effect,
    effect,
    effect_of_samples,
    holm,
    logistic,
    mcnemar_exact,
    mean_ci,
    paired,
    percentiles,
    prompt_points,
    resample,
    sign_flip,
    wilson,
)
from support.repository import load_script


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """benchmarks/coverage.py."""
    return load_script("benchmarks/coverage.py")


# Points of a prompt


def test_orders_are_averaged_before_prompts() -> None:
    """Three samples in one order and one in the other weigh as much as each other; worked by hand."""
    rows = [
        ("b", "0", 1.0),
        ("b", "0", 1.0),
        ("b", "0", 0.0),
        ("b", "1", 0.0),
        ("a", "0", 0.5),
        ("a", "1", 1.0),
    ]
    points = prompt_points(rows)
    assert points.ids == ("a", "b")
    assert points.values.tolist() == pytest.approx([0.75, (2 / 3 + 0) / 2])
    assert (points.verdicts, points.unparseable, points.lost) == (6, 0, 0)
    assert points.bounds == pytest.approx((points.values.mean(), points.values.mean()))


def test_unparseable_verdicts_are_counted_and_bounded() -> None:
    rows = [
        ("a", "0", 1.0),
        ("a", "1", None),
        ("b", "0", None),
        ("b", "1", None),
        ("c", "0", 0.5),
        ("c", "1", 0.5),
    ]
    points = prompt_points(rows)
    assert points.ids == ("a", "c")
    assert points.values.tolist() == [1.0, 0.5]
    assert (points.verdicts, points.unparseable, points.lost) == (6, 3, 1)
    assert points.bounds == pytest.approx(((0.5 + 0 + 0.5) / 3, (1 + 1 + 0.5) / 3))


def test_marks_have_their_own_bounds() -> None:
    points = prompt_points([("a", "turn 1", 8.0), ("a", "turn 2", None)], worst=1.0, best=10.0)
    assert points.values.tolist() == [8.0]
    assert points.bounds == (4.5, 9.0)


def test_no_rows_make_no_points() -> None:
    points = prompt_points([])
    assert points.ids == () and len(points.values) == 0 and math.isnan(points.bounds[0])


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from("01"), st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0, None])
        ),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_points_do_not_hang_on_the_order_of_rows(
    rows: list[tuple[str, str, float | None]], draw: random.Random
) -> None:
    mixed = list(rows)
    draw.shuffle(mixed)
    a, b = prompt_points(rows), prompt_points(mixed)
    assert a.ids == b.ids and a.values.tolist() == b.values.tolist()
    assert a.bounds == b.bounds or all(math.isnan(x) for x in (*a.bounds, *b.bounds))


def test_pairing_keeps_the_prompts_of_both() -> None:
    a = prompt_points([("x", "0", 1.0), ("y", "0", 0.5), ("z", "0", 0.0)])
    b = prompt_points([("z", "0", 0.25), ("x", "0", 0.75), ("w", "0", 1.0)])
    ours, theirs = paired(a, b)
    assert ours.tolist() == [1.0, 0.0] and theirs.tolist() == [0.75, 0.25]
    assert [len(side) for side in paired(a, prompt_points([]))] == [0, 0]


# Intervals


def test_intervals_and_tests_do_not_hang_on_the_order_of_values() -> None:
    values = list(np.random.default_rng(0).choice([0, 0.25, 0.5, 0.75, 1], 80))
    mixed = random.Random(1).sample(values, len(values))
    assert bootstrap_ci(values, 500, 3) == bootstrap_ci(mixed, 500, 3)
    assert effect(values, 0.5, (0.0, 1.0), 500, 3) == effect(mixed, 0.5, (0.0, 1.0), 500, 3)


def test_a_win_rate_turned_round_is_one_less_it() -> None:
    values = np.random.default_rng(1).choice([0, 0.25, 0.5, 0.75, 1], 200, p=[0.1, 0.2, 0.2, 0.2, 0.3])
    ours, theirs = effect(values, 0.5, (0.0, 1.0)), effect(1 - values, 0.5, (0.0, 1.0))
    assert ours.mean == pytest.approx(1 - theirs.mean, abs=1e-12)
    assert ours.interval == pytest.approx((1 - theirs.interval[1], 1 - theirs.interval[0]), abs=0.005)
    assert ours.p == theirs.p and ours.detectable == pytest.approx(theirs.detectable)


def test_a_model_against_itself_has_one_half_and_no_alarm() -> None:
    found = effect([0.5] * 100, 0.5, (0.0, 1.0))
    assert found.mean == 0.5 and found.p == 1.0
    assert found.interval[0] < 0.5 < found.interval[1]


def test_values_that_are_all_equal_do_not_make_a_sure_thing() -> None:
    """0 of 20 losses leaves up to 1 − 0.025^(1/20) = 16.8 % of losses open (Clopper and Pearson)."""
    low, high = mean_ci([1.0] * 20, (0.0, 1.0))
    assert (low, high) == pytest.approx((1 - 0.16843, 1.0), abs=1e-5)
    assert mean_ci([0.0] * 20, (-1.0, 1.0)) == pytest.approx((-0.16843, 0.16843), abs=1e-5)
    assert mean_ci([0.0, 1.0] * 10, (0.0, 1.0)) == bootstrap_ci([0.0, 1.0] * 10, 10_000, 0)


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        effect([])
    with pytest.raises(ValueError, match="no prompts"):
        resample(lambda counts: counts.sum(1), 0)


def test_a_refitted_mean_has_the_bootstrap_s_interval() -> None:
    """The general bootstrap, given the mean as its statistic, agrees with the one that is written for
    means."""
    values = np.sort(np.random.default_rng(2).normal(0.3, 1, 150))
    samples = resample(lambda counts: counts @ values / counts.sum(1), len(values), 10_000, 5)
    assert samples.shape == (10_000,)
    assert percentiles(samples) == pytest.approx(bootstrap_ci(list(values), 10_000, 5), abs=0.01)
    found, direct = effect_of_samples(float(values.mean()), samples, len(values)), effect(values)
    assert found.p == pytest.approx(direct.p, abs=0.002) and found.detectable == pytest.approx(
        direct.detectable, rel=0.03
    )


def test_resamples_draw_as_many_prompts_as_there_are() -> None:
    counts = resample(lambda drawn: drawn, 7, 600, 1)
    assert counts.shape == (600, 7) and (counts.sum(1) == 7).all()
    assert np.array_equal(counts, resample(lambda drawn: drawn, 7, 600, 1))


# Tests


@given(st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=7))
def test_sign_flip_counts_all_signs(values: list[float]) -> None:
    """The exact p value is the share of sign patterns that are as far from zero, counted one by one."""
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert sign_flip(values) == pytest.approx(sum(x >= abs(sum(values)) for x in sums) / len(sums))


def test_sign_flip_draws_where_there_are_too_many_signs() -> None:
    values = [1.0] * 12 + [-1.0] * 6
    exact = sum(math.comb(18, k) for k in range(19) if abs(2 * k - 18) >= 6) / 2**18
    assert sign_flip(values, 20_000, 1) == pytest.approx(exact, abs=0.01)
    assert sign_flip([1.0] * 40, 999, 1) == 1 / 1000  # never 0
    assert sign_flip([0.0] * 40) == 1.0


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 32),
        (1, 8, 2 * (1 + 9) / 512),
        (10, 10, 1.0),
        (2, 7, 2 * (1 + 9 + 36) / 512),
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p)
    assert mcnemar_exact(only_b, only_a) == mcnemar_exact(only_a, only_b)


def test_mcnemar_of_many_items() -> None:
    """3,000 discordant items: as the normal approximation with continuity correction."""
    z = (1600 - 1400 - 1) / math.sqrt(3000)
    assert mcnemar_exact(1400, 1600) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_detectable_effect_by_hand_and_by_simulation() -> None:
    """(1.95996 + 0.84162) · sd/√n; so large an effect is found in four of five evaluations."""
    assert detectable_effect(0.4, 400) == pytest.approx(2.80158 * 0.02, abs=1e-6)
    n, sd = 200, 0.45
    size, rng = detectable_effect(sd, n), np.random.default_rng(3)
    hits = [sign_flip(rng.normal(size, sd, n), 400, i) <= 0.05 for i in range(600)]
    assert sum(hits) / len(hits) == pytest.approx(0.8, abs=0.05)


def test_wilson_by_hand() -> None:
    """5 of 10: (0.2366, 0.7634), as in Newcombe (1998)."""
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


# Simulations (the whole of it: benchmarks/coverage.py; 4 standard errors of slack here)


def test_the_bootstrap_covers(coverage: ModuleType) -> None:
    once = partial(coverage.win_rate_once, n=120, setting=(1.0, 2.0, 1.5, 0.2))
    (covered,) = coverage.shares(400, 7, once)
    assert covered == pytest.approx(0.95, abs=0.044)
    (covered,) = coverage.shares(400, 7, partial(coverage.difference_once, n=120, centres=(0.6, -0.2)))
    assert covered == pytest.approx(0.95, abs=0.044)


def test_wilson_covers(coverage: ModuleType) -> None:
    covered = [coverage.wilson_coverage(100, p) for p in np.linspace(0.05, 0.95, 19)]
    assert 0.945 <= sum(covered) / len(covered) <= 0.955 and min(covered) > 0.93


def test_a_judge_with_a_taste_for_a_slot_raises_no_alarm(coverage: ModuleType) -> None:
    for once in (coverage.alarm_once, coverage.alarm_of_two_once):
        for share in coverage.shares(300, 7, partial(once, n=60, bias=2.0)):
            assert share <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.slow
def test_refitted_scores_cover(coverage: ModuleType) -> None:
    rows, difficulty, _ = coverage.alpaca_rows(np.random.default_rng(1), 50_000, -0.5, 0.3)
    truth = coverage.length_controlled(rows, difficulty, resamples=1).score
    once = partial(coverage.lc_once, n=150, model=-0.5, wordy=0.3, gaming=False, penalty=1e4, truth=truth)
    (covered,) = coverage.shares(120, 7, once)
    assert covered == pytest.approx(0.95, abs=0.08)
    many = coverage.games_of(*coverage.play(np.random.default_rng(1), 30_000, 0.5, 0.5))
    truths = tuple(coverage.arena_scores(many, controlled=c, resamples=1)["m"].score for c in (False, True))
    plain, styled, by_game = coverage.shares(
        120, 7, partial(coverage.arena_once, n=150, centre=0.5, bias=0.5, truths=truths)
    )
    assert plain == pytest.approx(0.95, abs=0.08) and styled == pytest.approx(0.95, abs=0.08)
    assert by_game < 0.9  # why questions are resampled and not games


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = effect(values, 0.5, (0.0, 1.0), 400)
    assert found.interval[0] - 1e-9 <= found.mean + 0.05 and found.interval[1] + 0.05 >= found.mean
    assert 0 < found.p <= 1


def test_wilson_by_hand_and_by_simulation() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_logistic_recovers_planted_coefficients_and_its_errors_allow_for_clusters() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    x = np.stack([np.ones(n), rng.normal(size=n)], 1)
    y = (rng.random(n) < 1 / (1 + np.exp(-(0.5 - 1.2 * x[:, 1])))).astype(float)
    fit = logistic(x, y, np.arange(n))
    assert fit.converged
    assert np.abs((fit.coefficients - [0.5, -1.2]) / fit.errors).max() < 3
    twice = logistic(np.repeat(x, 2, 0), np.repeat(y, 2), np.repeat(np.arange(n), 2))
    assert np.allclose(twice.errors, fit.errors, rtol=1e-6)  # saying all twice adds nothing
    assert not logistic(x, (x[:, 1] > 0).astype(float), np.arange(n)).converged


def test_kappa_by_hand() -> None:
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert math.isnan(cohen_kappa(np.array([[10.0, 0.0], [0.0, 0.0]])))
