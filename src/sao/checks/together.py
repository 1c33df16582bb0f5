"""Whether constraints can be met by one answer, and beside what the prompt asks for. The reasons stand in the
kinds: groups, what excludes what, words that must and may stand, and how many words there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations, permutations

from sao.checks.kind import Kind, Values

SPARE = 6
"""Words that are left to say something, where the number of words is limited."""

FORMAT_GROUPS = ("words", "sentences", "sentence length", "starts", "paragraphs", "layout")
"""Groups of kinds that say how long an answer is, how many parts it has, or how these are laid out."""
FORMAT_WORDS = (
    "word sentence paragraph line stanza verse bullet list listing table row column section heading poem"
    " haiku limerick sonnet json csv xml yaml html markdown"
)
"""Words, also in the plural, by which a prompt names such a format itself."""
_FORMAT = re.compile(rf"\b(?:{'|'.join(FORMAT_WORDS.split())})s?\b", re.IGNORECASE)


def may_contradict(kind: Kind, prompt: str) -> bool:
    """Whether a constraint of this kind could contradict the prompt: both are about length or layout."""
    return kind.group in FORMAT_GROUPS and _FORMAT.search(prompt) is not None


def can_all_be_met(chosen: Sequence[tuple[Kind, Values]]) -> bool:
    """Whether one answer can keep all of these: their kinds may stand together, no word that one of them asks
    for is forbidden by another, and all that they need fits in the words that they allow."""
    if any(not _may_stand_beside(a, b) for (a, _), (b, _) in combinations(chosen, 2)):
        return False
    for (asking, asked), (kind, values) in permutations(chosen, 2):
        if not all(kind.allows(values, word) for word in asking.holds(asked)):
            return False
    rooms = [room for kind, values in chosen if (room := kind.room(values)) is not None]
    others = [kind.needs(values) for kind, values in chosen if kind.group != "words"]
    least = max([sum(others) + SPARE, *(kind.needs(values) for kind, values in chosen)])
    return not rooms or len(chosen) == 1 or least <= min(rooms)


def _may_stand_beside(a: Kind, b: Kind) -> bool:
    return a.group != b.group and _accepts(a, b) and _accepts(b, a)


def _accepts(kind: Kind, other: Kind) -> bool:
    names = {other.group, other.name}
    if kind.only_with is not None and not names & set(kind.only_with):
        return False
    return not names & set(kind.excludes)
