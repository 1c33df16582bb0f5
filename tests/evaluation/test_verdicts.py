"""What judges write, as each protocol reads it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sao.evaluation.verdicts import (
    ARENA_VERDICTS,
    first_preference,
    parse_arena,
    parse_model_token,
    parse_pairwise,
    parse_ranking,
    parse_rating,
)

ARENA = [
    ("My final verdict is: [[A>>B]]", "A>>B"),
    ("[[B>>A]]", "B>>A"),
    ("Assistant A is slightly better: [[A>B]]\n", "A>B"),
    ("[[A=B]] and again [[A=B]]", "A=B"),
    ("**[[B>A]]**", "B>A"),
    ("I could say [[A>B]], but on reflection [[B>A]]", None),  # which one was meant?
    ("Options: [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]]. I choose [[A>B]]", None),
    ("[[A<B]]", None),
    ("[[A>B]] or rather [[A<B]]", None),
    ("[A>B]", None),
    ("A>>B", None),
    ("[[a>b]]", None),
    ("[[A > B]]", None),
    ("［［A＞B］］", None),
    ("[[A>>B", None),
    ("[[AB]] [[>]]", None),
    ("", None),
]
PAIRWISE = [
    ("Both answer, A with more detail. [[A]]", "first"),
    ("[[B]]", "second"),
    ("a tie: [[C]]", "tie"),
    ("[[B]]. So: [[B]]", "second"),
    ('Had B been wrong I would say "[[A]]". My verdict: [[B]]', None),
    ("[[A]] if A is better, [[B]] if B is better, [[C]] for a tie", None),
    ("[A]", None),
    ("[[a]]", None),
    ("[[А]]", None),  # a Cyrillic letter
    ("[[ A ]]", None),
    ("[[D]]", None),
    ("A", None),
    ("", None),
]
RATINGS = [
    ("Rating: [[5]]", 5.0),
    ("[[10]]", 10.0),
    ("[[7.5]] out of 10", 7.5),
    ("[[8.]]", 8.0),
    ("[[8]] … as I said, [[8.0]]", 8.0),
    ("First turn [[9]], second turn [[4]]", None),
    ("An ideal answer gets [[10]]; this one: [[3]]", None),
    ("[[0]]", None),
    ("[[11]]", None),
    ("[[-3]]", None),
    ("[[7/10]]", None),
    ("[[seven]]", None),
    ("[7]", None),  # FastChat reads it; a footnote looks the same
    ("[[٧]]", None),  # Arabic-Indic 7
    ("[[Rating: 6]]", None),
    ("", None),
]
RANKINGS = [
    ('[{"model": "m", "rank": 1}, {"model": "M", "rank": 2}]', "first"),
    ("[{'model': 'M', 'rank': 1}, {'model': 'm', 'rank': 2}]", "second"),
    ("[{'model': 'm', 'rank': 2}, {'model': 'M', 'rank': 1}]", "second"),
    ('{"ordered_models": [{"model": "m", "rank": 1.0}, {"model": "M", "rank": 2}]}', "first"),
    ('Here it is:\n```json\n[{"model": "m", "rank": 1}, {"model": "M", "rank": 2}]\n```', "first"),
    ("[{'model': 'm', 'rank': 1}, {'model': 'M', 'rank': 1}]", None),
    ("[{'model': 'm', 'rank': 1}]", None),
    ("[{'model': 'm', 'rank': 1}, {'model': 'm', 'rank': 2}]", None),
    ("[{'model': 'm', 'rank': 1}, {'model': 'x', 'rank': 2}]", None),
    ("[{'model': 'm', 'rank': '1'}, {'model': 'M', 'rank': '2'}]", None),
    ("[{'model': 'm', 'rank': True}, {'model': 'M', 'rank': 2}]", None),
    ("[{'model': ['m'], 'rank': 1}, {'model': 'M', 'rank': 2}]", None),
    ("[{'model': 'm', 'rank': 1}, 'M']", None),
    ("[" * 5000, None),
    ("m", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "verdict"), ARENA)
def test_arena_verdicts(text: str, verdict: str | None) -> None:
    assert parse_arena(text) == verdict


@pytest.mark.parametrize(("text", "verdict"), PAIRWISE)
def test_pairwise_verdicts(text: str, verdict: str | None) -> None:
    assert parse_pairwise(text) == verdict


@pytest.mark.parametrize(("text", "mark"), RATINGS)
def test_marks(text: str, mark: float | None) -> None:
    assert parse_rating(text) == mark


@pytest.mark.parametrize(("text", "verdict"), RANKINGS)
def test_rankings(text: str, verdict: str | None) -> None:
    assert parse_ranking(text) == verdict


def test_one_token_verdicts() -> None:
    assert [parse_model_token(text) for text in (" m\n", "M", "m M", "mm", "ｍ", "Model m", "")] == [
        "first", "second", None, None, None, None, None,
    ]  # fmt: skip
    assert parse_model_token("model_2", "model_1", "model_2") == "second"


def test_weighted_verdicts() -> None:
    assert first_preference({"m": math.log(0.6), "M": math.log(0.2), "The": -5.0}) == pytest.approx(0.75)
    assert first_preference({"m": -0.1}) == 1.0 and first_preference({"M": -0.1, "x": 0.0}) == 0.0
    assert first_preference({"m": -800.0, "M": -1600.0}) == 1.0
    assert first_preference({"The": -0.1}) is None and first_preference({}) is None
    assert first_preference({"m": math.nan, "M": -1.0}) is None


@given(st.text(alphabet="[]AB<>=C0159. ", max_size=40))
def test_no_text_breaks_a_parser_and_none_is_read_without_brackets(text: str) -> None:
    assert parse_arena(text) in (*ARENA_VERDICTS, None) and parse_ranking(text) is None
    if "[[" not in text:
        assert parse_arena(text) is None and parse_pairwise(text) is None and parse_rating(text) is None
    mark = parse_rating(text)
    assert mark is None or 1 <= mark <= 10
