"""Prompts as the model writes them: one to a persona, by templates, in conversations; prompts of
others."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sao.config import (
    PersonasConfig,
    PromptsConfig,
)
from sao.engines import Completion, Sampling
from sao.engines.scripted import ScriptedEngine
from sao.errors import DataError
from sao.method import run
from sao.pipeline.folder import reader
from sao.records import Drop, Message, Persona, Prompt, make_id
from sao.results.base import StageCounts
from sao.stages.prompts import (
    drawn_template,
    first_request,
    given_prompts,
    read_prompt,
    read_turns,
    write_prompts,
)
from support.errors import raises
from support.made_up import people, self_made, writer


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("Prompt: why?", "stop", (["why?"], "")),
        ("  prompt:why? ", "stop", (["why?"], "")),
        ("why?", "stop", ([], "no marker")),
        ("", "stop", ([], "empty")),
        ("Prompt:  ", "stop", ([], "empty")),
        ("Prompt: why", "length", ([], "cut off at max_tokens")),
    ],
)
def test_prompts_are_read_strictly(text: str, finish: str, expected: tuple[list[str], str]) -> None:
    assert read_prompt(Completion("x", text, None, finish), "Prompt:") == expected  # type: ignore[arg-type]


def test_unparseable_prompts_become_drops_and_done_ones_are_skipped() -> None:
    people = [Persona(id=f"p{i}", row=i, text=f"persona {i}") for i in range(4)]
    engine = ScriptedEngine(
        reply=lambda m, seed, s: "Prompt: hi" if "persona 1" not in m[0].content else "hi"
    )
    done = {make_id("key", "p3")}
    out = list(write_prompts(people, engine, PromptsConfig(), "key", done))
    assert [type(r) for r in out] == [Prompt, Drop, Prompt]
    assert isinstance(out[1], Drop)
    assert (out[1].reason, out[1].row, out[1].record_id) == ("no marker", 1, make_id("key", "p1"))


# Templates and conversations


def test_templates_are_drawn_by_weight_and_id() -> None:
    c = PromptsConfig(mix={"prompt": 3, "prompt_code": 1})
    drawn = [drawn_template(c, f"{i:016x}") for i in range(4000)]
    assert drawn == [drawn_template(c, f"{i:016x}") for i in range(4000)]
    assert 900 < drawn.count("prompt_code") < 1100


def test_a_mix_asks_by_each_of_its_templates(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        text = messages[-1].content
        asked["code" if "program" in text else "turns" if "three turns" in text else "plain"] += 1
        if "three turns" in text:
            return f"Prompt: first {seed}\nReply: said {seed}\nPrompt: then {seed}"
        return (
            f"Prompt: one {seed}"
            if "uses an assistant" in text
            else f"answer {seed} to {len(messages)} turns"
        )

    c = self_made(
        personas={"source": "builtin:general", "n": 300, "held_out": 0},
        prompts={"mix": {"prompt": 1, "prompt_code": 1, "prompt_turns": 1}},
    )
    engine = ScriptedEngine(reply=reply)
    summary = run(c, tmp_path, until="pairs", engine=engine)
    assert {row.stage: row.dropped for row in summary.funnel}["prompts"] == 0
    folder = reader(c, tmp_path, engine)
    prompts = list(folder.stage("prompts").records(Prompt))
    turns = [p for p in prompts if p.earlier]
    assert 70 < len(turns) < 130
    assert all(p.text.startswith("then") and p.earlier[1].startswith("said") for p in turns)
    answers = {p.id: [r.text for r in found] for p, found in folder.answered()}
    assert all(answers[p.id][0].endswith("to 3 turns") for p in turns)  # the whole conversation was answered
    assert "User: first" in turns[0].conversation
    assert asked["code"] > 70


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Prompt: a\nReply: b\nPrompt: c", ["a", "b", "c"]),
        ("prompt: a\n reply: b\n\nmore\nPROMPT: c\nd", ["a", "b\n\nmore", "c\nd"]),
        ("Prompt: a\nReply: b\nPrompt: c\nReply: d\nPrompt: e", ["a", "b", "c", "d", "e"]),
        ("Prompt: a", []),
        ("Prompt: a\nReply: b", []),
        ("Prompt: a\nPrompt: b\nReply: c", []),
        ("Prompt: a\nReply:\nPrompt: c", []),
    ],
)
def test_conversations_are_read_strictly(text: str, turns: list[str]) -> None:
    found, reason = read_turns(Completion("x", text, None, "stop"), "Prompt:")
    assert found == turns
    assert reason == ("" if turns else "no conversation")


def test_prompts_of_others_take_the_place_of_personas(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"real {i}"}]}
        for i in range(50)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"source": str(tmp_path / "p.jsonl"), "column": "messages", "licence": "CC BY-NC 4.0"}
    c = self_made(personas={"n": 30, "held_out": 5}, prompts=given)
    summary = run(c, tmp_path / "run", until="pairs", engine=writer(9))
    folder = reader(c, tmp_path / "run", writer(9))
    assert len({p.text for p in folder.asked(False)}) == 30
    assert all(p.text.startswith("real ") for p in folder.asked(True))
    assert summary.funnel[0] == StageCounts(stage="prompts", records=35, dropped=0, reasons={})
    with raises(DataError, key="prompts.column", match=r"'prompt'.*--prompts\.column"):
        run(
            self_made(prompts={"source": str(tmp_path / "p.jsonl")}),
            tmp_path / "x",
            until="prompts",
            engine=writer(9),
        )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a ", "a"), ("", ""), ("  ", ""), ([], ""), (3, None), ([1], None), (None, None), ({"text": "x"},
        None), (["a"], None),
        ([{"from": "human", "value": "b"}], "b"), ({"role": "user", "content": "b"}, "b"),
        ([{"role": "assistant", "content": "c"}], ""), ([{"role": "user", "content": None}], ""),
        ([{"role": "user", "content": [{"type": "text", "text": "d"}, {"type": "text", "text": "e "}]}],
        "de"),
        ([{"role": "user", "content": [{"type": "text", "text": "d"}, {"type": "image_url",
        "image_url": "u"}]}], ""),
        # Who says what names no speaker: the user, as in all other readers. Not a message: another type.
        ([{"content": "e"}], "e"), ([{"text": "x"}], None), ([{"role": "user", "content": 3}], None),
        ([{"role": "tool", "content": "42"}], ""), ({"role": None, "from": "human", "value": "f"}, "f"),
        ("\n\nHuman: g\n\nAssistant: h\n\nHuman: i\n\nAssistant:", "g"),
    ],
)  # fmt: skip
def test_the_first_request_of_a_column(value: Any, text: str | None) -> None:
    assert first_request(value) == text


def test_rows_without_a_prompt_are_passed_over_and_other_types_named(tmp_path: Path) -> None:
    rows: list[Any] = [
        "one",
        "",
        "   ",
        [],
        None,
        [{"role": "system", "content": "s"}],
        "two \ud83d",
        "\ud83d",
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    c, n = PromptsConfig(source=str(tmp_path / "p.jsonl")), PersonasConfig(n=2, held_out=0)
    assert {p.text for p in given_prompts(c, n, 0, "key")} == {"one", "two "}
    with raises(DataError, key="personas.n", match="holds 2 "):
        list(given_prompts(c, PersonasConfig(n=3, held_out=0), 0, "key"))
    for value, kind in ((3, "int"), ({"a": 1}, "dict"), ([1], "list")):
        (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": value}))
        with raises(
            DataError,
            key="prompts.column",
            match=rf"line 1: no text under the key 'prompt', but a {kind} .*--prompts\.column",
        ):
            list(given_prompts(c, n, 0, "key"))


def test_a_prompt_with_its_own_answer_is_none() -> None:
    def read(text: str) -> tuple[list[str], str]:
        return read_prompt(Completion("x", text, None, "stop"), "Prompt:")

    assert read("Prompt: How do I prune roses?\n\nReply: Cut them in March.") == ([], "answers itself")
    assert read("Prompt: How do I reply: in prose?") == (["How do I reply: in prose?"], "")
    assert read("no") == ([], "no marker")


def test_prompts_written_in_the_users_turn_need_no_marker() -> None:
    seen: list[tuple[Message, ...]] = []

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        seen.append(messages)
        return ["  How do I bake bread? ", "", "x\nReply: y"][len(seen) % 3 - 1]

    found = list(
        write_prompts(people(3), ScriptedEngine(reply=reply), PromptsConfig(method="user_turn"), "k", set())
    )
    assert [p.text for p in found if isinstance(p, Prompt)] == ["How do I bake bread?"]
    assert [d.reason for d in found if isinstance(d, Drop)] == ["empty", "answers itself"]
    assert [m[0].role for m in seen] == ["system"] * 3
    assert "a baker number 0" in seen[0][0].content
    nobody = [Persona(id="0" * 16, row=0, text="")]
    seen.clear()
    list(write_prompts(nobody, ScriptedEngine(reply=reply), PromptsConfig(method="user_turn"), "k", set()))
    assert seen == [()]


def test_a_template_of_conversations_needs_no_persona(tmp_path: Path) -> None:
    template = tmp_path / "talk.txt"
    template.write_text('Write "Prompt:", "Reply:" and "Prompt:" again.')
    config = PromptsConfig(template_without_persona=str(template))
    engine = ScriptedEngine(reply=lambda m, seed, s: "Prompt: a\nReply: b\nPrompt: c")
    (found,) = write_prompts([Persona(id="0" * 16, row=0, text="")], engine, config, "k", set())
    assert isinstance(found, Prompt)
    assert (found.earlier, found.text) == (("a", "b"), "c")


def test_with_a_prefill_the_marker_stands_there_already() -> None:
    texts = [" How do I bake?", "Prompt: How do I bake?"]
    engine = ScriptedEngine(reply=lambda m, seed, s: texts[0])
    config = PromptsConfig(prefill=True)
    (found,) = write_prompts(people(1), engine, config, "k", set())
    assert isinstance(found, Prompt)
    assert found.text == "How do I bake?"
    empty = ScriptedEngine(reply=lambda m, seed, s: " ")
    (drop,) = write_prompts(people(1), empty, config, "k", set())
    assert isinstance(drop, Drop)
    assert (drop.reason, drop.text) == ("empty", "Prompt: ")
