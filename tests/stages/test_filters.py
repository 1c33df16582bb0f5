"""Which prompts are answered: each filter by itself, and the stage in a run."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sao.config import Config, FiltersConfig, make_config
from sao.engines import Sampling
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DataError, DropError
from sao.method import run
from sao.pipeline.folder import reader
from sao.records import Drop, Message, Prompt, Response
from sao.stages.filters import (
    check_filters,
    filter_prompts,
    first_reason,
    is_active,
    is_refusal,
    is_unfinished,
    persona_reason,
    prompt_checks,
)
from sao.stages.functions import function_identity, load_function
from support.errors import raises

OFF: dict[str, Any] = {"duplicates": "none", "refusals": False, "persona_text": False, "unfinished": False}


def prompts_of(texts: list[str]) -> list[tuple[Prompt, str]]:
    return [(Prompt(id=f"{i:016x}", row=i, persona_id="p", text=text), "") for i, text in enumerate(texts)]


def by_row(record: Prompt | Drop) -> int:
    return record.row


def fates(texts: list[str], **settings: Any) -> list[str]:
    """What becomes of each prompt: "kept" or the reason it is dropped."""
    rows = prompts_of(texts)
    found = sorted(
        filter_prompts(lambda: iter(rows), FiltersConfig(**{**OFF, **settings}), "Prompt:", ()), key=by_row
    )
    assert [r.row for r in found] == list(range(len(texts)))
    return [r.reason if isinstance(r, Drop) else "kept" for r in found]


def test_nothing_is_filtered_where_all_is_off() -> None:
    assert not is_active(FiltersConfig(**OFF))
    assert is_active(FiltersConfig())
    some = {
        "duplicates": "exact",
        "refusals": True,
        "min_words": 1,
        "languages": ["en"],
        "reject": "a:b",
        "decontaminate": ["x"],
    }
    assert all(is_active(FiltersConfig(**{**OFF, name: value})) for name, value in some.items())
    assert fates(["", "I cannot", "Prompt: x"]) == ["kept"] * 3


def test_the_first_of_a_group_stays() -> None:
    long = "please explain to me how a slow cooker keeps the soup warm over many hours"
    texts = [
        long,
        "What is it?",
        "what is  IT",
        long.replace("slow", "fast"),
        long + ".",
        "something else altogether",
    ]
    assert fates(texts, duplicates="exact") == [
        "kept",
        "kept",
        "equals an earlier prompt",
        "kept",
        "equals an earlier prompt",
        "kept",
    ]
    near = fates(texts, duplicates="near")
    assert near == [
        "kept",
        "kept",
        "equals an earlier prompt",
        "repeats an earlier prompt",
        "equals an earlier prompt",
        "kept",
    ]


def test_a_drop_says_what_it_repeats() -> None:
    rows = prompts_of(["one two three", "One, two, three!", "I'm sorry, I cannot do it"])
    found = list(filter_prompts(lambda: iter(rows), FiltersConfig(), "Prompt:", ()))
    assert [r.row for r in found] == [2, 0, 1]  # what a filter minds comes first
    assert [getattr(r, "detail", None) for r in found] == [None, None, "row 0, similarity 1.00"]
    for done in range(3):
        rest = list(filter_prompts(lambda: iter(rows), FiltersConfig(), "Prompt:", {rows[done][0].id}))
        assert rest == [
            r for r in found if r.row != done
        ]  # what is done is not handed out again, and still counts


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m really sorry, but I’m not able to create it",
        "Sorry, but I can't do that.",
        "I am unable to write this request.",
        "I can't write a request for such a person.",
        "I won't be able to comply with that.",
        "I apologize, but I cannot provide that.",
        "As an AI language model, I have no life.",
        "As an AI, I don't have personal needs.",
        "Unfortunately, I cannot invent a person.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)
    assert fates([text], refusals=True) == ["refusal"]


@pytest.mark.parametrize(
    "text",
    [
        "I can't get my bread to rise; what is wrong?",
        "I cannot see well and read at night. Which e-readers are good?",
        "I'm sorry to bother you, but how do I reset the router?",
        "I won't be able to attend my sister's wedding. Help me write to her.",
        "I can't write well in English. Please mend this letter.",
        "I can't create a pivot table that groups by week. What is wrong?",
        "I can't do this any more. How do I give notice?",
        "Sorry, I can't help but wonder why bees dance.",
        "As an AI researcher, I need a title for my talk.",
        "My boss said: I'm sorry. How do I answer?",
        "Explain why a model says I cannot.",
    ],
)
def test_people_who_cannot_do_something_do_not_refuse(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("What is it?", False),
        ("List three,", True),
        ("Summarise the following text:", True),
        ("写一个列表，", True),
        ("请总结下面的文字：", True),
        ("Here are my points:\n1. bread\n2.", True),
        ("Here are my points:\n- bread\n-", True),
        ("Write about the", True),
        ("Compare the two (", True),
        ("Fix this:\n```python\nprint(1", True),
        ("Fix this:\n```python\nprint((1)\n```", False),
        ("How do I show ``` in Markdown?", False),
        ("Explain f(x) = (x + 1)²", False),
        ("What is the length of the interval [0, 1)", False),
        ("I am sad today :( what can I do", False),
        ("I am sad today :(", False),
        ("What is it made of, and what for", False),
        ("What foods have vitamin A", False),
        ("the difference between AND and OR", False),
        ("Ich schreibe über die", False),
        ("为什么天空是蓝色的", False),
        ("", False),
    ],
)
def test_unfinished(text: str, broken: bool) -> None:
    assert is_unfinished(text) == broken


TEACHER = "一位住在上海的退休教师，喜欢种花、写字和教孩子们唱歌跳舞"
SAILOR = "a retired sailor from a small port who builds ships in bottles and teaches children to swim"


@pytest.mark.parametrize(
    ("text", "persona", "reason"),
    [
        (f"As {SAILOR}, what glue do I need?", SAILOR, "quotes its persona"),
        ("I am a retired sailor from a small port. What glue holds ships in bottles?", SAILOR, None),
        ("Give me one.\nprompt: another", SAILOR, "template text"),
        ("Prompt: what glue holds?", SAILOR, "template text"),
        ("What does prompt: mean in this dialogue?", SAILOR, None),
        ("Hello {persona}", SAILOR, "template text"),
        ("Improve this system prompt: You are {persona}", "", None),
        ('Mend the f-string f"{name} is {age}"', SAILOR, None),
        (r"Simplify \frac{a}{b} and \begin{cases} x \end{cases}", SAILOR, None),
        ("Parse <response><prompt>x</prompt></response> in Go", SAILOR, None),
        ("I am a cook", "a cook", None),
        ("我是一位住在上海的退休教师，想学做面包，怎么开始？", TEACHER, None),
        (f"我是{TEACHER}的人", TEACHER, "quotes its persona"),
        ("ฉันเป็นครูที่เชียงใหม่ อยากทำขนมปัง", "ครูที่เชียงใหม่ซึ่งชอบปลูกดอกไม้และสอนเด็กร้องเพลง", None),
    ],
)  # fmt: skip
def test_quoted_personas_and_template_text(text: str, persona: str, reason: str | None) -> None:
    found = persona_reason(text, persona, "Prompt:")
    assert (found and found[0]) == reason


def test_a_quotation_is_shown_and_no_marker_is_sought_where_there_is_none() -> None:
    found = persona_reason(f"I am {SAILOR}", SAILOR, "Prompt:")
    assert found == ("quotes its persona", "a retired sailor from a small port who builds ships")
    assert persona_reason("Rewrite this.\nPrompt: a cat", SAILOR, "") is None


@pytest.mark.parametrize(
    "text", ["\n" * 50_000 + "x", " " * 50_000 + "x", "`" * 50_000, '"a' * 50_000, "```x" * 20_000]
)
def test_odd_texts_take_no_long_time(text: str) -> None:
    started = time.monotonic()
    is_unfinished(text), is_refusal(text), persona_reason(text, SAILOR, "Prompt:")
    assert time.monotonic() - started < 2


def test_all_turns_of_a_conversation_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(first: str, reply: str, last: str, **settings: Any) -> str | None:
        prompt = Prompt(id="0", row=0, persona_id="p", text=last, earlier=(first, reply))
        found = first_reason(prompt_checks(FiltersConfig(**{**OFF, **settings}), "Prompt:"), prompt, SAILOR)
        return found and found[0]

    assert reason(f"I am {SAILOR}", "Hello.", "And glue?", persona_text=True) == "quotes its persona"
    assert reason("Who am I?", f"You are {SAILOR}.", "Right.", persona_text=True) is None
    assert reason("Sing.", "I'm sorry, but I can't help with that.", "Why?", refusals=True) == "refusal"
    assert reason("one two three", "four", "five", min_words=5) is None
    assert reason("one two three", "four", "five", min_words=6) == "too short"
    assert reason("one two three", "four", "five", max_words=4) == "too long"
    (tmp_path / "mine_too.py").write_text("def rude(text):\n    return 'rude' if 'fool' in text else None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert reason("you fool", "four", "five", reject="mine_too:rude") == "rude"
    pytest.importorskip("py3langid")
    german = ("Wie halte ich meine Tomaten nach dem Regen frisch?", "Kühl und trocken lagern.", "ok")
    assert reason(*german, languages=["en"]) == "another language"


def test_lengths_and_languages() -> None:
    texts = ["one two", "one two three four", "one two three four five six"]
    assert fates(texts, min_words=3, max_words=5) == ["too short", "kept", "too long"]
    pytest.importorskip("py3langid")
    said = [
        "How do I keep my tomatoes from splitting after the rain?",
        "Wie halte ich meine Tomaten nach dem Regen frisch?",
        "ok",
    ]
    assert fates(said, languages=["en"]) == ["kept", "another language", "kept"]
    unsure = [
        "Solve 3x + 5 = 20 for x",
        "VLOOKUP formula returns #N/A in Excel 2016",
        "Regex to match dates dd/mm/yyyy",
        "Translate 'Ich habe keine Zeit' into English",
        "Why does this fail?\n```\nfür = Straße.laufen(schnell, über, und, nicht, oder, ist)\n```",
    ]
    assert fates(unsure, languages=["en"]) == ["kept"] * 5
    others = [
        "Skriv et brev til min far om høsten",
        "Напиши письмо моей бабушке о лете",
        "为什么天空是蓝色的",
    ]
    assert fates(others, languages=["en"]) == ["another language"] * 3
    assert fates(others, languages=["da", "ru", "zh"]) == ["kept"] * 3


def test_a_filter_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def rude(text):\n    return 'rude' if 'fool' in text else None\nx = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fates(["you fool", "you friend"], reject="mine:rude") == ["rude", "kept"]
    (tmp_path / "broken.py").write_text("1 / 0")
    for path in ("mine:none", "nowhere_at_all:f", "mine", "mine:x", "", ".mine:rude", "broken:f"):
        with raises(ConfigError, key="filters.reject"):
            load_function(path, "filters.reject")


def test_ones_own_filter_is_asked_once_and_may_change_its_mind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moody.py").write_text(
        "calls = []\ndef f(text):\n    calls.append(text)\n    return 'even' if len(calls) % 2 else None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = [f"question number {i}" for i in range(5)]
    assert fates(texts, reject="moody:f", duplicates="near") == ["even", "kept", "even", "kept", "even"]
    assert __import__("moody").calls == texts


def test_ones_own_filter_that_fails_is_named_with_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text("def f(text):\n    return {}[text] if 'odd' in text else None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with raises(
        ConfigError,
        key="filters.reject",
        match="'failing:f' raised KeyError.*row 1: 'an odd one'",
    ):
        fates(["a good one", "an odd one"], reject="failing:f")


def test_the_identity_of_ones_own_filter_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "plugged.py"
    file.write_text("raise RuntimeError('the module is not run')\n")
    first = function_identity("plugged:f", "filters.reject")
    assert (
        function_identity("plugged:f", "filters.reject")
        == first
        != function_identity("plugged:g", "filters.reject")
    )
    file.write_text("def f(text): return None\n")
    assert function_identity("plugged:f", "filters.reject") != first
    assert str(tmp_path) not in first
    for path in ("nowhere_at_all:f", "", ".x:f", "nowhere.at:all"):
        with raises(ConfigError, key="filters.reject", match="PYTHONPATH"):
            function_identity(path, "filters.reject")


def test_wrong_settings_show_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_filters(FiltersConfig())
    (tmp_path / "empty.jsonl").write_text("")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"reject": "nowhere_at_all:f"}, r"filters\.reject"),
        ({"decontaminate": ["no_such_set"]}, "no evaluation set 'no_such_set'"),
        ({"decontaminate": [str(tmp_path / "empty.jsonl")]}, "holds no evaluation items"),
        ({"min_words": 5, "max_words": 4}, "min_words 5 is more than max_words 4"),
    ]
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    wrong.append(({"embeddings": "some/model"}, "pip install sentence-transformers"))
    for settings, message in wrong:
        with pytest.raises((ConfigError, DataError), match=message):
            check_filters(FiltersConfig(**settings))
    pytest.importorskip("py3langid")
    check_filters(FiltersConfig(languages=["en", "zh"]))
    with raises(ConfigError, key="filters.languages", match=r"no language 'english'.*known: .*\ben\b"):
        check_filters(FiltersConfig(languages=["en", "english"]))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("py3langid", "py3langid.langid"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with raises(ConfigError, key="py3langid", match=r"pip install 'sao\[data\]'"):
        prompt_checks(FiltersConfig(languages=["en"]), "Prompt:")


# In a run


def engine(prompts: Iterator[str] | None = None, answer: str = "") -> ScriptedEngine:
    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        if "uses an assistant" in messages[-1].content:
            number = seed % 40
            return (
                f"Prompt: how does thing {number} differ from thing {number + 1} and {number * 7} in detail?"
            )
        return f"answer {seed} {answer}"

    return ScriptedEngine(reply=reply)


def config(**filters: Any) -> Config:
    personas = {"source": "builtin:general", "n": 120, "held_out": 30}
    return make_config(
        {"engine": {"name": "scripted"}, "personas": personas, "filters": filters, "max_drop_share": 0.5}
    )


def test_the_stage_stands_between_prompts_and_answers(tmp_path: Path) -> None:
    c = config()
    summary = run(c, tmp_path, until="pairs", engine=engine())
    funnel = {row.stage: row for row in summary.funnel}
    assert list(funnel)[:3] == ["prompts", "filtered", "responses"]
    kept = funnel["filtered"].records
    assert kept <= 40
    assert kept + funnel["filtered"].dropped == 150  # more than half are dropped: that is no error here
    folder = reader(c, tmp_path, engine())
    training, held_out = [p.text for p in folder.asked(False)], [p.text for p in folder.asked(True)]
    assert len(set(training)) == len(training)
    assert not set(training) & set(held_out)
    assert funnel["responses"].records == 2 * len(training)
    again = run(c, tmp_path, until="pairs", engine=engine())
    assert not again.worked


def test_other_filters_reuse_the_prompts(tmp_path: Path) -> None:
    one = engine()
    run(config(), tmp_path, until="prompts", engine=one)
    calls = one.calls
    summary = run(config(duplicates="none"), tmp_path, until="prompts", engine=one)
    assert one.calls == calls
    assert {row.stage: row.records for row in summary.funnel} == {"prompts": 150, "filtered": 150}


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with raises(DropError, key="filters", match="too short"):
        run(config(min_words=500), tmp_path, until="prompts", engine=engine())


def test_contaminated_texts_are_dropped_from_prompts_and_answers(tmp_path: Path) -> None:
    items = [f"how does thing {i} differ from thing {i + 1} and {i * 7} in detail?" for i in range(10)]
    other = "the quick brown fox jumps over the lazy dog near the river bank"
    (tmp_path / "bench.jsonl").write_text(
        "".join(json.dumps({"instruction": text}) + "\n" for text in (*items, other))
    )
    c = config(decontaminate=[str(tmp_path / "bench.jsonl")])
    summary = run(c, tmp_path / "run", until="pairs", engine=engine(answer="yes"))
    funnel = {row.stage: row for row in summary.funnel}
    found = [reason for reason in funnel["filtered"].reasons if reason.startswith("contaminated: ")]
    assert found
    folder = reader(c, tmp_path / "run", engine())
    assert not any(f"how does thing {i} differ" in p.text for p in folder.asked(False) for i in range(10))
    assert funnel["filtered_responses"].dropped == 0
    quoting = engine(answer=f"as they say: {other}!")
    with raises(
        DropError,
        key="max_drop_share",
        match=r"filtered_responses: .*contaminated: bench\.jsonl",
    ):
        run(c, tmp_path / "quoting", until="pairs", engine=quoting)
    c = c.model_copy(update={"max_drop_share": 1.0})
    quoted = run(c, tmp_path / "quoting", until="pairs", engine=quoting)
    rows = {row.stage: row for row in quoted.funnel}
    assert rows["filtered_responses"].records == 0
    assert next(iter(rows["filtered_responses"].reasons)).startswith("contaminated: ")
    folder = reader(c, tmp_path / "quoting", engine())
    drop = next(iter(folder.stage("filtered_responses").drops()))
    assert "item 10, overlap 1.00" in str(drop.detail)
    assert list(folder.stage("filtered_responses").records(Response)) == []
