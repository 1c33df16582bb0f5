"""The built-in engine goes on from turns that have begun: a reply, a verdict, and the user's turn left
open."""

from typing import Any

import pytest
import torch

from sao.config import EngineConfig
from sao.engines import ChoiceRequest, Request, Sample, Sampling
from sao.engines.transformers import TransformersEngine
from sao.records import Message
from support.tiny_models import qwen3

CONFIG = EngineConfig(name="transformers", device="cpu", slots=4, threads=1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return TransformersEngine(qwen3(tmp_path_factory.mktemp("m") / "q"), CONFIG)


def greedy(model: Any, ids: list[int], ends: frozenset[int], most: int) -> list[int]:
    """Plain decoding, for comparison."""
    found: list[int] = []
    while len(found) < most and not (found and found[-1] in ends):
        with torch.no_grad():
            found.append(int(model(torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


def test_the_built_in_engine_goes_on_from_what_has_begun(engine: TransformersEngine) -> None:
    """Greedy samples of all kinds of request in one call, each as plain decoding has it."""
    chat, model, sampling = engine.chat, engine.model, Sampling(12, 0.0)
    requests, expected = [], {}
    for number in range(6):
        messages = (Message("system", f"talk to person {number}"),)
        asked = (Message("user", f"tell me {number}"),)
        requests += [
            Request(messages, (Sample(f"u{number}", number),), sampling, as_user=True),
            Request(asked, (Sample(f"p{number}", number),), sampling, prefill="Prompt:"),
            Request(asked, (Sample(f"r{number}", number),), sampling),
        ]
        expected[f"u{number}"] = (chat.user_turn_ids(messages), chat.user_ends[0])
        expected[f"p{number}"] = (chat.prompt_ids(asked, "Prompt:"), chat.end_ids)
        expected[f"r{number}"] = (chat.prompt_ids(asked), chat.end_ids)
    found = {c.id: c.token_ids for c in engine.generate(requests)}
    for name, (ids, ends) in expected.items():
        assert list(found[name] or ()) == greedy(model, ids, ends, 12), name


def test_any_special_token_ends_the_users_turn_only(engine: TransformersEngine) -> None:
    """Token 1 opens a turn: in a reply it is no end, in the user's turn it is."""
    reply, users_turn = engine.chat.ends(False), engine.chat.ends(True)
    assert 1 not in reply
    assert 1 in users_turn
    assert 2 in reply
    assert 2 in users_turn


def test_verdicts_after_a_prefill_are_the_models_own(engine: TransformersEngine) -> None:
    messages = (Message("user", "which is better?"),)
    request = ChoiceRequest("x", messages, ("1", "2"), "The answer is ")
    (found,) = engine.choice_logprobs([request])
    ids, wanted = engine.chat.choice_ids(messages, ("1", "2"), "The answer is ")
    with torch.no_grad():
        plain = engine.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert found.logprobs == pytest.approx(plain[list(wanted)].tolist(), abs=1e-4)
    (other,) = engine.choice_logprobs([ChoiceRequest("y", messages, ("1", "2"))])
    assert other.logprobs != found.logprobs
