"""Files that appear together: rows in, a folder with all new files or with none of them out.

All files are written under other names first. While they get their names, the card says that the export is
not finished; the true card comes last. So a kill at any moment leaves the earlier export, the new one, or a
folder that says to export again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sao.errors import StoreError
from sao.sharing.dataset_card import MARK
from sao.store.files import dumps, store_error, write_atomic

GROUP_ROWS = 10_000
OWN_FILES = (
    "README.md",
    "train.parquet",
    "test.parquet",
    "train.jsonl",
    "test.jsonl",
    "dataset_info.json",
    "axolotl.yaml",
)
"""What an export may write into its folder."""
UNFINISHED = (
    f"{MARK}\n\nThis export is not finished: its files may not belong together. Run `sao export` again.\n"
)


@contextlib.contextmanager
def arriving(out: Path, suffix: str) -> Iterator[dict[str, Sink]]:
    """Files of train and test, and those that the block adds (the card last). They get their names when the
    block ends without an error; else none does.

    What a killed export left is removed first: of two exports into one folder at the same time, the one that
    began first ends with an error.
    """
    for name in OWN_FILES:
        for file in out.glob(f".{name}.*.tmp"):
            file.unlink(missing_ok=True)
    sinks = {name: Sink(out / f"{name}.{suffix}") for name in ("train", "test")}
    try:
        yield sinks
        _clear(out, sinks)
        for sink in sinks.values():
            sink.arrive()
    finally:
        for sink in sinks.values():
            sink.discard()


def _clear(out: Path, sinks: dict[str, Sink]) -> None:
    """Replace the earlier export's card, then remove its files that no new one replaces."""
    if "README.md" in sinks:
        write_atomic(out / "README.md", UNFINISHED)
    new_files = {sink.path.name for sink in sinks.values() if sink.count}
    for name in set(OWN_FILES) - new_files - {"README.md"}:
        (out / name).unlink(missing_ok=True)


class Sink:
    """One file that gets its name by rename: rows (Parquet or JSON lines, by its suffix, in groups of 10,000)
    or one text.

    `count`: its rows; `columns`: their names; `digest`: the SHA-256 of the closed file. Without rows there is
    no file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.columns: list[str] = []
        self.digest = ""
        self._rows: list[dict[str, Any]] = []
        self._temporary = path.with_name(f".{path.name}.new.{os.getpid()}.tmp")
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def write(self, row: dict[str, Any]) -> None:
        """Add a row. Raises StoreError where the disk is full or the folder cannot be written."""
        self.columns = self.columns or list(row)
        self._rows.append(row)
        self.count += 1
        if len(self._rows) == GROUP_ROWS:
            self._flush()

    def write_text(self, text: str) -> None:
        """Make this text the whole file, and durable. Raises StoreError as `write` does."""
        self.count = 1
        with self._errors():
            self._open().write(text.encode("utf-8", "surrogatepass"))
        self.close()

    def close(self) -> None:
        """Make all rows durable, still under the other name."""
        if not self.count:
            return
        self._flush()
        with self._errors():
            assert self._file is not None
            if self._writer is not None:
                self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            with self._temporary.open("rb") as file:
                self.digest = hashlib.file_digest(file, "sha256").hexdigest()

    def arrive(self) -> None:
        """Give the file its name; an earlier one is removed, even where there are no rows now."""
        with self._errors():
            if self.count:
                self._temporary.replace(self.path)
            else:
                self.path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what has not got its name."""
        if self._writer is not None and self._writer.is_open:
            with contextlib.suppress(Exception):  # the error that led here is the one to show
                self._writer.close()
            self._writer.is_open = False
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        with self._errors():
            file = self._open()
            if self.path.suffix == ".jsonl":
                file.write("".join(dumps(row) + "\n" for row in self._rows).encode())
            elif self._rows:
                import pyarrow

                table = pyarrow.Table.from_pylist(self._rows, _schema(self._rows[0]))
                self._open_writer(table.schema).write_table(table)
        self._rows.clear()

    def _open(self) -> BinaryIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
        return self._file

    def _open_writer(self, schema: Any) -> Any:
        if self._writer is None:
            import pyarrow.parquet

            self._writer = pyarrow.parquet.ParquetWriter(self._file, schema)
        return self._writer

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise error if isinstance(error, StoreError) else store_error(error, self.path) from error


def _schema(row: dict[str, Any]) -> Any:
    """The Parquet types of a row's columns: those that may be null by their name, the others by their
    value."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    verdict = [(name, text) for name in ("judge", "first_id", "second_id", "verdict")]
    verdict += [("p_first", number), ("verdict_prob", number), ("text", text)]
    named = {
        "p_chosen": number,
        "margin": number,
        "margin_sd": number,
        "verdicts": pa.list_(pa.struct(verdict)),
    }
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    by_kind = {str: text, bool: pa.bool_(), int: pa.int64(), list: messages}
    return pa.schema([(name, named.get(name) or by_kind[type(value)]) for name, value in row.items()])
