r"""What answers that say nothing would earn: an empty one, a constant one, the copied prompt, random words.

A share that is high says that a model can raise its score on this kind without an answer to the prompt.

    for row in degenerate_table(): print(row.kind, row.constant, row.copied)
    print("\\n".join(kinds_table()))      # the table of docs/checks.md
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sao.checks import KINDS, passes, with_constraints
from sao.records import Constraint
from sao.tables import Column, markdown_table

DRAWS = 200
"""Draws of each kind that the shares are of."""
CONSTANT = "Yes."
"""The constant answer: what it keeps shows how much a model could gain without answering."""
PROMPTS = (
    "Can you suggest some simple recipes with potatoes and cheese for a family dinner?",
    "How do I repair a leaking kitchen tap without calling a plumber?",
    "Explain how bees make honey and why their colonies matter for farming.",
    "What should a beginner know before buying a used bicycle?",
    "Write a short letter to my neighbor about the noise in the garden.",
)
"""Prompts that the constraints are drawn for."""
_VOCABULARY = (
    "the of and to in is that it for was on are as with his they at be this from have or by one had not"
    " but what all were when we there can an your which their said if do will each about how up out them"
    " then she many some so these would other into has more her two like him see time could no make than"
    " first been its who now people my made over did down only way find use may water long little very"
    " after words called just where most know"
)
WORDS = tuple(_VOCABULARY.split())
"""What random answers are made of: frequent English words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degenerate:
    """Shares of a kind's draws that each answer passes."""

    kind: str
    empty: float
    constant: float
    copied: float
    """The prompt with the words of the constraint behind it."""
    random_words: float
    """30 to 80 words in sentences of 5 to 15."""


def degenerate_table(draws: int = DRAWS) -> tuple[Degenerate, ...]:
    """One row for each kind; the draws depend on the kind's name and their number alone."""
    return tuple(_row(name, draws) for name in KINDS)


def _row(name: str, draws: int) -> Degenerate:
    passed = [0, 0, 0, 0]
    for seed in range(draws):
        rng = random.Random(f"{name} {seed}")
        prompt = rng.choice(PROMPTS)
        constraint = Constraint(name, KINDS[name].draw(rng, prompt))
        copied = with_constraints(rng, prompt, [constraint])
        for k, answer in enumerate(("", CONSTANT, copied, random_answer(rng))):
            passed[k] += passes(answer, constraint)
    empty, constant, same, words = (number / draws for number in passed)
    return Degenerate(kind=name, empty=empty, constant=constant, copied=same, random_words=words)


def random_answer(rng: random.Random) -> str:
    """Random words in sentences."""
    left = rng.randint(30, 80)
    sentences = []
    while left > 0:
        size = min(left, rng.randint(5, 15))
        sentences.append(" ".join(rng.choices(WORDS, k=size)).capitalize() + ".")
        left -= size
    return " ".join(sentences)


def kinds_table() -> list[str]:
    """The lines of the Markdown table of kinds: what they ask for, and what degenerate answers earn."""
    heads = ("Kind", "Asks for", "Difficulty", "IFEval", "Trained")
    shares = ("Empty", CONSTANT, "Copied prompt", "Random words")
    columns = [*(Column(head) for head in heads), *(Column(head, "right") for head in shares)]
    rows = []
    for found in degenerate_table():
        kind = KINDS[found.kind]
        numbers = (found.empty, found.constant, found.copied, found.random_words)
        rows.append(
            [
                f"`{kind.name}`",
                kind.about.replace("*", "\\*").replace("<", "&lt;").replace(">", "&gt;"),
                str(kind.difficulty),
                kind.ifeval or "–",
                "yes" if kind.trained else "no",
                *(f"{number:.2f}" for number in numbers),
            ]
        )
    return markdown_table(columns, rows)


if __name__ == "__main__":
    print("\n".join(kinds_table()))
