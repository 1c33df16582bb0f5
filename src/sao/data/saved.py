"""Folders that `datasets` wrote with `save_to_disk`, and single Arrow files, read without that package.

A Dataset is a folder with state.json, which names its Arrow files; a DatasetDict is a folder with
dataset_dict.json and one such folder for each split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sao.errors import DataError

STATE, SPLITS = "state.json", "dataset_dict.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of an Arrow stream that is whole."""


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes, whole or not."""
    if any((folder / name).is_file() for name in (STATE, SPLITS)):
        return True
    return any(folder.glob("*.arrow")) and not any(folder.glob("*.parquet"))


def saved_files(folder: Path, split: str) -> list[Path]:
    """The Arrow files of a saved Dataset, or of one split of a saved DatasetDict, in order.

    Raises DataError where the split or a file is missing, or the list of files cannot be read.
    """
    if (folder / SPLITS).is_file():
        splits = _names(folder / SPLITS, "splits", lambda name: name)
        if split not in splits:
            raise DataError(
                f"{folder}: no split {split} (it holds: {', '.join(splits)}). Name one of them",
                key="data folder",
            )
        folder = folder / split
    if not (folder / STATE).is_file():
        raise DataError(
            f"{folder}: {STATE} is missing, which names the Arrow files of a saved data set. Copy the whole "
            "folder again",
            key="data folder",
        )
    if parquet := next(folder.glob("*.parquet"), None):
        raise DataError(
            f"{folder}: holds a saved data set ({STATE}) and {parquet.name}. Keep one of them",
            key="data folder",
        )
    files = [folder / name for name in _names(folder / STATE, "_data_files", lambda file: file["filename"])]
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{file} is missing: {folder / STATE} names {len(files)} files. Copy the whole folder again",
                key="shards",
            )
    return files


def _names(path: Path, key: str, read: Any) -> list[str]:
    """The names in a list of a JSON file."""
    try:
        return [str(read(item)) for item in json.loads(path.read_text("utf-8"))[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Copy the whole folder again",
            key="data folder",
        ) from error


def arrow_rows(path: Path, columns: Sequence[str], also: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The rows of an Arrow file, as a stream or with a table of contents (Feather), with their places.

    Of the columns only `columns` and `also` are read, or all where one of `columns` is missing. Raises
    DataError for a file that is broken or cut off.
    """
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(path)) as file:
            batches = _batches(pyarrow, file)
            for batch in batches:
                names = batch.schema.names
                wanted = [name for name in names if name in (*columns, *also)]
                part = batch.select(wanted) if set(columns) <= set(names) else batch
                for start in range(0, part.num_rows, 256):
                    for row in part.slice(start, 256).to_pylist():
                        yield f"{path}, row {number}", row
                        number += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable Arrow file, from row {number} on ({error}). Copy or make it again",
            key="Arrow",
        ) from error


def _batches(pyarrow: Any, file: Any) -> Iterator[Any]:
    """The record batches of an open file. Raises ValueError where it is cut off."""
    start = file.read(6)
    if start == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        return
    file.seek(max(0, file.size() - len(_END)))
    if file.read() != _END:
        raise ValueError("its end is missing")
    file.seek(0)
    yield from pyarrow.ipc.open_stream(file)
