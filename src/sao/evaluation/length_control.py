"""AlpacaEval 2's length-controlled win rate: what a model would win if its answers were as long as the
baseline's.

Verdicts with the lengths of both answers come in, weights and a win rate in % leave. The model (Dubois et
al., arXiv 2404.04475, section 3; the settings as in alpaca_eval 0.6.6, metrics/glm_winrate.py):

    logit p = w_length · tanh(Δ/sd) + w_difficulty · difficulty + w_model

p: the judge's preference for the model, a number from 0 to 1. Δ: characters of the baseline's answer less
those of the model's. sd: its standard deviation over the rows. difficulty: of the instruction, fitted once
over many models and then fixed. The score is 100 · mean σ(w_difficulty · difficulty + w_model). To keep the
weights sane, rows of the baseline told to be brief or wordy, against itself, are added at a tenth of a row's
weight, without w_model. A lasso of strength 1/C pulls on the weights.

alpaca_eval takes, of ten values of C, the one that predicts best in 5-fold cross-validation. That pulls a
score of few prompts towards 50 %, and the interval knows nothing of it: it covers 88 % at 100 prompts, 94 %
at the official 805. So C is chosen like this only where a score shall be set beside published ones, and is
WEAK otherwise.

The difficulty is found by the instruction's text, never by the row's number. Against published scores:

    PYTHONPATH=src python benchmarks/alpaca_eval.py PATH
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sao.errors import DataError
from sao.evaluation.arena import log_losses, soft_logistic
from sao.statistics import RESAMPLES, Array, Effect, effect_of_samples, percentiles, resample

PENALTIES = tuple(float(c) for c in np.logspace(-4, 4, 10))
"""The values of C, from a strong to a weak pull."""
WEAK = PENALTIES[-1]
FOLDS = 5
GAMED_WEIGHT = 0.2 / 2
"""Weight of a row of the gamed baseline: 0.2, shared by the two of them."""
OFFICIAL_BASELINE = "gpt4_1106_preview"
OFFICIAL_SIZE = 805
LC, ADJUSTED = "LC win rate", "length-adjusted win rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One verdict. `p` is the preference for the model (1 it wins, ½ a tie, 0 the baseline wins, anything
    between; None where unparseable), lengths in characters."""

    instruction: str
    p: float | None
    length: int
    baseline_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GamedRow:
    """The baseline told to be brief or wordy, against itself: `delta` is Δ/sd, `p` the preference for the
    told one."""

    instruction: str
    p: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The three weights; `length` is negative where longer answers win."""

    length: float
    difficulty: float
    model: float


BASELINE = Weights(length=0.0, difficulty=0.0, model=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthControlled:
    """The score in %, its 95 % interval and standard error (prompts resampled, everything refitted), the
    weights, C, the prompts that it stands on, and the scores in the resamples."""

    score: float
    interval: tuple[float, float]
    error: float
    weights: Weights
    penalty: float
    prompts: tuple[str, ...]
    samples: Array

    @property
    def n(self) -> int:
        """The number of prompts."""
        return len(self.prompts)


def score_name(
    instructions: Collection[str],
    baseline: str,
    official: Collection[str] | None,
    difficulty: Mapping[str, float] | None,
    gamed: Collection[GamedRow] | None,
) -> str:
    """`LC` only for all official instructions against the official baseline, with its difficulty and gamed
    rows given; else `ADJUSTED`: a score of the same form that no published number may be set beside.

    Args:
        instructions: Of the rows that were scored.
        baseline: The generator's name.
        official: The instructions of the official set; None where it is not at hand.
        difficulty: By instruction; None where it was not given.
        gamed: The rows of the gamed baseline; None where they were not given.

    """
    whole = official is not None and len(official) == OFFICIAL_SIZE and set(instructions) == set(official)
    known = difficulty is not None and all(text in difficulty for text in instructions)
    gaming = gamed is not None and len(gamed) == 2 * OFFICIAL_SIZE
    return LC if whole and known and gaming and baseline == OFFICIAL_BASELINE else ADJUSTED


def win_rate(weights: Weights, difficulty: Iterable[float], against: Weights = BASELINE) -> float:
    """100 · mean σ((w_d − w_d') · difficulty + w_m − w_m'): in % against the baseline, or against another
    model's weights.

    `difficulty` is that of each prompt. A model against itself gets exactly 50.
    """
    d = np.fromiter(difficulty, dtype=np.float64)
    logits = (weights.difficulty - against.difficulty) * d + weights.model - against.model
    return 50 + 50 * math.fsum(np.tanh(logits / 2)) / len(d)


def length_controlled(
    rows: Iterable[Row],
    difficulty: Mapping[str, float] | None = None,
    gamed: Iterable[GamedRow] = (),
    *,
    order: Sequence[str] = (),
    penalty: float | None = WEAK,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LengthControlled:
    """The score with its interval.

    Args:
        rows: One a prompt (its orders averaged), in any order. Where an instruction has several they are
            resampled together.
        difficulty: By instruction; without it the term is left out.
        gamed: Rows of the gamed baseline; those of other instructions are left out.
        order: The instructions as they stand in the official set: every fifth falls into the same fold, as in
            alpaca_eval. Without it the folds follow a hash of the text.
        penalty: C; None has it chosen by cross-validation, as alpaca_eval does: for a score that is to be
            called LC.
        resamples: Of the interval; each takes the prompts' gamed rows with it and refits sd and weights, C
            held.
        seed: Of the resamples.

    Raises:
        DataError: Where an instruction has no difficulty, or no row is readable.

    """
    data = _Data.of(list(rows), difficulty, list(gamed), order)
    whole = np.ones((1, data.n))
    if data.is_baseline():
        strength, beta, samples = math.inf, np.zeros((1, 3)), np.full(resamples, 50.0)
    else:
        strength = data.best_penalty() if penalty is None else penalty
        beta = data.fit(whole, strength)
        samples = resample(
            lambda counts: data.scores(counts, data.fit(counts, strength, beta)), data.n, resamples, seed
        )
    return LengthControlled(
        score=float(data.scores(whole, beta)[0]),
        interval=percentiles(samples),
        error=float(samples.std(ddof=1)) if resamples > 1 else math.nan,
        weights=Weights(length=float(beta[0, 0]), difficulty=float(beta[0, 1]), model=float(beta[0, 2])),
        penalty=strength,
        prompts=data.names,
        samples=samples,
    )


def difference(tuned: LengthControlled, base: LengthControlled) -> Effect:
    """Tuned's score less base's in points of %, both against the same baseline and resampled with one seed:
    the same draws.

    Raises DataError where they do not stand on the same prompts, or not on as many resamples.
    """
    if tuned.prompts != base.prompts or len(tuned.samples) != len(base.samples):
        raise DataError(
            f"scores of {len(base.prompts)} and {len(tuned.prompts)} prompts, {len(base.samples)} and "
            f"{len(tuned.samples)} resamples: no paired difference. Score both on the prompts that have a "
            "readable verdict for both",
            key="scores",
        )
    return effect_of_samples(tuned.score - base.score, tuned.samples - base.samples, len(tuned.prompts))


@dataclass(frozen=True, slots=True)
class _Data:
    """The rows as arrays, sorted by instruction: [m] of the model's readable rows, [g] of the gamed ones, [n]
    of the prompts."""

    names: tuple[str, ...]
    p: Array
    delta: Array
    prompt: NDArray[np.int64]
    gamed_p: Array
    gamed_delta: Array
    gamed_prompt: NDArray[np.int64]
    difficulty: Array
    folds: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        rows: list[Row],
        difficulty: Mapping[str, float] | None,
        gamed: list[GamedRow],
        order: Sequence[str],
    ) -> _Data:
        names = sorted({row.instruction for row in rows if row.p is not None})
        if not names:
            raise DataError(
                "no readable verdict, so there is no length-controlled win rate. Look at the judge's answers",
                key="verdicts",
            )
        if difficulty is not None:
            _check_difficulty(difficulty, names)
        number = {name: i for i, name in enumerate(names)}
        # Sorted, so that sums are the same whatever the order of the rows.
        read = sorted(
            (number[row.instruction], row.p, row.baseline_length - row.length)
            for row in rows
            if row.p is not None
        )
        known = sorted(
            (number[row.instruction], row.p, row.delta) for row in gamed if row.instruction in number
        )
        prompt, p, delta = (np.array(column) for column in zip(*read, strict=True))
        gamed_prompt, gamed_p, gamed_delta = np.array(known, dtype=np.float64).reshape(-1, 3).T
        return cls(
            names=tuple(names),
            p=p.astype(np.float64),
            delta=delta.astype(np.float64),
            prompt=prompt,
            gamed_p=gamed_p,
            gamed_delta=gamed_delta,
            gamed_prompt=gamed_prompt.astype(np.int64),
            difficulty=np.array([difficulty[name] if difficulty is not None else 0.0 for name in names]),
            folds=_folds(names, order),
        )

    @property
    def n(self) -> int:
        """The number of prompts."""
        return len(self.names)

    def is_baseline(self) -> bool:
        """Whether nothing tells the model from the baseline: all ties, all of the same length."""
        return bool((self.p == 0.5).all() and (self.delta == 0).all())

    def design(self, counts: Array) -> tuple[Array, Array, Array]:
        """Features [b, m + g, 3], labels [m + g], weights [b, m + g], the prompts drawn `counts` [b, n]
        times."""
        drawn = counts[:, self.prompt]
        total = drawn.sum(1, keepdims=True)
        centred = self.delta - self.delta.mean()
        square = drawn @ (centred**2)[:, None] - (drawn @ centred[:, None]) ** 2 / total
        sd = np.sqrt(np.maximum(square / np.maximum(total - 1, 1), 0))
        length = np.tanh(np.divide(self.delta, sd, out=np.zeros_like(drawn), where=sd > 1e-6))  # characters
        x = np.zeros((len(counts), len(self.p) + len(self.gamed_p), 3))
        x[:, : len(self.p), 0], x[:, len(self.p) :, 0] = length, np.tanh(self.gamed_delta)
        x[:, :, 1] = self.difficulty[np.concatenate([self.prompt, self.gamed_prompt])]
        x[:, : len(self.p), 2] = 1
        weights = np.concatenate([drawn, GAMED_WEIGHT * counts[:, self.gamed_prompt]], axis=1)
        return x, np.concatenate([self.p, self.gamed_p]), weights

    def fit(self, counts: Array, c: float, start: Array | None = None) -> Array:
        """The weights [b, 3] in each resample."""
        return soft_logistic(*self.design(counts), lasso=1 / c, start=start)

    def scores(self, counts: Array, beta: Array) -> Array:
        """The score [b] of weights [b, 3] over the prompts as they were drawn [b, n]."""
        share = np.tanh((beta[:, 1:2] * self.difficulty + beta[:, 2:3]) / 2)
        return np.asarray(50 + 50 * (counts * share).sum(1) / counts.sum(1))

    def best_penalty(self) -> float:
        """The C whose fits on four fifths of the prompts predict the other fifth best (weighted loss, mean
        over the folds)."""
        x, y, weights = self.design(np.ones((1, self.n)))
        fold = self.folds[np.concatenate([self.prompt, self.gamed_prompt])]
        held = np.array(
            [fold == k for k in range(FOLDS) if (fold == k).any() and (fold != k).any()], dtype=np.float64
        )
        if not len(held):
            return PENALTIES[-1]
        losses = []
        for c in PENALTIES:
            beta = soft_logistic(x, y, weights * (1 - held), lasso=1 / c)
            losses.append((log_losses(x, y, beta) * weights * held).sum(1) / held.sum(1))
        return PENALTIES[int(np.argmin([loss.mean() for loss in losses]))]


def _check_difficulty(difficulty: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise DataError where one of these instructions has no difficulty."""
    if unknown := [name for name in names if name not in difficulty]:
        raise DataError(
            f"{len(unknown)} of {len(names)} instructions have no difficulty, such as "
            f"{unknown[0][:80]!r}. Give the difficulty of this set of instructions, or none",
            key="--difficulty",
        )


def _folds(names: list[str], order: Sequence[str]) -> NDArray[np.int64]:
    """The fold [n] of each instruction: its place in `order`, or by a hash, modulo FOLDS."""
    number = {text: i for i, text in enumerate(order)}
    rest = sorted(
        (name for name in names if name not in number),
        key=lambda text: hashlib.sha256(text.encode("utf-8", "replace")).digest(),
    )
    number |= {text: len(order) + i for i, text in enumerate(rest)}
    return np.array([number[name] % FOLDS for name in names])
