"""How the checkers read an answer, by hand."""

import pytest

from sao.checks import passes, text
from sao.checks.language import likely
from sao.records import Constraint


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("It costs 3.5 dollars, e.g. in Rome. Is it so? Yes!", 3),
        ("Dr. Smith and J. Doe met. They left.", 2),
        ("She said “No.” Then she left.", 2),
        ("Wait... what? Fine.", 2),
        ("First line\nSecond line", 2),
        ("1. One thing.\n2. Another thing.", 2),
        ("So do I. We go.", 2),
        ("今天很好。我们走吧！", 2),
        ("It is good. 🙂", 1),
        ("# Heading\n\nIt is **bold.** It is.", 3),
        ("", 0),
        ("?!", 0),
    ],
)
def test_sentences(said: str, number: int) -> None:
    assert len(text.sentences(said)) == number


def test_words_paragraphs_lists_and_code() -> None:
    assert text.count_words("A well-known dog — don't.") == 4
    assert text.count_words("A dog—and—a cat, 10–20 of them—") == 8
    assert text.words_of("The DOG's Bone_9") == ["the", "dog", "s", "bone", "9"]
    assert len(text.paragraphs("One.\ntwo\n \n\n---\n\nThree.")) == 2
    assert text.bullets("- a\n* b\n  • c\n-d\n```\n- e\n```\n- ") == ["a", "b", "c"]
    assert text.numbered("1. a\n2) b\n3 c\n2024. ") == [1, 2]
    assert text.unfenced('```json\n{"a": 1}\n```') == '{"a": 1}'
    assert text.normal("\ufeffe\u0301\r\nb\u2028c ") == "é\nb\nc"
    assert text.content_words("Could you explain Photosynthesis to a farmer, a FARMER?") == [
        "photosynthesis",
        "farmer",
    ]


@pytest.mark.parametrize(
    ("kind", "values", "good", "bad"),
    [
        ("start_word", {"word": "Today"}, "**Today**, we go.", "Todays tea."),
        ("end_words", {"words": "Have a nice day"}, "So: have a nice day!**", "Have a nice day. Bye"),
        ("include_words", {"words": ["tea"]}, "TEA-time", "teapot"),
        ("quoted", {}, "“Yes.”", '"Yes." she said'),
        ("question_end", {}, 'Is it "so"?”', "Is it? Yes"),
        ("json_keys", {"keys": ["a"]}, '```\n{"a": 1}\n```', '{"a": 1, "b": 2}'),
        ("json_keys", {"keys": ["a"]}, '{"a": []}', '[{"a": 1}]'),
        ("table", {"n": 1}, "| a | b |\n|---|---|\n| c | d |\n\nEnd.", "| a |\n|---|\n| c |"),
        ("number_count", {"n": 2}, "Pay 1,000.50 at 10:30.", "Pay 7."),
        ("no_commas", {}, "Tea and milk", "茶，牛奶"),
        ("sections", {"n": 2, "word": "Part"}, "## part 1: a\nb\n**Part 2**\nc", "Part 2\nPart 1"),
        ("highlights", {"n": 2}, "*a* and **b c**", "2 * 3 * 4 and *a*"),
        ("lowercase", {}, "we go 2 paris", "We go"),
        ("one_of", {"choices": ["yes", "no"]}, "**Yes.**", "Yes no"),
        ("language", {"code": "fr"}, "Il est dans la maison avec nous.", "It is in the house with us."),
    ],
)
def test_edges(kind: str, values: dict[str, object], good: str, bad: str) -> None:
    assert passes(good, Constraint(kind, values))
    assert not passes(bad, Constraint(kind, values))


def test_no_letters_are_in_no_language() -> None:
    assert likely("12 + 34!") is None
    assert likely("私は日本人です") == "ja" and likely("我们是朋友") == "zh"
