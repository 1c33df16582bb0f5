"""From verdicts to ranks: a judge's calibration over a run, and the strengths of a prompt's answers
(Bradley–Terry).

Log-odds are in nats, in favour of the answer that is shown first. A judge that sees a pair in both orders
gives x for (a, b) and y for (b, a). Its position bias adds the same to both: it is (x + y)/2, and it cancels
in the margin m = (x − y)/2 (RLAIF, arXiv 2309.00267). How often its two verdicts agree shows how far its
confidence can be trusted.
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
"""Larger log-odds are cut to this (a probability of 1e-13 is rounding)."""
TEMPERATURES = (1.0, 50.0)
"""Least and greatest. No less than 1: where the two orders agree more often than the judge's confidence
predicts, it is not made more confident, since errors that both orders share do not show in their
agreement."""
PRIOR_SD = 5.0
"""Standard deviation, in nats, of the normal prior on strengths: weak, but it keeps the strength of an
unbeaten answer finite."""
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
    """What one judge's verdicts over a run show about it. The default leaves its verdicts as they are."""

    bias: float = 0.0
    """Position bias: nats that it adds for the answer that is shown first."""
    temperature: float = 1.0
    """Its log-odds are divided by this."""
    skill: float | None = None
    """For a judge without numbers: the log-odds with which one of its verdicts is right, apart from its
    bias."""
    agreement: float | None = None
    """Share of the pairs on which its two orders name the same winner; for log-odds, without their bias."""
    pairs: int = 0
    """Pairs that it judged in both orders."""

    def first(self, judgment: Judgment) -> float | None:
        """Calibrated log-odds that the first answer is the better one, to be averaged over the orders; None
        where the verdict cannot be read, or has no number and the judge's skill is not known."""
        if judgment.verdict is None:
            return None
        if judgment.p_first is not None:
            return (log_odds(judgment.p_first) - self.bias) / self.temperature
        if judgment.verdict == "tie":
            return 0.0
        if self.skill is None:
            return None
        # Two verdicts with independent errors add up, so each counts twice in their mean: an agreeing pair
        # gets 2 · skill, a pair that goes to one slot in both orders gets 0.
        skill, bias = self.skill, self.bias
        if judgment.verdict == "first":
            return 2 * (_log_sigmoid(skill + bias) - _log_sigmoid(bias - skill))
        return 2 * (_log_sigmoid(-skill - bias) - _log_sigmoid(skill - bias))


@dataclass(slots=True)
class Calibrator:
    """Reads one judge's verdicts, prompt by prompt, and gives its calibration; 16 bytes a pair."""

    _one_order: array[float] = field(default_factory=lambda: array("d"))
    """Log-odds of pairs that were judged in both orders: x and y of the module's docstring."""
    _other_order: array[float] = field(default_factory=lambda: array("d"))
    _single: array[float] = field(default_factory=lambda: array("d"))
    """Log-odds of pairs that were judged in one order only."""
    _verdicts: dict[str, int] = field(default_factory=lambda: {"same": 0, "first": 0, "second": 0})
    """Pairs without numbers: both orders name the same winner, the first slot, or the second slot."""

    def see(self, judgments: Iterable[Judgment]) -> None:
        """Read the verdicts on one prompt's answers."""
        waiting: dict[tuple[str, str], Judgment] = {}
        for judgment in judgments:
            if judgment.verdict is None:
                continue
            swapped = waiting.pop((judgment.second_id, judgment.first_id), None)
            if swapped is None:
                waiting[judgment.first_id, judgment.second_id] = judgment
            elif judgment.p_first is not None and swapped.p_first is not None:
                self._one_order.append(log_odds(swapped.p_first))
                self._other_order.append(log_odds(judgment.p_first))
            elif "tie" not in (judgment.verdict, swapped.verdict):
                agree = judgment.winner_id == swapped.winner_id
                self._verdicts["same" if agree else judgment.verdict] += 1
        self._single.extend(log_odds(j.p_first) for j in waiting.values() if j.p_first is not None)

    def calibration(self) -> Calibration:
        """The calibration from all verdicts seen. Without pairs judged in both orders there is neither
        temperature nor skill."""
        if self._one_order:
            x, y = np.array(self._one_order), np.array(self._other_order)
            bias = float(np.median((x + y) / 2))
            agreement = float(np.mean((x - bias) * (y - bias) < 0))
            temperature = _temperature((x - y) / 2, agreement)
            return Calibration(bias=bias, temperature=temperature, agreement=agreement, pairs=len(x))
        if any(self._verdicts.values()):
            return _without_numbers(**self._verdicts)
        # In one order, chance decides which answer is shown first: the mean is the bias, where it is
        # significant.
        single = np.array(self._single)
        if len(single) < 2 or abs(single.mean()) < 2 * single.std(ddof=1) / math.sqrt(len(single)):
            return Calibration()
        return Calibration(bias=float(single.mean()))


def _without_numbers(same: int, first: int, second: int) -> Calibration:
    """The calibration of a judge without numbers, from how often its two orders name the same winner, and how
    often both name the first or the second slot.

    A judge of skill s and position bias b (nats) names the better answer with probability σ(s + b) where it
    is shown first and σ(s − b) where it is shown second; so P(both first) / P(both second) = e^2b, and the
    orders agree with probability σ(s+b) σ(s−b) + σ(−s−b) σ(b−s).
    """
    pairs = same + first + second
    bias = 0.5 * math.log((first + 0.5) / (second + 0.5))
    agreement = (same + 0.5) / (pairs + 1)  # never certain
    low, high = 0.0, LIMIT
    for _ in range(60):
        skill = (low + high) / 2
        both_right = sigmoid(skill + bias) * sigmoid(skill - bias)
        both_wrong = sigmoid(-skill - bias) * sigmoid(bias - skill)
        low, high = (skill, high) if both_right + both_wrong < agreement else (low, skill)
    return Calibration(bias=bias, skill=(low + high) / 2, agreement=same / pairs, pairs=pairs)


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -700 else x


def _temperature(margins: Floats, agreement: float) -> float:
    """T with mean(p² + (1 − p)²) = agreement, p = σ(m / T).

    If p is the probability that one order names a, the mean is how often two orders agree. Found by
    bisection, since a larger T predicts less agreement.
    """
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
        cov = self.covariance
        return math.sqrt(max(0.0, float(cov[a, a] + cov[b, b] - 2 * cov[a, b])))


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
    """A group number for each answer, the same for answers that were compared, directly or through others."""
    group = list(range(len(wins)))
    for i, j in np.argwhere(wins + wins.T > 0).tolist():
        old, new = group[i], group[j]
        group = [new if number == old else number for number in group]
    return group
