"""The questions of an evaluation, and answers that others gave to them. A file, hub data set or run folder in, records out.

A question is a `Prompt`; one with several turns (MT-Bench) has its first turn in `text`, and the later ones beside it in
`Question.later`. Ids hang on the texts alone, so that answers which stand already are found again.

Read by key, whatever the set calls it: the text under instruction, prompt, question or turns (a text, a list of turns, or
messages), the category under category, dataset or cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sao.errors import DataError
from sao.rows import read_rows
from sao.types import Prompt, Response, make_id

TEXT_KEYS = ("turns", "instruction", "prompt", "question", "problem", "text")
ANSWER_KEYS = ("output", "answer", "response", "messages", "choices")
CATEGORY_KEYS = ("category", "dataset", "cluster")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, the user's later turns where there are any, and its category ("" where the set has none)."""

    prompt: Prompt
    later: tuple[str, ...] = ()
    category: str = ""


def question_of(turns: list[str], row: int, category: str = "") -> Question:
    """A question of these turns of the user."""
    prompt = Prompt(id=make_id("question", *turns), row=row, persona_id="", text=turns[0])
    return Question(prompt=prompt, later=tuple(turns[1:]), category=category)


def read_questions(
    source: str,
    *,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
    column: str | None = None,
) -> list[Question]:
    """The questions of a file or hub data set, each once.

    Raises DataError for a source that cannot be read, is empty, or has no texts under a key that is known.
    """
    columns = [column] if column else []
    options: dict[str, Any] = {"revision": revision, "subset": subset, "split": split}
    found: dict[str, Question] = {}
    rows = read_rows(
        source,
        columns,
        (*TEXT_KEYS, *CATEGORY_KEYS),
        what="questions",
        option="the @REVISION after the name",
        **options,
    )
    for place, row in rows:
        question = question_of(_turns(row, columns or TEXT_KEYS, place), len(found), _category(row))
        found.setdefault(question.prompt.id, question)
    if not found:
        raise DataError(f"{source}: holds no questions")
    return list(found.values())


def _turns(row: Any, keys: Iterable[str], place: str) -> list[str]:
    if isinstance(row, str):
        return [row]
    for key in keys:
        value = row.get(key) if isinstance(row, dict) else None
        if isinstance(value, str) and value.strip():
            return [value]
        if isinstance(value, list) and value:
            turns = [_said(turn, "user") for turn in value]
            if kept := [turn for turn in turns if turn]:
                return kept
    held = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise DataError(
        f"{place}: no question under {', '.join(keys)} (it holds: {held}). Name the key after the source: SET#KEY"
    )


def _said(turn: Any, role: str) -> str | None:
    """The text of a turn of this role; plain texts, and Arena's {"content"}, are of any."""
    if isinstance(turn, dict):
        turn = turn.get("content") if turn.get("role", role) == role else None
    return turn.strip() if isinstance(turn, str) and turn.strip() else None


def _category(row: Any) -> str:
    found = (row.get(key) for key in CATEGORY_KEYS) if isinstance(row, dict) else ()
    return next((value for value in found if isinstance(value, str)), "")


def read_answers(source: str, questions: Iterable[Question]) -> dict[str, list[Response]]:
    """Somebody's answers to these questions, by the question's id: one for each turn. Those to other questions are left out.

    A row holds the question's text, as in the questions' own file, and the answer under output, answer or response (alpaca_eval's
    model_outputs.json, say); or it is a row of messages that holds both.

    Raises DataError where a question has no answer there: a comparison on a part of the set would pass for one on the whole.
    """
    wanted = {question.prompt.text.strip(): question for question in questions}
    found: dict[str, list[Response]] = {}
    rows = read_rows(source, [], (*TEXT_KEYS, *ANSWER_KEYS), what="answers", option="@REVISION after its name")
    for place, row in rows:
        keys = ("messages", *TEXT_KEYS) if isinstance(row, dict) and "messages" in row else TEXT_KEYS
        question = wanted.get(_turns(row, keys, place)[0].strip())
        if question is not None:
            found[question.prompt.id] = list(_responses(row, question, place))
    missing = [text for text, question in wanted.items() if question.prompt.id not in found]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of the {len(wanted)} questions have no answer there, such as {missing[0][:80]!r}. "
            "Give the answers to this set of questions"
        )
    return found


def _responses(row: dict[str, Any], question: Question, place: str) -> Iterator[Response]:
    value = next((row[key] for key in ANSWER_KEYS if row.get(key)), None)
    texts = [_said(turn, "assistant") for turn in value] if isinstance(value, list) else [_said(value, "assistant")]
    kept = [text for text in texts if text][: 1 + len(question.later)]
    if len(kept) < 1 + len(question.later):
        raise DataError(f"{place}: no answer to every turn under {', '.join(ANSWER_KEYS)}")
    for turn, text in enumerate(kept):
        yield Response(
            id=make_id("given", question.prompt.id, turn, text),
            row=question.prompt.row,
            prompt_id=question.prompt.id,
            index=turn,
            text=text,
            token_ids=None,
            finish_reason="stop",
        )


def held_out_questions(prompts: Iterable[Prompt]) -> list[Question]:
    """A run's held-out prompts as questions, each text once."""
    found: dict[str, Question] = {}
    for prompt in prompts:
        key = make_id("question", prompt.conversation)
        asked = Prompt(id=key, row=len(found), persona_id="", text=prompt.text, earlier=prompt.earlier)
        found.setdefault(key, Question(prompt=asked))
    return list(found.values())
