"""Export: the finished pairs as a data set that TRL reads, `prompt`/`chosen`/`rejected` as lists of chat messages.

Train and test are disjoint by persona: a hash of the persona's id decides, so that a pair stays where it is when more are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sao.errors import DataError, StoreError
from sao.store import store_error
from sao.types import PreferencePair, Prompt, Response, make_id

Labelled = Iterable[tuple[Prompt, PreferencePair, Response, Response]]


def in_test(persona_id: str, share: float) -> bool:
    """Whether this persona's pairs belong to the test set."""
    return int(make_id("test", persona_id), 16) / 2**64 < share


def row_of(
    prompt: Prompt, pair: PreferencePair, chosen: Response, rejected: Response, system: str | None
) -> dict[str, Any]:
    """One pair in TRL's conversational form, with ids and the judge's certainty as further columns."""
    opening = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt.text}]
    return {
        "prompt": opening,
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "p_chosen": pair.p_chosen,
        "margin": pair.margin,
        "margin_sd": pair.margin_sd,
        "id": pair.id,
        "prompt_id": prompt.id,
        "persona_id": prompt.persona_id,
        "chosen_id": chosen.id,
        "rejected_id": rejected.id,
    }


def export_pairs(labelled: Labelled, out: Path, system: str | None, test_share: float = 0.05) -> dict[str, Any]:
    """Write out/train.parquet and out/test.parquet, each arriving by rename; the number of rows in each and the paths.

    Memory stays flat: rows are written in groups of 10,000. Raises DataError for a share outside [0, 1), StoreError where the
    folder cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    if not 0 <= test_share < 1:
        raise DataError(f"--test-share {test_share}: give a share from 0 up to, but not, 1")
    message = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    schema = pyarrow.schema(
        [(name, message) for name in ("prompt", "chosen", "rejected")]
        + [(name, pyarrow.float64()) for name in ("p_chosen", "margin", "margin_sd")]
        + [(name, pyarrow.string()) for name in ("id", "prompt_id", "persona_id", "chosen_id", "rejected_id")]
    )
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    counts = {"train": 0, "test": 0}
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = {split: out / f".{split}.parquet.tmp" for split in rows}
        writers = {split: pyarrow.parquet.ParquetWriter(path, schema) for split, path in temporary.items()}
        for prompt, pair, chosen, rejected in labelled:
            split = "test" if in_test(prompt.persona_id, test_share) else "train"
            rows[split].append(row_of(prompt, pair, chosen, rejected, system))
            counts[split] += 1
            if len(rows[split]) == 10_000:
                writers[split].write_table(pyarrow.Table.from_pylist(rows[split], schema))
                rows[split].clear()
        for split, writer in writers.items():
            writer.write_table(pyarrow.Table.from_pylist(rows[split], schema))
            writer.close()
            temporary[split].replace(out / f"{split}.parquet")
    except OSError as error:
        for path in (out / ".train.parquet.tmp", out / ".test.parquet.tmp"):
            path.unlink(missing_ok=True)
        if isinstance(error, StoreError):
            raise
        raise store_error(error, out) from error
    return counts | {"paths": [str(out / "train.parquet"), str(out / "test.parquet")]}
