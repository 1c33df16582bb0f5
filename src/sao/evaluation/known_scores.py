"""What a suite with known answers comes to: what each answer of base and tuned earned in, figures with
intervals out.

The unit is the prompt. A figure is Σ points / Σ possible points over the prompts; in each resample of the
prompts both sums are taken anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sao.evaluation.known_items import Measure, Scored
from sao.results.evaluation import EffectSize, ScoreComparison, Share
from sao.statistics import (
    Array,
    detectable_effect,
    mcnemar_exact,
    mean_ci,
    percentiles,
    resample,
    sign_flip,
)

ScoredBy = Mapping[str, Scored]
"""By the question's id: what a model's answer earned."""


def compare_scores(
    measures: Sequence[Measure], base: ScoredBy, tuned: ScoredBy, resamples: int, seed: int
) -> list[ScoreComparison]:
    """Each figure of both models, and the difference on the questions that both answered."""
    return [_compare(measure, base, tuned, resamples, seed) for measure in measures]


def _compare(measure: Measure, base: ScoredBy, tuned: ScoredBy, resamples: int, seed: int) -> ScoreComparison:
    before, after = (
        {id_: s[measure.name] for id_, s in side.items() if measure.name in s} for side in (base, tuned)
    )
    both = sorted(before.keys() & after.keys())
    return ScoreComparison(
        name=measure.name,
        title=measure.title,
        higher_is_better=measure.higher_is_better,
        base=_share([before[id_] for id_ in sorted(before)], resamples, seed),
        tuned=_share([after[id_] for id_ in sorted(after)], resamples, seed),
        delta=_delta([before[id_] for id_ in both], [after[id_] for id_ in both], resamples, seed),
    )


def _share(points: Sequence[tuple[float, float]], resamples: int, seed: int) -> Share | None:
    if not points:
        return None
    earned, possible = np.array(points, dtype=np.float64).T
    value = math.fsum(earned) / math.fsum(possible)
    return Share(value=value, ci95=_interval(earned, possible, (0.0, 1.0), resamples, seed), n=len(points))


def _delta(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], resamples: int, seed: int
) -> EffectSize | None:
    """Tuned less base, prompt by prompt. McNemar's exact test where a prompt is right or wrong, else random
    sign flips."""
    if not before:
        return None
    base, possible = np.array(before, dtype=np.float64).T
    gains = np.array([points for points, _ in after], dtype=np.float64) - base
    value = math.fsum(gains) / math.fsum(possible)
    if (possible == 1).all() and set(np.unique(gains)) <= {-1.0, 0.0, 1.0}:
        p = mcnemar_exact(int((gains < 0).sum()), int((gains > 0).sum()))
    else:
        p = sign_flip(gains, resamples, seed)
    n = len(gains)
    rest = (gains - value * possible) / possible.mean()  # the ratio's linear part (Cochran 1977, 6.4)
    detectable = detectable_effect(float(rest.std(ddof=1)), n) if n > 1 else math.inf
    return EffectSize(
        value=value,
        ci95=_interval(gains, possible, (-1.0, 1.0), resamples, seed),
        p=p,
        n=n,
        detectable=detectable if 0 < detectable < math.inf else None,
    )


def _interval(
    earned: Array, possible: Array, span: tuple[float, float], resamples: int, seed: int
) -> tuple[float, float]:
    """The 95 % interval of Σ earned / Σ possible. Where all prompts have the same rate, resampling shows no
    spread, and what Clopper and Pearson leave open is shown (`mean_ci`)."""
    rates = earned / possible
    if (possible == possible[0]).all() or (rates == rates[0]).all():
        return mean_ci(rates, span, resamples, seed)
    order = np.lexsort((possible, earned))  # so that the interval does not hang on the prompts' order
    a, b = earned[order], possible[order]
    return percentiles(resample(lambda drawn: (drawn @ a) / (drawn @ b), len(a), resamples, seed))
