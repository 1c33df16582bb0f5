"""Figures of a handful of texts: how many repeat another, how many repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence

from sao.data.similarity import words
from sao.statistics import mean

RUN, LOOPING = 4, 1 / 3
"""Words in a row, and the share of such runs that came before in the same text from which on it goes in
circles."""


def distinct_share(texts: Sequence[str]) -> float | None:
    """The share of the texts that equal no earlier one but for case, signs and spaces; None of nothing."""
    return len({tuple(words(text)) for text in texts}) / len(texts) if texts else None


def mean_words(texts: Sequence[str]) -> float | None:
    """Mean words of a text; None of nothing."""
    return mean([len(text.split()) for text in texts]) if texts else None


def is_looping(text: str) -> bool:
    """Whether a text goes in circles: more than LOOPING of its runs of RUN words came before in it."""
    said = words(text)
    runs = [tuple(said[i : i + RUN]) for i in range(len(said) - RUN + 1)]
    return len(runs) >= 2 * RUN and 1 - len(set(runs)) / len(runs) > LOOPING
