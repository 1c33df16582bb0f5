"""Intervals over prompts and seeds: one value for each prompt and repeat in, a mean with its interval out.

A mean over R repeats varies for two reasons: other prompts, and other seeds. Both are clusters: the values of
a prompt hang together over the repeats, those of a repeat over its prompts. The variance of the mean is taken
as the sum of the two one-way variances of clustered data,

    V = V_prompts + V_seeds
    V_prompts = N / (N − 1) · Σ_p (Σ_r w_r (y_rp − m_r))²      w_r = 1 / (R n_r), N prompts in all
    V_seeds   = Σ_r (m_r − m)² / (R − 1) / R

(Cameron, Gelbach and Miller, J. Business & Economic Statistics 29, 2011, without the term that they subtract
for what is counted in both: V is then never negative). Where all repeats have the same n prompts, V_prompts
is the variance of the prompts' means over n. The interval is m ± t · √V with Student's t at Satterthwaite's
degrees of freedom (Biometrics Bulletin 2, 1946). With one repeat V_seeds is not known and is left out.

In simulations over prompts, seeds and noise of many sizes (4,000 each, 40 and 150 prompts) the interval held
the truth in 94 to 99 % with 5 seeds, in 93 to 99 % with 3, but in 89 to 98 % with 2: how much two seeds
differ says little of how much seeds differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sao.results.base import Interval
from sao.statistics import Z95, mean_ci

Values = Mapping[str, float]
"""One value for each prompt of a repeat, by the prompt's id."""
FORMULA = (
    "mean over seeds ± t · √(V_prompts + V_seeds), 95 %: one-way clustered variances by prompt and by seed "
    "(Cameron, Gelbach and Miller 2011, without the subtracted term), t by Satterthwaite (1946); with one "
    "seed V_prompts only"
)


@dataclass(frozen=True)
class Mean:
    """A mean over repeats, its interval, and what it is over."""

    value: float
    interval: Interval | None
    prompts: int
    seeds: int


@dataclass(frozen=True)
class Variance:
    """A part of the variance of a mean, and its degrees of freedom."""

    value: float
    freedom: int


def estimate(repeats: Sequence[Values], span: tuple[float, float] | None = None) -> Mean | None:
    """The mean over repeats, None where one of them has no prompts. `span` is the least and the largest value
    that there can be: it bounds the interval, also where all values are equal."""
    if not repeats or not all(repeats):
        return None
    means = [_mean(values) for values in repeats]
    value = math.fsum(means) / len(means)
    prompts = len({prompt for values in repeats for prompt in values})
    parts = [by_prompts(repeats), by_seeds(means)]
    flat = [v for values in repeats for v in values.values()]
    if min(flat) == max(flat):
        # Without spread there is no variance to go by; that of the prompts alone is bounded.
        interval = mean_ci(flat[:prompts], span) if span else None
    else:
        interval = _within(span, interval_of(value, parts))
    return Mean(value, interval, prompts, len(repeats))


def differences(
    cells: Sequence[Values], bases: Sequence[Values], span: tuple[float, float] | None = None
) -> tuple[Mean | None, bool]:
    """Cells less bases, repeat by repeat, and whether by prompt: where each two have prompts in common, these
    are compared; else their means are."""
    common = [
        {prompt: cell[prompt] - base[prompt] for prompt in cell if prompt in base}
        for cell, base in zip(cells, bases, strict=True)
    ]
    if common and all(common):
        return estimate(common, span), True
    if not cells or not all(cells) or not all(bases):
        return None, False
    apart = [_mean(cell) - _mean(base) for cell, base in zip(cells, bases, strict=True)]
    value = math.fsum(apart) / len(apart)
    prompts = len({prompt for values in (*cells, *bases) for prompt in values})
    parts = [by_prompts(cells), by_prompts(bases), by_seeds(apart)]
    return Mean(value, _within(span, interval_of(value, parts)), prompts, len(apart)), False


def by_prompts(repeats: Sequence[Values]) -> Variance:
    """V_prompts, with N − 1 degrees of freedom."""
    sums: dict[str, float] = {}
    for values in repeats:
        weight, center = 1 / (len(repeats) * len(values)), _mean(values)
        for prompt, value in values.items():
            sums[prompt] = sums.get(prompt, 0.0) + weight * (value - center)
    n = len(sums)
    if n < 2:
        return Variance(math.inf, 0)
    return Variance(n / (n - 1) * math.fsum(value * value for value in sums.values()), n - 1)


def by_seeds(means: Sequence[float]) -> Variance:
    """V_seeds, with R − 1 degrees of freedom; none with one repeat."""
    if len(means) < 2:
        return Variance(0.0, 0)
    return Variance(float(np.var(means, ddof=1)) / len(means), len(means) - 1)


def interval_of(value: float, parts: Sequence[Variance]) -> Interval | None:
    """The interval m ± t · √V; None where V is not known, or nothing varies."""
    total = math.fsum(part.value for part in parts)
    if not 0 < total < math.inf:
        return None
    freedom = total**2 / math.fsum(part.value**2 / part.freedom for part in parts if part.freedom)
    reach = student95(freedom) * math.sqrt(total)
    return value - reach, value + reach


def _within(span: tuple[float, float] | None, interval: Interval | None) -> Interval | None:
    """An interval without values that cannot be."""
    if span is None or interval is None:
        return interval
    return max(span[0], interval[0]), min(span[1], interval[1])


def student95(freedom: float) -> float:
    """The 97.5 % quantile of Student's t. With T = √ν · tan θ the density of θ is proportional to cos^(ν−1) θ
    on (−π/2, π/2), which is summed on a grid."""
    if freedom > 1e5:
        return Z95
    angle = np.linspace(0.0, min(math.pi / 2, 12 / math.sqrt(freedom)), 20_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95 * below[-1], below, angle)))


def _mean(values: Values) -> float:
    return math.fsum(values.values()) / len(values)
