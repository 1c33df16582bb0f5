"""Which Parquet files of a folder make up a split, and whether each of them is there, once.

A download may leave a shard out, and a file manager may leave a copy: rows would be missing, or read twice.
Both are errors that name the file, as are unfinished downloads and the same split in another format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from itertools import count
from pathlib import Path

from sao.errors import DataError

_OTHER_SPLIT = re.compile(r"(train|test|valid|val|dev|eval)")
_NUMBERED = re.compile(
    r"(?P<name>.*?)(?P<number>\d+)(?P<of>[-_. ]?of[-_. ]?)(?P<total>\d+)(?P<rest>.*)", re.DOTALL
)
"""train-00000-of-00002, or train-00000-of-00002-HASH as older versions of `datasets` write it."""
_COUNTED = re.compile(r"(?P<name>.*?)(?P<number>\d+)", re.DOTALL)
"""0000, part-00001, part.7: numbers without a total."""
_UNFINISHED = (".part", ".crdownload", ".download", ".incomplete", ".partial", ".aria2", ".tmp")
"""What browsers and tools add to the name of a file that they still write."""
_OTHER_FORMATS = re.compile(r"\.(jsonl|csv|arrow|parq|pq|json|txt)(\.gz)?$", re.IGNORECASE)
_ALWAYS_DATA = re.compile(r"\.(jsonl|csv|arrow|parq|pq)(\.gz)?$", re.IGNORECASE)
"""The same without the kinds that often hold something else than rows."""
_WORD = "(?:copy|kopie|copie|copia|cópia|копия|副本)"
_COPY = re.compile(
    rf"{_WORD} (?:of|von|de) (?P<of>.+)"
    rf"|(?P<name>.+?)(?:[ _-]*\(\d+\)|[ _-]+\(?(?:another |\d+(?:st|nd|rd|th) )?{_WORD}\)?(?: ?\(?\d+\)?)?"
    r"| \([^()]*conflicted copy[^()]*\))",
    re.IGNORECASE | re.DOTALL,
)
"""How browsers and file managers name a copy of X: "X (1)", "X - Copy", "X copy 2", "Copy of X"."""
_SECOND = re.compile(r"(?P<name>.+) \d+", re.DOTALL)
"""macOS's "X 2", which may also be a name of its own."""
Shards = list[tuple[Path, re.Match[str]]]
"""Files, each with the numbers in its name."""


def split_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split: SPLIT.parquet, SPLIT-*.parquet, with - or _ or . (also in data/, as on
    the hub), or all, where none is named after a split.

    Raises DataError where there are none, one is missing or there twice, or two sets lie there.
    """
    of_split = [files for place in (folder, folder / "data") if (files := _of_split(place, split))]
    if len(of_split) > 1:
        raise _twice(folder, split, of_split[0][0], of_split[1][0])
    if of_split:
        files = _whole_or_shards(folder, split, of_split[0])
        _check_neighbours(files, lambda name: bool(_is_of(name, split) and _OTHER_FORMATS.search(name)))
        return files
    all_files = _parquet_in(folder)
    if all_files and not any(_OTHER_SPLIT.match(_original(file.stem)) for file in all_files):
        check_shards(all_files)
        _check_neighbours(all_files, lambda name: bool(_ALWAYS_DATA.search(name)))
        return all_files
    if (folder / "manifest.json").is_file():
        raise DataError(
            f"{folder}: a run folder. Export its pairs first: sao export {folder} --out DIR",
            key="data folder",
        )
    names = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{folder}: no {split}.parquet and no {split}-*.parquet in it (it holds: {names}). Name the file "
        "itself",
        key="data folder",
    )


def _parquet_in(folder: Path) -> list[Path]:
    """The Parquet files of a folder, hidden ones left out."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(f for f in files if f.suffix.lower() == ".parquet" and not f.name.startswith("."))


def _is_of(name: str, split: str) -> bool:
    """Whether a file is named after a split."""
    return bool(re.match(rf"{re.escape(split)}[-_.]", name))


def _check_neighbours(files: Sequence[Path], is_other: Callable[[str], bool]) -> None:
    """Raise DataError where beside these Parquet files lies a download that is not finished, or rows in
    another format (`is_other`)."""
    for file in sorted(files[0].parent.iterdir()):
        name = file.name.lower()
        if ".parquet" in name and name.endswith(_UNFINISHED):
            raise DataError(
                f"{file}: a download that is not finished. Finish it, or delete this file", key="shards"
            )
        if is_other(file.name):
            raise DataError(
                f"{file.parent}: holds rows in two formats, {files[0].name} and {file.name}. Keep one of "
                "them, or name the file itself",
                key="data folder",
            )


def _whole_or_shards(folder: Path, split: str, files: list[Path]) -> list[Path]:
    """The one file of a split, or all its shards."""
    check_shards(files, (split,))
    whole = [file for file in files if file.stem == split]
    shards = [file for file in files if _NUMBERED.fullmatch(file.stem) or _COUNTED.fullmatch(file.stem)]
    if whole and shards:
        raise _twice(folder, split, whole[0], shards[0])
    return whole or files


def check_shards(files: Sequence[Path], taken: Collection[str] = ()) -> None:
    """Raise DataError where one of these files of one folder looks like a copy, or where a shard of theirs is
    missing or there twice. `taken`: names (without suffix) of which a copy is one even where the file itself
    is not there."""
    names = {file.stem for file in files} | set(taken)
    copied: dict[str, Path] = {}
    sets: dict[str, Shards] = {}
    counted: dict[str, Shards] = {}
    for file in files:
        original = _original(file.stem, names)
        if original != file.stem:
            if original in names or original in copied or _NUMBERED.fullmatch(original):
                raise DataError(
                    f"{file}: looks like a copy of {original}{file.suffix}; with it rows may be read twice. "
                    "Delete it, or rename it if it is none",
                    key="shards",
                )
            copied[original] = file
        elif match := _NUMBERED.fullmatch(file.stem):
            sets.setdefault(match["name"], []).append((file, match))
        elif match := _COUNTED.fullmatch(file.stem):
            counted.setdefault(match["name"], []).append((file, match))
    for shards in sets.values():
        _check_set(shards)
    for shards in counted.values():
        _check_counted(shards)


def _check_set(shards: Shards) -> None:
    """Shards that say how many there are: all of one total, numbered from 0 (or from 1), each once."""
    first, first_match = shards[0]
    total = int(first_match["total"])
    by_number: dict[int, Path] = {}
    for file, match in shards:
        number = int(match["number"])
        if int(match["total"]) != total:
            raise DataError(
                f"{file.parent}: shards of two sets, {first.name} and {file.name}. Keep the files of one of "
                "them",
                key="shards",
            )
        if number in by_number:
            raise DataError(
                f"{file.parent}: two files for one shard, {by_number[number].name} and {file.name}. Keep the "
                "right one",
                key="shards",
            )
        by_number[number] = file
    start = 1 if total in by_number and 0 not in by_number else 0
    for number, file in by_number.items():
        if not start <= number < start + total:
            raise DataError(
                f"{file}: no shard of a set of {total}. Take it out, or copy the whole set again",
                key="shards",
            )
    if len(by_number) < total:
        missing = next(number for number in count(start) if number not in by_number)
        raise DataError(
            f"{first.parent}: {_name_of(missing, first_match, first.suffix)} is missing: the folder holds "
            f"{len(by_number)} of {total} shards. Copy the whole set again, or name one file",
            key="shards",
        )


def _name_of(number: int, sibling: re.Match[str], suffix: str) -> str:
    """The name of a shard, after that of another one of its set; a hash in it is not known."""
    padded = f"{number:0{len(sibling['number'])}d}"
    rest = "-*" if sibling["rest"] else ""
    return f"{sibling['name']}{padded}{sibling['of']}{sibling['total']}{rest}{suffix}"


def _check_counted(shards: Shards) -> None:
    """Shards that are only numbered, from 0 or 1 on: no number is missing. Numbers that start elsewhere
    (years, say) are not checked."""
    numbers = {int(match["number"]) for _, match in shards}
    lowest = min(numbers)
    missing = next(number for number in count(lowest) if number not in numbers)
    if lowest <= 1 and missing < max(numbers):
        first, match = shards[0]
        raise DataError(
            f"{first.parent}: {match['name']}{missing:0{len(match['number'])}d}{first.suffix} is missing: "
            f"the files are numbered up to {max(numbers)}. Copy the whole set again, or number them without "
            "a gap",
            key="shards",
        )


def _of_split(place: Path, split: str) -> list[Path]:
    """The files in a folder that are named after a split, copies among them."""
    files = _parquet_in(place)
    names = {file.stem for file in files}
    originals = [_original(file.stem, names) for file in files]
    return [file for file, name in zip(files, originals) if name == split or _is_of(name, split)]


def _original(name: str, names: Collection[str] = ()) -> str:
    """The name (without suffix) of which this one looks like a copy; the name itself where it looks like
    none."""
    while copy := _COPY.fullmatch(name):
        name = copy["of"] or copy["name"]
    second = _SECOND.fullmatch(name)
    is_copy = second and (second["name"] in names or _NUMBERED.fullmatch(second["name"]))
    return second["name"] if second and is_copy else name


def _twice(folder: Path, split: str, one: Path, other: Path) -> DataError:
    return DataError(
        f"{folder}: holds the split {split} twice, as {one.relative_to(folder)} and as "
        f"{other.relative_to(folder)}. Keep one, or name the file or folder itself",
        key="data folder",
    )
