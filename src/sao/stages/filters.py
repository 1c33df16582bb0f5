"""Filters: which prompts are worth an answer. `Prompt` records in, the same records or Drops out.

Each filter is a small function that gives the reason to drop a prompt, or None; the cheap ones come first.
What repeats is found
last, over all prompts that are left: the first of a group stays. `filter_responses` looks at answers.
Refusals, and texts that end in a word such as "and", are known in English only.

Try it on a finished run: sao prompts RECIPE --out RUN --filters.duplicates near --filters.languages "[en]"
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from sao.config import FiltersConfig
from sao.data.contamination import LeakIndex
from sao.data.contamination_sets import load_benchmarks
from sao.data.readers import content_identity
from sao.data.similarity import Repeats, find_by_embedding, find_duplicates, words
from sao.errors import ConfigError
from sao.records import KEPT_TEXT, Drop, Prompt, Response

Reason = tuple[str, str | None]
"""Why a prompt is dropped, and what about this one."""
Check = Callable[[Prompt, str], Reason | None]
"""A filter: takes the prompt and its persona's text."""
QUOTED_WORDS, QUOTED_CHARACTERS = 10, 25
"""So many words in a row from its persona's text make a prompt a quotation of it; characters, in scripts
without spaces, where `words` takes each for a word."""
SURE, HARDLY, TOLD_WORDS = 0.9, 0.001, 5
"""A text is in another language where that is so probable, or the kept ones hardly are; texts of fewer words
do not tell."""
_SORRY = r"(?:(?:(?:i am|i'm) (?:really |very |so )?)?sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)[,.;: –—-]*(?:but )?"  # noqa: E501
_CANNOT = (
    r"i(?: can ?not| can't| (?:won't|will not)(?: be able to)?|(?: am|'m) (?:unable|not (?:able|allowed)) "
    r"to) (?:answer|assist"
    r"|carry out|complete|comply|continue|create|discuss|do|engage|fulfil+|generate|give|help|invent|offer|pretend|produce"  # noqa: E501
    r"|provide|respond|share|write)\b(?! but\b)"
)
_REQUEST = (
    r"(?<! do)(?: you)?(?: with| to| in)? (?:(?:this|that)\s*(?:[.,;!]|\bas\b|$)"
    r"|[^.?!\n]{0,40}\b(?:request|prompt|persona)s?\b)"
)
_AI = r"as an? (?:ai|artificial intelligence|(?:ai |large )?language model)(?: (?:language )?model| assistant)?,? i\b"  # noqa: E501
_REFUSAL = re.compile(f"{_SORRY}{_CANNOT}|{_CANNOT}{_REQUEST}|{_AI}", re.IGNORECASE)
_BREAKS_OFF = re.compile(
    # What goes on: a mark, a dash, an opened bracket that is no face such as ":(", a joining word, or a
    # list's bare number.
    r"(?:[,;:，、；：،؛]|(?<!\S)[–—-]|(?<![:;=-])[(\[{（「『【《]|\b(?:and|or|the|a|an|because|but)|(?:^|\n)[^\S\n]*(?:\d{1,2}[.)]|[*•]))$"
)
_SCAFFOLD = re.compile(r"\{(?:persona|traits|relation)\}")
_NOT_SAID = re.compile(
    r"(?s:```.*?(?:```|$))|`[^`\n]*`|https?://\S+|[\"“„«][^\"“”„«»\n]*[\"”“»]|(?<!\w)['‘‚][^'‘’\n]*['’](?!\w)"
)
"""Code, addresses and quotations: what tells nothing about the language in which somebody asks."""


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
    )
    return c.duplicates != "none" or c.reject is not None or any(asked)


def check_filters(config: FiltersConfig) -> None:
    """Load all that the filters need: the function, the languages, the evaluation sets and the model of
    embeddings.

    Raises ConfigError or DataError for what would otherwise fail once all prompts are written.
    """
    if config.max_words is not None and config.min_words > config.max_words:
        raise ConfigError(
            f"filters.min_words {config.min_words} is more than max_words {config.max_words}: nothing is kept"
        )
    prompt_checks(config, "")
    if config.embeddings is not None:
        find_by_embedding(lambda: iter(()), config.embeddings, config.max_cosine)


def filter_prompts(
    read: Callable[[], Iterable[tuple[Prompt, str]]], config: FiltersConfig, marker: str, done: Container[str]
) -> Iterator[Prompt | Drop]:
    """The prompts that are kept, and a Drop for each other one; those that are `done` are looked at but not
    handed out again.

    First come the Drops of those that a filter minds, as they are found (each is looked at once); then the
    others, in the order of their rows.

    Args:
        read: Gives the prompts in the order of their rows, each with its persona's text; called a few times.
        config: The filters.
        marker: What the model's text had to begin with, so that no line of a prompt may begin with it; ""
            where none is sought.
        done: Ids that are written already.

    Memory: about a hundred bytes a prompt while near-duplicates are looked for, 16 otherwise.

    """
    checks = prompt_checks(config, marker)
    rows = array("q")
    for prompt, persona in read():
        if (reason := first_reason(checks, prompt, persona)) is None:
            rows.append(prompt.row)
        elif prompt.id not in done:
            yield _drop(prompt, "filtered", reason)
    kept, repeats = _without_repeats(read, rows, config)
    for prompt in _at(read, rows):
        if prompt.id not in done:
            place = bisect_left(kept, prompt.row)
            is_kept = place < len(kept) and kept[place] == prompt.row
            yield prompt if is_kept else _drop(prompt, "filtered", repeats(prompt.row))


def first_reason(checks: list[Check], prompt: Prompt, persona: str) -> Reason | None:
    """Why the first filter that minds drops this prompt."""
    return next((reason for check in checks if (reason := check(prompt, persona))), None)


def _drop(record: Prompt | Response, stage: str, reason: Reason) -> Drop:
    text = record.text[:KEPT_TEXT]
    return Drop(
        row=record.row, stage=stage, record_id=record.id, reason=reason[0], detail=reason[1], text=text
    )


def _at(read: Callable[[], Iterable[tuple[Prompt, str]]], rows: array[int]) -> Iterator[Prompt]:
    """The prompts of these rows, which are in ascending order."""
    wanted = iter(rows)
    row = next(wanted, None)
    for prompt, _ in read():
        if prompt.row == row:
            yield prompt
            row = next(wanted, None)


def _without_repeats(
    read: Callable[[], Iterable[tuple[Prompt, str]]], rows: array[int], config: FiltersConfig
) -> tuple[array[int], Callable[[int], Reason]]:
    """Those of `rows` whose prompts repeat no earlier one, and a function that says of the others what they
    repeat."""
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
            return (prompt.conversation for prompt in _at(read, rows))

        repeats = search(texts)
        name = (
            "repeats an earlier prompt"
            if search is searches[0] and config.duplicates != "none"
            else "means the same"
        )
        found.append((name, rows, repeats))
        rows = array("q", (row for place, row in enumerate(rows) if repeats.earlier[place] < 0))

    def reason_of(row: int) -> Reason:
        for name, among, repeats in found:
            place = bisect_left(among, row)
            if place < len(among) and among[place] == row and repeats.earlier[place] >= 0:
                exact = repeats.similarity[place] >= 1
                what = name if not exact else "equals an earlier prompt"
                return (
                    what,
                    f"row {among[repeats.earlier[place]]}, similarity {repeats.similarity[place]:.2f}",
                )
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
            yield _drop(response, "filtered_responses", reason)
        else:
            yield response


# The filters. Each takes a prompt and its persona's text.


def prompt_checks(config: FiltersConfig, marker: str) -> list[Check]:
    """The filters that the recipe asks for, the cheap ones first. Raises ConfigError for one that cannot
    work."""
    found: list[Check] = []
    if config.min_words or config.max_words is not None:
        found.append(lambda prompt, _: length_reason(_said(prompt), config.min_words, config.max_words))
    if config.refusals:
        found.append(lambda p, _: ("refusal", None) if any(map(is_refusal, (*p.earlier, p.text))) else None)
    if config.unfinished:
        found.append(lambda prompt, _: ("unfinished", None) if is_unfinished(prompt.text) else None)
    if config.persona_text:
        found.append(lambda prompt, persona: _persona_check(prompt, persona, marker))
    if config.languages:
        found.append(language_check(config.languages))
    if config.against:
        leaks = leak_check(config)
        found.append(lambda prompt, _: leaks(prompt.conversation))
    if config.reject is not None:
        found.append(plug_check(config.reject))
    return found


def _said(prompt: Prompt) -> str:
    """All that is said, without the names of those who say it."""
    return "\n\n".join((*prompt.earlier, prompt.text))


def length_reason(text: str, least: int, most: int | None) -> Reason | None:
    """Whether the text has fewer than `least` or more than `most` words."""
    n = len(words(text))
    if n < least:
        return "too short", f"{n} words"
    return ("too long", f"{n} words") if most is not None and n > most else None


def is_refusal(text: str) -> bool:
    """Whether the text opens as a refusal does, in English, and names the refused act ("I can't get it to
    rise" is none)."""
    return bool(_REFUSAL.match(text.lstrip().replace("’", "'")))


def is_unfinished(text: str) -> bool:
    """Whether the text breaks off: in a comma, a colon, an opened bracket, an article, a bare list number, or
    a code block."""
    text = text.strip()
    last = text.rsplit("```", 1)[-1]
    return bool(_BREAKS_OFF.search(text)) or (text.count("```") % 2 == 1 and "\n" in last)


def _persona_check(prompt: Prompt, persona: str, marker: str) -> Reason | None:
    """The first reason that one of the user's turns gives."""
    found = (persona_reason(text, persona, marker) for text in (*prompt.earlier[::2], prompt.text))
    return next((reason for reason in found if reason), None)


def persona_reason(text: str, persona: str, marker: str) -> Reason | None:
    """Whether the text holds what belongs to the template (a field of it, a line that begins with the marker)
    or to the persona's description and not to a request. Where there is no persona, nothing of one is
    sought."""
    begins = rf"^[^\S\n]*{re.escape(marker)}"
    if (marker and re.search(begins, text, re.IGNORECASE | re.MULTILINE)) or (
        persona and _SCAFFOLD.search(text)
    ):
        return "template text", None
    said, described = words(text), words(persona)
    spaceless = len("".join(described)) < 2 * len(described)
    run = QUOTED_CHARACTERS if spaceless else QUOTED_WORDS
    quotable = {tuple(described[i : i + run]) for i in range(len(described) - run + 1)}
    if not quotable:
        return None
    quoted = next((i for i in range(len(said) - run + 1) if tuple(said[i : i + run]) in quotable), None)
    return None if quoted is None else ("quotes its persona", " ".join(said[quoted : quoted + run]))


def language_check(languages: list[str]) -> Check:
    """Whether a prompt is in another language than these, by py3langid; where that is not sure, the prompt is
    let through.

    Raises ConfigError where the package is missing or does not know a code.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "filters.languages needs the package py3langid, 0.4 or newer: pip install 'sao[data]'"
        ) from error
    known = sorted(identifier.labels)
    if unknown := [code for code in languages if code not in known]:
        raise ConfigError(
            f"filters.languages: no language {unknown[0]!r}. Give codes such as en; known: {', '.join(known)}"
        )

    def check(prompt: Prompt, persona: str) -> Reason | None:
        text = _NOT_SAID.sub(" ", _said(prompt))
        if len(words(text)) < TOLD_WORDS:
            return None
        ranked = identifier.rank(text)
        language, probability = ranked[0]
        wanted = sum(p for code, p in ranked if code in languages)
        is_other = language not in languages and (probability >= SURE or wanted < HARDLY)
        return ("another language", language) if is_other else None

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


# A function of the user's.


def plug_check(path: str) -> Check:
    """Why the user's function drops a prompt; it is given the whole conversation. Raises ConfigError where it
    raises anything."""
    plug = load_plug(path)

    def check(prompt: Prompt, persona: str) -> Reason | None:
        try:
            reason = plug(prompt.conversation)
        except Exception as error:
            raise ConfigError(
                f"filters.reject {path!r} raised {type(error).__name__}: {error}; on the prompt of row "
                f"{prompt.row}: "
                f"{prompt.conversation[:200]!r}. Mend the function, then give the same command again"
            ) from error
        return (str(reason), None) if reason else None

    return check


def load_plug(path: str) -> Callable[[str], Any]:
    """The function "package.module:function". Raises ConfigError where there is none."""
    module, _, name = path.partition(":")
    try:
        plug = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module may raise anything
        raise _no_plug(path, f"{type(error).__name__}: {error}") from error
    if not callable(plug):
        raise ConfigError(f"filters.reject {path!r}: not a function")
    found: Callable[[str], Any] = plug
    return found


def plug_identity(path: str) -> str:
    """What the function "package.module:function" is, wherever it lies: its name and the SHA-256 of its
    module's file. The module is not run, and what it imports does not count.

    Raises ConfigError where there is no such module.
    """
    module, _, name = path.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # the packages around it are run, and may raise anything
        raise _no_plug(path, f"{type(error).__name__}: {error}") from error
    if spec is None:
        raise _no_plug(path, f"no module {module!r}")
    return f"{content_identity(spec.origin or module)}:{name}"


def _no_plug(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"filters.reject {path!r}: no such function ({why}). Write it as package.module:function; the module "
        "must be importable "
        "here (set PYTHONPATH)"
    )
