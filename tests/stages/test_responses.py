"""Answers: each with its own seed, empty ones dropped."""

from collections.abc import Iterable, Iterator
from typing import Any

from sao.config import ResponsesConfig
from sao.engines import Completion
from sao.engines.scripted import ScriptedEngine
from sao.records import Drop, Message, Prompt, Response, from_dict, to_dict
from sao.stages.responses import answer_prompts, read_response


def test_reasoning_is_kept_beside_the_answer_and_is_none_by_itself() -> None:
    prompt = Prompt(id="a", row=0, persona_id="x", text="hi")
    whole = read_response(Completion("1", "4", (5, 6), "stop", "two and two"), prompt, 0, 2)
    assert isinstance(whole, Response)
    assert (whole.text, whole.reasoning, whole.token_ids) == ("4", "two and two", (5, 6))
    assert from_dict(Response, to_dict(whole)) == whole
    plain = read_response(Completion("2", "4", None, "stop"), prompt, 1, 2)
    assert isinstance(plain, Response)
    assert "reasoning" not in to_dict(plain)
    for finish in ("length", "stop"):
        lost = read_response(Completion("3", "", (5,), finish, "two and"), prompt, 1, 2)
        assert isinstance(lost, Drop)
        assert lost.reason == "nothing but reasoning"


def test_reasoning_has_tokens_of_its_own() -> None:
    limits = []

    class Asked(ScriptedEngine):
        def generate(self, requests: Iterable[Any]) -> Iterator[Completion]:
            for request in requests:
                limits.append(request.sampling.max_tokens)
                yield from (Completion(sample.id, "4", None, "stop") for sample in request.samples)

    prompts = [Prompt(id="a", row=0, persona_id="x", text="hi")]
    config, engine = ResponsesConfig(max_tokens=100), Asked(reply=lambda *_: "")
    list(answer_prompts(prompts, engine, config, "key", set(), reasoning_tokens=500))
    assert limits == [600]


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
