"""Evaluation items that stand in texts of ours. Evaluation sets and texts in; which text contains which
item out.

An item's n-grams are of n words, n = 8 or its number of words where that is less; a text is contaminated by
the item where at least a share of them (0.7) stands in it. Items of fewer than three words count only where
they are the whole text. The evaluation side is indexed, ours streams past it.

    sao contamination RUN --sets alpaca_eval my-eval.jsonl --out contamination.md
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sao.data.contamination import ContaminationIndex, Overlap
from sao.data.contamination_sets import Benchmark
from sao.errors import ConfigError
from sao.results.contamination import Contamination, SetContamination, TextBesideItem

EXAMPLES = 50
"""Pairs of a report that are kept for each evaluation set."""
BLOCK, ITEMS, CHARACTERS = 512, 4096, 2000
"""For candidates: texts and items whose cosines are held at a time, and how much of a text is looked at."""


NEEDS_SKLEARN = "The most similar pairs are left out: they need scikit-learn (pip install 'sao[data]')."
Row = tuple[str, str, str]
"""One of our texts as (kind, id, text)."""
Ours = Callable[[], Iterable[Row]]
"""Our texts, called twice."""
Candidate = tuple[float, int, Row, int]
"""Cosine, minus the text's number (the earlier of two is better), the text, the item's number."""


@dataclass
class _SetCounts:
    """What of one evaluation set was found so far."""

    items: set[str] = field(default_factory=set)
    texts: int = 0
    examples: list[TextBesideItem] = field(default_factory=list)

    def see(self, row: Row, overlaps: list[Overlap]) -> None:
        """Those of this set's items that one text contains."""
        self.texts += bool(overlaps)
        self.items.update(overlap.item for overlap in overlaps)
        room = max(0, EXAMPLES - len(self.examples))
        self.examples += [_beside(row, overlap) for overlap in overlaps[:room]]


def contamination_report(
    ours: Ours, benchmarks: list[Benchmark], max_overlap: float, candidates: int = 5
) -> Contamination:
    """The contamination by each benchmark: its items, how many of them stand in how many of our texts, and
    the first EXAMPLES pairs; and the `candidates` most similar pairs of each benchmark that are no
    contamination, for a look (none without scikit-learn: `note`).

    Memory: a byte for each of our texts, and the items.
    """
    if not 0 < max_overlap <= 1:
        raise ConfigError(
            f"--max-overlap {max_overlap:g}: give a share above 0 and up to 1", key="--max-overlap"
        )
    index, is_contaminated = ContaminationIndex(benchmarks, max_overlap), bytearray()
    counts = {benchmark.name: _SetCounts() for benchmark in benchmarks}
    for row in ours():
        found = index.find_all(row[2])
        is_contaminated.append(bool(found))
        for name in {overlap.benchmark for overlap in found}:
            counts[name].see(row, [overlap for overlap in found if overlap.benchmark == name])
    again = zip(ours() if candidates else (), is_contaminated, strict=False)
    similar = tfidf_candidates((row for row, bad in again if not bad), benchmarks, candidates)
    return Contamination(
        texts=len(is_contaminated),
        max_overlap=max_overlap,
        benchmarks={
            benchmark.name: SetContamination(
                source=benchmark.source,
                digest=benchmark.digest,
                items=len(benchmark.items),
                contaminated_items=len(counts[benchmark.name].items),
                contaminated_texts=counts[benchmark.name].texts,
                overlaps=counts[benchmark.name].examples,
                candidates=(similar or {}).get(benchmark.name, []),
            )
            for benchmark in benchmarks
        },
        note=NEEDS_SKLEARN if similar is None else None,
    )


def tfidf_candidates(
    ours: Iterable[Row], benchmarks: list[Benchmark], k: int
) -> dict[str, list[TextBesideItem]] | None:
    """The k pairs of our texts and each benchmark's items that are most alike, by the cosine of TF-IDF
    vectors of 3 to 5 characters; for people to look at. None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return None
    import numpy as np

    items = [text[:CHARACTERS] for benchmark in benchmarks for _, text in benchmark.items]
    # what stands in so many items tells little and costs most of the time
    common = 0.05 if len(items) >= 1000 else 1.0
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, max_df=common, dtype=np.float32
    )
    vectorizer.fit(items)
    blocks_by_set = {benchmark.name: _vectors(vectorizer, benchmark) for benchmark in benchmarks}
    best: dict[str, list[Candidate]] = {benchmark.name: [] for benchmark in benchmarks}
    rows, number = iter(ours), 0
    while k and (texts := list(islice(rows, BLOCK))):
        vectors = vectorizer.transform([text[:CHARACTERS] for _, _, text in texts])
        for name, blocks in blocks_by_set.items():
            for i, (cosine, item) in enumerate(_nearest(vectors, blocks)):
                _keep(best[name], k, (cosine, -(number + i), texts[i], item))
        number += len(texts)
    return {
        benchmark.name: [
            _beside(row, _overlap(benchmark, item, cosine))
            for cosine, _, row, item in sorted(best[benchmark.name], reverse=True)
        ]
        for benchmark in benchmarks
    }


def _vectors(vectorizer: Any, benchmark: Benchmark) -> list[Any]:
    """The vectors of a set's items, ITEMS of them at a time, as columns."""
    starts = range(0, len(benchmark.items), ITEMS)
    blocks = ([text[:CHARACTERS] for _, text in benchmark.items[start : start + ITEMS]] for start in starts)
    return [vectorizer.transform(block).T.tocsr() for block in blocks]


def _nearest(vectors: Any, blocks: list[Any]) -> Iterator[tuple[float, int]]:
    """For each of the vectors the largest cosine with an item, and the item's number."""
    import numpy as np

    cosines = ((vectors @ block).toarray() for block in blocks)
    tops = [(found.max(1), found.argmax(1)) for found in cosines]
    best_block = np.argmax([largest for largest, _ in tops], axis=0)
    for i, block in enumerate(best_block.tolist()):
        largest, where = tops[block]
        yield float(largest[i]), block * ITEMS + int(where[i])


def _keep(best: list[Candidate], k: int, candidate: Candidate) -> None:
    """Keep the k best of a heap."""
    if candidate[0] > 0 and (len(best) < k or candidate > best[0]):
        heapq.heappush(best, candidate)
        if len(best) > k:
            heapq.heappop(best)


def _overlap(benchmark: Benchmark, item: int, share: float) -> Overlap:
    name, text = benchmark.items[item]
    return Overlap(benchmark=benchmark.name, item=name, share=share, text=text)


def _beside(row: Row, overlap: Overlap) -> TextBesideItem:
    kind, id_, text = row
    return TextBesideItem(
        kind=kind,
        id=id_,
        ours=text,
        benchmark=overlap.benchmark,
        item=overlap.item,
        theirs=overlap.text,
        share=overlap.share,
    )
