"""What a kind of constraint is: words for it, its checker, passing and failing texts, its company."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
"""What a constraint asks for, such as {"n": 3}: JSON values."""
Value = str | int | list[str]
Draw = Callable[[random.Random, str], dict[str, Value]]
"""(draw, the prompt's text) → values."""


def _as_text(values: Values) -> dict[str, str]:
    """Each value as it stands in a wording: lists as "a", "b" and "c"."""
    return {name: listed(v) if isinstance(v, list) else str(v) for name, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of constraint on an answer that a program can check."""

    name: str
    """Names it in records and tables."""
    about: str
    """What it asks for, in a few words."""
    wordings: tuple[str, ...]
    """Sentences that ask for it, with {placeholders} of its values."""
    draw: Draw
    """(draw, the prompt's text) → values."""
    passes: Callable[[str, Values], bool]
    """(answer as `text.normal` leaves it, values) → whether the answer keeps the constraint."""
    passing: Callable[[random.Random, Values], str]
    """A text that passes, for tests."""
    failing: Callable[[random.Random, Values], str]
    """A text that does not."""
    difficulty: int
    """1: most chat models keep it; 2: many do; 3: few do."""
    group: str
    """Kinds of one group are never asked for together: they could contradict each other."""
    excludes: tuple[str, ...] = ()
    """Groups and names of kinds that are never asked for beside this one."""
    only_with: tuple[str, ...] | None = None
    """The only groups and names that may stand beside it; None: all that nothing else forbids."""
    needs: Callable[[Values], int] = lambda values: 2
    """Words that an answer takes to keep it."""
    room: Callable[[Values], int | None] = lambda values: None
    """Words that it leaves room for; None: any number."""
    holds: Callable[[Values], tuple[str, ...]] = lambda values: ()
    """Words that every passing answer has."""
    allows: Callable[[Values, str], bool] = lambda values, word: True
    """Whether an answer that has this word can pass."""
    ifeval: str | None = None
    """IFEval's instruction id for the same kind; None where IFEval has none."""
    trained: bool = True
    """Whether training prompts may have it; the others are for held-out prompts only."""
    says: Callable[[Values], dict[str, str]] = _as_text
    """The values as they stand in the wordings."""


def one_of(*numbers: int) -> Draw:
    """Draws the value n from these numbers, whatever the prompt says."""
    return lambda rng, text: {"n": rng.choice(numbers)}


def no_values(rng: random.Random, text: str) -> dict[str, Value]:
    """The draw of a kind that has no values."""
    return {}


def listed(words: list[str]) -> str:
    """The words in quotes: "a", "b" and "c"."""
    quoted = [f'"{word}"' for word in words]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def counted(n: int, noun: str) -> str:
    """The number with its noun: 1 mark, 2 marks."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
