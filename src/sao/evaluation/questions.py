"""The questions of an evaluation, and answers that others gave to them. A file, hub data set or run folder
in, records out.

A question is a `Prompt`; one with several turns (MT-Bench) has its first turn in `text`, and the later ones
beside it in `Question.later`. Turns that the set gives, the assistant's among them, are in `Prompt.earlier`.
Ids depend on the texts alone, so that finished answers are found again. No text is changed: white space
counts, in lengths and in what is asked.

Read by key, whatever the set calls it: the text under turns, instruction, prompt, question … (any shape of
`sao.data.messages`), the category under category, dataset or cluster, the question's own number under
question_id, uid or prompt_id, and the right answers, one for each turn, under reference. The forms are those
of alpaca_eval, FastChat's llm_judge and Arena-Hard. A value that is no text where one belongs (NaN, a number,
true, an image) is an error; only right answers may be numbers.

    python -c "from sao.evaluation.questions import read_questions;
    print(len(read_questions('question.jsonl')))"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sao.data.messages import ChatError, Turn, turn_of, turns_of
from sao.data.readers import id_text, kind_of, read_rows
from sao.errors import DataError
from sao.records import Prompt, Response, make_id
from sao.stages.rows import persona_row

TEXT_KEYS = ("turns", "instruction", "prompt", "question", "problem", "text", "messages")
ANSWER_KEYS = ("output", "answer", "response", "messages", "choices")
CATEGORY_KEYS = ("category", "dataset", "cluster")
ID_KEYS = ("question_id", "uid", "prompt_id")
REFERENCE_KEY = "reference"
ANSWERED_KEYS = ("messages", *TEXT_KEYS)
"""Where the question stands in a row of answers: messages hold both."""


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
    number: int,
    category: str = "",
    *,
    earlier: tuple[str, ...] = (),
    key: str = "",
    references: tuple[str, ...] = (),
    distinct: Iterable[object] = (),
) -> Question:
    """A question of these turns of the user, after `earlier` ones (user, assistant, user, …) that the set
    gives. `distinct`: what else tells it from a question of the same text (other endings, another right
    answer)."""
    row = persona_row(number, held_out=True)
    asked = Prompt(id="", row=row, persona_id="", text=turns[0], earlier=earlier)
    prompt = replace(asked, id=make_id("question", asked.conversation, *turns[1:], *distinct))
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
    questions: dict[str, Question] = {}
    rows = read_rows(
        source,
        columns,
        (*TEXT_KEYS, *CATEGORY_KEYS, *ID_KEYS, REFERENCE_KEY),
        what="questions",
        option="the @REVISION after the name",
        **options,
    )
    for place, row in rows:
        earlier, turns = _given_and_asked(_turns_in(row, columns or TEXT_KEYS, place), place)
        fields = row if isinstance(row, dict) else {}
        question = question_of(
            turns,
            len(questions),
            next((fields[key] for key in CATEGORY_KEYS if isinstance(fields.get(key), str)), ""),
            earlier=earlier,
            key=_key(fields),
            references=_references(_values(fields.get(REFERENCE_KEY)), len(turns), place, REFERENCE_KEY),
        )
        questions.setdefault(question.prompt.id, question)
    if not questions:
        raise DataError(f"{source}: holds no questions", key="questions")
    return list(questions.values())


def _turns_in(row: Any, keys: Iterable[str], place: str) -> list[Turn]:
    """The turns of a row, system messages among them, under the first of the keys that holds any."""
    if isinstance(row, str):
        return [Turn("user", row)]
    fields = row if isinstance(row, dict) else {}
    unusable = ""
    for key in keys:
        value = fields.get(key)
        if kind_of(value) == "NaN":
            raise DataError(
                f"{place}: no text under {key}, but NaN. Put the question's text there, or take the row out",
                key="questions",
            )
        if turns := _turns(value):
            return turns
        if value is not None and not isinstance(value, str):
            unusable = unusable or f"; under {key} stands {kind_of(value)}"
    contents = ", ".join(fields) if isinstance(row, dict) else type(row).__name__
    raise DataError(
        f"{place}: no question under {', '.join(keys)} (it holds: {contents}{unusable}). Name the key after "
        "the source: SET#KEY",
        key="questions",
    )


def _turns(value: Any) -> list[Turn]:
    """The turns of a value, none where it is no chat. Plain texts that are blank are no turns."""
    if isinstance(value, list):
        value = [item for item in value if not _is_blank(item)]
    elif _is_blank(value):
        return []
    try:
        return turns_of(value)
    except ChatError:
        return []


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _given_and_asked(turns: list[Turn], place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The turns that the set gives (user, assistant, user, assistant, …), and the user's turns after them,
    which are to be answered.

    Turns of the assistant after the last one of the user are an answer and no part of the question.
    """
    turns = [turn for turn in turns if not _is_empty_system(turn)]
    if any(turn.role == "system" for turn in turns):
        raise DataError(
            f"{place}: a question with a system message of its own; all are asked with the recipe's "
            "(--responses.system). Leave out these questions, or put the message into the user's turn",
            key="questions",
        )
    question = turns[: _after_last(turns, by_user=True)]
    n_given = _after_last(question, by_user=False)
    given_roles = [turn.role for turn in question[:n_given]]
    texts = tuple(turn.text or "" for turn in question)
    alternate = given_roles == ["user", "assistant"] * (n_given // 2)
    if not question or not alternate or not all(text.strip() for text in texts):
        raise DataError(
            f"{place}: turns that cannot be asked: {', '.join(map(_named, turns))}. Before the user's last "
            "turns, user and assistant must take turns, each with a text",
            key="questions",
        )
    return texts[:n_given], texts[n_given:]


def _is_empty_system(turn: Turn) -> bool:
    return turn.role == "system" and (turn.content is None or _is_blank(turn.content))


def _after_last(turns: Sequence[Turn], *, by_user: bool) -> int:
    """How many turns there are up to the last one by the user, or by anybody else; 0 where there is none."""
    numbers = [number for number, turn in enumerate(turns, 1) if (turn.role == "user") == by_user]
    return max(numbers, default=0)


def _named(turn: Turn) -> str:
    """A turn in messages: who speaks, and what the content is where it is no text."""
    if turn.calls_tools:
        return f"{turn.role} (calls a tool)"
    if isinstance(turn.content, str | None):
        return turn.role if _stripped(turn) else f"{turn.role} (no text)"
    return f"{turn.role} (no text, but {kind_of(turn.content)})"


def _stripped(turn: Turn) -> str:
    """The text of a turn without white space around it, "" for what is no text."""
    return turn.content.strip() if isinstance(turn.content, str) else ""


def _key(row: Mapping[str, Any]) -> str:
    return next((text for key in ID_KEYS if (text := id_text(row.get(key)))), "")


def _values(value: Any) -> list[Any]:
    """What a value gives for each turn: itself, or the items of a list; of messages those of the
    assistant."""
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    turns = [turn_of(item, "assistant") for item in items]
    return [turn.content for turn in turns if turn.role == "assistant"]


def _references(values: list[Any], turns: int, place: str, key: str) -> tuple[str, ...]:
    if len(values) > turns:
        raise DataError(
            f"{place}: {len(values)} references for {turns} turn(s). Give one right answer for each turn "
            f"under {key}",
            key="references",
        )
    references = tuple(_right_answer(value, place, key) for value in values)
    return references if any(text.strip() for text in references) else ()


def _right_answer(value: Any, place: str, key: str) -> str:
    """A right answer as text: a text or a number; "" for null."""
    if value is None or isinstance(value, str):
        return value or ""
    text = id_text(value)
    if not text:
        raise DataError(
            f"{place}: no right answer under {key}, but {kind_of(value)}. Give a text or a number, or null "
            "where there is none",
            key="references",
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

    Raises DataError where a question has two different answers, or none: a comparison on a part would pass
    for one on the whole.
    """
    questions = list(questions)
    answers: dict[str, list[Response]] = {}
    for place, question, key, values in _rows_for(source, questions, ANSWER_KEYS, "answers"):
        texts = _answer_texts(values, 1 + len(question.later), place, key)
        given = [_response(question, turn, text) for turn, text in enumerate(texts)]
        if answers.setdefault(question.prompt.id, given) != given:
            raise _twice(place, question, "answers", "answers")
    missing = [question.prompt.text for question in questions if question.prompt.id not in answers]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of the {len(questions)} questions have no answer there, such as "
            f"{missing[0][:80]!r}. Give the answers to this set of questions",
            key="missing answers",
        )
    return answers


def _answer_texts(values: list[Any], turns: int, place: str, key: str) -> list[str]:
    """The answers to a question of so many turns. Raises DataError where there are more, fewer, or others
    than texts."""
    if len(values) > turns:
        raise DataError(
            f"{place}: {len(values)} answers to a question of {turns} turn(s). Give one for each turn",
            key="answers",
        )
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < turns:
        instead = [kind_of(value) for value in values if not isinstance(value, str)]
        contents = instead[0] if instead else "no more" if values else "none"
        raise DataError(
            f"{place}: no answer to every turn under {', '.join(ANSWER_KEYS)} ({key or 'the row'} holds "
            f"{contents}). Give a text for each, empty where the model gave none",
            key="answers",
        )
    return texts


def with_references(questions: Iterable[Question], source: str) -> list[Question]:
    """The questions with the right answers of a file (FastChat's reference_answer/*.jsonl, or as in
    `read_answers`; also under the key reference). Questions that the file does not hold stay as they are.

    Raises DataError where it holds none of them.
    """
    questions = list(questions)
    references: dict[str, tuple[str, ...]] = {}
    keys = (REFERENCE_KEY, *ANSWER_KEYS)
    for place, question, key, values in _rows_for(source, questions, keys, "references"):
        given = _references(values, 1 + len(question.later), place, key)
        if references.setdefault(question.prompt.id, given) != given:
            raise _twice(place, question, "references", "references")
    if not references:
        raise DataError(
            f"{source}: no references to any of the {len(questions)} questions. Is it of another set?",
            key="references",
        )
    return [replace(q, references=references.get(q.prompt.id, q.references)) for q in questions]


def _twice(place: str, question: Question, what: str, key: str) -> DataError:
    return DataError(
        f"{place}: other {what} to a question that an earlier row has {what} to: "
        f"{question.prompt.text[:80]!r}. Take one of the rows out",
        key=key,
    )


def _rows_for(
    source: str, questions: Sequence[Question], keys: Sequence[str], what: str
) -> Iterator[tuple[str, Question, str, list[Any]]]:
    """Each row's place, the question that it answers, the key of what it gives, and that: a value for each
    turn."""
    index = _Index(questions)
    columns = (*TEXT_KEYS, *ID_KEYS, *keys)
    for place, row in read_rows(source, [], columns, what=what, option="@REVISION after its name"):
        fields = row if isinstance(row, dict) else {}
        turns: list[Turn] = []
        if _key(fields) and not _has_text(fields):
            answered = index.by_key(_key(fields))
        else:
            turns = [turn for turn in _turns_in(row, ANSWERED_KEYS, place) if turn.role != "system"]
            answered = index.by_turns(turns)
        for question in answered:
            yield place, question, *_given_values(fields, question, turns, keys)


class _Index:
    """Questions by their texts and by their own number."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._by_texts: dict[tuple[str, ...], list[Question]] = {}
        self._by_key: dict[str, list[Question]] = {}
        for question in questions:
            users = (*question.prompt.earlier[::2], question.prompt.text, *question.later)
            self._by_texts.setdefault(tuple(text.strip() for text in users), []).append(question)
            self._by_key.setdefault(question.key, []).append(question)

    def by_key(self, key: str) -> list[Question]:
        """The question of this number, none where several have it."""
        questions = self._by_key.get(key, [])
        return questions if len(questions) == 1 else []

    def by_turns(self, turns: Sequence[Turn]) -> list[Question]:
        """The questions that a conversation answers: it has the same turns of the user, and begins with the
        turns that the question gives."""
        users = tuple(_stripped(turn) for turn in turns if turn.role == "user")
        texts = [_stripped(turn) for turn in turns]
        return [
            question
            for question in self._by_texts.get(users, ())
            if texts[: len(question.prompt.earlier)] == [text.strip() for text in question.prompt.earlier]
        ]


def _has_text(row: Mapping[str, Any]) -> bool:
    """Whether a row holds the text of its question."""
    return any(_stripped(turn) for key in TEXT_KEYS for turn in _turns(row.get(key)))


def _given_values(
    row: Mapping[str, Any], question: Question, turns: Sequence[Turn], keys: Sequence[str]
) -> tuple[str, list[Any]]:
    """The first of the keys that holds anything (else the first that is there, "" for none), and its values
    for a question's turns."""
    there = [key for key in keys if key in row]
    filled = [key for key in there if row[key] is not None]
    key = next(iter(filled or there), "")
    if key == "messages":
        replies = turns[len(question.prompt.earlier) :]
        return key, [turn.content for turn in replies if turn.role == "assistant"]
    if key == "choices":
        return key, _values(_first_choice(row[key]))
    return key, _values(row.get(key))


def _first_choice(choices: Any) -> Any:
    """The turns of FastChat's first choice, None where there are none."""
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice.get("turns") if isinstance(choice, dict) else None


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
    questions: dict[str, Question] = {}
    for prompt in prompts:
        question = question_of([prompt.text], len(questions), earlier=prompt.earlier)
        questions.setdefault(question.prompt.id, question)
    return list(questions.values())


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
