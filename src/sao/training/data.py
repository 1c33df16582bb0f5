r"""Preference data sets as others write them: rows in, `TextPair` records or Drops out (for `sao train --pairs FILE|HUB`).

A row holds `chosen` and `rejected`, and `prompt` (or `conversations`) unless the two begin with it. Each may be a text or
messages; the forms, found by what stands in the row:

    prompt, chosen, rejected: messages           TRL, conversational; also what `sao export` writes
    chosen, rejected: messages                   TRL, conversational with implicit prompt; SimPO reads its sets so
    prompt: text; chosen, rejected: messages     UltraFeedback-binarized, SimPO: the messages repeat the user's turn
    prompt, chosen, rejected: text               TRL, standard: the prompt is the user's turn
    chosen, rejected: text                       HH: "\n\nHuman: …\n\nAssistant: …" (with a prompt column too)

A message is {"role", "content"} or ShareGPT's {"from", "value"}; its content a text or a list of text parts. Whatever both
answers share before their last turn belongs to the prompt; a prompt that this repeats counts once. `p_chosen` and `margin` are
read where they are numbers; all other columns are left alone.

Sources: https://huggingface.co/docs/trl/dataset_formats and `apply_chat_template` in scripts/run_simpo.py of
https://github.com/princeton-nlp/SimPO. Try: python -c "from sao.training.data import read_pairs; print(*read_pairs('FILE'))"
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sao.data.readers import read_rows
from sao.errors import DataError
from sao.records import Drop, Message, make_id

NEEDED = ("chosen", "rejected")
OPTIONAL = ("prompt", "conversations", "p_chosen", "margin", "image", "images")
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
PATIENCE = 100
"""Rows without `chosen` and `rejected` at the start of a source after which it is taken to be no set of
pairs."""

Turns = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPair:
    """A chat and two answers to it, as text. The id depends on these alone, so equal pairs have equal ids;
    `row` is the place in the source, from 0. `messages` is the whole chat before the answer: a system message
    or none, then user and assistant in turn, the user last. `p_chosen` is the judge's probability of the
    chosen answer and `margin` its log-odds (nats)."""

    id: str
    row: int
    messages: Turns
    chosen: str
    rejected: str
    p_chosen: float | None = None
    margin: float | None = None


class _NoPair(Exception):  # noqa: N818
    """Why a row is no pair."""


def read_pairs(
    source: str, revision: str | None = None, subset: str | None = None, split: str = "train"
) -> Iterator[TextPair | Drop]:
    """One TextPair or Drop for each row of a preference data set, in its order, as a stream.

    Args:
        source: A .jsonl, .json or .parquet file, a folder of Parquet files (such as `sao export` writes), or
            a hub data set's id.
        revision: Commit or tag of the hub data set, which needs one.
        subset: Configuration of the hub data set.
        split: Split of the hub data set, or of the folder.

    Raises:
        DataError: For a source that cannot be read, is empty, or has no columns of pairs.

    """
    usable, found = False, "it holds no rows"
    options: dict[str, Any] = {"revision": revision, "subset": subset, "split": split}
    rows = read_rows(source, NEEDED, OPTIONAL, what="pairs", option="--pairs.revision", **options)
    for number, (place, row) in enumerate(rows):
        if number == 0:
            keys = (
                ", ".join(repr(key) for key in list(row)[:20])
                if isinstance(row, dict)
                else type(row).__name__
            )
            found = f"{place} holds {keys or 'nothing'}"
        usable = usable or _has_answers(row)
        if number == PATIENCE and not usable:
            break
        yield pair_of(row, number)
    if not usable:
        raise DataError(
            f"{source}: no preference pairs: {found}. Pairs have the columns `chosen` and `rejected` "
            "(answers, as text or "
            "messages) and `prompt`, unless both begin with it. Rename the columns and run the same command "
            "again; the forms "
            "that are read stand in the docstring of sao/training/data.py"
        )


def pair_of(row: Any, number: int) -> TextPair | Drop:
    """The pair that stands in a row, or why there is none: "unknown format", "no prompt" (no user's turn
    before the answer), "empty answer", "chosen equals rejected", "answers to different prompts", "not text",
    "not valid Unicode"."""
    try:
        messages, chosen, rejected = _read(row)
    except _NoPair as reason:
        return Drop(row=number, stage="train", record_id=f"row-{number}", reason=str(reason))
    return TextPair(
        id=make_id("pair", *(part for m in messages for part in (m.role, m.content)), chosen, rejected),
        row=number,
        messages=messages,
        chosen=chosen,
        rejected=rejected,
        p_chosen=_number(row.get("p_chosen"), 0.0, 1.0),
        margin=_number(row.get("margin"), -1e308, 1e308),
    )


def _has_answers(row: Any) -> bool:
    return isinstance(row, dict) and all(key in row for key in NEEDED)


def _read(row: Any) -> tuple[Turns, str, str]:
    """The chat before the answers, and the two answers."""
    if not _has_answers(row):
        raise _NoPair("unknown format")
    if row.get("image") or row.get("images"):
        raise _NoPair("not text")
    given = row.get("prompt") or row.get("conversations")
    prompt, chosen, rejected = _turns(given, "user"), *(_turns(row[key], "assistant") for key in NEEDED)
    if not chosen or not rejected:
        raise _NoPair("empty answer")
    shared = _shared(chosen, rejected)
    answers = [chosen[-1].content, rejected[-1].content]
    if isinstance(given, str):
        if any(m.role == "user" for m in shared):
            prompt = ()  # the messages repeat it, as SimPO's script takes them to
        elif given.startswith("\n\nHuman:"):
            answers = [text.strip() for text in answers]  # they go on after "Assistant:"
    messages = _checked(_joined(prompt, shared))
    if not all(text.strip() for text in answers):
        raise _NoPair("empty answer")
    if answers[0].strip() == answers[1].strip():
        raise _NoPair("chosen equals rejected")
    try:
        "".join([*(m.content for m in messages), *answers]).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can hold and no tokenizer takes
        raise _NoPair("not valid Unicode") from error
    return messages, answers[0], answers[1]


def _turns(value: Any, role: str) -> Turns:
    """What stands in a column as turns; a plain text is one of `role`."""
    match value:
        case None:
            return ()
        case str() if value.startswith("\n\nHuman:"):
            parts = re.split(r"\n\n(Human|Assistant):", value)[1:]
            turns = [
                Message(ROLES.get(who.lower(), who.lower()), text.strip())
                for who, text in zip(parts[::2], parts[1::2])
            ]
            # a prompt ends with "Assistant:"
            opened = role == "user" and turns[-1] == Message("assistant", "")
            return tuple(turns[:-1] if opened else turns)
        case str():
            return (Message(role, value),)
        case dict():
            return (_message(value),)
        case list():
            return tuple(_message(item) for item in value)
    raise _NoPair("unknown format")


def _message(value: Any) -> Message:
    if not isinstance(value, dict) or value.get("tool_calls"):
        raise _NoPair("unknown format")
    role = ROLES.get(str(value.get("role") or value.get("from")))
    if role is None:
        raise _NoPair("unknown format")
    content = value["value"] if value.get("content") is None and "value" in value else value.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise _NoPair("not text")
    return Message(role, content)


def _shared(chosen: Turns, rejected: Turns) -> Turns:
    """The turns before the two answers, which must be the same; an answer is one turn of the assistant."""
    if chosen[:-1] != rejected[:-1]:
        one, other = next(((a, b) for a, b in zip(chosen, rejected) if a != b), (chosen[-1], rejected[-1]))
        several = one.role == other.role == "assistant"  # they part at an answer, and one goes on after it
        raise _NoPair("unknown format" if several else "answers to different prompts")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise _NoPair("unknown format")
    return chosen[:-1]


def _joined(prompt: Turns, shared: Turns) -> Turns:
    """The prompt followed by the shared turns; where one repeats the other it counts once."""
    if prompt[len(prompt) - len(shared) :] == shared:
        return prompt
    starts = range(len(shared) - len(prompt) + 1)
    if shared[0].role != "assistant" and any(shared[i : i + len(prompt)] == prompt for i in starts):
        return shared
    return prompt + shared


def _checked(messages: Turns) -> Turns:
    """The chat without an empty system message; it must be one that chat templates take: turn by turn, the
    user last."""
    system, turns = messages[:1], messages[1:]
    if not system or system[0].role != "system":
        system, turns = (), messages
    if (
        not turns
        or turns[-1].role != "user"
        or any(m.role == "user" and not m.content.strip() for m in turns)
    ):
        raise _NoPair("no prompt")
    if any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(turns)):
        raise _NoPair("unknown format")
    if not all(m.content.strip() for m in turns):
        raise _NoPair("empty answer")
    return turns if system and not system[0].content.strip() else system + turns


def _number(value: Any, low: float, high: float) -> float | None:
    """A number within bounds (so no NaN), else None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return float(value) if usable else None
