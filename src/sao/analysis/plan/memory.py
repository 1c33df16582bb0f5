"""Memory of one GPU, in bytes: while it trains, and while it generates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sao.analysis.plan.lengths import Lengths
from sao.config import Config, LoraConfig, TrainConfig
from sao.models.shapes import GPU, Shape
from sao.results.plan import MemoryParts

GIB = 2**30
CONTEXT = 1.5 * GIB
"""CUDA context, kernels, communication buffers (assumed)."""
KEPT_PROMPTS = 256 * 2**20
"""Keys and values of prompts that the built-in engine keeps (sao.engines.caches.KEPT_BYTES)."""
SLACK = 0.05
"""Share that the allocator loses to gaps (assumed)."""
TILE = 8192
"""Tokens, and words of the vocabulary, of the tile in which logits are made (sao.training.logps.GPU_TILE)."""
FOUR_BITS = 4.127 / 8
"""Bytes of a weight in NF4 with its twice quantised scales (QLoRA, arXiv 2305.14314)."""
STATES = {"adamw": 8.0, "adamw_8bit": 2.03, "adamw_sr": 4.0}
"""Bytes of both moments of a weight: float32, 8 bits with a float32 scale for each 256, or bfloat16."""
KEPT_BY_NORMS = {
    (2, "bfloat16"): 16, (2, "float32"): 26, (2, "adapter"): 22,
    (4, "bfloat16"): 36, (4, "float32"): 42, (4, "adapter"): 24,
}  # fmt: skip
"""Bytes for each hidden unit that a layer's norms and the inputs of its linear maps keep for the backward
pass. Counted with saved_tensors_hooks on tiny models (tests/analysis/test_plan.py), by norms in a layer and
what is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU at the worst moment."""

    weights: float
    copies: float = 0.0
    """bfloat16 copies of float32 weights that autocast keeps, or layers gathered from the other GPUs."""
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    """A tile of logits, what the head's gradient needs, and the answers' hidden states."""
    cache: float = 0.0
    """Keys and values of the samples under way (generation)."""
    loading: float = 0.0
    """The whole model, before it is shared out among the GPUs: not on top of the rest, but it must fit
    too."""

    @property
    def overhead(self) -> float:
        """The CUDA context, and what the allocator loses."""
        return CONTEXT + SLACK * self._used

    @property
    def total(self) -> float:
        """All of it."""
        return self.overhead + self._used

    @property
    def _used(self) -> float:
        return max(self.loading, float(sum(dataclasses.astuple(self))) - self.loading)

    def in_gib(self) -> MemoryParts:
        """The same in GiB."""
        parts = dataclasses.asdict(self) | {"overhead": self.overhead, "total": self.total}
        return MemoryParts(**{name: value / GIB for name, value in parts.items()})


# Training.


def training_memory(shape: Shape, train: TrainConfig, tokens: int, gpus: int = 1) -> Memory:
    """Memory of one of `gpus` GPUs while a micro-batch of `tokens` tokens is trained on."""
    is_full, is_split = train.method == "full", train.parallel != "ddp"
    size = _bytes_of_a_weight(train)
    trained = shape.parameters if is_full else adapter_parameters(shape, train.lora)
    weights = _weight_bytes(shape, train)
    gradients = trained * (size if is_full else 4.0)
    optimiser = trained * STATES[train.optimizer]
    if is_split:
        weights, gradients, optimiser = weights / gpus, gradients / gpus, optimiser / gpus
    elif gpus > 1:
        gradients *= 2  # DDP sums them in buckets of its own
    return Memory(
        weights=weights,
        copies=_gathered_bytes(shape, train, trained, gpus) if is_split else _autocast_bytes(shape, train),
        gradients=gradients,
        optimiser=optimiser,
        activations=_activation_bytes(shape, train, tokens),
        logits=_logit_bytes(shape, train, tokens),
        loading=float(size * shape.parameters) if is_split else 0.0,
    )


def adapter_parameters(shape: Shape, lora: LoraConfig) -> int:
    """Weights of a LoRA adapter: r · (inputs + outputs) for each map that gets one."""
    return lora.r * shape.adapter_width(None if isinstance(lora.targets, str) else lora.targets)


def layer_bytes(shape: Shape, train: TrainConfig) -> int:
    """What one layer keeps of one token for the backward pass, bytes; attention keeps no scores."""
    kind = "adapter" if train.method == "lora" and train.weights == "bfloat16" else _format(train)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    own_norms = 6 * (q + kv) if shape.qk_norm else 0
    return KEPT_BY_NORMS[shape.norms, kind] * shape.hidden + 8 * shape.inner + 10 * q + own_norms


def _format(train: TrainConfig) -> str:
    """The format of the residual stream. PEFT puts all that is not in 4 bits into float32 for QLoRA."""
    return "float32" if train.method == "qlora" else train.weights


def _bytes_of_a_weight(train: TrainConfig) -> int:
    return 4 if _format(train) == "float32" else 2


def _weight_bytes(shape: Shape, train: TrainConfig) -> float:
    """The whole model, and its adapter in float32 where there is one."""
    size = _bytes_of_a_weight(train)
    linear = shape.linear * (FOUR_BITS if train.method == "qlora" else size)
    adapter = 0 if train.method == "full" else 4 * adapter_parameters(shape, train.lora)
    return linear + (shape.parameters - shape.linear) * size + adapter


def _autocast_bytes(shape: Shape, train: TrainConfig) -> float:
    """bfloat16 copies that autocast keeps of the float32 weights until the forward pass is over."""
    is_half = train.half_precision is not False
    has_copies = is_half and train.method != "qlora" and _format(train) == "float32"
    return 2.0 * shape.linear if has_copies else 0.0


def _gathered_bytes(shape: Shape, train: TrainConfig, trained: int, gpus: int) -> float:
    """Where the model is split: the layers that are gathered, in bfloat16 unless the products are not."""
    size = 4.0 if train.half_precision is False and _format(train) == "float32" else 2.0
    # One layer in use, the next on its way, and the head.
    gathered = size * (2 * shape.linear / shape.layers + shape.head)
    if train.method != "full":
        return gathered
    has_masters = train.parallel == "zero3" and _format(train) == "float32"
    share = 2 * trained / gpus if has_masters else 0  # DeepSpeed keeps one in bfloat16 beside its masters
    return 2 * gathered + share  # with their gradients


def _activation_bytes(shape: Shape, train: TrainConfig, tokens: int) -> float:
    """What the layers keep for the backward pass."""
    layer = layer_bytes(shape, train) * tokens
    if train.gradient_checkpointing:  # the layers' inputs, and one layer with its gradients
        kept = shape.layers * shape.hidden * _bytes_of_a_weight(train) * tokens + 2 * layer
    else:
        kept = (shape.layers + 1) * layer
    # Capped scores are made segment by segment, and again in the backward pass.
    return kept + (16 * shape.heads * train.max_length**2 if shape.softcap else 0)


def _logit_bytes(shape: Shape, train: TrainConfig, tokens: int) -> float:
    """A tile of logits, the head's gradient, which is made whole and then added, and the answers' hidden
    states."""
    tile = 4 * min(tokens, TILE) * min(shape.vocabulary, TILE) * (3 if shape.softcap else 2)
    has_whole_head = train.method == "full" and train.parallel == "ddp"
    head = shape.head * _bytes_of_a_weight(train) if has_whole_head else 0
    return tile + head + 12 * tokens * shape.hidden


# Generation.


def generation_memory(shape: Shape, config: Config, lengths: Lengths, gpu: GPU) -> Memory:
    """Memory of the engine with 16-bit weights.

    The built-in one keeps the samples of like length together, at most all of them in the longest group, and
    prompts that others may begin like. vLLM keeps pages: as many as are used, within the share of the GPU
    that it may take, and at least those of one longest answer.
    """
    longest = lengths.prompt + config.responses.max_tokens
    if config.engine.name == "vllm":
        vllm = config.engine.vllm
        weights, room = vllm_room(shape, config, gpu)
        one_answer = longest * shape.kv_bytes / vllm.tensor_parallel_size
        used = min(room, vllm.max_num_seqs * one_answer)
        return Memory(weights=weights, cache=max(used, one_answer))
    slots = config.engine.slots
    return Memory(
        weights=2.0 * shape.parameters,
        # Half as much again while samples move from one group to the next.
        cache=1.5 * group_size(longest) * slots * shape.kv_bytes + KEPT_PROMPTS,
        logits=14.0 * slots * shape.vocabulary,  # in 16 bits; scaled, probabilities and a copy in 32
    )


def vllm_room(shape: Shape, config: Config, gpu: GPU) -> tuple[float, float]:
    """Bytes of the weights on one of vLLM's GPUs, and what is left there for keys and values."""
    vllm = config.engine.vllm
    weights = 2.0 * shape.parameters / vllm.tensor_parallel_size
    taken = vllm.gpu_memory_utilization * gpu.memory * GIB
    return weights, (taken - CONTEXT) / (1 + SLACK) - weights


def group_size(length: int) -> int:
    """Positions of the engine's group for texts of so many tokens (`sao.engines.caches.group_size`, which
    needs torch)."""
    size = 64
    while length >= size:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
