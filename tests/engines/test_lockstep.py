"""The engine's other way, for models whose caches cannot be cut by text: the same promises as the usual
one."""

from __future__ import annotations

import pytest
import torch

from sao.config import EngineConfig
from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    ContinuationRequest,
    Failure,
    Request,
    Sample,
    Sampling,
)
from sao.engines.lockstep import Lockstep, equal_lengths
from sao.engines.transformers import TransformersEngine
from sao.records import Message
from support import families

CONFIG = EngineConfig(device="cpu", slots=8, threads=1)


@pytest.fixture(scope="module", params=["qwen3_next", "lfm2"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """Linear attention with experts, and convolutions; in both also layers of plain attention."""
    return TransformersEngine(families.build(request.param, tmp_path_factory.mktemp("model")), CONFIG)


def request(i: int, n: int = 2, tokens: int = 12, stop: tuple[str, ...] = (), heat: float = 1.0) -> Request:
    messages = (Message("user", "hello world " * (i % 3) + chr(97 + i)),)
    samples = tuple(Sample(f"{i}.{k}", 100 * i + k) for k in range(n))
    return Request(messages, samples, Sampling(tokens, heat, stop=stop))


def run(engine: TransformersEngine, requests: list[Request]) -> dict[str, Completion]:
    return {done.id: done for done in engine.generate(iter(requests))}


def test_a_sample_is_the_same_alone_and_beside_others(engine: TransformersEngine) -> None:
    assert isinstance(engine.batches, Lockstep)
    requests = [request(i) for i in range(12)]
    together = run(engine, requests)
    assert len(together) == 24
    assert len({done.token_ids for done in together.values()}) > 20
    assert run(engine, requests[::-1]) == together
    for i in (0, 5):
        assert run(engine, [requests[i]]) == {key: together[key] for key in (f"{i}.0", f"{i}.1")}
        assert run(engine, [request(i, n=1)]) == {f"{i}.0": together[f"{i}.0"]}


def test_samples_end_by_length_or_a_stop_text(engine: TransformersEngine) -> None:
    """In one batch, each sample by its own rule."""
    free = run(engine, [request(3, tokens=20)])["3.0"]
    assert free.token_ids is not None
    stop = next(c for c in free.text[2:] if c.isalnum())
    found = run(engine, [request(3, tokens=20, stop=(stop,)), request(6, tokens=5), request(9, tokens=20)])
    assert found["3.0"].text == free.text[: free.text.index(stop)]
    assert found["3.0"].finish_reason == "stop"
    assert len(found["6.0"].token_ids or ()) <= 5
    assert found["9.1"] == run(engine, [request(9, tokens=20)])["9.1"]


def test_an_end_of_turn_ends_a_sample(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    free = run(engine, [request(4, tokens=20)])["4.0"]
    assert free.token_ids is not None
    end = free.token_ids[3]
    monkeypatch.setattr(engine.chat, "end_ids", frozenset({end}))
    found = run(engine, [request(4, tokens=20)])["4.0"]
    assert found.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    assert found.finish_reason == "stop"
    assert found.text == engine.chat.decode(found.token_ids[:-1])


@torch.inference_mode()
def test_choices_and_continuations_are_those_of_a_plain_forward_pass(engine: TransformersEngine) -> None:
    asked = [ChoiceRequest(str(i), request(i).messages, ("1", "2")) for i in range(9)]
    found = {one.id: one for one in engine.choice_logprobs(iter(asked))}
    for one in asked:
        ids, choices = engine.chat.choice_ids(one.messages, one.choices)
        logps = engine.model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
        assert found[one.id].logprobs == pytest.approx(logps[list(choices)].tolist(), abs=1e-5)
    given = ContinuationRequest("c", "hello", (" world", " a baker"))
    (read,) = engine.continuation_logprobs([given])
    assert not isinstance(read, Failure)
    context, endings = engine.chat.continuation_ids(given.context, given.continuations)
    for ending, total in zip(endings, read.logprobs, strict=True):
        logits = engine.model(torch.tensor([context + ending]), use_cache=False).logits[0].log_softmax(-1)
        expected = sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(ending))
        assert total == pytest.approx(expected, abs=1e-4)


def test_a_prompt_as_long_as_the_context_gives_nothing(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = len(engine.chat.prompt_ids(request(2).messages))
    monkeypatch.setattr(engine.batches, "context", longest)
    found = run(engine, [request(2), request(0)])
    assert (found["2.0"].text, found["2.0"].token_ids, found["2.0"].finish_reason) == ("", (), "length")
    assert 1 <= len(found["0.0"].token_ids or ()) <= 12
    more = (Message("assistant", "b"), Message("user", "c"))
    asked = [ChoiceRequest(str(i), (*request(i).messages, *more), ("1", "2")) for i in (0, 2)]
    (long,) = [one for one in engine.choice_logprobs(asked) if one.id == "2"]
    assert all(logp != logp for logp in long.logprobs)
    assert isinstance(long, Choices)
    (failed,) = engine.continuation_logprobs([ContinuationRequest("c", "hello " * longest, ("a",))])
    assert isinstance(failed, Failure)


def test_requests_that_come_one_by_one_give_the_same(engine: TransformersEngine) -> None:
    requests = [request(i) for i in range(6)]
    slowly = [one for pair in zip(requests, [None] * 6, strict=True) for one in pair]
    assert {one.id: one for one in engine.generate(slowly)} == run(engine, requests)


def test_equal_lengths_takes_the_commonest_of_what_it_sees() -> None:
    words = ["a", "bb", "cc", "d", "ee", "fff", "gg"]
    assert list(equal_lengths(words, len, 2, 5)) == [["bb", "cc"], ["a", "d"], ["ee", "gg"], ["fff"]]
    assert list(equal_lengths([], len, 2, 5)) == []
    paused = ["a", "b", None, "cc", None, None, "d"]
    assert list(equal_lengths(paused, len, 2, 5)) == [["a", "b"], ["cc"], ["d"]]
    seen: list[int] = []
    source = (seen.append(i) or "a" for i in range(100))  # type: ignore[func-returns-value]
    next(equal_lengths(source, len, 4, 8))
    assert len(seen) == 8
