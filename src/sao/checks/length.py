"""Kinds about how long an answer is: words, sentences, paragraphs, bullets."""

from __future__ import annotations

import random
from typing import Any

from sao.checks.kind import Kind, Values


def _at_most(draw: random.Random, text: str) -> dict[str, Any]:
    return {"n": draw.choice((20, 25, 30, 40, 50, 60, 80))}


def _at_most_passes(answer: str, values: Values) -> bool:
    return bool(0 < len(answer.split()) <= values["n"])


KINDS = (
    Kind(
        name="max_words",
        about="at most n words",
        wordings=("Use at most {n} words.", "Answer in no more than {n} words."),
        draw=_at_most,
        passes=_at_most_passes,
        passing=lambda draw, values: " ".join(["word"] * draw.randint(1, values["n"])),
        failing=lambda draw, values: " ".join(["word"] * (values["n"] + draw.randint(1, 30))),
        difficulty=1,
        group="length",
        ifeval="length_constraints:number_words",
    ),
)
