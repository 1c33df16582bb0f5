"""Data files of others, whole and broken: is what breaks them noticed?

    PYTHONPATH=src python benchmarks/fuzz_data.py --seed 0 --n 500

Each of the n cases is a small valid file or folder: rows of one sort (preference pairs, questions, answers,
verdicts, personas, evaluation items) in one layout that SAO reads. It is read, changed in one way that breaks
it, and read again. What came of it is counted for each kind of change:

    same      the rows are those of the whole file
    error     an error of SAO that names the file
    dropped   the rows that were changed are left out, each with a reason, and all others are the same
    warning   a warning that names the file
    fault     a traceback, an error that names no file, or other rows without a word

Left out are changes that no reader can notice: a file that ends between two rows, a field of a .csv that is
cut short, the last one of files that are only numbered, a row that stands twice where nothing says that it
should not. Prints the faults, and one JSON line last; exits with 1 where there is a fault.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import math
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sao.data.contamination_sets import load_benchmarks
from sao.data.preferences import TextPair, read_pairs
from sao.data.readers import column_texts
from sao.errors import SAOError
from sao.evaluation.alpaca_files import read_annotations
from sao.evaluation.questions import question_of, read_answers, read_questions

Row = dict[str, Any]
Read = list[Any]
"""What was read of each row, comparable; None for a row that was left out with a reason."""
OUTCOMES = ("same", "error", "dropped", "warning", "fault")
WORDS = ["a", "why", "é", "naïve", "数", '"quoted"', "], [", "}{", "\\", "line\nbreak", "1,5", "[[A]]", "😀"]
WRONG: list[Any] = [7, 2.5, math.nan, math.inf, True, {"x": 1}, [1], [math.nan], {"text": 3}]
"""What may stand in the place of a text or of messages."""
N_ROWS = 6
OTHER = {"train": "test", "test": "train"}
"""Of a split, the other one that lies beside it."""


# The sorts of rows


@dataclass(frozen=True)
class Sort:
    """A sort of rows: how they are made, how SAO reads them, and the columns that it needs."""

    rows: Callable[[random.Random], list[Row]]
    read: Callable[[Path, list[Row]], Read]
    needs: tuple[str, ...]
    row_is_once: bool = False
    """Whether a row that stands twice counts once."""
    flat: bool = True
    """Whether .csv can hold the rows: texts and ids only."""
    split: str = "train"
    """The split that SAO reads where none is named."""


def text(rng: random.Random, number: int) -> str:
    """A text of a few words, which no other row has; the letters are not all ASCII."""
    return " ".join([f"é{number}", *rng.choices(WORDS, k=rng.randint(1, 5)), str(rng.randrange(10**6))])


def chat_pairs(rng: random.Random) -> list[Row]:
    """Pairs of messages in one of the forms."""

    def said(role: str, number: int) -> Row:
        return {"role": role, "content": text(rng, number)}

    form, rows = rng.choice(("trl", "implicit", "axolotl", "sharegpt")), []
    for number in range(N_ROWS):
        asked, good, bad = (said(role, number) for role in ("user", "assistant", "assistant"))
        if form == "trl":
            rows.append({"prompt": [asked], "chosen": [good], "rejected": [bad]})
        elif form == "implicit":
            rows.append({"chosen": [asked, good], "rejected": [asked, bad]})
        elif form == "axolotl":
            rows.append({"messages": [asked], "chosen": good, "rejected": bad})
        else:
            turn = {"from": "human", "value": asked["content"]}
            rows.append({"conversations": [turn], "chosen": good, "rejected": bad})
    return rows


def texts_under(*keys: str) -> Callable[[random.Random], list[Row]]:
    """Rows with a text under each key; under question_id stands a number."""

    def rows(rng: random.Random) -> list[Row]:
        return [
            {key: 81 + number if key == "question_id" else text(rng, number) for key in keys}
            for number in range(N_ROWS)
        ]

    return rows


def verdicts(rng: random.Random) -> list[Row]:
    """Rows of annotations.json."""
    keys = ("instruction", "output_1", "generator_1", "output_2", "generator_2")
    return [row | {"preference": rng.choice((1.0, 1.5, 2.0, 1.25))} for row in texts_under(*keys)(rng)]


def pairs_in(path: Path, rows: list[Row]) -> Read:
    """Pairs as (chat, chosen, rejected)."""
    found = read_pairs(str(path))
    return [(p.messages, p.chosen, p.rejected) if isinstance(p, TextPair) else None for p in found]


def answers_in(path: Path, rows: list[Row]) -> Read:
    """The answers to the questions of these rows; those without a text are known by their number."""
    asked = [
        question_of([row.get("instruction", f"question {n}")], n, key=str(81 + n))
        for n, row in enumerate(rows)
    ]
    found = read_answers(str(path), asked)
    return [[answer.text for answer in found[question.prompt.id]] for question in asked]


def verdicts_in(path: Path, rows: list[Row]) -> Read:
    """Annotations; an unparseable verdict is counted as such everywhere, so it is left out with a reason."""
    return [
        None if a.p is None else (a.instruction, a.output_1, a.output_2, a.p)
        for a in read_annotations(str(path))
    ]


def personas_in(path: Path, rows: list[Row]) -> Read:
    """The personas, each once."""
    return list(dict.fromkeys(column_texts(str(path), "persona", what="personas", section="personas")))


SORTS = {
    "pairs of texts": Sort(
        texts_under("prompt", "chosen", "rejected"), pairs_in, ("prompt", "chosen", "rejected")
    ),
    "pairs of messages": Sort(
        chat_pairs, pairs_in, ("prompt", "messages", "conversations", "chosen", "rejected"), flat=False
    ),
    "questions": Sort(
        texts_under("question_id", "prompt"),
        lambda path, rows: [(q.prompt.text, q.key) for q in read_questions(str(path))],
        ("prompt",),
        row_is_once=True,
    ),
    "answers": Sort(
        texts_under("instruction", "output"), answers_in, ("instruction", "output"), row_is_once=True
    ),
    "answers by number": Sort(
        texts_under("question_id", "output"), answers_in, ("question_id", "output"), row_is_once=True
    ),
    "verdicts": Sort(
        verdicts, verdicts_in,
        ("instruction", "output_1", "generator_1", "output_2", "generator_2", "preference"),
        flat=False,
    ),
    "personas": Sort(texts_under("id", "persona"), personas_in, ("persona",), row_is_once=True),
    "evaluation items": Sort(
        texts_under("id", "question"),
        lambda path, rows: list(load_benchmarks([f"items={path}"])[0].items),
        ("question",),
        split="test",
    ),
}  # fmt: skip


# The layouts of files


def lines(rows: list[Row]) -> str:
    """A record a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def array(rows: list[Row]) -> str:
    """One array."""
    return json.dumps(rows, ensure_ascii=False)


def arrays(rows: list[Row]) -> str:
    """Two arrays."""
    return array(rows[:2]) + "\n" + array(rows[2:])


def objects(rows: list[Row]) -> str:
    """Objects over several lines."""
    return "\n".join(json.dumps(row, ensure_ascii=False, indent=1) for row in rows)


def by_split(rows: list[Row], split: str = "train") -> str:
    """One object with the rows of each split."""
    return json.dumps({split: rows, OTHER[split]: rows[:1]}, ensure_ascii=False, indent=2)


def table(rows: list[Row]) -> str:
    """CSV with the names first."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


TEXTS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "lines": (".jsonl", lines),
    "array": (".json", array),
    "two arrays": (".json", arrays),
    "objects": (".json", objects),
    "by split": (".json", by_split),
    "table": (".csv", table),
    "lines, gzip": (".jsonl.gz", lines),
    "array, gzip": (".json.gz", array),
    "table, gzip": (".csv.gz", table),
}
COLUMNAR = ("parquet", "arrow", "shards", "numbered", "saved", "saved splits")
LAYOUTS = (*TEXTS, *COLUMNAR)


def as_text(layout: str, rows: list[Row], split: str) -> str:
    """The rows in a layout of text."""
    return by_split(rows, split) if layout == "by split" else TEXTS[layout][1](rows)


def write_text(path: Path, content: bytes) -> Path:
    """The content as a file, packed where its name says so."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write(folder: Path, layout: str, rows: list[Row], split: str) -> Path:
    """The rows in a layout; the file or folder that a user would name."""
    if layout in TEXTS:
        content = as_text(layout, rows, split).encode()
        return write_text(folder / f"rows{TEXTS[layout][0]}", content)
    whole = pyarrow.Table.from_pylist(rows)
    third = max(1, len(rows) // 3)
    parts = [whole.slice(0, third), whole.slice(third, third), whole.slice(2 * third)]
    match layout:
        case "parquet":
            pyarrow.parquet.write_table(whole, folder / "rows.parquet")
            return folder / "rows.parquet"
        case "arrow":
            return write_arrow(folder / "rows.arrow", whole)
        case "shards" | "numbered":
            for number, part in enumerate(parts):
                name = f"{split}-{number:05}-of-00003" if layout == "shards" else f"part.{number}"
                pyarrow.parquet.write_table(part, folder / f"{name}.parquet")
            return folder
        case "saved splits":
            (folder / "dataset_dict.json").write_text(json.dumps({"splits": sorted(OTHER)}))
            save(folder / OTHER[split], parts[:1])
            save(folder / split, parts)
            return folder
    return save(folder, parts)


def write_arrow(path: Path, rows: pyarrow.Table) -> Path:
    """An Arrow stream, as `datasets` writes it."""
    with pyarrow.ipc.new_stream(path, rows.schema) as file:
        file.write_table(rows)
    return path


def save(folder: Path, parts: Sequence[pyarrow.Table]) -> Path:
    """A folder as `Dataset.save_to_disk` writes it."""
    folder.mkdir(exist_ok=True)
    names = [f"data-{number:05}-of-{len(parts):05}.arrow" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_arrow(folder / name, part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


# The changes


@dataclass(frozen=True)
class Case:
    """A valid file or folder, in a folder of its own."""

    sort: Sort
    layout: str
    rows: list[Row]
    folder: Path
    source: Path
    rng: random.Random

    def files(self) -> list[Path]:
        """The files that hold rows that are read."""
        found = sorted(path for path in self.folder.rglob("*.*") if path.suffix in (".parquet", ".arrow"))
        if self.layout in TEXTS:
            return [self.source]
        return [path for path in found if path.parent.name != OTHER[self.sort.split]]

    def again(self, rows: list[Row]) -> Path:
        """Other rows in the same layout."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        return write(self.folder, self.layout, rows, self.sort.split)

    def text(self) -> str:
        """The whole content of a file of text."""
        return as_text(self.layout, self.rows, self.sort.split)


def file_dropped(case: Case) -> Path | None:
    """One of several files is deleted: of files that are only numbered one from the middle."""
    files = case.files()
    if len(files) < 2:
        return None
    (files[1] if case.layout == "numbered" else case.rng.choice(files)).unlink()
    return case.source


def list_dropped(case: Case) -> Path | None:
    """The list of the files of a saved data set is deleted, or its last half."""
    if not case.layout.startswith("saved"):
        return None
    path = case.files()[0].with_name("state.json")
    if case.rng.random() < 0.5:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return case.source


def file_copied(case: Case) -> Path | None:
    """A file lies there twice, as browsers and file managers name a copy, or as a half download."""
    if case.layout not in ("shards", "numbered"):
        return None
    file = case.rng.choice(case.files())
    name = case.rng.choice(
        (f"{file.stem} (1)", f"{file.stem} - Copy", f"Copy of {file.stem}", f"{file.stem}_copy")
    )
    target = case.rng.choice((f"{name}.parquet", f"{file.name}.crdownload", f"{file.name}.part"))
    shutil.copy(file, file.with_name(target))
    return case.source


def other_format(case: Case) -> Path | None:
    """The same rows lie beside in another format."""
    if case.layout not in ("shards", "numbered"):
        return None
    name = case.rng.choice((".jsonl", "-00000-of-00001.csv", ".arrow", ".jsonl.gz"))
    (case.folder / f"{case.sort.split}{name}").write_text(lines(case.rows), "utf-8")
    return case.source


def bytes_cut(case: Case) -> Path | None:
    """A Parquet, Arrow or gzip file ends early."""
    file = case.rng.choice(case.files())
    if file.suffix not in (".parquet", ".arrow", ".gz"):
        return None
    content = file.read_bytes()
    file.write_bytes(content[: case.rng.choice((0, len(content) - 1, case.rng.randrange(len(content))))])
    return case.source


def bytes_changed(case: Case) -> Path | None:
    """Bytes of a gzip file are others (Parquet and Arrow have no checksum by default), or more follow."""
    if case.source.suffix != ".gz":
        return None
    content = bytearray(case.source.read_bytes())
    place = case.rng.randrange(20, len(content))
    content[place] ^= 1 << case.rng.randrange(8)
    case.source.write_bytes(bytes(content) + case.rng.choice((b"", b"more")))
    return case.source


def json_cut(case: Case) -> Path | None:
    """A JSON file ends within a record, packed or not."""
    if case.layout not in TEXTS or "table" in case.layout:
        return None
    whole = case.text().strip()
    for _ in range(100):
        part = whole[: case.rng.randrange(1, len(whole))]
        if not part.rstrip().endswith(("}", "]")):  # else it may end between two records
            return write_text(case.source, part.encode())
    return None


def type_changed(case: Case) -> Path | None:
    """A needed value is of another type in one row, in files of columns in all."""
    key = case.rng.choice([key for key in case.sort.needs if key in case.rows[0]])
    if "table" in case.layout:
        wrong: Any = "nan"
    else:
        wrong = case.rng.choice([math.nan, True, 2.5, 7] if case.layout in COLUMNAR else WRONG)
    changed = range(len(case.rows)) if case.layout in COLUMNAR else [case.rng.randrange(len(case.rows))]
    if key == "preference" and wrong == 2.5:
        return None
    return case.again([row | {key: wrong} if n in changed else row for n, row in enumerate(case.rows)])


def key_renamed(case: Case) -> Path | None:
    """A needed column has another name: in one row, in files of columns in all."""
    key = case.rng.choice([key for key in case.sort.needs if key in case.rows[0]])
    name = case.rng.choice((f" {key}", f"{key}_", key.upper(), "x"))
    by_column = case.layout in COLUMNAR or "table" in case.layout
    changed = range(len(case.rows)) if by_column else [case.rng.randrange(len(case.rows))]
    return case.again(
        [
            {name if k == key else k: value for k, value in row.items()} if number in changed else row
            for number, row in enumerate(case.rows)
        ]
    )


def shard_changed(case: Case) -> Path | None:
    """One of several Parquet files lacks a needed column, or is empty."""
    if case.layout not in ("shards", "numbered"):
        return None
    file = case.rng.choice(case.files())
    key = case.rng.choice([key for key in case.sort.needs if key in case.rows[0]])
    rows = pyarrow.parquet.read_table(file)
    names = ["x" if name == key else name for name in rows.column_names]
    pyarrow.parquet.write_table(rows.rename_columns(names), file)
    if case.rng.random() < 0.3:
        file.write_bytes(b"")
    return case.source


def message_changed(case: Case) -> Path | None:
    """A message in a row has another key, no role, an unknown role, or no text."""
    if case.sort.flat or case.layout in COLUMNAR or "preference" in case.rows[0]:
        return None
    rows = json.loads(json.dumps(case.rows))
    found = case.rng.choice(list(case.rng.choice(rows).values()))
    message = case.rng.choice(found) if isinstance(found, list) else found
    inner = case.rng.choice(list(message))
    value = message.pop(inner)
    if case.rng.random() < 0.5:
        message[f"{inner}_"] = value
    elif case.rng.random() < 0.7:
        message[inner] = case.rng.choice((*WRONG, "wizard" if inner in ("role", "from") else None))
    return case.again(rows)


def key_doubled(case: Case) -> Path | None:
    """A record of JSON has two values under one key."""
    if case.layout not in TEXTS or "table" in case.layout:
        return None
    key = case.rng.choice([key for key in case.sort.needs if key in case.rows[0]])
    more = f'"{key}": {json.dumps(case.rng.choice(WRONG))}, "{key}":'
    whole = case.text()
    places = [n for n in range(len(whole)) if whole.startswith(f'"{key}":', n)]
    place = case.rng.choice(places)
    if case.layout == "by split" and place > whole.rindex(OTHER[case.sort.split]):
        return None  # in a row of the other split
    changed = whole[:place] + more + whole[place + len(key) + 3 :]
    return write_text(case.source, changed.encode())


def row_doubled(case: Case) -> Path | None:
    """A row stands twice where it counts once; an answer also with another text."""
    if not case.sort.row_is_once:
        return None
    row = dict(case.rng.choice(case.rows))
    if "output" in row and case.rng.random() < 0.5:
        row["output"] = "another answer"
    return case.again([*case.rows, row])


def number_rewritten(case: Case) -> Path | None:
    """The number of a question is written in another form: 81.0, "81", "81.0"."""
    if "question_id" not in case.rows[0]:
        return None
    form = case.rng.choice((float, str, lambda number: str(float(number))))
    return case.again([row | {"question_id": form(row["question_id"])} for row in case.rows])


def encoding_changed(case: Case) -> Path | None:
    """A text file is in another encoding."""
    if case.layout not in TEXTS:
        return None
    encoding = case.rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "utf-8-sig"))
    return write_text(case.source, case.text().encode(encoding, "replace"))


def text_appended(case: Case) -> Path | None:
    """Something follows that is no further record: words, brackets, a second record on a line, a short
    line, the names of a table again."""
    if case.layout not in TEXTS:
        return None
    whole = case.text()
    if "table" in case.layout:
        more = case.rng.choice(("one field\n", whole.partition("\n")[0] + "\n", '"open'))
    else:
        more = case.rng.choice(("and more", "]", "}", "\n[", "{", ",", " 3", " [1, 2]", '"'))
    end = "\n" if "table" in case.layout else ""
    return write_text(case.source, (whole.rstrip("\n") + end + more).encode())


def file_renamed(case: Case) -> Path | None:
    """A file has the ending of another kind."""
    if case.source.is_dir():
        return None
    endings = {
        ".jsonl": (".gz", ".parquet", ".csv", ".arrow"), ".json": (".parquet", ".csv", ".json.gz"),
        ".csv": (".jsonl", ".json", ".csv.gz"), ".gz": (".jsonl", ".json", ".csv"),
        ".parquet": (".arrow", ".jsonl", ".json", ".csv", ".csv.gz"), ".arrow": (".parquet", ".json", ".csv"),
    }  # fmt: skip
    target = case.folder / f"rows{case.rng.choice(endings[case.source.suffix])}"
    return case.source.rename(target)


CHANGES: dict[str, Callable[[Case], Path | None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        file_dropped, list_dropped, file_copied, other_format, bytes_cut, bytes_changed, json_cut,
        type_changed, key_renamed, shard_changed, message_changed, key_doubled, row_doubled,
        number_rewritten, encoding_changed, text_appended, file_renamed,
    )
}  # fmt: skip


# What came of it


def outcome(case: Case, changed: Path, whole: Read) -> tuple[str, str]:
    """One of OUTCOMES for a changed file, and what was seen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = case.sort.read(changed, case.rows)
        except SAOError as error:
            return ("error" if changed.name in str(error) else "fault"), f"{type(error).__name__}: {error}"
        except Exception:
            return "fault", traceback.format_exc(limit=-3)
    if found == whole:
        return "same", ""
    if len(found) == len(whole) and all(new in (None, old) for new, old in zip(found, whole, strict=True)):
        return "dropped", ""
    warned = any(changed.name in str(warning.message) for warning in caught)
    return ("warning" if warned else "fault"), f"read {found} in the place of {whole}"


def trial(rng: random.Random, folder: Path) -> tuple[str, str, str] | None:
    """One case: what was done, its outcome, what was seen. None where the change does not fit the layout."""
    name, sort = rng.choice(list(SORTS.items()))
    kind, change = rng.choice(list(CHANGES.items()))
    layout = rng.choice([one for one in LAYOUTS if sort.flat or "table" not in one])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = sort.rows(rng)
    case = Case(sort, layout, rows, folder, write(folder, layout, rows, sort.split), rng)
    whole = sort.read(case.source, rows)
    if None in whole or len(whole) != len(rows):
        return kind, "fault", f"{name} as {layout}, unchanged: read {whole}"
    changed = change(case)
    if changed is None:
        return None
    result, seen = outcome(case, changed, whole)
    return kind, result, f"{name} as {layout}: {seen}"


def fuzz(seed: int, n: int, folder: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """n cases: how often each outcome came of each kind of change, and the faults in words."""
    rng = random.Random(seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in CHANGES}
    faults: list[str] = []
    while sum(sum(found.values()) for found in counts.values()) < n:
        found = trial(rng, folder / "case")
        if found is not None:
            kind, result, seen = found
            counts[kind][result] += 1
            if result == "fault":
                faults.append(f"{kind}, {seen}")
    return counts, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=500)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = fuzz(args.seed, args.n, Path(folder))
    for fault in faults:
        print(f"FAULT {fault}\n")
    table_of = {
        kind: {name: found[name] for name in OUTCOMES if found[name]} for kind, found in counts.items()
    }
    print(json.dumps({"seed": args.seed, "n": args.n, "changes": table_of, "faults": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
