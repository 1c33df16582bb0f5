"""Turns that have begun, through a server's /v1/completions: the same ids, texts and numbers as by the
built-in engine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sao.config import EngineConfig
from sao.engines import ChoiceRequest, Request, Sample, Sampling
from sao.engines.openai import OpenAIEngine
from sao.engines.transformers import TransformersEngine
from sao.errors import EngineError
from sao.models.chat import ChatTokenizer
from sao.records import Message
from support.errors import raises
from support.misbehaving_server import RefusalError, Server
from support.tiny_models import qwen3

Body = dict[str, Any]


class Completer:
    """A tiny model behind /v1/completions, as vLLM answers: ids in, text out, greedy. `bodies` are what it
    was sent."""

    def __init__(self, engine: TransformersEngine, counts: int = 0, ids_known: bool = True) -> None:
        self.engine, self.counts, self.ids_known = engine, counts, ids_known
        self.bodies: list[Body] = []

    def __call__(self, body: Body) -> Body:
        self.bodies.append(body)
        ids = body["prompt"]
        assert isinstance(ids, list)
        found: list[int] = []
        with torch.no_grad():
            logits = self.engine.model(torch.tensor([ids])).logits[0, -1]
            while len(found) < body["max_tokens"] and not (
                found and found[-1] in body.get("stop_token_ids", ())
            ):
                found.append(int(self.engine.model(torch.tensor([ids + found])).logits[0, -1].argmax()))
        ended = bool(found) and found[-1] in body.get("stop_token_ids", ())
        choice: Body = {"index": 0, "finish_reason": "stop" if ended else "length"}
        choice["text"] = self.engine.chat.decode(found[:-1] if ended else found)
        if body.get("logprobs"):
            top = logits.log_softmax(-1).topk(body["logprobs"])
            choice["logprobs"] = {
                "top_logprobs": [{self.name(i): v for v, i in zip(top.values.tolist(), top.indices.tolist())}]
            }
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": len(ids) + self.counts, "completion_tokens": len(found)},
        }

    def name(self, token: int) -> str:
        return f"token_id:{token}" if self.ids_known else str(self.engine.chat.tokenizer.decode([token]))


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    config = EngineConfig(name="transformers", device="cpu", slots=4, threads=1)
    return TransformersEngine(qwen3(tmp_path_factory.mktemp("m") / "q"), config)


def engine_of(built_in: TransformersEngine, server: Server) -> OpenAIEngine:
    config: Any = {"name": "openai", "openai": {"base_url": server.url, "model": "scripted"}}
    return OpenAIEngine(built_in.chat.name, EngineConfig(**config))


def test_texts_are_those_of_the_built_in_engine(built_in: TransformersEngine) -> None:
    completer = Completer(built_in)
    requests = [
        Request((Message("system", f"you talk to {i}"),), (Sample(f"u{i}", i),), Sampling(12, 0.0),
        as_user=True)
        for i in range(3)
    ] + [
        Request((Message("user", f"tell me {i}"),), (Sample(f"p{i}", i),), Sampling(12, 0.0),
        prefill="Prompt:")
        for i in range(3)
    ]  # fmt: skip
    expected = {c.id: (c.text.lstrip(" "), c.finish_reason) for c in built_in.generate(requests)}
    with Server(completes=completer) as server:
        engine = engine_of(built_in, server)
        assert engine.has_prefill
        completer.bodies.clear()
        found = {c.id: (c.text, c.finish_reason) for c in engine.generate(requests)}  # type: ignore[union-attr]
        engine.close()
    assert found == expected
    ends = {tuple(body["stop_token_ids"]) for body in completer.bodies}
    assert ends == {tuple(sorted(built_in.chat.user_ends[0])), tuple(sorted(built_in.chat.end_ids))}
    assert all("messages" not in body for body in completer.bodies)


@pytest.mark.parametrize("ids_known", [True, False])
def test_verdicts_are_those_of_the_built_in_engine(built_in: TransformersEngine, ids_known: bool) -> None:
    request = ChoiceRequest("x", (Message("user", "which is better?"),), ("1", "2"), "The answer is ")
    (expected,) = built_in.choice_logprobs([request])
    completer = Completer(built_in, ids_known=ids_known)
    with Server(completes=completer) as server:
        engine = engine_of(built_in, server)
        engine.skills.top_logprobs = 300  # as many as the tiny model has: all
        (found,) = engine.choice_logprobs([request])
        engine.close()
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)  # type: ignore[union-attr]


def test_a_server_that_changes_the_ids_cannot(built_in: TransformersEngine) -> None:
    """One more token than was sent: it adds a BOS of its own."""
    for completes in (Completer(built_in, counts=1), None, refuse):
        with Server(completes=completes) as server:
            engine = engine_of(built_in, server)
            assert not engine.has_prefill
            engine.close()


def test_words_that_end_a_users_turn_are_cut_off(built_in: TransformersEngine, tmp_path: Path) -> None:
    """vLLM gives back the ids of the stop text too."""
    model = qwen3(tmp_path / "words")
    (tmp_path / "words" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\nassistant: {% endfor %}"
    )
    chat = ChatTokenizer.load(model, EngineConfig())
    assert chat.user_ends[1] == ("assistant:",)
    ids = chat.tokenizer("name three tools\nassistant:", add_special_tokens=False).input_ids

    def answer(body: Body) -> Body:
        choice = {"index": 0, "finish_reason": "stop", "text": "name three tools", "token_ids": ids}
        return {"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"])}}

    with Server(completes=answer) as server:
        config: Any = {"name": "openai", "openai": {"base_url": server.url, "model": "scripted"}}
        engine = OpenAIEngine(model, EngineConfig(**config))
        engine.skills.token_ids = True
        (found,) = engine.generate([Request((), (Sample("a", 1),), Sampling(20, 0.0), as_user=True)])
        engine.close()
    assert found.text == "name three tools\n"  # type: ignore[union-attr]


def test_an_engine_that_is_asked_all_the_same_refuses() -> None:
    with Server() as server:
        config: Any = {"name": "openai", "openai": {"base_url": server.url}}
        engine = OpenAIEngine("scripted", EngineConfig(**config))
        with raises(EngineError, key="prefill"):
            list(engine.generate([Request((), (Sample("a", 1),), Sampling(20), as_user=True)]))
        with raises(EngineError, key="prefill"):
            list(engine.choice_logprobs([ChoiceRequest("x", (Message("user", "a"),), ("1", "2"), "so ")]))
        engine.close()


def test_a_name_on_a_server_may_end_in_gguf() -> None:
    """llama.cpp's server names its model by its file there."""
    with Server(model="/models/foo.gguf") as server:
        config: Any = {"name": "openai", "openai": {"base_url": server.url}}
        engine = OpenAIEngine("/models/foo.gguf", EngineConfig(**config))
        assert engine.model == "/models/foo.gguf"
        engine.close()


def refuse(body: Body) -> Body:
    raise RefusalError(400, "prompt must be a string")


def test_without_the_models_tokenizer_it_cannot() -> None:
    with Server(completes=lambda body: pytest.fail("asked")) as server:
        config: Any = {"name": "openai", "openai": {"base_url": server.url}}
        engine = OpenAIEngine("scripted", EngineConfig(**config))
        assert not engine.has_prefill
        engine.close()
