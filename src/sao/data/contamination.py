"""Contamination: which evaluation items a text contains, by their n-grams.

An item's n-grams have n words, n = 8 or the item's number of words where that is less; a text is
contaminated where it contains at least a share (0.7) of them. Items of fewer than three words count only
where they are the whole text. The evaluation items are indexed, the texts are streamed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sao.data.contamination_sets import Benchmark
from sao.data.similarity import normalise, words

NGRAM, SHORT = 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """An item that a text contains, and the share of its n-grams that are there."""

    benchmark: str
    item: str
    share: float
    text: str


class ContaminationIndex:
    """The n-grams of evaluation items, to find the items in texts.

    Memory: 12 bytes for each n-gram, and about 100 for each different beginning of one (SHORT words), by
    which most positions of a text are skipped.
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

    def _add(self, item_words: list[str], text: str, number: int) -> set[int]:
        """The hashes of an item's n-grams; none where it is too short for any."""
        n = min(NGRAM, len(item_words))
        if n < SHORT:
            if whole := normalise(text):
                self._whole.setdefault(whole, number)
            self._sizes.append(0)
            return set()
        starts = range(len(item_words) - n + 1)
        for i in starts:
            beginning = hash(tuple(item_words[i : i + SHORT]))
            lengths = self._beginnings.get(beginning, ())
            if n not in lengths:
                self._beginnings[beginning] = (*lengths, n)
        grams = {hash(tuple(item_words[i : i + n])) for i in starts}
        self._sizes.append(len(grams))
        return grams

    def find(self, text: str) -> Overlap | None:
        """The item with the largest share in the text, None where no share reaches `max_overlap`."""
        return next(iter(self.find_all(text)), None)

    def find_all(self, text: str) -> list[Overlap]:
        """The items that contaminate the text, the largest shares first."""
        text_words = words(text)
        if len(text_words) < SHORT:
            number = self._whole.get(normalise(text))
            return [] if number is None else [self._overlap(number, 1.0)]
        hits: dict[int, int] = {}
        for number in self._hits(text_words):
            hits[number] = hits.get(number, 0) + 1
        shares = sorted((-count / self._sizes[number], number) for number, count in hits.items())
        return [self._overlap(number, -share) for share, number in shares if -share >= self.max_overlap]

    def _hits(self, text_words: list[str]) -> Iterator[int]:
        """The items of each n-gram that is among the words, each n-gram once."""
        seen: set[int] = set()
        for i, beginning in enumerate(zip(text_words, text_words[1:], text_words[2:], strict=False)):
            for n in self._beginnings.get(hash(beginning), ()):
                gram = hash(tuple(text_words[i : i + n]))
                if gram not in seen:
                    seen.add(gram)
                    yield from self._items_with(gram)

    def _items_with(self, gram: int) -> Iterator[int]:
        """The numbers of the items that have an n-gram."""
        keys = self._keys
        place = bisect_left(keys, gram)
        while place < len(keys) and keys[place] == gram:
            yield self._numbers[place]
            place += 1

    def _overlap(self, number: int, share: float) -> Overlap:
        benchmark, item, text = self.items[number]
        return Overlap(benchmark=benchmark, item=item, share=share, text=text)
