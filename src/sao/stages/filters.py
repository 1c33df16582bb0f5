"""Filters: which prompts are worth an answer. `Prompt` records in, the same records or Drops out.

Each filter is a small function that gives the reason to drop a prompt, or None; the cheap ones come first.
Dedup comes last, over all prompts that are left: the first of a group stays. `filter_responses` checks
answers. Refusals, and texts that end in a word such as "and", are known in English only.

Try it on a finished run: sao prompts RECIPE --out RUN --filters.duplicates near --filters.languages "[en]"
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from sao.config import FiltersConfig
from sao.data.contamination import ContaminationIndex
from sao.data.contamination_sets import load_benchmarks
from sao.data.similarity import Repeats, Texts, find_by_embedding, find_duplicates, words
from sao.errors import ConfigError
from sao.records import KEPT_TEXT, Drop, Prompt, Response
from sao.stages.functions import load_function

Reason = tuple[str, str | None]
"""Why a prompt is dropped, and what about this one."""
Check = Callable[[Prompt, str], Reason | None]
"""A filter: takes the prompt and its persona's text."""
Search = Callable[[Texts], Repeats]
"""A kind of dedup: texts in, what each repeats out."""
QUOTED_WORDS, QUOTED_CHARACTERS = 10, 25
"""A prompt quotes its persona's text where it has so many words in a row from it; characters, in scripts
without spaces, where `words` takes each for a word."""
SURE, HARDLY, TOLD_WORDS = 0.9, 0.001, 5
"""A text is in another language where that is at least SURE, or the languages kept are less probable than
HARDLY; in texts of fewer words than TOLD_WORDS the language is not known."""
_SORRY = (
    r"(?:(?:(?:i am|i'm) (?:really |very |so )?)?sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)"
    r"[,.;: –—-]*(?:but )?"
)
_CANNOT = (
    r"i(?: can ?not| can't| (?:won't|will not)(?: be able to)?|(?: am|'m) (?:unable|not (?:able|allowed)) to)"
    r" (?:answer|assist|carry out|complete|comply|continue|create|discuss|do|engage|fulfil+|generate|give"
    r"|help|invent|offer|pretend|produce|provide|respond|share|write)\b(?! but\b)"
)
_REQUEST = (
    r"(?<! do)(?: you)?(?: with| to| in)? (?:(?:this|that)\s*(?:[.,;!]|\bas\b|$)"
    r"|[^.?!\n]{0,40}\b(?:request|prompt|persona)s?\b)"
)
_AI = (
    r"as an? (?:ai|artificial intelligence|(?:ai |large )?language model)(?: (?:language )?model| assistant)?"
    r",? i\b"
)
_REFUSAL = re.compile(f"{_SORRY}{_CANNOT}|{_CANNOT}{_REQUEST}|{_AI}", re.IGNORECASE)
_BREAKS_OFF = re.compile(
    # What announces more: a mark, a dash, an opened bracket that is no face such as ":(", a joining word, or
    # a list's number without text.
    r"(?:[,;:，、；：،؛]|(?<!\S)[–—-]|(?<![:;=-])[(\[{（「『【《]|\b(?:and|or|the|a|an|because|but)"
    r"|(?:^|\n)[^\S\n]*(?:\d{1,2}[.)]|[*•]))$"
)
_SCAFFOLD = re.compile(r"\{(?:persona|traits|relation)\}")
_NOT_SAID = re.compile(
    r"(?s:```.*?(?:```|$))|`[^`\n]*`|https?://\S+|[\"“„«][^\"“”„«»\n]*[\"”“»]|(?<!\w)['‘‚][^'‘’\n]*['’](?!\w)"
)
"""Code, addresses and quotations: they do not show in which language somebody asks."""


def is_active(config: FiltersConfig) -> bool:
    """Whether the recipe filters anything."""
    asked_for = (
        config.embeddings,
        config.decontaminate,
        config.min_words,
        config.max_words,
        config.languages,
        config.refusals,
        config.persona_text,
        config.unfinished,
    )
    return config.duplicates != "none" or config.reject is not None or any(asked_for)


def check_filters(config: FiltersConfig) -> None:
    """Load all that the filters need: the function, the languages, the evaluation sets and the embedding
    model.

    Raises ConfigError or DataError for what would otherwise fail after all prompts are written.
    """
    if config.max_words is not None and config.min_words > config.max_words:
        raise ConfigError(
            f"filters.min_words {config.min_words} is more than max_words {config.max_words}: nothing "
            "is kept",
            key="filters.min_words",
        )
    prompt_checks(config, "")
    if config.embeddings is not None:
        find_by_embedding(lambda: iter(()), config.embeddings, config.max_cosine)


def filter_prompts(
    read: Callable[[], Iterable[tuple[Prompt, str]]], config: FiltersConfig, marker: str, done: Container[str]
) -> Iterator[Prompt | Drop]:
    """The prompts that are kept, and a Drop for each other one; prompts that are `done` are checked but not
    yielded again.

    First come the Drops of the filters, as they are found (each prompt is checked once); then the others, in
    the order in which they are read.

    Args:
        read: Gives the prompts, each with its persona's text, always in the same order: one that repeats
            another is dropped where it comes later; called a few times.
        config: The filters.
        marker: What the model's text had to begin with, so that no line of a prompt may begin with it; ""
            where there was none.
        done: Ids that are written already.

    Memory: about a hundred bytes a prompt while near-duplicates are searched, 24 otherwise.

    """
    checks = prompt_checks(config, marker)
    rows, turns = array("q"), array("q")
    """The row of each prompt in the order of reading; the turns (0, 1, …) of those that all filters keep."""
    for turn, (prompt, persona) in enumerate(read()):
        rows.append(prompt.row)
        if (reason := first_reason(checks, prompt, persona)) is None:
            turns.append(turn)
        elif prompt.id not in done:
            yield _drop(prompt, "filtered", reason)
    kept, repeat_reason = _without_repeats(read, rows, turns, config)
    for turn, prompt in _at(read, turns):
        if prompt.id in done:
            continue
        if _place_of(turn, kept) is not None:
            yield prompt
        else:
            yield _drop(prompt, "filtered", repeat_reason(turn))


def first_reason(checks: list[Check], prompt: Prompt, persona: str) -> Reason | None:
    """The first filter's reason to drop this prompt, None where all keep it."""
    return next((reason for check in checks if (reason := check(prompt, persona))), None)


def _drop(record: Prompt | Response, stage: str, reason: Reason) -> Drop:
    text = record.text[:KEPT_TEXT]
    return Drop(
        row=record.row, stage=stage, record_id=record.id, reason=reason[0], detail=reason[1], text=text
    )


def _at(read: Callable[[], Iterable[tuple[Prompt, str]]], turns: array[int]) -> Iterator[tuple[int, Prompt]]:
    """The prompts of these turns, which are in ascending order."""
    wanted = iter(turns)
    next_turn = next(wanted, None)
    for turn, (prompt, _) in enumerate(read()):
        if turn == next_turn:
            yield turn, prompt
            next_turn = next(wanted, None)


def _place_of(turn: int, turns: array[int]) -> int | None:
    """The place of a turn among turns in ascending order, None where it is not among them."""
    place = bisect_left(turns, turn)
    return place if place < len(turns) and turns[place] == turn else None


@dataclass(frozen=True, slots=True)
class _Searched:
    """What one kind of dedup found among the prompts of these turns, and the reason that it gives."""

    reason: str
    rows: array[int]
    turns: array[int]
    repeats: Repeats

    def kept(self) -> array[int]:
        """The turns whose prompts repeat no earlier one."""
        return array("q", (turn for turn, earlier in zip(self.turns, self.repeats.earlier) if earlier < 0))

    def reason_of(self, turn: int) -> Reason | None:
        """Why the prompt of a turn is dropped; None where it repeats none, or is not among these."""
        place = _place_of(turn, self.turns)
        if place is None or self.repeats.earlier[place] < 0:
            return None
        original = self.rows[self.turns[self.repeats.earlier[place]]]
        similarity = self.repeats.similarity[place]
        reason = "equals an earlier prompt" if similarity >= 1 else self.reason
        return reason, f"row {original}, similarity {similarity:.2f}"


def _without_repeats(
    read: Callable[[], Iterable[tuple[Prompt, str]]],
    rows: array[int],
    turns: array[int],
    config: FiltersConfig,
) -> tuple[array[int], Callable[[int], Reason]]:
    """Those of `turns` whose prompts repeat no earlier one, and a function that gives the reason for each
    other turn. `rows` has the row of every prompt by its turn."""

    def texts_at(turns: array[int]) -> Iterator[str]:
        return (prompt.conversation for _, prompt in _at(read, turns))

    finished: list[_Searched] = []
    for reason, search in _searches(config):
        finished.append(_Searched(reason, rows, turns, search(partial(texts_at, turns))))
        turns = finished[-1].kept()

    def reason_of(turn: int) -> Reason:
        return next(reason for searched in finished if (reason := searched.reason_of(turn)))

    return turns, reason_of


def _searches(config: FiltersConfig) -> Iterator[tuple[str, Search]]:
    """The kinds of dedup that the recipe asks for, each with the reason that it gives."""
    if config.duplicates != "none":
        threshold = config.max_similarity if config.duplicates == "near" else None
        yield "repeats an earlier prompt", partial(find_duplicates, threshold=threshold)
    if config.embeddings is not None:
        model, least = config.embeddings, config.max_cosine
        yield "means the same", partial(find_by_embedding, model=model, threshold=least)


def filter_responses(
    responses: Iterable[Response], config: FiltersConfig, done: Container[str]
) -> Iterator[Response | Drop]:
    """The answers that contain no evaluation item, and a Drop for each other one."""
    contamination = contamination_check(config)
    for response in responses:
        if response.id in done:
            continue
        if reason := contamination(response.text):
            yield _drop(response, "filtered_responses", reason)
        else:
            yield response


# The filters. Each takes a prompt and its persona's text.


def prompt_checks(config: FiltersConfig, marker: str) -> list[Check]:
    """The filters that the recipe asks for, the cheap ones first. Raises ConfigError for one that cannot
    work."""
    checks: list[Check] = []
    if config.min_words or config.max_words is not None:
        checks.append(lambda prompt, _: length_reason(_said(prompt), config.min_words, config.max_words))
    if config.refusals:
        checks.append(lambda prompt, _: ("refusal", None) if _has_refusal(prompt) else None)
    if config.unfinished:
        checks.append(lambda prompt, _: ("unfinished", None) if is_unfinished(prompt.text) else None)
    if config.persona_text:
        checks.append(lambda prompt, persona: _persona_check(prompt, persona, marker))
    if config.languages:
        checks.append(language_check(config.languages))
    if config.decontaminate:
        contamination = contamination_check(config)
        checks.append(lambda prompt, _: contamination(prompt.conversation))
    if config.reject is not None:
        checks.append(rejects(config.reject))
    return checks


def _has_refusal(prompt: Prompt) -> bool:
    return any(map(is_refusal, (*prompt.earlier, prompt.text)))


def _said(prompt: Prompt) -> str:
    """The texts of all turns, without the names of the speakers."""
    return "\n\n".join((*prompt.earlier, prompt.text))


def length_reason(text: str, least: int, most: int | None) -> Reason | None:
    """Whether the text has fewer than `least` or more than `most` words."""
    n = len(words(text))
    if n < least:
        return "too short", f"{n} words"
    return ("too long", f"{n} words") if most is not None and n > most else None


def is_refusal(text: str) -> bool:
    """Whether the text begins like a refusal, in English, and names the refused act ("I can't get it to rise"
    is none)."""
    return bool(_REFUSAL.match(text.lstrip().replace("’", "'")))


def is_unfinished(text: str) -> bool:
    """Whether the text breaks off: in a comma, a colon, an opened bracket, an article, a bare list number, or
    a code block."""
    text = text.strip()
    last = text.rsplit("```", 1)[-1]
    return bool(_BREAKS_OFF.search(text)) or (text.count("```") % 2 == 1 and "\n" in last)


def _persona_check(prompt: Prompt, persona: str, marker: str) -> Reason | None:
    """The first reason that one of the user's turns gives."""
    reasons = (persona_reason(text, persona, marker) for text in (*prompt.earlier[::2], prompt.text))
    return next((reason for reason in reasons if reason), None)


def persona_reason(text: str, persona: str, marker: str) -> Reason | None:
    """Whether the text holds a part of the template (a field, a line that begins with the marker) or quotes
    the persona's description. Without a persona only the marker counts."""
    marked_line = rf"^[^\S\n]*{re.escape(marker)}"
    if marker and re.search(marked_line, text, re.IGNORECASE | re.MULTILINE):
        return "template text", None
    if persona and _SCAFFOLD.search(text):
        return "template text", None
    quotation = _quotation(words(text), words(persona))
    return ("quotes its persona", quotation) if quotation else None


def _quotation(text: list[str], description: list[str]) -> str:
    """The first words in a row that a text has from a persona's description, "" where there are none."""
    is_spaceless = len("".join(description)) < 2 * len(description)
    n = QUOTED_CHARACTERS if is_spaceless else QUOTED_WORDS
    quotable = {tuple(description[i : i + n]) for i in range(len(description) - n + 1)}
    runs = (text[i : i + n] for i in range(len(text) - n + 1) if quotable)
    return next((" ".join(run) for run in runs if tuple(run) in quotable), "")


def language_check(languages: list[str]) -> Check:
    """Whether a prompt is in another language than these, by py3langid; where that is not sure, the prompt is
    kept.

    Raises ConfigError where the package is missing or does not know a code.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "filters.languages needs the package py3langid, 0.4 or newer: pip install 'sao[data]'",
            key="py3langid",
        ) from error
    known = sorted(identifier.labels)
    if unknown := [code for code in languages if code not in known]:
        raise ConfigError(
            f"filters.languages: no language {unknown[0]!r}. Give codes such as en; known: "
            f"{', '.join(known)}",
            key="filters.languages",
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


def contamination_check(config: FiltersConfig) -> Callable[[str], Reason | None]:
    """Whether a text contains an item of the evaluation sets `filters.decontaminate`."""
    index = ContaminationIndex(load_benchmarks(config.decontaminate), config.max_overlap)

    def check(text: str) -> Reason | None:
        found = index.find(text)
        if found is None:
            return None
        return f"contaminated: {found.benchmark}", f"item {found.item}, overlap {found.share:.2f}"

    return check


# A function of the user's.


def rejects(path: str) -> Check:
    """The check by the user's function; it is given the whole conversation. Raises ConfigError where it
    raises anything."""
    function = load_function(path, "filters.reject")

    def check(prompt: Prompt, persona: str) -> Reason | None:
        try:
            reason = function(prompt.conversation)
        except Exception as error:
            raise ConfigError(
                f"filters.reject {path!r} raised {type(error).__name__}: {error}; on the prompt of row "
                f"{prompt.row}: {prompt.conversation[:200]!r}. Mend the function, then give the same command "
                "again",
                key="filters.reject",
            ) from error
        return (str(reason), None) if reason else None

    return check
