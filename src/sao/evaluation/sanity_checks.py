"""Sanity checks of an evaluation: answers that say nothing, and judges with a bias for a slot or for length.

Answers and points in; warnings in words out. Judged scores are gameable: a constant answer can win
86 % (arXiv 2410.07137).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import fsum
from typing import Any

from sao.stages.pairs import repetition

CONSTANT_SHARE = 0.05
"""More answers than this share that are one and the same text are called degenerate."""
REPEATED_SHARE = 0.3
"""An answer is repetitive where more of its 4-grams of words than this repeat an earlier one."""
SLOT_TASTE = 0.1
"""Further than this from a half, the share of decided verdicts for the first slot is called a taste for a
slot."""


def degenerate(texts: Sequence[str], *, cut: int = 0) -> list[str]:
    """What is wrong with a model's answers as a whole, in sentences; [] where nothing is. `cut` of them ended
    at the token limit."""
    if not texts:
        return ["no answers"]
    found = []
    text, n = Counter(" ".join(t.split()) for t in texts).most_common(1)[0]
    if n > 1 and n / len(texts) > CONSTANT_SHARE:
        found.append(f"DEGENERATE: {n} of {len(texts)} answers are the same text: {text[:60]!r}")
    repetitive = sum(repetition(t) > REPEATED_SHARE for t in texts)
    if repetitive / len(texts) > CONSTANT_SHARE:
        found.append(f"DEGENERATE: {repetitive} of {len(texts)} answers repeat themselves")
    empty = sum(not t.strip() for t in texts)
    if empty / len(texts) > CONSTANT_SHARE:
        found.append(f"DEGENERATE: {empty} of {len(texts)} answers are empty")
    if cut / len(texts) > CONSTANT_SHARE:
        found.append(f"CUT OFF: {cut} of {len(texts)} answers were cut off at the token limit")
    return found


def slot_warning(first_slot_rate: float | None, decided: int) -> str | None:
    """A sentence where a judge's verdicts hang on the slot, None where they do not or there are too few to
    say."""
    if first_slot_rate is None or decided < 20 or abs(first_slot_rate - 0.5) <= SLOT_TASTE:
        return None
    return f"POSITION BIAS: {100 * first_slot_rate:.0f} % of the decided verdicts are for the first slot"


def by_length(rows: Iterable[tuple[int, int, float]], bins: int = 4) -> list[dict[str, Any]]:
    """Win rate by how much longer the model's answer is than the other: (words, other's words, points) a
    prompt.

    The bins hold about as many prompts each, with equal ratios in one bin; where one ratio is very common,
    fewer bins are left.
    """
    same: dict[float, list[float]] = {}
    for mine, other, points in rows:
        same.setdefault(mine / max(1, other), []).append(points)
    total, before = sum(len(group) for group in same.values()), 0
    parts: dict[int, list[float]] = {}
    for ratio in sorted(same):
        # Where the middle of those with this ratio falls.
        parts.setdefault((2 * before + len(same[ratio])) * bins // (2 * total), []).append(ratio)
        before += len(same[ratio])
    found = []
    for ratios in parts.values():
        points_of = [points for ratio in ratios for points in same[ratio]]
        rate = fsum(points_of) / len(points_of)
        found.append({"ratio": [ratios[0], ratios[-1]], "win_rate": rate, "n": len(points_of)})
    return found
