"""Questions and answers in the forms of published sets, and what a judge is shown. All texts are made up."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sao.engines import Completion, Request, Sampling
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DataError
from sao.evaluation.questions import (
    Question,
    by_category,
    held_out_questions,
    question_of,
    read_answers,
    read_questions,
    with_references,
)
from sao.evaluation.suites import SUITES, judge_by_text, ordered_pairs, rate, read_template, references_of
from sao.records import Judgment, Message, Prompt, Rating, Response, make_id
from sao.stages.rows import index_of
from support.errors import raises


def lines(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(answers: dict[str, list[Response]], questions: list[Question]) -> list[list[str]]:
    return [[answer.text for answer in answers[question.prompt.id]] for question in questions]


def fastchat_questions(path: Path) -> str:
    return lines(
        path,
        [
            {"question_id": 7, "category": "art", "turns": ["Draw a fox.", "Now two."]},
            {"question_id": 8, "category": "sums", "turns": ["2+2?", "And 3+3?"], "reference": ["4", "6"]},
            {"question_id": 9, "category": "sums", "turns": ["1+1?", "Why?"], "reference": ["2", ""]},
        ],
    )


def fastchat_answer(number: int, *turns: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "answer_id": "x",
        "model_id": "m",
        "choices": [{"index": 0, "turns": list(turns)}],
    }


# Questions


def test_fastchat_questions_keep_number_category_and_references(tmp_path: Path) -> None:
    found = read_questions(fastchat_questions(tmp_path / "question.jsonl"))
    assert [(q.key, q.category, q.later, q.references) for q in found] == [
        ("7", "art", ("Now two.",), ()),
        ("8", "sums", ("And 3+3?",), ("4", "6")),
        ("9", "sums", ("Why?",), ("2", "")),
    ]
    assert [found[2].reference(turn) for turn in range(3)] == ["2", "", ""]


def test_arena_questions_of_both_versions(tmp_path: Path) -> None:
    old = {"question_id": "ab", "category": "set", "cluster": "bees", "turns": [{"content": " Why bees?\n"}]}
    new = {"uid": "cd", "category": "hard", "subcategory": "code", "prompt": "Sort bees."}
    found = read_questions(lines(tmp_path / "question.jsonl", [old, new]))
    assert [(q.key, q.category, q.prompt.text) for q in found] == [
        ("ab", "set", " Why bees?\n"), ("cd", "hard", "Sort bees.")]  # fmt: skip


def test_given_turns_are_kept(tmp_path: Path) -> None:
    def messages(*turns: str) -> dict[str, Any]:
        names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
        return {"prompt": [{"role": names[turn[0]], "content": turn[2:]} for turn in turns]}

    rows = [messages("u Hi", "a Hello", "u Bye"), messages("u One", "u Two"), messages("u Hi", "a Hello",
    "u Bye", "u Now"),
            messages("s ", "u Plain", "a left out"), {"messages": [{"role": "user",
            "content": "Key"}]}]  # fmt: skip
    found = read_questions(lines(tmp_path / "q.jsonl", rows))
    assert [(q.prompt.earlier, q.prompt.text, q.later) for q in found] == [
        (("Hi", "Hello"), "Bye", ()),
        ((), "One", ("Two",)),
        (("Hi", "Hello"), "Bye", ("Now",)),
        ((), "Plain", ()),
        ((), "Key", ()),
    ]
    assert len({q.prompt.id for q in found}) == 5
    for row, message in [
        (messages("s Speak French", "u Hi"), r"line 1: a question with a system message .*responses\.system"),
        (
            messages("u Hi", "u Ho", "a Hello", "u Bye"),
            "turns that cannot be asked: user, user, assistant, user",
        ),
        (messages("a Hello", "u Bye"), "turns that cannot be asked: assistant, user"),
        (messages("u Hi", "t 5", "u Bye"), "turns that cannot be asked: user, tool, user"),
        (messages("u Hi", "a ", "u Bye"), r"assistant \(no text\)"),
        (messages("a Hello"), "turns that cannot be asked: assistant"),
        ({"prompt": "one turn", "reference": ["a", "b"]}, r"2 references for 1 turn\(s\)"),
    ]:
        with pytest.raises(DataError, match=message):
            read_questions(lines(tmp_path / "bad.jsonl", [row]))


@pytest.mark.parametrize(
    "prompt",
    [
        [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Bye"},
        ],
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:",
        ["Hi", {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}, {"content": "Bye"}],
    ],
)
def test_questions_in_other_shapes(tmp_path: Path, prompt: Any) -> None:
    (question,) = read_questions(lines(tmp_path / "q.jsonl", [{"prompt": prompt}]))
    assert question.prompt.id == question_of(["Bye"], 0, earlier=("Hi", "Hello")).prompt.id


def test_a_single_message_is_a_question(tmp_path: Path) -> None:
    (question,) = read_questions(lines(tmp_path / "q.jsonl", [{"prompt": {"role": "user", "content": "Hi"}}]))
    assert question.prompt.text == "Hi"


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_an_answer_by_somebody_else_is_none(tmp_path: Path, role: str) -> None:
    row = {"instruction": "Greet me.", "output": {"role": role, "content": "Hi!"}}
    with raises(DataError, key="answers", match="output holds none"):
        read_answers(lines(tmp_path / "a.jsonl", [row]), [question_of(["Greet me."], 0)])


def test_ids_depend_on_the_texts_alone() -> None:
    prompts = [Prompt(id="p", row=5, persona_id="x", text="b"), Prompt(id="q", row=6, persona_id="y",
    text="b"),
               Prompt(id="r", row=7, persona_id="y", text="b", earlier=("u", "a"))]  # fmt: skip
    one, given = held_out_questions(prompts)
    assert one.prompt.id == question_of(["b"], 9).prompt.id == make_id("question", "b")
    assert given.prompt == question_of(["b"], 1, earlier=("u", "a")).prompt
    assert question_of(["b", "c"], 0).prompt.id == make_id("question", "b", "c")


# Answers


def test_alpaca_eval_outputs_join_on_the_text(tmp_path: Path) -> None:
    asked = read_questions(
        lines(tmp_path / "q.jsonl", [{"instruction": "Greet me."}, {"instruction": "Say no."}])
    )
    rows: list[dict[str, Any]] = [
        {"dataset": "d", "instruction": "Say no. ", "output": "", "generator": "g", "datasplit": "eval"},
        {
            "dataset": "d",
            "instruction": "Of another set",
            "output": "x",
            "generator": "g",
            "datasplit": "eval",
        },
        {
            "dataset": "d",
            "instruction": "Greet me.",
            "output": " Hi!\n\n",
            "generator": "g",
            "datasplit": "eval",
        },
    ]
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    found = read_answers(str(tmp_path / "model_outputs.json"), asked)
    assert texts(found, asked) == [[" Hi!\n\n"], [""]]  # as they stand: lengths count
    rows[0]["output"] = None
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    with raises(DataError, key="answers", match="item 0.*output"):
        read_answers(str(tmp_path / "model_outputs.json"), asked)


def test_fastchat_answers_join_on_the_number(tmp_path: Path) -> None:
    asked = read_questions(fastchat_questions(tmp_path / "question.jsonl"))
    rows = [
        fastchat_answer(9, "two", ""),
        fastchat_answer(7, "fox ", "foxes"),
        fastchat_answer(8, "four", "six"),
    ]
    rows[0]["choices"].append({"index": 1, "turns": ["second", "choice"]})
    found = read_answers(
        lines(tmp_path / "a.jsonl", [*rows, fastchat_answer(1, "of another", "question")]), asked
    )
    assert texts(found, asked) == [["fox ", "foxes"], ["four", "six"], ["two", ""]]
    assert [answer.index for answer in found[asked[0].prompt.id]] == [0, 1]
    with raises(
        DataError,
        key="missing answers",
        match=r"1 of the 3 questions.*'Draw a fox\.'",
    ):
        read_answers(lines(tmp_path / "a.jsonl", [rows[0], rows[2]]), asked)
    with raises(DataError, key="answers", match="line 1.*choices"):
        read_answers(lines(tmp_path / "a.jsonl", [fastchat_answer(7, "fox")]), asked)
    with raises(DataError, key="answers", match="line 1: 3 answers.*2 turn"):
        read_answers(lines(tmp_path / "a.jsonl", [fastchat_answer(7, "a", "b", "c")]), asked)
    twice = [*asked, question_of(["other"], 3, key="7")]
    with raises(DataError, key="missing answers", match="2 of the 4"):  # whose number 7 is cannot be told
        read_answers(lines(tmp_path / "a.jsonl", rows), twice)


def test_arena_answers_of_both_versions(tmp_path: Path) -> None:
    asked = read_questions(
        lines(
            tmp_path / "q.jsonl",
            [{"question_id": "ab", "turns": [{"content": "Bees?"}]}, {"uid": "cd", "prompt": "Ants?"}],
        )
    )
    old = {
        "question_id": "ab",
        "model_id": "m",
        "choices": [{"index": 0, "turns": [{"content": "Bees.", "token_len": 2}]}],
    }
    new = {
        "uid": "cd",
        "ans_id": "z",
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Ants?"},
            {"role": "assistant", "content": {"thought": "hm", "answer": " Ants."}},
        ],
        "metadata": {"token_len": 2},
    }
    assert texts(read_answers(lines(tmp_path / "a.jsonl", [old, new]), asked), asked) == [
        ["Bees."],
        [" Ants."],
    ]
    new["messages"][1]["content"] = "Another question under the same number"  # type: ignore[index]
    with raises(DataError, key="missing answers", match=r"1 of the 2 questions.*'Ants\?'"):
        read_answers(lines(tmp_path / "a.jsonl", [old, new]), asked)


def test_answers_as_messages_of_several_turns(tmp_path: Path) -> None:
    def chat(*said: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]

    given, later = question_of(["v"], 0, earlier=("u", "a")), question_of(["x", "y"], 1)
    rows = [{"messages": chat("u", "a", "v", "ours")}, {"messages": chat("x", "one", "y", "two")}]
    found = read_answers(lines(tmp_path / "a.jsonl", rows), [given, later])
    assert texts(found, [given, later]) == [["ours"], ["one", "two"]]
    rows[0] = {"messages": chat("u", "another", "v", "ours")}
    with raises(DataError, key="missing answers", match="1 of the 2"):
        read_answers(lines(tmp_path / "a.jsonl", rows), [given, later])
    rows[0] = {"prompt": chat("u", "a", "v"), "output": "beside it"}  # type: ignore[dict-item]
    assert texts(read_answers(lines(tmp_path / "a.jsonl", rows), [given, later]), [given]) == [["beside it"]]


def test_reference_answers_of_a_file(tmp_path: Path) -> None:
    asked = read_questions(fastchat_questions(tmp_path / "question.jsonl"))
    found = with_references(asked, lines(tmp_path / "r.jsonl", [fastchat_answer(9, 2, None)]))
    assert [q.references for q in found] == [(), ("4", "6"), ("2", "")]
    found = with_references(asked, lines(tmp_path / "r.jsonl", [{"question_id": 7, "reference": ["a fox"]}]))
    assert [q.references for q in found] == [("a fox",), ("4", "6"), ("2", "")]
    assert references_of(found) == {
        found[0].prompt.id: "Turn 1: a fox",
        found[1].prompt.id: "Turn 1: 4\n\nTurn 2: 6",
        found[2].prompt.id: "Turn 1: 2",
    }
    assert references_of([question_of(["a"], 0, references=("b",)), question_of(["c"], 1)]) == {
        make_id("question", "a"): "b"
    }
    with raises(DataError, key="references", match="any of the 3"):
        with_references(asked, lines(tmp_path / "r.jsonl", [fastchat_answer(70, "x", "y")]))


NO_TEXTS = [(math.nan, "NaN"), (math.inf, "an infinite number"), (None, "n"), (3, "a number"), (2.0,
"a number"), (True, "true"),
            (["a", 4], "a number"), ([["a"]], "a list"), ([math.nan], "NaN"), ({"text": "a"},
            "an object")]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), NO_TEXTS)
def test_an_answer_that_is_no_text_is_refused(tmp_path: Path, value: Any, kind: str) -> None:
    asked = [question_of(["Greet me."], 0, key="7"), question_of(["Name two.", "Why?"], 1, key="8")]
    good = {"instruction": "Greet me.", "output": "Hi!", "generator": "g"}
    for key in ("output", "answer", "response"):
        rows = [good, {"instruction": "Greet me.", key: value, "generator": "g"}]
        for place in (lines(tmp_path / "a.jsonl", rows), str(tmp_path / "a.json")):
            (tmp_path / "a.json").write_text(json.dumps(rows))
            with raises(DataError, key="answers") as caught:
                read_answers(place, asked[:1])
            said = str(caught.value)
            assert said.startswith((f"{place}, line 2: ", f"{place}, item 1: "))
            assert f"({key} holds {kind}" in said or "2 answers to a question of 1 turn" in said
    chats = [
        {"question_id": 8, "choices": [{"turns": ["a", value]}]},
        {"question_id": 8, "choices": [{"turns": [{"content": "a"}, {"content": value}]}]},
        {"messages": [{"role": role, "content": text} for role, text in
                      (("user", "Name two."), ("assistant", "a"), ("user", "Why?"), ("assistant", value))]},
    ]  # fmt: skip
    for row in chats:
        with raises(
            DataError,
            key="answers",
            match="line 1.*(choices|messages) holds ",
        ):
            read_answers(lines(tmp_path / "a.jsonl", [row]), asked[1:])


def test_two_different_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    asked = [question_of(["Greet me."], 0), question_of(["Say no."], 1)]
    rows = [{"instruction": "Greet me.", "output": "Hi."}, {"instruction": "Say no.", "output": "No."}]
    found = read_answers(lines(tmp_path / "a.jsonl", [*rows, rows[0]]), asked)
    assert texts(found, asked) == [["Hi."], ["No."]]
    other = lines(tmp_path / "b.jsonl", [*rows, rows[0] | {"output": "Hello."}])
    with raises(DataError, key="answers", match="line 3: other answers to a question .*'Greet me.'"):
        read_answers(other, asked)
    with raises(DataError, key="references", match="line 3: other references to"):
        with_references(asked, other)


@pytest.mark.parametrize("missing", [math.nan, None])
def test_answers_of_parquet_and_csv_that_are_missing(tmp_path: Path, missing: float | None) -> None:
    import pyarrow
    import pyarrow.parquet

    asked = [question_of(["Greet me."], 0), question_of(["Say no."], 1)]
    table = {"instruction": ["Greet me."], "output": pyarrow.array([missing], pyarrow.float64())}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with raises(DataError, key="answers", match="row 0.*output holds (NaN|none)"):
        read_answers(str(tmp_path / "a.parquet"), asked[:1])
    (tmp_path / "a.csv").write_text('instruction,output\nGreet me.,""\nSay no.,nan\n')
    with raises(DataError, key="answers", match="line 3.*output holds NaN"):
        read_answers(str(tmp_path / "a.csv"), asked)
    assert texts(read_answers(str(tmp_path / "a.csv"), asked[:1]), asked[:1]) == [[""]]


def test_the_same_number_in_another_form_is_the_same_id(tmp_path: Path) -> None:
    def keys(*values: Any) -> list[str]:
        rows = [{"question_id": value, "turns": [f"q{i}"]} for i, value in enumerate(values)]
        return [question.key for question in read_questions(lines(tmp_path / "q.jsonl", rows))]

    assert keys(81, 82.0, "83", "84.0", 8.5, "a1.0") == ["81", "82", "83", "84", "8.5", "a1.0"]
    assert keys(None, math.nan, True, [85]) == [""] * 4
    asked = read_questions(
        lines(
            tmp_path / "q.jsonl", [{"question_id": 81, "turns": ["a"]}, {"question_id": 82.0, "turns": ["b"]}]
        )
    )
    rows = [fastchat_answer(82, "to b"), fastchat_answer(81, "to a")]
    rows[1]["question_id"] = 81.0
    assert texts(read_answers(lines(tmp_path / "a.jsonl", rows), asked), asked) == [["to a"], ["to b"]]
    (tmp_path / "a.csv").write_text("question_id,output\n81.0,to a\n82.0,to b\n")
    assert texts(read_answers(str(tmp_path / "a.csv"), asked), asked) == [["to a"], ["to b"]]
    rows[1]["question_id"] = math.nan
    with raises(DataError, key="questions", match="line 2"):
        read_answers(lines(tmp_path / "a.jsonl", rows), asked)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": math.nan, "text": "another"}, r"line 1: no text under instruction, but NaN"),
        ({"prompt": 5}, r"line 1: no question under .*; under prompt stands a number\)"),
        ({"question": True}, r"under question stands true"),
        ({"turns": ["a", math.nan]}, r"line 1: turns that cannot be asked: user, user \(no text, but NaN\)"),
        ({"turns": ["a", None]}, r"cannot be asked: user, user \(no text\)"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b", "tool_calls": [{"name": "add"}]},
                    {"role": "user", "content": "c"},
                ]
            },
            r"cannot be asked: user, assistant \(calls a tool\), user\.",
        ),
        ({"turns": ["a", 3]}, r"cannot be asked: user, user \(no text, but a number\)"),
        ({"turns": [{"content": math.nan}]}, r"cannot be asked: user \(no text, but NaN\)"),
        ({"turns": [{"content": 5}]}, r"cannot be asked: user \(no text, but a number\)"),
        (
            {"messages": [{"role": "system", "content": math.nan}, {"role": "user", "content": "a"}]},
            "a question with a system",
        ),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            r"cannot be asked: user \(no text, but a list\)",
        ),
        ({"prompt": "q", "reference": math.nan}, r"line 1: no right answer under reference, but NaN"),
        (
            {"prompt": "q", "reference": [math.inf]},
            r"no right answer under reference, but an infinite number",
        ),
        ({"prompt": "q", "reference": True}, r"no right answer under reference, but true"),
        ({"prompt": "q", "reference": [["a"]]}, r"no right answer under reference, but a list"),
        ({"prompt": "q", "reference": {"is": "a"}}, r"no right answer under reference, but an object"),
    ],
)
def test_a_question_or_reference_that_is_no_text_is_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_questions(lines(tmp_path / "q.jsonl", [row]))


def test_a_right_answer_may_be_a_number(tmp_path: Path) -> None:
    for value, text in ((4, "4"), (4.0, "4"), (2.5, "2.5"), ({"answer": "four"}, "four")):
        (question,) = read_questions(lines(tmp_path / "q.jsonl", [{"prompt": "2+2?", "reference": value}]))
        assert question.references == (text,)
    (question,) = read_questions(lines(tmp_path / "q.jsonl", [{"prompt": "2+2?", "reference": None}]))
    assert question.references == ()
    with raises(DataError, key="references", match="line 1.*choices, but NaN"):
        with_references(
            [question_of(["a"], 0, key="7")], lines(tmp_path / "r.jsonl", [fastchat_answer(7, math.nan)])
        )


def test_means_by_category() -> None:
    asked = [question_of([str(i)], i, category) for i, category in enumerate(["b", "a", "b", ""])]
    values = {q.prompt.id: float(i) for i, q in enumerate(asked)}
    assert by_category(asked, values) == {
        "b": {"mean": 1.0, "n": 2}, "a": {"mean": 1.0, "n": 1}, "": {"mean": 3.0, "n": 1}}  # fmt: skip
    assert list(by_category(asked, values)) == ["b", "a", ""]
    assert by_category(asked[:3], {asked[2].prompt.id: 0.5, "other": 9.0}) == {"b": {"mean": 0.5, "n": 1}}
    assert by_category(asked[3:], values) == {}
    assert by_category(asked, {}) == {}


# What the judge is shown


class Listening:
    """A judge that keeps what it is asked, and says the same each time."""

    name = identity = "listening"

    def __init__(self, says: str) -> None:
        self.says, self.asked = says, list[tuple[Message, ...]]()

    def generate(self, requests: Iterable[Request]) -> Iterable[Completion]:
        for request in requests:
            self.asked.append(request.messages)
            yield Completion(request.samples[0].id, self.says, None, "stop")


def answers_to(questions: list[Question], name: str = "ours") -> dict[str, list[Response]]:
    return {
        q.prompt.id: [
            Response(id=make_id(name, q.prompt.id, turn), row=0, prompt_id=q.prompt.id, index=turn,
                     text=f"{name} {index_of(q.prompt.row)}.{turn}", token_ids=None, finish_reason="stop")
            for turn in range(1 + len(q.later))
        ]
        for q in questions
    }  # fmt: skip


def test_marks_have_rows_of_their_own_whatever_the_number_of_turns() -> None:
    asked = [question_of([f"q{i}", *["more"] * later], i) for i, later in enumerate((0, 2, 0, 1, 2, 0))]
    engine = ScriptedEngine(identity="j", reply=lambda m, s, p: "[[5]]")
    found = [
        r for r in rate(asked, answers_to(asked), engine, "rating", 50, "k", (), "j") if isinstance(r, Rating)
    ]
    assert len(found) == len({rating.row for rating in found}) == 11
    assert sorted(rating.row for rating in found) == [0, 3, 4, 5, 6, 9, 10, 12, 13, 14, 15]
    done = {rating.id for rating in found[:4]}
    assert len(list(rate(iter(asked), answers_to(asked), engine, "rating", 50, "k", done, "j"))) == 7


def test_our_marks_show_the_right_answer_where_there_is_one() -> None:
    asked = [question_of(["2+2?", "Why?"], 0, references=("four {answer}", "")), question_of(["Hi"], 1)]
    judge = Listening("[[10]]")
    found = list(rate(asked, answers_to(asked), judge, "rating", 50, "k", (), "j"))  # type: ignore[arg-type]
    assert [r.score for r in found if isinstance(r, Rating)] == [10.0] * 3
    shown = [messages[-1].content for messages in judge.asked]
    assert all(len(messages) == 1 for messages in judge.asked)
    assert "<right_answer>\nfour {answer}\n</right_answer>" in shown[0]
    assert "<answer>\nours 0.0\n</answer>" in shown[0]
    assert not any("right_answer" in text or "---" in text for text in shown[1:])
    assert "User: 2+2?\n\nAssistant: ours 0.0\n\nUser: Why?" in shown[1]


def test_pairs_show_the_right_answers_too() -> None:
    asked = [question_of(["2+2?", "3+3?"], 0, references=("4", "6")), question_of(["Hi"], 1)]
    judge, suite = Listening("[[A]]"), SUITES["mtbench-pairs"]
    pairs = list(ordered_pairs(asked, answers_to(asked), answers_to(asked, "theirs"), "k"))
    found = list(
        judge_by_text(pairs, judge, suite, "pairwise", 50, (), "j", references=references_of(asked))  # type: ignore[arg-type]
    )
    assert [j.verdict for j in found if isinstance(j, Judgment)] == ["first"] * 4
    shown = [messages[0].content for messages in judge.asked]
    assert ["<right_answers>\nTurn 1: 4\n\nTurn 2: 6\n</right_answers>" in text for text in shown] == [
        True,
        True,
        False,
        False,
    ]
    judge.asked.clear()
    list(judge_by_text(pairs, judge, suite, "pairwise", 50, (), "j"))  # type: ignore[arg-type]
    assert not any("right_answers" in messages[0].content for messages in judge.asked)


PROTOCOL = """---system---
A judge of {first} turns.
---user---
Q {question} A {answer}
---user, reference---
Q {question} R {reference} A {answer}
---system, later---
A judge of later turns.
--- user, later ---
Q {earlier_question} A {earlier_answer} Q {question} A {answer}
---user, reference, later---
Q {earlier_question} R {earlier_reference} A {earlier_answer} Q {question} R {reference} A {answer}
"""


def test_a_protocol_with_four_texts_and_system_messages(tmp_path: Path) -> None:
    (tmp_path / "protocol.txt").write_text(PROTOCOL)
    asked = [question_of(["q1", "q2"], 0, references=("r1", "r2")), question_of(["p1", "p2"], 1)]
    judge, template = Listening("[[3]]"), str(tmp_path / "protocol.txt")
    list(rate(asked, answers_to(asked), judge, template, 50, "k", (), "j"))  # type: ignore[arg-type]
    first, later = (
        Message("system", "A judge of {first} turns."),
        Message("system", "A judge of later turns."),
    )
    assert judge.asked == [
        (first, Message("user", "Q q1 R r1 A ours 0.0")),
        (later, Message("user", "Q q1 R r1 A ours 0.0 Q q2 R r2 A ours 0.1")),
        (first, Message("user", "Q p1 A ours 1.0")),
        (later, Message("user", "Q p1 A ours 1.0 Q p2 A ours 1.1")),
    ]


def test_the_closest_part_is_shown_and_a_missing_reference_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("{prompt} {answer} [{reference}]\n---user, later---\n{question} {answer} later\n")
    template, values = read_template(str(path), "rating"), {"prompt": "p", "question": "q", "answer": "a"}
    assert template.messages(values | {"reference": ""}) == (Message("user", "p a []"),)
    assert template.messages(values | {"reference": "r"}) == (Message("user", "p a [r]"),)
    assert template.messages(values | {"reference": "r"}, later=True) == (Message("user", "q a later"),)
    path.write_text(path.read_text() + "---user, reference---\n{question} {answer} {reference} right\n")
    template = read_template(str(path), "rating")
    assert template.messages(values | {"reference": "r"}, later=True) == (Message("user", "q a r right"),)
    assert template.messages(values | {"reference": ""}, later=True) == (Message("user", "q a later"),)


@pytest.mark.parametrize(
    ("text", "way", "message"),
    [
        ("{prompt} only", "rating", r"\{answer\} does not stand in it"),
        ("{answer} only", "rating", r"\{prompt\} does not stand in its part 'user'"),
        (
            "{prompt} {answer}\n---user, reference---\n{prompt} {reference}",
            "rating",
            r"\{answer\} .* 'user, reference'",
        ),
        ("{prompt} {answer}\n---user---\n{prompt} {answer}", "rating", "a part stands there twice"),
        ("---user, later---\n{prompt} {answer}", "rating", "no part for the user"),
        (
            "---system---\n{prompt} {first} {second}\n---user---\n{prompt} {first}",
            "pairwise",
            r"\{second\} .* 'user'",
        ),
    ],
)
def test_templates_that_cannot_be_used(tmp_path: Path, text: str, way: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_template(str(tmp_path / "t.txt"), way)


def test_the_shipped_templates_have_all_parts() -> None:
    parts = {name: set(read_template(name, way).parts) for name, way in
             (("rating", "rating"), ("pairwise", "pairwise"), ("arena", "arena"))}  # fmt: skip
    plain, right = ("user", frozenset[str]()), ("user", frozenset({"reference"}))
    assert parts == {"rating": {plain, right}, "pairwise": {plain, right}, "arena": {plain}}


def test_sampling_of_a_judge_is_greedy() -> None:
    asked = [question_of(["q"], 0)]
    seen: list[Sampling] = []

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        seen.append(sampling)
        return "[[1]]"

    list(
        rate(asked, answers_to(asked), ScriptedEngine(identity="j", reply=reply), "rating", 77, "k", (), "j")
    )
    assert [(s.temperature, s.max_tokens) for s in seen] == [(0.0, 77)]
