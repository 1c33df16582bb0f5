"""The toy world: its questions, and the oracle's scores."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sao.toy_world.language import (
    FORMS,
    KINDS,
    OCCUPATIONS,
    TOOL_OWNER,
    Task,
    render,
    right_items,
    sample_answer,
    sample_persona,
    sample_task,
)
from sao.toy_world.oracle import marks, score


def tasks(n: int, seed: int = 0) -> list[Task]:
    rng = random.Random(seed)
    return [sample_task(rng, sample_persona(rng)) for _ in range(n)]


def test_size_of_the_world() -> None:
    assert len(OCCUPATIONS) == 24
    assert len(KINDS) == 6
    assert len(TOOL_OWNER) == 96  # no tool belongs to two
    assert len({t.text for t in tasks(10_000)}) > 2_000


def test_every_task_reads_back_and_its_right_answer_is_worth_one() -> None:
    rng = random.Random(1)
    for task in tasks(3000):
        assert Task.parse(task.text) == task
        assert score(task.text, render(task, right_items(task, rng), task.form)) == 1.0


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("name two tools of the baker.", "oven, whisk.", 1.0),
        ("name two tools of the baker.", "oven.", 0.4 * 0.5 + 0.6),
        ("name two tools of the baker.", "oven, saw.", 0.5 * (0.4 * 0.5 + 0.6)),
        ("name two tools of the baker.", "oven, oven.", 0.5 * (0.4 * 0.5 + 0.6)),
        ("name two tools of the baker.", "oven and whisk.", 0.4 + 0.3 * 0.8),  # wrong form, one word too many
        ("name two tools of the baker.", "oven, whisk, tray.", 2 / 3 * (0.4 + 0.3 * 0.8)),
        ("name two tools of the baker. number them.", "no 1 oven no 2 whisk.", 1.0),
        ("name two tools of the baker.", "well, i think that oven, whisk.", 0.4 + 0.3 + 0.3 * 0.2),
        ("what does the baker make? use one word.", "bread.", 1.0),
        ("what does the baker make? use one word.", "beer.", 0.0),
        ("what does the baker make? use a sentence.", "bread.", 0.4 + 0.3),
        ("what does the baker make? use one word.", "the baker makes bread.", 0.4 + 0.3 * (1 - 3 / 5)),
        ("which of these does the baker use: saw, oven, net? use one word.", "oven.", 1.0),
        ("which of these does the baker not use: saw, oven, tray? use one word.", "saw.", 1.0),
        ("sort these prices of the baker from small to large: 7, 3, 9.", "3, 7, 9.", 1.0),
        ("sort these prices of the baker from small to large: 7, 3, 9.", "3, 9, 7.", 1 / 3),
        ("sort these prices of the baker from small to large: 7, 3, 3.", "3, 3, 7.", 1.0),
        ("what does the baker do with the oven? use few words.", "to heat the dough.", 1.0),
        ("what does the baker do with the oven? use few words.", "to heat.", 0.4 * 0.5 + 0.3),
    ],
)
def test_scores_by_hand(prompt: str, answer: str, expected: float) -> None:
    assert score(prompt, answer) == pytest.approx(expected)


def test_what_is_no_question_of_this_world_has_no_score() -> None:
    for text in ("", "hello", "name two tools of the king.", "name two tools of the baker. sing them."):
        assert score(text, "oven, whisk.") is None


def test_no_constant_answer_pleases_the_oracle() -> None:
    """The best of all right answers to other questions, given to every question, earns next to nothing."""
    rng = random.Random(2)
    asked = tasks(400, 3)
    candidates = ["", "yes.", " ".join(TOOL_OWNER)] + [
        render(t, right_items(t, rng), t.form) for t in tasks(150, 4)
    ]
    best = max(sum(marks(t, c).total for t in asked) / len(asked) for c in candidates)
    assert best < 0.08


def test_words_never_pay() -> None:
    rng = random.Random(3)
    for task in tasks(300, 5):
        answer = sample_answer(task, rng)
        for more in (" please ask me for more.", " indeed", " very very very good words"):
            assert marks(task, answer + more).total <= marks(task, answer).total


@given(st.text(max_size=60))
def test_any_text_has_a_score_between_none_and_one(text: str) -> None:
    for task in tasks(12, 6):
        assert 0.0 <= marks(task, text).total <= 1.0


def test_every_form_is_asked_for() -> None:
    seen = {(t.kind, t.form) for t in tasks(2000)}
    assert seen == {(kind, form) for kind, forms in FORMS.items() for form in forms}


def test_without_a_persona_questions_repeat_far_more() -> None:
    rng = random.Random(7)
    alone = [sample_task(rng).text for _ in range(2000)]
    assert len(set(alone)) < 0.35 * len({t.text for t in tasks(2000, 8)})
