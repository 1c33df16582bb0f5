"""Files and data sets of others: shards that are one set, and what is broken named."""

import gzip
import json
import math
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from sao.data.preferences import TextPair, read_pairs
from sao.data.readers import column_texts, content_identity, id_text
from sao.errors import DataError
from sao.records import Drop
from support.errors import raises
from support.pair_files import FORMS, GOOD, WHY, Row, write

zipped = partial(gzip.compress, mtime=0)
"""The same bytes at any time: they are part of a test's name, which has to be the same in all processes."""


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
        (
            "p.jsonl",
            b'{"a": 1, "b": 2, "a": 3}',
            r"jsonl, line 1: not JSON \(two values under the key 'a'",
        ),
        ("p.json", b'[{"a": 1},{"b": {"a": 1, "a": 3}}]', r"p\.json, item 1: .*two values under the key 'a'"),
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
        ("p.jsonl.gz", b"", r"p\.jsonl\.gz: no whole gzip file \(it is empty\)"),
        ("p.jsonl.gz", zipped(b'{"a": 1}\n' * 9000)[:-4], r"p\.jsonl\.gz: no whole gzip file"),
        ("p.json.gz", zipped(b"[" + b'{"a": 1},' * 9000)[:40], r"p\.json\.gz: no whole gzip file"),
        ("p.jsonl", zipped(b"{}"), r"p\.jsonl, line 1: this is a gzip file\. Add \.gz"),
        ("p.json", "[1]".encode("utf-16"), r"p\.json, line 1: this is UTF-16 text\. Convert it: iconv"),
        ("p.csv", "a,b".encode("utf-32"), r"p\.csv, line 1: this is UTF-32 text"),
        ("p.json", "[1]".encode("utf-16-le"), r"p\.json, line 1: holds NUL bytes.*UTF-16"),
        ("p.json", "[1]".encode("utf-16-be"), r"p\.json, line 1: holds NUL bytes.*UTF-16"),
        ("p.txt", b"PAR1", r"p\.txt, line 1: this is a Parquet file"),
        ("p.csv", b"chosen,chosen\na,b\n", r"p\.csv, line 1: two columns are named 'chosen'"),
        ("p.csv", b'[{"chosen": "a"}]', r"p\.csv, line 1: JSON and no names of columns\. Name the file"),
        ("p.csv", b"a,b\n1,2\na,b\n3,4\n", r"p\.csv, line 3: the names of the first line again"),
        ("p.json", b'{\n"a": 1\n}\n{\n"a"', r"p\.json, item 1: not JSON .*copy it again"),
        ("p.json", b'{\n"a": 1\n}\n[1]', r"p\.json, item 1: no object, but '\[1\]'"),
        ("p.arrow", b"ARROW1 and no more", r"p\.arrow: not a readable Arrow file"),
        ("p.arrow", b"no", r"p\.arrow: not a readable Arrow file"),
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
        with raises(DataError, key="Parquet", match="row 0"):
            list(read_pairs(str(tmp_path / "p.parquet")))
    (tmp_path / "p.parquet").write_bytes(whole[:2000] + b"\xff" * 3000 + whole[5000:])
    with raises(DataError, key="Parquet"):
        list(read_pairs(str(tmp_path / "p.parquet")))


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet"])
def test_a_file_of_something_else_names_its_columns(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"prompt": "Why?", "completion": "So.", "label": True}] * 2)
    with raises(
        DataError,
        key="pairs",
        match=r"'prompt', 'completion', 'label'.*`chosen` and\s+`rejected`",
    ):
        list(read_pairs(file))


def test_a_large_file_of_something_else_is_given_up_early(tmp_path: Path) -> None:
    seen: list[TextPair | Drop] = []
    with raises(DataError, key="pairs"):
        seen.extend(read_pairs(write(tmp_path / "p.jsonl", [{"text": "x"}] * 5000)))
    reader = read_pairs(str(tmp_path / "p.jsonl"))
    assert [next(reader).row for _ in range(100)] == list(range(100))
    with raises(DataError, key="pairs"):
        next(reader)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for name in ("p.jsonl", "p.parquet"):
        with raises(DataError, key="data file"):
            list(read_pairs(str(tmp_path / name)))
    with raises(DataError, key="data format"):
        list(read_pairs(str(tmp_path / "nowhere")))
    with raises(DataError, key="data folder", match=r"no train\.parquet.*it holds: nothing"):
        list(read_pairs(str(tmp_path)))
    write(tmp_path / "test.parquet", [FORMS["text"]])
    with raises(DataError, key="data folder", match=r"no train\.parquet.*it holds: test\.parquet"):
        list(read_pairs(str(tmp_path)))
    (tmp_path / "manifest.json").write_text("{}")
    with raises(DataError, key="data folder", match="sao export"):
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
        (["part.0.parquet", "part.2.parquet"], r"part\.1\.parquet is missing: the files are numbered"),
        (["train_0.parquet", "train_2.parquet"], r"train_1\.parquet is missing"),
        (["train_00000_of_00002.parquet"], r"train_00001_of_00002\.parquet is missing: .* 1 of 2 shards"),
        (["train.00001-of-00002.parquet"], r"train\.00000-of-00002\.parquet is missing"),
        (["file2of3.parquet", "file3of3.parquet"], r"file1of3\.parquet is missing"),
        (["train-00000-of-00002.PARQUET"], r"train-00001-of-00002\.PARQUET is missing"),
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
            with raises(DataError, key="shards") as caught:
                list(read_pairs(shards(folder, names)))
            assert f"{folder / copy}: looks like a copy of {name}.parquet" in str(caught.value)
            if "-of-" in name:  # the name of a shard that is not there: it may be of another set
                (folder / f"{place}{name}.parquet").unlink()
                with raises(DataError, key="shards", match="looks like a copy"):
                    list(read_pairs(str(folder)))


def test_a_copy_is_one_before_the_name_too(tmp_path: Path) -> None:
    with raises(
        DataError, key="shards", match=r"Copy of train\.parquet: looks like a copy of train\.parquet"
    ):
        list(read_pairs(shards(tmp_path, ["train.parquet", "Copy of train.parquet"])))
    with raises(
        DataError, key="shards", match=r"train \(1\)\.parquet: looks like a copy of train\.parquet.*rename it"
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


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("train", "train.jsonl", "two formats, train.parquet and train.jsonl"),
        ("train-00000-of-00001", "train-00001-of-00002.arrow", "two formats"),
        ("data/train", "data/train.csv.gz", "two formats"),
        ("a", "b.jsonl", "two formats, a.parquet and b.jsonl"),
        ("a", "b.parq", "two formats"),
        ("0000", "0001.parquet.crdownload", "not finished"),
        ("train", "train.parquet.aria2", "not finished"),
    ],
)
def test_rows_in_another_format_or_half_a_file_beside_are_refused(
    tmp_path: Path, name: str, other: str, message: str
) -> None:
    folder = shards(tmp_path, [f"{name}.parquet"])
    for harmless in ("README.md", "dataset_infos.json", ".train.parquet.swp", "notes.txt"):
        (tmp_path / harmless).write_text("x")
    assert len(list(read_pairs(folder))) == 1
    (tmp_path / other).write_text("x")
    with pytest.raises(DataError, match=message):
        list(read_pairs(folder))


# What `datasets` saves


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_saved_data_set_is_read(tmp_path: Path, n_shards: int) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [FORMS["messages"] | {"chosen": [GOOD | {"content": f"{i}"}]} for i in range(700)]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one", num_shards=n_shards)
    saved.select(range(5, 8)).save_to_disk(tmp_path / "part")
    both = datasets.DatasetDict(train=saved, test=saved.select([1]))
    both.save_to_disk(tmp_path / "both", num_shards={"train": n_shards, "test": 1})
    for folder, split, numbers in (
        ("one", "train", range(700)),
        ("part", "train", range(5, 8)),
        ("both", "train", range(700)),
        ("both", "test", [1]),
        ("both/test", "train", [1]),
    ):
        found = [p for p in read_pairs(str(tmp_path / folder), split=split) if isinstance(p, TextPair)]
        assert [pair.chosen for pair in found] == [str(number) for number in numbers]
    (tmp_path / "feather.arrow").write_bytes(b"")
    with pyarrow.ipc.new_file(tmp_path / "feather.arrow", pyarrow.Table.from_pylist(rows).schema) as file:
        file.write_table(pyarrow.Table.from_pylist(rows[:3]))
    assert len(list(read_pairs(str(tmp_path / "feather.arrow")))) == 3


def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list([FORMS["text"] | {"prompt": str(i)} for i in range(9)])

    def again() -> Path:
        datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "d", num_shards={"train": 2})
        return tmp_path / "d" / "train"

    def check(key: str, match: str, source: Path = tmp_path / "d", split: str = "train") -> None:
        with raises(DataError, key=key, match=match):
            list(read_pairs(str(source), split=split))

    first = again() / "data-00000-of-00002.arrow"
    check("data folder", r"no split test \(it holds: train\)", split="test")
    whole = first.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        first.write_bytes(whole[:size])
        check("Arrow", r"data-00000-of-00002\.arrow: not a readable Arrow file, from row 0 on")
    first.unlink()
    check("shards", r"data-00000-of-00002\.arrow is missing: .*state\.json names 2 files")
    (again() / "state.json").write_text("[]")
    check("data folder", r"state\.json: cannot be read")
    (again() / "state.json").unlink()
    check("data folder", r"state\.json is missing")
    check("data folder", r"state\.json is missing", tmp_path / "d" / "train")
    write(again() / "more.parquet", [FORMS["text"]])
    check("data folder", r"state\.json\) and more\.parquet")


def test_a_saved_data_set_is_known_by_its_content(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, prompt in (("a", "Why?"), ("b", "Why?"), ("c", "How?")):
        datasets.Dataset.from_list([FORMS["text"] | {"prompt": prompt}]).save_to_disk(tmp_path / name)
    a, b, c = (content_identity(str(tmp_path / name)) for name in "abc")
    assert a == b != c


# A .json file that is one object, or objects over several lines


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz"])
def test_rows_by_split_in_one_object(tmp_path: Path, indent: int | None, ending: str) -> None:
    def pairs(value: Any, split: str = "train") -> list[str]:
        content = json.dumps(value, indent=indent).encode()
        path = tmp_path / f"p{ending}"
        path.write_bytes(gzip.compress(content) if ending == ".json.gz" else content)
        return [p.messages[0].content for p in read_pairs(str(path), split=split) if isinstance(p, TextPair)]

    rows = [FORMS["text"] | {"prompt": str(number)} for number in range(3)]
    assert pairs({"train": rows}) == ["0", "1", "2"]
    assert pairs({"train": rows, "test": rows[:1]}, "test") == ["0"]
    assert pairs({"version": 2, "data": rows}) == ["0", "1", "2"]
    assert pairs(FORMS["implicit"]) == ["Why?"]  # a row, whatever lists it holds
    assert pairs(rows[1] | {"train": rows}) == ["1"]
    for several in ({"test": rows}, {"a": rows, "b": rows}):
        with raises(DataError, key="data file", match=rf"under {', '.join(several)}, but none under train"):
            pairs(several)


def test_objects_over_several_lines_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [FORMS["text"] | {"prompt": f"}} {{ {number}"} for number in range(3)]
    (tmp_path / "p.json").write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    for piece in (40, 1 << 20):
        monkeypatch.setattr("sao.data.text_files.CHUNK", piece)
        found = [p for p in read_pairs(str(tmp_path / "p.json")) if isinstance(p, TextPair)]
        assert [pair.messages[0].content for pair in found] == [row["prompt"] for row in rows]


def test_other_splits_are_checked_when_they_are_read(tmp_path: Path) -> None:
    folder = shards(
        tmp_path, ["train.parquet", "test-00001-of-00002.parquet", "dev.parquet", "dev (1).parquet"]
    )
    assert len(list(read_pairs(folder))) == 1
    with raises(DataError, key="shards", match=r"test-00000-of-00002\.parquet is missing"):
        list(read_pairs(folder, split="test"))
    with raises(DataError, key="shards", match=r"dev \(1\)\.parquet: looks like a copy of dev\.parquet"):
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
    with raises(
        DataError,
        key="personas.column",
        match=r"(line [23]|item 1|row 0): no text under the key 'persona', but NaN: put a text",
    ):
        list(column_texts(str(tmp_path / name), "persona", what="personas", section="personas"))


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
    with raises(DataError, key="revision"):
        list(read_pairs("some/set"))
    datasets = pytest.importorskip("datasets")

    def load_dataset(*args: Any, **options: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("no such set")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with raises(
        DataError,
        key="hub data set",
        match="some/set.*no such set",
    ):
        list(read_pairs("some/set", "abc123"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with raises(DataError, key="datasets", match="pip install datasets"):
        list(read_pairs("some/set", "abc123"))
