"""Export: a run's pairs as a data set in the form of the tool that trains on it, with a card. A finished run
in, a folder out:

    train.parquet, test.parquet    (or .jsonl) the rows, as `sao.sharing.formats` makes them
    README.md                      the card, which also tells `datasets.load_dataset` and the hub what is what
    dataset_info.json, axolotl.yaml   where the tool reads such a file

All files are written under other names first. While they get their names, the card says that the export is
not finished; the true card comes last. So a kill at any moment leaves the earlier export, the new one, or a
folder that says to export again.
No persona and no question stands in both train and test: a hash of the question decides, and what shares a
persona or a user's turn goes together. A pair so stays where it is when more are made. Try: sao export RUN
--format trl --view pairs --out DIR
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sao.data.similarity import normalise
from sao.errors import DataError, StoreError
from sao.pipeline.folder import Grouped, RunFolder
from sao.records import Persona, PreferencePair, Prompt, make_id
from sao.results.audit import Audit
from sao.sharing.dataset_card import MARK, Exported, data_card
from sao.sharing.formats import COLUMNS, SUFFIX, Example, check_names, rows_of, side_files, standings, usage
from sao.store.files import dumps, store_error, write_atomic
from sao.store.manifest import read_manifest

GROUP_ROWS = 10_000
OWN = (
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
LARGE_SHARE, LARGE = 0.1, 8
"""Prompts that belong together are never test data where they are more than this share of it, and more than
so many."""


def export(
    run: RunFolder,
    out: Path,
    form: str = "trl",
    view: str = "pairs",
    test_share: float = 0.05,
    audit: Audit | None = None,
) -> dict[str, Any]:
    """Write the run's pairs into the folder `out`, which is made if need be; what was written.

    Args:
        run: A run whose pairs are made.
        out: The folder; an earlier export in it is replaced.
        form: One of `FORMS`.
        view: One of `VIEWS`.
        test_share: Share of the prompts that become test data, from 0 up to, but not, 1.
        audit: What `sao.analysis.audit.audit` found, for the card.

    Returns:
        form, view, train and test (rows), left_out (answers that view kto has no label for), paths (of the
        data), card (path).

    Raises:
        DataError: For options that cannot be, a run without pairs, or a folder that holds files of others.
        StoreError: Where the run is not finished or the folder cannot be written; no half file is left.

    """
    check_names(form, view)
    if not 0 <= test_share < 1:
        raise DataError(f"--test-share {test_share}: give a share from 0 up to, but not, 1")
    _check_folder(out)
    split = split_of(paired(run), test_share)
    with arriving(out, SUFFIX[form]) as sinks:
        left_out = write_rows(joined(run), split, sinks, form, view, run.config.responses.system)
        filled = {name: sink for name, sink in sinks.items() if sink.count}
        files = {name: sink.path.name for name, sink in filled.items()}
        facts = Exported(
            view=view,
            files=files,
            rows={name: sink.count for name, sink in filled.items()},
            digest=hashlib.sha256("".join(sink.digest for sink in filled.values()).encode()).hexdigest(),
            left_out=left_out,
            columns={name: COLUMNS[name] for name in next(sink.columns for sink in filled.values())},
            usage=usage(form, view, files),
            options=f"--format {form} --view {view} --test-share {test_share:g}",
        )
        card = data_card(read_manifest(run.root), run.funnel(), facts, audit)
        for name, text in (side_files(form, view, files) | {"README.md": card}).items():
            sinks[name] = Sink(out / name)
            sinks[name].write_text(text)
    counts = {name: sinks[name].count for name in ("train", "test")}
    paths = [str(out / file) for file in files.values()]
    return {
        "form": form,
        "view": view,
        **counts,
        "left_out": left_out,
        "paths": paths,
        "card": str(out / "README.md"),
    }


def _check_folder(out: Path) -> None:
    """Raise DataError where the folder holds files that an export would replace and that no export wrote."""
    card = out / "README.md"
    if card.is_file() and MARK in card.read_text("utf-8", errors="replace"):
        return
    there = [name for name in OWN if (out / name).exists()]
    if there:
        raise DataError(
            f"{out}: holds {', '.join(there)}, and no card of `sao export` beside. Give another folder with "
            "--out, or move "
            "that away"
        )


# What is read.


def paired(run: RunFolder) -> Iterator[Prompt]:
    """The prompts that have pairs, in order."""
    kept = Grouped(run.pairs_stage.records(PreferencePair))
    return (prompt for prompt in run.asked(False) if kept.take(prompt.id))


def joined(run: RunFolder) -> Iterator[Example]:
    """Each prompt that has pairs, with its persona, pairs and verdicts; one prompt is in memory at a time."""
    kept = Grouped(run.pairs_stage.records(PreferencePair))
    people = run.personas_stage.records(Persona) if run.personas_stage.finished else iter(())
    persona = next(people, None)
    for prompt, answers, judgments in run.judged():
        while persona is not None and persona.row < prompt.row:
            persona = next(people, None)
        by_id = {answer.id: answer for answer in answers}
        pairs = [(pair, by_id[pair.chosen_id], by_id[pair.rejected_id]) for pair in kept.take(prompt.id)]
        if pairs:
            text = persona.text if persona is not None and persona.id == prompt.persona_id else ""
            yield Example(prompt=prompt, persona=text, pairs=pairs, judgments=judgments)


# Train and test.


def split_of(prompts: Iterable[Prompt], share: float) -> bytes:
    """Which prompts are test data: 1 at the place of each one's row, else 0.

    Prompts that share a persona or a user's turn form a group, which goes to one side: to test where a hash
    of the least of their questions' hashes is below `share`, unless the group is too large for that
    (`LARGE`). Takes about 60 bytes a prompt.
    """
    rows, labels, keys, owners = array("q"), array("Q"), array("Q"), array("q")
    for place, prompt in enumerate(prompts):
        asked = {_hash("asked", normalise(text)) for text in (*prompt.earlier[::2], prompt.text)}
        shared = asked | ({_hash("persona", prompt.persona_id)} if prompt.persona_id else set())
        rows.append(prompt.row)
        labels.append(min(asked))
        keys.extend(shared)
        owners.extend([place] * len(shared))
    mask = bytearray(max(rows, default=-1) + 1)
    groups = _groups(np.array(labels, np.uint64), np.array(keys, np.uint64), np.array(owners, np.int64))
    _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    for row, label, size in zip(rows, groups.tolist(), sizes[places].tolist(), strict=True):
        small = size <= max(LARGE, LARGE_SHARE * share * len(rows))
        mask[row] = small and _hash("test", label) < share * 2**64
    return bytes(mask)


def _hash(*parts: object) -> int:
    return int(make_id(*parts), 16)


def _groups(
    labels: NDArray[np.uint64], keys: NDArray[np.uint64], owners: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """The least label of each prompt's group [prompts]: prompt owners[i] has keys[i], and prompts with a key
    in common belong together. Labels spread along shared keys until nothing changes."""
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    again = np.r_[False, keys[1:] == keys[:-1]] if len(keys) else np.zeros(0, bool)
    shared = again | np.r_[again[1:], False]  # most keys are one prompt's alone
    keys, owners = keys[shared], owners[shared]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(keys)])
    found = labels.copy()
    while len(keys):
        least = np.repeat(np.minimum.reduceat(found[owners], starts), lengths)
        before = found.copy()
        np.minimum.at(found, owners, least)
        if np.array_equal(before, found):
            break
    return found


# What is written.


@contextlib.contextmanager
def arriving(out: Path, suffix: str) -> Iterator[dict[str, Sink]]:
    """Files of train and test, and what the block adds (the card last); they get their names when it ends
    well, else none does.

    What a killed export left goes first: of two exports into one folder at once the one that began first ends
    with an error."""
    for name in OWN:
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
    """Take the earlier export's card away, then its files that no new one replaces."""
    if "README.md" in sinks:
        write_atomic(out / "README.md", UNFINISHED)
    coming = {sink.path.name for sink in sinks.values() if sink.count}
    for name in set(OWN) - coming - {"README.md"}:
        (out / name).unlink(missing_ok=True)


def write_rows(
    examples: Iterable[Example],
    split: bytes,
    sinks: dict[str, Sink],
    form: str,
    view: str,
    system: str | None,
) -> int:
    """Write all rows into `sinks` ("train" and "test") and close them; how many answers have no row in view
    kto.

    Raises DataError where there are no rows, StoreError where they cannot be written.
    """
    left_out = 0
    for example in examples:
        rows = rows_of(example, form, view, system)
        left_out += len(standings(example)) - len(rows) if view == "kto" else 0
        for row in rows:
            sinks["test" if split[example.prompt.row] else "train"].write(row)
    if not any(sink.count for sink in sinks.values()):
        raise DataError(
            "no pairs: there is nothing to export. See why in the funnel of `sao run`, or lower pairs.min_p"
        )
    for sink in sinks.values():
        sink.close()
    return left_out


class Sink:
    """One file that arrives by rename: rows, as Parquet or JSON lines by its suffix and in groups of 10,000,
    or one text.

    `count` are its rows, `columns` their names, `digest` the SHA-256 of the closed file. Without rows there
    is no file.
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
        """Give the file its name; an earlier one goes, also where there are no rows now."""
        with self._errors():
            if self.count:
                self._temporary.replace(self.path)
            else:
                self.path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what has not arrived."""
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
    """The Parquet types of a row's columns: those that may be null by name, the others by what stands in the
    row."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    verdict = [(name, text) for name in ("judge", "first_id", "second_id", "verdict")]
    verdict += [("p_first", number), ("mass", number), ("text", text)]
    named = {
        "p_chosen": number,
        "margin": number,
        "margin_sd": number,
        "verdicts": pa.list_(pa.struct(verdict)),
    }
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    by_kind = {str: text, bool: pa.bool_(), int: pa.int64(), list: messages}
    return pa.schema([(name, named.get(name) or by_kind[type(value)]) for name, value in row.items()])
