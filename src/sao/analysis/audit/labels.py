"""People's labels of a run's pairs: the file that `sao label` writes in, their verdict on each pair out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sao.data.readers import id_text, kind_of
from sao.errors import DataError

LEANS = {"first": 1, "second": -1, "tie": 0}
Words = dict[tuple[str, str], int]
"""A verdict by the ids of two answers in order: 1 for the first, −1 for the second, 0 for a tie."""
Label = tuple[str, str, int]
"""The ids of two answers in order, and the verdict as in `Words`."""


def read_labels(path: Path, must: bool) -> Words:
    """People's verdicts from a file of lines {"first_id", "second_id", "verdict", "by"}: each one's last word
    on a pair, and of several people the sum. A line without a verdict takes back that person's last word on
    its "prompt_id".

    Raises DataError where a line is no label, or where the file is not there but `must` be.
    """
    if not path.is_file():
        if must:
            raise DataError(
                f"{path}: no such file of labels. Make one with `sao label RUN`", key="labels file"
            )
        return {}
    last: dict[tuple[str, str], Label | None] = {}
    for where, row in _rows(path):
        labeller, prompt = _id(row, "by", where, ""), _id(row, "prompt_id", where, "")
        if row["verdict"] is None:
            last[labeller, prompt] = None
            continue
        first, second = _id(row, "first_id", where), _id(row, "second_id", where)
        low, high = sorted((first, second))
        lean = LEANS[row["verdict"]]
        last[labeller, prompt or f"{low}:{high}"] = (low, high, lean if first == low else -lean)
    totals: Words = {}
    for low, high, lean in filter(None, last.values()):
        totals[low, high] = totals.get((low, high), 0) + lean
    return {pair: (total > 0) - (total < 0) for pair, total in totals.items()}


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The labels with their places in the file; a last line that a kill has torn is left out."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise DataError(
                f"{where}: not a label, nor JSON ({error}). Mend or delete the line", key="labels"
            ) from error
        if not isinstance(row, dict) or row.get("verdict", "") not in (None, *LEANS):
            raise DataError(
                f"{where}: not a label (it needs first_id, second_id and verdict: first, second or tie)",
                key="labels",
            )
        yield where, row


def _id(row: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """The id or name under a key of a label; `default`, where one is given, for null and for a key that is
    not there."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    text = id_text(value)
    if not text and (default is None or value != default):
        raise DataError(
            f"{where}: not a label (under {key} stands {kind_of(value)}, and no id). Mend or delete the line",
            key="labels",
        )
    return text
