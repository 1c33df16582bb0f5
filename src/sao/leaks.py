"""Evaluation items that stand in texts of ours. Evaluation sets and texts in; which item leaked into which text out.

An item's n-grams are of n words, n = 8 or its number of words where that is less; it has leaked into a text where at least a
share of them (0.7) stands in that text. Items of fewer than three words count only where they are the whole text. The evaluation
side is indexed, ours streams past it.

    sao leaks RUN --against alpaca_eval my-eval.jsonl --out leaks.md
"""

from __future__ import annotations

import hashlib
import heapq
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sao.errors import ConfigError, DataError
from sao.rows import SUFFIXES, content_identity, read_rows
from sao.similarity import normalise, words

NGRAM, SHORT = 8, 3
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
"""Columns that hold the question in the sets that people evaluate on, in any case; the first that holds something is read."""
EXAMPLES = 50
"""Pairs of a report that are kept for each evaluation set."""
BLOCK, ITEMS, CHARACTERS = 512, 4096, 2000
"""For candidates: texts and items whose cosines are held at a time, and how much of a text is looked at."""


PRESETS = {
    "alpaca_eval": "tatsu-lab/alpaca_eval@2edc6fad8be6b14ea7230aabfd08188da6b8b814:alpaca_eval.json#instruction",
    "mt_bench": "HuggingFaceH4/mt_bench_prompts@e3a795c5e9a82ee40611c416b8a7786c73198991::train#prompt",
    "arena_hard": "lmarena-ai/arena-hard-auto@15f3746e21432264ce9b453999bde4f3c946d2e6:data/arena-hard-v2.0/question.jsonl",
    "arena_hard_v0.1": "lmarena-ai/arena-hard-auto@15f3746e21432264ce9b453999bde4f3c946d2e6:data/arena-hard-v0.1/question.jsonl",
    "gsm8k": "openai/gsm8k@740312add88f781978c0658806c59bc2815b9866:main:test#question",
    "truthfulqa": "truthfulqa/truthful_qa@741b8276f2d1982aa3d5b832d3ee81ed3b896490:generation:validation#question",
    "hellaswag": "Rowan/hellaswag@218ec52e09a7e7462a5400043bb9a69a41d06b76::validation#ctx",
    "winogrande": "allenai/winogrande@01e74176c63542e6b0bcb004dcdea22d94fb67b5:winogrande_xl:validation#sentence",
    "arc": "allenai/ai2_arc@210d026faf9955653af8916fad021475a3f00453:ARC-Challenge:test#question",
    "mmlu": "cais/mmlu@c30699e8356da336a370243923dbaf21066bb9fe:all:test#question",
    "ifeval": "google/IFEval@966cd89545d6b6acfd7638bc708b98261ca58e84::train#prompt",
    "humaneval": "openai/openai_humaneval@7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544::test#prompt",
    "mbpp": "google-research-datasets/mbpp@4bb6404fdc6cacfda99d4ac4205087b89d32030c:full:test#text",
}
"""Public evaluation sets by name, at revisions that others pin too; by one file where `datasets` cannot read the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a set lies: a file (`path`); or a hub id with revision, subset and split, or with revision and a `file` in it."""

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
    """An evaluation set's items: (number and, where an item has several texts, which; text); and where they come from."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """An item that stands in a text, and the share of its n-grams that does."""

    benchmark: str
    item: str
    share: float
    text: str


def parse_source(given: str) -> Source:
    """A set as the user names it: PRESET, PRESET@REVISION, PRESET=FILE, FILE, ID@REVISION[:SUBSET[:SPLIT]] or ID@REVISION:FILE;
    each with #COLUMN or without.

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
            f"no evaluation set {place!r}: the presets are {', '.join(PRESETS)}. Give one of them, a file, or a hub id as "
            "ID@REVISION"
        )
    else:
        found = Source(name=place.rsplit("/", 1)[-1], path=place)
    return replace(found, column=column) if column else found


def source_identity(given: str) -> str:
    """What a set is, wherever it lies: the hash of its file or its place on the hub, and the column. Raises as `parse_source`."""
    source = parse_source(given)
    place = content_identity(source.path) if source.revision is None else str(source)
    return place + (f"#{source.column}" if source.column else "")


def on_disk(source: Source) -> Source:
    """The same set; where it is one file of a hub data set, that file, fetched. Raises DataError where it cannot be."""
    if source.file is None:
        return source
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(source.path, source.file, repo_type="dataset", revision=source.revision)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source}: cannot be fetched from the hub ({type(error).__name__}: {error}). Check the network and, for gated data, "
            f"HF_TOKEN; or give a copy of yours: {source.name}=FILE"
        ) from error
    return replace(source, path=path, revision=None, file=None)


def load_benchmarks(sets: Iterable[str]) -> list[Benchmark]:
    """The sets that the user names. Raises DataError for one that cannot be read or holds no texts, ConfigError for no name."""
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
    rows = read_rows(place.path, columns, what="evaluation items", option="@REVISION after its name", **options)
    items: list[tuple[str, str]] = []
    for number, (where, row) in enumerate(rows):
        texts = _texts(row, place.column, where)
        items += [(str(number) if len(texts) == 1 else f"{number}.{i + 1}", text) for i, text in enumerate(texts)]
    if not items:
        raise DataError(f"{source}: holds no evaluation items. Is it the right file, subset, split and column?")
    return Benchmark(name=source.name, items=items, source=str(source))


def _texts(row: Any, column: str | None, place: str) -> list[str]:
    """The texts of an item: one, or one for each turn of the user; none where nothing stands in its column."""
    if isinstance(row, str):
        return [row] if row.strip() else []
    columns = row if isinstance(row, dict) else {}
    named = (
        [column]
        if column
        else sorted((c for c in columns if c.lower() in GUESSED), key=lambda c: GUESSED.index(c.lower()))
    )
    there = [columns[name] for name in named if name in columns]
    value = next((value for value in there if value), None)
    turns = value if isinstance(value, list) else [] if value is None else [value]
    said = [_of_user(turn) for turn in turns]
    texts = [text for text in said if isinstance(text, str) and text.strip()]
    if not there or (turns and not any(isinstance(text, str) for text in said)):
        held = ", ".join(columns) or type(row).__name__
        raise DataError(
            f"{place}: no text under {column or ' or '.join(GUESSED)} (it holds: {held}). Name the column after the set: "
            "SET#COLUMN"
        )
    return texts


def _of_user(turn: Any) -> Any:
    """What a turn of a conversation says, None where the user does not say it."""
    if not isinstance(turn, dict):
        return turn
    by_user = turn.get("role", turn.get("from", "user")) in ("user", "human")
    return turn.get("content", turn.get("value")) if by_user else None


class LeakIndex:
    """The n-grams of evaluation items, and which texts hold an item.

    Memory: 12 bytes for each n-gram, and about 100 for each different beginning of one (SHORT words), by which most places of a
    text are passed over.
    """

    def __init__(self, benchmarks: Iterable[Benchmark], max_overlap: float = 0.7) -> None:
        import numpy as np

        self.max_overlap = max_overlap
        self.items = [(b.name, item, text) for b in benchmarks for item, text in b.items]
        self._sizes, self._whole = array("I"), dict[str, int]()
        self._beginnings: dict[int, tuple[int, ...]] = {}
        keys, numbers = array("q"), array("I")
        for number, (_, _, text) in enumerate(self.items):
            grams = self._add(words(text), text, number)
            keys.extend(grams)
            numbers.extend([number] * len(grams))
        order = np.argsort(np.frombuffer(keys, np.int64), kind="stable") if keys else np.zeros(0, np.int64)
        self._keys = array("q", np.frombuffer(keys, np.int64)[order].tobytes()) if keys else keys
        self._numbers = array("I", np.frombuffer(numbers, np.uint32)[order].tobytes()) if keys else numbers

    def _add(self, said: list[str], text: str, number: int) -> set[int]:
        """The hashes of an item's n-grams; none where it is too short for any."""
        n = min(NGRAM, len(said))
        if n < SHORT:
            if whole := normalise(text):
                self._whole.setdefault(whole, number)
            self._sizes.append(0)
            return set()
        starts = range(len(said) - n + 1)
        for i in starts:
            beginning = hash(tuple(said[i : i + SHORT]))
            lengths = self._beginnings.get(beginning, ())
            if n not in lengths:
                self._beginnings[beginning] = (*lengths, n)
        grams = {hash(tuple(said[i : i + n])) for i in starts}
        self._sizes.append(len(grams))
        return grams

    def find(self, text: str) -> Leak | None:
        """The item of which the largest share stands in the text, None where none does to `max_overlap`."""
        return next(iter(self.find_all(text)), None)

    def find_all(self, text: str) -> list[Leak]:
        """The items that have leaked into the text, those first of which the largest share stands in it."""
        said = words(text)
        if len(said) < SHORT:
            number = self._whole.get(normalise(text))
            return [] if number is None else [self._leak(number, 1.0)]
        hits: dict[int, int] = {}
        for number in self._hits(said):
            hits[number] = hits.get(number, 0) + 1
        shares = sorted((-count / self._sizes[number], number) for number, count in hits.items())
        return [self._leak(number, -share) for share, number in shares if -share >= self.max_overlap]

    def _hits(self, said: list[str]) -> Iterator[int]:
        """The items of each n-gram that stands in the words, each n-gram once."""
        keys, numbers, seen = self._keys, self._numbers, set[int]()
        for i, beginning in enumerate(zip(said, said[1:], said[2:], strict=False)):
            for n in self._beginnings.get(hash(beginning), ()):
                key = hash(tuple(said[i : i + n]))
                if key in seen:
                    continue
                seen.add(key)
                at = bisect_left(keys, key)
                while at < len(keys) and keys[at] == key:
                    yield numbers[at]
                    at += 1

    def _leak(self, number: int, share: float) -> Leak:
        benchmark, item, text = self.items[number]
        return Leak(benchmark=benchmark, item=item, share=share, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One of our texts beside an evaluation item: how much of the item stands in it (`share`), or how alike the two are."""

    kind: str
    id: str
    ours: str
    benchmark: str
    item: str
    theirs: str
    share: float


Ours = Callable[[], Iterable[tuple[str, str, str]]]
"""Our texts as (kind, id, text), called twice."""


def leak_report(ours: Ours, benchmarks: list[Benchmark], max_overlap: float, candidates: int = 5) -> dict[str, Any]:
    """What leaked, by benchmark: its items, how many of them stand in how many of our texts, and the first EXAMPLES pairs; and
    the `candidates` most similar pairs of each benchmark that are no leaks, for a look (none without scikit-learn: `note`).

    Memory: a byte for each of our texts, and the items.
    """
    index, leaky = LeakIndex(benchmarks, max_overlap), bytearray()
    found: dict[str, dict[str, Any]] = {}
    for b in benchmarks:
        counts = {"items": len(b.items), "items_leaked": set(), "texts_with_leaks": 0, "leaks": []}
        found[b.name] = {"source": b.source, "digest": b.digest, **counts}
    for kind, id_, text in ours():
        leaks = index.find_all(text)
        leaky.append(bool(leaks))
        for name in {leak.benchmark for leak in leaks}:
            found[name]["texts_with_leaks"] += 1
        for leak in leaks:
            own = found[leak.benchmark]
            own["items_leaked"].add(leak.item)
            if len(own["leaks"]) < EXAMPLES:
                own["leaks"].append(_pair((kind, id_, text), leak))
    report = {"texts": len(leaky), "max_overlap": max_overlap, "benchmarks": found}
    clean = (row for row, leaks in zip(ours() if candidates else (), leaky, strict=False) if not leaks)
    close = tfidf_candidates(clean, benchmarks, candidates)
    if close is None:
        report["note"] = "The most similar pairs are left out: they need scikit-learn (pip install 'sao[data]')."
    for name, own in found.items():
        own |= {"items_leaked": len(own["items_leaked"]), "candidates": (close or {}).get(name, [])}
    return report


def tfidf_candidates(
    ours: Iterable[tuple[str, str, str]], benchmarks: list[Benchmark], k: int
) -> dict[str, list[Found]] | None:
    """The k pairs of our texts and each benchmark's items that are most alike, by the cosine of TF-IDF vectors of 3 to 5
    characters; for people to look at. None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return None
    import numpy as np

    items = [text[:CHARACTERS] for b in benchmarks for _, text in b.items]
    common = 0.05 if len(items) >= 1000 else 1.0  # what stands in so many items tells little and costs most of the time
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, max_df=common, dtype=np.float32
    )
    vectorizer.fit(items)
    parts = {
        b.name: [
            vectorizer.transform([text[:CHARACTERS] for _, text in b.items[start : start + ITEMS]]).T.tocsr()
            for start in range(0, len(b.items), ITEMS)
        ]
        for b in benchmarks
    }
    best: dict[str, list[tuple[float, int, tuple[str, str, str], int]]] = {b.name: [] for b in benchmarks}
    rows, number = iter(ours), 0
    while k and (block := list(islice(rows, BLOCK))):
        vectors = vectorizer.transform([text[:CHARACTERS] for _, _, text in block])
        for name, own in parts.items():
            tops = [(cosines.max(1), cosines.argmax(1)) for cosines in ((vectors @ part).toarray() for part in own)]
            where = np.argmax([top for top, _ in tops], axis=0)
            for i, part in enumerate(where.tolist()):
                at = part * ITEMS + int(tops[part][1][i])
                _keep(best[name], k, (float(tops[part][0][i]), -(number + i), block[i], at))
        number += len(block)
    return {
        b.name: [
            _pair(row, Leak(benchmark=b.name, item=b.items[at][0], share=share, text=b.items[at][1]))
            for share, _, row, at in sorted(best[b.name], reverse=True)
        ]
        for b in benchmarks
    }


def _keep(best: list[Any], k: int, one: tuple[float, int, tuple[str, str, str], int]) -> None:
    """Keep the k best of a heap."""
    if one[0] > 0 and (len(best) < k or one > best[0]):
        heapq.heappush(best, one)
        if len(best) > k:
            heapq.heappop(best)


def _pair(ours: tuple[str, str, str], leak: Leak) -> Found:
    kind, id_, text = ours
    return Found(
        kind=kind, id=id_, ours=text, benchmark=leak.benchmark, item=leak.item, theirs=leak.text, share=leak.share
    )


def show_report(report: dict[str, Any]) -> str:
    """The report as Markdown, the pairs side by side."""
    share = 100 * report["max_overlap"]
    lines = [
        f"{report['texts']:,} texts looked at; an item has leaked where {share:g} % of its n-grams stand in one.",
        "",
        "| evaluation set | items | leaked | texts with leaks |",
        "|---|---|---|---|",
    ]
    for name, found in report["benchmarks"].items():
        lines.append(f"| {name} | {found['items']:,} | {found['items_leaked']:,} | {found['texts_with_leaks']:,} |")
    for name, found in report["benchmarks"].items():
        lines += ["", f"{name}: {found['source']}, {found['digest']}"] if found["source"] else []
        for title, pairs in (
            ("leaks", found["leaks"]),
            ("most similar, no leaks by this measure", found["candidates"]),
        ):
            if pairs:
                lines += ["", f"### {name}: {title}", "", "| share | ours | item | theirs |", "|---|---|---|---|"]
                for one in pairs:
                    ours = f"{one.kind} {one.id}: {_cell(one.ours)}"
                    lines.append(f"| {one.share:.2f} | {ours} | {one.item} | {_cell(one.theirs)} |")
    lines += ["", report["note"]] if "note" in report else []
    return "\n".join(lines)


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 300 else text[:297] + "…"
