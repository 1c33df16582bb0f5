"""The items of a file that is a JSON array, or several arrays one after another, or objects over several
lines, read piece by piece.

Joined files, and writers that work chunk by chunk, leave several arrays. Their items are one list where all
are records. Where they are chat messages, texts or numbers, each array may also be one row: that is an error;
nothing is guessed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from sao.data.messages import is_whole_message
from sao.errors import DataError

_SPACE = re.compile(r"[\s\ufeff]*")
_GOES_ON = 4
"""Characters after a number in which it may go on ("1" of "1e+5"), where a piece of the file ends."""
_ONE_A_LINE = (
    'Write one record a line, as .jsonl (a whole conversation as one record: {"messages": [...]}), or put '
    "all records into one array"
)


def array_rows(path: Path, binary: BinaryIO, *, piece: int, longest: int) -> Iterator[tuple[str, Any]]:
    """Each item with its place, counted through all arrays of the file.

    Args:
        path: The file's name, for messages.
        binary: The open file; its first character that is no white space is a bracket.
        piece: How many characters are read at a time.
        longest: How many characters an item may have.

    Raises:
        DataError: Where the file is broken, cut off, holds anything but arrays, or several arrays of no
            records.

    """
    return _placed(path, binary, piece, longest, _Arrays.rows)


def object_rows(path: Path, binary: BinaryIO, *, piece: int, longest: int) -> Iterator[tuple[str, Any]]:
    """The same for objects one after another, each over as many lines as it likes (indented JSON)."""
    return _placed(path, binary, piece, longest, _Arrays.objects)


def _placed(
    path: Path, binary: BinaryIO, piece: int, longest: int, read: Callable[[_Arrays], Iterator[Any]]
) -> Iterator[tuple[str, Any]]:
    with io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
        arrays = _Arrays(path, file, piece, longest)
        try:
            for row in read(arrays):
                yield arrays.place, row
                arrays.number += 1
        except (UnicodeDecodeError, RecursionError, TwiceError) as error:
            raise DataError(
                f"{arrays.place}: not UTF-8 text, or not JSON ({error}). Mend the file", key="JSON"
            ) from error


class TwiceError(Exception):
    """An object has two values under one key. No ValueError, as for one that goes on in the next piece."""


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON by its keys. Raises TwiceError for two different values under one of them."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if repr(found[key]) != repr(value):  # by repr: NaN is not equal to itself
                raise TwiceError(f"two values under the key {key!r}")
    return found


class _Arrays:
    """A file of arrays: the piece of it that is in memory (`_text`, read up to `_at`), and the number of the
    current item."""

    def __init__(self, path: Path, file: TextIO, piece: int, longest: int) -> None:
        self.number = 0
        self._path, self._file, self._piece, self._longest = path, file, piece, longest
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder(object_pairs_hook=distinct)

    @property
    def place(self) -> str:
        return f"{self._path}, item {self.number}"

    def rows(self) -> Iterator[Any]:
        """The items of all arrays."""
        arrays, odd = 0, ""
        while self._opens(first=arrays == 0):
            arrays += 1
            for item in self._items():
                if not odd and (kind := _no_record(item)):
                    odd = f"{self.place}: {kind}"
                if odd and arrays > 1:
                    raise self._unclear(odd)
                yield item
            if odd and arrays > 1:
                raise self._unclear(odd)

    def objects(self) -> Iterator[Any]:
        """The objects that stand one after another."""
        while follows := self._next():
            if follows != "{":
                end = self._text[self._at : self._at + 40]
                raise DataError(f"{self.place}: no object, but {end!r}. {_ONE_A_LINE}", key="JSON")
            yield self._value()

    def _unclear(self, odd: str) -> DataError:
        return DataError(
            f"{odd}, in a file of several arrays, so that each array may be one row. {_ONE_A_LINE}",
            key="JSON",
        )

    def _opens(self, *, first: bool) -> bool:
        """Whether one more array begins here; its bracket is passed. Between two arrays may stand a comma."""
        comma = not first and self._next() == ","
        self._at += comma
        follows = self._next()
        if follows == "[":
            self._at += 1
            return True
        if follows:
            end = self._text[self._at : self._at + 40]
            raise DataError(
                f"{self.place}: after the end of the array stands {end!r}. {_ONE_A_LINE}", key="JSON"
            )
        if comma:
            raise DataError(
                f"{self.place}: the file ends after a comma. Copy it again, or take the comma off", key="JSON"
            )
        return False

    def _items(self) -> Iterator[Any]:
        """The items of the array whose bracket was passed; its other bracket is passed too."""
        while self._next() != "]":
            item = self._value()
            follows = self._next()
            if follows not in (",", "]"):
                raise DataError(
                    f"{self.place}: not JSON ({'no comma' if follows else 'the file ends'} after it). Mend "
                    "the file, or copy it again if it was cut off",
                    key="JSON",
                )
            yield item
            self._at += follows == ","
        self._at += 1

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError as error:
                why = getattr(error, "msg", error)
                if len(self._text) - self._at > self._longest:
                    raise DataError(
                        f"{self.place}: longer than {self._longest >> 20} MB, or not JSON ({why}). Mend it "
                        "or take it out",
                        key="JSON",
                    ) from error
                if not self._more():  # else the value only continues in the next piece
                    raise DataError(
                        f"{self.place}: not JSON ({why}). Mend the file, or copy it again if it was cut off",
                        key="JSON",
                    ) from error
                continue
            size = end - self._at
            if len(self._text) - end < _GOES_ON and self._more():
                continue
            self._at += size
            return value

    def _next(self) -> str:
        """The next character that is neither white space nor a byte order mark; "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self) -> bool:
        """Read the next piece and drop what was read before; False at the end of the file."""
        rest = self._text[self._at :]
        new = self._file.read(max(self._piece, len(rest)))
        self._text, self._at = rest + new, 0
        return bool(new)


def _no_record(item: Any) -> str:
    """Why an item is no record of its own, "" where it is one."""
    if not isinstance(item, dict):
        return "no record (an object)"
    return "a chat message" if is_whole_message(item) else ""
