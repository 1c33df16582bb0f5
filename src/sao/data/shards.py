"""Which Parquet files of a folder make up a split, and whether each of them is there, once.

Whatever reads a folder of somebody else's would read a set short where a download left a shard out, and twice
where the file manager left a copy. Both are errors that name the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path

from sao.errors import DataError

_OTHER_SPLIT = re.compile(r"(train|test|valid|val|dev|eval)")
_NUMBERED = re.compile(r"(?P<name>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?P<rest>.*)", re.DOTALL)
"""train-00000-of-00002, or train-00000-of-00002-HASH as older versions of `datasets` write it."""
_COUNTED = re.compile(r"(?P<name>.*?)(?P<number>\d{4,})", re.DOTALL)
"""0000, part-00001: numbers without a total, of the same width."""
_WORD = "(?:copy|kopie|copie|copia|cópia|копия|副本)"
_COPY = re.compile(
    rf"{_WORD} (?:of|von|de) (?P<of>.+)"
    rf"|(?P<name>.+?)(?:[ _-]*\(\d+\)|[ _-]+\(?(?:another |\d+(?:st|nd|rd|th) )?{_WORD}\)?(?: ?\(?\d+\)?)?"
    r"| \([^()]*conflicted copy[^()]*\))",
    re.IGNORECASE | re.DOTALL,
)
"""What browsers and file managers make of a name: "X (1)", "X - Copy", "X copy 2", "Copy of X"."""
_SECOND = re.compile(r"(?P<name>.+) \d+", re.DOTALL)
"""macOS's "X 2", which may as well be a name of its own."""


def split_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split: SPLIT.parquet, SPLIT-*.parquet (also in data/, as on the hub), or all,
    where none is named after a split.

    Raises DataError where there are none, one is missing or there twice, or two sets lie there.
    """
    found = [own for place in (folder, folder / "data") if (own := _of_split(place, split))]
    if len(found) > 1:
        raise _twice(folder, split, found[0][0], found[1][0])
    if found:
        (files,) = found
        check_shards(files, (split,))
        whole = [file for file in files if file.stem == split]
        parts = [file for file in files if _NUMBERED.fullmatch(file.stem) or _COUNTED.fullmatch(file.stem)]
        if whole and parts:
            raise _twice(folder, split, whole[0], parts[0])
        return whole or files
    everything = sorted(folder.glob("*.parquet"))
    if everything and not any(_OTHER_SPLIT.match(_original(file.stem)) for file in everything):
        check_shards(everything)
        return everything
    if (folder / "manifest.json").is_file():
        raise DataError(f"{folder}: a run folder. Export its pairs first: sao export {folder} --out DIR")
    names = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{folder}: no {split}.parquet and no {split}-*.parquet in it (it holds: {names}). Name the file "
        "itself"
    )


def check_shards(files: Sequence[Path], taken: Collection[str] = ()) -> None:
    """Raise DataError where one of these files of one folder looks like a copy, or where a shard of theirs is
    missing or there twice. `taken`: names (without suffix) of which a copy is one even where the file itself
    is not there."""
    names = {file.stem for file in files} | set(taken)
    copied: dict[str, Path] = {}
    sets: dict[str, list[tuple[Path, re.Match[str]]]] = {}
    counted: dict[tuple[str, int], list[tuple[Path, re.Match[str]]]] = {}
    for file in files:
        original = _original(file.stem, names)
        if original != file.stem:
            if original in names or original in copied or _NUMBERED.fullmatch(original):
                raise DataError(
                    f"{file}: looks like a copy of {original}{file.suffix}; with it rows may be read twice. "
                    "Delete it, or "
                    "rename it if it is none"
                )
            copied[original] = file
        elif found := _NUMBERED.fullmatch(file.stem):
            sets.setdefault(found["name"], []).append((file, found))
        elif found := _COUNTED.fullmatch(file.stem):
            counted.setdefault((found["name"], len(found["number"])), []).append((file, found))
    for shards in sets.values():
        _check_set(shards)
    for shards in counted.values():
        _check_counted(shards)


def _check_set(shards: Sequence[tuple[Path, re.Match[str]]]) -> None:
    """Shards that say how many there are: all of one total, numbered from 0 (or from 1), each once."""
    first, found = shards[0]
    total = int(found["total"])
    there: dict[int, Path] = {}
    for file, match in shards:
        if int(match["total"]) != total:
            raise DataError(
                f"{file.parent}: shards of two sets, {first.name} and {file.name}. Keep the files of one of "
                "them"
            )
        number = int(match["number"])
        if number in there:
            raise DataError(
                f"{file.parent}: two files for one shard, {there[number].name} and {file.name}. Keep the "
                "right one"
            )
        there[number] = file
    start = 1 if total in there and 0 not in there else 0
    for number, file in there.items():
        if not start <= number < start + total:
            raise DataError(f"{file}: no shard of a set of {total}. Take it out, or copy the whole set again")
    if len(there) < total:
        missing = next(number for number in count(start) if number not in there)
        rest = f"-*{first.suffix}" if found["rest"] else first.suffix
        name = f"{found['name']}{missing:0{len(found['number'])}d}-of-{found['total']}{rest}"
        raise DataError(
            f"{first.parent}: {name} is missing: the folder holds {len(there)} of {total} shards. Copy the "
            "whole set again, or "
            "name one file"
        )


def _check_counted(shards: Sequence[tuple[Path, re.Match[str]]]) -> None:
    """Shards that are merely numbered, from 0 or 1 on: no number is left out. Other numbers (years, say) say
    nothing."""
    numbers = {int(match["number"]) for _, match in shards}
    lowest = min(numbers)
    missing = next(number for number in count(lowest) if number not in numbers)
    if lowest <= 1 and missing < max(numbers):
        first, match = shards[0]
        raise DataError(
            f"{first.parent}: {match['name']}{missing:0{len(match['number'])}d}{first.suffix} is missing: "
            "the files are numbered "
            f"up to {max(numbers)}. Copy the whole set again, or number them without a gap"
        )


def _of_split(place: Path, split: str) -> list[Path]:
    """The files in a folder that are named after a split, copies among them."""
    files = sorted(place.glob("*.parquet"))
    names = {file.stem for file in files}
    originals = [_original(file.stem, names) for file in files]
    return [file for file, name in zip(files, originals) if name == split or name.startswith(f"{split}-")]


def _original(name: str, names: Collection[str] = ()) -> str:
    """The name (without suffix) of which this one looks like a copy; the name itself where it looks like
    none."""
    while found := _COPY.fullmatch(name):
        name = found["of"] or found["name"]
    found = _SECOND.fullmatch(name)
    return found["name"] if found and (found["name"] in names or _NUMBERED.fullmatch(found["name"])) else name


def _twice(folder: Path, split: str, one: Path, other: Path) -> DataError:
    return DataError(
        f"{folder}: holds the split {split} twice, as {one.relative_to(folder)} and as "
        f"{other.relative_to(folder)}. Keep one, or "
        "name the file or folder itself"
    )
