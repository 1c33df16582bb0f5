"""Kinds about how long an answer is: words, sentences, paragraphs, lines."""

from __future__ import annotations

import random

from sao.checks import samples, text
from sao.checks.kind import Kind, Value, Values, one_of

START_WORDS = ("Today", "Often", "Simply", "Many", "Every", "Maybe", "Here", "Perhaps")
"""Words that an answer or a paragraph can begin with, whatever it is about."""


def _max_words(answer: str, values: Values) -> bool:
    """At least one word and at most n (words: parts between blanks with a letter or digit)."""
    return bool(0 < text.count_words(answer) <= values["n"])


def _min_words(answer: str, values: Values) -> bool:
    """At least n words (words: parts between blanks with a letter or digit)."""
    return bool(text.count_words(answer) >= values["n"])


def _word_range(answer: str, values: Values) -> bool:
    """From low to high words, both included."""
    return bool(values["low"] <= text.count_words(answer) <= values["high"])


def _draw_range(rng: random.Random, prompt: str) -> dict[str, Value]:
    low = rng.choice((20, 30, 40, 50, 60))
    return {"low": low, "high": low + rng.choice((20, 30))}


def _sentences(answer: str, values: Values) -> bool:
    """Exactly n sentences, by `text.sentences`."""
    return bool(len(text.sentences(answer)) == values["n"])


def _paragraphs(answer: str, values: Values) -> bool:
    """Exactly n blocks between blank lines that have a letter or digit: a heading alone is one too."""
    return bool(len(text.paragraphs(answer)) == values["n"])


def _paragraph_start(answer: str, values: Values) -> bool:
    """Exactly n paragraphs, and the k-th has the word as its first, in any case, marks before it passed
    over."""
    blocks = text.paragraphs(answer)
    first = text.words_of(blocks[values["k"] - 1])[0] if len(blocks) == values["n"] else ""
    return bool(first == values["word"].casefold())


def _draw_paragraph_start(rng: random.Random, prompt: str) -> dict[str, Value]:
    n = rng.choice((2, 3))
    return {"n": n, "k": rng.randint(1, n), "word": rng.choice(START_WORDS)}


def _lines(answer: str, values: Values) -> bool:
    """Exactly n lines that have a letter or digit."""
    return bool(len(text.lines_of(answer)) == values["n"])


def _short_sentences(answer: str, values: Values) -> bool:
    """At least three sentences, none of more than n words."""
    found = text.sentences(answer)
    return len(found) >= 3 and all(text.count_words(sentence) <= values["n"] for sentence in found)


def _start_sample(rng: random.Random, values: Values, word: str) -> str:
    blocks = [samples.prose(rng, 2) for _ in range(values["n"])]
    blocks[values["k"] - 1] = f"{word} {blocks[values['k'] - 1]}"
    return "\n\n".join(blocks)


KINDS = (
    Kind(
        name="max_words",
        about="at most n words",
        wordings=(
            "Use at most {n} words.",
            "Answer in no more than {n} words.",
            "Keep your answer to {n} words or fewer.",
            "Your answer must not be longer than {n} words.",
        ),
        draw=one_of(20, 25, 30, 40, 50, 60, 80),
        passes=_max_words,
        passing=lambda rng, values: samples.sentence(rng, rng.randint(1, values["n"])),
        failing=lambda rng, values: samples.sentence(rng, values["n"] + rng.randint(1, 30)),
        difficulty=1,
        group="words",
        needs=lambda values: 1,
        room=lambda values: int(values["n"]),
        ifeval="length_constraints:number_words",
    ),
    Kind(
        name="min_words",
        about="at least n words",
        wordings=(
            "Use at least {n} words.",
            "Write {n} words or more.",
            "Your answer must have no fewer than {n} words.",
        ),
        draw=one_of(30, 40, 50, 60, 80, 100),
        passes=_min_words,
        passing=lambda rng, values: samples.sentence(rng, values["n"] + rng.randint(0, 30)),
        failing=lambda rng, values: samples.sentence(rng, rng.randint(1, values["n"] - 1)),
        difficulty=2,
        group="words",
        needs=lambda values: int(values["n"]),
        ifeval="length_constraints:number_words",
    ),
    Kind(
        name="word_range",
        about="from low to high words",
        wordings=(
            "Use between {low} and {high} words.",
            "Write at least {low} but no more than {high} words.",
            "The length of your answer must be {low} to {high} words.",
        ),
        draw=_draw_range,
        passes=_word_range,
        passing=lambda rng, values: samples.sentence(rng, rng.randint(values["low"], values["high"])),
        failing=lambda rng, values: samples.sentence(
            rng, rng.choice((values["low"] - 1, values["high"] + 1))
        ),
        difficulty=2,
        group="words",
        needs=lambda values: int(values["low"]),
        room=lambda values: int(values["high"]),
        trained=False,
    ),
    Kind(
        name="sentences",
        about="exactly n sentences",
        wordings=(
            "Answer in exactly {n} sentences.",
            "Your answer must have exactly {n} sentences.",
            "Write {n} sentences, no more and no fewer.",
        ),
        draw=one_of(2, 3, 4, 5),
        passes=_sentences,
        passing=lambda rng, values: samples.prose(rng, values["n"]),
        failing=lambda rng, values: samples.prose(rng, samples.other(rng, values["n"], 1, 9)),
        difficulty=2,
        group="sentences",
        excludes=("paragraphs", "layout", "title", "postscript", "sentence length", "starts", "questions"),
        needs=lambda values: 4 * int(values["n"]),
        room=lambda values: 20 * int(values["n"]),
        ifeval="length_constraints:number_sentences",
    ),
    Kind(
        name="paragraphs",
        about="exactly n paragraphs",
        wordings=(
            "Write exactly {n} paragraphs, separated by blank lines.",
            "Your answer must have {n} paragraphs with a blank line between them.",
            "Divide your answer into exactly {n} paragraphs. Leave a blank line between two paragraphs.",
        ),
        draw=one_of(2, 3, 4),
        passes=_paragraphs,
        passing=lambda rng, values: "\n\n".join(samples.prose(rng, 2) for _ in range(values["n"])),
        failing=lambda rng, values: samples.prose(rng, samples.other(rng, values["n"], 1, 7), "\n\n"),
        difficulty=2,
        group="paragraphs",
        excludes=("layout", "title", "postscript"),
        needs=lambda values: 6 * int(values["n"]),
        ifeval="length_constraints:number_paragraphs",
    ),
    Kind(
        name="paragraph_start",
        about="n paragraphs, the k-th begins with a word",
        wordings=(
            "Write exactly {n} paragraphs, separated by blank lines. The first word of paragraph {k} must be"
            ' "{word}".',
            "Your answer must have {n} paragraphs with blank lines between them. Begin paragraph {k} with the"
            ' word "{word}".',
        ),
        draw=_draw_paragraph_start,
        passes=_paragraph_start,
        passing=lambda rng, values: _start_sample(rng, values, values["word"]),
        failing=lambda rng, values: _start_sample(rng, values, "Zebras"),
        difficulty=3,
        group="paragraphs",
        excludes=("layout", "title", "postscript", "start"),
        needs=lambda values: 6 * int(values["n"]),
        holds=lambda values: (values["word"],),
        ifeval="length_constraints:nth_paragraph_first_word",
    ),
    Kind(
        name="lines",
        about="exactly n lines",
        wordings=(
            "Write exactly {n} lines.",
            "Your answer must have {n} lines, each on a line of its own.",
            "Break your answer into exactly {n} lines.",
        ),
        draw=one_of(3, 4, 5, 6),
        passes=_lines,
        passing=lambda rng, values: samples.prose(rng, values["n"], rng.choice(("\n", "\n\n"))),
        failing=lambda rng, values: samples.prose(rng, samples.other(rng, values["n"], 1, 9), "\n"),
        difficulty=2,
        group="paragraphs",
        excludes=("layout", "title", "postscript"),
        needs=lambda values: 4 * int(values["n"]),
    ),
    Kind(
        name="short_sentences",
        about="three sentences or more, none over n words",
        wordings=(
            "Write at least three sentences, and use no more than {n} words in any of them.",
            "Use short sentences: three or more, none longer than {n} words.",
            "Every sentence must have at most {n} words, and there must be three sentences or more.",
        ),
        draw=one_of(8, 10, 12, 15),
        passes=_short_sentences,
        passing=lambda rng, values: samples.prose(rng, rng.randint(3, 8)),
        failing=lambda rng, values: f"{samples.prose(rng, 3)} {samples.sentence(rng, values['n'] + 1)}",
        difficulty=2,
        group="sentence length",
        excludes=("postscript",),
        needs=lambda values: 12,
    ),
)
