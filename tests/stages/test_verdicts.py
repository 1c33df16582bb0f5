"""Verdicts read: means over wordings and majorities by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sao.records import Verdict
from sao.stages.calibration import sigmoid
from sao.stages.verdicts import log_odds_of, majority, mean_verdict


def test_the_mean_of_wordings_by_hand() -> None:
    verdict, p, prob = mean_verdict([(3.0, 0.9), (-1.0, 0.5)], 0.05)
    assert verdict == "first"
    assert p == pytest.approx(sigmoid(1.0))
    assert prob == pytest.approx(0.7)


def test_a_wording_that_cannot_be_read_is_left_out() -> None:
    verdict, p, prob = mean_verdict([(3.0, 0.01), (-1.0, 0.5)], 0.05)
    assert verdict == "second"
    assert prob == pytest.approx(0.255)
    assert p == pytest.approx(sigmoid(-1.0))
    assert mean_verdict([(3.0, 0.01), (-1.0, 0.02)], 0.05)[0] is None
    assert mean_verdict([(math.nan, 0.5), (2.0, 0.5)], 0.05)[0] == "first"
    assert mean_verdict([(math.nan, math.nan)], 0.0) == (None, None, None)
    assert mean_verdict([(0.0, 0.5)], 0.05)[:2] == ("tie", 0.5)


def test_what_is_certain_does_not_outweigh_all_others() -> None:
    assert mean_verdict([(math.inf, 1.0), *[(-20.0, 1.0)] * 2], 0.05)[0] == "second"


def test_log_odds_by_hand() -> None:
    odds, prob = log_odds_of((math.log(0.6), math.log(0.2)))
    assert odds == pytest.approx(math.log(3))
    assert prob == pytest.approx(0.8)
    assert all(map(math.isnan, log_odds_of((-math.inf, -math.inf))))
    assert all(map(math.isnan, log_odds_of((math.nan, -1.0))))


@pytest.mark.parametrize(
    ("samples", "verdict", "p", "readable"),
    [
        (("first", "first", "first", "second", None), "first", 3.5 / 5, 0.8),
        (("first", "second", "tie", None), "tie", 0.5, 0.75),
        (("tie", "tie", "second"), "second", 1.5 / 4, 1.0),
        (("first",) * 5, "first", 5.5 / 6, 1.0),
        ((None, None), None, None, 0.0),
    ],
)
def test_majorities_by_hand(
    samples: tuple[Verdict | None, ...], verdict: str | None, p: float | None, readable: float
) -> None:
    found, share, could_be_read = majority(samples)
    assert found == verdict
    assert share == (None if p is None else pytest.approx(p))
    assert could_be_read == pytest.approx(readable)


@given(st.lists(st.sampled_from(["first", "second", "tie", None]), min_size=1, max_size=9))
def test_a_majority_and_its_share_lean_the_same_way(samples: list[Verdict | None]) -> None:
    verdict, p, readable = majority(samples)
    assert (verdict is None) == (p is None) == (readable == 0)
    if p is not None:
        assert 0 < p < 1
        assert verdict == ("first" if p > 0.5 else "second" if p < 0.5 else "tie")
