"""A judge on pairs made up for it: which flips are counted."""

import math
from typing import Any

import pytest

from sao.config import JudgingConfig
from sao.engines.scripted import ScriptedEngine, read_answers
from sao.evaluation.judge_tests import try_judge
from sao.records import Message, Prompt, Response, make_id
from sao.results.audit import SelfTest
from sao.results.base import Rate
from support.checks import known


def answer(prompt: Prompt, text: str) -> Response:
    return Response(
        id=make_id(prompt.id),
        row=prompt.row,
        prompt_id=prompt.id,
        index=0,
        text=text,
        token_ids=None,
        finish_reason="stop",
    )


def judged(p_first: Any, n: int = 20) -> dict[str, SelfTest]:
    """The self-tests of a judge with p(first) of two answers and the prompt's number."""

    def choose(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        answers = read_answers(messages)
        assert answers is not None
        p = p_first(*answers)
        return (-20.0, -20.0) if p is None else (math.log(p), math.log1p(-p))

    prompts = [Prompt(id=make_id(i), row=i, persona_id=make_id(i), text=f"question {i}") for i in range(n)]
    groups = [(prompt, [answer(prompt, f"number {i}. One. Two. Three.")]) for i, prompt in enumerate(prompts)]
    return try_judge(groups, n, lambda: ScriptedEngine(choose=choose), JudgingConfig())


def number(text: str) -> int:
    return int(next(word for word in text.split() if word.rstrip(".").isdigit()).rstrip("."))


def test_flips_of_a_judge_that_looks_at_the_slot() -> None:
    found = judged(lambda first, second: 0.9)
    assert found["identical"].flips is None
    assert found["identical"].rate == 1.0
    for name in ("padded", "truncated", "shuffled"):
        assert (found[name].rate, found[name].n) == (0.5, 40)
        assert (known(found[name].flips).rate, known(found[name].flips).n) == (1.0, 20)
        low, high = known(found[name].flips).ci95
        assert 0.8 < low < high == pytest.approx(1.0)


def test_flips_of_a_judge_that_reads() -> None:
    def longest(first: str, second: str) -> float:
        return 0.5 if len(first) == len(second) else 0.9 if len(first) > len(second) else 0.1

    found = judged(longest)
    assert (found["padded"].rate, known(found["padded"].flips).rate) == (0.0, 0.0)
    assert (found["truncated"].rate, known(found["truncated"].flips).rate) == (1.0, 0.0)
    assert known(found["padded"].flips).ci95[0] == pytest.approx(0.0)


def test_flips_are_of_pairs_that_were_read_twice() -> None:
    def choose(first: str, second: str) -> float | None:
        longer = len(first) > len(second)
        match number(min(first, second, key=len)) % 4:
            case 0:
                return 0.9  # by the slot
            case 1:
                return None if longer else 0.1  # read in one order only
            case _:
                return 0.9 if longer else 0.1

    found = judged(choose)["padded"]
    assert (found.n, known(found.flips).n) == (35, 15)
    assert known(found.flips).rate == pytest.approx(5 / 15)
    nobody = judged(lambda first, second: None)["padded"]
    assert (nobody.rate, nobody.n) == (None, 0)
    assert nobody.flips == Rate(rate=None, ci95=(0.0, 1.0), n=0)
