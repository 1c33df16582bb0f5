"""The questions of an evaluation, and answers that others gave to them. A file, hub data set or run folder
in, records out.

A question is a `Prompt`; one with several turns (MT-Bench) has its first turn in `text`, and the later ones
beside it in `Question.later`. Turns that the set gives, the assistant's among them, are in `Prompt.earlier`.
Ids hang on the texts alone, so that answers which stand already are found again. No text is changed: white
space counts, in lengths and in what is asked.

Read by key, whatever the set calls it: the text under turns, instruction, prompt, question … (a text, a list
of turns, or messages), the category under category, dataset or cluster, the question's own number under
question_id, uid or prompt_id, and the right answers, one a turn, under reference. The forms are those of
alpaca_eval, FastChat's llm_judge and Arena-Hard. What stands in the place of a text and is none (NaN, a
number, true, a list) is an error; only right answers may be numbers.

    python -c "from sao.evaluation.questions import read_questions;
    print(len(read_questions('question.jsonl')))"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sao.data.readers import id_text, kind_of, read_rows
from sao.errors import DataError
from sao.records import Prompt, Response, make_id

TEXT_KEYS = ("turns", "instruction", "prompt", "question", "problem", "text", "messages")
ANSWER_KEYS = ("output", "answer", "response", "messages", "choices")
CATEGORY_KEYS = ("category", "dataset", "cluster")
ID_KEYS = ("question_id", "uid", "prompt_id")
REFERENCE_KEY = "reference"
Turns = list[tuple[str, Any]]
"""Who spoke (user or assistant) and what: a text, or whatever stands in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, the user's later turns where there are any, its category ("" where the set has none), the
    number that its own set gives it ("" for none), and the right answer to each turn ("" where there is none;
    () where there are none at all)."""

    prompt: Prompt
    later: tuple[str, ...] = ()
    category: str = ""
    key: str = ""
    references: tuple[str, ...] = ()

    def reference(self, turn: int) -> str:
        """The right answer to a turn (from 0), "" where there is none."""
        return self.references[turn] if turn < len(self.references) else ""


def question_of(
    turns: Sequence[str],
    row: int,
    category: str = "",
    *,
    earlier: tuple[str, ...] = (),
    key: str = "",
    references: tuple[str, ...] = (),
) -> Question:
    """A question of these turns of the user, after `earlier` ones (user, assistant, user, …) that the set
    gives."""
    asked = Prompt(id="", row=row, persona_id="", text=turns[0], earlier=earlier)
    prompt = replace(asked, id=make_id("question", asked.conversation, *turns[1:]))
    return Question(prompt=prompt, later=tuple(turns[1:]), category=category, key=key, references=references)


def read_questions(
    source: str,
    *,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
    column: str | None = None,
) -> list[Question]:
    """The questions of a file or hub data set, each once.

    Raises DataError for a source that cannot be read, is empty, has no texts under a key that is known, or
    asks with a system message.
    """
    columns = [column] if column else []
    options: dict[str, Any] = {"revision": revision, "subset": subset, "split": split}
    found: dict[str, Question] = {}
    rows = read_rows(
        source,
        columns,
        (*TEXT_KEYS, *CATEGORY_KEYS, *ID_KEYS, REFERENCE_KEY),
        what="questions",
        option="the @REVISION after the name",
        **options,
    )
    for place, row in rows:
        earlier, turns = _split(_spoken(row, columns or TEXT_KEYS, place), place)
        fields = row if isinstance(row, dict) else {}
        question = question_of(
            turns,
            len(found),
            next((fields[key] for key in CATEGORY_KEYS if isinstance(fields.get(key), str)), ""),
            earlier=earlier,
            key=_key(fields),
            references=_references(_values(fields.get(REFERENCE_KEY)), len(turns), place, REFERENCE_KEY),
        )
        found.setdefault(question.prompt.id, question)
    if not found:
        raise DataError(f"{source}: holds no questions")
    return list(found.values())


def _spoken(row: Any, keys: Iterable[str], place: str) -> Turns:
    """The turns of a row, system messages among them, under the first of the keys that holds any."""
    if isinstance(row, str):
        return [("user", row)]
    odd = ""
    for key in keys:
        value = row.get(key) if isinstance(row, dict) else None
        if kind_of(value) == "NaN":
            raise DataError(
                f"{place}: no text under {key}, but NaN. Put the question's text there, or take the row out"
            )
        if turns := _turns(value):
            return turns
        if value is not None and not isinstance(value, str):
            odd = odd or f"; under {key} stands {kind_of(value)}"
    held = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise DataError(
        f"{place}: no question under {', '.join(keys)} (it holds: {held}{odd}). Name the key after the "
        "source: SET#KEY"
    )


def _turns(value: Any) -> Turns:
    """The turns of a text, or of a list of texts or messages; Arena's {"content"} without a role is the
    user's. Plain texts that are blank are none."""
    if isinstance(value, str):
        return [("user", value)] if value.strip() else []
    found: Turns = []
    for turn in value if isinstance(value, list) else ():
        if isinstance(turn, dict):
            found.append((str(turn.get("role") or "user"), _inner(turn.get("content"))))
        elif not _is_blank(turn):
            found.append(("user", turn))
    return found


def _inner(value: Any) -> Any:
    """What stands under content or answer, where it is an object with either (Arena-Hard); else the value
    itself."""
    while isinstance(value, dict) and ("content" in value or "answer" in value):
        value = value["content"] if "content" in value else value["answer"]
    return value


def _stripped(value: Any) -> str:
    """A text without white space around it, "" for what is none."""
    return value.strip() if isinstance(value, str) else ""


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _split(turns: Turns, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The turns that are given (user, assistant, user, assistant, …), and the user's after them, which wait
    for an answer. What the assistant says last is an answer and no part of the question."""
    spoken = [turn for turn in turns if turn[0] != "system" or not (turn[1] is None or _is_blank(turn[1]))]
    if any(role == "system" for role, _ in spoken):
        raise DataError(
            f"{place}: a question with a system message of its own; all are asked with the recipe's "
            "(--responses.system). Leave "
            "out these questions, or put the message into the user's turn"
        )
    users = [i for i, (role, _) in enumerate(spoken) if role == "user"]
    spoken = spoken[: users[-1] + 1] if users else []
    given = max((i + 1 for i, (role, _) in enumerate(spoken) if role != "user"), default=0)
    texts = tuple(text for _, text in spoken if isinstance(text, str) and not _is_blank(text))
    roles = [role for role, _ in spoken[:given]]
    if len(texts) < len(spoken) or not spoken or roles != ["user", "assistant"] * (given // 2):
        raise DataError(
            f"{place}: turns that cannot be asked: {', '.join(_said(*turn) for turn in turns)}. Before the "
            "user's last turns, "
            "user and assistant must take turns, each with a text"
        )
    return texts[:given], texts[given:]


def _said(role: str, text: Any) -> str:
    """A turn in messages: who spoke, and what there is where it is no text."""
    if isinstance(text, str | None):
        return role if _stripped(text) else f"{role} (no text)"
    return f"{role} (no text, but {kind_of(text)})"


def _key(row: Mapping[str, Any]) -> str:
    return next((text for key in ID_KEYS if (text := id_text(row.get(key)))), "")


def _values(value: Any) -> list[Any]:
    """What is given for each turn by a value that is one, or a list of them; of messages those of the
    assistant."""
    if isinstance(value, list):
        return [
            _inner(one)
            for one in value
            if not isinstance(one, dict) or one.get("role", "assistant") == "assistant"
        ]
    return [] if value is None else [_inner(value)]


def _references(values: list[Any], turns: int, place: str, key: str) -> tuple[str, ...]:
    if len(values) > turns:
        raise DataError(
            f"{place}: {len(values)} references for {turns} turn(s). Give one right answer for each turn "
            f"under {key}"
        )
    found = tuple(_right_answer(value, place, key) for value in values)
    return found if any(text.strip() for text in found) else ()


def _right_answer(value: Any, place: str, key: str) -> str:
    """A right answer as text: a text or a number; "" for null."""
    if value is None or isinstance(value, str):
        return value or ""
    text = id_text(value)
    if not text:
        raise DataError(
            f"{place}: no right answer under {key}, but {kind_of(value)}. Give a text or a number, or null "
            "where there is none"
        )
    return text


# Answers of others.


def read_answers(source: str, questions: Iterable[Question]) -> dict[str, list[Response]]:
    """Somebody's answers to these questions, by the question's id: one for each turn. Those to other
    questions are left out.

    A row holds the question's text, as in the questions' own file, or where it has none the question's number
    (question_id, uid or prompt_id); and the answer under output, answer or response (alpaca_eval's
    model_outputs.json), as messages (Arena-Hard v2), or under choices, of which the first counts (FastChat's
    and Arena-Hard v0.1's model_answer). An empty text is an answer.

    Raises DataError where a question has no answer there: a comparison on a part of the set would pass for
    one on the whole.
    """
    questions = list(questions)
    found: dict[str, list[Response]] = {}
    for place, question, key, values in _rows_for(source, questions, ANSWER_KEYS, "answers"):
        turns = 1 + len(question.later)
        texts = [value for value in values if isinstance(value, str)]
        if len(values) > turns:
            raise DataError(
                f"{place}: {len(values)} answers to a question of {turns} turn(s). Give one for each turn"
            )
        if len(texts) < turns:
            odd = next(
                (kind_of(value) for value in values if not isinstance(value, str)),
                "no more" if values else "none",
            )
            raise DataError(
                f"{place}: no answer to every turn under {', '.join(ANSWER_KEYS)} ({key or 'the row'} holds "
                f"{odd}). Give a text "
                "for each, empty where the model gave none"
            )
        found[question.prompt.id] = [_response(question, turn, text) for turn, text in enumerate(texts)]
    missing = [question.prompt.text for question in questions if question.prompt.id not in found]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of the {len(questions)} questions have no answer there, such as "
            f"{missing[0][:80]!r}. "
            "Give the answers to this set of questions"
        )
    return found


def with_references(questions: Iterable[Question], source: str) -> list[Question]:
    """The questions with the right answers of a file (FastChat's reference_answer/*.jsonl, or as in
    `read_answers`; also under the key reference). Those that it does not hold stay as they are.

    Raises DataError where it holds none of them.
    """
    questions, found = list(questions), {}
    for place, question, key, values in _rows_for(
        source, questions, (REFERENCE_KEY, *ANSWER_KEYS), "references"
    ):
        found[question.prompt.id] = _references(values, 1 + len(question.later), place, key)
    if not found:
        raise DataError(
            f"{source}: no references to any of the {len(questions)} questions. Is it of another set?"
        )
    return [replace(q, references=found.get(q.prompt.id, q.references)) for q in questions]


def _rows_for(
    source: str, questions: Sequence[Question], keys: Sequence[str], what: str
) -> Iterator[tuple[str, Question, str, list[Any]]]:
    """Each row's place, the question that it answers, the key of what it gives, and that: a value for each
    turn."""
    by_text: dict[tuple[str, ...], list[Question]] = {}
    by_key: dict[str, list[Question]] = {}
    for question in questions:
        users = (*question.prompt.earlier[::2], question.prompt.text, *question.later)
        by_text.setdefault(tuple(text.strip() for text in users), []).append(question)
        by_key.setdefault(question.key, []).append(question)
    unique = {key: found[0] for key, found in by_key.items() if key and len(found) == 1}
    columns = (*TEXT_KEYS, *ID_KEYS, *keys)
    for place, row in read_rows(source, [], columns, what=what, option="@REVISION after its name"):
        fields = row if isinstance(row, dict) else {}
        if _key(fields) and not any(
            _stripped(text) for key in TEXT_KEYS for _, text in _turns(fields.get(key))
        ):
            found = [unique[_key(fields)]] if _key(fields) in unique else []
            spoken: Turns = []
        else:
            spoken = [turn for turn in _spoken(row, ("messages", *TEXT_KEYS), place) if turn[0] != "system"]
            asked = tuple(_stripped(text) for role, text in spoken if role == "user")
            found = [
                question for question in by_text.get(asked, ()) if _follows(question.prompt.earlier, spoken)
            ]
        for question in found:
            yield place, question, *_given(fields, question, spoken, keys)


def _follows(earlier: tuple[str, ...], spoken: Turns) -> bool:
    """Whether a conversation begins with these turns."""
    begun = [_stripped(text) for _, text in spoken[: len(earlier)]]
    return begun == [text.strip() for text in earlier]


def _given(
    row: Mapping[str, Any], question: Question, spoken: Turns, keys: Sequence[str]
) -> tuple[str, list[Any]]:
    """The first of the keys that holds anything (else that is there, "" for none), and its values for a
    question's turns."""
    there = [key for key in keys if key in row]
    key = next((key for key in there if row[key] is not None), there[0] if there else "")
    value = row.get(key)
    if key == "messages":
        return key, [text for role, text in spoken[len(question.prompt.earlier) :] if role == "assistant"]
    if key == "choices":
        first = value[0] if isinstance(value, list) and value else None
        value = first.get("turns") if isinstance(first, dict) else None
    return key, _values(value)


def _response(question: Question, turn: int, text: str) -> Response:
    return Response(
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
        question = question_of([prompt.text], len(found), earlier=prompt.earlier)
        found.setdefault(question.prompt.id, question)
    return list(found.values())


def by_category(
    questions: Iterable[Question], values: Mapping[str, float]
) -> dict[str, dict[str, float | int]]:
    """Mean and number of the values (by question id) in each category, in the set's order; {} where the set
    has none.

    Questions without a value are left out; those without a category stand under "".
    """
    groups: dict[str, list[float]] = {}
    for question in questions:
        if question.prompt.id in values:
            groups.setdefault(question.category, []).append(values[question.prompt.id])
    if set(groups) <= {""}:
        return {}
    return {name: {"mean": sum(group) / len(group), "n": len(group)} for name, group in groups.items()}
