"""Log-probabilities of texts after a text: equal to plain transformers, alone and beside others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sao.config import EngineConfig
from sao.engines import ContinuationEngine, ContinuationRequest, Continuations, Failure
from sao.engines.continuations import _score, _Tree
from sao.engines.continuous import Continuous
from sao.engines.scripted import ScriptedEngine
from sao.engines.transformers import TransformersEngine
from sao.records import Message
from support import tiny_models
from support.checks import all_of

CONFIG = EngineConfig(device="cpu", slots=8, threads=1)
ENDINGS = (" the first answer", " tools", " a second one, or the better answer of a baker?", " world")
CONTEXTS = ("Name three", "Hello", "Which is better: " + "yes or no, " * 12 + "the", "")


def requests() -> list[ContinuationRequest]:
    return [ContinuationRequest(str(i), text, ENDINGS) for i, text in enumerate(CONTEXTS)]


def plain(engine: TransformersEngine, request: ContinuationRequest) -> list[float]:
    """Each continuation in a forward pass of its own."""
    context, endings = engine.chat.continuation_ids(request.context, request.continuations)
    sums = []
    for ending in endings:
        with torch.inference_mode():
            logits = engine.model(input_ids=torch.tensor([context + ending])).logits[0]
        logprobs = logits.float().log_softmax(-1)
        sums.append(sum(float(logprobs[len(context) - 1 + i, token]) for i, token in enumerate(ending)))
    return sums


@pytest.mark.parametrize(
    "build", [tiny_models.llama, tiny_models.gemma2, tiny_models.qwen3, tiny_models.mistral]
)
def test_the_shared_context_changes_no_number(tmp_path: Path, build: object) -> None:
    engine = TransformersEngine(build(tmp_path), CONFIG)  # type: ignore[operator]
    assert isinstance(engine, ContinuationEngine)
    found = {one.id: one for one in all_of(Continuations, engine.continuation_logprobs(requests()))}
    for request in requests():
        assert found[request.id].logprobs == pytest.approx(plain(engine, request), abs=1e-3)
    alone = [next(iter(engine.continuation_logprobs([request]))) for request in reversed(requests())]
    assert alone == [found[request.id] for request in reversed(requests())]  # to the last bit
    # As on a GPU: several in one pass.
    trees = [_Tree(r.id, *engine.chat.continuation_ids(r.context, r.continuations)) for r in requests()]
    assert isinstance(engine.batches, Continuous)
    for one in _score(engine.batches.network, trees):
        assert one.logprobs == pytest.approx(found[one.id].logprobs, abs=1e-3)


def test_the_context_is_encoded_as_the_tokenizer_does_it_once(tmp_path: Path) -> None:
    engine = TransformersEngine(tiny_models.llama(tmp_path), CONFIG)
    context, endings = engine.chat.continuation_ids("Hello", [" world"])
    whole = engine.chat.tokenizer("Hello world").input_ids
    assert context + endings[0] == whole
    assert engine.chat.continuation_ids("", ["a"])[0] != []


def test_what_does_not_fit_fails_and_the_others_go_on(tmp_path: Path) -> None:
    engine = TransformersEngine(tiny_models.llama(tmp_path), CONFIG)
    asked = [
        ContinuationRequest("long", "word " * 600, (" a", " b")),
        ContinuationRequest("empty", "Hello", (" a", "")),
        ContinuationRequest("good", "Hello", (" a", " b")),
    ]
    found = {one.id: one for one in engine.continuation_logprobs(asked)}
    assert found["long"] == Failure("long", "longer than the model's context")
    assert isinstance(found["empty"], Failure)
    assert isinstance(found["good"], Continuations)


def test_the_scripted_engine_weighs_texts_too() -> None:
    engine = ScriptedEngine()
    assert isinstance(engine, ContinuationEngine)
    (found,) = engine.continuation_logprobs([ContinuationRequest("1", "a", (" b", " long one"))])
    assert all(logprob < 0 for logprob in found.logprobs)


@pytest.mark.slow
def test_the_numbers_are_those_of_lm_eval(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from sao.evaluation.harness import language_model, quiet

    folder = tiny_models.llama(tmp_path)
    engine, lm = TransformersEngine(folder, CONFIG), language_model(folder, CONFIG, None, 4)
    pairs = [(request.context, ending) for request in requests()[:3] for ending in ENDINGS]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    with quiet():
        theirs = [logprob for logprob, _ in lm.loglikelihood(asked)]
    ours = all_of(Continuations, engine.continuation_logprobs(requests()[:3]))
    assert [logprob for one in ours for logprob in one.logprobs] == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("build", [tiny_models.llama, tiny_models.qwen3])
def test_replies_in_a_chat_are_read_with_their_end_of_turn(tmp_path: Path, build: object) -> None:
    engine = TransformersEngine(build(tmp_path), CONFIG)  # type: ignore[operator]
    asked = ContinuationRequest(
        "1", (Message("user", "Name three tools"),), ("yes or no", "the first answer")
    )
    (found,) = all_of(Continuations, engine.continuation_logprobs([asked]))
    assert found.logprobs == pytest.approx(plain(engine, asked), abs=1e-3)
    replies = [engine.chat.reply_ids(asked.context, text) for text in asked.continuations]  # type: ignore[arg-type]
    assert found.tokens == tuple(map(len, replies))
    assert all(reply[-1] in engine.chat.end_ids for reply in replies)
