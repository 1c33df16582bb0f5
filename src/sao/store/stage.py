"""One stage of a run folder: append, resume, seal.

A stage writes into its own folder `round-1/<stage>-<fingerprint>/`:

    stage.json      what made it (settings, template text, model, upstream); when it is finished, its counts
    part-….jsonl    while it runs: records and drops as they come, flushed and fsynced in small batches
    records.jsonl   when it is finished: the records, sorted by row
    drops.jsonl     when it is finished: what was lost, and why

A finished stage grows when the run does: it is opened again, and what is sealed counts as one more part.

The files are the truth about progress: what stands in them is never computed again. A torn last line (from a
kill) is skipped and cut. A finished file arrives by rename, `stage.json` last, so SIGKILL at any moment
leaves either an unfinished stage that goes on or a finished one. There are no locks and no database, so NFS
and Lustre serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sao.errors import StoreError
from sao.records import Drop, Record, from_dict, make_id, to_dict
from sao.results.base import StageCounts
from sao.store.files import MEND, cut_torn_line, dumps, read_jsonl, store_error, with_offsets, write_atomic

R = TypeVar("R", bound=Record)
T = TypeVar("T", bound="Record | Drop")
FINAL = ("records.jsonl", "drops.jsonl")
FLUSH_ROWS, FLUSH_SECONDS = 64, 1.0


class Ids:
    """A set of record ids in 8 bytes each (they are hashes of 64 bits). Raises StoreError for another id."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._sorted = array("Q", map(_bits, ids))
        if self._sorted:
            import numpy as np

            self._sorted = array("Q", np.unique(np.frombuffer(self._sorted, np.uint64)).tobytes())

    def __contains__(self, id_: object) -> bool:
        wanted = _bits(id_)
        place = bisect_left(self._sorted, wanted)
        return place < len(self._sorted) and self._sorted[place] == wanted

    def __len__(self) -> int:
        return len(self._sorted)


def _bits(id_: object) -> int:
    """The 64 bits of an id."""
    with contextlib.suppress(ValueError):
        if len(text := str(id_)) == 16:
            return int(text, 16)
    raise StoreError(
        f"{id_!r} is no id of a record: it must be 16 hex digits. A step makes one with "
        "make_id(work.key, …) (sao.records)",
        key="id",
    )


class Stage:
    """One stage's folder: `done` ids while it runs, `seal` to finish it, `records` to read it."""

    def __init__(
        self,
        root: Path,
        name: str,
        settings: dict[str, Any],
        ids: dict[str, Any] | None = None,
        sizes: tuple[int, int] | None = None,
        within: Callable[[int], bool] | None = None,
        holds_records: bool = True,
    ) -> None:
        """`settings` is all that the stage's outcome depends on; its fingerprint names the folder. `ids` is
        what
        the ids of its records derive from, where that is less: which records exist is not what a record is
        made of. `sizes` are how many personas the stage is made for, for training and held out: a stage that
        was finished for fewer grows, and the records that it has stay. Rows that are not `within` belong to a
        size that was given up, and are left out when it is finished. `holds_records`: not a model."""
        self._within, self._holds_records = within, holds_records
        self.name = name
        self.settings = settings
        self.sizes = None if sizes is None else list(sizes)
        self.fingerprint = make_id(name, dumps(settings))
        self.key = make_id(name, dumps(settings if ids is None else ids))
        self.path = root / f"{name}-{self.fingerprint[:8]}"
        self.done = Ids()

    def open(self) -> Stage:
        """Make the folder, cut torn lines, and read which ids are done. Needed before `write`."""
        info = self._info()
        if info is None:
            write_atomic(self.path / "stage.json", self._stage_json(None))
        elif info.settings != json.loads(dumps(self.settings)):
            raise StoreError(
                f"{self.path}: its stage.json does not fit its name. Delete the folder to make the stage "
                "again",
                key="stage.json",
            )
        elif info.counts is not None and not self.finished:
            # finished for fewer personas: it grows
            write_atomic(self.path / "stage.json", self._stage_json(None))
        try:
            for file in self._parts():
                if self.finished:
                    file.unlink()  # left over from a kill between sealing and cleaning up
                else:
                    cut_torn_line(file)
            self.done = Ids(_id(row) for row in self.written())
        except OSError as error:
            raise error if isinstance(error, StoreError) else store_error(error, self.path) from error
        return self

    @property
    def finished(self) -> bool:
        """Whether the stage is sealed, for the sizes of the run."""
        info = self._info()
        if info is None or info.counts is None or info.sizes != self.sizes:
            return False
        return not self._holds_records or all((self.path / name).is_file() for name in FINAL)

    @property
    def counts(self) -> StageCounts:
        """What the finished stage let through and dropped."""
        info = self._info()
        if info is None or info.counts is None or not self.finished:
            raise StoreError(
                f"{self.path}: the stage is not finished. Run `sao run` on this folder to go on", key="stage"
            )
        return info.counts

    def writer(self) -> Writer:
        """A part file of this process's own."""
        return Writer(self.path / f"part-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl")

    def seal(self, kind: type[Record]) -> None:
        """Finish the stage: its records and drops sorted by row, each row once, then remove the parts.

        Takes 8 bytes of memory a row: only where each row's line begins is held. Where another process has
        sealed the stage in the meantime there is nothing left to do.
        """
        if not self.finished:
            sources = self._sources()
            places = _places(sources, self._within)
            for is_drop, name in enumerate(FINAL):
                wanted = (place >> 1 for place in places if place >= 0 and place & 1 == is_drop)
                self._write_sorted(name, sources, wanted)
            reasons = Counter(drop.reason for drop in _typed(self.path / "drops.jsonl", Drop))
            dropped = reasons.total()
            for _ in _typed(self.path / "records.jsonl", kind):
                break  # a record that does not fit its type shows now, not in a later stage
            self.finish(
                StageCounts(
                    stage=self.name,
                    records=sum(place >= 0 for place in places) - dropped,
                    dropped=dropped,
                    reasons=dict(sorted(reasons.items())),
                )
            )
        for file in self._parts():
            file.unlink(missing_ok=True)
        self.done = Ids()

    def finish(self, counts: StageCounts) -> None:
        """Mark the stage as finished."""
        write_atomic(self.path / "stage.json", self._stage_json(counts))

    def records(self, kind: type[R]) -> Iterator[R]:
        """The records of a finished stage, in order. Raises StoreError where it is not finished, and at the
        end where there are more or fewer than it counted."""
        return self._counted("records.jsonl", kind, self.counts.records)

    def drops(self) -> Iterator[Drop]:
        """What the finished stage lost. Raises as `records` does."""
        return self._counted("drops.jsonl", Drop, self.counts.dropped)

    def _counted(self, name: str, kind: type[T], expected: int) -> Iterator[T]:
        path, found = self.path / name, 0
        for row in _typed(path, kind):
            yield row
            found += 1
        if found != expected:
            raise StoreError(
                f"{path}, line {found}: the file ends here, with {found} rows, not {expected} as its "
                f"stage.json says: rows were lost or added. {MEND}",
                key=name,
            )

    def written(self) -> Iterator[dict[str, Any]]:
        """The rows that an unfinished stage has. Raises StoreError for one without a row number and an id."""
        for file in self._sources():
            for number, row in enumerate(_objects(file), 1):
                _row_of(row, file)
                try:
                    _bits(_id(row))
                except StoreError as error:
                    raise StoreError(f"{file}, line {number}: {error}. {MEND}", key=file.name) from None
                yield row

    def _info(self) -> StageInfo | None:
        path = self.path / "stage.json"
        return read_stage_info(path) if path.is_file() else None

    def _stage_json(self, counts: StageCounts | None) -> str:
        info = {
            "stage": self.name,
            "settings": self.settings,
            "sizes": self.sizes,
            "counts": counts and counts.model_dump(exclude={"stage"}, exclude_unset=True),
        }
        return json.dumps(info, indent=1, ensure_ascii=False) + "\n"

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.jsonl"))

    def _sources(self) -> list[Path]:
        """Where the rows of an unfinished stage lie: its parts, and what was sealed before it grew (or by a
        kill while it was sealed)."""
        if self.finished:
            return []
        sealed = (self.path / name for name in FINAL)
        return [*self._parts(), *(file for file in sealed if file.is_file())]

    def _write_sorted(self, name: str, parts: list[Path], places: Iterable[int]) -> None:
        """Copy the lines at `places` (part << 40 | offset), in that order, into a file that arrives by
        rename."""
        temporary = self.path / f".{name}.tmp"
        try:
            with contextlib.ExitStack() as stack, temporary.open("wb") as out:
                files = [stack.enter_context(part.open("rb")) for part in parts]
                for place in places:
                    file = files[place >> 40]
                    file.seek(place & (1 << 40) - 1)
                    out.write(file.readline())
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(self.path / name)
        except OSError as error:
            raise store_error(error, self.path / name) from error


@dataclass(frozen=True)
class StageInfo:
    """What stands in a stage.json."""

    stage: str
    settings: dict[str, Any]
    sizes: list[int] | None
    counts: StageCounts | None


def read_stage_info(path: Path) -> StageInfo:
    """A stage.json. Raises StoreError where it is not as SAO writes it."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["counts"] is not None:
            found["counts"] = StageCounts.model_validate({"stage": found["stage"], **found["counts"]})
        info = StageInfo(**found)
        if isinstance(info.settings, dict) and isinstance(info.sizes, list | None):
            return info
        why = "a value of another kind"
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = str(error)
    raise StoreError(f"{path}: not as SAO writes it ({why}). {MEND}", key="stage.json")


class Writer:
    """Appends records and drops to one part file; durable every 64 rows or every second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise store_error(error, path) from error

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.flush()
        except StoreError:
            if kind is None:
                raise  # otherwise the first error is the one to show
        finally:
            os.close(self._file)

    def write(self, record: Record | Drop) -> None:
        """Append one row."""
        self._lines.append(dumps(to_dict(record)) + "\n")
        if len(self._lines) >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make all rows durable. Raises StoreError where they cannot be; a line that was half written is cut
        off."""
        if not self._lines:
            return
        data = "".join(self._lines).encode("utf-8", "surrogatepass")
        start = os.lseek(self._file, 0, os.SEEK_END)
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, start)
            raise store_error(error, self.path) from error
        self._lines.clear()
        self._flushed = time.monotonic()


def _places(sources: list[Path], within: Callable[[int], bool] | None) -> array[int]:
    """Where the line of each row begins: ((number of the source << 40 | offset) << 1 | whether it is a drop),
    −1 where no line has that row. Of several lines with one row the first counts."""
    places = array("q")
    for number, file in enumerate(sources):
        for offset, line in with_offsets(file):
            row = _row_of(line, file)
            if row >= len(places):
                places.extend([-1] * (row + 1 - len(places)))
            if within is not None and not within(row):
                continue
            if places[row] < 0:
                places[row] = (number << 40 | offset) << 1 | ("reason" in line)
            elif (other := _id_at(sources, places[row] >> 1)) != _id(line):
                raise StoreError(
                    f"{file}: row {row} is that of {other} and of {_id(line)}: two records of one step need "
                    "two rows",
                    key="records.jsonl",
                )
    return places


def _id_at(sources: list[Path], place: int) -> str:
    """The id in the line at (number of the source << 40 | offset)."""
    with sources[place >> 40].open("rb") as file:
        file.seek(place & (1 << 40) - 1)
        return _id(json.loads(file.readline()))


def _typed(path: Path, kind: type[T]) -> Iterator[T]:
    """The rows of a file as records. Raises StoreError, with the line, where one does not fit."""
    for number, row in enumerate(_objects(path), 1):
        try:
            record = from_dict(kind, row)
        except TypeError as error:
            raise StoreError(
                f"{path}, line {number}: no {kind.__name__} ({error}). {MEND}", key=path.name
            ) from error
        yield record


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. Raises StoreError for one that is no JSON object."""
    for number, row in enumerate(read_jsonl(path), 1):
        if not isinstance(row, dict):
            raise StoreError(f"{path}, line {number}: no JSON object. {MEND}", key=path.name)
        yield row


def _id(row: dict[str, Any]) -> str:
    return str(row.get("record_id" if "reason" in row else "id"))


def _row_of(line: dict[str, Any], file: Path) -> int:
    row = line.get("row") if isinstance(line, dict) else None
    if not isinstance(row, int) or row < 0:
        raise StoreError(f"{file}: a line without a row. {MEND}", key=file.name)
    return row
