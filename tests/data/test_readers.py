"""Preference data sets of others: every form read alike, and what is broken named or dropped."""

import gzip
import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sao.config import PersonasConfig
from sao.data.preferences import TextPair, pair_of, read_pairs
from sao.data.readers import column_texts, content_identity, id_text, read_rows
from sao.errors import DataError
from sao.records import Drop, Message
from sao.stages.personas import read_personas

Row = dict[str, Any]
SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}
GOOD, BAD = {"role": "assistant", "content": "So."}, {"role": "assistant", "content": "No."}
WHY = (Message("user", "Why?"),)
HH = "\n\nHuman: Why?\n\nAssistant:"


def write(path: Path, rows: list[Any]) -> str:
    """The rows as .jsonl, .json (one array) or .parquet."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def sharegpt(message: dict[str, str]) -> dict[str, str]:
    names = {"user": "human", "assistant": "gpt"}
    return {"from": names.get(message["role"], message["role"]), "value": message["content"]}


def in_parts(message: dict[str, str]) -> Row:
    text = message["content"]
    return {
        "role": message["role"],
        "content": [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}],
    }


# The forms

FORMS: dict[str, Row] = {
    "messages": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "implicit": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "text": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "text and messages": {"prompt": "Why?", "chosen": [GOOD], "rejected": [BAD]},
    "HH": {"chosen": HH + " So.", "rejected": HH + " No."},
    "HH with a prompt": {"prompt": HH, "chosen": " So.", "rejected": " No."},
    "HH with a prompt repeated": {"prompt": HH, "chosen": HH + " So.", "rejected": HH + " No."},
    "UltraFeedback": {"prompt": "Why?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "prompt repeated as messages": {"prompt": [ASKED], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "ShareGPT": {"conversations": [sharegpt(ASKED)], "chosen": sharegpt(GOOD), "rejected": sharegpt(BAD)},
    "parts": {"prompt": [in_parts(ASKED)], "chosen": [in_parts(GOOD)], "rejected": [in_parts(BAD)]},
    "an empty system message": {
        "prompt": [{**SYSTEM, "content": " "}, ASKED],
        "chosen": [GOOD],
        "rejected": [BAD],
    },
}


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
@settings(deadline=None)
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
@settings(max_examples=400, deadline=None)
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


# Broken files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.jsonl",
            b'{"chosen": "a", "rejected": "b", "prompt": "c"}\n{"chosen": "a',
            r"p\.jsonl, line 2: not JSON",
        ),
        ("p.jsonl", b"[" * 200_000, r"p\.jsonl, line 1: not JSON"),
        ("p.jsonl", b"\n\n\xff\xfe{\n", r"p\.jsonl, line 3: not UTF-8 text .*iconv"),
        ("p.jsonl", b"", "it holds no rows"),
        ("p.json", b"[]", "it holds no rows"),
        ("p.json", b'[{"a": 1}, {"a"', r"p\.json, item 1: not JSON"),
        ("p.json", b'[{"a": 1} {"a": 2}]', r"p\.json, item 0: not JSON \(no comma after it\)"),
        ("p.json", b'[{"a": 1}', r"p\.json, item 0: not JSON \(the file ends after it\).*copy it again"),
        ("p.json", b'[{"a": 1},', r"p\.json, item 1: not JSON .*copy it again"),
        (
            "p.json",
            b'{"a": 1} {"a": 2}',
            r"line 1: not JSON \(after the end of the value stands '\{\"a\": 2\}'\).*a line",
        ),
        (
            "p.jsonl",
            b'{"a": 1}\n{"a": 2}{"a": 3}',
            r"p\.jsonl, line 2: not JSON \(after .* Write one record a line",
        ),
        (
            "p.jsonl",
            b'{"a": 1},\n{"a": 2},',
            r"p\.jsonl, line 1: not JSON \(after the end of the value stands ','\)",
        ),
        ("p.json", b'{"a": 1}\n[{"a": 2}]', r"p\.json, line 2: an array among records .*\.jsonl"),
        ("p.json", b'{"a": 1}\nand more', r"p\.json, line 2: not JSON"),
        ("p.json", b'["\xff"]', r"p\.json, item 0: not UTF-8"),
        ("p.json", b"[" * 200_000, r"p\.json, item 0: not UTF-8 text, or not JSON"),
        ("p.parquet", b"PAR1 and no more", r"p\.parquet: not a readable Parquet file"),
        ("p.parquet", b"", r"p\.parquet: not a readable Parquet file"),
        ("p.xlsx", b"chosen,rejected\n", r"p\.xlsx: no pairs here.*\.jsonl, \.json, \.csv, \.txt"),
        ("p.jsonl.gz", b"\x1f\x8b", r"p\.jsonl\.gz: no whole gzip file"),
        ("p.json.gz", b"no gzip", r"p\.json\.gz: no whole gzip file"),
        ("p.csv", b'chosen,rejected\na,"b', r"p\.csv, line 2: not CSV"),
        ("p.csv", b"chosen,rejected\na,b,c\n", r"p\.csv, line 2: 3 fields, but the first line names 2"),
        ("p.jsonl", b'{"chosen": "a\0"}', r"p\.jsonl, line 1: holds NUL bytes"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_pairs(str(tmp_path / name)))


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    whole = Path(
        write(tmp_path / "p.parquet", [FORMS["text"] | {"prompt": f"{i} {i * i}"} for i in range(5000)])
    ).read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "p.parquet").write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a readable Parquet file, from row 0"):
            list(read_pairs(str(tmp_path / "p.parquet")))
    (tmp_path / "p.parquet").write_bytes(whole[:2000] + b"\xff" * 3000 + whole[5000:])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(read_pairs(str(tmp_path / "p.parquet")))


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet"])
def test_a_file_of_something_else_names_its_columns(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"prompt": "Why?", "completion": "So.", "label": True}] * 2)
    with pytest.raises(
        DataError, match=r"'prompt', 'completion', 'label'.*`chosen` and\s+`rejected`.*Rename the columns"
    ):
        list(read_pairs(file))


def test_a_large_file_of_something_else_is_given_up_early(tmp_path: Path) -> None:
    seen = []
    with pytest.raises(DataError, match="no preference pairs"):
        seen.extend(read_pairs(write(tmp_path / "p.jsonl", [{"text": "x"}] * 5000)))
    reader = read_pairs(str(tmp_path / "p.jsonl"))
    assert [next(reader).row for _ in range(100)] == list(range(100))
    with pytest.raises(DataError):
        next(reader)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for name in ("p.jsonl", "p.parquet"):
        with pytest.raises(DataError, match="no such file of pairs"):
            list(read_pairs(str(tmp_path / name)))
    with pytest.raises(DataError, match="no pairs here"):
        list(read_pairs(str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=r"no train\.parquet.*it holds: nothing"):
        list(read_pairs(str(tmp_path)))
    write(tmp_path / "test.parquet", [FORMS["text"]])
    with pytest.raises(DataError, match=r"no train\.parquet.*it holds: test\.parquet"):
        list(read_pairs(str(tmp_path)))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="sao export"):
        list(read_pairs(str(tmp_path)))


@pytest.mark.parametrize(
    "names",
    [
        ("0000.parquet", "0001.parquet"),
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
    ],
)
def test_shards_are_one_set(tmp_path: Path, names: tuple[str, str]) -> None:
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [FORMS["text"] | {"prompt": f"{i}.{k}"} for k in range(300)])
    if "train" in names[0]:
        write(tmp_path / names[0].replace("train", "test"), [{"x": 1}])
    found = [p for p in read_pairs(str(tmp_path)) if isinstance(p, TextPair)]
    assert [p.row for p in found] == list(range(600))
    assert [p.messages[0].content for p in found] == [f"{i}.{k}" for i in (0, 1) for k in range(300)]


ONE, TWO = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"


def shards(folder: Path, names: list[str]) -> str:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        write(folder / name, [FORMS["text"] | {"prompt": name}])
    return str(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([ONE], r"train-00001-of-00002\.parquet is missing: the folder holds 1 of 2 shards"),
        ([TWO], r"train-00000-of-00002\.parquet is missing: the folder holds 1 of 2"),
        (
            ["train-00001-of-00003.parquet", "train-00003-of-00003.parquet"],
            r"train-00002-of-00003\.parquet is missing",
        ),
        ([f"data/{ONE}"], r"data: train-00001-of-00002\.parquet is missing"),
        ([ONE, f"data/{TWO}"], r"holds the split train twice"),
        (["train-00000-of-00002-0a1b2c3d4e5f6a7b.parquet"], r"train-00001-of-00002-\*\.parquet is missing"),
        (
            ["data-00000-of-00003.parquet", "data-00002-of-00003.parquet"],
            r"data-00001-of-00003\.parquet is missing",
        ),
        (["0000.parquet", "0002.parquet"], r"0001\.parquet is missing: the files are numbered up to 2"),
        (
            [ONE, TWO, "train-00000-of-00003.parquet"],
            r"shards of two sets, train-00000-of-00002\.parquet and train-00000-of-00003",
        ),
        (
            [ONE, "train-00001-of-00003.parquet"],
            r"shards of two sets, .*-of-00002\.parquet and .*-of-00003\.parquet",
        ),
        (
            [ONE, TWO, "train-00002-of-00002.parquet"],
            r"train-00002-of-00002\.parquet: no shard of a set of 2",
        ),
        (
            [
                "train-00000-of-00001-0a1b2c3d4e5f6a7b.parquet",
                "train-00000-of-00001-1a1b2c3d4e5f6a7b.parquet",
            ],
            r"two files for one shard, train-00000-of-00001-0a.* and train-00000-of-00001-1a",
        ),
        (
            ["train.parquet", ONE, TWO],
            r"holds the split train twice, as train\.parquet and as train-00000-of-00002",
        ),
        (
            ["train.parquet", "data/train-00000-of-00001.parquet"],
            r"holds the split train twice, .*data/train-00000",
        ),
    ],
)
def test_a_set_that_is_not_whole_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_pairs(shards(tmp_path, names)))


@pytest.mark.parametrize(
    "mark", [" (1)", "(2)", " - Copy", " - Copy (2)", " copy", " copy 2", " (copy)", " (another copy)",
    " (3rd copy)", "_copy",
             " - Kopie", " 2", " (1) (1)", " (Ann's conflicted copy 2024-05-01)"]
)  # fmt: skip
def test_a_copy_of_a_file_is_refused(tmp_path: Path, mark: str) -> None:
    for number, (name, others) in enumerate(
        [
            ("train", []),
            ("train-00000-of-00001", []),
            ("train-00000-of-00002", [TWO]),
            ("0000", ["0001.parquet"]),
        ]
    ):
        for place in ("", "data/") if name != "0000" else ("",):
            folder, copy = tmp_path / f"{number}{place}", f"{place}{name}{mark}.parquet"
            names = [f"{place}{name}.parquet", *(place + other for other in others), copy]
            with pytest.raises(DataError) as caught:
                list(read_pairs(shards(folder, names)))
            assert f"{folder / copy}: looks like a copy of {name}.parquet" in str(caught.value)
            if "-of-" in name:  # the name of a shard that is not there: it may be of another set
                (folder / f"{place}{name}.parquet").unlink()
                with pytest.raises(DataError, match="looks like a copy"):
                    list(read_pairs(str(folder)))


def test_a_copy_is_one_before_the_name_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Copy of train\.parquet: looks like a copy of train\.parquet"):
        list(read_pairs(shards(tmp_path, ["train.parquet", "Copy of train.parquet"])))
    with pytest.raises(
        DataError, match=r"train \(1\)\.parquet: looks like a copy of train\.parquet.*rename it"
    ):
        list(read_pairs(shards(tmp_path / "alone", ["train (1).parquet"])))


@pytest.mark.parametrize(
    "names",
    [
        ["data (1).parquet"],
        ["ad-copy.parquet", "web-copy.parquet"],
        ["part 1.parquet", "part 2.parquet"],
        ["2019.parquet", "2021.parquet"],
        ["train.parquet", "test (1).parquet", "test-00000-of-00002.parquet"],
        ["train-00001-of-00002.parquet", "train-00002-of-00002.parquet"],
        ["train-00000-of-00002-0a1b2c3d4e5f6a7b.parquet", "train-00001-of-00002-1a1b2c3d4e5f6a7b.parquet"],
        ["a-00000-of-00002.parquet", "a-00001-of-00002.parquet", "b-00000-of-00001.parquet"],
        ["train-a.parquet", "train-b.parquet"],
    ],
)
def test_names_that_are_whole_sets(tmp_path: Path, names: list[str]) -> None:
    found = [p.messages[0].content for p in read_pairs(shards(tmp_path, names)) if isinstance(p, TextPair)]
    assert found == [name for name in sorted(names) if not name.startswith("test")]


def test_other_splits_are_checked_when_they_are_read(tmp_path: Path) -> None:
    folder = shards(
        tmp_path, ["train.parquet", "test-00001-of-00002.parquet", "dev.parquet", "dev (1).parquet"]
    )
    assert len(list(read_pairs(folder))) == 1
    with pytest.raises(DataError, match=r"test-00000-of-00002\.parquet is missing"):
        list(read_pairs(folder, split="test"))
    with pytest.raises(DataError, match=r"dev \(1\)\.parquet: looks like a copy of dev\.parquet"):
        list(read_pairs(folder, split="dev"))


def test_a_file_that_the_user_names_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in (ONE, "train (1).parquet", "train-00000-of-00001 - Copy.parquet"):
        assert len(list(read_pairs(str(Path(shards(tmp_path, [name])) / name)))) == 1


def test_a_folders_identity_is_that_of_all_its_files(tmp_path: Path) -> None:
    short = content_identity(shards(tmp_path / "a", [ONE]))
    assert short == content_identity(str(tmp_path / "a" / ONE))
    whole = content_identity(shards(tmp_path / "a", [ONE, TWO]))
    assert whole != short
    assert whole == content_identity(shards(tmp_path / "elsewhere", [ONE, TWO]))


# A .json file of several arrays, or of an array and something else

RECORDS = [{"a": 0}, {"a": "], [{"}, {"a": [3.5, {"b": "ü"}]}]


def items(path: Path) -> list[Any]:
    return [row for _, row in read_rows(str(path), [], what="pairs", option="x")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 0}]\n[{"a": "], [{"}, {"a": [3.5, {"b": "ü"}]}]',
        '[{"a": 0}][{"a": "], [{"}][{"a": [3.5, {"b": "ü"}]}]',
        '[{"a": 0}, {"a": "], [{"}],[{"a": [3.5, {"b": "ü"}]}]\n\n',
        '[\n{"a": 0}\n]\n,\n[\n{"a": "], [{"},{"a": [3.5, {"b": "ü"}]}\n]',
        '[]\n[{"a": 0}, {"a": "], [{"}]\r\n[]\n[{"a": [3.5, {"b": "ü"}]}]',
        # two files joined, each with its mark
        '\ufeff [{"a": 0}]\n\ufeff[{"a": "], [{"}, {"a": [3.5, {"b": "ü"}]}]',
    ],
)
def test_arrays_of_records_are_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "p.json").write_text(text, "utf-8")
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(text.encode()))
    for piece in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr("sao.data.readers.CHUNK", piece)
        assert items(tmp_path / "p.json") == items(tmp_path / "p.json.gz") == RECORDS
    places = [place for place, _ in read_rows(str(tmp_path / "p.json"), [], what="pairs", option="x")]
    assert places == [f"{tmp_path / 'p.json'}, item {number}" for number in range(3)]


@given(
    arrays=st.lists(
        st.lists(st.dictionaries(texts, st.floats(allow_nan=False) | st.integers() | texts)), min_size=1
    ),
    between=st.sampled_from(["", ",", "\n", ",\n", " , ", "\ufeff"]),
    indent=st.none() | st.integers(0, 2),
    piece=st.integers(1, 40),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_in_any_layout_are_read_whole(
    tmp_path: Path, arrays: list[list[Row]], between: str, indent: int | None, piece: int
) -> None:
    (tmp_path / "p.json").write_text(
        between.join(json.dumps(array, indent=indent) for array in arrays), "utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sao.data.readers.CHUNK", piece)
        assert items(tmp_path / "p.json") == [row for array in arrays for row in array]


def test_numbers_that_cross_pieces_of_a_file_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [12345, -1.5, 2.5e-7, 1e300, 0]
    (tmp_path / "p.json").write_text("[12345,-1.5 , 2.5e-7,1E+300,0]")
    for piece in range(1, 32):
        monkeypatch.setattr("sao.data.readers.CHUNK", piece)
        assert items(tmp_path / "p.json") == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[{"a": 1}, {"a": 2}]\nand more',
            r"item 2: after the end of the array stands 'and more'\. Write .*\.jsonl",
        ),
        ('[{"a": 1}]]', r"item 1: after the end of the array stands '\]'"),
        ('[{"a": 1}]\n{"a": 2}\n', r"item 1: after the end of the array stands '\{\"a\": 2\}\\n'.*\.jsonl"),
        ('[{"a": 1}],', r"item 1: the file ends after a comma\. Copy it again"),
        ('[{"a": 1}],,[{"a": 2}]', r"item 1: after the end of the array stands ',\["),
        ('[{"a": 1}]\n[{"a": 2}, {"a"', r"item 2: not JSON .*copy it again"),
        ('[{"a": 1}]\n[', r"item 1: not JSON"),
        ('[{"a": 1}]\n["b"]', r"item 1: no record .*several arrays.* \.jsonl"),
        ('["a", "b"]\n["c"]', r"item 0: no record .*several arrays.* \.jsonl"),
        ("[1, 2]\n[]", r"item 0: no record .*several arrays"),
        ('[[{"a": 1}]]\n[[{"a": 2}]]', r"item 0: no record .*several arrays"),
        (
            '[{"role": "user", "content": "q"}]\n[{"a": 2}]',
            r"item 0: a chat message.*one row\. .*one record a line, as \.jsonl",
        ),
        (
            '[{"a": 1}],[{"from": "human", "value": "q"}]',
            r"item 1: a chat message, in a file of several arrays",
        ),
        ('[{"from": "human", "value": "q"}][{"from": "human", "value": "r"}]', r"item 0: a chat message"),
    ],
)
def test_what_follows_an_array_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "p.json").write_text(text)
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(text.encode()))
    for piece in (3, 1 << 20):
        monkeypatch.setattr("sao.data.readers.CHUNK", piece)
        for name in ("p.json", "p.json.gz"):
            with pytest.raises(DataError, match=message):
                items(tmp_path / name)


def test_one_array_of_anything_stays_what_it_is(tmp_path: Path) -> None:
    for rows in ([], ["a", "b"], [ASKED, GOOD], [[ASKED, GOOD], [ASKED, BAD]], [1, None]):
        (tmp_path / "p.json").write_text("\n " + json.dumps(rows) + " \n")
        assert items(tmp_path / "p.json") == rows


def test_an_array_behind_much_white_space_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sao.data.readers.CHUNK", 5)
    (tmp_path / "p.json").write_text("\n" * 50 + '[{"a": 1},{"a": 2}]', "utf-8-sig")
    assert items(tmp_path / "p.json") == [{"a": 1}, {"a": 2}]


def test_an_array_of_pairs_in_two_parts_is_trained_on_whole(tmp_path: Path) -> None:
    parts = [[FORMS["text"] | {"prompt": f"{i}.{k}"} for k in range(3)] for i in (0, 1)]
    (tmp_path / "p.json").write_text("\n".join(json.dumps(part) for part in parts))
    found = [p for p in read_pairs(str(tmp_path / "p.json")) if isinstance(p, TextPair)]
    assert [(p.row, p.messages[0].content) for p in found] == [
        (3 * i + k, f"{i}.{k}") for i in (0, 1) for k in range(3)
    ]


def test_memory_stays_flat(tmp_path: Path) -> None:
    def peak(rows: int, name: str) -> int:
        row = json.dumps({"prompt": "Why?", "chosen": "so " * 300, "rejected": "no " * 300})
        text = f"{row}\n" * rows
        if name.endswith(".json"):
            half = f"[{','.join([row] * (rows // 2))}]"
            text = half + half if name == "two.json" else f"[{','.join([row] * rows)}]"
        (tmp_path / name).write_text(text)
        tracemalloc.start()
        assert sum(isinstance(pair, TextPair) for pair in read_pairs(str(tmp_path / name))) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    for name in ("p.jsonl", "p.json", "two.json"):
        assert peak(8000, name) < peak(4000, name) + 100_000


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, text in (("p.jsonl", json.dumps(FORMS["text"])), ("p.json", json.dumps([FORMS["text"]]))):
        (tmp_path / name).write_text(text, "utf-8-sig")
        assert isinstance(next(read_pairs(str(tmp_path / name))), TextPair)


# What stands where a text or an id should


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.parquet"])
def test_nan_is_no_text_of_a_column(tmp_path: Path, name: str) -> None:
    rows: list[Row] = [{"persona": "a baker"}, {"persona": math.nan}]
    if name == "p.csv":
        (tmp_path / name).write_text("id,persona\n1,a baker\n2,nan\n")
    elif name == "p.parquet":
        write(tmp_path / name, rows[1:])  # a column of Parquet has one type
    else:
        write(tmp_path / name, rows)
    with pytest.raises(
        DataError, match=r"(line [23]|item 1|row 0): no text under the key 'persona', but NaN: put a text"
    ):
        list(column_texts(str(tmp_path / name), "persona", what="personas", section="personas"))


def test_nan_in_pairs_is_dropped_and_never_spelled(tmp_path: Path) -> None:
    rows = [FORMS["text"] | {key: math.nan} for key in ("prompt", "chosen", "rejected")]
    found = list(read_pairs(write(tmp_path / "p.jsonl", [FORMS["text"], *rows])))
    assert [drop.reason for drop in found if isinstance(drop, Drop)] == ["unknown format"] * 3
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\nWhy?,NaN,No.\nWhy?,nano,nan\nWhy?,NaN.,No.\n")
    drops = [drop.row for drop in read_pairs(str(tmp_path / "p.csv")) if isinstance(drop, Drop)]
    assert drops == [0, 1]  # "NaN." is a text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (81, "81"), (81.0, "81"), ("81", "81"), ("81.0", "81"), (-3.0, "-3"), (0, "0"), (0.5, "0.5"), ("a.0",
        "a.0"),
        ("1.05", "1.05"), (10**400, str(10**400)), (1e22, "10000000000000000000000"), ("", ""), (None, ""),
        (math.nan, ""),
        (math.inf, ""), (True, ""), ([81], ""), ({"id": 81}, ""),
    ],
)  # fmt: skip
def test_ids_that_are_the_same(value: Any, text: str) -> None:
    assert id_text(value) == text


# The hub


def test_a_hub_set_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        rows = [FORMS["implicit"] | {"score_chosen": 1.0}, FORMS["implicit"] | {"rejected": None}]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pair, drop = read_pairs("some/set", "abc123", "small", "train_prefs")
    assert isinstance(pair, TextPair)
    assert (pair.messages, pair.chosen, pair.rejected) == (WHY, "So.", "No.")
    assert drop == Drop(row=1, stage="train", record_id="row-1", reason="empty answer")
    assert asked == [
        (("some/set", "small"), {"revision": "abc123", "split": "train_prefs", "streaming": True})
    ]


def test_a_hub_set_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="give its revision too"):
        list(read_pairs("some/set"))
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args: Any, **options: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("no such set")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"some/set: cannot be read from the hub \(DatasetNotFoundError: no such set\)"
    ):
        list(read_pairs("some/set", "abc123"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        list(read_pairs("some/set", "abc123"))


# Personas come through the same reader


def test_personas_of_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"persona": "a baker"}, {"persona": None}, {"persona": "a smith"}]
    for name in ("p.jsonl", "p.json", "p.parquet"):
        config = PersonasConfig(source=write(tmp_path / name, rows), n=2, held_out=0, sample="first")
        assert [p.text for p in read_personas(config, 0)] == ["a baker", "a smith"]
    with pytest.raises(
        DataError, match=r"p\.parquet, row 0: no text under the key 'x' \(it holds: persona\)"
    ):
        list(read_personas(PersonasConfig(source=str(tmp_path / "p.parquet"), column="x", n=1), 0))
    with pytest.raises(DataError, match="a folder"):
        list(read_personas(PersonasConfig(source=str(tmp_path), n=1), 0))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: iter(rows))
    config = PersonasConfig(source="some/set", revision="abc123", n=2, held_out=0, sample="first")
    assert [p.text for p in read_personas(config, 0)] == ["a baker", "a smith"]
