"""Items of evaluation sets within texts: shares worked by hand, and against the definition."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.data.contamination import ContaminationIndex
from support.made_up import TEN, benchmark


def shares(items: list[str], text: str, max_overlap: float = 0.0001) -> dict[str, float]:
    index = ContaminationIndex([benchmark(*items)], max_overlap)
    return {overlap.item: overlap.share for overlap in index.find_all(text)}


def test_shares_worked_by_hand() -> None:
    # ten words: three 8-grams
    assert shares([TEN], f"I say {TEN} indeed") == {"0": 1}
    assert shares([TEN], "one two three four five six seven eight nine, I say ten") == {
        "0": pytest.approx(2 / 3)
    }
    assert shares([TEN], "two three four five six seven eight nine") == {"0": pytest.approx(1 / 3)}
    assert shares([TEN], "one two three four five six seven") == {}
    # five words: one 5-gram
    assert shares(["one two three four five"], "zero one two three four five six") == {"0": 1}
    assert shares(["one two three four five"], "one two three four six five") == {}
    # "a b c" four times: 12 words, 5 places and 3 different 8-grams, all of which stand in 10 words of it
    assert shares([" ".join("abc" * 4)], " ".join("abc" * 3) + " a") == {"0": 1}


def test_the_share_decides() -> None:
    text = "one two three four five six seven eight nine, I say ten"
    assert ContaminationIndex([benchmark(TEN)], 0.7).find(text) is None
    overlap = ContaminationIndex([benchmark("other words here", TEN)], 2 / 3).find(text)
    assert overlap is not None
    assert (overlap.benchmark, overlap.item, overlap.text) == ("bench", "1", TEN)
    assert overlap.share == pytest.approx(2 / 3)


def test_case_punctuation_and_spaces_do_not_hide_contamination() -> None:
    assert shares([TEN], TEN.upper().replace(" ", ",\n ")) == {"0": 1}
    assert shares(["天空为什么是蓝色的？"], "请问：天空，为什么是蓝色的") == {"0": 1}
    assert shares(["What is 3 + 4?"], "What is 3 - 4?") == {}


def test_short_items_count_only_as_the_whole_text() -> None:
    items = ["Hello", "Hello there!", "?!", "one two three"]
    assert shares(items, "hello...") == {"0": 1}
    assert shares(items, "HELLO there") == {"1": 1}
    assert shares(items, "hello there friend, hello") == {}
    assert shares(items, "?!") == {"2": 1}
    assert shares(items, "") == shares(items, "...") == {}
    assert shares(items, "zero one two three") == {"3": 1}


def test_the_largest_share_comes_first_and_the_earlier_of_two() -> None:
    longer = f"{TEN} eleven twelve"
    assert list(shares([longer, TEN, TEN], f"so {TEN} then")) == ["1", "2", "0"]
    assert shares([longer], f"so {TEN} then") == {"0": pytest.approx(3 / 5)}
    assert ContaminationIndex([]).find("anything at all") is None


ITEM = st.lists(st.sampled_from("abc"), max_size=14)


def naive(item: list[str], text: list[str]) -> float:
    """The share by the definition."""
    n = min(8, len(item))
    if n < 3:
        return float(bool(item) and item == text)
    grams = {tuple(item[i : i + n]) for i in range(len(item) - n + 1)}
    return sum(any(text[i : i + n] == list(gram) for i in range(len(text))) for gram in grams) / len(grams)


@given(st.lists(ITEM, max_size=6), ITEM)
@settings(max_examples=300)
def test_shares_are_those_of_the_definition(items: list[list[str]], text: list[str]) -> None:
    found = shares([" ".join(item) for item in items], " ".join(text))
    expected = {str(i): share for i, item in enumerate(items) if (share := naive(item, text))}
    if len(text) < 3:  # of equal short items the first is named
        expected = dict(list(expected.items())[:1])
    assert found == {i: pytest.approx(share) for i, share in expected.items()}


def made_up(rng: random.Random, low: int, high: int) -> list[str]:
    return [f"w{rng.randrange(2000)}" for _ in range(rng.randint(low, high))]


def test_planted_items_are_found_and_nothing_else() -> None:
    rng = random.Random(2)
    items = [made_up(rng, 6, 60) for _ in range(500)]
    index = ContaminationIndex([benchmark(*(" ".join(item) for item in items))])
    for i in range(0, 500, 2):
        before, after = made_up(rng, 0, 30), made_up(rng, 0, 30)
        overlap = index.find(f"{' '.join(before).upper()}: {', '.join(items[i])}? {' '.join(after)}")
        assert overlap is not None
        assert (overlap.item, overlap.share) == (str(i), 1)
    assert sum(index.find(" ".join(made_up(rng, 8, 60))) is not None for _ in range(3000)) == 0


def test_hostile_texts() -> None:
    long = " ".join(f"w{i}" for i in range(150_000))
    odd = ["\0\0\0", "\ud800 \udfff", "x" * 1_000_000, "🙂" * 300, "﷽" * 50, "\u0301" * 100, " \n"]
    index = ContaminationIndex([benchmark(*odd, long, TEN)])
    found = [index.find(text) for text in odd]
    assert [overlap.item if overlap else None for overlap in found] == ["0", "1", "2", "3", "4", "5", None]
    assert [overlap.item for overlap in index.find_all(f"{long} {TEN}")] == ["7", "8"]
    assert index.find(long[:500_000]) is None
