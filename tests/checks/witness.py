"""Writes one answer that keeps several constraints together: the proof that what is drawn can be met."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sao.checks import language, text
from sao.records import Constraint

Asked = dict[str, dict[str, Any]]
_FIRST = (
    "we it he go all now so the but and my our one two six ten up in on at if or to no yes can let get"
    " put run sit ask buy cut dig eat fly hit lay mix pay row say sew tie use win add aim bet dry"
)
FIRST = _FIRST.split()
"""Words that sentences begin with."""
BY_LETTER = {"a": "at", "e": "eye", "i": "it", "n": "on", "o": "go", "r": "or", "s": "so", "t": "to"}


def witness(constraints: Sequence[Constraint]) -> str:
    """A text that keeps all of the constraints, if they may stand together."""
    asked: Asked = {constraint.kind: dict(constraint.values) for constraint in constraints}
    whole = _whole(asked)
    answer = whole if whole is not None else _composed(asked)
    if "lowercase" in asked:
        return answer.lower()
    return answer.upper() if "uppercase" in asked else answer


def _whole(asked: Asked) -> str | None:
    """The answers whose form is given as a whole."""
    wanted = " ".join(_wanted(asked)) or "we go"
    padding = " ".join(["we"] * _least(asked))
    if "one_of" in asked:
        return str(asked["one_of"]["choices"][0])
    if "json_keys" in asked:
        first, *others = asked["json_keys"]["keys"]
        return json.dumps({first: wanted, **dict.fromkeys(others, "go")})
    if "two_answers" in asked:
        return f"{wanted}\n******\nNow."
    if "table" in asked:
        rows = ["| we | go |"] * asked["table"]["n"]
        return "\n".join([f"{wanted} {padding}.", "", "| a | b |", "|---|---|", *rows])
    if "language" in asked:
        sample = language.SAMPLES[asked["language"]["code"]]
        return " ".join([sample] * (1 + _least(asked) // 8))[:-1] + _mark(asked)
    return None


def _wanted(asked: Asked) -> list[str]:
    """Words that must stand, in their order."""
    found: list[str] = []
    for name in ("include_words", "words_in_order"):
        found += asked.get(name, {}).get("words", [])
    for name in ("word_at_least", "word_exactly"):
        if name in asked:
            found += [asked[name]["word"]] * asked[name]["n"]
    if letters := asked.get("letter_at_least"):
        found += [BY_LETTER[letters["letter"]]] * letters["n"]
    found += ["[a]"] * asked.get("placeholders", {}).get("n", 0)
    found += ["*a*"] * asked.get("highlights", {}).get("n", 0)
    found += ["WE"] * asked.get("capital_words", {}).get("n", 0)
    return found + ["7"] * asked.get("number_count", {}).get("n", 0)


def _least(asked: Asked) -> int:
    low = asked.get("word_range", {}).get("low", 0)
    return int(max(low, asked.get("min_words", {}).get("n", 0), 5 * int("word_length" in asked)))


def _mark(asked: Asked) -> str:
    """How the last sentence ends."""
    questions = asked.get("questions", {}).get("n", int("question_end" in asked))
    return "!" * asked.get("exclamations", {}).get("n", 0) + "?" * questions or "."


def _composed(asked: Asked) -> str:
    """Blocks of sentences, then a list, then what must stand at the end."""
    blocks, separator = _blocks(asked)
    listing = _listing(asked)
    ending = str(asked.get("end_words", {}).get("words", "")).split()
    last = [*_wanted(asked)]
    size = asked.get("short_sentences", {}).get("n", 10_000)
    short = _least(asked) - text.count_words(_joined(blocks, separator) + listing) - len(last) - len(ending)
    last += ["we"] * max(0, short)
    if "sentences" in asked:
        blocks[-1][-1] += last
    else:
        used = sum(len(block) for block in blocks)
        room = size - 1 - len(ending)
        parts = [last[k : k + room] for k in range(0, len(last), room)]
        blocks[-1] += [[FIRST[used + k], *part] for k, part in enumerate(parts)]
    tail = blocks[-1].pop() if listing else []
    body = _joined(blocks, separator, "." if listing else None) + listing
    final = [*tail, *ending]
    whole = f"{body}{' '.join(final)}" if listing else " ".join([body, *ending])
    return _wrapped(asked, whole + _mark(asked))


def _blocks(asked: Asked) -> tuple[list[list[list[str]]], str]:
    """Sentences as lists of words, and what stands between two blocks of them."""
    number, separator = 1, " "
    for name in ("paragraphs", "paragraph_start", "lines"):
        if name in asked:
            number, separator = asked[name]["n"], "\n" if name == "lines" else "\n\n"
    each = 1
    if {"short_sentences", "distinct_starts", "plain_prose"} & set(asked):
        each = 3 if number == 1 else 2
    each = asked.get("sentences", {}).get("n", each)
    if {"bullets", "numbered_list", "sorted_list", "sections"} & set(asked):
        each += 1
    firsts = iter(FIRST)
    blocks = [[[next(firsts)] for _ in range(each)] for _ in range(number)]
    if "start_word" in asked:
        blocks[0][0][0] = asked["start_word"]["word"]
    if start := asked.get("paragraph_start"):
        blocks[start["k"] - 1][0][0] = start["word"]
    return blocks, separator


def _joined(blocks: list[list[list[str]]], separator: str, end: str | None = ".") -> str:
    texts = [". ".join(" ".join(sentence) for sentence in block) for block in blocks]
    return (". " if separator == " " else "." + separator).join(texts) + (end or "")


def _listing(asked: Asked) -> str:
    for name in ("bullets", "sorted_list"):
        if name in asked:
            return "\n" + "- we\n" * int(asked[name]["n"]) + "\n"
    if "numbered_list" in asked:
        return "\n" + "".join(f"{k + 1}. we\n" for k in range(asked["numbered_list"]["n"])) + "\n"
    if "sections" in asked:
        word = str(asked["sections"]["word"])
        return "\n" + "".join(f"{word} {k + 1}\nwe.\n" for k in range(asked["sections"]["n"]))
    return ""


def _wrapped(asked: Asked, whole: str) -> str:
    if "title" in asked:
        whole = f"<<we>>\n{whole}"
    if "postscript" in asked:
        whole += "\n\nP.S. we go."
    return f'"{whole}"' if "quoted" in asked else whole
