"""The audit in one sentence: how good the judge is, and which of its pairs to keep."""

from __future__ import annotations

from collections.abc import Sequence

from sao.results.audit import Coverage, JudgeAudit
from sao.results.base import Rate

TARGET, LEAST_SHARE = 0.95, 0.05
"""The label accuracy that the advice aims at, and the smallest share of pairs that it would keep for it."""
CHANCE, NO_BETTER = 0.5, 0.55
"""The flip rate of a judge that tosses a coin in each order, and an expected label accuracy that is hardly
better than a coin's."""
GOOD, FAIR = 0.9, 0.75
"""Least accuracy of a good and of a fair judge."""
LEAST_SLOT_RATE, SLOT_FLIPS = 0.1, 0.8
"""A judge whose first-slot rate is nearer to 0 or 1, and that flips more often, judges by position."""
LEAST_LENGTH_RATE = 0.02
"""A judge whose rate for the longer answer is nearer to 0 or 1 judges by length."""


def verdict_on(judge: JudgeAudit, coverage: Sequence[Coverage], by_people: float | None = None) -> str:
    """The verdict on a judge. `by_people`: its agreement with people, who stand in where there is no gold."""
    accuracy = by_people if judge.accuracy.rate is None else judge.accuracy.rate
    usable = [row for row in coverage if label_accuracy(row) is not None and row.share >= LEAST_SHARE]
    best = max(usable, key=_known_accuracy, default=None)
    reason = _why_no_judge(judge, accuracy, 0.0 if best is None else _known_accuracy(best))
    if reason is not None:
        return f"no judge: {reason}; learn from none of its pairs"
    name = _name(accuracy, judge.flip_rate.rate)
    if best is None:
        return f"{name}: too few confident pairs to say what to keep"
    advised = next((row for row in usable if _known_accuracy(row) >= TARGET), best)
    condition = "" if advised.accuracy.rate is not None else ", if its confidence can be trusted"
    return (
        f"{name}: keep only p ≥ {advised.min_p:g}, expected label accuracy {_known_accuracy(advised):.2f}"
        f"{condition} ({100 * advised.share:.0f} % of the pairs)"
    )


def label_accuracy(row: Coverage) -> float | None:
    """The accuracy of the labels that would be kept: by gold, else the one that the calibration promises."""
    return row.expected if row.accuracy.rate is None else row.accuracy.rate


def _known_accuracy(row: Coverage) -> float:
    return label_accuracy(row) or 0.0


def _why_no_judge(judge: JudgeAudit, accuracy: float | None, best_label_accuracy: float) -> str | None:
    """Why nothing can be learnt from a judge, None where something can."""
    if _judges_by_position(judge):
        return "position bias decides its verdicts, not the answers"
    if _judges_by_length(judge) and (accuracy is None or accuracy < FAIR):
        longer_wins = judge.longer_wins_rate.rate or 0.0
        return f"it takes the {'longer' if longer_wins > 0.5 else 'shorter'} answer"
    flips = judge.flip_rate.rate or 0.0
    if accuracy is None and flips >= CHANCE and best_label_accuracy < NO_BETTER:
        return (
            f"swapped answers flip {100 * flips:.0f} % of its verdicts, so its two orders agree no more "
            "often than by chance"
        )
    return None


def _judges_by_position(judge: JudgeAudit) -> bool:
    flips = judge.flip_rate.rate
    return _is_extreme(judge.first_slot_rate, LEAST_SLOT_RATE) and (flips is None or flips > SLOT_FLIPS)


def _judges_by_length(judge: JudgeAudit) -> bool:
    known = judge.effects is not None and judge.effects.length is not None
    return known and _is_extreme(judge.longer_wins_rate, LEAST_LENGTH_RATE)


def _is_extreme(rate: Rate, least: float) -> bool:
    return rate.rate is not None and not least <= rate.rate <= 1 - least


def _name(accuracy: float | None, flips: float | None) -> str:
    if accuracy is not None:
        grade = "good" if accuracy >= GOOD else "fair" if accuracy >= FAIR else "weak"
        return f"{grade} judge (accuracy {100 * accuracy:.0f} %)"
    if flips is None:
        return "judge of unknown accuracy"
    return f"judge that flips {100 * flips:.0f} % of its verdicts"
