"""Rows of a data set that somebody else made: a file, a folder of Parquet shards or a hub data set in, plain
rows out.

Everything is read as a stream, so memory does not grow with the size: a line longer than MAX_LINE is an
error, not a gigabyte of memory (`sao.data.text_files`). A file that cannot be read is an error with its
place. The caller decides what a row means.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sao.data.saved import arrow_rows, is_saved, saved_files
from sao.data.shards import split_files
from sao.data.text_files import CHUNK, TEXT_SUFFIXES, text_rows
from sao.errors import DataError
from sao.records import make_id

SUFFIXES = (".parquet", ".arrow", *TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
BATCH_ROWS = 256
_WHOLE = re.compile(r"(-?\d+)\.0+")


def read_rows(
    source: str,
    columns: Sequence[str],
    also: Sequence[str] = (),
    *,
    what: str,
    option: str,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
) -> Iterator[tuple[str, Any]]:
    """Each row with its place (file and line, or data set and row: for messages), in the source's order.

    Args:
        source: A .jsonl file, a .json file (`sao.data.text_files` names its layouts), a .csv file (names in
            the first line), a .txt file, any of these as .gz, a .parquet or .arrow file, a folder of Parquet
            files (`sao.data.shards`) or one that `save_to_disk` wrote (`sao.data.saved`), or the id of a hub
            data set.
        columns: What the caller needs. Of Parquet only these and those of `also` are read; where one is
            missing all are, so that the caller can say what there is.
        also: What the caller reads where it is there.
        what: What the rows should be ("personas"), for messages.
        option: How the user gives the revision, for messages.
        revision: Commit or tag of the hub data set, which needs one.
        subset: Configuration of the hub data set.
        split: Split of the hub data set, the folder, or a .json file that is one object.

    Yields:
        Place and row; a row is a dict, or any other value in a line of JSON, or the text of a line of .txt.
        Values are as the source has them: a text may be null or NaN (`kind_of`), an id 81.0 (`id_text`).

    Raises:
        DataError: For a source that does not exist or cannot be read, or of which a part is missing or there
            twice.

    """
    path = Path(source)
    if path.is_dir():
        for file in saved_files(path, split) if is_saved(path) else split_files(path, split):
            yield from _file_rows(file, columns, also, split)
    elif path.name.endswith(SUFFIXES) and path.is_file():
        yield from _file_rows(path, columns, also, split)
    elif path.name.endswith(SUFFIXES):
        raise DataError(f"{source}: no such file of {what}", key="data file")
    elif path.exists() or not _may_be_hub_id(source):
        raise DataError(
            f"{source}: no {what} here. Give a file that ends in {', '.join(SUFFIXES)}, or a hub data set's "
            "id",
            key="data format",
        )
    elif revision is None:
        raise DataError(
            f"{source}: no file of that name. If it is a hub data set of {what}, give its revision too "
            f"({option}: a commit or tag), so that the run can be repeated",
            key="revision",
        )
    else:
        yield from _hub_rows(source, revision, subset, split)


def _file_rows(
    path: Path, columns: Sequence[str], also: Sequence[str], split: str
) -> Iterator[tuple[str, Any]]:
    """The rows of one file."""
    match path.suffix.lower():
        case ".parquet":
            return _parquet_rows(path, columns, also)
        case ".arrow":
            return arrow_rows(path, columns, also)
    return text_rows(path, split, (*columns, *also))


def _may_be_hub_id(source: str) -> bool:
    return not source.startswith((".", "/", "~")) and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source))


def column_texts(
    source: str,
    column: str,
    *,
    what: str,
    section: str,
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
    read: Callable[[Any], str | None] = lambda value: value if isinstance(value, str) else None,
) -> Iterator[str]:
    """The texts under one key or column of a file or hub data set (or the lines of .txt); nulls and empty
    texts are left out.

    `section` of the recipe is where the user names the column and revision. `read` makes a text of a value:
    "" where this row holds nothing to read, None where the value is of another kind than expected. Halves of
    surrogate pairs, as a cut emoji leaves them in JSON, are removed: no tokenizer accepts them.

    Raises DataError for a source that cannot be read, or whose rows hold no such text.
    """
    options: dict[str, Any] = {"revision": revision, "subset": subset, "split": split}
    has_lines = source.removesuffix(".gz").endswith(".txt")
    for place, row in read_rows(source, [column], what=what, option=f"--{section}.revision", **options):
        if isinstance(row, dict) and column in row:
            text = "" if row[column] is None else read(row[column])
        else:
            text = row if isinstance(row, str) and has_lines else None
        if text is None:
            raise _no_text(row, column, place, section)
        text = text.encode("utf-8", "ignore").decode("utf-8")
        if text and not text.isspace():
            yield text


def _no_text(row: Any, column: str, place: str, section: str) -> DataError:
    contents = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    value = row.get(column) if isinstance(row, dict) else None
    instead = "" if value is None else f", but a {type(value).__name__}"
    if kind_of(value) == "NaN":
        instead = ", but NaN: put a text there, or null where there is none"
    return DataError(
        f"{place}: no text under the key {column!r}{instead} (it holds: {contents}). Name the key with "
        f"--{section}.column",
        key=f"{section}.column",
    )


def kind_of(value: Any) -> str:
    """What a value is, in a few words for messages."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "an infinite number"
    names = {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def id_text(value: Any) -> str:
    """An id of another data set as text; 81, 81.0 (as pandas writes a column in which one is missing), "81"
    and "81.0" are the same. "" for what is no id: null, NaN, true, a list."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value) if value == int(value) else value)
    whole = _WHOLE.fullmatch(str(value))
    return whole[1] if whole else str(value)


def content_identity(source: str) -> str:
    """What a source is, wherever it is stored: the SHA-256 of a file, or of a folder's Parquet or Arrow
    files; of a hub data set its name."""
    path = Path(source)
    suffix = ".arrow" if is_saved(path) else ".parquet"
    within = sorted(file for file in path.rglob("*") if file.suffix.lower() == suffix)
    files = within if path.is_dir() else [path] if path.is_file() else []
    if not files:
        return source
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def draw_texts(
    read: Callable[[], Iterator[str]], n: int, held_out: int, seed: int
) -> Iterator[tuple[int, bool, str]]:
    """`n` distinct texts for training and `held_out` others, drawn from a stream by `seed`: each with its
    number in its draw and whether it is held out, in the stream's order; fewer where it holds fewer.

    Every text has a hash. Training takes the smallest ones, the held-out draw the largest ones: both can grow
    later, and what was drawn stays. `read` is called twice: once for the hashes, once to hand the texts out.
    Memory: 8 bytes for each text that is drawn and a few more, whatever the length of the stream. Texts count
    as equal where only their case differs.
    """
    low, high = array("Q"), array("Q")
    for text in read():
        key = _priority(text, seed)
        low.append(key)
        high.append(_LARGEST - key)
        if len(low) > 4 * n + (1 << 16):
            low = _smallest(low, n)
        if len(high) > 4 * held_out + (1 << 16):
            high = _smallest(high, held_out)
    low, high = _smallest(low, n), _smallest(high, held_out)
    given = bytearray(len(low)), bytearray(len(high))
    left = len(low) + len(high)
    for text in read() if left else ():
        key = _priority(text, seed)
        for held, keys, wanted in ((False, low, key), (True, high, _LARGEST - key)):
            number = bisect_left(keys, wanted)
            if number < len(keys) and keys[number] == wanted:
                if not given[held][number]:
                    given[held][number] = 1
                    yield number, held, text
                    left -= 1
                break  # a text that both draws took is for training
        if not left:
            return


_LARGEST = 2**64 - 1


def _priority(text: str, seed: int) -> int:
    return int(make_id("draw", seed, text.casefold()), 16)


def _smallest(keys: array[int], n: int) -> array[int]:
    """The `n` smallest of different keys, in order."""
    import numpy as np

    return array("Q", np.unique(np.frombuffer(keys, np.uint64))[:n].tobytes()) if keys else keys


def _parquet_rows(path: Path, columns: Sequence[str], also: Sequence[str]) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # Without these pyarrow holds the columns of a whole row group, and that may be the whole file.
        with pyarrow.parquet.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as file:
            names = file.schema_arrow.names
            wanted = [n for n in names if n in (*columns, *also)] if set(columns) <= set(names) else None
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file, from row {number} on ({error}). Copy or make it again",
            key="Parquet",
        ) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub or the network fails. Some versions let errors of httpx or
    httpx2 through, which are no OSError; its own error for a bad answer derives from the class of those. A
    SOCKS proxy without its package is an ImportError."""
    from huggingface_hub.errors import HfHubHTTPError

    return (
        OSError,
        ValueError,
        ImportError,
        *(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception)),
    )


def _hub_rows(source: str, revision: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "hub data sets need the `datasets` package: pip install datasets", key="datasets"
        ) from error
    try:
        rows = datasets.load_dataset(source, subset, revision=revision, split=split, streaming=True)
        for number, row in enumerate(rows):
            yield f"{source}, row {number}", row
    except (RuntimeError, ImportError, datasets.exceptions.DatasetsError, *hub_errors()) as error:
        raise DataError(
            f"{source}: cannot be read from the hub ({type(error).__name__}: {error}). Check its name, "
            "revision, subset and split, the network and, for gated data, HF_TOKEN",
            key="hub data set",
        ) from error
