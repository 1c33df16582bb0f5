r"""Chats as data sets write them: the value of a column in, turns out. The only reader of chat shapes.

    "Why?"                                      a text: one turn
    "\n\nHuman: Why?\n\nAssistant: So."         a dialogue in one text, as in Anthropic's HH
    {"role": "user", "content": "Why?"}         a message
    {"from": "human", "value": "Why?"}          a message of ShareGPT
    [message, message, …]                       a conversation
    ["Why?", "And then?"]                       turns of the user, as FastChat and MT-Bench write them

The content of a message is a text, a list of text parts ({"type": "text", "text": "Why?"}), or an object
that holds it under `content` or `answer` (Arena-Hard). No text is changed, except that the turns of a
dialogue in one text lose the white space around them.

`turns_of` reads whatever stands in a column and judges nothing; `messages_of` accepts only a chat that a
model can be trained on; `chat` goes the other way, from a Prompt record to messages.

Sources: https://huggingface.co/docs/trl/dataset_formats; fastchat/llm_judge in
https://github.com/lm-sys/FastChat; https://huggingface.co/datasets/lmarena-ai/arena-hard-auto;
https://huggingface.co/datasets/Anthropic/hh-rlhf
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from dataclasses import dataclass
from typing import Any

from sao.records import Message, Prompt

CHAT_ROLES = ("system", "user", "assistant")
"""The roles that chat templates know."""
ALIASES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles."""
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
"""The keys of a whole message."""
UNKNOWN_FORMAT, NOT_TEXT = "unknown format", "not text"
"""The reasons of a ChatError."""
_CHAT_TEXT = re.compile(r"""\s*\[?\s*\{\s*["'](role|from|content|value)["']\s*:""")
_DIALOGUE_START = "\n\nHuman:"
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


class ChatError(ValueError):
    """A value is no chat. The message is UNKNOWN_FORMAT or NOT_TEXT."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as it was found: `content` is a text, or whatever stands in the place of one.

    `role` is system, user or assistant, or any other name as the data set writes it. `calls_tools`: the turn
    calls tools, so its text is not all of it.
    """

    role: str
    content: Any
    calls_tools: bool = False

    @property
    def text(self) -> str | None:
        """What the turn says; None where it says anything but text."""
        return self.content if isinstance(self.content, str) and not self.calls_tools else None


def is_message(value: Any) -> bool:
    """Whether a value is one message, complete or not."""
    return isinstance(value, dict) and not value.keys().isdisjoint(("role", "from", "content"))


def is_whole_message(value: Any) -> bool:
    """Whether a value is one message with a speaker and a content, and so hardly a record of its own."""
    return isinstance(value, dict) and any(keys <= value.keys() for keys in MESSAGE_KEYS)


def is_dialogue(value: Any) -> bool:
    """Whether a value is a dialogue in one text, as in HH."""
    return isinstance(value, str) and value.startswith(_DIALOGUE_START)


def from_text(value: Any) -> Any:
    """The messages in a text that is nothing but a chat as JSON or as Python writes it (how tables without
    lists, such as .csv, hold one); the value itself where it is anything else.

    Raises ChatError(UNKNOWN_FORMAT) for a text that begins like that and cannot be read.
    """
    if not (isinstance(value, str) and _CHAT_TEXT.match(value)):
        return value
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = read(value.strip())
            if all(is_whole_message(item) for item in (found if isinstance(found, list) else [found])):
                return found
    raise ChatError(UNKNOWN_FORMAT)


def turns_of(value: Any, role: str = "user") -> list[Turn]:
    """The turns of a value of any shape above, in order.

    Args:
        value: What stands in a column.
        role: Who speaks where the value does not say: plain texts, and messages without a role.

    Returns:
        One turn for each text or message; what is neither is a turn without text, so that the caller can say
        what it is. A dialogue in one text that ends with an empty turn of the assistant is one that waits
        for its answer: where `role` is user, that turn is left out.

    Raises:
        ChatError: For a value that is no text, message or list: null, a number, NaN, another object.

    """
    if is_dialogue(value):
        return _dialogue_turns(value, role)
    if isinstance(value, list):
        return [turn_of(item, role) for item in value]
    if isinstance(value, str) or is_message(value):
        return [turn_of(value, role)]
    raise ChatError(UNKNOWN_FORMAT)


def turn_of(item: Any, role: str = "user") -> Turn:
    """One item of a conversation as a turn: a text or a message; of anything else a turn without text.

    `role`: who speaks where the item does not say. Nothing is refused.
    """
    if not is_message(item):
        return Turn(role, text_in(item) if isinstance(item, dict) else item)
    stated = item.get("role") or item.get("from")
    name = str(stated) if stated else role
    content = item.get("content")
    if content is None:
        content = item.get("value")
    return Turn(ALIASES.get(name, name), text_in(content), calls_tools=bool(item.get("tool_calls")))


def text_in(content: Any) -> Any:
    """The text in the content of a message; the content itself where it is anything but text (an image)."""
    while isinstance(content, dict) and ("content" in content or "answer" in content):
        content = content["content"] if "content" in content else content["answer"]
    if isinstance(content, list):
        texts = [_part_text(part) for part in content]
        if all(text is not None for text in texts):
            return "".join(text for text in texts if text is not None)
    return content


def _part_text(part: Any) -> str | None:
    """The text of one part of a content, None where it is an image or anything else."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _dialogue_turns(dialogue: str, role: str) -> list[Turn]:
    """The turns of a dialogue in one text."""
    parts = _SPEAKER.split(dialogue)[1:]
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [Turn(names[name], text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]
    waits_for_answer = role == "user" and turns[-1] == Turn("assistant", "")
    return turns[:-1] if waits_for_answer else turns


def messages_of(value: Any, role: str = "user") -> tuple[Message, ...]:
    """The messages of a chat that a model can be trained on: texts only, each with a known role.

    Args:
        value: A text or messages; null is a chat without turns.
        role: Who speaks a plain text.

    Raises:
        ChatError: UNKNOWN_FORMAT for a value of another shape, a list of plain texts (who says them?), a
            role that is missing or unknown (a tool's), or a call of a tool; NOT_TEXT for content that is
            not all text.

    """
    if value is None:
        return ()
    turns = turns_of(value, role if isinstance(value, str) else "")
    return tuple(_message_of(turn) for turn in turns)


def _message_of(turn: Turn) -> Message:
    if turn.role not in CHAT_ROLES or turn.calls_tools:
        raise ChatError(UNKNOWN_FORMAT)
    if turn.text is None:
        raise ChatError(NOT_TEXT)
    return Message(turn.role, turn.text)


def chat(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """The messages that are answered: a system message or none, the earlier turns, the prompt. Generation and
    training use the same."""
    opening = (Message("system", system),) if system else ()
    earlier = (Message(("user", "assistant")[i % 2], text) for i, text in enumerate(prompt.earlier))
    return (*opening, *earlier, Message("user", prompt.text))
