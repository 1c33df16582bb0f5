"""Sanity checks of an evaluation: answers that say nothing, and judges with a position or a length bias.

Answers and points in; warnings in words out. Judged scores are gameable: a constant answer can win
86 % (arXiv 2410.07137).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import fsum

from sao.records import Response
from sao.results.evaluation import LengthBin
from sao.stages.pairs import repetition

CONSTANT_SHARE = 0.05
"""More answers than this share that are one and the same text are called degenerate."""
REPEATED_SHARE = 0.3
"""An answer is repetitive where more of its 4-grams of words than this repeat an earlier one."""
POSITION_BIAS = 0.1
"""Further than this from a half, the share of decided verdicts for the first slot is called position bias."""
LEAST_DECIDED = 20
"""Decided verdicts below which nothing is said of it."""


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


def cut_off_and_degenerate(
    sides: Mapping[str, Mapping[str, Sequence[Response]]], *, cut_is_meant: bool = False
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """By role: answers that were cut off at the token limit, and what is wrong with a model's answers as a
    whole, where something is. `cut_is_meant`: only their beginning is wanted, and none counts as cut off."""
    answers = {role: [a for group in side.values() for a in group] for role, side in sides.items()}
    cut_off = {
        role: 0 if cut_is_meant else sum(a.finish_reason == "length" for a in own)
        for role, own in answers.items()
    }
    wrong = {role: degenerate([a.text for a in own], cut=cut_off[role]) for role, own in answers.items()}
    return cut_off, {role: sentences for role, sentences in wrong.items() if sentences}


def slot_warning(first_slot_rate: float | None, decided: int) -> str | None:
    """A sentence where a judge has a position bias, None where it has none or there are too few verdicts."""
    if first_slot_rate is None or decided < LEAST_DECIDED or abs(first_slot_rate - 0.5) <= POSITION_BIAS:
        return None
    return f"POSITION BIAS: {100 * first_slot_rate:.0f} % of the decided verdicts are for the first slot"


def by_length(rows: Iterable[tuple[int, int, float]], bins: int = 4) -> list[LengthBin]:
    """Win rate by how much longer the model's answer is than the other: (words, other's words, points) a
    prompt.

    The bins hold about as many prompts each, with equal ratios in one bin; where one ratio is very common,
    fewer bins are left.
    """
    points_by_ratio: dict[float, list[float]] = {}
    for ours, theirs, points in rows:
        points_by_ratio.setdefault(ours / max(1, theirs), []).append(points)
    total, before = sum(map(len, points_by_ratio.values())), 0
    ratios_by_bin: dict[int, list[float]] = {}
    for ratio in sorted(points_by_ratio):
        size = len(points_by_ratio[ratio])
        middle = (2 * before + size) * bins // (2 * total)  # the bin of the middle one with this ratio
        ratios_by_bin.setdefault(middle, []).append(ratio)
        before += size
    found = []
    for ratios in ratios_by_bin.values():
        inside = [points for ratio in ratios for points in points_by_ratio[ratio]]
        rate = fsum(inside) / len(inside)
        found.append(LengthBin(ratio=(ratios[0], ratios[-1]), win_rate=rate, n=len(inside)))
    return found
