"""Every kind: its texts, its words, its draws, and what answers that say nothing earn."""

import json
import random
import time
from pathlib import Path

import pytest

from sao.checks import KINDS, TRAINED, UNSEEN, draw, passes, score, with_constraints
from sao.checks.degenerate import CONSTANT, PROMPTS, degenerate_table, kinds_table, random_answer
from sao.checks.ifeval import IDS
from sao.checks.kind import Kind
from sao.errors import StoreError
from sao.records import Constraint

SEEDS = range(150)
EACH = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)


def _drawn(kind: Kind, seed: int) -> tuple[random.Random, str, Constraint]:
    rng = random.Random(seed)
    prompt = rng.choice([*PROMPTS, "Why?", "什么是光合作用？"])
    return rng, prompt, Constraint(kind.name, kind.draw(rng, prompt))


@EACH
def test_passing_texts_pass_and_failing_texts_fail(kind: Kind) -> None:
    for seed in SEEDS:
        rng, _, constraint = _drawn(kind, seed)
        good, bad = kind.passing(rng, constraint.values), kind.failing(rng, constraint.values)
        assert passes(good, constraint), (constraint, good)
        assert passes(good.replace("\n", "\r\n") + "\r\n", constraint), (constraint, good)
        assert not passes(bad, constraint), (constraint, bad)


@EACH
def test_every_wording_says_every_value(kind: Kind) -> None:
    assert len(set(kind.wordings)) >= 2
    for seed in range(20):
        rng, prompt, constraint = _drawn(kind, seed)
        said = kind.says(constraint.values)
        for wording in kind.wordings:
            words = wording.format(**said)
            assert all(value in words for value in said.values()), words
            assert words[-1] == "." and "{" not in words
        asked = with_constraints(rng, prompt, [constraint])
        assert asked.startswith(prompt) and len(asked) > len(prompt)


@EACH
def test_a_draw_depends_on_the_rng_and_the_prompt_alone_and_is_json(kind: Kind) -> None:
    for seed in range(20):
        _, _, constraint = _drawn(kind, seed)
        assert _drawn(kind, seed)[2] == constraint
        assert json.loads(json.dumps(constraint.values)) == constraint.values


@EACH
def test_nothing_is_never_enough(kind: Kind) -> None:
    _, _, constraint = _drawn(kind, 1)
    for answer in ("", " \n\t", "\ufeff", "...", "***", "```\n```", "🙂", "- \n- \n- ", "<< >>", '""'):
        assert not passes(answer, constraint), answer


@EACH
def test_any_text_is_scored_in_little_time(kind: Kind) -> None:
    _, prompt, constraint = _drawn(kind, 2)
    units = (
        "[",
        "*",
        "<<",
        ".",
        "\n",
        "\n ",
        "| - ",
        "a.",
        "{[",
        "! ",
        "é\u0301",
        "*a ",
        '"',
        "```\n",
        "1. ",
        "1",
    )
    for unit in (*units, prompt + " "):
        started = time.process_time()
        assert passes(unit * (100_000 // len(unit)), constraint) in (True, False)
        assert time.process_time() - started < 2, unit


def test_the_table_of_kinds_is_complete() -> None:
    assert len(KINDS) >= 24 and len(UNSEEN) == 5 and set(TRAINED) | set(UNSEEN) == set(KINDS)
    assert len({KINDS[name].group for name in UNSEEN}) == 5
    assert sum(kind.ifeval is None for kind in KINDS.values()) >= 8
    assert {kind.ifeval for kind in KINDS.values()} <= {*IDS, None}
    assert {kind.difficulty for kind in KINDS.values()} == {1, 2, 3}
    known = {*KINDS, *(kind.group for kind in KINDS.values())}
    for kind in KINDS.values():
        assert {*kind.excludes, *(kind.only_with or ())} <= known, kind.name
        assert kind.passes.__doc__, kind.name


def test_draws_are_of_the_kinds_given_and_differ() -> None:
    found = [draw(random.Random(seed), PROMPTS[0], TRAINED) for seed in range(500)]
    assert found == [draw(random.Random(seed), PROMPTS[0], TRAINED) for seed in range(500)]
    assert {check.kind for checks in found for check in checks} == set(TRAINED)
    assert {len(checks) for checks in found} == {1, 2, 3}


def test_words_are_drawn_from_the_prompt() -> None:
    for name in ("include_words", "avoid_words", "words_in_order"):
        values = KINDS[name].draw(random.Random(0), PROMPTS[0])
        assert isinstance(values["words"], list) and all(word in PROMPTS[0] for word in values["words"])


@pytest.mark.parametrize(
    ("kind", "answer", "kept"),
    [
        ("postscript", "We go.\n\nP.S. We run.", True),
        ("postscript", "We go.\nBye.\n**P.S.** We run.\nFar away.", True),
        ("postscript", "P.S. We run.\n\nWe go.", False),
        ("postscript", "P.S. We run.\nWe go.", False),
        ("postscript", "We go.\n\nP.S. We run.\n\nWe go on.", False),
        ("quoted", '"We go" she said and then "bye"', False),
        ("quoted", "“We go” she said and then “bye”", False),
        ("quoted", '"We say “tea” and go."', True),
        ("quoted", "„Wir gehen.“", True),
        ("quoted", "«Nous allons.»", True),
    ],
)
def test_postscripts_and_quotation_marks(kind: str, answer: str, kept: bool) -> None:
    assert passes(answer, Constraint(kind)) == kept


@pytest.mark.parametrize(
    ("kind", "answer", "kept"),
    [
        ("plain_prose", "We go. We stay.", True),
        ("plain_prose", "The file is my_old_file_name. We stay _ here.", True),
        ("plain_prose", "We __go__. We stay.", False),
        ("plain_prose", "We _go there_. We stay.", False),
        ("plain_prose", "Travel\n=====\nWe go. We stay.", False),
        ("two_answers", "We go.\n******\nWe stay.", True),
        ("two_answers", "We go.\n******\nWe go!", False),
        ("two_answers", "We go.\n******\n...", False),
    ],
)
def test_marks_alone_make_no_difference_and_underscores_are_marks(kind: str, answer: str, kept: bool) -> None:
    assert passes(answer, Constraint(kind, {})) is kept


def test_a_kind_that_is_not_known_is_an_error() -> None:
    with pytest.raises(StoreError):
        passes("Yes.", Constraint("no such kind"))
    assert score("Yes.", ()) is None
    assert score("Yes.", [Constraint("max_words", {"n": 20}), Constraint("min_words", {"n": 30})]) == 0.5


def test_what_says_nothing_earns_little() -> None:
    rows = degenerate_table(draws=50)
    assert [row.kind for row in rows] == list(KINDS)
    assert all(row.empty == 0 for row in rows)
    assert {row.kind for row in rows if row.constant} <= {
        "max_words", "avoid_words", "no_commas", "no_digits", "one_of",
    }  # fmt: skip
    assert sum(row.copied for row in rows) / len(rows) < 0.3
    assert sum(row.random_words for row in rows) / len(rows) < 0.25
    assert random_answer(random.Random(1)) == random_answer(random.Random(1)) != CONSTANT


def test_the_table_in_the_documentation_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "checks.md").read_text("utf-8")
    table = text.partition("<!-- kinds:")[2].partition("-->\n")[2].partition("<!-- end of kinds -->")[0]
    assert table.strip().splitlines() == kinds_table()
