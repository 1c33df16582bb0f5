"""Kinds about the form of an answer as a whole: lists, tables, sections, JSON, plain prose."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from sao.checks import marked, rules, samples, text
from sao.checks.kind import Kind, Value, Values, no_values, one_of

_KEYS = ("answer", "reason", "example", "summary", "topic", "steps", "advice", "question")
_HEADINGS = ("Section", "Part", "Step")
_MARKUP = re.compile(r"[ \t]*(?:#{1,6}[ \t]|```|\||(?:[-*_=][ \t]*){3,}$)")
_UNDERSCORES = re.compile(r"(?<![\w_])(_{1,2})(?=[^\s_])[^_\n]+(?<=[^\s_])\1(?![\w_])")
"""Bold or italic text in underscores; snake_case is none."""


def _bullets(answer: str, values: Values) -> bool:
    """Exactly n lines that begin with -, *, + or • and a blank, outside code blocks; other lines may
    stand too."""
    return bool(len(text.bullets(answer)) == values["n"])


def _numbered_list(answer: str, values: Values) -> bool:
    """Exactly n lines that begin with a number and "." or ")", outside code blocks, numbered 1, 2, 3 … n."""
    return text.numbered(answer) == list(range(1, values["n"] + 1))


def _sorted_list(answer: str, values: Values) -> bool:
    """Exactly n bullets (as in `bullets`), each word for word not before the one above it, cases alike."""
    items = [text.words_of(item) for item in text.bullets(answer)]
    return len(items) == values["n"] and items == sorted(items)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table(answer: str, values: Values) -> bool:
    """One Markdown table: a header line of two cells or more, a line of dashes with as many cells, then
    exactly n lines with "|", until a line without one."""
    lines = answer.split("\n")
    rules_at = [k for k, line in enumerate(lines) if _is_rule(_cells(line))]
    if len(rules_at) != 1 or rules_at[0] == 0:
        return False
    at = rules_at[0]
    rows = next((k for k, line in enumerate(lines[at + 1 :]) if "|" not in line), len(lines) - at - 1)
    return rows == values["n"] and len(_cells(lines[at - 1])) == len(_cells(lines[at]))


def _is_rule(cells: Sequence[str]) -> bool:
    return len(cells) > 1 and all("-" in cell and not cell.strip("-:") for cell in cells)


def _sections(answer: str, values: Values) -> bool:
    """Lines that begin with the heading word and a number, in any case, marks before it passed over: exactly
    n, numbered 1, 2, 3 … n."""
    wanted = values["word"].casefold()
    starts = (text.words_of(line[:200])[:2] for line in answer.split("\n"))
    found = [start[1] for start in starts if start[:1] == [wanted] and start[-1].isdecimal()]
    return found == [str(k) for k in range(1, values["n"] + 1)]


def _json_keys(answer: str, values: Values) -> bool:
    """The whole answer, or the one code block that it is, is a JSON object with exactly these keys."""
    is_json, found = rules.read_json(text.unfenced(answer))
    return is_json and isinstance(found, dict) and sorted(found) == sorted(values["keys"])


def _two_answers(answer: str, values: Values) -> bool:
    """Two texts of different words with ****** between them, which stands on a line of its own."""
    lines = [line.strip() for line in answer.split("\n")]
    parts = [words for part in answer.split(rules.SEPARATOR) if (words := text.words_of(part))]
    differ = len(parts) == 2 and parts[0] != parts[1]
    return differ and rules.two_answers(answer) and answer.count("*" * 6) == lines.count(rules.SEPARATOR)


def _plain_prose(answer: str, values: Values) -> bool:
    """Two sentences or more; no line that begins a list, a heading, a table, a code block or a rule, and no
    part in asterisks or underscores."""
    lines = answer.split("\n")
    is_marked = any(text.without_mark(line) != line or _MARKUP.match(line) for line in lines)
    is_marked = is_marked or bool(marked.HIGHLIGHT.search(answer) or _UNDERSCORES.search(answer))
    return not is_marked and len(text.sentences(answer)) >= 2


def _list(rng: random.Random, n: int, mark: str = "- ") -> str:
    items = [f"{mark.format(k + 1)}{' '.join(samples.words(rng, 3))}" for k in range(n)]
    return "\n".join([samples.sentence(rng), *items, samples.sentence(rng)])


def _sorted_sample(rng: random.Random, n: int, reverse: bool) -> str:
    items = sorted(rng.sample(samples.WORDS, n), reverse=reverse)
    return "\n".join(f"- {item}" for item in items)


def _table_sample(rng: random.Random, n: int) -> str:
    rows = [" | ".join(samples.words(rng, 2)) for _ in range(n)]
    return "\n".join(f"| {row} |" for row in ("Name | Use", ":--- | ---", *rows))


def _sections_sample(rng: random.Random, word: str, n: int, mark: str = "") -> str:
    return "\n\n".join(f"{mark}{word} {k + 1}\n{samples.prose(rng, 2)}" for k in range(n))


def _json_sample(rng: random.Random, keys: Sequence[str]) -> str:
    body = json.dumps({key: samples.sentence(rng) for key in keys}, indent=rng.choice((None, 2)))
    return rng.choice((body, f"```json\n{body}\n```"))


def _draw_keys(rng: random.Random, prompt: str) -> dict[str, Value]:
    return {"keys": rng.sample(_KEYS, rng.choice((2, 3)))}


KINDS = (
    Kind(
        name="bullets",
        about="exactly n bullet points",
        wordings=(
            'Use exactly {n} bullet points, each on a line that begins with "- ".',
            'Your answer must contain a list of {n} bullet points. Begin each with "- ".',
            "Give {n} bullet points, no more and no fewer. Start each of them with a dash.",
        ),
        draw=one_of(2, 3, 4, 5),
        passes=_bullets,
        passing=lambda rng, values: _list(rng, values["n"], rng.choice(("- ", "* ", "• ", "  + "))),
        failing=lambda rng, values: _list(rng, samples.other(rng, values["n"], 0, 8)),
        difficulty=2,
        group="layout",
        excludes=("starts",),
        needs=lambda values: 3 * int(values["n"]) + 3,
        ifeval="detectable_format:number_bullet_lists",
    ),
    Kind(
        name="numbered_list",
        about="a numbered list of n",
        wordings=(
            "Give a numbered list of exactly {n} items.",
            'List {n} items, numbered "1.", "2." and so on.',
            "Your answer must contain a numbered list with {n} items.",
        ),
        draw=one_of(3, 4, 5),
        passes=_numbered_list,
        passing=lambda rng, values: _list(rng, values["n"], rng.choice(("{}. ", "{}) "))),
        failing=lambda rng, values: _list(rng, samples.other(rng, values["n"], 0, 8), "{}. "),
        difficulty=1,
        group="layout",
        excludes=("starts", "digits"),
        needs=lambda values: 4 * int(values["n"]) + 3,
    ),
    Kind(
        name="sorted_list",
        about="n bullet points in alphabetical order",
        wordings=(
            'List exactly {n} bullet points in alphabetical order. Begin each with "- ".',
            "Give {n} bullet points that start with a dash, sorted from A to Z.",
        ),
        draw=one_of(3, 4, 5),
        passes=_sorted_list,
        passing=lambda rng, values: _sorted_sample(rng, values["n"], reverse=False),
        failing=lambda rng, values: _sorted_sample(rng, values["n"], reverse=True),
        difficulty=3,
        group="layout",
        excludes=("starts",),
        needs=lambda values: 3 * int(values["n"]) + 3,
    ),
    Kind(
        name="table",
        about="a Markdown table with n rows",
        wordings=(
            "Give a Markdown table with a header and exactly {n} rows below it.",
            "Your answer must contain one table in Markdown with {n} rows, not counting the header.",
        ),
        draw=one_of(2, 3, 4),
        passes=_table,
        passing=lambda rng, values: f"{samples.prose(rng, 1)}\n\n{_table_sample(rng, values['n'])}",
        failing=lambda rng, values: _table_sample(rng, samples.other(rng, values["n"], 0, 6)),
        difficulty=3,
        group="layout",
        only_with=("include", "avoid", "commas", "min_words"),
        needs=lambda values: 4 * int(values["n"]) + 4,
    ),
    Kind(
        name="sections",
        about="n sections with numbered headings",
        wordings=(
            'Divide your answer into {n} sections. Begin them with "{word} 1", "{word} 2" and so on.',
            'Write exactly {n} sections, each under a line such as "{word} 1".',
        ),
        draw=lambda rng, prompt: {"n": rng.choice((2, 3, 4)), "word": rng.choice(_HEADINGS)},
        passes=_sections,
        passing=lambda rng, values: _sections_sample(
            rng, rng.choice(("", "## ", "**")) + values["word"], values["n"]
        ),
        failing=lambda rng, values: _sections_sample(
            rng, values["word"], samples.other(rng, values["n"], 1, 6)
        ),
        difficulty=2,
        group="layout",
        excludes=("starts", "digits"),
        needs=lambda values: 6 * int(values["n"]) + 3,
        holds=lambda values: (values["word"],),
        ifeval="detectable_format:multiple_sections",
    ),
    Kind(
        name="json_keys",
        about="a JSON object with given keys",
        wordings=(
            "Answer with a JSON object that has the keys {keys}, and nothing else.",
            "Your whole answer must be one JSON object with exactly these keys: {keys}.",
        ),
        draw=_draw_keys,
        passes=_json_keys,
        passing=lambda rng, values: _json_sample(rng, values["keys"]),
        failing=lambda rng, values: _json_sample(rng, values["keys"][1:]),
        difficulty=3,
        group="layout",
        only_with=("include", "avoid"),
        needs=lambda values: 4 * len(values["keys"]),
        holds=lambda values: tuple(values["keys"]),
        ifeval="detectable_format:json_format",
    ),
    Kind(
        name="two_answers",
        about="two different answers with ****** between",
        wordings=(
            "Give two different answers with a line of six asterisks (******) between them.",
            "Write two answers that differ. Separate them by ****** on a line of its own.",
        ),
        draw=no_values,
        passes=_two_answers,
        passing=lambda rng, values: f"{samples.prose(rng, 2)}\n******\nOr {samples.prose(rng, 1)}",
        failing=lambda rng, values: rng.choice((samples.prose(rng, 2), "We go.\n******\nWe go.")),
        difficulty=3,
        group="layout",
        only_with=("include", "avoid", "commas", "no_digits"),
        ifeval="combination:two_responses",
    ),
    Kind(
        name="plain_prose",
        about="two sentences or more, no lists, headings or bold",
        wordings=(
            "Write plain sentences, two or more: no lists, no headings, no bold or italic text.",
            "Answer in at least two sentences of plain text, without lists, headings, tables or asterisks.",
        ),
        draw=no_values,
        passes=_plain_prose,
        passing=lambda rng, values: samples.prose(rng, rng.randint(2, 6)),
        failing=lambda rng, values: rng.choice(
            (_list(rng, 3), f"# We\n{samples.prose(rng, 3)}", f"{samples.prose(rng, 3)} **Sky** is.")
        ),
        difficulty=1,
        group="layout",
        excludes=("highlights", "title", "postscript"),
        needs=lambda values: 8,
        trained=False,
    ),
)
