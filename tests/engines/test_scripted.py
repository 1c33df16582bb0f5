"""The scripted engine's default rule: which marker it obeys, and that the recipe self-made runs with it."""

import json
from pathlib import Path

import pytest

from sao.cli import main
from sao.config import PromptsConfig
from sao.data.similarity import find_duplicates
from sao.engines import Completion, Sampling, read_marked
from sao.engines.scripted import ScriptedEngine, default_reply
from sao.records import Message, Prompt
from sao.stages.prompts import read_prompt, read_turns, write_prompts
from sao.store.files import read_jsonl
from sao.templates import fill, load_template
from support.made_up import people

PERSON = "Mends clocks in a small town."
RECORDED = [
    "Prompt: Explain 9f85e2 in 195 words.",
    "Prompt: Explain 55e2ec in 213 words.",
    "Answer ca28e36e54b5 word word word word word word ",
    "Answer cc5c217bfdbb word ",
]


def reply(text: str, seed: int = 1) -> Completion:
    return Completion("0" * 16, default_reply((Message("user", text),), seed, Sampling(99)), None, "stop")


def test_personas_differ_by_seed_and_are_the_same_again() -> None:
    chats = [
        fill(load_template("persona", ("traits",)), traits="plays chess"),
        fill(load_template("persona_related", ("persona", "relation")), persona=PERSON, relation="colleague"),
    ]
    found = [read_marked(reply(chat, seed), "Persona:") for chat in chats for seed in range(1000)]
    assert {reason for _, reason in found} == {""}
    texts = [text for text, _ in found]
    assert find_duplicates(lambda: iter(texts), 0.7).earlier.tolist() == [-1] * 2000
    assert found == [read_marked(reply(chat, seed), "Persona:") for chat in chats for seed in range(1000)]


@pytest.mark.parametrize(
    "name", ["prompt", "prompt_instruct", "prompt_code", "prompt_write", "prompt_reason"]
)
def test_templates_of_one_request_get_one(name: str) -> None:
    (text,), reason = read_prompt(reply(fill(load_template(name, ("persona",)), persona=PERSON)), "Prompt:")
    assert reason == ""
    assert text.startswith("Explain ")
    assert "\n" not in text


def test_the_template_of_conversations_gets_three_turns() -> None:
    chat = fill(load_template("prompt_turns", ("persona",)), persona=PERSON)
    found = [read_turns(reply(chat, seed), "Prompt:") for seed in range(100)]
    assert {(len(turns), reason) for turns, reason in found} == {(3, "")}
    assert len({tuple(turns) for turns, _ in found}) == 100


def test_another_marker_is_obeyed_and_one_in_a_persona_is_not() -> None:
    said = "Ask as this person does: {persona}\n\nBegin with {marker}."
    assert reply(said.format(persona=PERSON, marker='"Request:"')).text.startswith("Request: ")
    quoting = 'Says "Persona:" and "Reply:" all day.'
    template = load_template("prompt", ("persona",))
    assert read_prompt(reply(fill(template, persona=quoting)), "Prompt:")[1] == ""


def test_all_other_replies_are_as_ever() -> None:
    """Recorded before markers were read: figures of other tests and of the benchmarks hang on these."""
    template = fill(load_template("prompt", ("persona",)), persona=PERSON)
    chats = [template, "guess what a person may ask you", "Explain abc in 3 words.", "What is it?"]
    assert [reply(chat, 7).text for chat in chats] == RECORDED


def test_the_recipe_self_made_runs_to_its_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--engine.name", "scripted", "--personas.n", "60", "--personas.held_out", "4"]
    assert main(["pairs", "self-made", *small, "--out", str(tmp_path), "--json"]) == 0
    funnel = {row["stage"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["funnel"]}
    assert funnel["personas"]["records"] == 64
    assert (funnel["prompts"]["records"], funnel["prompts"]["dropped"]) == (64, 0)
    assert funnel["filtered"]["dropped"] == 0
    assert funnel["pairs"]["records"] > 0
    (written,) = tmp_path.glob("round-1/prompts-*/records.jsonl")
    turns = [1 + len(row.get("earlier") or ()) for row in read_jsonl(written)]
    assert set(turns) == {1, 3}


def test_the_scripted_engine_leaves_a_prefill_out_of_its_text() -> None:
    config = PromptsConfig(prefill=True)
    found = list(write_prompts(people(5), ScriptedEngine(), config, "k", set()))
    assert all(isinstance(p, Prompt) and p.text.startswith("Explain ") for p in found)
