"""IFEval's instructions: by hand, and against lm-eval's checkers where these can run."""

import importlib
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from checks.made_texts import BY_LANGUAGE, texts_for
from sao.checks.ifeval import IDS, SECTION_WORD, loosened, passes
from sao.checks.language import likely
from sao.errors import StoreError
from support.errors import raises

ROOT = Path(__file__).parents[2]
WHOLE = ROOT.parent / "shared" / "data" / "ifeval.jsonl"
FEW = Path(__file__).parent / "data" / "ifeval_30.jsonl"
APPROXIMATE = {
    "length_constraints:number_sentences": 0.99,
    "language:response_language": 0.99,
    "change_case:english_capital": 0.99,
    "change_case:english_lowercase": 0.99,
}
"""Least agreement where the rule needs data or a model; the other instructions agree on every text."""


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (WHOLE if WHOLE.exists() else FEW).read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "values", "good", "bad"),
    [
        ("keywords:existence", {"keywords": ["tea", "cup"]}, "Teacup", "tea"),
        ("keywords:frequency", {"keyword": "a", "relation": "less than", "frequency": 2}, "a b", "a A"),
        ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "teas", "TEA!"),
        (
            "keywords:letter_frequency",
            {"letter": "E", "let_relation": "at least", "let_frequency": 2},
            "eE",
            "e",
        ),
        ("language:response_language", {"language": "uk"}, BY_LANGUAGE["uk"], BY_LANGUAGE["ru"]),
        (
            "length_constraints:number_sentences",
            {"relation": "at least", "num_sentences": 2},
            "We go. Now!",
            "Mr. Doe",
        ),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 2}, "don't", "do"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
            "a\n\n'So, b",
            "so\n\nb",
        ),
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] []", "[a\n]"),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a p. s. b", "PS b"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "** a\n* b"),
        ("detectable_format:constrained_response", {}, "Well: My answer is no.", "no"),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* * *"),
        (
            "detectable_format:multiple_sections",
            {SECTION_WORD: "Day", "num_sections": 2},
            "Day 1 a Day2",
            "day 1 Day 2",
        ),
        ("detectable_format:json_format", {}, "```json\n[]\n```", "{'a': 1}"),
        ("detectable_format:title", {}, "a <<b>> c", "<< >>"),
        ("combination:two_responses", {}, "a******b", "a******a"),
        ("combination:repeat_prompt", {}, "ASK me. Fine.", "Fine. Ask me."),
        ("startend:end_checker", {"end_phrase": "The end."}, '"So. the END."', "The end. Bye"),
        ("startend:quotation", {}, ' "a" ', "“a”"),
        (
            "change_case:capital_word_frequency",
            {"capital_relation": "at least", "capital_frequency": 2},
            "I SAY",
            "I",
        ),
        ("change_case:english_capital", {}, "IT IS 5", "It IS"),
        ("change_case:english_lowercase", {}, "it is 5", "it IS"),
        ("punctuation:no_comma", {}, "a; b", "a, b"),
    ],
)
def test_each_instruction(name: str, values: dict[str, Any], good: str, bad: str) -> None:
    assert passes(name, values, good, "Ask me.")
    assert not passes(name, values, bad, "Ask me.")
    assert not passes(name, values, " \n", "Ask me.")


def test_marks_inside_and_text_behind_are_left_to_the_kinds() -> None:
    assert passes("startend:quotation", {}, '"a" and "b"', "")
    assert passes("detectable_content:postscript", {"postscript_marker": "P.S."}, "P.S. a\n\nb", "")


def test_the_instructions_are_those_of_the_data() -> None:
    assert len(IDS) == 25
    assert {name for row in _rows() for name in row["instruction_id_list"]} == set(IDS)
    assert len(FEW.read_text("utf-8").splitlines()) == 30


def test_what_is_not_known_is_an_error() -> None:
    with pytest.raises(StoreError):
        passes("keywords:none", {}, "Yes.", "")
    with pytest.raises(StoreError):
        passes("keywords:existence", {"keywords": None}, "Yes.", "")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("length_constraints:number_words", {"relation": "at most", "num_words": 3}),
        ("length_constraints:number_words", {"relation": "at_least", "num_words": 3}),
        ("length_constraints:number_words", {"relation": "at least", "num_words": True}),
        ("detectable_format:number_bullet_lists", {"num_bullets": "2"}),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2.5}),
        ("keywords:existence", {"keywords": "tea"}),
        ("length_constraints:nth_paragraph_first_word",
         {"num_paragraphs": 1, "nth_paragraph": 0, "first_word": "a"}),
        ("length_constraints:nth_paragraph_first_word",
         {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": 5}),
        ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 1}),
        ("length_constraints:nth_paragraph_first_word",
         {"num_paragraphs": 2, "nth_paragraph": 5, "first_word": "a"}),
        ("language:response_language", {"language": "xx"}),
        ("language:response_language", {"language": ["de"]}),
        ("keywords:existence", {"keywords": []}),
        ("keywords:forbidden_words", {"forbidden_words": ["tea", " "]}),
        ("keywords:letter_frequency", {"letter": " ", "let_relation": "at least", "let_frequency": 3}),
    ],
)  # fmt: skip
def test_values_that_would_be_read_as_something_else_are_errors(name: str, values: dict[str, Any]) -> None:
    with raises(StoreError, key="kwargs"):
        passes(name, values, "One sentence.", "")


def test_values_of_other_instructions_are_not_read() -> None:
    stray = {"nth_paragraph": "2", "num_paragraphs": 1, "language": "xx"}
    assert passes("punctuation:no_comma", stray, "a b", "")
    assert passes(
        "length_constraints:number_words", {"relation": "at least", "num_words": 2, **stray}, "a b", ""
    )


def test_whole_numbers_of_a_table_with_gaps_are_numbers() -> None:
    assert passes("length_constraints:number_words", {"relation": "at least", "num_words": 2.0}, "a b", "")
    third = {"num_paragraphs": 3.0, "nth_paragraph": 2.0, "first_word": "b"}
    assert passes("length_constraints:nth_paragraph_first_word", third, "a\n\nb\n\nc", "")


def test_loosened_texts_are_without_first_and_last_line_and_asterisks() -> None:
    assert loosened("Sure:\n*a*\n*b*\nBye") == (
        "Sure:\n*a*\n*b*\nBye", "*a*\n*b*\nBye", "Sure:\n*a*\n*b*", "*a*\n*b*",
        "Sure:\na\nb\nBye", "a\nb\nBye", "Sure:\na\nb", "a\nb",
    )  # fmt: skip


@pytest.mark.parametrize("code", BY_LANGUAGE)
def test_languages(code: str) -> None:
    assert likely(BY_LANGUAGE[code]) == code


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval's table of checkers. Its import may not download anything."""
    langdetect = pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "download", lambda *names, **options: False)
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    return importlib.import_module("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT


def _has_punkt() -> bool:
    nltk = importlib.import_module("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def _is_comparable(name: str, kwargs: dict[str, Any], said: str) -> bool:
    """Left out: signs that are no letters, for which lm-eval draws a letter by chance, and texts of few
    different words, whose language langdetect guesses."""
    if name.startswith(("language", "change_case:english")):
        return len(set(re.findall(r"\w+", said))) >= 8
    return str(kwargs.get("letter", "a")).isalpha()


def test_agreement_with_lm_eval(theirs: Any) -> None:
    needs_punkt = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
    left_out = set() if _has_punkt() else needs_punkt
    compared: Counter[str] = Counter()
    different: Counter[str] = Counter()
    for row in _rows():
        for name, values in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            kwargs = {key: value for key, value in values.items() if value}
            if name in left_out or compared[name] > 1500:
                continue
            checker = theirs[name](name)
            checker.build_description(**kwargs)
            for said in texts_for(name, kwargs, row["prompt"]):
                if _is_comparable(name, kwargs, said):
                    wanted = bool(said.strip()) and bool(checker.check_following(said))
                    compared[name] += 1
                    different[name] += passes(name, kwargs, said, row["prompt"]) != wanted
    for name, number in compared.items():
        assert different[name] <= (1 - APPROXIMATE.get(name, 1)) * number, (name, different[name], number)
    assert set(compared) == set(IDS) - left_out
