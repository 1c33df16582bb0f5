"""Intervals. The unit is the prompt: orders are averaged first, prompts are resampled, models stay paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]
Z95 = 1.959964
"""The 97.5 % quantile of the normal distribution."""


def bootstrap_ci(values: Sequence[float], resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (one value a prompt; differences for paired data).

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("no values to resample")
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # Rows of a few million draws at most, so that memory stays flat.
    block = max(1, 2_000_000 // len(data))
    means = np.concatenate(
        [
            data[rng.integers(0, len(data), size=(min(block, resamples - start), len(data)))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a rate of `successes` in `n` independent trials (Wilson, JASA 22, 1927); (0, 1) for none."""
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def ratio_ci(counts: Sequence[float] | Floats, of: Sequence[float] | Floats) -> tuple[float, tuple[float, float]]:
    """A rate Σ counts / Σ of and its 95 % interval, one entry a prompt: what stands in one prompt hangs together.

    Wilson's interval on as many independent trials as the ratio estimator's variance is worth (Cochran, Sampling Techniques,
    1977, section 6.4; effective sample size as by Korn and Graubard, 1998). NaN and (0, 1) where there is nothing.
    """
    a, b = np.asarray(counts, np.float64), np.asarray(of, np.float64)
    sums = (a.sum(), b.sum(), (a * a).sum(), (a * b).sum(), (b * b).sum(), (b > 0).sum())
    return ratio_of_sums(*(float(value) for value in sums))


def ratio_of_sums(
    a: float, b: float, aa: float, ab: float, bb: float, prompts: float
) -> tuple[float, tuple[float, float]]:
    """The same from Σa, Σb, Σa², Σab, Σb² over the prompts (a so often out of b) and the number of those with b > 0."""
    if b <= 0:
        return math.nan, (0.0, 1.0)
    rate = a / b
    variance = (aa - 2 * rate * ab + rate * rate * bb) / b**2
    worth = rate * (1 - rate) / variance if variance > 1e-15 else prompts
    return rate, wilson(rate * worth, worth)


@dataclass(frozen=True, slots=True)
class Logistic:
    """Coefficients [k] of a logistic regression, their standard errors [k], and whether it converged."""

    coefficients: NDArray[np.float64]
    errors: NDArray[np.float64]
    converged: bool


def logistic(x: NDArray[np.float64], y: NDArray[np.float64], clusters: NDArray[np.int64]) -> Logistic:
    """Logistic regression by Newton's method; standard errors allow for clusters (Liang and Zeger, Biometrika 73, 1986).

    Args:
        x: [n, k], a column of ones included if a constant is wanted.
        y: [n], 0 or 1.
        clusters: [n], rows of one cluster (a prompt) hang together.

    Returns:
        Where the outcome is separated (always the longer answer, say) there is no finite solution: the coefficients then are
        those at which the search was stopped, large ones, and `converged` is false.

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
    """Agreement beyond chance of two raters, from their [c, c] table of counts (Cohen, 1960); NaN where chance explains all."""
    total = float(table.sum())
    if total == 0:
        return math.nan
    seen, expected = float(np.trace(table)) / total, float(table.sum(0) @ table.sum(1)) / total**2
    return (seen - expected) / (1 - expected) if expected < 1 else math.nan
