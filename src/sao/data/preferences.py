r"""Preference data sets as others write them: rows in, `TextPair` records or Drops out.

For `sao train --pairs FILE|HUB` and `sao import`. A row holds `chosen` and `rejected`, and `prompt` (or
`conversations`, or `messages`) unless the two begin with it. Each may be a text or messages, also as JSON in
a text (.csv). `system` is the system message of a chat that has none. The forms, told by what the row holds:

    prompt, chosen, rejected: messages        TRL, conversational; also what `sao export` writes
    chosen, rejected: messages                TRL, conversational with implicit prompt; SimPO reads them so
    prompt: text; chosen, rejected: messages  UltraFeedback-binarized, SimPO: the messages repeat the prompt
    prompt, chosen, rejected: text            TRL, standard: the prompt is the user's turn
    messages; chosen, rejected: a message     axolotl (chat_template.default)
    chosen, rejected: text                    HH: "\n\nHuman: …\n\nAssistant: …" (with a prompt column too)

The shapes of messages are those of `sao.data.messages`. The turns that both answers share before their last
turn belong to the prompt; where they repeat the prompt, they count once. `p_chosen` and `margin` are read
where they are numbers; all other columns are ignored.

Sources: https://huggingface.co/docs/trl/dataset_formats and `apply_chat_template` in scripts/run_simpo.py of
https://github.com/princeton-nlp/SimPO. Try:

    python -c "from sao.data.preferences import read_pairs; print(*read_pairs('FILE'))"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sao.data.messages import NOT_TEXT, UNKNOWN_FORMAT, ChatError, from_text, is_dialogue, messages_of
from sao.data.readers import read_rows
from sao.errors import DataError
from sao.records import Drop, Message, make_id

ANSWER_COLUMNS = ("chosen", "rejected")
OPTIONAL_COLUMNS = ("prompt", "conversations", "messages", "system", "p_chosen", "margin", "image", "images")
OPTION = "--pairs.revision"
PATIENCE = 100
"""Rows without `chosen` and `rejected` at the start of a source after which reading stops: it is no set of
pairs."""
LARGEST = 1e308
"""A larger number (JSON allows any) is no float."""

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPair:
    """A chat and two answers to it, as text.

    The id depends on the texts alone, so equal pairs have equal ids; `row` is the place in the source, from
    0. `messages` is the whole chat before the answer: a system message or none, then user and assistant in
    turn, the user last. `p_chosen` is the judge's probability of the chosen answer and `margin` its log-odds
    (nats).
    """

    id: str
    row: int
    messages: Messages
    chosen: str
    rejected: str
    p_chosen: float | None = None
    margin: float | None = None


class NotAPairError(ValueError):
    """A row is no pair; the message is the reason of its Drop."""


def read_pairs(
    source: str, revision: str | None = None, subset: str | None = None, split: str = "train"
) -> Iterator[TextPair | Drop]:
    """One TextPair or Drop for each row of a preference data set, in its order, as a stream.

    Args:
        source: Whatever `sao.data.readers.read_rows` reads: a file, a folder, or a hub data set's id.
        revision: Commit or tag of the hub data set, which needs one.
        subset: Configuration of the hub data set.
        split: Split of the hub data set, or of the folder.

    Raises:
        DataError: For a source that cannot be read, is empty, has no columns of pairs, or none that is one.

    """
    has_pairs, n_pairs, first, reason = False, 0, "it holds no rows", ""
    options: dict[str, Any] = {"revision": revision, "subset": subset, "split": split, "what": "pairs"}
    rows = read_rows(source, ANSWER_COLUMNS, OPTIONAL_COLUMNS, option=OPTION, **options)
    for number, (place, row) in enumerate(rows):
        if number == 0:
            first = f"{place} holds {_columns_of(row) or 'nothing'}"
        has_pairs = has_pairs or _has_answers(row)
        if number == PATIENCE and not has_pairs:
            break
        found = pair_of(row, number)
        n_pairs += isinstance(found, TextPair)
        if isinstance(found, Drop) and not reason:
            reason = f"{place}: {found.reason}"
        yield found
    if has_pairs and not n_pairs:
        # Of Parquet only the columns of pairs were read; the message names all that there are.
        known = (*ANSWER_COLUMNS, *OPTIONAL_COLUMNS)
        _, row = next(read_rows(source, ("",), known, option=OPTION, **options))
        raise DataError(
            f"{source}: no row is a preference pair ({reason}). A row holds {_columns_of(row)}. Rename the "
            "columns to `prompt`, `chosen` and `rejected`; the docstring of sao/data/preferences.py lists "
            "the forms that are read",
            key="pairs",
        )
    if not has_pairs:
        raise DataError(
            f"{source}: no preference pairs: {first}. Pairs have the columns `chosen` and `rejected` "
            "(answers, as text or messages) and `prompt`, unless both begin with it. Rename the columns and "
            "run the same command again; the docstring of sao/data/preferences.py lists the forms that are "
            "read",
            key="pairs",
        )


def _columns_of(row: Any) -> str:
    """The names of a row's first columns, or the type of a row that has none; for messages."""
    return ", ".join(map(repr, list(row)[:20])) if isinstance(row, dict) else type(row).__name__


def pair_of(row: Any, number: int) -> TextPair | Drop:
    """The pair in a row, or a Drop with the reason why there is none.

    Reasons: "unknown format", "no prompt" (no user's turn before the answer), "empty answer", "chosen equals
    rejected", "answers to different prompts", "not text", "not valid Unicode".
    """
    try:
        messages, chosen, rejected = _read_row(row)
    except (ChatError, NotAPairError) as error:
        return Drop(row=number, stage="train", record_id=f"row-{number}", reason=str(error))
    texts = [text for message in messages for text in (message.role, message.content)]
    return TextPair(
        id=make_id("pair", *texts, chosen, rejected),
        row=number,
        messages=messages,
        chosen=chosen,
        rejected=rejected,
        p_chosen=_number(row.get("p_chosen"), 0.0, 1.0),
        margin=_number(row.get("margin"), -LARGEST, LARGEST),
    )


def _has_answers(row: Any) -> bool:
    return isinstance(row, dict) and all(key in row for key in ANSWER_COLUMNS)


def _read_row(row: Any) -> tuple[Messages, str, str]:
    """The chat before the answers, and the two answers."""
    if not _has_answers(row):
        raise NotAPairError(UNKNOWN_FORMAT)
    if row.get("image") or row.get("images"):
        raise NotAPairError(NOT_TEXT)
    prompt_column = from_text(row.get("prompt") or row.get("conversations"))
    prompt = messages_of(prompt_column, "user")
    chosen, rejected = (messages_of(value, "assistant") for value in _answer_columns(row))
    if not chosen or not rejected:
        raise NotAPairError("empty answer")
    shared = _shared_turns(chosen, rejected)
    answers = chosen[-1].content, rejected[-1].content
    if isinstance(prompt_column, str) and any(message.role == "user" for message in shared):
        prompt = ()  # the messages repeat it, as SimPO's script assumes
    elif is_dialogue(prompt_column):
        answers = answers[0].strip(), answers[1].strip()  # they continue the text after "Assistant:"
    elif not prompt_column and not any(message.role == "user" for message in shared):
        prompt = _before_the_answer(messages_of(from_text(row.get("messages")), "user"), answers)
    messages = _checked_chat(_with_system(_joined(prompt, shared), row.get("system")))
    _check_answers(*answers)
    _check_unicode([*(message.content for message in messages), *answers])
    return messages, *answers


def _answer_columns(row: dict[str, Any]) -> list[Any]:
    """What stands under `chosen` and `rejected`; messages in a text are read where both are such texts."""
    values = [row[key] for key in ANSWER_COLUMNS]
    read = [from_text(value) for value in values]
    return read if all(isinstance(value, list | dict) for value in read) else values


def _before_the_answer(messages: Messages, answers: tuple[str, str]) -> Messages:
    """The column `messages` without the answer where it ends with one of the two."""
    ends_so = messages and messages[-1].role == "assistant" and messages[-1].content in answers
    return messages[:-1] if ends_so else messages


def _with_system(messages: Messages, system: Any) -> Messages:
    """The chat with the text of the column `system` before it, where it has no system message of its own."""
    if system is None or (messages and messages[0].role == "system"):
        return messages
    if not isinstance(system, str):
        raise NotAPairError(NOT_TEXT)
    return (Message("system", system), *messages)


def _shared_turns(chosen: Messages, rejected: Messages) -> Messages:
    """The turns before the two answers, which must be equal; an answer is one turn of the assistant."""
    if chosen[:-1] != rejected[:-1]:
        differing = ((a, b) for a, b in zip(chosen, rejected) if a != b)
        in_chosen, in_rejected = next(differing, (chosen[-1], rejected[-1]))
        differ_in_answer = in_chosen.role == in_rejected.role == "assistant"  # and one goes on after it
        raise NotAPairError(UNKNOWN_FORMAT if differ_in_answer else "answers to different prompts")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise NotAPairError(UNKNOWN_FORMAT)
    return chosen[:-1]


def _joined(prompt: Messages, shared: Messages) -> Messages:
    """The prompt followed by the shared turns; where one repeats the other it counts once."""
    if prompt[len(prompt) - len(shared) :] == shared:
        return prompt
    starts = range(len(shared) - len(prompt) + 1)
    repeats_prompt = any(shared[start : start + len(prompt)] == prompt for start in starts)
    return shared if repeats_prompt and shared[0].role != "assistant" else prompt + shared


def _checked_chat(messages: Messages) -> Messages:
    """The chat without an empty system message.

    It must be one that chat templates accept: user and assistant in turn, the user last, no turn empty.
    """
    has_system = bool(messages) and messages[0].role == "system"
    system, turns = (messages[:1], messages[1:]) if has_system else ((), messages)
    empty_roles = {message.role for message in turns if not message.content.strip()}
    if not turns or turns[-1].role != "user" or "user" in empty_roles:
        raise NotAPairError("no prompt")
    if any(message.role != ("user", "assistant")[i % 2] for i, message in enumerate(turns)):
        raise NotAPairError(UNKNOWN_FORMAT)
    if empty_roles:
        raise NotAPairError("empty answer")
    return system + turns if system and system[0].content.strip() else turns


def _check_answers(chosen: str, rejected: str) -> None:
    if not chosen.strip() or not rejected.strip():
        raise NotAPairError("empty answer")
    if chosen.strip() == rejected.strip():
        raise NotAPairError("chosen equals rejected")


def _check_unicode(texts: list[str]) -> None:
    """Refuse half a surrogate pair, which JSON can hold and no tokenizer accepts."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise NotAPairError("not valid Unicode") from error


def _number(value: Any, low: float, high: float) -> float | None:
    """A number within bounds (so no NaN), else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and low <= value <= high else None
