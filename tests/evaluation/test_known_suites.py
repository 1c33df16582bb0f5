"""Suites whose answers a program checks: files in their sources' forms, hostile rows, worked-out scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sao.errors import ConfigError, DataError
from sao.evaluation import ifeval
from sao.evaluation.gsm8k import INSTRUCTION, as_number, last_number, read_gsm8k, strict_number
from sao.evaluation.hellaswag import clean, read_hellaswag
from sao.evaluation.known_items import Measure, find_file
from sao.evaluation.known_scores import compare_scores
from sao.evaluation.known_suites import KNOWN, find_known, read_items
from support.checks import known
from support.errors import raises

DATA = Path(__file__).with_name("data")
SHARED = Path(__file__).parents[3] / "shared" / "data"
"""The sources' own files, where they lie beside the repository."""


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


# Files


@pytest.mark.parametrize("name", ["hellaswag", "gsm8k"])
def test_thirty_rows_of_each_source(name: str) -> None:
    items = read_items(KNOWN[name], DATA, None, None)
    assert len(items) == len({item.question.prompt.id for item in items}) == 30
    assert [item.question.prompt.row // 2 for item in items] == [*range(30)]
    assert len(read_items(KNOWN[name], DATA, None, 7)) == 7


@pytest.mark.skipif(not SHARED.exists(), reason="the sources' files do not lie beside the repository")
@pytest.mark.parametrize(("name", "rows"), [("ifeval", 541), ("hellaswag", 1000), ("gsm8k", 300)])
def test_the_sources_files(name: str, rows: int) -> None:
    items = read_items(KNOWN[name], SHARED, None, None)
    assert len(items) == len({item.question.prompt.id for item in items}) == rows


def test_thirty_rows_of_ifeval() -> None:
    items = ifeval.read_ifeval(str(DATA / "ifeval.jsonl"))
    assert len(items) == 30
    assert items[0].question.key == "1000"
    kept = "*one of it* and *two of it* and *three of it* " + "word " * 300  # no comma, three highlights
    assert items[0].score(kept)["instruction_strict"] == (3.0, 3.0)
    assert items[0].score("a, b")["instruction_strict"] == (0.0, 3.0)
    assert items[0].score(" \n")["instruction_loose"] == (0.0, 3.0)  # an empty answer keeps nothing


def test_files_are_found_by_name(tmp_path: Path) -> None:
    suite = KNOWN["hellaswag"]
    with raises(ConfigError, key="--data-dir", match=r"--data-dir DIR.*--questions hellaswag=FILE"):
        find_file(suite, None)
    with raises(ConfigError, key="--data-dir", match="no such folder"):
        find_file(suite, tmp_path / "none")
    with raises(ConfigError, key="--data-dir", match=r"looked for hellaswag_val\.jsonl, hellaswag\.jsonl"):
        find_file(suite, tmp_path)
    for name in ("hellaswag_val_1000.jsonl", "hellaswag_val_20.jsonl"):
        (tmp_path / name).write_text("")
    with raises(ConfigError, key="--data-dir", match=r"hellaswag_val_1000.jsonl and hellaswag_val_20.jsonl"):
        find_file(suite, tmp_path)
    (tmp_path / "hellaswag_val.jsonl").write_text("")  # the source's own name goes first
    assert find_file(suite, tmp_path).endswith("hellaswag_val.jsonl")
    assert find_file(suite, tmp_path, "given.jsonl") == "given.jsonl"
    assert find_file(KNOWN["refusals"], None).endswith("refusals.jsonl")
    assert [suite.name for suite in find_known(["gsm8k", "heldout", "ifeval", "gsm8k"])] == [
        "gsm8k",
        "ifeval",
    ]


# Hostile rows


GOOD: dict[str, Any] = {
    "ifeval": {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 2, "relation": "at least", "frequency": None}],
    },
    "hellaswag": {"context": "A man", "endings": ["runs.", "sits."], "label": 0},
    "gsm8k": {"question": "1 + 1?", "answer": "It is\n#### 2"},
    "refusals": {"request": "Hello?", "harmful": False},
}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("ifeval", {"prompt": ""}, "no text under prompt"),
        ("ifeval", {"prompt": 3}, "no text under prompt"),
        ("ifeval", {"instruction_id_list": []}, "no list of texts under instruction_id_list"),
        ("ifeval", {"instruction_id_list": "punctuation:no_comma"}, "no list of texts"),
        ("ifeval", {"kwargs": []}, "not one object under kwargs for each of the 1 instructions"),
        ("ifeval", {"kwargs": [3]}, "kwargs holds something else"),
        ("ifeval", {"kwargs": [{}]}, "number_words cannot be checked .*relation"),
        ("hellaswag", {"endings": ["one."]}, "fewer than two endings"),
        ("hellaswag", {"endings": ["one.", ""]}, "no list of texts under endings"),
        ("hellaswag", {"endings": "one."}, "no list of texts under endings"),
        ("hellaswag", {"label": 2}, "no number from 0 to 1 under label"),
        ("hellaswag", {"label": -1}, "no number from 0 to 1 under label"),
        ("hellaswag", {"label": "1" * 5000}, "no number from 0 to 1 under label"),
        ("hellaswag", {"label": ""}, "the test split has none"),
        ("hellaswag", {"label": True}, "no number from 0 to 1 under label"),
        ("hellaswag", {"context": None}, "no text under ctx"),
        ("gsm8k", {"question": " "}, "no text under question"),
        ("gsm8k", {"answer": "eighteen"}, "no number under answer"),
        ("gsm8k", {"answer": "so #### many"}, "no number under answer"),
        ("gsm8k", {"answer": None}, "no text under answer"),
        ("gsm8k", {"answer": float("nan")}, "no number under answer"),
        ("refusals", {"harmful": "no"}, "neither true nor false"),
        ("refusals", {"request": None}, "no text under request"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, name: str, change: Any, says: str) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD[name], GOOD[name] | change)
    with raises(DataError, key="questions", match=rf"rows\.jsonl, line 2: .*{says}"):
        KNOWN[name].read(path)


@pytest.mark.parametrize("name", KNOWN)
def test_files_that_hold_no_questions(tmp_path: Path, name: str) -> None:
    with raises(DataError, key="questions", match="holds no questions"):
        KNOWN[name].read(write(tmp_path / "empty.jsonl"))
    with raises(DataError, key="questions", match=r"line 1: no record"):
        KNOWN[name].read(write(tmp_path / "list.jsonl", [1, 2]))
    with pytest.raises(DataError, match=r"line 2"):
        KNOWN[name].read(write(tmp_path / "torn.jsonl", GOOD[name], '{"torn'))
    with raises(DataError, key="data file"):
        KNOWN[name].read(str(tmp_path / "none.jsonl"))
    assert (
        len(read_items(KNOWN[name], None, write(tmp_path / "twice.jsonl", GOOD[name], GOOD[name]), None)) == 1
    )


# HellaSwag


def test_hellaswag_of_the_source_is_cleaned_as_lm_eval_does(tmp_path: Path) -> None:
    row = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "endings": ["is using wrap.", " is [title] here.  Yes [step] so."],
        "label": "1",
    }
    (item,) = read_hellaswag(write(tmp_path / "h.jsonl", row))
    assert item.question.prompt.text == "Roof shingle removal: A man is sitting on a roof. He"
    assert item.continuations == (" is using wrap.", " is. here. Yes so.")
    assert item.question.key == "24"
    without = {name: value for name, value in row.items() if name not in ("ctx_a", "ctx_b")}
    (item,) = read_hellaswag(write(tmp_path / "h.jsonl", without))
    assert item.question.prompt.text == "Roof shingle removal: A man is sitting on a roof. he"
    assert clean("a [title] b [header] c") == "a. b c"


def test_hellaswag_by_length_and_not(tmp_path: Path) -> None:
    row = {"context": "A man", "endings": ["runs.", "sits down on a chair."], "label": 1}
    (item,) = read_hellaswag(write(tmp_path / "h.jsonl", row))
    # −5 over 5 characters is −1 each; −12 over 21 is −0.57 each.
    assert item.score([-5.0, -12.0]) == {"acc": (0.0, 1.0), "acc_norm": (1.0, 1.0)}
    assert item.score([-5.0, -4.0]) == {"acc": (1.0, 1.0), "acc_norm": (1.0, 1.0)}
    assert item.score([-1.0, -30.0]) == {"acc": (0.0, 1.0), "acc_norm": (0.0, 1.0)}


# GSM8K


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("16 - 3 - 4 = 9, so 9 × 2 = 18.\n#### 18", 18, 18),
        ("#### $1,000", 1000, 1000),
        ("####1000.00", 1000, 1000),
        ("#### **18** eggs", 18, 18),
        ("#### -3", -3, -3),
        ("#### −3", -3, -3),
        ("#### 18.", 18, 18),
        ("#### = 9 + 9 = 18", 18, 18),
        ("#### 9 + 9 = $18", 18, 18),
        ("#### **x = 18**", 18, 18),
        ("#### 18 =", 18, 18),
        ("#### £5", 5, 5),
        ("#### 1.000.000", 1_000_000, 1_000_000),
        ("#### $-1.234.567.", -1_234_567, -1_234_567),
        ("about 12.345.678 people.", None, 12_345_678),
        ("#### 1.000", 1, 1),  # one dot is a decimal point
        ("#### 1.000.00", 1, 0),  # no number: read as far as it is one
        ("#### -€5", -5, -5),
        ("#### €-5", -5, -5),
        ("#### ~18", 18, 18),
        ("#### ~ $1,800", 1800, 1800),
        ("#### 20%", 20, 20),
        ("####\n18", 18, 18),
        ("#### 12 #### 18", 18, 18),
        ("#### 18\n####", 18, 18),
        ("#### 12\nNo, wait.\n#### 18", 18, 18),
        ("The answer is $1,234.50.", None, Decimal("1234.5")),
        ("She has 18 eggs left", None, 18),
        ("- 5 apples\n- 7 pears", None, 7),
        ("from 10-18", None, 18),
        ("half of it, .5 in all", None, Decimal("0.5")),
        ("1,2 and 3,4", None, 4),
        ("It costs USD1,000.50 now", None, Decimal("1000.5")),
        ("#### x\nSo 18", None, 18),
        ("#### eighteen", None, None),
        ("##### 5 steps", None, 5),  # a heading
        ("", None, None),
        ("no number", None, None),
    ],
)
def test_numbers_in_answers(answer: str, strict: Any, flexible: Any) -> None:
    assert strict_number(answer) == strict
    assert last_number(answer) == flexible


def test_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    (item,) = read_gsm8k(write(tmp_path / "g.jsonl", {"question": " How many? ", "answer": "So\n#### 1,000"}))
    assert item.question.prompt.text == f"How many?\n\n{INSTRUCTION}"
    for answer in ("#### 1000", "#### $1000.00", "#### 1,000"):
        assert item.score(answer) == {"strict": (1.0, 1.0), "flexible": (1.0, 1.0)}
    assert item.score("It is 1,000 dollars") == {"strict": (0.0, 1.0), "flexible": (1.0, 1.0)}
    assert item.score("#### 1000\nI checked it 2 times.") == {"strict": (1.0, 1.0), "flexible": (0.0, 1.0)}
    (item,) = read_gsm8k(write(tmp_path / "g.jsonl", {"question": "How many?", "answer": 1000}))
    assert item.score("#### 1e3")["strict"] == (0.0, 1.0)
    assert as_number("NaN") is None
    assert as_number("Infinity") is None


# IFEval


def test_ifeval_strict_and_loose(tmp_path: Path) -> None:
    row = {
        "key": 7,
        "prompt": "Write.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"num_words": 3, "relation": "at least"}],
    }
    (item,) = ifeval.read_ifeval(write(tmp_path / "i.jsonl", row))
    assert item.score("one two three") == {
        "prompt_strict": (1.0, 1.0),
        "instruction_strict": (2.0, 2.0),
        "prompt_loose": (1.0, 1.0),
        "instruction_loose": (2.0, 2.0),
    }
    # A comma in the first line only: lost strictly, kept without that line.
    assert item.score("Sure, here:\none two three") == {
        "prompt_strict": (0.0, 1.0),
        "instruction_strict": (1.0, 2.0),
        "prompt_loose": (1.0, 1.0),
        "instruction_loose": (2.0, 2.0),
    }
    assert item.score("")["instruction_loose"] == (0.0, 2.0)


def test_the_same_row_of_a_table_with_gaps_is_the_same_question(tmp_path: Path) -> None:
    row = GOOD["ifeval"]
    gaps = {**row, "kwargs": [{"num_words": 2.0, "relation": "at least", "language": None}]}
    both = [ifeval.read_ifeval(write(tmp_path / "i.jsonl", each))[0].question for each in (row, gaps)]
    assert both[0].prompt.id == both[1].prompt.id


def test_numbers_of_a_table_with_gaps_are_whole(tmp_path: Path) -> None:
    row = {
        "key": 7,
        "prompt": "Write.",
        "instruction_id_list": ["length_constraints:nth_paragraph_first_word"],
        "kwargs": [{"num_paragraphs": 2.0, "nth_paragraph": 2.0, "first_word": "tea", "num_words": None}],
    }
    (item,) = ifeval.read_ifeval(write(tmp_path / "i.jsonl", row))
    assert item.score("Coffee first.\n\nTea then.")["prompt_strict"] == (1.0, 1.0)
    assert item.score("Tea first.\n\nCoffee then.")["prompt_strict"] == (0.0, 1.0)


# Scores


def scored(values: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {f"{i:04d}": {"x": value} for i, value in enumerate(values)}


MEASURE = Measure(name="x", title="x")


def test_accuracies_with_mcnemars_test() -> None:
    # Of 40 prompts base has the first 10 right, tuned the last 38 and so 8 of base's 10.
    base, tuned = [(float(i < 10), 1.0) for i in range(40)], [(float(i >= 2), 1.0) for i in range(40)]
    (found,) = compare_scores([MEASURE], scored(base), scored(tuned), 2000, 0)
    assert known(found.base).value == 0.25
    assert known(found.tuned).value == 0.95
    low, high = known(found.base).ci95
    assert 0.1 < low < 0.25 < high < 0.42
    delta = known(found.delta)
    assert delta.value == pytest.approx(0.7)
    # 2 only base, 30 only tuned: 2 · (C(32,0) + C(32,1) + C(32,2)) / 2³².
    assert delta.p == pytest.approx(2 * (1 + 32 + 496) / 2**32)
    assert 0.5 < delta.ci95[0] < 0.7 < delta.ci95[1] < 0.9
    (turned,) = compare_scores([MEASURE], scored(tuned), scored(base), 2000, 0)
    assert known(turned.delta).value == -delta.value
    assert known(turned.delta).p == delta.p


def test_instructions_are_counted_over_all_prompts() -> None:
    # 1 of 1, 1 of 3, 0 of 2 against 1 of 1, 3 of 3, 0 of 2: 2/6 and 4/6.
    base, tuned = [(1.0, 1.0), (1.0, 3.0), (0.0, 2.0)], [(1.0, 1.0), (3.0, 3.0), (0.0, 2.0)]
    (found,) = compare_scores([MEASURE], scored(base), scored(tuned), 2000, 0)
    assert known(found.base).value == pytest.approx(2 / 6)
    assert known(found.tuned).value == pytest.approx(4 / 6)
    assert known(found.delta).value == pytest.approx(2 / 6)
    assert known(found.delta).p == 1.0  # one prompt differs: both signs are as far from zero
    assert known(found.delta).n == 3


def test_equal_models_show_what_is_left_open() -> None:
    same = scored([(1.0, 2.0), (1.0, 2.0), (2.0, 4.0)])
    (found,) = compare_scores([MEASURE], same, same, 500, 0)
    delta = known(found.delta)
    assert (delta.value, delta.p, delta.detectable) == (0.0, 1.0, None)
    assert delta.ci95[0] < 0 < delta.ci95[1]
    low, high = known(found.base).ci95
    assert 0 < low < 0.5 < high < 1


def test_what_was_not_answered_is_left_out() -> None:
    base, tuned = scored([(1.0, 1.0), (0.0, 1.0)]), {"0001": {"x": (1.0, 1.0)}}
    (found,) = compare_scores([MEASURE], base, tuned, 500, 0)
    assert (known(found.base).n, known(found.tuned).n, known(found.delta).n) == (2, 1, 1)
    (none,) = compare_scores([MEASURE], {}, tuned, 500, 0)
    assert none.base is None and none.delta is None
