"""Evaluation sets by name, file or hub id: where each is, and the texts of its items.

In: a set as the user names it. Out: its place (`Source`), or its items (`Benchmark`). None of the sets' data
is in this repository; a preset names a public set at a pinned revision, `NAME=FILE` reads a copy of yours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sao.data.messages import ChatError, turns_of
from sao.data.readers import SUFFIXES, content_identity, hub_errors, kind_of, read_rows
from sao.errors import ConfigError, DataError

QUESTION_COLUMNS = (
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
"""Columns that hold the question in the sets that people evaluate on, in any case; the first that is not
empty is read."""

_ARENA_HARD = "lmarena-ai/arena-hard-auto@15f3746e21432264ce9b453999bde4f3c946d2e6"
PRESETS = {
    "alpaca_eval": "tatsu-lab/alpaca_eval@2edc6fad8be6b14ea7230aabfd08188da6b8b814"
    ":alpaca_eval.json#instruction",
    "mt_bench": "HuggingFaceH4/mt_bench_prompts@e3a795c5e9a82ee40611c416b8a7786c73198991::train#prompt",
    "arena_hard": f"{_ARENA_HARD}:data/arena-hard-v2.0/question.jsonl",
    "arena_hard_v0.1": f"{_ARENA_HARD}:data/arena-hard-v0.1/question.jsonl",
    "gsm8k": "openai/gsm8k@740312add88f781978c0658806c59bc2815b9866:main:test#question",
    "truthfulqa": "truthfulqa/truthful_qa@741b8276f2d1982aa3d5b832d3ee81ed3b896490"
    ":generation:validation#question",
    "hellaswag": "Rowan/hellaswag@218ec52e09a7e7462a5400043bb9a69a41d06b76::validation#ctx",
    "winogrande": "allenai/winogrande@01e74176c63542e6b0bcb004dcdea22d94fb67b5"
    ":winogrande_xl:validation#sentence",
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
        digest = hashlib.sha256()
        for item in self.items:
            digest.update("\x1f".join((*item, "")).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def parse_source(given: str) -> Source:
    """A set as the user names it: PRESET, PRESET@REVISION, PRESET=FILE, FILE, ID@REVISION[:SUBSET[:SPLIT]] or
    ID@REVISION:FILE; each with #COLUMN or without.

    Raises ConfigError for a name that is none of these.
    """
    if Path(given).exists():
        return Source(name=Path(given).name, path=given)
    place, _, column = given.partition("#")
    source = _parse_place(place)
    return replace(source, column=column) if column else source


def _parse_place(place: str) -> Source:
    """A set's name without its column."""
    file_name, is_file, file = place.partition("=")
    name, has_revision, revision = place.partition("@")
    if is_file and re.fullmatch(r"[\w.-]+", file_name):
        return Source(name=file_name, path=file)
    if name in PRESETS:
        preset = parse_source(PRESETS[name])
        return replace(preset, name=name, revision=revision or preset.revision)
    if has_revision and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _hub_source(name, revision)
    if re.fullmatch(r"[\w-]+", place):
        raise ConfigError(
            f"no evaluation set {place!r}: the presets are {', '.join(PRESETS)}. Give one of them, a file, "
            "or a hub id as ID@REVISION",
            key="evaluation set",
        )
    return Source(name=place.rsplit("/", 1)[-1], path=place)


def _hub_source(name: str, version: str) -> Source:
    """A set on the hub; `version` is REVISION[:SUBSET[:SPLIT]] or REVISION:FILE."""
    revision, second, split = [*version.split(":"), "", ""][:3]
    source = Source(name=name, path=name, revision=revision or "main")
    if second.endswith(SUFFIXES):
        return replace(source, file=second)
    return replace(source, subset=second or None, split=split or "test")


def source_identity(given: str) -> str:
    """What a set is, wherever it is stored: the hash of its file or its place on the hub, and the column.
    Raises as `parse_source`."""
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
    except hub_errors() as error:
        raise DataError(
            f"{source}: cannot be fetched from the hub ({type(error).__name__}: {error}). Check the network "
            f"and, for gated data, HF_TOKEN; or give a copy of yours: {source.name}=FILE",
            key="evaluation set",
        ) from error
    return replace(source, path=path, revision=None, file=None)


def load_benchmarks(sets: Iterable[str]) -> list[Benchmark]:
    """The sets that the user names. Raises DataError for one that cannot be read or holds no texts,
    ConfigError for no name."""
    benchmarks: dict[str, Benchmark] = {}
    for given in dict.fromkeys(sets):
        source = parse_source(given)
        if source.name in benchmarks:
            source = replace(source, name=given)
        benchmarks[source.name] = _load(source)
    return list(benchmarks.values())


def _load(source: Source) -> Benchmark:
    local = on_disk(source)
    options: dict[str, Any] = {"revision": local.revision, "subset": local.subset, "split": local.split}
    columns = [local.column] if local.column else QUESTION_COLUMNS
    rows = read_rows(
        local.path, columns, what="evaluation items", option="@REVISION after its name", **options
    )
    items: list[tuple[str, str]] = []
    for number, (place, row) in enumerate(rows):
        texts = _item_texts(row, local.column, place)
        if len(texts) == 1:
            items.append((str(number), texts[0]))
        else:
            items += [(f"{number}.{turn}", text) for turn, text in enumerate(texts, 1)]
    if not items:
        raise DataError(
            f"{source}: holds no evaluation items. Is it the right file, subset, split and column?",
            key="evaluation set",
        )
    return Benchmark(name=source.name, items=items, source=str(source))


def _item_texts(row: Any, column: str | None, place: str) -> list[str]:
    """The texts of an item: one, or one for each turn of the user; none where its column is empty.

    Raises DataError where a text should be and something else is.
    """
    if isinstance(row, str):
        return [row] if row.strip() else []
    fields = row if isinstance(row, dict) else {}
    there = _question_columns(fields, column)
    filled = [name for name in there if fields[name] not in (None, "", [])]
    if there and not filled:
        return []
    contents = _user_contents(fields[filled[0]]) if filled else []
    unusable = [content for content in contents if not isinstance(content, str | None)]
    texts = [content for content in contents if isinstance(content, str)]
    if unusable or not texts:
        instead = f", but {kind_of(unusable[0])} under {filled[0]}" if unusable else ""
        held = ", ".join(fields) or type(row).__name__
        raise DataError(
            f"{place}: no text under {column or ' or '.join(QUESTION_COLUMNS)}{instead} (it holds: {held}). "
            "Name the column after the set: SET#COLUMN",
            key="evaluation set",
        )
    return [text for text in texts if text.strip()]


def _question_columns(fields: dict[str, Any], column: str | None) -> list[str]:
    """The columns of a row that may hold the question, in the order in which they are tried; `column` is the
    one that the user names."""
    if column:
        return [column] if column in fields else []
    names = [name for name in fields if name.lower() in QUESTION_COLUMNS]
    return sorted(names, key=lambda name: QUESTION_COLUMNS.index(name.lower()))


def _user_contents(value: Any) -> list[Any]:
    """What the user says in each turn of a chat; the value itself where it is no chat."""
    try:
        return [turn.content for turn in turns_of(value) if turn.role == "user"]
    except ChatError:
        return [value]
