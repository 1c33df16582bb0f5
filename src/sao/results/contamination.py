"""The result of `sao contamination`: evaluation items that stand in a run's texts."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Result


class TextBesideItem(Result):
    """One of the run's texts beside an evaluation item."""

    kind: str
    """prompt or answer."""
    id: str
    """The text's id."""
    ours: str
    """The text."""
    benchmark: str
    """The evaluation set's name."""
    item: str
    """The item's number in the set."""
    theirs: str
    """The item's text."""
    share: float
    """Of a contaminated text: share of the item's n-grams in it; of a look-alike: cosine of both."""


class SetContamination(Result):
    """What of one evaluation set stands in the run's texts."""

    source: str
    """Where the set was loaded from."""
    digest: str
    """Hash of its items: the first 16 digits of SHA-256."""
    items: int
    """Items of the set."""
    contaminated_items: int
    """Items that stand in at least one text."""
    contaminated_texts: int
    """Texts in which at least one item stands."""
    overlaps: list[TextBesideItem]
    """The first contaminated texts, each beside the item."""
    candidates: list[TextBesideItem]
    """The most similar pairs that are no contamination; empty without scikit-learn."""


class Contamination(Result):
    """Evaluation items that stand in a run's prompts and answers."""

    kind: Literal["contamination"] = "contamination"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    texts: int
    """Texts that were looked at."""
    max_overlap: float
    """Share of an item's n-grams from which on a text is contaminated by it."""
    benchmarks: dict[str, SetContamination]
    """By evaluation set."""
    note: str | None = None
    """What could not be done; null where all was."""
