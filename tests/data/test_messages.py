"""Chats in every shape: what is read, and what is refused."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.data.messages import (
    NOT_TEXT,
    UNKNOWN_FORMAT,
    ChatError,
    Turn,
    chat,
    is_dialogue,
    is_message,
    is_whole_message,
    messages_of,
    text_in,
    turn_of,
    turns_of,
)
from sao.records import Message, Prompt

ASK, ANSWER = Turn("user", "Why?"), Turn("assistant", "So.")
HH = "\n\nHuman: Why?\n\nAssistant: So."
IMAGE = [{"type": "image"}, {"type": "text", "text": "Why?"}]
CALL = {"role": "assistant", "content": "So.", "tool_calls": [{"name": "add"}]}


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ("Why?", [ASK]),
        (" Why?\n", [Turn("user", " Why?\n")]),
        ("", [Turn("user", "")]),
        ({"role": "user", "content": "Why?"}, [ASK]),
        ({"from": "human", "value": "Why?"}, [ASK]),
        ({"content": "Why?"}, [ASK]),
        ([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], [ASK, ANSWER]),
        ([{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}], [ASK, ANSWER]),
        ([{"content": "Why?", "token_len": 2}], [ASK]),
        (["Why?", "And then?"], [ASK, Turn("user", "And then?")]),
        (["Why?", {"role": "assistant", "content": "So."}], [ASK, ANSWER]),
        ([], []),
        (HH, [ASK, ANSWER]),
        ("\n\nHuman: Why?\n\nAssistant:", [ASK]),
        ("\n\nHuman: Why?\n\nAssistant: So.\n\nHuman:", [ASK, ANSWER, Turn("user", "")]),
        ("Human: Why?", [Turn("user", "Human: Why?")]),
        # A row of Parquet holds every column of its file: those of the other form are null.
        ({"role": None, "content": None, "from": "human", "value": "Why?"}, [ASK]),
        ({"role": "user", "content": "Why?", "from": None, "value": None, "tool_calls": None}, [ASK]),
        # Order and roles are for the caller to judge.
        ([{"role": "assistant", "content": "So."}, {"role": "user", "content": "Why?"}], [ANSWER, ASK]),
        ([{"role": "tool", "content": "42"}], [Turn("tool", "42")]),
        ([{"role": ["user"], "content": "x"}], [Turn("['user']", "x")]),
        ([CALL], [Turn("assistant", "So.", calls_tools=True)]),
        # What is no text stays as it is.
        ([None, 3, ["a"]], [Turn("user", None), Turn("user", 3), Turn("user", ["a"])]),
        ([{"text": "x"}], [Turn("user", {"text": "x"})]),
        ([{"role": "user"}], [Turn("user", None)]),
        ([{"role": "user", "content": None}], [Turn("user", None)]),
    ],
)
def test_every_shape_is_read(value: Any, turns: list[Turn]) -> None:
    assert turns_of(value) == turns


@pytest.mark.parametrize("value", [None, 3, 2.5, math.nan, True, {}, {"text": "x"}, {"value": "x"}])
def test_what_is_no_chat_is_refused(value: Any) -> None:
    with pytest.raises(ChatError, match=UNKNOWN_FORMAT):
        turns_of(value)


def test_the_speaker_of_what_names_none_is_the_callers() -> None:
    assert turns_of("So.", "assistant") == [ANSWER]
    assert turns_of(["So.", {"content": "So."}, ASK.content], "assistant")[:2] == [ANSWER, ANSWER]
    assert turns_of({"role": "user", "content": "Why?"}, "assistant") == [ASK]
    # An answer that is empty is one; a prompt that ends so waits for its answer.
    assert turns_of("\n\nHuman: Why?\n\nAssistant:", "assistant") == [ASK, Turn("assistant", "")]


def test_one_item_is_a_turn_whatever_it_is() -> None:
    assert turn_of("So.", "assistant") == ANSWER
    assert turn_of({"answer": "four"}, "assistant") == Turn("assistant", "four")
    assert turn_of(None) == Turn("user", None)
    assert math.isnan(turn_of(math.nan).content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Why?", "Why?"),
        ([{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}], "Why?"),
        ([{"type": "text", "text": "Why?", "image_url": None}], "Why?"),
        ([], ""),
        ({"thought": "hm", "answer": " So."}, " So."),
        ({"content": {"answer": "So."}}, "So."),
        ({"answer": [{"type": "text", "text": "So."}]}, "So."),
        (IMAGE, IMAGE),
        (["a"], ["a"]),
        ([{"type": "text", "text": None}], [{"type": "text", "text": None}]),
        ([{"text": "no type"}], [{"text": "no type"}]),
        ({"text": "a"}, {"text": "a"}),
        (None, None),
        (3, 3),
    ],
)
def test_the_text_in_a_content(content: Any, text: Any) -> None:
    assert text_in(content) == text


NO_TEXTS: tuple[object, ...] = (None, 3, math.nan, ["a"], {})


def test_a_turn_says_text_or_nothing() -> None:
    assert ASK.text == "Why?"
    assert Turn("user", "").text == ""
    assert [Turn("user", content).text for content in NO_TEXTS] == [None] * 5
    assert Turn("assistant", "So.", calls_tools=True).text is None


def test_messages_and_dialogues_are_known_by_their_keys_and_beginning() -> None:
    assert is_message({"role": "user"})
    assert is_message({"from": "human", "value": "x"})
    others: tuple[object, ...] = ({}, {"value": 3}, {"text": "x"}, "x", None, [])
    assert not any(is_message(value) for value in others)
    assert is_whole_message({"role": "user", "content": None, "id": 7})
    assert is_whole_message({"from": "human", "value": "x"})
    assert not any(is_whole_message(value) for value in ({"role": "user"}, {"content": "x"}, "x", None))
    assert is_dialogue(HH)
    assert not any(is_dialogue(value) for value in ("\n\nAssistant: x", "Human: x", None, 3))


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        (None, ()),
        ([], ()),
        ("Why?", (Message("user", "Why?"),)),
        ("", (Message("user", ""),)),
        (HH, (Message("user", "Why?"), Message("assistant", "So."))),
        ({"from": "gpt", "value": "So."}, (Message("assistant", "So."),)),
        ([{"role": "system", "content": ""}], (Message("system", ""),)),
    ],
)
def test_a_chat_to_train_on(value: Any, messages: tuple[Message, ...]) -> None:
    assert messages_of(value) == messages


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, UNKNOWN_FORMAT),
        (math.nan, UNKNOWN_FORMAT),
        ({}, UNKNOWN_FORMAT),
        (["Why?"], UNKNOWN_FORMAT),
        ([None], UNKNOWN_FORMAT),
        ([{"content": "Why?"}], UNKNOWN_FORMAT),
        ([{"role": "tool", "content": "42"}], UNKNOWN_FORMAT),
        ([{"role": "User", "content": "Why?"}], UNKNOWN_FORMAT),
        ([CALL], UNKNOWN_FORMAT),
        ([{"role": "user", "content": "Why?"}, "So."], UNKNOWN_FORMAT),
        ([{"role": "user", "content": IMAGE}], NOT_TEXT),
        ([{"role": "user", "content": None}], NOT_TEXT),
        ([{"role": "user", "content": math.nan}], NOT_TEXT),
    ],
)
def test_a_chat_that_nobody_should_train_on(value: Any, reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        messages_of(value)


def test_a_prompt_as_the_chat_that_is_answered() -> None:
    prompt = Prompt(id="p", row=0, persona_id="x", text="c", earlier=("a", "b"))
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert chat(prompt, None) == chat(prompt, "") == turns
    assert chat(prompt, "s") == (Message("system", "s"), *turns)


keys = st.sampled_from(["role", "content", "from", "value", "type", "text", "answer", "tool_calls"])
words = st.sampled_from(["user", "assistant", "system", "tool", "text", "", "Why?", "\ud800", HH])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
anything = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=3), max_leaves=8
)


@given(anything)
@settings(max_examples=400)
def test_any_value_is_read_or_refused(value: Any) -> None:
    try:
        turns = turns_of(value)
    except ChatError:
        assert not isinstance(value, str | list)
    else:
        assert all(isinstance(turn.role, str) and turn.role for turn in turns)
    messages: tuple[Message, ...] = ()
    reason = UNKNOWN_FORMAT
    try:
        messages = messages_of(value)
    except ChatError as error:
        reason = str(error)
    assert all(m.role in ("system", "user", "assistant") for m in messages)
    assert reason in (UNKNOWN_FORMAT, NOT_TEXT)
