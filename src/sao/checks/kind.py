"""What a kind of constraint is: words for it, its checker, passing and failing texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
"""What a constraint asks for, such as {"n": 3}: JSON values."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of constraint on an answer that a program can check."""

    name: str
    """Names it in records and tables."""
    about: str
    """What it asks for, in a few words."""
    wordings: tuple[str, ...]
    """Sentences that ask for it, with {placeholders} of its values."""
    draw: Callable[[random.Random, str], dict[str, Any]]
    """(draw, the prompt's text) → values."""
    passes: Callable[[str, Values], bool]
    """(answer, values) → whether the answer keeps the constraint."""
    passing: Callable[[random.Random, Values], str]
    """A text that passes, for tests."""
    failing: Callable[[random.Random, Values], str]
    """A text that does not."""
    difficulty: int
    """1: most chat models keep it; 2: many do; 3: few do."""
    group: str
    """Kinds of one group are never asked for together: they could contradict each other."""
    ifeval: str | None = None
    """IFEval's instruction id for the same kind; None where IFEval has none."""
    trained: bool = True
    """Whether training prompts may have it; the others are for held-out prompts only."""
    says: Callable[[Values], dict[str, str]] = lambda values: {name: str(v) for name, v in values.items()}
    """The values as they stand in the wordings."""
