"""Kinds about parts of an answer that are marked: a title, a postscript, placeholders, highlights."""

from __future__ import annotations

import random
import re

from sao.checks import rules, samples, text
from sao.checks.kind import Kind, Values, no_values, one_of

HIGHLIGHT = re.compile(r"(?<![*\w])(\*{1,2})(?=[^\s*])[^*\n]+(?<=[^\s*])\1(?![*\w])")
"""A part of a line in one or two asterisks on each side, with no blank inside next to them."""


def _title(answer: str, values: Values) -> bool:
    """A line has nothing but a title in double angle brackets, marks of a heading or of bold text aside."""
    lines = (text.without_mark(line).strip(" \t*_") for line in answer.split("\n"))
    return any(line.startswith("<<") and line.endswith(">>") and text.count_words(line) > 0 for line in lines)


def _postscript(answer: str, values: Values) -> bool:
    """A line of the last paragraph, but not the answer's first line, begins with "P.S.", in any case, marks
    before it passed over, and has a word behind it."""
    blocks = text.paragraphs(answer)
    last = blocks[-1].split("\n") if blocks else []
    ends = [text.without_mark(line).lstrip("*_ ").casefold() for line in last[len(blocks) == 1 :]]
    return any(line.startswith("p.s.") and text.count_words(line) > 1 for line in ends)


def _placeholders(answer: str, values: Values) -> bool:
    """At least n parts in square brackets, within one line, that have a letter or digit."""
    return bool(sum(text.count_words(part) > 0 for part in rules.bracketed(answer)) >= values["n"])


def _highlights(answer: str, values: Values) -> bool:
    """At least n parts of a line in one or two asterisks on each side, with no blank inside next to them."""
    return sum(1 for _ in HIGHLIGHT.finditer(answer)) >= int(values["n"])


def _marked(rng: random.Random, n: int, *marks: str) -> str:
    return " ".join(samples.sentence(rng, 3, rng.choice(marks).format("tea")) for _ in range(n))


KINDS = (
    Kind(
        name="title",
        about="a title in << >>",
        wordings=(
            "Give your answer a title in double angle brackets, such as <<A Title>>, on a line of its own.",
            "Your answer must have a title on a line of its own, written like this: <<title>>.",
        ),
        draw=no_values,
        passes=_title,
        passing=lambda rng, values: f"<<{samples.words(rng, 1)[0]}>>\n{samples.prose(rng, 2)}",
        failing=lambda rng, values: (
            f"{rng.choice(('', '<Sky>', '<<>>', 'A <<Sky>> it is.'))}\n{samples.prose(rng, 2)}"
        ),
        difficulty=2,
        group="title",
        needs=lambda values: 3,
        ifeval="detectable_format:title",
    ),
    Kind(
        name="postscript",
        about="a postscript",
        wordings=(
            "Add a postscript at the end. Begin it with P.S.",
            "End with a postscript on a line of its own that starts with P.S.",
        ),
        draw=no_values,
        passes=_postscript,
        passing=lambda rng, values: f"{samples.prose(rng, 2)}\n\nP.S. {samples.prose(rng, 1)}",
        failing=lambda rng, values: rng.choice(
            ("{}", "{} P.S. We go.", "{}\nP.S.", "P.S. We go.\n{}", "P.S. We go.\n\n{}")
        ).format(samples.prose(rng, 2)),
        difficulty=2,
        group="end",
        excludes=("starts",),
        needs=lambda values: 5,
        holds=lambda values: ("P", "S"),
        ifeval="detectable_content:postscript",
    ),
    Kind(
        name="placeholders",
        about="at least n placeholders in [ ]",
        wordings=(
            "Use at least {n} placeholders in square brackets, such as [name].",
            "Your answer must contain {n} or more placeholders like [date].",
        ),
        draw=one_of(2, 3, 4),
        passes=_placeholders,
        passing=lambda rng, values: _marked(rng, values["n"] + rng.randint(0, 2), "[{}]", "[the {}]"),
        failing=lambda rng, values: _marked(rng, values["n"] - 1, "[{}]") + " [] (tea) [tea",
        difficulty=2,
        group="placeholders",
        needs=lambda values: 2 * int(values["n"]),
        ifeval="detectable_content:number_placeholders",
    ),
    Kind(
        name="highlights",
        about="at least n parts in * *",
        wordings=(
            "Highlight at least {n} parts of your answer with asterisks, like *this*.",
            "Put {n} or more phrases between asterisks, such as *an important point*.",
        ),
        draw=one_of(2, 3, 4),
        passes=_highlights,
        passing=lambda rng, values: _marked(
            rng, values["n"] + rng.randint(0, 2), "*{}*", "**{}**", "*the {}*"
        ),
        failing=lambda rng, values: _marked(rng, values["n"] - 1, "*{}*") + "\n* Tea\n* A * sky *. ** **",
        difficulty=2,
        group="highlights",
        needs=lambda values: 2 * int(values["n"]),
        ifeval="detectable_format:number_highlighted_sections",
    ),
)
