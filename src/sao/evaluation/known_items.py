"""What a suite with known answers is made of, and how its file is found and read.

Enters: a folder of files in their sources' own forms (`--data-dir`). Leaves: items, each with what is asked
and a function that says what an answer earns. A suite is either written (the model answers by its chat
template, greedily) or chosen (the model's log-probabilities of the endings of a text).

    sao.evaluation.known_suites.KNOWN      the suites
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sao.data.readers import kind_of, read_rows
from sao.errors import ConfigError, DataError
from sao.evaluation.questions import Question

Points = tuple[float, float]
"""Points earned, and how many there were: (1, 1) for a right answer, (2, 3) for two of three instructions."""
Scored = Mapping[str, Points]
"""By measure. A measure that an item is not part of is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A figure of a suite: the points earned over all questions, divided by those that there were."""

    name: str
    title: str
    """What it is called in tables; it is shown in percent."""
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenItem:
    """A question that the model answers in writing."""

    question: Question
    score: Callable[[str], Scored]
    """What an answer earns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenItem:
    """A text, whose endings the model weighs."""

    question: Question
    continuations: tuple[str, ...]
    """The endings, with what stands between them and the text."""
    score: Callable[[Sequence[float]], Scored]
    """What the log-probabilities of the endings earn."""


Items = Sequence[WrittenItem | ChosenItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSuite:
    """A suite whose answers a program checks. The first measure is the main one."""

    name: str
    title: str
    measures: tuple[Measure, ...]
    read: Callable[[str], Items]
    """The items of a file."""
    files: tuple[str, ...] = ()
    """Patterns of its file's name in the folder, the best first; () where the questions come with SAO."""
    shipped: Path | None = None
    """The file that comes with SAO."""
    max_tokens: int | None = None
    """Longest answer in tokens, where only its beginning is wanted; else it is responses.max_tokens."""


def find_file(suite: KnownSuite, folder: Path | None, given: str | None = None) -> str:
    """The suite's file: the one that is given, else the one that comes with SAO, else the one in the folder.

    Raises ConfigError where there is none, or more than one fits.
    """
    if given is not None:
        return given
    if suite.shipped is not None:
        return str(suite.shipped)
    names = ", ".join(suite.files)
    if folder is None:
        raise ConfigError(
            f"suite {suite.name} needs its questions: give the folder of its file ({names}) as "
            f"--data-dir DIR, or the file itself as --questions {suite.name}=FILE",
            key="--data-dir",
        )
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder (--data-dir)", key="--data-dir")
    for pattern in suite.files:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1:
            both = " and ".join(str(path.relative_to(folder)) for path in found)
            raise ConfigError(
                f"{folder}: {both} may both be the questions of suite {suite.name}. Name one: "
                f"--questions {suite.name}=FILE",
                key="--data-dir",
            )
        if found:
            return str(found[0])
    raise ConfigError(
        f"{folder}: no file for suite {suite.name}; looked for {names}. Put the file there under one of "
        f"these names, or give --questions {suite.name}=FILE",
        key="--data-dir",
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file, and its place for messages."""

    place: str
    fields: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The first of these fields that holds a text. Raises DataError where none does."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, str) and value.strip():
                return value
        raise self.error(f"no text under {' or '.join(names)}", names[0])

    def optional_text(self, name: str) -> str | None:
        """The text of a field, None where it has none or is empty."""
        value = self.fields.get(name)
        return value if isinstance(value, str) and value.strip() else None

    def texts(self, name: str) -> list[str]:
        """The texts of a field that holds a list of them. Raises DataError where it does not."""
        value = self.fields.get(name)
        texts = value if isinstance(value, list) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise self.error(f"no list of texts under {name}", name)
        return texts

    def error(self, what: str, name: str) -> DataError:
        """An error about this row: what is wrong, and what stands there instead."""
        there = f"; under {name} stands {kind_of(self.fields[name])}" if name in self.fields else ""
        return DataError(
            f"{self.place}: {what} (the row holds: {', '.join(self.fields)}{there}). Put it right, or take "
            "the row out",
            key="questions",
        )


def rows_of(path: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file. Raises DataError for one that is no record, and for a file without rows."""
    empty = True
    for place, row in read_rows(path, [], columns, what="questions", option="@REVISION after its name"):
        empty = False
        if not isinstance(row, dict):
            raise DataError(
                f"{place}: no record, but {kind_of(row)}. Each row is an object with {', '.join(columns)}",
                key="questions",
            )
        yield Row(place, row)
    if empty:
        raise DataError(f"{path}: holds no questions", key="questions")
