"""Evaluation items that stand in texts of ours. Evaluation sets and texts in; which item leaked into which
text out.

An item's n-grams are of n words, n = 8 or its number of words where that is less; it has leaked into a text
where at least a share of them (0.7) stands in that text. Items of fewer than three words count only where
they are the whole text. The evaluation side is indexed, ours streams past it.

    sao leaks RUN --against alpaca_eval my-eval.jsonl --out leaks.md
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sao.data.contamination import Leak, LeakIndex
from sao.data.contamination_sets import Benchmark
from sao.errors import ConfigError

EXAMPLES = 50
"""Pairs of a report that are kept for each evaluation set."""
BLOCK, ITEMS, CHARACTERS = 512, 4096, 2000
"""For candidates: texts and items whose cosines are held at a time, and how much of a text is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One of our texts beside an evaluation item: how much of the item stands in it (`share`), or how alike
    the two are."""

    kind: str
    id: str
    ours: str
    benchmark: str
    item: str
    theirs: str
    share: float


Ours = Callable[[], Iterable[tuple[str, str, str]]]
"""Our texts as (kind, id, text), called twice."""


def leak_report(
    ours: Ours, benchmarks: list[Benchmark], max_overlap: float, candidates: int = 5
) -> dict[str, Any]:
    """What leaked, by benchmark: its items, how many of them stand in how many of our texts, and the first
    EXAMPLES pairs; and the `candidates` most similar pairs of each benchmark that are no leaks, for a look
    (none without scikit-learn: `note`).

    Memory: a byte for each of our texts, and the items.
    """
    if not 0 < max_overlap <= 1:
        raise ConfigError(f"--max-overlap {max_overlap:g}: give a share above 0 and up to 1")
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
        report["note"] = (
            "The most similar pairs are left out: they need scikit-learn (pip install 'sao[data]')."
        )
    for name, own in found.items():
        own |= {"items_leaked": len(own["items_leaked"]), "candidates": (close or {}).get(name, [])}
    return report


def tfidf_candidates(
    ours: Iterable[tuple[str, str, str]], benchmarks: list[Benchmark], k: int
) -> dict[str, list[Found]] | None:
    """The k pairs of our texts and each benchmark's items that are most alike, by the cosine of TF-IDF
    vectors of 3 to 5 characters; for people to look at. None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return None
    import numpy as np

    items = [text[:CHARACTERS] for b in benchmarks for _, text in b.items]
    # what stands in so many items tells little and costs most of the time
    common = 0.05 if len(items) >= 1000 else 1.0
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
            tops = [
                (cosines.max(1), cosines.argmax(1))
                for cosines in ((vectors @ part).toarray() for part in own)
            ]
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
        kind=kind,
        id=id_,
        ours=text,
        benchmark=leak.benchmark,
        item=leak.item,
        theirs=leak.text,
        share=leak.share,
    )


def show_report(report: dict[str, Any]) -> str:
    """The report as Markdown, the pairs side by side."""
    share = 100 * report["max_overlap"]
    lines = [
        f"{report['texts']:,} texts looked at; an item has leaked where {share:g} % of its n-grams stand in "
        "one.",
        "",
        "| evaluation set | items | leaked | texts with leaks |",
        "|---|---|---|---|",
    ]
    for name, found in report["benchmarks"].items():
        lines.append(
            f"| {name} | {found['items']:,} | {found['items_leaked']:,} | {found['texts_with_leaks']:,} |"
        )
    for name, found in report["benchmarks"].items():
        lines += ["", f"{name}: {found['source']}, {found['digest']}"] if found["source"] else []
        for title, pairs in (
            ("leaks", found["leaks"]),
            ("most similar, no leaks by this measure", found["candidates"]),
        ):
            if pairs:
                lines += [
                    "",
                    f"### {name}: {title}",
                    "",
                    "| share | ours | item | theirs |",
                    "|---|---|---|---|",
                ]
                for one in pairs:
                    ours = f"{one.kind} {one.id}: {_cell(one.ours)}"
                    lines.append(f"| {one.share:.2f} | {ours} | {one.item} | {_cell(one.theirs)} |")
    lines += ["", report["note"]] if "note" in report else []
    return "\n".join(lines)


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 300 else text[:297] + "…"
