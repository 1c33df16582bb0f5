"""Evaluation sets by name, file or hub id: where each lies, and the texts of its items.

Enters: a set as the user names it. Leaves: its place (`Source`), or its items (`Benchmark`). None of the
sets' data is in this repository; a preset names a public set at a pinned revision, `NAME=FILE` reads a copy
of yours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sao.data.readers import SUFFIXES, content_identity, kind_of, read_rows
from sao.errors import ConfigError, DataError

GUESSED = (
    "turns",
    "messages",
    "instruction",
    "prompt",
    "question",
    "problem",
    "ctx",
    "sentence",
    "text",
    "content",
    "goal",
    "input",
)
"""Columns that hold the question in the sets that people evaluate on, in any case; the first that holds
something is read."""

PRESETS = {
    "alpaca_eval": "tatsu-lab/alpaca_eval@2edc6fad8be6b14ea7230aabfd08188da6b8b814:alpaca_eval.json#instruction",  # noqa: E501
    "mt_bench": "HuggingFaceH4/mt_bench_prompts@e3a795c5e9a82ee40611c416b8a7786c73198991::train#prompt",
    "arena_hard": "lmarena-ai/arena-hard-auto@15f3746e21432264ce9b453999bde4f3c946d2e6:data/arena-hard-v2.0/question.jsonl",  # noqa: E501
    "arena_hard_v0.1": "lmarena-ai/arena-hard-auto@15f3746e21432264ce9b453999bde4f3c946d2e6:data/arena-hard-v0.1/question.jsonl",  # noqa: E501
    "gsm8k": "openai/gsm8k@740312add88f781978c0658806c59bc2815b9866:main:test#question",
    "truthfulqa": "truthfulqa/truthful_qa@741b8276f2d1982aa3d5b832d3ee81ed3b896490:generation:validation#question",  # noqa: E501
    "hellaswag": "Rowan/hellaswag@218ec52e09a7e7462a5400043bb9a69a41d06b76::validation#ctx",
    "winogrande": "allenai/winogrande@01e74176c63542e6b0bcb004dcdea22d94fb67b5:winogrande_xl:validation#sentence",  # noqa: E501
    "arc": "allenai/ai2_arc@210d026faf9955653af8916fad021475a3f00453:ARC-Challenge:test#question",
    "mmlu": "cais/mmlu@c30699e8356da336a370243923dbaf21066bb9fe:all:test#question",
    "ifeval": "google/IFEval@966cd89545d6b6acfd7638bc708b98261ca58e84::train#prompt",
    "humaneval": "openai/openai_humaneval@7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544::test#prompt",
    "mbpp": "google-research-datasets/mbpp@4bb6404fdc6cacfda99d4ac4205087b89d32030c:full:test#text",
}
"""Public evaluation sets by name, at revisions that others pin too; by one file where `datasets` cannot read
the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a set lies: a file (`path`); or a hub id with revision, subset and split, or with revision and a
    `file` in it."""

    name: str
    path: str
    revision: str | None = None
    subset: str | None = None
    split: str = "test"
    file: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        place = self.file or f"{self.subset or ''}:{self.split}"
        return self.path if self.revision is None else f"{self.path}@{self.revision}:{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """An evaluation set's items: (number and, where an item has several texts, which; text); and where they
    come from."""

    name: str
    items: list[tuple[str, str]]
    source: str = ""

    @property
    def digest(self) -> str:
        """What was loaded: SHA-256 over the items, 16 digits of it."""
        found = hashlib.sha256()
        for item in self.items:
            found.update("\x1f".join((*item, "")).encode("utf-8", "surrogatepass"))
        return found.hexdigest()[:16]


def parse_source(given: str) -> Source:
    """A set as the user names it: PRESET, PRESET@REVISION, PRESET=FILE, FILE, ID@REVISION[:SUBSET[:SPLIT]] or
    ID@REVISION:FILE; each with #COLUMN or without.

    Raises ConfigError for a name that is none of these.
    """
    if Path(given).exists():
        return Source(name=Path(given).name, path=given)
    place, _, column = given.partition("#")
    name, is_file, file = place.partition("=")
    base, at, rest = place.partition("@")
    if is_file and re.fullmatch(r"[\w.-]+", name):
        found = Source(name=name, path=file)
    elif base in PRESETS:
        preset = parse_source(PRESETS[base])
        found = replace(preset, name=base, revision=rest or preset.revision)
    elif at and re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        revision, subset, split = [*rest.split(":"), "", ""][:3]
        found = Source(name=base, path=base, revision=revision or "main")
        if subset.endswith(SUFFIXES):
            found = replace(found, file=subset)
        else:
            found = replace(found, subset=subset or None, split=split or "test")
    elif re.fullmatch(r"[\w-]+", place):
        raise ConfigError(
            f"no evaluation set {place!r}: the presets are {', '.join(PRESETS)}. Give one of them, a file, "
            "or a hub id as "
            "ID@REVISION"
        )
    else:
        found = Source(name=place.rsplit("/", 1)[-1], path=place)
    return replace(found, column=column) if column else found


def source_identity(given: str) -> str:
    """What a set is, wherever it lies: the hash of its file or its place on the hub, and the column. Raises
    as `parse_source`."""
    source = parse_source(given)
    place = content_identity(source.path) if source.revision is None else str(source)
    return place + (f"#{source.column}" if source.column else "")


def on_disk(source: Source) -> Source:
    """The same set; where it is one file of a hub data set, that file, fetched. Raises DataError where it
    cannot be."""
    if source.file is None:
        return source
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(source.path, source.file, repo_type="dataset", revision=source.revision)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source}: cannot be fetched from the hub ({type(error).__name__}: {error}). Check the network "
            "and, for gated data, "
            f"HF_TOKEN; or give a copy of yours: {source.name}=FILE"
        ) from error
    return replace(source, path=path, revision=None, file=None)


def load_benchmarks(sets: Iterable[str]) -> list[Benchmark]:
    """The sets that the user names. Raises DataError for one that cannot be read or holds no texts,
    ConfigError for no name."""
    found: dict[str, Benchmark] = {}
    for given in dict.fromkeys(sets):
        source = parse_source(given)
        if source.name in found:
            source = replace(source, name=given)
        found[source.name] = _load(source)
    return list(found.values())


def _load(source: Source) -> Benchmark:
    place = on_disk(source)
    options: dict[str, Any] = {"revision": place.revision, "subset": place.subset, "split": place.split}
    columns = [place.column] if place.column else GUESSED
    rows = read_rows(
        place.path, columns, what="evaluation items", option="@REVISION after its name", **options
    )
    items: list[tuple[str, str]] = []
    for number, (where, row) in enumerate(rows):
        texts = _texts(row, place.column, where)
        items += [
            (str(number) if len(texts) == 1 else f"{number}.{i + 1}", text) for i, text in enumerate(texts)
        ]
    if not items:
        raise DataError(
            f"{source}: holds no evaluation items. Is it the right file, subset, split and column?"
        )
    return Benchmark(name=source.name, items=items, source=str(source))


def _texts(row: Any, column: str | None, place: str) -> list[str]:
    """The texts of an item: one, or one for each turn of the user; none where nothing stands in its
    column."""
    if isinstance(row, str):
        return [row] if row.strip() else []
    columns = row if isinstance(row, dict) else {}
    named = (
        [column]
        if column
        else sorted((c for c in columns if c.lower() in GUESSED), key=lambda c: GUESSED.index(c.lower()))
    )
    there = [name for name in named if name in columns]
    key = next((name for name in there if columns[name] not in (None, "", [])), None)
    value = None if key is None else columns[key]
    turns = value if isinstance(value, list) else [] if value is None else [value]
    said = [_said(turn) for turn in turns if _by_user(turn)]
    odd = next((text for text in said if not isinstance(text, str | None)), None)
    if not there or odd is not None or (turns and not any(isinstance(text, str) for text in said)):
        instead = "" if odd is None else f", but {kind_of(odd)} under {key}"
        held = ", ".join(columns) or type(row).__name__
        raise DataError(
            f"{place}: no text under {column or ' or '.join(GUESSED)}{instead} (it holds: {held}). Name the "
            "column after the "
            "set: SET#COLUMN"
        )
    return [text for text in said if isinstance(text, str) and text.strip()]


def _by_user(turn: Any) -> bool:
    """Whether the user says this turn of a conversation; whatever is no message is the user's."""
    return not isinstance(turn, dict) or turn.get("role", turn.get("from", "user")) in ("user", "human")


def _said(turn: Any) -> Any:
    """What a turn of a conversation says."""
    return turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
