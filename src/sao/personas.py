"""Personas: who asks. A source in, `Persona` records out (r_1 … r_n in Algorithm 1 of arXiv 2510.06652).

Sources: `builtin:general` (ships, written for SAO, CC0), `builtin:world` (the proving ground's 17,280), `none` (nobody:
the control), a .jsonl, .parquet or .txt file, or a hub data set by id and revision. Equal texts count once; the last
`held_out` of those taken are for the evaluation alone.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from sao.config import PersonasConfig
from sao.errors import DataError
from sao.types import Persona, make_id

LICENCES = {"builtin:general": "CC0-1.0", "builtin:world": "Apache-2.0", "none": "none (no personas)"}


def licence_of(config: PersonasConfig) -> str:
    """The licence of the source, as far as it is known."""
    return config.licence or LICENCES.get(config.source, "unknown: set personas.licence to the source's licence")


def source_identity(config: PersonasConfig, seed: int) -> dict[str, Any]:
    """What the personas depend on; a file counts by its content, wherever it lies."""
    found: dict[str, Any] = {
        "source": config.source,
        "column": config.column,
        "revision": config.revision,
        "subset": config.subset,
    }
    path = Path(config.source)
    if path.is_file():
        with path.open("rb") as file:
            found["source"] = hashlib.file_digest(file, "sha256").hexdigest()
    if config.source == "builtin:world":
        found["seed"] = seed
    return found | {"n": config.n, "held_out": config.held_out}


def read_personas(config: PersonasConfig, seed: int) -> Iterator[Persona]:
    """`n + held_out` distinct personas, in the source's order.

    Raises DataError for a source that cannot be read (with file and line) or holds too few.
    """
    wanted, row, seen = config.n + config.held_out, 0, set()
    for text in _texts(config, seed):
        text = " ".join(text.split())
        key = f"{row}" if config.source == "none" else text.casefold()
        if key in seen or (not text and config.source != "none"):
            continue
        seen.add(key)
        yield Persona(id=make_id("persona", config.source, text or row), row=row, text=text)
        row += 1
        if row == wanted:
            return
    raise DataError(
        f"{config.source}: holds {row} distinct personas, but personas.n + personas.held_out = {config.n} + "
        f"{config.held_out} are asked for. Lower them, or take a larger source"
    )


def _texts(config: PersonasConfig, seed: int) -> Iterator[str]:
    source, path = config.source, Path(config.source)
    if source == "none":
        yield from ("" for _ in range(config.n + config.held_out))
    elif source == "builtin:general":
        yield from resources.files("sao").joinpath("data/personas.txt").read_text("utf-8").splitlines()
    elif source == "builtin:world":
        from sao.world.language import sample_persona

        rng = random.Random(seed)
        yield from (sample_persona(rng) for _ in range(100 * (config.n + config.held_out)))
    elif path.suffix in (".jsonl", ".json", ".parquet", ".txt"):
        if not path.is_file():
            raise DataError(f"{source}: no such file of personas")
        yield from _file_texts(path, config.column)
    else:
        yield from _hub_texts(config)


def _file_texts(path: Path, column: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        yield from _parquet_texts(path, column)
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield line.strip() if path.suffix == ".txt" else _json_text(line, column, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} near byte {error.start}). Convert it, e.g. with iconv"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _json_text(line: str, column: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Mend or delete the line; nothing was lost") from error
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(
            f"{where}: no text under the key {column!r} (it holds: {keys}). Name the key with --personas.column"
        )
    return str(row[column])


def _parquet_texts(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if column not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path}: no column {column!r} (it holds: {names}). Name the column with --personas.column")
        for batch in file.iter_batches(columns=[column]):
            yield from (str(text) for text in batch.column(0).to_pylist() if text is not None)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _hub_texts(config: PersonasConfig) -> Iterator[str]:
    if config.revision is None:
        raise DataError(
            f"{config.source}: no file of that name. If it is a hub data set, give its revision too "
            "(--personas.revision), so that the run can be repeated"
        )
    try:
        import datasets
    except ImportError as error:
        raise DataError("hub data sets need the `datasets` package: pip install datasets") from error
    try:
        rows = datasets.load_dataset(
            config.source, config.subset, revision=config.revision, split="train", streaming=True
        )
        for row in rows:
            if not isinstance(row.get(config.column), str):
                raise DataError(f"{config.source}: no text in column {config.column!r} (it holds: {', '.join(row)})")
            yield row[config.column]
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{config.source}: cannot be read from the hub: {type(error).__name__}: {error}") from error
