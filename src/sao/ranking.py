"""From verdicts to ranks: a judge's calibration over a run, and the strengths of a prompt's answers (Bradley–Terry).

Log-odds are in nats, in favour of the answer that stands first. A judge that saw a pair in both orders said x about (a, b) and y
about (b, a). Its taste for the first slot adds the same to both, so it shows as (x + y)/2 and cancels in m = (x − y)/2 (RLAIF,
arXiv 2309.00267). How far its confidence can be trusted shows in how often its two words agree.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sao.types import Judgment

LIMIT = 30.0
"""Log-odds beyond this say nothing more (a probability of 1e-13 is rounding)."""
TEMPERATURES = (1.0, 50.0)
"""Least and greatest. A judge that agrees with itself more often than it claims is not taken to be surer than it says: errors
that both orders share do not show in their agreement."""
PRIOR_SD = 5.0
"""Standard deviation, in nats, of the normal prior on strengths: weak, but it keeps those of unbeaten answers finite."""
Floats = NDArray[np.float64]


def log_odds(p: float) -> float:
    """Nats, at most ±LIMIT."""
    if p <= 0 or p >= 1:
        return -LIMIT if p <= 0 else LIMIT
    return max(-LIMIT, min(LIMIT, math.log(p) - math.log1p(-p)))


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x)."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one judge's verdicts over a run say about it. The default takes its words as they are."""

    bias: float = 0.0
    """Nats that it adds for the first slot."""
    temperature: float = 1.0
    """What its log-odds are divided by."""
    agreement: float | None = None
    """Share of the pairs on which its two orders name the same winner, its bias taken away."""
    reliability: float | None = None
    """Probability q that one text verdict is right, if the two orders err alone: agreement = q² + (1 − q)²."""
    pairs: int = 0
    """Pairs that it judged in both orders."""

    def first(self, judgment: Judgment) -> float | None:
        """Calibrated log-odds that the first answer is the better one; None where the verdict cannot be read, or is a text
        of unknown reliability."""
        if judgment.verdict is None:
            return None
        if judgment.p_first is not None:
            return (log_odds(judgment.p_first) - self.bias) / self.temperature
        if judgment.verdict == "tie":
            return 0.0
        if self.reliability is None:
            return None
        size = log_odds(self.reliability)
        return size if judgment.verdict == "first" else -size


@dataclass(slots=True)
class Calibrator:
    """Takes in one judge's verdicts, prompt by prompt, and gives its calibration; 16 bytes a pair."""

    _x: array[float] = field(default_factory=lambda: array("d"))
    _y: array[float] = field(default_factory=lambda: array("d"))
    _alone: array[float] = field(default_factory=lambda: array("d"))
    _votes: list[int] = field(default_factory=lambda: [0, 0])

    def see(self, judgments: Iterable[Judgment]) -> None:
        """The verdicts on one prompt's answers."""
        waiting: dict[tuple[str, str], Judgment] = {}
        for j in judgments:
            if j.verdict is None:
                continue
            other = waiting.pop((j.second_id, j.first_id), None)
            if other is None:
                waiting[j.first_id, j.second_id] = j
            elif j.p_first is not None and other.p_first is not None:
                self._x.append(log_odds(other.p_first))
                self._y.append(log_odds(j.p_first))
            elif "tie" not in (j.verdict, other.verdict):
                self._votes[int(j.winner_id == other.winner_id)] += 1
        self._alone.extend(log_odds(j.p_first) for j in waiting.values() if j.p_first is not None)

    def calibration(self) -> Calibration:
        """What was seen. Without pairs judged in both orders the temperature stays 1."""
        if not self._x:
            n = sum(self._votes)
            agreement = self._votes[1] / n if n else None
            # In one order, which answer stands first is a coin's choice: the mean is the bias.
            bias = float(np.mean(self._alone)) if self._alone else 0.0
            return Calibration(bias=bias, agreement=agreement, reliability=_reliability(agreement, n), pairs=n)
        x, y = np.array(self._x), np.array(self._y)
        bias = float(np.median((x + y) / 2))
        agreement = float(np.mean((x - bias) * (y - bias) < 0))
        temperature = _temperature((x - y) / 2, agreement)
        return Calibration(bias=bias, temperature=temperature, agreement=agreement, pairs=len(x))


def _reliability(agreement: float | None, n: int) -> float | None:
    if agreement is None:
        return None
    certain = min(agreement, (n + 1) / (n + 2))  # Laplace: never wholly certain
    return (1 + math.sqrt(max(0.0, 2 * certain - 1))) / 2


def _temperature(margins: Floats, agreement: float) -> float:
    """T with mean(p² + (1 − p)²) = agreement, p = σ(m / T): if p is the chance that one order names a, this is how often two
    do so alike. Found by bisection, since a larger T foretells less agreement."""
    low, high = TEMPERATURES
    for _ in range(60):
        middle = math.sqrt(low * high)
        p = 1 / (1 + np.exp(-margins / middle))
        if float(np.mean(p**2 + (1 - p) ** 2)) > agreement:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


@dataclass(frozen=True, slots=True)
class Strengths:
    """Strengths [n] of n answers in nats, of mean 0, and their covariance [n, n]."""

    values: Floats
    covariance: Floats

    def margin(self, a: int, b: int) -> float:
        """Log-odds that answer a is better than b."""
        return float(self.values[a] - self.values[b])

    def sd(self, a: int, b: int) -> float:
        """Standard deviation of that margin, nats."""
        c = self.covariance
        return math.sqrt(max(0.0, float(c[a, a] + c[b, b] - 2 * c[a, b])))


def bradley_terry(wins: Floats, prior_sd: float = PRIOR_SD) -> Strengths:
    """The most probable strengths under P(i beats j) = σ(θ_i − θ_j) and a normal prior, by Newton's method.

    Args:
        wins: [n, n], how often i beat j; a verdict of probability p counts as p of a win and 1 − p of a loss.
        prior_sd: Of each strength, nats.

    Returns:
        Strengths; their covariance is the inverse of the curvature there (Laplace), each verdict counting as one trial.
        Source: Bradley and Terry, Biometrika 39 (1952); Hunter, Annals of Statistics 32 (2004).

    """
    n = len(wins)
    played, ridge = wins + wins.T, np.eye(n) / prior_sd**2
    theta = np.zeros(n)
    for _ in range(50):
        p = 1 / (1 + np.exp(np.clip(theta[None, :] - theta[:, None], -700, 700)))  # [n, n] i beats j
        gradient = (wins - played * p).sum(1) - theta / prior_sd**2
        weight = played * p * (1 - p)
        curvature = np.diag(weight.sum(1)) - weight + ridge
        step = np.linalg.solve(curvature, gradient)
        theta = theta + step * min(1.0, 4.0 / max(1e-12, float(np.abs(step).max())))
        if float(np.abs(step).max()) < 1e-10:
            break
    return Strengths(theta - theta.mean(), np.asarray(np.linalg.inv(curvature), np.float64))
