"""The built-in engine: samples that depend on their request alone, and numbers equal to plain
transformers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from sao.config import EngineConfig
from sao.engines import ChoiceRequest, Completion, Request, Sample, Sampling
from sao.engines.cache_buckets import Network, draw, uniforms
from sao.engines.transformers import TransformersEngine, bucket_size, padded_length, prefill_rows
from sao.errors import EngineError, ModelError
from sao.records import Message
from support import tiny_models
from support.errors import raises

CONFIG = EngineConfig(device="cpu", slots=8, threads=1)
BUILDERS = {
    "llama": tiny_models.llama,
    "gemma2": tiny_models.gemma2,
    "qwen3": tiny_models.qwen3,
    "mistral": tiny_models.mistral,
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TransformersEngine]:
    folder = tmp_path_factory.mktemp("models")
    return {name: TransformersEngine(build(folder / name), CONFIG) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def engine(engines: dict[str, TransformersEngine]) -> TransformersEngine:
    return engines["llama"]


def chat(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def request(
    index: int, n: int = 2, max_tokens: int = 40, length: int | None = None, **sampling: object
) -> Request:
    words = "hello world " * (index % 7 if length is None else length)
    samples = tuple(Sample(f"{index}.{i}", 1000 * index + i) for i in range(n))
    return Request(chat(f"{words}{index}"), samples, Sampling(max_tokens, **sampling))  # type: ignore[arg-type]


def run(engine: TransformersEngine, requests: Iterable[Request]) -> dict[str, Completion]:
    completions = list(engine.generate(requests))
    by_id = {completion.id: completion for completion in completions}
    assert len(by_id) == len(completions)
    return by_id


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sample_is_the_same_alone_in_company_and_after_a_restart(
    engines: dict[str, TransformersEngine], name: str, threads: int
) -> None:
    engine = engines[name]
    mixed = [request(i, max_tokens=20 + 7 * (i % 11), top_p=[1.0, 0.8][i % 2]) for i in range(40)]
    torch.set_num_threads(threads)
    try:
        together = run(engine, mixed)
        assert len(together) == 80
        assert run(engine, reversed(mixed)) == together
        for i in (0, 5, 13, 21):
            alone = run(engine, [mixed[i]])
            assert alone == {key: together[key] for key in alone}
        left = [Request(r.messages, r.samples[1:], r.sampling) for r in mixed[3:30:2]]
        rest = run(engine, left)
        assert rest == {key: together[key] for key in rest}
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", BUILDERS)
def test_greedy_equals_generate(engines: dict[str, TransformersEngine], name: str) -> None:
    """Over several buckets (64, 128, 256) and, for Gemma-2 and Mistral, far beyond the window of 16."""
    engine = engines[name]
    requests = [request(i, n=1, max_tokens=130, temperature=0.0) for i in range(6)]
    ours = run(engine, requests)
    model: Any = engine.network.model
    lengths = set()
    for i, each in enumerate(requests):
        ids = engine.chat.prompt_ids(each.messages)
        inputs = torch.tensor([ids])
        whole = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=130, do_sample=False,
            use_cache=True,
            eos_token_id=sorted(engine.chat.end_ids), pad_token_id=engine.chat.pad_id,
        )  # fmt: skip
        assert ours[f"{i}.0"].token_ids == tuple(whole[0, len(ids) :].tolist())
        lengths.add(len(ids) + len(ours[f"{i}.0"].token_ids or ()))
    assert max(lengths) > 128


@pytest.mark.parametrize("name", BUILDERS)
def test_choice_logprobs_equal_a_plain_forward(engines: dict[str, TransformersEngine], name: str) -> None:
    engine = engines[name]
    requests = [ChoiceRequest(str(i), chat("hello " * i + "1 or 2?"), ("1", "2", "yes")) for i in range(40)]
    found = {choices.id: choices.logprobs for choices in engine.choice_logprobs(requests)}
    assert len(found) == 40
    for each in requests:
        ids = torch.tensor([engine.chat.prompt_ids(each.messages)])
        with torch.inference_mode():
            logprobs = engine.network.model(ids).logits[0, -1].float().log_softmax(-1)
        expected = logprobs[list(engine.chat.choice_ids(each.messages, each.choices)[1])].tolist()
        assert found[each.id] == pytest.approx(expected, abs=1e-5)
        (alone,) = engine.choice_logprobs([each])
        assert alone.logprobs == found[each.id]


@pytest.mark.parametrize("name", BUILDERS)
def test_verdicts_of_a_model_in_bfloat16_come_from_logits_in_float32(tmp_path: Path, name: str) -> None:
    engine = TransformersEngine(BUILDERS[name](tmp_path), CONFIG.model_copy(update={"dtype": "bfloat16"}))
    model: Any = engine.network.model
    softcap = model.config.get_text_config().to_dict().get("final_logit_softcapping")
    ids = np.array([engine.chat.prompt_ids(chat(f"{i} or {i + 1}?")) for i in range(8)])
    found = engine.network.last_logits(ids, np.full(8, ids.shape[1] - 1))
    with torch.inference_mode():
        hidden = model.model(torch.from_numpy(ids)).last_hidden_state[:, -1].double()
        plain = model(torch.from_numpy(ids)).logits[:, -1]
        exact = hidden @ model.get_output_embeddings().weight.double().T
        exact = softcap * torch.tanh(exact / softcap) if softcap else exact
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-5
    assert (plain - exact).abs().max() > 1e-4, "the model's own logits would have passed"
    with torch.inference_mode(), engine.network.float32_head():  # as continuations are read
        assert (engine.network.forward(input_ids=torch.from_numpy(ids))[:, -1] - exact).abs().max() < 1e-5
    assert engine.network.forward(input_ids=torch.from_numpy(ids)).dtype == torch.bfloat16


def test_max_tokens_end_tokens_and_reasons(engines: dict[str, TransformersEngine]) -> None:
    """Both of Gemma's end tokens end a sample, stay in its ids and are not in its text."""
    engine = engines["gemma2"]
    assert engine.chat.end_ids == {1, 4}
    completions = run(engine, [request(i, n=8, max_tokens=60, temperature=2.0) for i in range(60)]).values()
    last: Counter[int] = Counter()
    for each in completions:
        ids = each.token_ids or ()
        ends = [token in (1, 4) for token in ids]
        assert not any(ends[:-1])
        assert each.finish_reason == ("stop" if ends[-1] else "length")
        assert len(ids) == 60 or ends[-1]
        assert each.text == engine.chat.decode(ids)
        last[ids[-1]] += 1
    assert last[1] > 0 and last[4] > 0
    assert any(each.finish_reason == "length" for each in completions)


def test_stop_strings_cut_the_text(engine: TransformersEngine) -> None:
    free = run(engine, [request(i, n=4, max_tokens=100) for i in range(10)])
    stopped = run(engine, [request(i, n=4, max_tokens=100, stop=("e", "o w")) for i in range(10)])
    cuts = 0
    for key, each in stopped.items():
        text = free[key].text
        places = [text.find(stop) for stop in ("e", "o w") if stop in text]
        ids = each.token_ids or ()
        assert ids == (free[key].token_ids or ())[: len(ids)]
        assert each.text == text[: min(places)] if places else each == free[key]
        if places:
            cuts += 1
            assert each.finish_reason == "stop"
            decoded = engine.chat.decode(ids[:-1])
            assert "e" not in decoded and "o w" not in decoded
    assert cuts > 5


def test_prompt_longer_than_the_context(tmp_path: Path) -> None:
    engine = TransformersEngine(tiny_models.llama(tmp_path, max_position_embeddings=64), CONFIG)
    room = 64 - len(engine.chat.prompt_ids(request(3, length=2).messages))
    completions = run(
        engine,
        [request(0, length=40), request(1), request(2, length=40), request(3, length=2, max_tokens=999)],
    )
    for key in ("0.0", "0.1", "2.0", "2.1"):
        assert completions[key] == Completion(key, "", (), "length")
    assert len(completions["1.0"].token_ids or ()) > 0
    assert max(len(completions[key].token_ids or ()) for key in ("3.0", "3.1")) <= room
    (choices,) = engine.choice_logprobs([ChoiceRequest("a", chat("hello world " * 40), ("1", "2"))])
    assert all(map(math.isnan, choices.logprobs))


def test_overlong_and_empty_requests_among_many(engine: TransformersEngine) -> None:
    """None of them stops the others, wherever they stand; a request without samples gives nothing."""
    requests = [
        request(i, n=i % 3, max_tokens=5, length={7: 300, 8: 60, 9: 300}.get(i % 10, i % 5))
        for i in range(300)
    ]
    completions = run(engine, requests)
    assert sorted(completions) == sorted(sample.id for each in requests for sample in each.samples)
    empty = {key for key, each in completions.items() if each.token_ids == ()}
    assert empty == {
        sample.id for i, each in enumerate(requests) if i % 10 in (7, 9) for sample in each.samples
    }
    assert list(engine.generate([request(i, n=0) for i in range(200)])) == []


def test_full_gpu_names_the_way_out(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(engine.network, "forward", full)
    with raises(EngineError, key="engine.slots", match=r"try engine.slots=4 \(no memory\)"):
        list(engine.generate([request(0)]))
    with raises(EngineError, key="engine.slots", match=r"try engine.slots=4"):
        list(engine.choice_logprobs([ChoiceRequest("a", chat("b"), ("1", "2"))]))


def test_reads_lazily_and_streams(engine: TransformersEngine) -> None:
    """The window is four times the eight slots, so unfinished requests are bounded; short samples come
    early."""
    read = 0

    def source() -> Iterator[Request]:
        nonlocal read
        for i in range(300):
            read += 1
            yield request(i, n=1, max_tokens=4, length=2)

    for given, _ in enumerate(engine.generate(source()), 1):
        assert read - given <= 4 * 8 + 8 + 2 * 16
    assert read == given == 300


def test_short_samples_come_before_long_ones(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of twenty requests wants 100 tokens, the others 3; no token ends a sample early."""
    monkeypatch.setattr(engine.network, "ends", np.zeros_like(engine.network.ends))
    requests = [request(i, n=1, max_tokens=100 if i == 0 else 3) for i in range(20)]
    order = [completion.id for completion in engine.generate(requests)]
    assert order[-1] == "0.0"
    assert sorted(order) == sorted(f"{i}.0" for i in range(20))


def test_samples_follow_the_softmax(engine: TransformersEngine) -> None:
    """First tokens of 4,000 samples against the model's probabilities at temperature 0.7: chi-square."""
    messages = chat("hello")
    samples = tuple(Sample(str(i), i) for i in range(4000))
    (ids,) = [engine.chat.prompt_ids(messages)]
    with torch.inference_mode():
        logits = engine.network.model(torch.tensor([ids])).logits[0, -1].double() / 0.7
    expected = 4000 * torch.softmax(logits, -1).numpy()
    drawn = [(c.token_ids or ())[0] for c in engine.generate([Request(messages, samples, Sampling(1, 0.7))])]
    counts = np.bincount(drawn, minlength=len(expected))
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    chi_square, freedom = float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert freedom > 5
    assert abs(chi_square - freedom) < 3.3 * math.sqrt(2 * freedom)


def test_draw_worked_by_hand() -> None:
    """p = 0.5, 0.3, 0.15, 0.05 in the order of ids 2, 0, 3, 1; nucleus 0.7 keeps the first two: 0.625 and
    0.375."""
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log()

    def one(uniform: float, temperature: float = 1.0, top_p: float = 1.0) -> int:
        row = (torch.tensor([value], dtype=torch.float64) for value in (temperature, top_p, uniform))
        return int(draw(logits[None], *row))

    assert [one(u) for u in (0.0, 0.29, 0.31, 0.34, 0.36, 0.84, 0.86, 0.9999)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [one(u, top_p=0.7) for u in (0.0, 0.62, 0.63, 0.9999)] == [2, 2, 0, 0]
    assert [one(u, top_p=0.4) for u in (0.0, 0.9999)] == [2, 2]
    assert [one(u, temperature=0.0) for u in (0.0, 0.9999)] == [2, 2]
    # temperature 0.5 squares: 0.25, 0.09, 0.0225, 0.0025 of 0.365, so id 0 ends at 0.2466 and id 2 at 0.9384
    assert [one(u, temperature=0.5) for u in (0.246, 0.247, 0.2535, 0.938, 0.939)] == [0, 1, 2, 2, 3]


def test_draw_takes_settings_row_by_row() -> None:
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log().expand(4, 4)
    settings = ([1.0, 1.0, 0.0, 0.5], [1.0, 0.7, 1.0, 1.0], [0.31, 0.63, 0.1, 0.939])
    assert draw(logits, *(torch.tensor(s, dtype=torch.float64) for s in settings)).tolist() == [1, 0, 2, 3]


def test_uniforms_are_splitmix64() -> None:
    """Seed 0 is hashed to the published first output of SplitMix64; from there its stream is followed step by
    step."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def splitmix64(state: int) -> int:
        x = (state + golden) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert splitmix64(0) == 0xE220A8397B1DCDAF
    expected = [(splitmix64((0xE220A8397B1DCDAF + k * golden) & mask) >> 11) / 2**53 for k in range(3)]
    assert uniforms(np.zeros(3, np.uint64), np.arange(3)).tolist() == expected


def test_uniforms_are_even_and_unrelated() -> None:
    grid = uniforms(np.repeat(np.arange(100, dtype=np.uint64), 100), np.tile(np.arange(100), 100))
    assert len(set(grid.tolist())) == 10_000
    assert grid.min() >= 0
    assert grid.max() < 1
    assert abs(grid.mean() - 0.5) < 0.01
    assert abs(grid.var() - 1 / 12) < 0.002
    by_seed = grid.reshape(100, 100)
    assert abs(np.corrcoef(by_seed[:-1].ravel(), by_seed[1:].ravel())[0, 1]) < 0.04
    assert abs(np.corrcoef(by_seed[:, :-1].ravel(), by_seed[:, 1:].ravel())[0, 1]) < 0.04


def test_shapes_follow_from_the_length_alone() -> None:
    assert [padded_length(n) for n in (1, 16, 17, 64, 65, 257, 513)] == [16, 16, 32, 64, 80, 288, 576]
    assert [prefill_rows(n) for n in (16, 256, 512, 4096, 8192)] == [16, 16, 8, 1, 1]
    assert [bucket_size(n) for n in (1, 64, 65, 256, 257)] == [64, 64, 128, 256, 512]
    assert all(bucket_size(n) == bucket_size(padded_length(n)) for n in range(1, 3000))


def test_models_that_keep_more_than_keys_and_values_are_refused(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1))
    with raises(ModelError, key="architecture"):
        Network(mamba, engine.chat, 8)
    kinds = ["linear_attention", "full_attention"]
    monkeypatch.setattr(engine.network.model.config, "layer_types", kinds, raising=False)
    with raises(ModelError, key="architecture", match="linear_attention"):
        Network(engine.network.model, engine.chat, 8)


def test_the_first_requests_are_served_before_all_others(engine: TransformersEngine) -> None:
    """Short prompts among the first, a flood of long ones behind them: full buckets of those do not keep the
    first ones waiting."""
    requests = [request(i, n=1, max_tokens=30, length=1 if i % 2 and i < 32 else 20) for i in range(400)]
    done = [int(completion.id.split(".")[0]) for completion in engine.generate(requests)]
    assert sorted(done) == list(range(400))
    assert max(done.index(i) for i in range(32)) < 150
