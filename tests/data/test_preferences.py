"""Preference data sets of others: every form read alike, and odd rows dropped with their reason."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sao.data.preferences import TextPair, pair_of, read_pairs
from sao.errors import DataError
from sao.records import Drop, Message
from support.errors import raises
from support.pair_files import ASKED, BAD, FORMS, GOOD, HH, SYSTEM, WHY, Row, in_parts, sharegpt, write


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_alike(tmp_path: Path, form: str, suffix: str) -> None:
    (pair,) = read_pairs(write(tmp_path / f"p{suffix}", [FORMS[form]]))
    assert isinstance(pair, TextPair)
    assert (pair.row, pair.messages, pair.chosen, pair.rejected) == (0, WHY, "So.", "No.")
    assert pair.id == pair_of(FORMS["text"], 7).id  # type: ignore[union-attr]
    assert (pair.p_chosen, pair.margin) == (None, None)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]},
        {"prompt": [SYSTEM, ASKED], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": [ASKED], "chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]},
        {"prompt": [SYSTEM], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": None, "chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]},
    ],
)
def test_a_system_message_stays_and_the_user_is_heard_once(row: Row) -> None:
    pair = pair_of(row, 0)
    assert isinstance(pair, TextPair)
    assert pair.messages == (Message("system", "Be brief."), *WHY)


def test_turns_that_both_answers_share_belong_to_the_prompt() -> None:
    more = [GOOD, {"role": "user", "content": "Really?"}]
    expected = (*WHY, Message("assistant", "So."), Message("user", "Really?"))
    for row in (
        {"prompt": [ASKED], "chosen": [*more, BAD], "rejected": [*more, GOOD]},
        {"prompt": "Why?", "chosen": [ASKED, *more, BAD], "rejected": [ASKED, *more, GOOD]},
        {"prompt": [ASKED, *more], "chosen": [more[1], BAD], "rejected": [more[1], GOOD]},
        {
            "chosen": HH + " So.\n\nHuman: Really?\n\nAssistant: No.",
            "rejected": HH + " So.\n\nHuman: Really?\n\nAssistant: So.",
        },
    ):
        pair = pair_of(row, 0)
        assert isinstance(pair, TextPair)
        assert (pair.messages, pair.chosen, pair.rejected) == (expected, "No.", "So.")


def test_the_spaces_of_a_plain_answer_are_its_own() -> None:
    pair = pair_of({"prompt": " Why?\n", "chosen": " So.\n", "rejected": "No."}, 0)
    assert isinstance(pair, TextPair)
    assert (pair.messages[0].content, pair.chosen) == (" Why?\n", " So.\n")


@pytest.mark.parametrize(
    ("given", "p_chosen", "margin"),
    [
        ({"p_chosen": 0.75, "margin": 1.5}, 0.75, 1.5),
        ({"p_chosen": 1, "margin": -2}, 1.0, -2.0),
        ({"p_chosen": 1.5, "margin": math.nan}, None, None),
        ({"p_chosen": "0.7", "margin": True}, None, None),
        ({"p_chosen": [0.7], "margin": 10**400}, None, None),
        ({"score_chosen": 9.0, "score_rejected": 1.0, "messages": [ASKED]}, None, None),
    ],
)
def test_the_judges_certainty_is_read_where_it_is_a_number(
    given: Row, p_chosen: float | None, margin: float | None
) -> None:
    pair = pair_of(FORMS["text"] | given, 0)
    assert isinstance(pair, TextPair)
    assert (pair.p_chosen, pair.margin) == (p_chosen, margin)


@pytest.mark.parametrize("answers", [(GOOD, BAD), ([GOOD], [BAD]), ("So.", "No.")])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_the_chat_stands_under_messages(tmp_path: Path, answers: tuple[Any, Any], suffix: str) -> None:
    """axolotl's form, which `sao export` writes; also where the column repeats an answer."""
    chosen, rejected = answers
    for chat in ([SYSTEM, ASKED], [SYSTEM, ASKED, GOOD], [SYSTEM, ASKED, BAD]):
        row = {"messages": chat, "chosen": chosen, "rejected": rejected}
        (pair,) = read_pairs(write(tmp_path / f"p{suffix}", [row]))
        assert isinstance(pair, TextPair)
        assert pair.messages == (Message("system", "Be brief."), *WHY)
        assert (pair.chosen, pair.rejected) == ("So.", "No.")
    other = pair_of({"messages": [ASKED, GOOD | {"content": "?"}], "chosen": chosen, "rejected": rejected}, 0)
    assert isinstance(other, Drop)
    assert other.reason == "no prompt"


def test_messages_beside_a_prompt_are_no_part_of_it() -> None:
    for form in FORMS.values():
        assert pair_of(form | {"messages": [SYSTEM, ASKED, GOOD, ASKED]}, 0) == pair_of(form, 0)


def test_the_column_system_is_the_system_message() -> None:
    pair = pair_of(FORMS["text"] | {"system": "Be brief."}, 0)
    assert isinstance(pair, TextPair)
    assert pair.messages == (Message("system", "Be brief."), *WHY)
    own = {"prompt": [SYSTEM, ASKED], "chosen": [GOOD], "rejected": [BAD]}
    assert pair_of(own | {"system": "Another."}, 0) == pair_of(own, 0)
    for empty in (None, "", " "):
        assert pair_of(FORMS["text"] | {"system": empty}, 0) == pair_of(FORMS["text"], 0)
    assert pair_of(FORMS["text"] | {"system": math.nan}, 0) == Drop(
        row=0, stage="train", record_id="row-0", reason="not text"
    )


@pytest.mark.parametrize("written", [json.dumps, str])
def test_messages_in_a_text_are_messages(tmp_path: Path, written: Callable[[Any], str]) -> None:
    """As JSON, or as Python writes lists: what a .csv holds of them."""
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow([written(value) for value in ([ASKED], [ASKED, GOOD], [ASKED, BAD])])
        writer.writerow(["Why?", written(GOOD), written(BAD)])
        writer.writerow(["Why?", written([GOOD])[:-2], written([BAD])])
        writer.writerow(["Why?", written([GOOD]), "[1]"])
    two, one, cut, odd = read_pairs(str(tmp_path / "p.csv"))
    for pair in (two, one):
        assert isinstance(pair, TextPair)
        assert (pair.messages, pair.chosen, pair.rejected) == (WHY, "So.", "No.")
    assert isinstance(cut, Drop)
    assert cut.reason == "unknown format"
    assert isinstance(odd, TextPair)
    assert odd.chosen == written([GOOD])  # an answer that is JSON, against one that is no chat


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_where_no_row_fits_the_columns_and_the_reason_are_named(tmp_path: Path, suffix: str) -> None:
    row = {"question": "Why?", "chosen": "So.", "rejected": "No.", "score": 1}
    with raises(DataError, key="pairs", match=r"(row 0|line 1): no prompt\)") as caught:
        list(read_pairs(write(tmp_path / f"p{suffix}", [row] * 3)))
    assert "A row holds 'question', 'chosen', 'rejected', 'score'" in str(caught.value)


# Written in any form, read back the same

texts = st.text(min_size=1, max_size=20).filter(lambda t: bool(t.strip()) and not t.startswith("\n\nHuman:"))


@st.composite
def chats(draw: st.DrawFn) -> tuple[list[dict[str, str]], str, str]:
    """A chat that ends with the user, and two answers."""
    system = draw(st.lists(texts, max_size=1))
    said = draw(st.lists(st.tuples(texts, texts), max_size=2))
    turns = [(role, text) for turn in said for role, text in zip(("user", "assistant"), turn)]
    turns = [*(("system", text) for text in system), *turns, ("user", draw(texts))]
    chosen, rejected = draw(texts), draw(texts)
    assume(chosen.strip() != rejected.strip())
    return [{"role": role, "content": text} for role, text in turns], chosen, rejected


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


WRITERS: dict[str, Callable[[list[dict[str, str]], str, str], Row]] = {
    "messages": lambda chat, a, b: {"prompt": chat, "chosen": [answer(a)], "rejected": [answer(b)]},
    "implicit": lambda chat, a, b: {"chosen": [*chat, answer(a)], "rejected": [*chat, answer(b)]},
    "answers as text": lambda chat, a, b: {"prompt": chat, "chosen": a, "rejected": b},
    "UltraFeedback": lambda chat, a, b: {
        "prompt": chat[-1]["content"], "chosen": [*chat, answer(a)], "rejected": [*chat, answer(b)]
    },
    "ShareGPT": lambda chat, a, b: {
        "conversations": [sharegpt(m) for m in chat], "chosen": sharegpt(answer(a)),
        "rejected": sharegpt(answer(b))
    },
    "parts": lambda chat, a, b: {
        "prompt": [in_parts(m) for m in chat], "chosen": [in_parts(answer(a))],
        "rejected": [in_parts(answer(b))]
    },
}  # fmt: skip


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(chats(), min_size=1, max_size=4), suffix=st.sampled_from([".jsonl", ".json", ".parquet"])
)
def test_what_is_written_is_read_back(tmp_path: Path, form: str, pairs: list[Any], suffix: str) -> None:
    found = list(read_pairs(write(tmp_path / f"p{suffix}", [WRITERS[form](*pair) for pair in pairs])))
    expected = [(i, tuple(Message(**m) for m in chat), a, b) for i, (chat, a, b) in enumerate(pairs)]
    assert [(p.row, p.messages, p.chosen, p.rejected) for p in found if isinstance(p, TextPair)] == expected


@given(chats())
def test_a_dialogue_of_hh_is_read_back(pair: tuple[list[dict[str, str]], str, str]) -> None:
    turns = [m | {"content": m["content"].strip()} for m in pair[0] if m["role"] != "system"]
    a, b = (text.strip() for text in pair[1:])
    assume(
        not any(
            mark in text
            for text in (a, b, *(m["content"] for m in turns))
            for mark in ("\n\nHuman:", "\n\nAss")
        )
    )
    names = {"user": "Human", "assistant": "Assistant"}
    asked = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in turns) + "\n\nAssistant: "
    for row in (
        {"chosen": asked + a, "rejected": asked + b},
        {"prompt": asked.rstrip(), "chosen": " " + a, "rejected": " " + b},
    ):
        found = pair_of(row, 0)
        assert isinstance(found, TextPair)
        assert (found.messages, found.chosen, found.rejected) == (tuple(Message(**m) for m in turns), a, b)


# Odd rows

PICTURE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}
TOOL = {"role": "tool", "content": "42"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "chosen": "", "rejected": "No."}, "empty answer"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": " \n"}, "empty answer"),
        ({"prompt": "Why?", "chosen": None, "rejected": "No."}, "empty answer"),
        ({"prompt": [ASKED], "chosen": [], "rejected": [BAD]}, "empty answer"),
        ({"chosen": HH, "rejected": HH + " No."}, "empty answer"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "So. "}, "chosen equals rejected"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]}, "chosen equals rejected"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "no prompt"),
        ({"prompt": "", "chosen": "So.", "rejected": "No."}, "no prompt"),
        ({"prompt": "  ", "chosen": "So.", "rejected": "No."}, "no prompt"),
        ({"prompt": None, "chosen": [GOOD], "rejected": [BAD]}, "no prompt"),
        ({"prompt": [SYSTEM], "chosen": [GOOD], "rejected": [BAD]}, "no prompt"),
        ({"prompt": [ASKED, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "no prompt"),
        ({"prompt": [PICTURE], "chosen": [GOOD], "rejected": [BAD]}, "not text"),
        ({"prompt": "Why?", "images": ["x.png"], "chosen": "So.", "rejected": "No."}, "not text"),
        ({"prompt": [{"role": "user", "content": None}], "chosen": [GOOD], "rejected": [BAD]}, "not text"),
        (
            {"prompt": [ASKED], "chosen": [{"role": "assistant", "content": ["So."]}], "rejected": [BAD]},
            "not text",
        ),
        ({"prompt": "Why\ud800?", "chosen": "So.", "rejected": "No."}, "not valid Unicode"),
        ({"prompt": "Why?", "chosen": "\udfff", "rejected": "No."}, "not valid Unicode"),
        ({"prompt": "Why?", "chosen": 1, "rejected": "No."}, "unknown format"),
        ({"prompt": "Why?", "chosen": ["So."], "rejected": "No."}, "unknown format"),
        ({"prompt": 7, "chosen": "So.", "rejected": "No."}, "unknown format"),
        ({"prompt": "Why?", "chosen": "So."}, "unknown format"),
        ({"prompt": [ASKED], "chosen": [ASKED], "rejected": [ASKED]}, "unknown format"),
        (
            {"prompt": [ASKED], "chosen": [{"role": ["user"], "content": "x"}], "rejected": [BAD]},
            "unknown format",
        ),
        (
            {"prompt": [ASKED], "chosen": [{"role": "wizard", "content": "x"}], "rejected": [BAD]},
            "unknown format",
        ),
        ({"prompt": [ASKED], "chosen": [TOOL, GOOD], "rejected": [BAD]}, "unknown format"),
        ({"prompt": [ASKED], "chosen": [GOOD | {"tool_calls": [{}]}], "rejected": [BAD]}, "unknown format"),
        ({"chosen": [ASKED, GOOD, ASKED, BAD], "rejected": [ASKED, BAD, ASKED, GOOD]}, "unknown format"),
        ({"chosen": [ASKED, GOOD, ASKED, BAD], "rejected": [ASKED, BAD]}, "unknown format"),
        ({"prompt": [ASKED, ASKED], "chosen": [GOOD], "rejected": [BAD]}, "unknown format"),
        ({"prompt": [GOOD, ASKED], "chosen": [GOOD], "rejected": [BAD]}, "unknown format"),
        (
            {"chosen": [ASKED, GOOD], "rejected": [PICTURE | {"content": "How?"}, BAD]},
            "answers to different prompts",
        ),
        ({"chosen": [ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]}, "answers to different prompts"),
        ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [ASKED, BAD]}, "answers to different prompts"),
        ("a text", "unknown format"),
        (None, "unknown format"),
        ([], "unknown format"),
    ],
)
def test_an_odd_row_is_dropped_with_its_reason(tmp_path: Path, row: Any, reason: str) -> None:
    good = FORMS["text"]
    found = list(read_pairs(write(tmp_path / "p.jsonl", [good, row, good])))
    assert found[1] == Drop(row=1, stage="train", record_id="row-1", reason=reason)
    assert [p.row for p in found if isinstance(p, TextPair)] == [0, 2]


keys = st.sampled_from(["role", "content", "from", "value", "type", "text"])
words = st.sampled_from(
    ["user", "assistant", "system", "human", "text", "", "Why?", "So.", "\ud800", HH, HH + " So."]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
anything = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=3), max_leaves=8
)
columns = st.sampled_from(["prompt", "conversations", "chosen", "rejected", "margin", "p_chosen", "images"])
messages = st.lists(st.fixed_dictionaries({"role": words, "content": anything}), max_size=3)


@given(st.dictionaries(columns, anything | messages | words, min_size=2) | anything)
@settings(max_examples=400)
def test_no_row_stops_the_reader(row: Any) -> None:
    pair = pair_of(row, 3)
    assert pair.row == 3
    if isinstance(pair, TextPair):
        roles = [m.role for m in pair.messages if m.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert pair.chosen.strip() != pair.rejected.strip()
        "".join((pair.chosen, pair.rejected, *(m.content for m in pair.messages))).encode()


def test_a_huge_row_is_a_row(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": "x" * 20_000_000, "rejected": "No."}
    for name in ("p.jsonl", "p.json", "p.parquet"):
        (pair,) = read_pairs(write(tmp_path / name, [row]))
        assert isinstance(pair, TextPair)
        assert len(pair.chosen) == 20_000_000


def test_an_array_of_pairs_in_two_parts_is_trained_on_whole(tmp_path: Path) -> None:
    parts = [[FORMS["text"] | {"prompt": f"{i}.{k}"} for k in range(3)] for i in (0, 1)]
    (tmp_path / "p.json").write_text("\n".join(json.dumps(part) for part in parts))
    found = [p for p in read_pairs(str(tmp_path / "p.json")) if isinstance(p, TextPair)]
    assert [(p.row, p.messages[0].content) for p in found] == [
        (3 * i + k, f"{i}.{k}") for i in (0, 1) for k in range(3)
    ]


def test_nan_in_pairs_is_dropped_and_never_spelled(tmp_path: Path) -> None:
    rows = [FORMS["text"] | {key: math.nan} for key in ("prompt", "chosen", "rejected")]
    found = list(read_pairs(write(tmp_path / "p.jsonl", [FORMS["text"], *rows])))
    assert [drop.reason for drop in found if isinstance(drop, Drop)] == ["unknown format"] * 3
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\nWhy?,NaN,No.\nWhy?,nano,nan\nWhy?,NaN.,No.\n")
    drops = [drop.row for drop in read_pairs(str(tmp_path / "p.csv")) if isinstance(drop, Drop)]
    assert drops == [0, 1]  # "NaN." is a text
