"""Constraints that a program can check: drawn by seed, put into words at the end of a prompt, checked in the
answers. They give any model a gold that no judge touches.

    constraints = draw(random.Random(seed), prompt, TRAINED)
    asked = with_constraints(random.Random(seed), prompt, constraints)
    score(answer, constraints)        # the share of the constraints that the answer keeps
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sao.checks import form, length, marked, style, words
from sao.checks.kind import Kind, Values
from sao.checks.text import normal
from sao.checks.together import can_all_be_met, may_contradict
from sao.errors import StoreError
from sao.records import Constraint

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (*length.KINDS, *words.KINDS, *form.KINDS, *marked.KINDS, *style.KINDS)
}
"""All kinds by name."""
TRAINED = tuple(name for name, kind in KINDS.items() if kind.trained)
"""Kinds that training prompts may have."""
UNSEEN = tuple(name for name, kind in KINDS.items() if not kind.trained)
"""Kinds that only held-out prompts have."""
MOST = 3
"""Constraints that a prompt has at most."""


def draw(
    rng: random.Random, text: str, names: Sequence[str], most: int = MOST, least: int = 1
) -> tuple[Constraint, ...]:
    """`least` to `most` constraints of these kinds for a prompt, which one answer can keep together. Where
    the prompt names a format itself, kinds about length and layout are left out."""
    number = max(least, min(most, rng.choices(range(1, MOST + 1), weights=(3, 2, 1))[0]))
    chosen: list[tuple[Kind, Values]] = []
    for name in rng.sample(list(names), len(names)):
        kind = KINDS[name]
        if may_contradict(kind, text):
            continue
        values = kind.draw(rng, text)
        if can_all_be_met([*chosen, (kind, values)]):
            chosen.append((kind, values))
        if len(chosen) == number:
            break
    return tuple(Constraint(kind.name, dict(values)) for kind, values in chosen)


def with_constraints(rng: random.Random, text: str, constraints: Sequence[Constraint]) -> str:
    """The prompt with its constraints in words behind it."""
    asked = []
    for constraint in constraints:
        kind = KINDS[constraint.kind]
        asked.append(rng.choice(kind.wordings).format(**kind.says(constraint.values)))
    return " ".join([text, *asked])


def passes(answer: str, constraint: Constraint) -> bool:
    """Whether an answer keeps a constraint; one without a letter or digit keeps none. Raises StoreError for a
    kind that this version does not know."""
    kind = KINDS.get(constraint.kind)
    if kind is None:
        raise StoreError(
            f"a prompt has a constraint of kind {constraint.kind!r}, which this version of SAO does not know",
            key="checks",
        )
    text = normal(answer)
    return any(letter.isalnum() for letter in text) and kind.passes(text, constraint.values)


def score(answer: str, constraints: Sequence[Constraint]) -> float | None:
    """The share of the constraints that an answer keeps, None where there are none."""
    if not constraints:
        return None
    return sum(passes(answer, constraint) for constraint in constraints) / len(constraints)
