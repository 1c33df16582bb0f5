"""How many prompts and pairs the time allows."""

import pytest

from sao.preview import budget
from sao.preview.budget import (
    Budget,
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
    assert more_prompts(pace(0.1), 4, 20, cost=1.0, share=0.5) == 60
    assert more_prompts(pace(0.1), 4, 50, cost=1.0, share=0.5) == 0
    assert more_prompts(pace(0.1), 4, 2, cost=1.0, share=0.01) == budget.MORE_PROMPTS


def test_writing_and_judging_share_the_time_that_is_left(left: list[float]) -> None:
    left[0] = 100  # 90 of them are planned
    # n pairs: (n - 20) seconds to write, 2 orders x 0.25 s x (4 ways x 20 pairs + 2 ways x (n + 4 - 20)).
    # 40 + (n - 16) + n - 20 <= 90: n = 43.
    assert more_prompts(pace(0.25), 4, 20, cost=1.0, share=1.0) == 23
    left[0] = 0
    assert more_prompts(pace(0.25), 4, 20, cost=1.0, share=1.0) == 0


def test_all_ways_judge_all_pairs_where_the_time_allows_it(left: list[float]) -> None:
    left[0] = 1000
    assert judged_by_all(pace(0.25), 50) == 50
    left[0] = 100
    assert judged_by_all(pace(0.25), 50) == 20
    assert judged_by_all(pace(0.25), 12) == 12
    left[0] = 1
    assert judged_by_all(pace(0.25), 50) == 8


def test_the_best_two_judge_what_the_time_that_is_left_then_allows(left: list[float]) -> None:
    left[0] = 20
    assert judged_by_best(pace(0.25), 50, first=20) == 38
    assert judged_by_best(pace(0.0), 50, first=20) == 50
    left[0] = 0
    assert judged_by_best(pace(0.25), 50, first=20) == 20


def test_texts_written_together_take_less_than_one_by_one() -> None:
    # 27 s are for them. 16 texts of 90 tokens at 100 tokens/s take 14.4 s; 2.85 times as many take
    # 2.85^0.6 = 1.875 times as long: 45 texts, 11 prompts of 4.
    assert checked_prompts(Budget(3), 100, 90, together=16) == 11
    assert checked_prompts(Budget(3), 1, 90, together=16) == 6
    assert checked_prompts(Budget(3), 1000, 90, together=16) == 32
