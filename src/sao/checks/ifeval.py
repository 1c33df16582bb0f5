"""IFEval's 25 instructions: whether an answer follows one of them (Zhou et al. 2023, arXiv 2311.07911).

It is meant to say what lm-eval's checkers say, without their packages. Two of their rules need data or a
model and are approximated: sentences (NLTK's Punkt, see `_sentences`) and languages (langdetect, see
`sao.checks.language`).

    passes("keywords:existence", {"keywords": ["tea"]}, answer, prompt)
    any(passes(name, kwargs, text, prompt) for text in loosened(answer))      # IFEval's loose accuracy
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from sao.checks import language, rules, text
from sao.errors import StoreError

SECTION_WORD = "section_splitter".replace("tt", "t")
"""The key of multiple_sections' word, as IFEval's data spell it."""
NTH_PARAGRAPH = "length_constraints:nth_paragraph_first_word"
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_WORD = re.compile(r"\w+")
_FENCES = ("```json", "```Json", "```JSON", "```")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_APART = re.compile(
    r"[\s,;:@#$%&?!()\[\]{}<>\"“”]+|(?<=\w)(?='(?:[sSmMdD]|ll|LL|re|RE|ve|VE)\b)|(?<=\w)(?=(?:n't|N'T)\b)"
)
_BLANKS = " \t\r\f\v"
_BEHIND_END = ")\";}]*:@'({[!?"
_CLOSERS = "\"')]}"
_OPENERS = "\"'“‘«([{*_"
_SHORTENED = (
    "dr mr mrs ms messrs prof jr sr st gen col sen rep reps lt maj corp inc ltd co bros vs ave wash calif"
    " jan feb aug sep sept oct nov dec tues wed fri a.m p.m u.s u.k u.n u.s.a n.y l.a d.c ph.d m.b.a"
)
_ABBREVIATIONS = frozenset(_SHORTENED.split())
"""The most usual of the abbreviations that Punkt knows."""
_OFTEN_FIRST = (
    "the this that these those it he she we they you in on at if for and but so as when while a an there then"
    " what how why who after however or to of with from by not no yes our my your his her"
)
_STARTERS = frozenset(_OFTEN_FIRST.split())


def passes(instruction_id: str, kwargs: Mapping[str, Any], answer: str, prompt: str) -> bool:
    """Whether the answer follows the instruction; a blank one follows none. Values of None count as absent.
    Raises StoreError for an instruction that is not IFEval's, and for a value that is missing or does not
    fit."""
    check = _CHECKS.get(instruction_id)
    if check is None:
        raise StoreError(f"{instruction_id!r} is no instruction of IFEval", key="instruction_id_list")
    given: dict[str, Any] = {name: whole(value) for name, value in kwargs.items() if value is not None}
    if instruction_id == "combination:repeat_prompt":
        given.setdefault("prompt_to_repeat", prompt)
    for name in _NEEDS.get(instruction_id, ()):
        _check_value(instruction_id, name, given.get(name))
    if instruction_id == NTH_PARAGRAPH and given["nth_paragraph"] > given["num_paragraphs"]:
        raise StoreError(
            f"{instruction_id}: nth_paragraph is behind the last of num_paragraphs", key="kwargs"
        )
    return bool(answer.strip()) and check(answer, given)


def _check_value(instruction_id: str, name: str, value: object) -> None:
    """Raise StoreError for a value that is missing or of another type: it would be read as something else."""
    if value is None:
        raise StoreError(f"{instruction_id}: the value {name!r} is missing", key="kwargs")
    if name in _RELATIONS:
        is_fit, wanted = value in rules.RELATIONS, f"one of {', '.join(rules.RELATIONS)}"
    elif name in _LISTS:
        is_fit = isinstance(value, list) and len(value) > 0 and all(map(_is_text, value))
        wanted = "a list of texts"
    elif name == "language":
        is_fit, wanted = value in (*language.NAMES, "zh"), "the code of a language that is known here"
    elif name in _TEXTS:
        is_fit, wanted = _is_text(value), "a text"
    else:
        least = 1 if name == "nth_paragraph" else 0
        is_fit, wanted = _is_count(value, least), f"a whole number from {least} on"
    if not is_fit:
        raise StoreError(f"{instruction_id}: {name} is {value!r}, not {wanted}", key="kwargs")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def loosened(answer: str) -> tuple[str, ...]:
    """The eight texts of which IFEval's loose accuracy asks that one follows the instruction: the answer,
    without its first line, its last line, or both, and each of these without asterisks."""
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return (*cut, *(part.replace("*", "") for part in cut))


def whole(value: object) -> object:
    """3 for 3.0, as tables with gaps hold it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _existence(answer: str, values: Mapping[str, Any]) -> bool:
    """Has each keyword anywhere, also within another word, in any case."""
    return all(_found(re.escape(word), answer) for word in values["keywords"])


def _frequency(answer: str, values: Mapping[str, Any]) -> bool:
    """Has the keyword often or rarely enough, also within other words, in any case."""
    found = _found(re.escape(values["keyword"].strip()), answer)
    return rules.is_count(found, values["relation"], values["frequency"])


def _forbidden(answer: str, values: Mapping[str, Any]) -> bool:
    """Has none of the words as a whole word, in any case."""
    return not any(_found(rf"\b{re.escape(word)}\b", answer) for word in values["forbidden_words"])


def _found(pattern: str, answer: str) -> int:
    return len(re.findall(pattern, answer, flags=re.IGNORECASE))


def _letters(answer: str, values: Mapping[str, Any]) -> bool:
    """Has the letter, or another sign, often or rarely enough, in any case."""
    found = answer.lower().count(values["letter"].strip().lower())
    return rules.is_count(found, values["let_relation"], values["let_frequency"])


def _language(answer: str, values: Mapping[str, Any]) -> bool:
    """Is in the language; a text without letters follows, as in lm-eval."""
    return language.likely(answer) in (values["language"], None)


def _sentence_number(answer: str, values: Mapping[str, Any]) -> bool:
    return rules.is_count(_sentences(answer), values["relation"], values["num_sentences"])


def _sentences(answer: str) -> int:
    """About as many sentences as Punkt finds for English. One ends at . ? or ! before a blank or a mark, and
    a line break is a blank as any other. The dot of a known abbreviation, of an initial or of three dots ends
    none, unless a word follows that often begins a sentence; nor does that of a number before a small letter.
    "i.e." and "P.S." end one."""
    parts = answer.split()
    return sum(_is_end(part, following) for part, following in pairwise([*parts, ""])) + bool(parts)


def _is_end(part: str, following: str) -> bool:
    """Whether another sentence begins behind this part, or within it behind its last end."""
    at = next(
        (k for k in range(len(part) - 1, -1, -1) if part[k] in ".?!" and _may_end(part, k, following)), -1
    )
    if at < 0 or not (following or part[at + 1 :].strip(_CLOSERS)):
        return False
    if part[at] != ".":
        return True
    word, then = part[:at].lstrip(_OPENERS).lower(), part[at + 1 :] or following
    if not word or word.endswith(".") or word in _ABBREVIATIONS:
        return _starts(then)
    if len(word) == 1 and word.isalpha():
        return _starts(then) or not then[:1].isupper()
    return not (word.isdigit() and then[:1].islower())


def _may_end(part: str, at: int, following: str) -> bool:
    return part[at + 1] in _BEHIND_END if at + 1 < len(part) else bool(following)


def _starts(following: str) -> bool:
    """Whether the word has a capital letter and often begins a sentence."""
    word = following.rstrip(".,;:!?)\"'”’]*_")
    return word[:1].isupper() and (word.lower() in _STARTERS or word.lower() in text.STOP_WORDS)


def _word_number(answer: str, values: Mapping[str, Any]) -> bool:
    """Words are runs of letters, digits and underscores: "don't" is two."""
    return rules.is_count(len(_WORD.findall(answer)), values["relation"], values["num_words"])


def _paragraph_number(answer: str, values: Mapping[str, Any]) -> bool:
    """Paragraphs stand between ***; a divider may stand at the start and at the end."""
    parts = _DIVIDER.split(answer)
    if not all(part.strip() for part in parts[1:-1]):
        return False
    blank = not parts[0].strip(), len(parts) > 1 and not parts[-1].strip()
    return bool(len(parts) - sum(blank) == values["num_paragraphs"])


def _paragraph_word(answer: str, values: Mapping[str, Any]) -> bool:
    """So many paragraphs between blank lines, and the one at that place begins with the word."""
    parts = answer.split("\n\n")
    number = sum(bool(part.strip()) for part in parts)
    place = int(values["nth_paragraph"])
    if number != values["num_paragraphs"] or place > number or not parts[place - 1].strip():
        return False
    first = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    return bool(re.split("[.,?!'\"]", first)[0].lower() == values["first_word"].lower())


def _postscript(answer: str, values: Mapping[str, Any]) -> bool:
    """Has the marker anywhere, in any case; blanks may stand between the letters of P.S. and P.P.S."""
    marker = values["postscript_marker"].strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(pattern, answer.lower()) is not None


def _bullets(answer: str, values: Mapping[str, Any]) -> bool:
    """Lines that begin with a dash, or with one asterisk and no second one."""
    lines = [line.lstrip(_BLANKS) for line in answer.lstrip().split("\n")]
    number, k = 0, 0
    while k < len(lines):
        is_bare = lines[k] == "*" and k + 1 < len(lines)
        number += (
            lines[k].startswith("-") or (lines[k][:1] == "*" and lines[k][1:2] not in ("", "*")) or is_bare
        )
        k += 2 if is_bare else 1
    return bool(number == values["num_bullets"])


def _sections(answer: str, values: Mapping[str, Any]) -> bool:
    """The word and a number behind it, anywhere, at least so many times."""
    word = re.escape(values[SECTION_WORD].strip())
    return bool(len(re.findall(rf"{word}\s?\d+", answer)) >= values["num_sections"])


def _json(answer: str, values: Mapping[str, Any]) -> bool:
    """Is JSON of any type, with or without the marks of a code block around it."""
    inner = answer.strip()
    for fence in _FENCES:
        inner = inner.removeprefix(fence)
    return rules.read_json(inner.removesuffix("```").strip())[0]


def _end(answer: str, values: Mapping[str, Any]) -> bool:
    """Ends with the phrase, in any case; quotation marks after it are passed over."""
    return bool(answer.strip().strip('"').lower().endswith(values["end_phrase"].strip().lower()))


def _repeats(answer: str, values: Mapping[str, Any]) -> bool:
    """Begins with the request, in any case."""
    return bool(answer.strip().lower().startswith(values["prompt_to_repeat"].strip().lower()))


def _capital_words(answer: str, values: Mapping[str, Any]) -> bool:
    """Words in capitals, cut as NLTK's tokenizer cuts them: "I" counts, "DON'T" is two, "WELL-KNOWN" one."""
    number = sum(part.isupper() for part in _APART.split(answer))
    return rules.is_count(number, values["capital_relation"], values["capital_frequency"])


def _capital(answer: str, values: Mapping[str, Any]) -> bool:
    return answer.isupper() and language.likely(answer) in ("en", None)


def _lowercase(answer: str, values: Mapping[str, Any]) -> bool:
    return answer.islower() and language.likely(answer) in ("en", None)


_CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentence_number,
    "length_constraints:number_paragraphs": _paragraph_number,
    "length_constraints:number_words": _word_number,
    NTH_PARAGRAPH: _paragraph_word,
    "detectable_content:number_placeholders": lambda answer, values: bool(
        len(rules.bracketed(answer)) >= values["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda answer, _: any(o in answer for o in _OPTIONS),
    "detectable_format:number_highlighted_sections": lambda answer, values: bool(
        rules.highlights(answer) >= values["num_highlights"]
    ),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda answer, _: rules.has_title(answer),
    "combination:two_responses": lambda answer, _: rules.two_answers(answer),
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _end,
    "startend:quotation": lambda answer, _: rules.is_quoted(answer),
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": lambda answer, _: "," not in answer,
}
_NEEDS: dict[str, tuple[str, ...]] = {
    "keywords:existence": ("keywords",),
    "keywords:frequency": ("keyword", "relation", "frequency"),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:letter_frequency": ("letter", "let_relation", "let_frequency"),
    "language:response_language": ("language",),
    "length_constraints:number_sentences": ("relation", "num_sentences"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:number_words": ("relation", "num_words"),
    NTH_PARAGRAPH: ("num_paragraphs", "nth_paragraph", "first_word"),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:multiple_sections": (SECTION_WORD, "num_sections"),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "startend:end_checker": ("end_phrase",),
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency"),
}
"""The values that an instruction needs; all that is not named below is a whole number."""
_RELATIONS = ("relation", "let_relation", "capital_relation")
_LISTS = ("keywords", "forbidden_words")
_TEXTS = (
    "keyword", "letter", "language", "first_word", "postscript_marker", SECTION_WORD, "prompt_to_repeat",
    "end_phrase",
)  # fmt: skip
IDS = tuple(_CHECKS)
"""IFEval's instruction ids."""
