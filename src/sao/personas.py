"""Personas: who asks. A source in, `Persona` records out (r_1 … r_n in Algorithm 1 of arXiv 2510.06652).

Sources: `builtin:general` (ships, written for SAO, CC0), `builtin:world` (the proving ground's 17,280), `none` (nobody:
the control), a .jsonl, .parquet or .txt file, or a hub data set by id and revision. Equal texts count once; the last
`held_out` of those taken are for the evaluation alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from sao.config import PersonasConfig
from sao.errors import DataError
from sao.rows import content_identity, read_rows
from sao.types import Persona, make_id

LICENCES = {"builtin:general": "CC0-1.0", "builtin:world": "Apache-2.0", "none": "none (no personas)"}


def licence_of(config: PersonasConfig) -> str:
    """The licence of the source, as far as it is known."""
    return config.licence or LICENCES.get(config.source, "unknown: set personas.licence to the source's licence")


def source_identity(config: PersonasConfig, seed: int) -> dict[str, Any]:
    """What the personas depend on; a file counts by its content, wherever it lies."""
    found: dict[str, Any] = {
        "source": content_identity(config.source),
        "column": config.column,
        "revision": config.revision,
        "subset": config.subset,
    }
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
        key = int(make_id(row if config.source == "none" else text.casefold()), 16)  # smaller than the text
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
    elif path.is_dir():
        raise DataError(f"{source}: a folder. Name the file of personas in it with --personas.source")
    else:
        yield from _source_texts(config)


def _source_texts(config: PersonasConfig) -> Iterator[str]:
    """The texts of a file or hub data set; nulls are passed over."""
    rows = read_rows(
        config.source,
        [config.column],
        what="personas",
        option="--personas.revision",
        revision=config.revision,
        subset=config.subset,
    )
    for place, row in rows:
        if config.source.endswith(".txt"):
            yield row
        elif isinstance(row, dict) and isinstance(row.get(config.column), str):
            yield row[config.column]
        elif not isinstance(row, dict) or config.column not in row or row[config.column] is not None:
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"{place}: no text under the key {config.column!r} (it holds: {keys}). Name the key with --personas.column"
            )
