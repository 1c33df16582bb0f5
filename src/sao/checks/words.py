"""Kinds about which words and letters an answer has."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from sao.checks import samples, text
from sao.checks.kind import Draw, Kind, Value, Values, counted, listed
from sao.checks.length import START_WORDS

ENDINGS = ("That is all for now", "I hope this helps", "Let me know what you think", "Have a nice day")
"""Words that an answer can end with, whatever it is about."""
_CHOICES = (("yes", "no"), ("yes", "no", "maybe"), ("always", "sometimes", "never"), ("easy", "hard"))
_LETTERS = re.compile(r"[^\W\d_]+")


def _include_words(answer: str, values: Values) -> bool:
    """Has each of the words as a whole word, in any case: "dogs" is not "dog", "dog's" and "dog-like" are."""
    return set(values["words"]) <= set(text.words_of(answer))


def _avoid_words(answer: str, values: Values) -> bool:
    """Has a word, and none of these as a whole word, in any case: "dogs" is not "dog"."""
    found = set(text.words_of(answer))
    return bool(found) and not found & set(values["words"])


def _word_at_least(answer: str, values: Values) -> bool:
    """Has the whole word n times or more, in any case."""
    return bool(text.words_of(answer).count(values["word"]) >= values["n"])


def _word_exactly(answer: str, values: Values) -> bool:
    """Has the whole word exactly n times, in any case."""
    return bool(text.words_of(answer).count(values["word"]) == values["n"])


def _words_in_order(answer: str, values: Values) -> bool:
    """Has the words in this order, in any case; other words, and these again, may stand anywhere between."""
    found = iter(text.words_of(answer))
    return all(word in found for word in values["words"])


def _start_word(answer: str, values: Values) -> bool:
    """The first run of letters and digits is the word, in any case; marks before it are passed over."""
    return text.words_of(answer[:200])[:1] == [values["word"].casefold()]


def _end_words(answer: str, values: Values) -> bool:
    """The last words are these, in any case; after them stand marks at most."""
    wanted = text.words_of(values["words"])
    return text.words_of(answer[-400:])[-len(wanted) :] == wanted


def _letter_at_least(answer: str, values: Values) -> bool:
    """Has the letter n times or more, small or capital."""
    return bool(answer.casefold().count(values["letter"]) >= values["n"])


def _word_length(answer: str, values: Values) -> bool:
    """Five words or more, and no run of letters longer than n: "well-known" is two runs."""
    runs = _LETTERS.findall(answer)
    return text.count_words(answer) >= 5 and all(len(run) <= values["n"] for run in runs)


def _capital_words(answer: str, values: Values) -> bool:
    """Has n runs or more of two or more letters that are all capitals: "I" and "A" do not count."""
    return bool(sum(len(run) > 1 and run.isupper() for run in _LETTERS.findall(answer)) >= values["n"])


def _one_of(answer: str, values: Values) -> bool:
    """Is one of the choices and no other word, in any case; marks do not count."""
    return len(found := text.words_of(answer)) == 1 and found[0] in values["choices"]


def _some_words(n: tuple[int, ...]) -> Draw:
    return lambda rng, prompt: {"words": text.drawn_words(rng, prompt, rng.choice(n))}


def _one_word(times: tuple[int, ...]) -> Draw:
    def draw(rng: random.Random, prompt: str) -> dict[str, Value]:
        return {"word": text.drawn_words(rng, prompt, 1)[0], "n": rng.choice(times)}

    return draw


def _with(*names: str) -> Callable[[random.Random, Values], str]:
    """Some words, then the values of these names."""

    def sample(rng: random.Random, values: Values) -> str:
        wanted = [
            w for name in names for w in (values[name] if isinstance(values[name], list) else [values[name]])
        ]
        return samples.sentence(rng, 4, *wanted)

    return sample


def _without(rng: random.Random, values: Values) -> str:
    return samples.prose(rng, 2)


def _repeated(rng: random.Random, word: str, n: int) -> str:
    return " ".join(samples.sentence(rng, 3, word) for _ in range(n)) + " " + samples.prose(rng, 1)


KINDS = (
    Kind(
        name="include_words",
        about="contains given words",
        wordings=(
            "Use the words {words}.",
            "Your answer must contain {words}.",
            "Include each of these words: {words}.",
        ),
        draw=_some_words((1, 2, 2)),
        passes=_include_words,
        passing=_with("words"),
        failing=lambda rng, values: samples.sentence(rng, 4, *values["words"][1:], values["words"][0] + "x"),
        difficulty=1,
        group="include",
        needs=lambda values: 2 * len(values["words"]),
        holds=lambda values: tuple(values["words"]),
        ifeval="keywords:existence",
    ),
    Kind(
        name="avoid_words",
        about="avoids given words",
        wordings=(
            "Do not use the words {words}.",
            "Avoid the following words: {words}.",
            "Write your answer without {words}.",
        ),
        draw=_some_words((1, 2)),
        passes=_avoid_words,
        passing=_without,
        failing=lambda rng, values: samples.sentence(rng, 4, rng.choice(values["words"]).upper()),
        difficulty=1,
        group="avoid",
        allows=lambda values, word: word.casefold() not in values["words"],
        ifeval="keywords:forbidden_words",
    ),
    Kind(
        name="word_at_least",
        about="a word at least n times",
        wordings=(
            'Use the word "{word}" at least {n} times.',
            'The word "{word}" must appear {n} times or more.',
            'Mention "{word}" no fewer than {n} times.',
        ),
        draw=_one_word((2, 3, 4)),
        passes=_word_at_least,
        passing=lambda rng, values: _repeated(rng, values["word"], values["n"] + rng.randint(0, 2)),
        failing=lambda rng, values: _repeated(rng, values["word"], values["n"] - 1),
        difficulty=2,
        group="include",
        needs=lambda values: 3 * int(values["n"]),
        holds=lambda values: (values["word"],),
        ifeval="keywords:frequency",
    ),
    Kind(
        name="word_exactly",
        about="a word exactly n times",
        wordings=(
            'Use the word "{word}" exactly {times}.',
            'The word "{word}" must appear {times}, no more and no less.',
        ),
        draw=_one_word((1, 2, 3)),
        passes=_word_exactly,
        passing=lambda rng, values: _repeated(rng, values["word"], values["n"]),
        failing=lambda rng, values: _repeated(rng, values["word"], samples.other(rng, values["n"], 0, 5)),
        difficulty=2,
        group="include",
        needs=lambda values: 3 * int(values["n"]),
        holds=lambda values: (values["word"],),
        trained=False,
        says=lambda values: {"word": values["word"], "times": counted(values["n"], "time")},
    ),
    Kind(
        name="words_in_order",
        about="given words in a given order",
        wordings=(
            "Use the words {words}, in this order.",
            "Your answer must contain {words}, one after the other in that order.",
        ),
        draw=_some_words((2, 3)),
        passes=_words_in_order,
        passing=_with("words"),
        failing=lambda rng, values: samples.sentence(rng, 3, *reversed(values["words"])),
        difficulty=3,
        group="include",
        needs=lambda values: 2 * len(values["words"]),
        holds=lambda values: tuple(values["words"]),
    ),
    Kind(
        name="start_word",
        about="begins with a word",
        wordings=(
            'Begin your answer with the word "{word}".',
            'The first word of your answer must be "{word}".',
            'Start with "{word}".',
        ),
        draw=lambda rng, prompt: {"word": rng.choice(START_WORDS)},
        passes=_start_word,
        passing=lambda rng, values: f"{rng.choice(('', '**', '“'))}{values['word']} {samples.prose(rng, 2)}",
        failing=lambda rng, values: f"{samples.prose(rng, 1)} {values['word']}",
        difficulty=2,
        group="start",
        excludes=("title",),
        holds=lambda values: (values["word"],),
    ),
    Kind(
        name="end_words",
        about="ends with given words",
        wordings=(
            'End your answer with the words "{words}".',
            'The last words of your answer must be "{words}". Write nothing after them.',
            'Finish with exactly these words: "{words}".',
        ),
        draw=lambda rng, prompt: {"words": rng.choice(ENDINGS)},
        passes=_end_words,
        passing=lambda rng, values: (
            f"{samples.prose(rng, 2)} {values['words']}{rng.choice(('', '.', '.**'))}"
        ),
        failing=lambda rng, values: f"{values['words']}. {samples.prose(rng, 1)}",
        difficulty=2,
        group="end",
        needs=lambda values: 6,
        holds=lambda values: tuple(text.words_of(values["words"])),
        ifeval="startend:end_checker",
    ),
    Kind(
        name="letter_at_least",
        about="a letter at least n times",
        wordings=(
            'Use the letter "{letter}" at least {n} times.',
            'The letter "{letter}" must appear {n} times or more.',
        ),
        draw=lambda rng, prompt: {"letter": rng.choice("aeinorst"), "n": rng.choice((5, 8, 12, 16, 20))},
        passes=_letter_at_least,
        passing=lambda rng, values: samples.sentence(rng, 3, *["aeinorst"] * values["n"]),
        failing=lambda rng, values: "My fuzzy guppy. " + values["letter"] * (values["n"] - 1),
        difficulty=1,
        group="letters",
        needs=lambda values: int(values["n"]),
        ifeval="keywords:letter_frequency",
    ),
    Kind(
        name="word_length",
        about="five words or more, none over n letters",
        wordings=(
            "Use at least five words, and no word with more than {n} letters.",
            "Write five words or more. None of them may be longer than {n} letters.",
        ),
        draw=lambda rng, prompt: {"n": rng.choice((6, 7, 8, 9))},
        passes=_word_length,
        passing=lambda rng, values: samples.prose(rng, 3),
        failing=lambda rng, values: samples.sentence(rng, 6, rng.choice(samples.LONG)),
        difficulty=3,
        group="word length",
        needs=lambda values: 5,
        allows=lambda values, word: len(word) <= values["n"],
    ),
    Kind(
        name="capital_words",
        about="at least n words in capitals",
        wordings=(
            "Write at least {n} words in capital letters.",
            "Use all capitals for {n} words or more.",
            "At least {n} words of your answer must be in CAPITALS.",
        ),
        draw=lambda rng, prompt: {"n": rng.choice((2, 3, 4, 5))},
        passes=_capital_words,
        passing=lambda rng, values: samples.sentence(rng, 3, *["WE", "ON"] * values["n"]).upper(),
        failing=lambda rng, values: samples.sentence(rng, 3) + " I A" + " SEE" * (values["n"] - 1),
        difficulty=2,
        group="case",
        needs=lambda values: int(values["n"]) + 2,
        ifeval="change_case:capital_word_frequency",
    ),
    Kind(
        name="one_of",
        about="one word of given choices, nothing else",
        wordings=(
            "Answer with one of these words only: {choices}.",
            "Give one word as your answer. Choose from {choices}.",
        ),
        draw=lambda rng, prompt: {"choices": list(rng.choice(_CHOICES))},
        passes=_one_of,
        passing=lambda rng, values: rng.choice(values["choices"]).upper() + rng.choice(("", ".")),
        failing=lambda rng, values: rng.choice(
            ("Perhaps.", f"{values['choices'][0]}, {samples.sentence(rng)}")
        ),
        difficulty=1,
        group="layout",
        only_with=(),
        ifeval="detectable_format:constrained_response",
        says=lambda values: {"choices": listed(values["choices"])},
    ),
)
