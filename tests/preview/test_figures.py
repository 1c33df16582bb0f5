"""What the verdicts on pairs come to: which pairs count, and which hang together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from sao.checks import TRAINED
from sao.preview.figures import judge_figures
from sao.preview.gold import Gold, checkable, kinds_that_differ, made_up, pairs_that_differ
from sao.preview.look import Look, Pair
from sao.records import Constraint, Judgment, Prompt, Response, Verdict
from sao.results.base import Rate
from sao.results.preview import JudgeWay
from sao.statistics import ratio_ci, wilson

RIGHT: tuple[Verdict, Verdict] = ("first", "second")
WRONG: tuple[Verdict, Verdict] = ("second", "first")


def answer(prompt: str, index: int) -> Response:
    id_ = f"{prompt}{index}"
    return Response(
        id=id_, row=index, prompt_id=prompt, index=index, text=id_, token_ids=None, finish_reason="stop"
    )


def pair(number: int, source: str) -> Pair:
    """A pair whose first answer is better."""
    prompt = Prompt(id=f"p{number}", row=2 * number, persona_id="", text="?")
    answers = (answer(prompt.id, 0), answer(prompt.id, 1))
    return Pair(prompt=prompt, answers=answers, better=answers[0].id, source=source)


def verdicts(pair: Pair, said: Sequence[Verdict | None]) -> list[Judgment]:
    """The verdicts on a pair in both orders."""
    a, b = (one.id for one in pair.answers)
    return [
        Judgment(
            id=x + y, row=0, prompt_id=pair.prompt.id, first_id=x, second_id=y, judge="j", verdict=verdict
        )
        for (x, y), verdict in zip([(a, b), (b, a)], said, strict=True)
    ]


def accuracy(pairs: Sequence[Pair], said: Sequence[Sequence[Verdict | None]]) -> Rate:
    found = [verdict for pair, both in zip(pairs, said, strict=True) for verdict in verdicts(pair, both)]
    way = judge_figures(JudgeWay(name="a", settings={}, is_recipe=True), pairs, found)
    assert way.accuracy is not None
    return way.accuracy


def test_pairs_of_one_source_hang_together() -> None:
    pairs = [pair(number, f"source {number // 5}") for number in range(20)]
    said = [RIGHT] * 15 + [WRONG] * 5
    found = accuracy(pairs, said)
    assert (found.rate, found.n) == (0.75, 20)
    assert found.ci95 == pytest.approx(ratio_ci([5, 5, 5, 0], [5, 5, 5, 5])[1])
    assert found.ci95[0] < 0.5 < wilson(15, 20)[0]


def test_an_interval_is_no_narrower_than_that_of_independent_pairs() -> None:
    pairs = [pair(number, f"source {number // 5}") for number in range(20)]
    said = [RIGHT, RIGHT, RIGHT, RIGHT, WRONG] * 4
    assert accuracy(pairs[::-1], said).ci95[1] >= wilson(16, 20)[1]
    nearly = [*said[:15], RIGHT, RIGHT, RIGHT, WRONG, WRONG]
    assert accuracy(pairs, nearly).ci95 == pytest.approx(wilson(15, 20))


def test_a_pair_with_an_unread_verdict_is_half_right() -> None:
    pairs = [pair(number, f"source {number}") for number in range(4)]
    found = accuracy(pairs, [RIGHT, ("first", None), (None, None), WRONG])
    assert (found.rate, found.n) == (0.5, 4)


def test_prompts_with_constraints_and_made_up_pairs_know_their_source() -> None:
    prompts = [Prompt(id=f"p{k}", row=2 * k, persona_id="", text=f"Why {k}?") for k in range(2)]
    asked = checkable(prompts, range(4), 1, TRAINED)
    assert [prompt.text[:6] for prompt in asked] == ["Why 0?", "Why 1?"] * 2
    assert {pair.source for pair in made_up(prompts, 6, seed=1)} == {"Why 0?", "Why 1?"}


def test_pairs_that_share_an_answer_come_last() -> None:
    prompt = Prompt(id="p", row=0, persona_id="", text="?")
    worth = {"p0": 1.0, "p1": 0.0, "p2": 0.5, "p3": 1.0, "p4": None, "p5": 0.0}
    answers = [answer("p", index) for index in range(6)]

    def pairs(answers: list[Response]) -> list[Pair]:
        return pairs_that_differ(prompt, answers, lambda _, text: worth[text])

    found = pairs(answers)
    assert [{a.id for a in pair.answers} for pair in found[:2]] == [{"p0", "p5"}, {"p3", "p1"}]
    assert [pair.better for pair in found[:2]] == ["p0", "p3"]
    assert [pair.again for pair in found] == [False, False] + [True] * 6
    for one in found:
        (worse,) = (a.id for a in one.answers if a.id != one.better)
        assert one.better is not None and (worth[one.better] or 0) > (worth[worse] or 0)
    assert len({pair.answers for pair in found}) == 8  # all but the two that are worth the same
    assert pairs(answers[:1]) == pairs([answers[0], answers[3]]) == []
    three = pairs(answers[:3])
    assert [({a.id for a in pair.answers}, pair.again) for pair in three] == [
        ({"p0", "p1"}, False),
        ({"p0", "p2"}, True),
        ({"p2", "p1"}, True),
    ]


def test_pairs_that_share_an_answer_make_no_interval_narrower() -> None:
    pairs = [pair(number, f"source {number}") for number in range(10)]
    again = [replace(pair(10 + number, f"source {number}"), again=True) for number in range(10)]
    found = accuracy([*pairs, *again], [RIGHT] * 20)
    assert (found.rate, found.n) == (1.0, 20)
    assert found.ci95 == pytest.approx(wilson(10, 10))


def test_pairs_that_share_answers_do_not_make_enough() -> None:
    gold = Gold(look=cast(Look, None), prompts=(), oracle=None)
    gold.found = [pair(k, f"source {k}") for k in range(4)]
    gold.found += [replace(pair(4 + k, f"source {k}"), again=True) for k in range(9)]
    assert gold.is_made_up
    gold.found.insert(0, pair(13, "source 13"))
    assert not gold.is_made_up


def test_kinds_that_all_answers_keep_are_not_asked_again() -> None:
    def asked(kind: str, values: dict[str, object], texts: tuple[str, str]) -> Pair:
        both = (Constraint("max_words", {"n": 90}), Constraint(kind, values))
        prompt = Prompt(id=kind, row=0, persona_id="", text="?", checks=both)
        sides = tuple(replace(answer(kind, k), text=text) for k, text in enumerate(texts))
        return Pair(prompt=prompt, answers=(sides[0], sides[1]), better=sides[0].id)

    pairs = [
        asked("no_commas", {}, ("a b", "a, b")),
        asked("question_end", {}, ("Is it?", "It is.")),
        asked("avoid_words", {"words": ["tea"]}, ("coffee", "tea")),
        asked("min_words", {"n": 2}, ("two words", "one")),
    ]
    assert kinds_that_differ(pairs) == ["avoid_words", "min_words", "no_commas", "question_end"]
    assert kinds_that_differ(pairs[:3]) == list(TRAINED)
