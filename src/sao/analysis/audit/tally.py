"""Counts over a run's verdicts: one judge's rates and biases, and the panel's opinion of pairs beside
gold."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sao.config import PairsConfig
from sao.records import Judgment, Response
from sao.results.audit import CalibrationBin, CalibrationError, Coverage, Effects, JudgeAudit, LogOdds
from sao.results.base import Rate
from sao.stages import pairs
from sao.stages.calibration import Calibration, sigmoid
from sao.statistics import logistic, ratio_ci, ratio_of_sums

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Least probabilities of the coverage table."""
BINS = 10
"""Bins of the calibrated probability, from 0.5 to 1."""
LEAST_VERDICTS = 30
"""Decided verdicts below which no regression is made."""
EVERY = PairsConfig(keep="all")
CONFIDENT = PairsConfig(keep="confident", min_p=0.5)


def within(interval: tuple[float, float]) -> tuple[float, float]:
    """A rate's interval from 0 to 1. Wilson's lies there, but for the last digit of its arithmetic."""
    return max(0.0, interval[0]), min(1.0, interval[1])


@dataclass(slots=True)
class RateSums:
    """A rate whose unit is the prompt: sums over the prompts of how often it was so, and out of how many."""

    hits: float = 0.0
    of: float = 0.0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Σ hits², Σ hits · of, Σ of²."""
    prompts: int = 0

    def add(self, hits: float, of: float) -> None:
        """One prompt."""
        if of:
            hits_hits, hits_of, of_of = self.squares
            self.hits, self.of, self.prompts = self.hits + hits, self.of + of, self.prompts + 1
            self.squares = (hits_hits + hits * hits, hits_of + hits * of, of_of + of * of)

    def rate(self) -> Rate:
        """The rate (None of nothing), its 95 % interval, and how many it is of."""
        rate, interval = ratio_of_sums(self.hits, self.of, *self.squares, self.prompts)
        return Rate(rate=None if math.isnan(rate) else rate, ci95=within(interval), n=int(self.of))


class Counts(dict[str, tuple[int, int]]):
    """Of one prompt, by the name of a rate: how often it was so, and out of how many."""

    def note(self, name: str, hit: bool) -> None:
        """One case."""
        hits, of = self.get(name, (0, 0))
        self[name] = hits + hit, of + 1


@dataclass
class Tally:
    """Counts of one judge's verdicts, prompt by prompt."""

    calibration: Calibration
    explains: bool = True
    """Whether the verdicts are kept, 32 bytes each, to say what decides them."""
    rates: dict[str, RateSums] = field(default_factory=dict)
    rows: array[float] = field(default_factory=lambda: array("d"))
    """For each decided verdict: whether the first won, log length ratio, gold difference or NaN, number of
    the prompt."""
    verdicts: int = 0
    unparseable: int = 0
    prompts: int = 0

    def see(self, answers: list[Response], judgments: list[Judgment], gold: dict[str, float | None]) -> None:
        """One prompt."""
        texts, counts = {a.id: a.text for a in answers}, Counts()
        for judgment in judgments:
            counts.note("unparseable_rate", judgment.verdict is None)
            if judgment.verdict is not None:
                counts.note("tie_rate", judgment.verdict == "tie")
        decided = [judgment for judgment in judgments if judgment.winner_id is not None]
        for judgment in decided:
            self._note_decided(judgment, texts, gold, counts)
        for winners in _winners_by_pair(decided):
            if len(winners) == 2:
                counts.note("flip_rate", winners[0] != winners[1])
        for cyclic in cycles(list(texts), judgments, self.calibration):
            counts.note("intransitive_rate", cyclic)
        for name, (hits, of) in counts.items():
            self.rates.setdefault(name, RateSums()).add(hits, of)
        self.verdicts += len(judgments)
        self.unparseable += sum(judgment.verdict is None for judgment in judgments)
        self.prompts += 1

    def _note_decided(
        self, judgment: Judgment, texts: dict[str, str], gold: dict[str, float | None], counts: Counts
    ) -> None:
        """A verdict for one of the two answers."""
        first_won = judgment.verdict == "first"
        counts.note("first_slot_rate", first_won)
        first_length, second_length = len(texts[judgment.first_id]), len(texts[judgment.second_id])
        if first_length != second_length:
            counts.note("longer_wins_rate", (first_length > second_length) == first_won)
        gold_difference = difference(gold, judgment.first_id, judgment.second_id)
        if gold_difference:
            counts.note("accuracy", (gold_difference > 0) == first_won)
        if self.explains:
            log_ratio = math.log((first_length + 1) / (second_length + 1))
            known = math.nan if gold_difference is None else gold_difference
            self.rows.extend((first_won, log_ratio, known, self.prompts))

    def figures(self) -> JudgeAudit:
        """Rates with intervals, biases with standard errors."""
        return JudgeAudit(
            verdicts=self.verdicts,
            accuracy=self.rate("accuracy"),
            first_slot_rate=self.rate("first_slot_rate"),
            flip_rate=self.rate("flip_rate"),
            unparseable_rate=self.rate("unparseable_rate"),
            tie_rate=self.rate("tie_rate"),
            longer_wins_rate=self.rate("longer_wins_rate"),
            intransitive_rate=self.rate("intransitive_rate"),
            position_bias_nats=self.calibration.bias + 0.0,  # never −0
            temperature=self.calibration.temperature,
            order_agreement=self.calibration.agreement,
            effects=effects(np.array(self.rows).reshape(-1, 4)),
        )

    def rate(self, name: str) -> Rate:
        """A rate, its interval, and the number of verdicts or pairs that it is of."""
        return self.rates.get(name, RateSums()).rate()


def difference(gold: Mapping[str, float | None], first_id: str, second_id: str) -> float | None:
    """How much better gold says that the first answer is; None where gold is not known."""
    first, second = gold.get(first_id), gold.get(second_id)
    return None if first is None or second is None else first - second


def _winners_by_pair(decided: list[Judgment]) -> Iterable[list[str]]:
    """The winners of each pair of answers, in the order of its verdicts."""
    winners: dict[frozenset[str], list[str]] = {}
    for judgment in decided:
        pair = frozenset((judgment.first_id, judgment.second_id))
        winners.setdefault(pair, []).append(str(judgment.winner_id))
    return winners.values()


def effects(table: NDArray[np.float64]) -> Effects | None:
    """What decides the verdicts, from `Tally.rows` [n, 4]: log-odds that the first answer wins, by slot (the
    constant), by length (for each doubling) and, where it is known, by quality (for the whole of gold's
    scale). None for fewer than `LEAST_VERDICTS`."""
    if len(table) < LEAST_VERDICTS:
        return None
    known = ~np.isnan(table[:, 2])
    by_quality = known.sum() >= LEAST_VERDICTS
    if by_quality:
        table = table[known]
    first_won, log_ratio, gold_difference, prompt = table.T
    columns = {"slot": np.ones(len(table))}
    if np.ptp(log_ratio) > 0:
        columns["length"] = log_ratio / math.log(2)
    if by_quality and np.ptp(gold_difference) > 0:
        columns["quality"] = gold_difference
    clusters = np.unique(prompt, return_inverse=True)[1]
    fit = logistic(np.stack(list(columns.values()), 1), first_won, clusters)
    coefficients = {
        name: LogOdds(log_odds=float(coefficient), se=float(error))
        for name, coefficient, error in zip(columns, fit.coefficients, fit.errors, strict=True)
    }
    return Effects(
        slot=coefficients["slot"],
        length=coefficients.get("length"),
        quality=coefficients.get("quality"),
        converged=fit.converged,
        n=len(table),
    )


def cycles(ids: list[str], judgments: list[Judgment], calibration: Calibration) -> Iterator[bool]:
    """For every three answers that were all compared: whether the verdicts go round in a circle."""
    lean: dict[tuple[str, str], float] = {}
    for judgment in judgments:
        first, second = judgment.first_id, judgment.second_id
        value = calibration.first(judgment)
        if value is None:
            value = {"first": 1.0, "second": -1.0}.get(str(judgment.verdict), 0.0)
        lean[first, second] = lean.get((first, second), 0.0) + value
        lean[second, first] = lean.get((second, first), 0.0) - value
    for a, b, c in combinations(ids, 3):
        sides = [lean.get(pair, 0.0) for pair in ((a, b), (b, c), (c, a))]
        if all(sides):
            yield all(side > 0 for side in sides) or all(side < 0 for side in sides)


@dataclass
class Curve:
    """Each judged pair's calibrated probability, whether the filter of orders lets it pass, and whether gold
    agrees."""

    p: array[float] = field(default_factory=lambda: array("d"))
    passes: array[int] = field(default_factory=lambda: array("b"))
    right: array[float] = field(default_factory=lambda: array("d"))
    """1, 0, or NaN where gold is not known or sees no difference."""
    prompt: array[int] = field(default_factory=lambda: array("q"))
    prompts: int = 0

    def see(
        self,
        answers: list[Response],
        judgments: list[Judgment],
        gold: dict[str, float | None],
        people: Mapping[tuple[str, str], int],
        panel: pairs.Panel,
    ) -> None:
        """One prompt; `people` (see `sao.analysis.audit.labels.Words`) decide where there is no gold."""
        for a, b in combinations(answers, 2):
            opinion = pairs.opinion_on([a, b], judgments, EVERY, panel)
            if opinion.reason is not None or abs(opinion.lean) < pairs.TINY:
                continue
            better = difference(gold, a.id, b.id)
            if better is None:
                better = people.get((a.id, b.id), 0) - people.get((b.id, a.id), 0)
            self.p.append(math.nan if opinion.margin is None else sigmoid(abs(opinion.margin)))
            self.prompt.append(self.prompts)
            self.passes.append(pairs.opinion_on([a, b], judgments, CONFIDENT, panel).reason is None)
            self.right.append(float((better > 0) == (opinion.lean > 0)) if better else math.nan)
        self.prompts += 1

    def calibration(self) -> CalibrationError | None:
        """Bins of the probability against accuracy by gold, and the expected calibration error (None without
        gold)."""
        p, right = np.array(self.p), np.array(self.right)
        known = ~(np.isnan(p) | np.isnan(right))
        if not known.any():
            return None
        p, right = p[known], right[known]
        bin_of = np.minimum((2 * (p - 0.5) * BINS).astype(int), BINS - 1)
        bins = [
            CalibrationBin(
                p=float(p[inside].mean()), accuracy=float(right[inside].mean()), n=int(inside.sum())
            )
            for inside in (bin_of == number for number in range(BINS))
            if inside.any()
        ]
        error = sum(row.n * abs(row.p - row.accuracy) for row in bins) / len(p)
        return CalibrationError(bins=bins, expected_error=error, n=len(p))

    def coverage(self, possible: int) -> list[Coverage]:
        """For each least probability: share of the possible pairs that is kept, label accuracy by gold, and
        that which the calibrated probabilities promise."""
        p, passes = np.array(self.p), np.array(self.passes, bool)
        return [self._coverage_at(level, passes & (np.isnan(p) | (p >= level)), possible) for level in LEVELS]

    def _coverage_at(self, level: float, kept: NDArray[np.bool_], possible: int) -> Coverage:
        p, right, prompt = np.array(self.p), np.array(self.right), np.array(self.prompt, np.int64)
        judged = kept & ~np.isnan(right)
        right_by_prompt = np.bincount(prompt[judged], weights=right[judged], minlength=self.prompts)
        judged_by_prompt = np.bincount(prompt[judged], minlength=self.prompts)
        accuracy, interval = ratio_ci(right_by_prompt, judged_by_prompt)
        promised = p[kept & ~np.isnan(p)]
        return Coverage(
            min_p=level,
            share=float(kept.sum()) / possible if possible else 0.0,
            accuracy=Rate(
                rate=accuracy if judged.any() else None, ci95=within(interval), n=int(judged.sum())
            ),
            expected=float(promised.mean()) if len(promised) else None,
        )
