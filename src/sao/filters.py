"""Filters: which prompts are worth an answer. `Prompt` records in, the same records or Drops out, in the order of their rows.

Each filter is a small function that gives the reason to drop a prompt, or None; the cheap ones come first. What repeats is found
last, over all prompts that are left: the first of a group stays. `leaking_responses` looks at answers.

Try it on a finished run: sao prompts RECIPE --out RUN --filters.duplicates near --filters.languages "[en]"
"""

from __future__ import annotations

import importlib
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from sao.config import FiltersConfig
from sao.errors import ConfigError
from sao.evaluation_sets import load_benchmarks
from sao.leaks import LeakIndex
from sao.similarity import Repeats, find_by_embedding, find_duplicates, words
from sao.types import Drop, Prompt, Response

Reason = tuple[str, str | None]
"""Why a prompt is dropped, and what about this one."""
Check = Callable[[Prompt, str], Reason | None]
"""A filter: takes the prompt and its persona's text."""
QUOTED_WORDS = 10
"""So many words in a row from its persona's text make a prompt a quotation of it."""
_REFUSAL = re.compile(
    r"(i('m| am) (really |very |so )?sorry\b|sorry, (but )?i\b|i (can ?not|can't|won't|('m|am) (not able|unable) to)\b"
    r"|as an? (ai|artificial intelligence|(large )?language model)\b|unfortunately,? i (can ?not|can't|am)\b)",
    re.IGNORECASE,
)
_BREAKS_OFF = re.compile(
    r"([,;:(\[{–-]|\b(and|or|the|a|an|of|to|with|for|because|but)|(^|\n)\s*(\d+[.)]|[*•]))\s*$", re.IGNORECASE
)
_SCAFFOLD = re.compile(r"\{[a-z_]+\}|</?(request|answer_\d|persona|prompt|response)>", re.IGNORECASE)


def is_active(config: FiltersConfig) -> bool:
    """Whether the recipe filters anything."""
    c = config
    asked = (
        c.embeddings,
        c.against,
        c.min_words,
        c.max_words,
        c.languages,
        c.refusals,
        c.persona_text,
        c.unfinished,
        c.reject,
    )
    return c.duplicates != "none" or any(asked)


def filter_prompts(
    read: Callable[[], Iterable[tuple[Prompt, str]]], config: FiltersConfig, marker: str, done: Container[str]
) -> Iterator[Prompt | Drop]:
    """The prompts that are kept, and a Drop for each other one; those that are `done` are looked at but not handed out again.

    Args:
        read: Gives the prompts in the order of their rows, each with its persona's text; called a few times.
        config: The filters.
        marker: What a prompt had to begin with when it was written; it may not stand in one.
        done: Ids that are written already.

    Memory: about a hundred bytes a prompt while near-duplicates are looked for, 16 otherwise.

    """
    checks = prompt_checks(config, marker)
    rows = array("q", (prompt.row for prompt, persona in read() if not first_reason(checks, prompt, persona)))
    kept, repeats = _without_repeats(read, rows, config)
    for prompt, persona in read():
        if prompt.id in done:
            continue
        place = bisect_left(kept, prompt.row)
        if place < len(kept) and kept[place] == prompt.row:
            yield prompt
            continue
        reason = first_reason(checks, prompt, persona) or repeats(prompt.row)
        yield Drop(row=prompt.row, stage="filtered", record_id=prompt.id, reason=reason[0], detail=reason[1])


def first_reason(checks: list[Check], prompt: Prompt, persona: str) -> Reason | None:
    """Why the first filter that minds drops this prompt."""
    return next((reason for check in checks if (reason := check(prompt, persona))), None)


def _without_repeats(
    read: Callable[[], Iterable[tuple[Prompt, str]]], rows: array[int], config: FiltersConfig
) -> tuple[array[int], Callable[[int], Reason]]:
    """Those of `rows` whose prompts repeat no earlier one, and a function that says of the others what they repeat."""
    found: list[tuple[str, array[int], Repeats]] = []
    threshold = config.max_similarity if config.duplicates == "near" else None
    searches: list[Callable[[Callable[[], Iterator[str]]], Repeats]] = []
    if config.duplicates != "none":
        searches.append(lambda texts: find_duplicates(texts, threshold))
    if config.embeddings is not None:
        model = config.embeddings
        searches.append(lambda texts: find_by_embedding(texts, model, config.max_cosine))
    for search in searches:

        def texts(rows: array[int] = rows) -> Iterator[str]:
            wanted = iter(rows)
            row = next(wanted, None)
            for prompt, _ in read():
                if prompt.row == row:
                    yield prompt.conversation
                    row = next(wanted, None)

        repeats = search(texts)
        name = (
            "repeats an earlier prompt" if search is searches[0] and config.duplicates != "none" else "means the same"
        )
        found.append((name, rows, repeats))
        rows = array("q", (row for place, row in enumerate(rows) if repeats.earlier[place] < 0))

    def reason_of(row: int) -> Reason:
        for name, among, repeats in found:
            place = bisect_left(among, row)
            if place < len(among) and among[place] == row and repeats.earlier[place] >= 0:
                exact = repeats.similarity[place] >= 1
                what = name if not exact else "equals an earlier prompt"
                return what, f"row {among[repeats.earlier[place]]}, similarity {repeats.similarity[place]:.2f}"
        raise AssertionError(f"row {row} was neither kept nor dropped")

    return rows, reason_of


def filter_responses(
    responses: Iterable[Response], config: FiltersConfig, done: Container[str]
) -> Iterator[Response | Drop]:
    """The answers in which no evaluation item stands, and a Drop for each other one."""
    leaks = leak_check(config)
    for response in responses:
        if response.id in done:
            continue
        if reason := leaks(response.text):
            yield Drop(
                row=response.row, stage="filtered_responses", record_id=response.id, reason=reason[0], detail=reason[1]
            )
        else:
            yield response


# The filters. Each takes a prompt and its persona's text.


def prompt_checks(config: FiltersConfig, marker: str) -> list[Check]:
    """The filters that the recipe asks for, the cheap ones first."""
    found: list[Check] = []
    if config.min_words or config.max_words is not None:
        found.append(lambda prompt, _: length_reason(prompt.text, config.min_words, config.max_words))
    if config.refusals:
        found.append(lambda prompt, _: ("refusal", None) if _REFUSAL.match(prompt.text) else None)
    if config.unfinished:
        found.append(lambda prompt, _: ("unfinished", None) if is_unfinished(prompt.text) else None)
    if config.persona_text:
        found.append(lambda prompt, persona: persona_reason(prompt.text, persona, marker))
    if config.languages:
        found.append(language_check(config.languages))
    if config.against:
        leaks = leak_check(config)
        found.append(lambda prompt, _: leaks(prompt.conversation))
    if config.reject is not None:
        plug = load_plug(config.reject)
        found.append(lambda prompt, _: (str(reason), None) if (reason := plug(prompt.text)) else None)
    return found


def length_reason(text: str, least: int, most: int | None) -> Reason | None:
    """Whether the text has fewer than `least` or more than `most` words."""
    n = len(words(text))
    if n < least:
        return "too short", f"{n} words"
    return ("too long", f"{n} words") if most is not None and n > most else None


def is_unfinished(text: str) -> bool:
    """Whether the text breaks off: in a comma, a colon, an article or a bare list number, or within brackets or a code block."""
    text = text.strip()
    opened = any(text.count(a) > text.count(b) for a, b in ("()", "[]", "{}"))
    return bool(_BREAKS_OFF.search(text)) or text.count("```") % 2 == 1 or (opened and "```" not in text)


def persona_reason(text: str, persona: str, marker: str) -> Reason | None:
    """Whether the text holds what belongs to the template or the persona's description and not to a request."""
    if marker.casefold() in text.casefold() or _SCAFFOLD.search(text):
        return "template text", None
    said, described = words(text), words(persona)
    run = min(QUOTED_WORDS, len(described))
    if run < 4:
        return None
    quotable = {tuple(described[i : i + run]) for i in range(len(described) - run + 1)}
    quoted = next((i for i in range(len(said) - run + 1) if tuple(said[i : i + run]) in quotable), None)
    return None if quoted is None else ("quotes its persona", " ".join(said[quoted : quoted + run]))


def language_check(languages: list[str]) -> Check:
    """Whether a prompt is in one of these languages, by py3langid; a text of a few words is let through, since it cannot tell."""
    try:
        import py3langid
    except ImportError as error:
        raise ConfigError("filters.languages needs the package py3langid: pip install 'sao[data]'") from error

    def check(prompt: Prompt, persona: str) -> Reason | None:
        language = str(py3langid.classify(prompt.text)[0])
        short = len(words(prompt.text)) < 4
        return None if short or language in languages else ("another language", language)

    return check


def leak_check(config: FiltersConfig) -> Callable[[str], Reason | None]:
    """Whether an item of the evaluation sets `filters.against` stands in a text."""
    index = LeakIndex(load_benchmarks(config.against), config.max_overlap)

    def check(text: str) -> Reason | None:
        leak = index.find(text)
        if leak is None:
            return None
        return f"leaks {leak.benchmark}", f"item {leak.item}, overlap {leak.share:.2f}"

    return check


def load_plug(path: str) -> Callable[[str], Any]:
    """The function "package.module:function". Raises ConfigError where there is none."""
    module, _, name = path.partition(":")
    try:
        plug = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"filters.reject {path!r}: no such function ({error}). Write it as package.module:function; the module must be "
            "importable here (set PYTHONPATH)"
        ) from error
    if not callable(plug):
        raise ConfigError(f"filters.reject {path!r}: not a function")
    found: Callable[[str], Any] = plug
    return found
