"""The plan's arithmetic against hand-worked values, published counts and what autograd really keeps; the
recipes in it."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from sao.analysis.plan import (
    CONTEXT,
    GIB,
    Lengths,
    adapter_parameters,
    flops_per_token,
    generation_memory,
    layer_bytes,
    make_plan,
    stages,
    training_memory,
    training_seconds,
    vllm_seconds,
    writing_seconds,
)
from sao.analysis.plan.memory import group_size
from sao.cli import main
from sao.config import LoraConfig, TrainConfig, load_recipe, recipe_names
from sao.engines import caches
from sao.errors import ConfigError, ModelError
from sao.method import run
from sao.models.counting import read_shape
from sao.models.locate import find_model
from sao.models.shapes import GPU, KNOWN, Shape, find_gpu, shape_of
from sao.training.batches import EpochOrder, MicroBatches, TokenPair, pack, pad
from sao.training.policy import as_policy
from support import tiny_models
from support.errors import raises
from support.repository import ROOT

PUBLISHED = {
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-2-2b-it": 2_614_341_888,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
PLANNED_FOR = {
    "demo": "T4",
    "default": "T4",
    "paper-gemma-2-9b-it": "A100-80",
    "paper-llama-3-8b-instruct": "A100-80",
    "7b-9b-80gb": "H100-80",
    "7b-9b-24gb": "RTX-4090",
    "1b-3b-12gb": "RTX-3060",
    "multi-gpu-zero3": "A100-80",
    "multi-gpu-fsdp2": "A100-80",
    "external-judge": "H100-80",
    "self-made": "H100-80",
    "smollm2": "T4",
    "demo-rounds": "T4",
    "rounds-7b-9b": "H100-80",
    "8-gpu-node": "H100-80",
    "4-nodes": "H100-80",
}
# Linear maps of a layer: q 6·4, k and v 6·2 each, o 4·6, MLP 3·6·10: 252. Norms 2·6. Head 20·6.
TOY = Shape(vocabulary=20, hidden=6, inner=10, layers=3, heads=2, kv_heads=1, head_dim=2, tied=False)
CARD = GPU("toy", 16.0, 100.0, 1000.0)


# Shapes.


@pytest.mark.parametrize("name", KNOWN)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert read_shape(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "mistral"])
def test_parameter_counts_are_those_of_the_real_modules(family: str, tmp_path: Path) -> None:
    path = getattr(tiny_models, family)(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert read_shape(path).parameters == sum(p.numel() for p in model.parameters())


def test_the_toy_by_hand() -> None:
    assert TOY.linear == 3 * 252
    assert TOY.parameters == 3 * (252 + 12) + 6 + 2 * 120 == 1038
    assert adapter_parameters(TOY, LoraConfig(r=2)) == 3 * 2 * (10 + 8 + 8 + 10 + 16 + 16 + 16)
    assert adapter_parameters(TOY, LoraConfig(r=2, targets=["q_proj", "v_proj"])) == 3 * 2 * (10 + 8)


def test_the_toy_world_is_read_from_its_folder() -> None:
    model = AutoModelForCausalLM.from_pretrained(find_model("builtin:world"))
    assert read_shape("builtin:world").parameters == sum(p.numel() for p in model.parameters())


def config_of(**changes: Any) -> dict[str, Any]:
    base = {
        "model_type": "llama",
        "vocab_size": 20,
        "hidden_size": 6,
        "intermediate_size": 10,
        "num_hidden_layers": 3,
    }
    return {**base, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, **changes}


def test_what_config_files_leave_out_or_nest() -> None:
    assert shape_of(config_of(), "x") == TOY
    assert shape_of({"model_type": "some_vlm", "text_config": config_of()}, "x") == TOY
    assert shape_of(config_of(model_type="gemma2"), "x").tied
    without = config_of(num_key_value_heads=None, head_dim=None)
    assert (shape_of(without, "x").kv_heads, shape_of(without, "x").head_dim) == (2, 3)
    # Qwen-2.5-7B: biases on queries, keys and values that its config.json does not mention.
    qwen2 = config_of(
        model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, head_dim=None,
    )  # fmt: skip
    assert shape_of(qwen2, "x").parameters == 7_615_616_512


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "of-next-year", "hidden_size": 768}, "of-next-year"),
        ({"model_type": "mixtral", "num_attention_heads": "many"}, "many"),
        ({"hidden_size": 768}, "model_type"),
    ],
)
def test_models_that_transformers_cannot_make_are_not_counted(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with raises(ModelError, key="config.json", match=message):
        read_shape(str(tmp_path))


def test_a_mixture_of_experts_is_counted_whole_and_by_what_a_token_passes(tmp_path: Path) -> None:
    """Mixtral-8x7B by its published sizes: 46.7 billion weights, of which a token passes 12.9."""
    sizes = {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 32000,
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    shape = read_shape(str(tmp_path))
    assert shape.parameters == 46_702_792_704
    assert shape.used + 2 * shape.head == pytest.approx(12.88e9, rel=0.001)
    assert shape.kv_bytes == 4 * 8 * 128 * 32
    assert shape.adapter_width(None) == 32 * (4 * 4096 + 2 * 4096 + 2 * 1024)


def test_layers_of_linear_attention_keep_no_keys(tmp_path: Path) -> None:
    """Qwen3.5's layers: three of linear attention to one of attention."""
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 8
    text = {
        "model_type": "qwen3_5_text", "num_hidden_layers": 32, "layer_types": kinds, "hidden_size": 4096,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 1000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(text))
    assert read_shape(str(tmp_path)).kv_bytes == 32_768


def test_a_folder_without_a_config_is_an_error(tmp_path: Path) -> None:
    with raises(ModelError, key="config.json", match=r"config\.json"):
        read_shape(str(tmp_path))


def test_gpus_by_any_spelling() -> None:
    assert find_gpu("nvidia rtx 4090") == find_gpu("RTX-4090")
    assert find_gpu("H100 80GB").name == "H100-80"
    with raises(ConfigError, key="--gpu", match="Did you mean A100-80 or A100-40"):
        find_gpu("A100")
    with raises(ConfigError, key="--gpu", match="Did you mean RTX-4090"):
        find_gpu("RTX 4091")


# Memory.


def test_memory_of_full_training_by_hand() -> None:
    """12 tokens, no checkpointing. A layer keeps 26·6 + 8·10 + 10·4 = 276 bytes of a token, and one layer's
    gradients."""
    found = training_memory(TOY, TrainConfig(), tokens=12)
    assert (found.weights, found.gradients, found.optimiser) == (1038 * 4, 1038 * 4, 1038 * 8)
    assert found.copies == 2 * 756
    assert found.activations == 4 * 276 * 12
    # A tile of 12 × 20 logits twice, the head's gradient, 12 bytes for each hidden unit of a token.
    assert found.logits == 2 * 4 * 12 * 20 + 4 * 120 + 12 * 12 * 6
    parts = 1038 * 16 + 1512 + 13248 + 1920 + 480 + 864
    assert found.total == pytest.approx(1.05 * parts + CONTEXT)


def test_without_half_precision_autocast_keeps_no_copies_and_layers_are_gathered_in_float32() -> None:
    exact, half = TrainConfig(half_precision=False), TrainConfig()
    assert training_memory(TOY, exact, tokens=12).copies == 0
    split = {"parallel": "fsdp2", "processes": 2}
    gathered = [
        training_memory(TOY, train.model_copy(update=split), tokens=12, gpus=2).copies
        for train in (exact, half)
    ]
    assert gathered[0] == 2 * gathered[1]


def test_memory_of_the_other_ways_by_hand() -> None:
    stochastic = TrainConfig(weights="bfloat16", optimizer="adamw_sr", gradient_checkpointing=True)
    found = training_memory(TOY, stochastic, tokens=12)
    assert (found.weights, found.gradients, found.optimiser, found.copies) == (
        1038 * 2,
        1038 * 2,
        1038 * 4,
        0,
    )
    # Three inputs of 6 units in 2 bytes, and one layer (16·6 + 80 + 40 = 216) with its gradients.
    assert found.activations == 12 * (3 * 6 * 2 + 2 * 216)
    lora = TrainConfig(method="lora", weights="bfloat16", lora=LoraConfig(r=2))
    found = training_memory(TOY, lora, tokens=12)
    assert (found.weights, found.gradients, found.optimiser) == (2076 + 4 * 504, 4 * 504, 8 * 504)
    qlora = training_memory(TOY, lora.model_copy(update={"method": "qlora"}), tokens=12)
    # 4 bits and their scales for the 756 linear weights; PEFT puts the other 282 into float32.
    assert qlora.weights == pytest.approx(756 * 4.127 / 8 + 282 * 4 + 4 * 504)


def test_memory_of_a_split_model_by_hand() -> None:
    found = training_memory(TOY, TrainConfig(parallel="fsdp2"), tokens=12, gpus=2)
    assert (found.weights, found.gradients, found.optimiser) == (1038 * 2, 1038 * 2, 1038 * 4)
    assert found.copies == 2 * (2 * 252 + 120) * 2
    zero3 = training_memory(TOY, TrainConfig(parallel="zero3"), tokens=12, gpus=2)
    assert zero3.copies == found.copies + 1038
    assert training_memory(TOY, TrainConfig(), tokens=12, gpus=2).gradients == 2 * 1038 * 4


def test_generation_memory_by_hand() -> None:
    """A group of 128 positions, half as much again for moves, 256 MiB of prompts; 2 bytes · (keys + values)
    · 2 units · 3 layers for each."""
    config = load_recipe("default", {"engine.slots": "5", "responses.max_tokens": "100"})
    found = generation_memory(TOY, config, Lengths(prompt=20), CARD)
    assert (found.weights, found.cache) == (2 * 1038, 5 * 1.5 * 128 * 24 + 2**28)


@pytest.mark.parametrize(
    ("weights", "method"), [("float32", "full"), ("bfloat16", "full"), ("bfloat16", "lora")]
)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_activations_are_what_autograd_keeps(family: str, weights: str, method: str, tmp_path: Path) -> None:
    """Counted from the difference between four layers and two, so that the embedding and the head drop
    out."""
    optimizer = "adamw_sr" if (weights, method) == ("bfloat16", "full") else "adamw"
    train = TrainConfig(weights=weights, method=method, optimizer=optimizer)  # type: ignore[arg-type]
    kept = []
    for layers in (2, 4):
        sizes = {"hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 8, "head_dim": 16}
        path = getattr(tiny_models, family)(tmp_path / str(layers), num_hidden_layers=layers, **sizes)
        kept.append(_kept(path, train))
    shape = read_shape(str(tmp_path / "4"))
    counted = (kept[1] - kept[0]) / 2
    assert layer_bytes(shape, train) == pytest.approx(counted, rel=0.10)


def _kept(path: str, train: TrainConfig) -> float:
    """Bytes for each token that the backward pass needs, without weights and their bfloat16 copies."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, train.weights))
    as_policy(model, packed=True)
    if train.method == "lora":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape)[::-1] for p in model.parameters()}
    batch = pack(
        [
            TokenPair(id=str(i), prompt_ids=(5,) * 8, chosen_ids=(7,) * 64, rejected_ids=(9,) * 64)
            for i in "ab"
        ]
    )
    storages: dict[int, int] = {}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            alive.append(tensor)
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(**batch.model_inputs)
    return sum(storages.values()) / batch.input_ids.numel()


SIZES = st.builds(
    Shape,
    vocabulary=st.integers(100, 300_000),
    hidden=st.integers(64, 8192),
    inner=st.integers(64, 30_000),
    layers=st.integers(1, 80),
    heads=st.integers(1, 64),
    kv_heads=st.integers(1, 8),
    head_dim=st.sampled_from([64, 128, 256]),
    tied=st.booleans(),
    norms=st.sampled_from([2, 4]),
    qk_norm=st.booleans(),
)
WAYS = st.sampled_from(
    [("full", "float32", "adamw"), ("full", "bfloat16", "adamw_sr"), ("lora", "bfloat16", "adamw")]
)


@settings(deadline=None, max_examples=60)
@given(SIZES, WAYS, st.sampled_from(["ddp", "fsdp2", "zero3"]), st.integers(1, 20_000), st.booleans())
def test_more_gpus_never_need_more_memory_each(
    shape: Shape, way: tuple[str, str, str], parallel: str, tokens: int, checkpointing: bool
) -> None:
    """With ddp from 2 on: its buckets are another copy of the gradients."""
    method, weights, optimizer = way
    train = TrainConfig.model_validate({
        "method": method, "weights": weights, "optimizer": optimizer, "parallel": parallel,
        "gradient_checkpointing": checkpointing,
    })  # fmt: skip
    start = 2 if parallel == "ddp" else 1
    totals = [training_memory(shape, train, tokens, gpus).total for gpus in range(start, 9)]
    assert totals == sorted(totals, reverse=True)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 20_000))
def test_less_is_trained_with_less(shape: Shape, tokens: int) -> None:
    lora = TrainConfig(method="lora", weights="bfloat16", lora=LoraConfig(r=1))
    full, half = TrainConfig(), TrainConfig(weights="bfloat16", optimizer="adamw_sr")
    assert adapter_parameters(shape, lora.lora) < shape.parameters
    state = [
        m.gradients + m.optimiser for m in (training_memory(shape, t, tokens) for t in (lora, half, full))
    ]
    assert state == sorted(state)
    assert training_memory(shape, half, tokens).total < training_memory(shape, full, tokens).total


def test_lora_needs_less_than_full_and_qlora_less_than_lora_on_large_models() -> None:
    """Not on small ones with a large vocabulary: PEFT puts their embedding into float32 for QLoRA."""
    for name in KNOWN:
        if "8B" in name or "9b" in name:
            ways = [TrainConfig(method=m, weights="bfloat16") for m in ("qlora", "lora")] + [TrainConfig()]
            totals = [training_memory(read_shape(name), way, 2000).total for way in ways]
            assert totals == sorted(totals)


# Tokens and time.


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_shared_prompt_saves_tokens(prompt: int, response: int) -> None:
    lengths = Lengths(prompt=prompt, response=response)
    shared, apart, padded = TrainConfig(), TrainConfig(share_prompt=False), TrainConfig(batches="padded")
    assert lengths.pair(shared) < lengths.pair(apart) == lengths.pair(padded)
    pair = TokenPair(
        id="a", prompt_ids=(1,) * prompt, chosen_ids=(2,) * response, rejected_ids=(3,) * response
    )
    assert lengths.pair(shared) == pack([pair]).input_ids.numel()
    assert (
        lengths.pair(apart)
        == pack([pair], share_prompt=False).input_ids.numel()
        == pad([pair], 0).input_ids.numel()
    )


def test_flops_by_hand() -> None:
    """6 for each of the 756 weights and 8 for the head's 120 (made twice); attention 4 · 5 tokens · 4 units ·
    3 layers."""
    assert flops_per_token(TOY, TrainConfig(), context=5) == 6 * 756 + 8 * 120 + 3 * 4 * 5 * 4 * 3
    assert (
        flops_per_token(TOY, TrainConfig(gradient_checkpointing=True), context=5)
        == 8 * 876 + 4 * 4 * 5 * 4 * 3
    )
    assert flops_per_token(TOY, TrainConfig(method="lora"), context=5) == 4 * 876 + 3 * 4 * 5 * 4 * 3
    dpo = training_seconds(TOY, TrainConfig(loss="dpo"), 100, Lengths(), 1.0)
    assert dpo - training_seconds(TOY, TrainConfig(), 100, Lengths(), 1.0) == 100 * 2 * 876


def test_gemma_on_the_papers_machine_agrees_with_the_rule_of_thumb() -> None:
    """60,000 pairs of 1,000 tokens, 8 FLOP for each weight: 4.4e18, on 4 × 312 TFLOP/s at 40 % 2.5 hours."""
    train = TrainConfig(gradient_checkpointing=True)
    seconds = training_seconds(
        read_shape("google/gemma-2-9b-it"), train, 60_000_000, Lengths(), 4 * 312e12 * 0.4
    )
    assert seconds / 3600 == pytest.approx(60e6 * 8 * 9.24e9 / (4 * 312e12 * 0.4) / 3600, rel=0.05)


def test_groups_are_those_of_the_engine() -> None:
    assert [group_size(n) for n in range(3000)] == [caches.group_size(n) for n in range(3000)]


def test_writing_by_hand() -> None:
    """Large: a step reads 2 bytes of each weight and 8 rows of a group of 128. Small: a step takes
    0.7 ms for each of 3 layers."""
    shape = read_shape("Qwen/Qwen3-8B")
    step = (2 * 8_190_735_360 + 8 * 128 * shape.kv_bytes) / 100e9
    assert writing_seconds(shape, 8, 800, 100, GPU("slow", 24.0, 1.0, 100.0)) == pytest.approx(100 * step)
    assert writing_seconds(TOY, 8, 800, 100, CARD) == pytest.approx(100 * 3 * 0.0007)


def test_writing_with_vllm_by_hand() -> None:
    """0.9 of 20 GiB holds CUDA's 1.5, 5 % of gaps, 2 bytes of each weight and the rest for pages of 300
    positions."""
    shape, card = read_shape("Qwen/Qwen3-8B"), GPU("card", 20.0, 1.0, 100.0)
    config = load_recipe("default", {"engine.name": "vllm", "responses.max_tokens": "1000"})
    room = (0.9 * 20 - 1.5) * GIB / 1.05 - 2 * 8_190_735_360
    samples = room / (300 * shape.kv_bytes)
    assert 1 < samples < 256
    step = (2 * 8_190_735_360 + samples * 150 * shape.kv_bytes) / 100e9
    assert vllm_seconds(shape, config, 800, 300, card) == pytest.approx(800 / samples * step)
    # A small model is bound by the scheduler's 8 ms, at 256 samples.
    assert vllm_seconds(TOY, config, 2560, 300, card) == pytest.approx(10 * 0.008)
    memory = generation_memory(shape, config, Lengths(), card)
    assert memory.total == pytest.approx(0.9 * 20 * GIB)
    tight = generation_memory(shape, config, Lengths(), GPU("small", 17.0, 1.0, 100.0))
    assert tight.cache == pytest.approx(1060 * shape.kv_bytes)  # one longest answer, which does not fit
    assert tight.total > 17 * GIB
    shared = load_recipe("default", {"engine.name": "vllm", "engine.vllm.tensor_parallel_size": "2"})
    assert generation_memory(shape, shared, Lengths(), card).weights == 8_190_735_360


def test_the_worst_micro_batch_is_that_of_real_batches() -> None:
    """Log-normal lengths as in benchmarks/training.py; packed rows spread the long pairs, padded ones put
    them together."""
    rng = random.Random(0)
    lengths = [60 + sum(min(1024, int(rng.lognormvariate(5.52, 0.6))) for _ in range(2)) for _ in range(5000)]
    mean = sum(lengths) / len(lengths)
    worst = {}
    for packed in (True, False):
        dealt = MicroBatches(EpochOrder(lengths, 3, 128), 128, 8, 1, 0, packed)
        groups = [[row for row in group if row >= 0] for group in dealt]
        tokens = [[lengths[row] for row in rows] for rows in groups]
        worst[packed] = max(sum(some) if packed else len(some) * max(some) for some in tokens) / mean
    assumed = Lengths(prompt=60, response=int((mean - 60) / 2))
    for packed, batches in ((True, "packed"), (False, "padded")):
        train = TrainConfig(batches=batches)  # type: ignore[arg-type]
        planned = assumed.worst(train, 8) / assumed.pair(train)
        assert 0.95 * worst[packed] <= planned <= 1.6 * worst[packed]


def test_tokens_by_stage_by_hand() -> None:
    config = load_recipe(
        "default",
        {
            "personas.n": "10",
            "personas.held_out": "4",
            "responses.n": "3",
            "pairs.keep": "all",
            "train.epochs": "2",
        },
    )
    found = {
        s.name: (s.items, s.read, s.written)
        for s in stages(config, TOY, CARD, 1, Lengths(prompt=50, response=100))
    }
    assert found == {
        "prompts": (14, 14 * 150, 14 * 50),
        "responses": (30, 10 * 50, 30 * 100),  # each prompt is read once
        "verdicts": (60, 60 * (140 + 250), 0),  # 3 pairs to a prompt in both orders
        "training": (30, 2 * 30 * 250, 0),
        "held-out answers": (8, 8 * 50, 8 * 100),
        "held-out verdicts": (8, 8 * 390, 0),
    }
    given = load_recipe("default", {"pairs.source": "x.jsonl", "personas.n": "10", "personas.held_out": "4"})
    items = {s.name: s.items for s in stages(given, TOY, CARD, 1, Lengths())}
    assert (items["prompts"], items["responses"], items["verdicts"], items["training"]) == (4, 0, 0, 10)
    one = load_recipe("default", {"judging.method": "text", "judging.orders": "one"})
    verdicts = stages(one, TOY, CARD, 1, Lengths())[2]
    assert (verdicts.items, verdicts.written) == (1000, 5000)


def test_the_stages_of_later_rounds_by_hand() -> None:
    def items(number: int, **rounds: str) -> dict[str, int]:
        sizes = {"personas.n": "10", "personas.held_out": "4", "pairs.keep": "all", "rounds.n": "3"}
        config = load_recipe("default", sizes | {f"rounds.{key}": value for key, value in rounds.items()})
        return {s.name: s.items for s in stages(config, TOY, CARD, 1, Lengths(), number=number)}

    first = {
        "prompts": 14, "responses": 20, "verdicts": 20, "training": 10,
        "held-out answers": 8, "held-out verdicts": 8,
    }  # fmt: skip
    # No held-out prompt is new; the new model's answers are compared with the base's and with the last one's.
    later = first | {"prompts": 10, "held-out answers": 4, "held-out verdicts": 16}
    assert items(1) == first
    assert items(3) == later
    assert items(3, data="all") == later | {"training": 30}
    assert items(3, judge="both") == later | {"verdicts": 40}
    assert items(3, judge="current") == later | {"verdicts of the judge before": 20}
    plan = make_plan(load_recipe("default", {"rounds.n": "3", "rounds.data": "all"}), CARD, 1)
    assert plan.rounds == len(plan.hours_by_round) == 3
    training = next(stage.hours for stage in plan.stages if stage.name == "training")  # of 1 + 2 + 3 rounds
    assert plan.hours_by_round[2] - plan.hours_by_round[1] == pytest.approx(training / 6)
    assert sum(plan.hours_by_round) == pytest.approx(plan.hours)
    assert sum(stage.hours for stage in plan.stages) == pytest.approx(plan.hours)


@pytest.mark.parametrize(
    ("way", "items", "read", "written"),
    [
        # 10 prompts with 3 answers: 3 pairs in both orders; tokens: template 140, prompt 50, answer 100.
        ({"wordings": "[judge, judge_short]"}, 120, 120 * 390, 0),
        ({"content_free": "true"}, 60 + 30, 60 * 390 + 30 * 190, 0),
        ({"method": "pointwise"}, 30, 30 * 290, 0),
        ({"method": "text", "samples": "5"}, 60, 60 * 390, 60 * 25),  # a prompt is read once for all samples
        ({"method": "random"}, 0, 0, 0),
    ],
)
def test_each_way_of_judging_is_counted(way: dict[str, str], items: int, read: int, written: int) -> None:
    sizes = {"personas.n": "10", "personas.held_out": "4", "responses.n": "3"}
    config = load_recipe("default", sizes | {f"judging.{key}": value for key, value in way.items()})
    found = {s.name: s for s in stages(config, TOY, CARD, 1, Lengths(prompt=50, response=100))}
    verdicts = found["verdicts"]
    assert (verdicts.items, verdicts.read, verdicts.written) == (items, read, written)
    # An evaluation is judged by the recipe's judge, controls by log-probability.
    assert found["held-out verdicts"].items > 0


# Plans.


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_fits_what_it_is_planned_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    gpu = find_gpu(PLANNED_FOR[name])
    plan = make_plan(load_recipe(name), gpu)
    assert plan.fits
    assert plan.training_gib.total < 0.97 * gpu.memory
    assert plan.gpus == {"8-gpu-node": 8, "4-nodes": 32}.get(name, 4 if plan.parallel != "ddp" else 1)
    on_cluster = name in ("8-gpu-node", "4-nodes")
    assert plan.replicas == (plan.gpus if on_cluster else 1)
    if plan.gpus == 4:  # said to be for 4 to 8
        assert make_plan(load_recipe(name), gpu, 8).fits
    assert all(way.one_pair_gib <= way.micro_batch_gib for way in plan.ways)
    own = f"{plan.method}, {plan.weights}"
    same = [way for way in plan.ways if way.parallel == plan.parallel and way.name.startswith(own)]
    assert plan.training_gib.total in [way.micro_batch_gib for way in same]


def test_the_table_in_the_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\S+ --gpu [^`]+)` \|[^|]+\| (\d+) \|(.+)\|$", text, re.MULTILINE)
    assert {row[0].split()[0] for row in rows} == {*recipe_names()} - {
        "demo",
        "demo-rounds",
        "default",
        "smollm2",
    }
    for command, gpus, figures in rows:
        assert main(["plan", *command.split(), "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        hours = {stage["name"]: stage["seconds"] / 3600 for stage in found["stages"]}
        data = hours.get("personas", 0.0) + hours["prompts"] + hours["responses"] + hours["verdicts"]
        wanted = [
            found["training_gib"]["total"],
            found["generation_gib"]["total"],
            data,
            hours["training"],
            found["hours"],
        ]
        assert found["gpus"] == int(gpus)
        assert [float(figure) for figure in figures.split("|")] == pytest.approx(wanted, abs=0.06)


def test_the_papers_recipes_are_the_papers() -> None:
    for name in ("paper-gemma-2-9b-it", "paper-llama-3-8b-instruct"):
        c = load_recipe(name)
        assert (c.personas.n, c.responses.n, c.prompts.temperature, c.responses.temperature) == (
            60_000,
            2,
            0.6,
            0.6,
        )
        assert (c.judging.method, c.judging.orders, c.pairs.keep) == ("text", "one", "all")
        t = c.train
        assert (t.loss, t.scale, t.target_margin, t.lr, t.warmup_ratio) == ("simpo", 10, 3, 1e-6, 0.1)
        assert (t.epochs, t.batch_size, t.max_length, t.method, t.parallel) == (1, 128, 2048, "full", "zero3")
        assert "NC" in (c.personas.licence or "")


def test_a_batch_that_does_not_divide_is_an_error() -> None:
    with raises(ConfigError, key="train.batch_size", match="no multiple of 3 GPUs"):
        make_plan(load_recipe("default"), CARD, 3)
    with raises(ConfigError, key="train.batch_size", match="no multiple of 0 GPUs"):
        make_plan(load_recipe("default"), CARD, 0)
    with raises(ConfigError, key="--prompt-tokens", match="--mfu"):
        Lengths(mfu=0)


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "plan",
        "7b-9b-24gb",
        "--gpu",
        "rtx 4090",
        "--response-tokens",
        "500",
        "--engine.slots",
        "4",
        "--json",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert "Computed, not measured" in out[1]
    found = json.loads(out[-1])
    assert (found["gpu"], found["gpus"], found["fits"], found["parameters"]) == (
        "RTX-4090",
        1,
        True,
        8_030_261_248,
    )
    assert found["assumed"]["response"] == 500
    parts = found["training_gib"]
    assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k != "total"), abs=0.05)
    assert found["hours"] == pytest.approx(sum(s["hours"] for s in found["stages"]), abs=0.05)
    assert {way["name"].split(",")[0] for way in found["ways"]} == {"full", "lora", "qlora"}
    assert not any(way["largest_micro_batch"] for way in found["ways"] if way["name"].startswith("full"))


def test_too_little_memory_is_said_in_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    for engine, advice in (
        ("transformers", "--engine.slots"),
        ("vllm", "--engine.vllm.tensor_parallel_size"),
    ):
        assert main(["plan", "7b-9b-80gb", "--gpu", "T4", "--engine.name", engine]) == 0
        out = capsys.readouterr().out
        assert "training and generation DO NOT FIT" in out.splitlines()[0]
        assert advice in out


def test_replicas_share_the_work_and_a_model_stays_on_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    gpu, given = find_gpu("H100-80"), {"personas.n": "60000", "personas.held_out": "0"}
    recipe = load_recipe("7b-9b-80gb", given)

    def hours(replicas: str, gpus: int, nodes: int | None = None) -> dict[str, float]:
        config = load_recipe("7b-9b-80gb", given | {"engine.replicas": replicas})
        return {one.name: one.seconds for one in make_plan(config, gpu, gpus, nodes=nodes).stages}

    alone = {one.name: one.seconds for one in make_plan(recipe, gpu, 1).stages}
    for name in ("prompts", "responses", "verdicts"):
        assert hours("4", 4)[name] == pytest.approx(alone[name] / 4)
        assert hours("auto", 8)[name] == pytest.approx(alone[name] / 8)
        assert (
            hours("null", 8)[name] == alone[name]
        )  # one machine: only one GPU writes unless it is asked for
        assert hours("null", 32, 4)[name] == pytest.approx(alone[name] / 32)
    assert main(["plan", "4-nodes", "--gpu", "H100-80", "--gpus", "32", "--nodes", "4"]) == 0
    out = capsys.readouterr().out
    assert "32 × H100-80 (79.6 GiB each) in 4 machines" in out
    assert "the rest on 32 engines side by side" in out
    two = ["--engine.vllm.tensor_parallel_size", "2"]
    assert main(["plan", "4-nodes", *two]) == 0
    assert "the rest on 16 engines side by side" in capsys.readouterr().out
    too_many = ["--engine.vllm.tensor_parallel_size", "16"]
    assert main(["plan", "4-nodes", *too_many]) == 1
    assert "never shared by two machines" in capsys.readouterr().err
    assert main(["plan", "4-nodes", "--nodes", "3"]) == 1
    assert "32 GPUs are not as many on each of 3 machines" in capsys.readouterr().err


def test_an_unknown_gpu_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "default", "--gpu", "H300"]) == 1
    assert "Did you mean" in capsys.readouterr().err


# The toy world in the place of a real model: everything else is the recipe's own.
TINY = {
    "model": "builtin:world",
    "revision": "null",
    "max_drop_share": "1.0",
    "engine.name": "transformers",
    "engine.slots": "32",
    "engine.threads": "1",
    "personas.source": "builtin:world",
    "personas.subset": "null",
    "personas.revision": "null",
    "personas.licence": "null",
    "personas.n": "150",
    "personas.held_out": "10",
    "prompts.template": "world/prompt",
    "prompts.mix": "{}",
    "filters.duplicates": "none",
    "prompts.marker": "prompt:",
    "prompts.max_tokens": "48",
    "responses.max_tokens": "48",
    "judging.template": "world/judge",
    "train.max_length": "128",
    "train.parallel": "ddp",
    "train.processes": "1",
    "train.nodes": "null",
    "ray.address": "null",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_runs_to_the_end(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    changes = dict(TINY)
    if (
        recipe.train.method == "qlora"
    ):  # on a CPU bitsandbytes takes only layers whose width is a multiple of 64
        changes["train.method"] = "lora"
    if recipe.judging.engine is not None:
        changes |= {"judging.engine.name": "transformers", "judging.engine.model": "builtin:world"}
    if recipe.train.optimizer == "adamw_8bit":  # needs CUDA
        changes |= {"train.optimizer": "adamw", "train.weights": "float32"}
    summary = run(load_recipe(name, changes), tmp_path)
    counts = {row.stage: row.records for row in summary.funnel}
    assert counts["train"] > 0
    assert (Path(summary.paths["model"]) / "model.safetensors").is_file()
    assert summary.heldout is not None and summary.heldout.n > 0
