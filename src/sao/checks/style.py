"""Kinds about case, punctuation, digits, the way sentences begin and end, and the language."""

from __future__ import annotations

import random
import re

from sao.checks import language, samples, text
from sao.checks.kind import Kind, Values, counted, no_values, one_of

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_AFTER = "\"'”’»)]*_` "
_COMMAS = ",，、"
LANGUAGES = ("de", "es", "fr", "it", "pt")
"""Languages that a constraint can ask for."""
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»"}


def _lowercase(answer: str, values: Values) -> bool:
    """Has a letter that has cases, and no capital one."""
    return answer.islower()


def _uppercase(answer: str, values: Values) -> bool:
    """Has a letter that has cases, and no small one."""
    return answer.isupper()


def _no_commas(answer: str, values: Values) -> bool:
    """Has a word, and no comma, the wide and the Chinese ones included; a comma in a number counts."""
    return text.count_words(answer) > 0 and not any(comma in answer for comma in _COMMAS)


def _no_digits(answer: str, values: Values) -> bool:
    """Has a word and no digit of any script; numbers in words may stand."""
    return text.count_words(answer) > 0 and not any(letter.isdecimal() for letter in answer)


def _number_count(answer: str, values: Values) -> bool:
    """Exactly n numbers in digits: 3.5, 1,000 and 10:30 are one each, 2nd is one, so are numbers of list
    items."""
    return bool(len(_NUMBER.findall(answer)) == values["n"])


def _exclamations(answer: str, values: Values) -> bool:
    """Has a word and exactly n exclamation marks; three in a row are three."""
    return bool(text.count_words(answer) > 0 and answer.count("!") + answer.count("！") == values["n"])


def _questions(answer: str, values: Values) -> bool:
    """Has a word and exactly n question marks; three in a row are three."""
    return bool(text.count_words(answer) > 0 and answer.count("?") + answer.count("？") == values["n"])


def _question_end(answer: str, values: Values) -> bool:
    """Has a word, and the last character is a question mark, quotation marks and brackets after it passed
    over."""
    return text.count_words(answer) > 0 and answer.rstrip(_AFTER).endswith(("?", "？"))


def _quoted(answer: str, values: Values) -> bool:
    """Begins and ends with double quotation marks, "straight" or “curly”, around a word; no mark stands
    outside, and none of these two inside."""
    opening, inner, closing = answer[:1], answer[1:-1], answer[-1:]
    is_wrapped = len(answer) > 1 and closing == _QUOTES.get(opening)
    return is_wrapped and opening not in inner and closing not in inner and text.count_words(inner) > 0


def _distinct_starts(answer: str, values: Values) -> bool:
    """Three sentences or more, and no two begin with the same word, in any case."""
    starts = [text.words_of(sentence)[0] for sentence in text.sentences(answer)]
    return len(starts) >= 3 and len(set(starts)) == len(starts)


def _language(answer: str, values: Values) -> bool:
    """Five words or more, and no other language is more likely, by `language.may_be`."""
    return text.count_words(answer) >= 5 and language.may_be(answer, values["code"])


def _other_language(rng: random.Random, values: Values) -> str:
    codes = [code for code in (*LANGUAGES, "en") if code != values["code"]]
    return language.SAMPLES[rng.choice(codes)]


def _starts(rng: random.Random, first: list[str]) -> str:
    return " ".join(f"{word.capitalize()} {samples.sentence(rng, 4).lower()}" for word in first)


def _marks(rng: random.Random, n: int, mark: str) -> str:
    """A text with n of the marks."""
    return f"{samples.prose(rng, 1)} {' '.join(samples.sentence(rng)[:-1] + mark for _ in range(n))}".strip()


def _numbers(rng: random.Random, n: int) -> str:
    wanted = [rng.choice(("7", "3.5", "1,000", "2nd")) for _ in range(n)]
    return samples.sentence(rng, 3, *wanted)


KINDS = (
    Kind(
        name="lowercase",
        about="no capital letters",
        wordings=(
            "Use only lowercase letters.",
            "Write your whole answer in small letters, without any capital letter.",
            "Do not use capital letters anywhere in your answer.",
        ),
        draw=no_values,
        passes=_lowercase,
        passing=lambda rng, values: samples.prose(rng, 3).lower(),
        failing=lambda rng, values: samples.prose(rng, 3),
        difficulty=2,
        group="case",
        ifeval="change_case:english_lowercase",
    ),
    Kind(
        name="uppercase",
        about="capital letters only",
        wordings=(
            "Write your whole answer in capital letters.",
            "Use only uppercase letters.",
            "Every letter of your answer must be a capital.",
        ),
        draw=no_values,
        passes=_uppercase,
        passing=lambda rng, values: samples.prose(rng, 3).upper(),
        failing=lambda rng, values: samples.prose(rng, 3),
        difficulty=2,
        group="case",
        ifeval="change_case:english_capital",
    ),
    Kind(
        name="no_commas",
        about="no commas",
        wordings=(
            "Do not use any commas.",
            "Write your answer without commas.",
            "Your answer must not contain a comma.",
        ),
        draw=no_values,
        passes=_no_commas,
        passing=lambda rng, values: samples.prose(rng, 3),
        failing=lambda rng, values: f"Yes, {samples.prose(rng, 2)}",
        difficulty=1,
        group="commas",
        ifeval="punctuation:no_comma",
    ),
    Kind(
        name="no_digits",
        about="no digits",
        wordings=(
            "Do not use any digits.",
            "Write your answer without digits: put every number in words.",
            "Your answer must not contain the digits 0 to 9.",
        ),
        draw=no_values,
        passes=_no_digits,
        passing=lambda rng, values: samples.prose(rng, 3),
        failing=lambda rng, values: _numbers(rng, rng.randint(1, 3)),
        difficulty=1,
        group="digits",
    ),
    Kind(
        name="number_count",
        about="exactly n numbers in digits",
        wordings=(
            "Use exactly {n} numbers, written in digits.",
            "Your answer must contain {n} numbers in digits, no more and no fewer.",
        ),
        draw=one_of(2, 3, 4),
        passes=_number_count,
        passing=lambda rng, values: _numbers(rng, values["n"]),
        failing=lambda rng, values: _numbers(rng, samples.other(rng, values["n"], 0, 7)),
        difficulty=3,
        group="digits",
        needs=lambda values: 2 * int(values["n"]),
    ),
    Kind(
        name="exclamations",
        about="exactly n exclamation marks",
        wordings=(
            "Use exactly {marks}.",
            "Your answer must contain {marks}, no more and no fewer.",
        ),
        draw=one_of(1, 2, 3),
        passes=_exclamations,
        passing=lambda rng, values: _marks(rng, values["n"], "!"),
        failing=lambda rng, values: _marks(rng, samples.other(rng, values["n"], 0, 6), "!"),
        difficulty=2,
        group="exclamations",
        says=lambda values: {"marks": counted(values["n"], "exclamation mark")},
    ),
    Kind(
        name="questions",
        about="exactly n question marks",
        wordings=(
            "Your answer must contain exactly {marks}.",
            "Use {marks} in your answer, no more and no fewer.",
        ),
        draw=one_of(1, 2),
        passes=_questions,
        passing=lambda rng, values: _marks(rng, values["n"], "?"),
        failing=lambda rng, values: _marks(rng, samples.other(rng, values["n"], 0, 5), "?"),
        difficulty=2,
        group="questions",
        needs=lambda values: 4,
        trained=False,
        says=lambda values: {"marks": counted(values["n"], "question mark")},
    ),
    Kind(
        name="question_end",
        about="ends with a question",
        wordings=(
            "End your answer with a question.",
            "The last sentence of your answer must be a question.",
            "Finish with a question mark and write nothing after it.",
        ),
        draw=no_values,
        passes=_question_end,
        passing=lambda rng, values: f"{_marks(rng, 1, '?')}{rng.choice(('', '”', '**'))}",
        failing=lambda rng, values: f"Can we? {samples.prose(rng, 2)}",
        difficulty=2,
        group="end",
        needs=lambda values: 3,
    ),
    Kind(
        name="quoted",
        about="wrapped in double quotation marks",
        wordings=(
            "Put your whole answer in double quotation marks.",
            "Wrap the entire answer in double quotes.",
            'Begin and end your answer with ".',
        ),
        draw=no_values,
        passes=_quoted,
        passing=lambda rng, values: rng.choice(('"{}"', "“{}”")).format(samples.prose(rng, 2)),
        failing=lambda rng, values: rng.choice(
            ('"{}', '{}"', "“{}", '"{}" Yes.', '"We go" {} "now"', "“We go” {} “now”")
        ).format(samples.prose(rng, 2)),
        difficulty=2,
        group="start",
        excludes=("end", "layout", "title", "paragraph_start"),
        ifeval="startend:quotation",
    ),
    Kind(
        name="distinct_starts",
        about="three sentences or more, no two begin alike",
        wordings=(
            "Write three sentences or more, and begin each of them with a different word.",
            "Use at least three sentences. No two sentences may begin with the same word.",
        ),
        draw=no_values,
        passes=_distinct_starts,
        passing=lambda rng, values: _starts(rng, rng.sample(samples.WORDS, rng.randint(3, 6))),
        failing=lambda rng, values: _starts(rng, rng.choice((["we", "it", "we"], ["we", "it"], ["we"] * 4))),
        difficulty=1,
        group="starts",
        excludes=("title",),
        needs=lambda values: 12,
        trained=False,
    ),
    Kind(
        name="language",
        about="in a given language",
        wordings=(
            "Answer in {language}.",
            "Your whole answer must be in {language}, at least five words.",
            "Write in {language} only.",
        ),
        draw=lambda rng, prompt: {"code": rng.choice(LANGUAGES)},
        passes=_language,
        passing=lambda rng, values: language.SAMPLES[values["code"]],
        failing=_other_language,
        difficulty=2,
        group="language",
        only_with=("commas", "exclamations", "no_digits", "min_words"),
        needs=lambda values: 8,
        ifeval="language:response_language",
        says=lambda values: {"language": language.NAMES[values["code"]]},
    ),
)
