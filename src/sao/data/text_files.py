"""Files of text, one row after another: .txt, .csv, .jsonl and .json, also as .gz.

A .json file may be one record a line, an array, arrays of records one after another, objects over several
lines, or one object that holds the rows of each split (`{"train": [...]}`). Where it is not clear what a row
is, it is an error with the place; nothing is guessed or left out.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from sao.data.json_arrays import TwiceError, array_rows, distinct, object_rows
from sao.data.messages import is_whole_message
from sao.errors import DataError

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
MAX_LINE = 64 << 20
"""Bytes of the longest line that is read."""
CHUNK = 1 << 20
"""Characters of a JSON array that are read at a time."""
NO_TEXT = ("nan", "NaN")
"""Cells of a .csv that hold no text: how Python and pandas write NaN, and pandas a missing text."""
_BEFORE = b"\xef\xbb\xbf \t\r\n"
_ROWS = re.compile(r"(train|test|valid|val|dev|eval)")
_STARTS = (
    (b"\x1f\x8b", "a gzip file. Add .gz to its name"),
    (b"PAR1", "a Parquet file. Name it so: .parquet"),
    (b"ARROW1", "an Arrow file. Name it so: .arrow"),
    (b"PK\x03\x04", "a zip file. Unpack it"),
    (b"\xff\xfe\0\0", "UTF-32 text. Convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    (b"\xff\xfe", "UTF-16 text. Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"\xfe\xff", "UTF-16 text. Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
)
"""How files begin that are no UTF-8 text."""


def text_rows(path: Path, split: str, columns: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Rows of .txt, .csv, .jsonl and .json with their places, empty lines left out.

    `split` and `columns` are for a .json file that is one object: where it has none of these columns, its
    rows are what stands under `split`.

    Raises DataError for a file that is broken or cut off, or of which it is not clear what its rows are.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    try:
        with _open(path) as file:
            layout = _layout(path, file, kind)
            if layout == "array":
                yield from array_rows(path, file, piece=CHUNK, longest=MAX_LINE)
            elif layout == "objects":
                objects = object_rows(path, file, piece=CHUNK, longest=MAX_LINE)
                yield from _unwrapped(objects, split, columns)
            elif kind == ".csv":
                yield from _csv_rows(path, file)
            elif kind == ".txt":
                yield from _filled_lines(path, file)
            else:
                rows = _json_lines(path, file, allow_arrays=kind != ".json")
                yield from _unwrapped(rows, split, columns)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: no whole gzip file ({error}). Copy it again, or take .gz off its name", key="gzip"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", key="data file") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix != ".gz":
        return path.open("rb")
    if path.stat().st_size == 0:
        raise EOFError("it is empty")
    return gzip.open(path)  # type: ignore[return-value]


def _layout(path: Path, file: BinaryIO, kind: str) -> str:
    """How a JSON file is laid out: "array", "objects" (over several lines), or "lines". Files of other kinds
    are lines. Raises DataError for a file that is no UTF-8 text."""
    first = file.read(CHUNK)
    for start, what in _STARTS:
        if first.startswith(start):
            raise DataError(f"{path}, line 1: this is {what}", key="data file")
    if b"\0" in first[:2]:
        raise _nul(f"{path}, line 1")
    start = first.lstrip(_BEFORE)
    while first and not start:
        first = file.read(CHUNK)
        start = first.lstrip(_BEFORE)
    file.seek(0)
    line, has_more, _ = start.partition(b"\n")
    goes_on = bool(has_more) and line.rstrip().endswith((b"[", b"{"))
    if line[:1] == b"[" and (kind == ".json" or (kind == ".jsonl" and goes_on)):
        return "array"
    return "objects" if line[:1] == b"{" and kind in (".json", ".jsonl") and goes_on else "lines"


def _nul(place: str) -> DataError:
    return DataError(
        f"{place}: holds NUL bytes, so it is no text file (or UTF-16: convert it with iconv)", key="data file"
    )


def _unwrapped(
    rows: Iterator[tuple[str, Any]], split: str, columns: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """The rows; where there is only one, and it holds lists of rows instead of the wanted columns, the rows
    of the split in it."""
    first = next(rows, None)
    if first is None:
        return
    place, row = first
    lists = _lists_of_rows(row) if isinstance(row, dict) and row.keys().isdisjoint(columns) else {}
    second = next(rows, None) if lists else None
    if not lists or second is not None:
        yield from chain([first], [second] if second else [], rows)
        return
    name = split if split in lists else next(iter(lists))
    if name != split and (len(lists) > 1 or _ROWS.match(name)):
        raise DataError(
            f"{place}: one object that holds rows under {', '.join(lists)}, but none under {split}. Name the "
            "split, or write the rows that are meant to a file of their own, one a line",
            key="data file",
        )
    file = place.rpartition(", ")[0]
    for number, item in enumerate(lists[name]):
        yield f"{file}, {name} {number}", item


def _lists_of_rows(row: dict[str, Any]) -> dict[str, list[Any]]:
    """The values of an object that are lists of records."""
    return {name: value for name, value in row.items() if _are_rows(value)}


def _are_rows(value: Any) -> bool:
    records = value if isinstance(value, list) else []
    return bool(records) and all(isinstance(r, dict) and not is_whole_message(r) for r in records)


def _filled_lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without the white space around them."""
    return ((place, text) for place, line in _lines(path, file) if (text := line.strip()))


def _json_lines(path: Path, file: BinaryIO, *, allow_arrays: bool) -> Iterator[tuple[str, Any]]:
    for place, line in _filled_lines(path, file):
        row = _parse(line, place)
        if isinstance(row, list) and not allow_arrays:
            raise DataError(
                f"{place}: an array among records that stand one a line. Write one record a line, as .jsonl",
                key="JSON",
            )
        yield place, row


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
    """The lines of a file as text, each with its place."""
    number = 0
    while raw := file.readline(MAX_LINE):
        number += 1
        place = f"{path}, line {number}"
        if len(raw) == MAX_LINE:
            raise DataError(
                f"{place}: longer than {MAX_LINE >> 20} MB. Is it one record a line? Split it or take it out",
                key="data file",
            )
        if b"\0" in raw:
            raise _nul(place)
        line = _decode(raw, place)
        yield place, line.removeprefix("\ufeff") if number == 1 else line


def _csv_rows(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows as dicts by the names in the first line; cells of NO_TEXT are NaN, as in a file of another
    kind."""
    place = f"{path}, line 1"

    def lines() -> Iterator[str]:
        nonlocal place
        for place, line in _lines(path, file):  # noqa: B007 - the place is for the message below
            yield line

    limit = csv.field_size_limit(MAX_LINE)
    try:
        reader = csv.reader(lines(), strict=True)
        names = next(reader, [])
        _check_names(names, place)
        for values in reader:
            if values:
                _check_row(values, names, place)
                cells = (math.nan if value in NO_TEXT else value for value in values)
                yield place, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{place}: not CSV ({error}). Mend the line; quotes inside a field are doubled", key="CSV"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _check_names(names: list[str], place: str) -> None:
    """Raise DataError where the first line is JSON, or gives two columns one name."""
    if names and names[0].startswith(("[", "{")):
        raise DataError(f"{place}: JSON and no names of columns. Name the file .json or .jsonl", key="CSV")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{place}: two columns are named {twice[0]!r}. Rename one", key="CSV")


def _check_row(values: list[str], names: list[str], place: str) -> None:
    """Raise DataError for a row of another length, and for one that is the first line again."""
    if len(values) != len(names):
        raise DataError(
            f"{place}: {len(values)} fields, but the first line names {len(names)}. Mend the line", key="CSV"
        )
    if values == names:
        raise DataError(
            f"{place}: the names of the first line again, as in two files joined. Delete this line", key="CSV"
        )


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text ({error.reason}). Convert the file, e.g. with iconv", key="UTF-8"
        ) from error


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=distinct)
    except (ValueError, RecursionError, TwiceError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            rest = line[error.pos : error.pos + 40]
            raise DataError(
                f"{place}: not JSON (after the end of the value stands {rest!r}). Write one record a line",
                key="JSON",
            ) from error
        raise DataError(
            f"{place}: not JSON ({error}). Mend or delete the line; nothing was lost", key="JSON"
        ) from error
