"""Intervals. The unit is the prompt: orders are averaged first, prompts are resampled, models stay paired."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
