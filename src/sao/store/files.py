"""Files that survive: whole ones by rename, lines of JSON, torn last lines left out, and errors that say what
to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sao.errors import StoreError


def dumps(value: object) -> str:
    """One line of JSON, the same for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file by rename. Raises StoreError where the disk is full or the folder cannot be
    written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise store_error(error, path) from error


def store_error(error: OSError, path: Path) -> StoreError:
    """The OSError of a write, as a message with the next step."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            f"{path}: the disk is full ({error.strerror}). All that was finished is kept: free some space "
            "and run the same command again",
            key="disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{path}: cannot be written ({error.strerror}). Choose another folder with --out", key="--out"
        )
    return StoreError(
        f"{path}: {error.strerror or error}. All that was finished is kept: run the same command again",
        key=path.name,
    )


MEND = (
    "Delete the folder of this stage, and those of the stages after it, and run the same command again: they "
    "are "
    "made again"
)
"""What to do where records are broken. Stages after it hang on the very texts, not only on their ids."""


def read_jsonl(path: Path, mend: str = MEND) -> Iterator[dict[str, Any]]:
    """The rows of a file that this store wrote; a torn last line is left out.

    Raises StoreError for a broken line anywhere else; `mend` says what to do then.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # torn by a kill: its item is computed again
            try:
                yield json.loads(line)
            except ValueError as error:
                raise StoreError(
                    f"{path}, line {number}: not JSON ({error}). {mend}", key=path.name
                ) from error


def with_offsets(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield offset, json.loads(line)
            offset += len(line)


def cut_torn_line(path: Path) -> None:
    """Cut off what follows the last newline."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = size
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < size:
            file.truncate(keep)
