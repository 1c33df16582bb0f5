"""Which prompts are answered: each filter by itself, and the stage in a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sao.config import Config, FiltersConfig, make_config
from sao.engines import Message, Sampling
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DropError
from sao.filters import filter_prompts, is_active, is_unfinished, load_plug, persona_reason, prompt_checks
from sao.folder import RunFolder
from sao.pipeline import run
from sao.types import Drop, Prompt, Response

OFF: dict[str, Any] = {"duplicates": "none", "refusals": False, "persona_text": False, "unfinished": False}


def prompts_of(texts: list[str]) -> list[tuple[Prompt, str]]:
    return [(Prompt(id=f"{i:016x}", row=i, persona_id="p", text=text), "") for i, text in enumerate(texts)]


def fates(texts: list[str], **settings: Any) -> list[str]:
    """What becomes of each prompt: "kept" or the reason it is dropped."""
    rows = prompts_of(texts)
    found = list(filter_prompts(lambda: iter(rows), FiltersConfig(**{**OFF, **settings}), "Prompt:", ()))
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
        "against": ["x"],
    }
    assert all(is_active(FiltersConfig(**{**OFF, name: value})) for name, value in some.items())
    assert fates(["", "I cannot", "Prompt: x"]) == ["kept"] * 3


def test_the_first_of_a_group_stays() -> None:
    long = "please explain to me how a slow cooker keeps the soup warm over many hours"
    texts = [long, "What is it?", "what is  IT", long.replace("slow", "fast"), long + ".", "something else altogether"]
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
    rows = prompts_of(["I'm sorry, I cannot do it", "one two three", "One, two, three!"])
    found = list(filter_prompts(lambda: iter(rows), FiltersConfig(), "Prompt:", ()))
    assert [getattr(r, "detail", None) for r in found] == [None, None, "row 1, similarity 1.00"]
    rest = list(filter_prompts(lambda: iter(rows), FiltersConfig(), "Prompt:", {rows[1][0].id}))
    assert rest == [found[0], found[2]]  # what is done is not handed out again, and still counts


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I am unable to write this request.", True),
        ("As an AI language model, I have no life.", True),
        ("Unfortunately, I cannot invent a person.", True),
        ("I can't get my bread to rise; what is wrong?", True),  # begins as a refusal does: dropped too
        ("My boss said: I'm sorry. How do I answer?", False),
        ("Explain why a model says I cannot.", False),
    ],
)
def test_refusals(text: str, refused: bool) -> None:
    assert fates([text], refusals=True) == ["refusal" if refused else "kept"]


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("What is it?", False),
        ("List three,", True),
        ("Summarise the following text:", True),
        ("Here are my points:\n1. bread\n2.", True),
        ("Here are my points:\n- bread\n-", True),
        ("Write about the", True),
        ("Sum these (and mind the", True),
        ("Fix this:\n```python\nprint(1", True),
        ("Fix this:\n```python\nprint((1)\n```", False),
        ("Explain f(x) = (x + 1)²", False),
        ("Ich schreibe über die", False),
        ("为什么天空是蓝色的", False),
        ("", False),
    ],
)
def test_unfinished(text: str, broken: bool) -> None:
    assert is_unfinished(text) == broken


def test_quoted_personas_and_template_text() -> None:
    persona = "a retired sailor from a small port who builds ships in bottles and teaches children to swim"
    quoting = "As a retired sailor from a small port who builds ships in bottles, what glue do I need?"
    assert persona_reason(quoting, persona, "Prompt:") == (
        "quotes its persona",
        "a retired sailor from a small port who builds ships",
    )
    assert persona_reason("What glue holds ships in bottles?", persona, "Prompt:") is None
    assert persona_reason("Give me one. prompt: another", persona, "Prompt:") == ("template text", None)
    assert persona_reason("Hello {persona}", persona, "Prompt:") == ("template text", None)
    assert persona_reason("I am a cook", "a cook", "Prompt:") is None  # too short to be a quotation


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


def test_a_filter_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def rude(text):\n    return 'rude' if 'fool' in text else None\nx = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fates(["you fool", "you friend"], reject="mine:rude") == ["rude", "kept"]
    for path in ("mine:none", "nowhere_at_all:f", "mine", "mine:x", ""):
        with pytest.raises(ConfigError, match=r"filters\.reject"):
            load_plug(path)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "py3langid", None)
    with pytest.raises(ConfigError, match=r"pip install 'sao\[data\]'"):
        prompt_checks(FiltersConfig(languages=["en"]), "Prompt:")


# In a run


def engine(prompts: Iterator[str] | None = None, answer: str = "") -> ScriptedEngine:
    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        if "uses an assistant" in messages[-1].content:
            number = seed % 40
            return f"Prompt: how does thing {number} differ from thing {number + 1} and {number * 7} in detail?"
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
    funnel = {row["stage"]: row for row in summary["funnel"]}
    assert list(funnel)[:3] == ["prompts", "filtered", "responses"]
    kept = funnel["filtered"]["records"]
    assert kept <= 40
    assert kept + funnel["filtered"]["dropped"] == 150  # more than half are dropped: that is no error here
    folder = RunFolder(c, tmp_path, engine())
    training, held_out = [p.text for p in folder.asked(False)], [p.text for p in folder.asked(True)]
    assert len(set(training)) == len(training)
    assert not set(training) & set(held_out)
    assert funnel["responses"]["records"] == 2 * len(training)
    again = run(c, tmp_path, until="pairs", engine=engine())
    assert not again["worked"]


def test_other_filters_reuse_the_prompts(tmp_path: Path) -> None:
    one = engine()
    run(config(), tmp_path, until="prompts", engine=one)
    calls = one.calls
    summary = run(config(duplicates="none"), tmp_path, until="prompts", engine=one)
    assert one.calls == calls
    assert {row["stage"]: row["records"] for row in summary["funnel"]} == {"prompts": 150, "filtered": 150}


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DropError, match=r"no prompt is left.*too short.*section filters"):
        run(config(min_words=500), tmp_path, until="prompts", engine=engine())


def test_leaks_are_dropped_from_prompts_and_answers(tmp_path: Path) -> None:
    items = [f"how does thing {i} differ from thing {i + 1} and {i * 7} in detail?" for i in range(10)]
    other = "the quick brown fox jumps over the lazy dog near the river bank"
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps({"instruction": text}) + "\n" for text in (*items, other)))
    c = config(against=[str(tmp_path / "bench.jsonl")])
    summary = run(c, tmp_path / "run", until="pairs", engine=engine(answer="yes"))
    funnel = {row["stage"]: row for row in summary["funnel"]}
    leaks = [reason for reason in funnel["filtered"]["reasons"] if reason.startswith("leaks ")]
    assert leaks
    folder = RunFolder(c, tmp_path / "run", engine())
    assert not any(f"how does thing {i} differ" in p.text for p in folder.asked(False) for i in range(10))
    assert funnel["filtered_responses"]["dropped"] == 0
    quoting = engine(answer=f"as they say: {other}!")
    with pytest.raises(DropError, match=r"filtered_responses: \d+ of \d+ items were dropped.*leaks bench\.jsonl"):
        run(c, tmp_path / "leaky", until="pairs", engine=quoting)
    c = c.model_copy(update={"max_drop_share": 1.0})
    leaky = run(c, tmp_path / "leaky", until="pairs", engine=quoting)
    rows = {row["stage"]: row for row in leaky["funnel"]}
    assert rows["filtered_responses"]["records"] == 0
    assert next(iter(rows["filtered_responses"]["reasons"])).startswith("leaks ")
    folder = RunFolder(c, tmp_path / "leaky", engine())
    drop = next(iter(folder.kept_responses_stage.drops()))
    assert "item 10, overlap 1.00" in str(drop.detail)
    assert list(folder.kept_responses_stage.records(Response)) == []
