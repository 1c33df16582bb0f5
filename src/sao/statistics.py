"""Intervals and tests. The unit is the prompt: its orders, samples and turns are averaged first, then prompts
are resampled, and models stay paired.

Numbers come in (points of a prompt, counts, p values), numbers go out; nothing depends on the order of the
rows. Ties are half a point; an unparseable verdict is neither, and what it could have made of the mean is
given by bounds. How well the intervals cover:

    PYTHONPATH=src python benchmarks/coverage.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]
Array = NDArray[np.float64]
Z95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""
RESAMPLES = 10_000
EXACT = 16
"""Up to so many differences that are not zero the sign-flip test goes through all 2ⁿ signs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """One value a prompt, sorted by the prompt's id, and what the unparseable verdicts could have made of the
    mean.

    `ids` and `values` [n] hold the prompts with a readable verdict, `lost` counts those without one. `bounds`
    are the mean over all prompts if every unparseable verdict had been the worst one, and the best one.
    """

    ids: tuple[str, ...]
    values: Array
    verdicts: int
    unparseable: int
    lost: int
    bounds: tuple[float, float]


def prompt_points(
    rows: Iterable[tuple[str, str, float | None]], worst: float = 0.0, best: float = 1.0
) -> Points:
    """The mean of each prompt's cells, a cell (an order, a turn) being the mean of its verdicts; what is
    unparseable is left out.

    Args:
        rows: (prompt's id, cell, points or None for an unparseable verdict), in any order.
        worst: What an unparseable verdict is worth at worst, for the bounds.
        best: And at best.

    """
    cells: dict[str, dict[str, list[float | None]]] = {}
    for prompt, cell, value in rows:
        cells.setdefault(prompt, {}).setdefault(cell, []).append(value)
    verdicts = [value for prompt in cells.values() for cell in prompt.values() for value in cell]
    found: dict[str, float] = {}
    for prompt in sorted(cells):
        read = [[v for v in cell if v is not None] for cell in cells[prompt].values()]
        if means := [_exact_mean(cell) for cell in read if cell]:
            found[prompt] = _exact_mean(means)

    def bound(value: float) -> float:
        filled = [
            [[value if v is None else v for v in cell] for cell in prompt.values()]
            for prompt in cells.values()
        ]
        return _exact_mean([_exact_mean([_exact_mean(cell) for cell in prompt]) for prompt in filled])

    return Points(
        ids=tuple(found),
        values=np.array(list(found.values()), dtype=np.float64),
        verdicts=len(verdicts),
        unparseable=verdicts.count(None),
        lost=len(cells) - len(found),
        bounds=(bound(worst), bound(best)),
    )


def paired(a: Points, b: Points) -> tuple[Array, Array]:
    """The values [n] of the prompts that stand in both, in the same order: those of a, those of b."""
    other = dict(zip(b.ids, b.values, strict=True))
    both = [(value, other[key]) for key, value in zip(a.ids, a.values, strict=True) if key in other]
    x, y = np.array(both, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _exact_mean(values: Sequence[float]) -> float:
    """The mean without rounding on the way, so that it is the same in any order of the values; NaN of
    nothing."""
    return math.fsum(values) / len(values) if values else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A mean over `n` prompts, its 95 % interval, the p value that it is what it was tested against, and the
    smallest true distance from there that n such prompts find with a power of 80 %."""

    n: int
    mean: float
    interval: tuple[float, float]
    p: float
    detectable: float


def effect(
    values: Sequence[float] | Array,
    against: float = 0.0,
    span: tuple[float, float] = (-1.0, 1.0),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Effect:
    """What one value a prompt says against `against`.

    Args:
        values: Differences of two models (against 0, span −1 to 1), or points (against ½, span 0 to 1).
        against: The mean if there is nothing to be found.
        span: The least and the largest value that there can be.
        resamples: Of the interval, and draws of the test.
        seed: Of both.

    Raises ValueError for no values.

    """
    data = np.asarray(values, dtype=np.float64)
    return Effect(
        n=len(data),
        mean=_exact_mean(list(data)),
        interval=mean_ci(data, span, resamples, seed),
        p=sign_flip(data - against, resamples, seed),
        detectable=detectable_effect(float(data.std(ddof=1)) if len(data) > 1 else math.inf, len(data)),
    )


def effect_of_samples(value: float, samples: Array, n: int) -> Effect:
    """The same, against 0, for a statistic of n prompts that was refitted in each resample; p from how many
    lie beyond 0.

    `samples` [resamples] are the statistic, or the difference of two statistics that saw the same draws (see
    `resample`).
    """
    beyond = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return Effect(
        n=n,
        mean=value,
        interval=percentiles(samples),
        p=min(1.0, 2 * (beyond + 1) / (len(samples) + 1)),
        detectable=detectable_effect(float(samples.std(ddof=1)), 1),
    )


def mean_ci(
    values: Sequence[float] | Array, span: tuple[float, float], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """`bootstrap_ci`, and where all values are equal, so that resampling shows no spread, what Clopper and
    Pearson leave open.

    None of n prompts was different, so up to 1 − 0.025^(1/n) of all prompts may be, and these may have either
    end of the span. Raises ValueError for no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) and data.min() == data.max():
        value, other = float(data[0]), 1 - 0.025 ** (1 / len(data))
        return value - other * (value - span[0]), value + other * (span[1] - value)
    return bootstrap_ci(list(data), resamples, seed)


def bootstrap_ci(
    values: Sequence[float], resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (one value a prompt; differences for paired
    data).

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. Raises ValueError for no
    values.
    """
    if not len(values):
        raise ValueError("no values to resample")
    data = np.sort(np.asarray(values, dtype=np.float64))  # so that the interval does not hang on their order
    rng = np.random.default_rng(seed)
    # Rows of a few million draws at most, so that memory stays flat.
    block = max(1, 2_000_000 // len(data))
    means = np.concatenate(
        [
            data[rng.integers(0, len(data), size=(min(block, resamples - start), len(data)))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    return percentiles(means, level)


def resample(statistic: Callable[[Array], Array], n: int, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """A statistic in each resample of n prompts [resamples, …]: the bootstrap for whatever has to be fitted
    anew.

    Args:
        statistic: From how often each prompt was drawn [b, n] to the statistic [b, …]; it refits, b resamples
            at a time.
        n: Number of prompts, the caller's arrays sorted by their ids so that the order of the rows plays no
            part.
        resamples: How many.
        seed: Of the draws.

    Raises ValueError for no prompts.

    """
    if not n:
        raise ValueError("no prompts to resample")
    rng = np.random.default_rng(seed)
    block = max(1, min(256, 500_000 // n))
    shares = np.full(n, 1 / n)
    return np.concatenate(
        [
            statistic(rng.multinomial(n, shares, size=min(block, resamples - start)).astype(np.float64))
            for start in range(0, resamples, block)
        ]
    )


def percentiles(samples: Array, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the resampled statistic [resamples]."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip(differences: Sequence[float] | Array, draws: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p value that a prompt's difference may as well have had the other sign (Fisher's permutation
    test for pairs).

    Exact over all 2ⁿ signs for up to `EXACT` differences that are not zero, else (k + 1) / (draws + 1), k of
    the draws being as far from zero as what was seen (Phipson and Smyth, 2010).
    """
    data = np.asarray(differences, dtype=np.float64)
    sizes, times = np.unique(np.abs(data[data != 0]), return_counts=True)
    seen = abs(math.fsum(data)) * (1 - 1e-12)
    if times.sum() <= EXACT:
        sums = np.zeros(1)
        for size in np.repeat(sizes, times):
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= seen - 1e-12).mean())
    rng = np.random.default_rng(seed)
    extreme, block = 0, max(1, 2_000_000 // len(sizes))
    for start in range(0, draws, block):
        # Of c equal sizes a Binomial(c, ½) number keep their sign.
        kept = rng.binomial(times, 0.5, size=(min(block, draws - start), len(sizes)))
        extreme += int((np.abs((2 * kept - times) @ sizes) >= seen - 1e-12).sum())
    return (extreme + 1) / (draws + 1)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Exact two-sided p value of two accuracies on the same items, from how many only one of them got right
    (McNemar, 1947)."""
    n, few = only_a + only_b, min(only_a, only_b)
    term = total = 1
    for i in range(few):
        term = term * (n - i) // (i + 1)
        total += term
    return float(min(1.0, 2 * total / 2**n))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted so that the chance of any false alarm among them stays at the level (Holm, 1979);
    order as given."""
    worst, adjusted = 0.0, [0.0] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = worst
    return adjusted


def detectable_effect(spread: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean that n prompts of this standard deviation find with this power, two-sided
    (normal approximation)."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * spread / math.sqrt(n)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def bonferroni(intervals: int) -> float:
    """Standard errors to either side such that so many intervals hold together with 95 % (Bonferroni)."""
    return NormalDist().inv_cdf(1 - 0.025 / max(1, intervals))


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a rate of `successes` in `n` independent trials (Wilson, JASA 22, 1927); (0, 1) for
    none."""
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    # At 0 and at 1 the ends are exact; rounding must not leave the rate itself outside.
    return 0.0 if successes <= 0 else low, 1.0 if successes >= n else high


def ratio_ci(
    counts: Sequence[float] | Floats, of: Sequence[float] | Floats, z: float = Z95
) -> tuple[float, tuple[float, float]]:
    """A rate Σ counts / Σ of and its interval (95 % by default), one entry a prompt: what stands in one
    prompt hangs together.

    Wilson's interval on as many independent trials as the ratio estimator's variance is worth (Cochran,
    Sampling Techniques, 1977, section 6.4; effective sample size as by Korn and Graubard, 1998). NaN and (0,
    1) where there is nothing.
    """
    a, b = np.asarray(counts, np.float64), np.asarray(of, np.float64)
    aa, ab, bb = float((a * a).sum()), float((a * b).sum()), float((b * b).sum())
    return ratio_of_sums(float(a.sum()), float(b.sum()), aa, ab, bb, float((b > 0).sum()), z)


def ratio_of_sums(
    a: float, b: float, aa: float, ab: float, bb: float, prompts: float, z: float = Z95
) -> tuple[float, tuple[float, float]]:
    """The same from Σa, Σb, Σa², Σab, Σb² over the prompts (a so often out of b) and the number of those with
    b > 0."""
    if b <= 0:
        return math.nan, (0.0, 1.0)
    rate = a / b
    variance = (aa - 2 * rate * ab + rate * rate * bb) / b**2
    worth = rate * (1 - rate) / variance if variance > 1e-15 else prompts
    return rate, wilson(rate * worth, worth, z)


@dataclass(frozen=True, slots=True)
class Logistic:
    """Coefficients [k] of a logistic regression, their standard errors [k], and whether it converged."""

    coefficients: NDArray[np.float64]
    errors: NDArray[np.float64]
    converged: bool


def logistic(x: NDArray[np.float64], y: NDArray[np.float64], clusters: NDArray[np.int64]) -> Logistic:
    """Logistic regression by Newton's method; standard errors allow for clusters (Liang and Zeger, Biometrika
    73, 1986).

    Args:
        x: [n, k], a column of ones included if a constant is wanted.
        y: [n], 0 or 1.
        clusters: [n], rows of one cluster (a prompt) hang together.

    Returns:
        Where the outcome is separated (always the longer answer, say) there is no finite solution: the
        coefficients then are those at which the search was stopped, large ones, and `converged` is false.

    """
    n, k = x.shape
    beta, converged = np.zeros(k), False
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -500, 500)))
        information = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(k)
        step = np.linalg.solve(information, x.T @ (y - p))
        if not np.isfinite(step).all() or np.abs(beta + step).max() > 50:
            break
        beta = beta + step
        if np.abs(step).max() < 1e-8:
            converged = True
            break
    scores = np.zeros((int(clusters.max()) + 1 if n else 0, k))
    np.add.at(scores, clusters, x * (y - p)[:, None])
    bread = np.linalg.inv(information)
    covariance = bread @ (scores.T @ scores) @ bread
    return Logistic(beta, np.sqrt(np.maximum(np.diag(covariance), 0)), converged)


def cohen_kappa(table: NDArray[np.float64]) -> float:
    """Agreement beyond chance of two raters, from their [c, c] table of counts (Cohen, 1960); NaN where
    chance explains all."""
    total = float(table.sum())
    if total == 0:
        return math.nan
    seen, expected = float(np.trace(table)) / total, float(table.sum(0) @ table.sum(1)) / total**2
    return (seen - expected) / (1 - expected) if expected < 1 else math.nan
