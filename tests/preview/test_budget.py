"""How many prompts and pairs the time allows."""

import pytest

from sao.preview import budget
from sao.preview.budget import (
    Budget,
    Found,
    Pace,
    checked_prompts,
    judged_by_all,
    judged_by_best,
    more_prompts,
)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are left, to be set."""
    seconds = [0.0]
    monkeypatch.setattr(Budget, "left", lambda self: seconds[0])
    return seconds


def pace(each: float, ways: int = 4) -> Pace:
    return Pace(Budget(3), ways, each)


def test_as_many_more_prompts_as_the_wanted_pairs_need(left: list[float]) -> None:
    left[0] = 1000
    # 50 - 20 pairs at half a pair a prompt.
    assert more_prompts(pace(0.1), 4, Found(prompts=40, apart=20, pairs=20), took=20) == 60
    assert more_prompts(pace(0.1), 4, Found(prompts=40, apart=20, pairs=60), took=20) == 60
    assert more_prompts(pace(0.1), 4, Found(prompts=100, apart=50, pairs=50), took=50) == 0
    assert more_prompts(pace(0.1), 4, Found(prompts=200, apart=2, pairs=2), took=2) == budget.MORE_PROMPTS


def test_writing_and_judging_share_the_time_that_is_left(left: list[float]) -> None:
    left[0] = 100  # 90 of them are planned
    # n pairs: (n - 20) seconds to write, 2 orders x 0.25 s x (4 ways x 12 pairs + 2 ways x (n + 4 - 12)).
    # 24 + (n - 8) + n - 20 <= 90: n = 47.
    alone = Found(prompts=20, apart=20, pairs=20)
    assert more_prompts(pace(0.25), 4, alone, took=20) == 27
    # Three pairs of one: all 50 are judged in 24 + 42 s, and 24 s are left to write.
    assert more_prompts(pace(0.25), 4, Found(prompts=20, apart=20, pairs=60), took=20) == 24
    left[0] = 0
    assert more_prompts(pace(0.25), 4, alone, took=20) == 0


def test_few_more_prompts_take_longer_each(left: list[float]) -> None:
    left[0] = 10  # 9 s are planned; 20 prompts took 40 s: 1 and 2 of them take 40 / 20^0.6 = 6.6 and 10.0 s
    found = Found(prompts=20, apart=20, pairs=20, judged=20)
    assert more_prompts(pace(0.25), 0, found, took=40) == 1  # and the verdicts on a pair by two ways 1 s
    assert more_prompts(pace(1.0), 0, found, took=40) == 0  # 4 s


def test_pairs_that_have_verdicts_need_no_more_time(left: list[float]) -> None:
    left[0] = 50  # 45 s are planned: n - 20 seconds to write, and 1 s of verdicts for each new pair
    judged = Found(prompts=20, apart=20, pairs=20, judged=20)
    assert more_prompts(pace(0.25), 0, judged, took=20) == 22
    # Without verdicts 24 s + n - 12 for them, and 20 x (4/20)^0.6 = 7.6 s to write 4.
    assert more_prompts(pace(0.25), 0, Found(prompts=20, apart=20, pairs=20), took=20) == 4


def test_no_more_prompts_than_the_pairs_that_are_missing_need(left: list[float]) -> None:
    left[0] = 1000
    assert more_prompts(pace(0.1), 0, Found(prompts=20, apart=10, pairs=20, judged=20), took=20) == 30
    assert more_prompts(pace(0.1), 0, Found(prompts=20, apart=10, pairs=49, judged=49), took=20) == 2
    assert more_prompts(pace(0.1), 0, Found(prompts=20, apart=10, pairs=50, judged=50), took=20) == 0


def test_all_ways_judge_all_pairs_where_the_time_allows_it(left: list[float]) -> None:
    left[0] = 1000
    assert judged_by_all(pace(0.25), 50) == 50
    left[0] = 100
    assert judged_by_all(pace(0.25), 50) == 20
    assert judged_by_all(pace(0.25), 12) == 12
    left[0] = 73  # 65.7 s are planned: 2 s for a pair by all ways, 1 s for one by the best two
    assert judged_by_all(pace(0.25), 50) == 15
    left[0] = 60
    assert judged_by_all(pace(0.25), 50) == 12
    left[0] = 20
    assert judged_by_all(pace(0.25), 50) == 9
    left[0] = 1
    assert judged_by_all(pace(0.25), 50) == 8


def test_the_best_ways_judge_what_the_time_that_is_left_then_allows(left: list[float]) -> None:
    left[0] = 20  # 18 s are planned; a pair takes 1 s by two ways, 0.5 s by one
    assert judged_by_best(pace(0.25, ways=2), 50, first=20) == 38
    assert judged_by_best(pace(0.25, ways=1), 60, first=20) == 56
    assert judged_by_best(pace(0.0, ways=2), 50, first=20) == 50
    left[0] = 0
    assert judged_by_best(pace(0.25, ways=2), 50, first=20) == 20


def test_texts_written_together_take_less_than_one_by_one() -> None:
    # 27 s are for them. 16 texts of 90 tokens at 100 tokens/s take 14.4 s; 2.85 times as many take
    # 2.85^0.6 = 1.875 times as long: 45 texts, 11 prompts of 4.
    assert checked_prompts(Budget(3), 100, 90, together=16) == 11
    assert checked_prompts(Budget(3), 1, 90, together=16) == 6
    assert checked_prompts(Budget(3), 1000, 90, together=16) == 32
