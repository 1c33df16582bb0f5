"""From verdicts to ranks: a judge's calibration over a run, and the strengths of a prompt's answers
(Bradley–Terry).

Log-odds are in nats, in favour of the answer that stands first. A judge that saw a pair in both orders said x
about (a, b) and y about (b, a). Its taste for the first slot adds the same to both, so it shows as (x + y)/2
and cancels in m = (x − y)/2 (RLAIF, arXiv 2309.00267). How far its confidence can be trusted shows in how
often its two words agree.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sao.records import Judgment

LIMIT = 30.0
"""Log-odds beyond this say nothing more (a probability of 1e-13 is rounding)."""
TEMPERATURES = (1.0, 50.0)
"""Least and greatest. A judge that agrees with itself more often than it claims is not taken to be surer than
it says: errors that both orders share do not show in their agreement."""
PRIOR_SD = 5.0
"""Standard deviation, in nats, of the normal prior on strengths: weak, but it keeps those of unbeaten answers
finite."""
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
    skill: float | None = None
    """For a judge that gives words only: the log-odds with which one of its verdicts is right, its bias
    aside."""
    agreement: float | None = None
    """Share of the pairs on which its two orders name the same winner; for log-odds, their bias taken
    away."""
    pairs: int = 0
    """Pairs that it judged in both orders."""

    def first(self, judgment: Judgment) -> float | None:
        """Calibrated log-odds that the first answer is the better one, to be averaged over the orders; None
        where the verdict cannot be read, or is a word of unknown worth."""
        if judgment.verdict is None:
            return None
        if judgment.p_first is not None:
            return (log_odds(judgment.p_first) - self.bias) / self.temperature
        if judgment.verdict == "tie":
            return 0.0
        if self.skill is None:
            return None
        # Two words that err alone add up, so each counts twice in their mean: the two of an agreeing pair
        # make 2 · skill, those of a pair that always goes to one slot make 0.
        s, b = self.skill, self.bias
        sides = (s + b, b - s) if judgment.verdict == "first" else (-s - b, s - b)
        return 2 * (_log_sigmoid(sides[0]) - _log_sigmoid(sides[1]))


@dataclass(slots=True)
class Calibrator:
    """Takes in one judge's verdicts, prompt by prompt, and gives its calibration; 16 bytes a pair."""

    _x: array[float] = field(default_factory=lambda: array("d"))
    _y: array[float] = field(default_factory=lambda: array("d"))
    _alone: array[float] = field(default_factory=lambda: array("d"))
    _words: dict[str, int] = field(default_factory=lambda: {"same": 0, "first": 0, "second": 0})

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
                self._words["same" if j.winner_id == other.winner_id else j.verdict] += 1
        self._alone.extend(log_odds(j.p_first) for j in waiting.values() if j.p_first is not None)

    def calibration(self) -> Calibration:
        """What was seen. Without pairs judged in both orders there is neither temperature nor skill."""
        if self._x:
            x, y = np.array(self._x), np.array(self._y)
            bias = float(np.median((x + y) / 2))
            agreement = float(np.mean((x - bias) * (y - bias) < 0))
            temperature = _temperature((x - y) / 2, agreement)
            return Calibration(bias=bias, temperature=temperature, agreement=agreement, pairs=len(x))
        if n := sum(self._words.values()):
            return _of_words(self._words["same"], self._words["first"], self._words["second"], n)
        # In one order, which answer stands first is a coin's choice: the mean is the bias, where it is more
        # than chance.
        alone = np.array(self._alone)
        if len(alone) < 2 or abs(alone.mean()) < 2 * alone.std(ddof=1) / math.sqrt(len(alone)):
            return Calibration()
        return Calibration(bias=float(alone.mean()))


def _of_words(same: int, first: int, second: int, n: int) -> Calibration:
    """From how often two orders name the same winner, and how often both name the first or the second slot.

    A judge of skill s and slot bias b (nats) names the better answer with σ(s + b) where it stands first and
    σ(s − b) where it stands second; so P(both first) / P(both second) = e^2b, and they agree with σ(s+b)
    σ(s−b) + σ(−s−b) σ(b−s).
    """
    bias = 0.5 * math.log((first + 0.5) / (second + 0.5))
    agreement = (same + 0.5) / (n + 1)  # never wholly certain
    low, high = 0.0, LIMIT
    for _ in range(60):
        s = (low + high) / 2
        foretold = sigmoid(s + bias) * sigmoid(s - bias) + sigmoid(-s - bias) * sigmoid(bias - s)
        low, high = (s, high) if foretold < agreement else (low, s)
    return Calibration(bias=bias, skill=(low + high) / 2, agreement=same / n, pairs=n)


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -700 else x


def _temperature(margins: Floats, agreement: float) -> float:
    """T with mean(p² + (1 − p)²) = agreement, p = σ(m / T): if p is the chance that one order names a, this
    is how often two do so alike. Found by bisection, since a larger T foretells less agreement."""
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
        Strengths; their covariance is the inverse of the curvature there (Laplace), each verdict counting as
        one trial.
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


def connected(wins: Floats) -> list[int]:
    """A number for each answer, the same for those that were compared with each other, if only through
    others."""
    group = list(range(len(wins)))
    for i, j in np.argwhere(wins + wins.T > 0).tolist():
        old, new = group[i], group[j]
        group = [new if number == old else number for number in group]
    return group
