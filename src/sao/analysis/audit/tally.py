"""Counts over a run's verdicts: one judge's rates and biases, and the jury's word on pairs against gold."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sao.config import PairsConfig
from sao.records import Judgment, Response
from sao.stages import pairs
from sao.stages.calibration import Calibration, sigmoid
from sao.statistics import logistic, ratio_ci, ratio_of_sums

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
BINS = 10
EVERY = PairsConfig(keep="all")
CONFIDENT = PairsConfig(keep="confident", min_p=0.5)


def within(interval: tuple[float, float]) -> list[float]:
    """A rate's interval from 0 to 1. Wilson's lies there, but for the last digit of its arithmetic."""
    return [max(0.0, interval[0]), min(1.0, interval[1])]


@dataclass(slots=True)
class Rate:
    """A rate whose unit is the prompt: sums over the prompts of how often it was so, and out of how many."""

    hits: float = 0.0
    of: float = 0.0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    prompts: int = 0

    def add(self, hits: float, of: float) -> None:
        """One prompt."""
        if of:
            aa, ab, bb = self.squares
            self.hits, self.of, self.prompts = self.hits + hits, self.of + of, self.prompts + 1
            self.squares = (aa + hits * hits, ab + hits * of, bb + of * of)

    def summary(self) -> dict[str, Any]:
        """The rate (None of nothing), its 95 % interval, and how many it is of."""
        rate, interval = ratio_of_sums(self.hits, self.of, *self.squares, self.prompts)
        return {"rate": None if math.isnan(rate) else rate, "ci95": within(interval), "n": int(self.of)}


@dataclass
class Tally:
    """Counts of one judge's verdicts, prompt by prompt."""

    known: Calibration
    explains: bool = True
    """Whether the verdicts are kept, 32 bytes each, to say what decides them."""
    rates: dict[str, Rate] = field(default_factory=dict)
    rows: array[float] = field(default_factory=lambda: array("d"))
    """For each decided verdict: whether the first won, log length ratio, gold difference or NaN, number of
    the prompt."""
    verdicts: int = 0
    prompts: int = 0

    def see(self, answers: list[Response], judgments: list[Judgment], gold: dict[str, float | None]) -> None:
        """One prompt."""
        by_id = {a.id: a for a in answers}
        found: dict[str, list[float]] = {}

        def note(name: str, hit: bool) -> None:
            counts = found.setdefault(name, [0.0, 0.0])
            counts[0] += hit
            counts[1] += 1

        votes: dict[frozenset[str], list[str]] = {}
        for j in judgments:
            note("unreadable_rate", j.verdict is None)
            if j.verdict is None:
                continue
            note("tie_rate", j.verdict == "tie")
            if j.winner_id is None:
                continue
            votes.setdefault(frozenset((j.first_id, j.second_id)), []).append(j.winner_id)
            note("first_slot_rate", j.verdict == "first")
            a, b = len(by_id[j.first_id].text), len(by_id[j.second_id].text)
            if a != b:
                note("longer_wins_rate", (a > b) == (j.verdict == "first"))
            x, y = gold.get(j.first_id), gold.get(j.second_id)
            if x is not None and y is not None and x != y:
                note("accuracy", (x > y) == (j.verdict == "first"))
            quality = math.nan if x is None or y is None else x - y
            if self.explains:
                self.rows.extend((j.verdict == "first", math.log((a + 1) / (b + 1)), quality, self.prompts))
        for pair in votes.values():
            if len(pair) == 2:
                note("flip_rate", pair[0] != pair[1])
        for cyclic in cycles([a.id for a in answers], judgments, self.known):
            note("intransitive_rate", cyclic)
        for name, (hits, of) in found.items():
            self.rates.setdefault(name, Rate()).add(hits, of)
        self.verdicts += len(judgments)
        self.prompts += 1

    def summary(self) -> dict[str, Any]:
        """Rates with intervals, biases with standard errors."""
        found: dict[str, Any] = {"verdicts": self.verdicts}
        names = (
            "accuracy",
            "first_slot_rate",
            "flip_rate",
            "unreadable_rate",
            "tie_rate",
            "longer_wins_rate",
        )
        intervals = {}
        for name in (*names, "intransitive_rate"):
            rate = self.rate(name)
            found[name], intervals[name] = rate["rate"], rate["ci95"]
        c = self.known
        return found | {
            "ci95": intervals,
            "slot_bias_nats": c.bias + 0.0,  # never −0
            "temperature": c.temperature,
            "order_agreement": c.agreement,
            "effects": effects(np.array(self.rows).reshape(-1, 4)),
        }

    def rate(self, name: str) -> dict[str, Any]:
        """A rate, its interval, and the number of verdicts or pairs that it is of."""
        return self.rates.get(name, Rate()).summary()


def effects(table: NDArray[np.float64]) -> dict[str, Any] | None:
    """What decides the verdicts, from `Tally.rows` [n, 4]: log-odds that the first answer wins, by slot (the
    constant), by length (for each doubling) and, where it is known, by quality (for the whole of gold's
    scale). None for fewer than 30 verdicts."""
    if len(table) < 30:
        return None
    known = ~np.isnan(table[:, 2])
    if known.sum() >= 30:
        table = table[known]
    columns = {"slot": np.ones(len(table)), "length": table[:, 1] / math.log(2)}
    if known.sum() >= 30:
        columns["quality"] = table[:, 2]
    columns = {name: column for name, column in columns.items() if name == "slot" or np.ptp(column) > 0}
    fit = logistic(
        np.stack(list(columns.values()), 1), table[:, 0], np.unique(table[:, 3], return_inverse=True)[1]
    )
    found: dict[str, Any] = {
        name: {"log_odds": float(b), "se": float(s)}
        for name, b, s in zip(columns, fit.coefficients, fit.errors, strict=True)
    }
    return found | {"converged": fit.converged, "n": len(table)}


def cycles(ids: list[str], judgments: list[Judgment], known: Calibration) -> Iterator[bool]:
    """For every three answers that were all compared: whether the verdicts go round in a circle."""
    lean: dict[tuple[str, str], float] = {}
    for j in judgments:
        said = known.first(j)
        value = {"first": 1.0, "second": -1.0}.get(str(j.verdict), 0.0) if said is None else said
        lean[j.first_id, j.second_id] = lean.get((j.first_id, j.second_id), 0.0) + value
        lean[j.second_id, j.first_id] = lean.get((j.second_id, j.first_id), 0.0) - value
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
        jury: pairs.Jury,
    ) -> None:
        """One prompt; `people` (see `sao.analysis.audit.Words`) decide where there is no gold."""
        for a, b in combinations(answers, 2):
            opinion = pairs.opinion_on([a, b], judgments, EVERY, jury)
            lean = opinion.lean
            if opinion.reason is not None or abs(lean) < pairs.TINY:
                continue
            x, y = gold.get(a.id), gold.get(b.id)
            if x is not None and y is not None:
                word = (x > y) - (x < y)
            else:
                word = people.get((a.id, b.id), 0) - people.get((b.id, a.id), 0)
            self.p.append(math.nan if opinion.margin is None else sigmoid(abs(opinion.margin)))
            self.prompt.append(self.prompts)
            self.passes.append(pairs.opinion_on([a, b], judgments, CONFIDENT, jury).reason is None)
            self.right.append(float((word > 0) == (lean > 0)) if word else math.nan)
        self.prompts += 1

    def calibration(self) -> dict[str, Any] | None:
        """Bins of the probability against the share that gold calls right, and the expected calibration error
        (None without gold)."""
        p, right = np.array(self.p), np.array(self.right)
        fine = ~(np.isnan(p) | np.isnan(right))
        if not fine.any():
            return None
        p, right = p[fine], right[fine]
        place = np.minimum((2 * (p - 0.5) * BINS).astype(int), BINS - 1)
        bins = [
            {
                "p": float(p[place == k].mean()),
                "right": float(right[place == k].mean()),
                "n": int((place == k).sum()),
            }
            for k in range(BINS)
            if (place == k).any()
        ]
        error = sum(row["n"] * abs(row["p"] - row["right"]) for row in bins) / len(p)
        return {"bins": bins, "expected_error": error, "n": len(p)}

    def coverage(self, possible: int) -> list[dict[str, Any]]:
        """For each least probability: share of the possible pairs that is kept, label accuracy by gold, and
        that which the calibrated probabilities promise."""
        p, passes, right = np.array(self.p), np.array(self.passes, bool), np.array(self.right)
        prompt, found = np.array(self.prompt, np.int64), []
        for level in LEVELS:
            kept = passes & (np.isnan(p) | (p >= level))
            gold = kept & ~np.isnan(right)
            hits = np.bincount(prompt[gold], weights=right[gold], minlength=self.prompts)
            accuracy, interval = ratio_ci(hits, np.bincount(prompt[gold], minlength=self.prompts))
            numbers = p[kept & ~np.isnan(p)]
            found.append(
                {
                    "min_p": level,
                    "share": float(kept.sum()) / possible if possible else 0.0,
                    "accuracy": accuracy if gold.any() else None,
                    "ci95": within(interval) if gold.any() else None,
                    "expected": float(numbers.mean()) if len(numbers) else None,
                }
            )
        return found
