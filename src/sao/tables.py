"""One table, printed as plain text or as Markdown from the same rows.

Columns and rows of cells in, text out. A row may have fewer cells than there are columns, such as a title
between the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Interval = Sequence[float]
MISSING = "–"
"""The cell of a figure that is not known."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its head, the side that its cells stand at, and in plain text its least width and the spaces
    before it."""

    head: str = ""
    align: Literal["left", "right"] = "left"
    width: int = 0
    gap: int = 1


def plain_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], heads: bool = True) -> list[str]:
    """The lines of the table in plain text, each column as wide as its longest cell."""
    lines = [*([[column.head for column in columns]] if heads else []), *(list(row) for row in rows)]
    widths = [
        max([column.width, *(len(line[k]) for line in lines if len(line) > max(1, k))])
        for k, column in enumerate(columns)
    ]
    return ["".join(_padded(line, columns, widths)).rstrip() for line in lines]


def _padded(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> Iterator[str]:
    for number, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=False)):
        yield " " * column.gap if number else ""
        yield cell.rjust(width) if column.align == "right" else cell.ljust(width)


def markdown_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of the table in Markdown."""
    rules = ["---:" if column.align == "right" else "---" for column in columns]
    lines = [_markdown_row([column.head for column in columns]), f"|{'|'.join(rules)}|"]
    return lines + [_markdown_row(row) for row in rows]


def _markdown_row(cells: Iterable[str]) -> str:
    """The cells in one line; an empty one takes one space."""
    texts = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return "|" + "|".join(f" {text} " if text else " " for text in texts) + "|"


# Cells.


def number(value: float | None, digits: int = 2) -> str:
    """A figure with so many digits, never −0; a whole number as it is."""
    if value is None:
        return MISSING
    return f"{value:,}" if isinstance(value, int) else f"{value:z,.{digits}f}"


def percent(value: float | None, digits: int = 1, unit: str = " %") -> str:
    """A share in percent."""
    return MISSING if value is None else f"{100 * value:z.{digits}f}{unit}"


def percent_with_interval(value: float | None, interval: Interval | None, digits: int = 1) -> str:
    """A share in percent with its 95 % interval, where there is one."""
    if value is None or interval is None:
        return percent(value, digits)
    low, high = (f"{100 * end:z.{digits}f}" for end in interval)
    return f"{percent(value, digits)} [{low}, {high}]"
