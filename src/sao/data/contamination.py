"""Which evaluation items stand in a text: their n-grams, indexed.

An item's n-grams are of n words, n = 8 or its number of words where that is less; it has leaked into a text
where at least a share of them (0.7) stands in that text. Items of fewer than three words count only where
they are the whole text. The evaluation side is indexed, ours streams past it.
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
class Leak:
    """An item that stands in a text, and the share of its n-grams that does."""

    benchmark: str
    item: str
    share: float
    text: str


class LeakIndex:
    """The n-grams of evaluation items, and which texts hold an item.

    Memory: 12 bytes for each n-gram, and about 100 for each different beginning of one (SHORT words), by
    which most places of a text are passed over.
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
