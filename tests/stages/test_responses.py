"""Answers: each with its own seed, empty ones dropped."""

from sao.config import ResponsesConfig
from sao.engines.scripted import ScriptedEngine
from sao.records import Drop, Message, Prompt
from sao.stages.responses import answer_prompts


def test_each_answer_has_its_own_seed_and_empty_ones_drop() -> None:
    seeds: list[int] = []

    def reply(messages: tuple[Message, ...], seed: int, sampling: object) -> str:
        seeds.append(seed)
        return "" if len(seeds) == 3 else f"answer {seed}"

    prompts = [
        Prompt(id="a", row=0, persona_id="x", text="hi"),
        Prompt(id="b", row=2, persona_id="y", text="ho"),
    ]
    out = list(answer_prompts(prompts, ScriptedEngine(reply=reply), ResponsesConfig(), "key", set()))
    assert len(set(seeds)) == 4
    assert [r.row for r in out] == [0, 1, 2, 3]
    assert isinstance(out[2], Drop)
    assert out[2].reason == "empty"
