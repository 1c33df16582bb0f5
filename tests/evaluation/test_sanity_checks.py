"""Answers that say nothing, slots and lengths, by hand."""

import pytest

from sao.evaluation.sanity_checks import by_length, degenerate, slot_warning
from sao.results.evaluation import LengthBin


def test_degenerate_answers() -> None:
    assert degenerate([f"answer {i}" for i in range(50)]) == []
    assert "answers repeat themselves" in degenerate(["a b c d " * 20 + str(i) for i in range(10)])[0]
    assert (
        degenerate(["", " ", *(f"x {i}" for i in range(20))])[-1] == "DEGENERATE: 2 of 22 answers are empty"
    )
    assert degenerate([]) == ["no answers"]
    texts = [f"answer {i}" for i in range(100)]
    assert degenerate(texts, cut=5) == []
    assert degenerate(texts, cut=6) == ["CUT OFF: 6 of 100 answers were cut off at the token limit"]


def test_slots() -> None:
    assert slot_warning(0.7, 10) is None
    assert slot_warning(0.55, 100) is None
    assert "70 %" in str(slot_warning(0.7, 100))


def test_win_rate_by_length() -> None:
    bins = by_length([(i, 10, float(i > 10)) for i in range(1, 21)])
    assert [b.n for b in bins] == [5, 5, 5, 5]
    assert [b.win_rate for b in bins] == [0, 0, 1, 1]
    assert bins[0].ratio == (0.1, 0.5)
    assert by_length([]) == []
    assert by_length([(3, 0, 1.0)]) == [LengthBin(ratio=(3.0, 3.0), win_rate=1.0, n=1)]


def test_equal_ratios_stand_in_one_bin() -> None:
    # All answers are equally long: one bin, whatever the outcomes.
    equal = [(10 * k, 10 * k, float(k % 2)) for k in range(1, 101)]
    assert by_length(equal) == [LengthBin(ratio=(1.0, 1.0), win_rate=0.5, n=100)]
    # Half of them are, and half of those are won; the others' outcomes have nothing to do with it either.
    rows = [(10, 10, float(i % 2)) for i in range(50)] + [(10 + i, 10, float(i % 2)) for i in range(1, 51)]
    bins = by_length(rows)
    assert [b.ratio for b in bins] == [(1.0, 1.0), (1.1, 3.5), (3.6, 6.0)]
    assert [b.n for b in bins] == [50, 25, 25]
    assert [b.win_rate for b in bins] == pytest.approx([0.5, 13 / 25, 12 / 25])
    assert by_length(rows[::-1]) == bins
