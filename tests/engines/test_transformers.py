"""The built-in engine: samples that depend on their request alone, and numbers equal to plain
transformers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from sao.config import EngineConfig
from sao.engines import ChoiceRequest, Completion, Request, Sample, Sampling
from sao.engines import network as network_module
from sao.engines.caches import Group, Pass, Prefixes, Text, group_size
from sao.engines.continuous import Continuous
from sao.engines.lockstep import Lockstep
from sao.engines.network import Network, float32_head, rows_multiple
from sao.engines.sampling import draw, uniforms
from sao.engines.transformers import TransformersEngine
from sao.errors import EngineError, ModelError
from sao.models.chat import ChatTokenizer
from sao.models.load import load_model
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


def usual(engine: TransformersEngine) -> Continuous:
    """How the engine batches these models."""
    assert isinstance(engine.batches, Continuous)
    return engine.batches


def continuous(folder: str) -> Continuous:
    """The same for a folder; raises ModelError where it does not serve."""
    return Continuous(load_model(folder, CONFIG), ChatTokenizer.load(folder, CONFIG), 8, exact=True)


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


def test_requests_that_come_one_by_one_give_the_same(engine: TransformersEngine) -> None:
    """None says that there is no request for now; the engine goes on with what it has."""
    requests = [request(i, max_tokens=20) for i in range(12)]

    def slowly() -> Iterator[Request | None]:
        for number, one in enumerate(requests):
            yield one
            yield from [None] * (1 + number % 3)

    found = {one.id: one for one in engine.generate(slowly())}
    assert found == run(engine, requests)


@pytest.mark.parametrize("name", BUILDERS)
def test_greedy_equals_generate(engines: dict[str, TransformersEngine], name: str) -> None:
    """Over several groups (64, 96, 128, 192) and, for Gemma-2 and Mistral, far beyond the window of 16."""
    engine = engines[name]
    requests = [request(i, n=1, max_tokens=130, temperature=0.0) for i in range(6)]
    ours = run(engine, requests)
    model: Any = engine.model
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
            logprobs = engine.model(ids).logits[0, -1].float().log_softmax(-1)
        expected = logprobs[list(engine.chat.choice_ids(each.messages, each.choices)[1])].tolist()
        assert found[each.id] == pytest.approx(expected, abs=1e-5)
        (alone,) = engine.choice_logprobs([each])
        assert alone.logprobs == found[each.id]


@pytest.mark.parametrize("name", BUILDERS)
def test_verdicts_of_a_model_in_bfloat16_come_from_logits_in_float32(tmp_path: Path, name: str) -> None:
    engine = TransformersEngine(BUILDERS[name](tmp_path), CONFIG.model_copy(update={"dtype": "bfloat16"}))
    model: Any = engine.model
    softcap = model.config.get_text_config().to_dict().get("final_logit_softcapping")
    ids = np.array([engine.chat.prompt_ids(chat(f"{i} or {i + 1}?")) for i in range(8)])
    work, places = Pass(), []
    for row in ids.tolist():
        work.read(Text(row), 0, 10_000)
        places.append(len(work) - 1)
    seen: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    found, plain = (usual(engine).network.logits(work, places, float32=wide) for wide in (True, False))
    with torch.inference_mode(), float32_head(engine.model):  # as continuations are read
        read = usual(engine).network.forward(input_ids=torch.from_numpy(ids))
    hook.remove()

    def exact(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = hidden @ head.weight.double().T
        return softcap * torch.tanh(logits / softcap) if softcap else logits

    with torch.inference_mode():
        assert found.dtype == read.dtype == torch.float32
        assert (found - exact(seen[0][0, places])).abs().max() < 1e-5
        assert (read - exact(seen[2])).abs().max() < 1e-5
        assert (plain - exact(seen[1][0, places])).abs().max() > 1e-4, "the model's own would have passed"
    assert usual(engine).network.forward(input_ids=torch.from_numpy(ids)).dtype == torch.bfloat16


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

    monkeypatch.setattr(usual(engine).network, "forward", full)
    with raises(EngineError, key="engine.slots", match=r"try engine.slots=4 \(no memory\)"):
        list(engine.generate([request(0)]))
    with raises(EngineError, key="engine.slots", match=r"try engine.slots=4"):
        list(engine.choice_logprobs([ChoiceRequest("a", chat("b"), ("1", "2"))]))


def test_reads_lazily_and_streams(engine: TransformersEngine) -> None:
    """No more is read than there are slots; short samples come early."""
    read = 0

    def source() -> Iterator[Request]:
        nonlocal read
        for i in range(300):
            read += 1
            yield request(i, n=1, max_tokens=4, length=2)

    for given, _ in enumerate(engine.generate(source()), 1):
        assert read - given <= 2 * 8
    assert read == given == 300


def test_short_samples_come_before_long_ones(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of twenty requests wants 100 tokens, the others 3; no token ends a sample early."""
    monkeypatch.setattr(engine.chat, "end_ids", frozenset())
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
        logits = engine.model(torch.tensor([ids])).logits[0, -1].double() / 0.7
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
    sizes = [group_size(n) for n in (1, 63, 64, 95, 96, 127, 128, 200, 256, 5000)]
    assert sizes == [64, 64, 96, 96, 128, 128, 192, 256, 384, 6144]
    # A text is read in parts that end at multiples of 64, wherever it is begun or goes on.
    text, work = Text(list(range(200))), Pass()
    assert work.read(text, 0, 100) == 64
    assert work.read(text, 64, 64) == 128
    assert work.read(text, 128, 72) == 200
    assert [(part.start, part.end) for part in work._parts] == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert Pass().read(text, 0, 10) == 64  # an empty pass gets a part in any case
    large = Pass(part=128)
    assert large.read(text, 64, 100) == 128
    assert large.read(text, 128, 1000) == 200
    assert [(part.start, part.end) for part in large._parts] == [(64, 128), (128, 200)]
    assert large.read(text, 0, 100) == 64  # whole blocks, as many as fit


def test_passes_of_one_size_where_products_round_by_their_rows(
    tmp_path: Path, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU on which no number of rows gives the same bits: samples are the same alone and together, and
    those of the usual way up to rounding."""
    monkeypatch.setattr(network_module, "rows_multiple", lambda model, tokens: 0)
    fixed = TransformersEngine(tiny_models.llama(tmp_path), CONFIG)
    assert usual(fixed).network.tokens == usual(fixed).network.multiple == 8 + 64
    mixed = [request(i, max_tokens=15 + 5 * (i % 5), length=[3, 30][i % 2]) for i in range(12)]
    together = run(fixed, mixed)
    for i in (0, 5):
        alone = run(fixed, [mixed[i]])
        assert alone == {key: together[key] for key in alone}
    plain = run(engine, mixed)
    assert sum(plain[key] == together[key] for key in plain) >= len(plain) - 1
    asked = [ChoiceRequest(str(i), chat("hello " * 9 * i + "1 or 2?"), ("1", "2")) for i in range(6)]
    found = {choices.id: choices.logprobs for choices in fixed.choice_logprobs(asked)}
    for choices in engine.choice_logprobs(asked):
        assert found[choices.id] == pytest.approx(choices.logprobs, abs=1e-4)


def test_without_exact_numbers_nothing_is_filled_up(tmp_path: Path, engine: TransformersEngine) -> None:
    free = TransformersEngine(tiny_models.llama(tmp_path), CONFIG.model_copy(update={"exact": False}))
    assert usual(free).network.multiple == 1
    requests = [request(i, temperature=0.0) for i in range(6)]
    assert run(free, requests) == run(engine, requests)


def test_the_rows_by_which_products_round_alike(engine: TransformersEngine) -> None:
    """What is found holds for every multiple of it, in each layer."""
    multiple = rows_multiple(engine.model, 200)
    assert 0 < multiple <= 64
    layers = [m for m in engine.model.modules() if isinstance(m, torch.nn.Linear)]
    with torch.inference_mode():
        for layer in layers:
            rows = torch.randn(150, layer.in_features)
            whole = layer(rows)
            for n in range(multiple, 150, multiple):
                assert torch.equal(layer(rows[:n].contiguous()), whole[:n])


def test_prompts_that_begin_alike_share_what_was_read(engine: TransformersEngine) -> None:
    """70 words in common: whole blocks of 64 tokens are taken over, and the numbers are the same to the last
    bit as without."""
    asked = [ChoiceRequest(str(i), chat("hello " * 70 + f"{i}, 1 or 2?"), ("1", "2")) for i in range(20)]
    engine.batches.forget()
    alone = []
    for each in asked:
        alone += list(engine.choice_logprobs([each]))
        engine.batches.forget()
    assert list(engine.choice_logprobs(asked)) == alone
    ids = engine.chat.choice_ids(asked[3].messages, asked[3].choices)[0]
    text, shared = usual(engine).prefixes.find(ids, Pass())
    assert shared == len(ids) // 64 * 64 > 64
    assert text is not None
    assert text.ids[:shared] == ids[:shared]
    assert list(engine.choice_logprobs(asked[::-1])) == alone[::-1]


def test_few_texts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded by bytes; those that are used lately stay, and nothing is left of the others."""
    from sao.engines import caches

    monkeypatch.setattr(caches, "KEPT_BYTES", 40 * 128 * 2 * 4)
    prefixes = Prefixes()
    for i in range(100):
        text = Text([i % 70] * 64 + [i] * 64, is_read=True)
        text.layers[0] = (torch.zeros(1, 128, 1), torch.zeros(1, 128, 1))
        prefixes.add(text)
        prefixes.settle()
    kept = [i for i in range(100) if prefixes.find([i % 70] * 64 + [i] * 70, Pass())[1] == 128]
    assert kept == list(range(60, 100))
    assert len(prefixes._nodes) == 80


def test_what_is_not_read_is_shared_within_its_pass_only() -> None:
    """A pass that fails leaves texts without keys and values behind."""
    prefixes, work, text = Prefixes(), Pass(), Text(list(range(100)))
    work.read(text, 0, 1000)
    prefixes.add(text)
    assert prefixes.find(text.ids, work) == (text, 64)
    assert prefixes.find(text.ids, Pass()) == (None, 0)
    work.finish()
    assert prefixes.find(text.ids, Pass()) == (text, 64)


def test_a_failed_pass_leaves_no_wrong_numbers(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [ChoiceRequest(str(i), chat("red " * 90 + f"{i}, 1 or 2?"), ("1", "2")) for i in range(4)]
    engine.batches.forget()
    expected = list(engine.choice_logprobs(asked))
    engine.batches.forget()
    layer = engine.model.model.layers[-1]
    with monkeypatch.context() as broken:
        broken.setattr(layer, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.choice_logprobs(asked))
    assert list(engine.choice_logprobs(asked)) == expected


def test_rows_of_a_group_keep_their_numbers() -> None:
    """Rows come and go, the group grows and shrinks; each row keeps what was stored for it."""
    group, held = Group(96, 64), []
    for i in range(40):
        values = torch.full((2, 5, 3), float(i))
        group.add({0: (values, -values)}, 5)
        held.append(float(i))
    while held:
        row = (7 * len(held)) % len(held)
        group.remove(row)
        held[row] = held[-1]
        held.pop()
        keys, values = group.layers[0]
        assert keys[: len(held), 0, 0, 0].tolist() == held
        assert values[: len(held), 1, 4, 2].tolist() == [-number for number in held]
        assert not keys[: len(held), :, 5:].any()
    assert group.capacity == 8


def test_logits_that_are_no_numbers_are_an_error() -> None:
    settings = (torch.ones(2, dtype=torch.float64) for _ in range(3))
    with raises(EngineError, key="engine.dtype", match="NaN"):
        draw(torch.tensor([[0.0, 1.0], [0.0, math.nan]]), *settings)


def test_phi_3_stays_within_the_context_of_its_first_factors() -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    settings = SimpleNamespace(max_position_embeddings=131072, rope_parameters=rope)
    assert network_module.context_length(settings) == 4096
    assert network_module.context_length(SimpleNamespace(max_position_embeddings=131072)) == 131072


def test_a_model_that_ignores_its_positions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would pass with one text alone, whose places are its positions."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain = LlamaRotaryEmbedding.forward

    def by_place(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return plain(self, x, torch.arange(position_ids.shape[1])[None])

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", by_place)
    folder = tiny_models.llama(tmp_path)
    with raises(ModelError, key="architecture", match="differ from a plain forward pass"):
        continuous(folder)
    batches = TransformersEngine(folder, CONFIG).batches
    assert isinstance(batches, Lockstep)
    assert not batches.cached  # nor can its cache be used


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [("sliding_window", 7, "a window of 7"), ("block_indices", torch.zeros(2), "attends by block_indices")],
)
def test_a_layer_that_asks_for_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, found: str
) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    plain: Any = LlamaAttention.forward

    def with_more(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(self, *args, **kwargs, **({key: value} if "sao_pass" in kwargs else {}))

    monkeypatch.setattr(LlamaAttention, "forward", with_more)
    folder = tiny_models.llama(tmp_path)
    with raises(ModelError, key="architecture", match=found):
        continuous(folder)
    notes: list[str] = []
    TransformersEngine(folder, CONFIG, notify=notes.append)
    assert "texts of equal length are written together" in notes[0]


def test_samples_of_a_wide_model_are_the_same_alone_and_together(tmp_path: Path) -> None:
    """Wide enough for oneDNN's products; more rows than a step of the other models has."""
    wide = {"hidden_size": 512, "intermediate_size": 640, "num_attention_heads": 8, "head_dim": 64}
    engine = TransformersEngine(tiny_models.llama(tmp_path, **wide), CONFIG.model_copy(update={"slots": 40}))
    assert usual(engine).network.multiple < 40
    mixed = [request(i, max_tokens=8 + i % 9) for i in range(30)]
    together = run(engine, mixed)
    for i in (0, 7, 29):
        alone = run(engine, [mixed[i]])
        assert alone == {sample: together[sample] for sample in alone}


def test_models_that_keep_more_than_keys_and_values_are_refused(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1))
    with raises(ModelError, key="architecture"):
        Network(mamba, engine.chat, 72, 72, exact=True)
    kinds = ["linear_attention", "full_attention"]
    monkeypatch.setattr(engine.model.config, "layer_types", kinds, raising=False)
    with raises(ModelError, key="architecture", match="linear_attention"):
        Network(engine.model, engine.chat, 72, 72, exact=True)


def test_the_first_requests_are_served_before_all_others(engine: TransformersEngine) -> None:
    """Short prompts among the first, a flood of long ones behind them: those do not keep the first ones
    waiting."""
    requests = [request(i, n=1, max_tokens=30, length=1 if i % 2 and i < 32 else 20) for i in range(400)]
    done = [int(completion.id.split(".")[0]) for completion in engine.generate(requests)]
    assert sorted(done) == list(range(400))
    assert max(done.index(i) for i in range(32)) < 150
