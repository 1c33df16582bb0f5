"""Plain texts for a kind's passing and failing texts: short words in small letters, no digits, no commas."""

from __future__ import annotations

import random

_PLAIN = "we go see it all now can old new day sun sea sky way map red tea big run try ask say let get use"
WORDS = tuple(_PLAIN.split())
"""Words of two or three letters that no kind asks for."""
LONG = ("extraordinarily", "internationally", "responsibilities")
"""Words that are longer than any limit."""


def words(rng: random.Random, n: int) -> list[str]:
    """So many words."""
    return rng.choices(WORDS, k=n)


def sentence(rng: random.Random, n: int = 4, *more: str) -> str:
    """One sentence of n words and these after them."""
    return " ".join([*words(rng, n), *more]).capitalize() + "."


def prose(rng: random.Random, n: int, separator: str = " ") -> str:
    """So many sentences of three to six words."""
    return separator.join(sentence(rng, rng.randint(3, 6)) for _ in range(n))


def other(rng: random.Random, n: int, low: int, high: int) -> int:
    """Another number than n from low to high."""
    return rng.choice([k for k in range(low, high + 1) if k != n])
