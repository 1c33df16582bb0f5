"""Evaluation sets: how they are named, pinned and read, and what counts as an item."""

import csv
import gzip
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sao.data import contamination_sets
from sao.data.contamination_sets import (
    PRESETS,
    Source,
    load_benchmarks,
    on_disk,
    parse_source,
    source_identity,
)
from sao.errors import ConfigError, DataError
from support.errors import raises
from support.made_up import TEN


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Naming sets


def test_the_presets_are_pinned() -> None:
    asked = (
        "alpaca_eval mt_bench arena_hard gsm8k truthfulqa hellaswag winogrande arc mmlu ifeval humaneval mbpp"
    )
    assert set(asked.split()) <= set(PRESETS)
    for name in PRESETS:
        source = parse_source(name)
        assert source.name == name
        assert len(source.revision or "") == 40
        assert source.path.count("/") == 1
        again = parse_source(str(source))
        assert (again.path, again.revision, again.subset, again.split, again.file) == (
            source.path, source.revision, source.subset, source.split, source.file,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("gsm8k@v1", Source(name="gsm8k", path="openai/gsm8k", revision="v1", subset="main",
        column="question")),
        ("gsm8k=x/y.jsonl#q", Source(name="gsm8k", path="x/y.jsonl", column="q")),
        ("mine=x.csv", Source(name="mine", path="x.csv")),
        ("data/x.jsonl#ask", Source(name="x.jsonl", path="data/x.jsonl", column="ask")),
        ("some/set@abc", Source(name="some/set", path="some/set", revision="abc")),
        ("some/set@abc:sub:dev", Source(name="some/set", path="some/set", revision="abc", subset="sub",
        split="dev")),
        ("some/set@abc::dev", Source(name="some/set", path="some/set", revision="abc", split="dev")),
        ("some/set@abc:a/b.jsonl", Source(name="some/set", path="some/set", revision="abc",
        file="a/b.jsonl")),
        ("some/set", Source(name="set", path="some/set")),
    ],
)  # fmt: skip
def test_how_sets_are_named(given: str, found: Source) -> None:
    assert parse_source(given) == found


def test_unknown_names_list_the_presets() -> None:
    with raises(
        ConfigError,
        key="evaluation set",
        match="gsm9k.*alpaca_eval.*ID@REVISION",
    ):
        parse_source("gsm9k")


def test_a_file_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a#b.jsonl", "a=b.jsonl", "a@b.jsonl", "gsm8k"):
        Path(name).write_text('"text"\n')
        assert parse_source(name) == Source(name=name, path=name)


def test_hub_sets_need_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with raises(DataError, key="revision", match="@REVISION"):
        load_benchmarks(["some/set"])


# Reading sets


def test_hub_sets_are_read_as_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def rows(path: str, columns: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        asked.append((path, list(columns), options["revision"], options["subset"], options["split"]))
        return iter([("row 0", {"question": TEN})])

    monkeypatch.setattr(contamination_sets, "read_rows", rows)
    found = load_benchmarks(["some/set@abc:sub:dev#question", "mmlu"])
    assert asked[0] == ("some/set", ["question"], "abc", "sub", "dev")
    assert asked[1][::2] == ("cais/mmlu", parse_source("mmlu").revision, "test")
    assert [b.source for b in found] == ["some/set@abc:sub:dev", f"cais/mmlu@{asked[1][2]}:all:test"]


def test_one_file_of_a_hub_set_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "got.json").write_text(json.dumps([{"instruction": TEN, "output": "x"}]))
    asked: list[Any] = []

    def fetch(*place: str, **options: str) -> str:
        asked.append((*place, *options.values()))
        if len(asked) > 1:
            raise OSError("no network")
        return str(tmp_path / "got.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    (found,) = load_benchmarks(["alpaca_eval"])
    assert asked == [
        ("tatsu-lab/alpaca_eval", "alpaca_eval.json", "dataset", parse_source("alpaca_eval").revision)
    ]
    assert (found.name, found.items) == ("alpaca_eval", [("0", TEN)])
    with raises(
        DataError,
        key="evaluation set",
        match=r"arena-hard-v2\.0/question\.jsonl.*arena_hard=FILE",
    ):
        load_benchmarks(["arena_hard"])
    assert on_disk(Source(name="x", path="x.jsonl")) == Source(name="x", path="x.jsonl")


def test_files_of_all_kinds(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": "7", "question": TEN}, {"id": "8", "question": "What is it, then?"}]
    items = [("0", TEN), ("1", "What is it, then?")]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "question"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("\n".join(row["question"] for row in rows))
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    found = load_benchmarks(str(path) for path in sorted(tmp_path.iterdir()))
    assert [b.items for b in found] == [items] * 6
    assert len({b.digest for b in found}) == 1
    assert [b.name for b in found] == ["a.jsonl", "b.json", "c.csv", "d.parquet", "e.txt", "f.jsonl.gz"]


def test_a_preset_from_a_file_and_sets_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    one = write_rows(
        tmp_path / "test.jsonl", [{"prompt": ["first turn here", "second turn here"], "category": "x"}]
    )
    two = write_rows(tmp_path / "x" / "test.jsonl", [{"question": TEN}])
    found = load_benchmarks([f"mt_bench={one}", one, two, two])
    assert [b.name for b in found] == ["mt_bench", "test.jsonl", two]
    assert found[0].items == [("0.1", "first turn here"), ("0.2", "second turn here")]
    assert found[0].source == one


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"Question": "ask", "Type": "x"}, ["ask"]),
        ({"prompt": "second", "instruction": "first"}, ["first"]),
        ({"instruction": "", "prompt": "ask"}, ["ask"]),
        ({"turns": [{"content": "a b"}, {"content": "c d"}]}, ["a b", "c d"]),
        (
            {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "told"}]},
            ["ask"],
        ),
        ({"content": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "told"}]}, ["ask"]),
        ({"messages": {"role": "user", "content": [{"type": "text", "text": "ask"}]}}, ["ask"]),
        ({"turns": [{"role": None, "content": None, "from": "human", "value": "ask"}]}, ["ask"]),
        ({"prompt": "\n\nHuman: ask\n\nAssistant: told\n\nHuman: more\n\nAssistant:"}, ["ask", "more"]),
        ({"question": None}, []),
        ({"question": " "}, []),
        ("a line", ["a line"]),
        ("  ", []),
    ],
)
def test_where_the_question_stands(tmp_path: Path, row: Any, texts: list[str]) -> None:
    place = write_rows(
        tmp_path / "x.jsonl", [{"question": "the first"} if isinstance(row, dict) else "the first", row]
    )
    (found,) = load_benchmarks([place])
    assert [text for _, text in found.items] == ["the first", *texts]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": math.nan}, "but NaN under question"),
        ({"question": 0}, "but a number under question"),
        ({"question": False}, "but false under question"),
        ({"turns": ["a", math.nan]}, "but NaN under turns"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 3}]},
            "but a number under messages",
        ),
        ({"messages": [{"role": "assistant", "content": "told"}]}, "it holds: messages"),
        ({"messages": [{"role": "tool", "content": "42"}]}, "it holds: messages"),
        ({"question": {"text": "a"}}, "but an object under question"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "but a list under messages",
        ),
    ],
)
def test_what_is_no_text_is_no_item(tmp_path: Path, row: Any, message: str) -> None:
    with raises(DataError, key="evaluation set", match=f"line 2: no text under .*{message}"):
        load_benchmarks([write_rows(tmp_path / "x.jsonl", [{"question": "the first"}, row])])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_missing_columns_are_named(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"x.{kind}"
    rows = [{"ask": TEN, "level": 3}]
    if kind == "jsonl":
        write_rows(path, rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with raises(
        DataError,
        key="evaluation set",
        match="it holds: ask, level.*SET#COLUMN",
    ):
        load_benchmarks([str(path)])
    with raises(DataError, key="evaluation set", match=r"question \(it holds: ask, level\)"):
        load_benchmarks([f"{path}#question"])
    with raises(DataError, key="evaluation set", match="level"):
        load_benchmarks([f"{path}#level"])
    assert load_benchmarks([f"{path}#ask"])[0].items == [("0", TEN)]


def test_sets_without_items_and_rows_that_are_none(tmp_path: Path) -> None:
    with raises(DataError, key="evaluation set", match="holds no"):
        load_benchmarks([write_rows(tmp_path / "x.jsonl", [{"question": ""}])])
    with raises(DataError, key="evaluation set", match="line 1.*it holds: int"):
        load_benchmarks([write_rows(tmp_path / "y.jsonl", [3])])
    with raises(DataError, key="data file"):
        load_benchmarks([str(tmp_path / "none.jsonl")])


def test_the_identity_follows_what_is_in_a_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"question": TEN}])
    before = source_identity(path)
    assert before == source_identity(f"gsm8k={path}") != path
    assert source_identity(f"{path}#question") == before + "#question"
    write_rows(tmp_path / "x.jsonl", [{"question": "other"}])
    assert source_identity(f"gsm8k={path}") != before
    assert source_identity("gsm8k") == PRESETS["gsm8k"]
