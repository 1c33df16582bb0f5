"""What a recipe will take before anything starts: memory for each GPU, tokens and hours of each stage (`sao
plan RECIPE`).

What enters: a config, a GPU and assumed lengths. What leaves: a `Plan`. All of it is arithmetic on the
model's config.json (docs/recipes.md has the formulas in a table); `sao.analysis.probe` measures a few real
optimiser steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from sao.config import Config, LoraConfig, TrainConfig
from sao.errors import ConfigError
from sao.models.shapes import GPU, Shape, read_shape
from sao.results.plan import Assumptions, MemoryParts, Plan, PlannedStage, TrainingWay
from sao.stages.judging import compared_pairs

GIB = 2**30

# Memory.

CONTEXT = 1.5 * GIB
"""CUDA context, kernels, communication buffers (assumed)."""
SLACK = 0.05
"""Share that the allocator loses to gaps (assumed)."""
TILE = 8192
"""Tokens, and words of the vocabulary, of the tile in which logits are made (sao.training.logps.GPU_TILE)."""
PEAK = 3
"""The longest pairs of a set over the mean (assumed; lengths are roughly log-normal)."""
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


def adapter_parameters(shape: Shape, lora: LoraConfig) -> int:
    """Weights of a LoRA adapter: r · (inputs + outputs) for each map that gets one."""
    names = shape.linears if isinstance(lora.targets, str) else lora.targets
    return shape.layers * lora.r * sum(sum(shape.linears[n]) for n in names if n in shape.linears)


def layer_bytes(shape: Shape, train: TrainConfig) -> int:
    """What one layer keeps of one token for the backward pass, bytes; attention keeps no scores."""
    kind = "adapter" if train.method == "lora" and train.weights == "bfloat16" else _format(train)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    own_norms = 6 * (q + kv) if shape.qk_norm else 0
    return KEPT_BY_NORMS[shape.norms, kind] * shape.hidden + 8 * shape.inner + 10 * q + own_norms


def _format(train: TrainConfig) -> str:
    """The format of the residual stream. PEFT puts all that is not in 4 bits into float32 for QLoRA."""
    return "float32" if train.method == "qlora" else train.weights


def training_memory(shape: Shape, train: TrainConfig, tokens: int, gpus: int = 1) -> Memory:
    """Memory of one of `gpus` GPUs while a micro-batch of `tokens` tokens is trained on."""
    full, split = train.method == "full", train.parallel != "ddp"
    size = _bytes_of_a_weight(train)
    trained = shape.parameters if full else adapter_parameters(shape, train.lora)
    weights, copies = _weight_bytes(shape, train), _copied_bytes(shape, train, trained, gpus)
    gradients, optimiser = trained * (size if full else 4.0), trained * STATES[train.optimizer]
    if split:
        weights, gradients, optimiser = weights / gpus, gradients / gpus, optimiser / gpus
    elif gpus > 1:
        gradients *= 2  # DDP sums them in buckets of its own
    return Memory(
        weights=weights,
        copies=copies,
        gradients=gradients,
        optimiser=optimiser,
        activations=_activation_bytes(shape, train, tokens),
        logits=_logit_bytes(shape, train, tokens),
        loading=float(size * shape.parameters) if split else 0.0,
    )


def _bytes_of_a_weight(train: TrainConfig) -> int:
    return 4 if _format(train) == "float32" else 2


def _weight_bytes(shape: Shape, train: TrainConfig) -> float:
    """The whole model, and its adapter in float32 where there is one."""
    size = _bytes_of_a_weight(train)
    linear = shape.linear * (FOUR_BITS if train.method == "qlora" else size)
    adapter = 0 if train.method == "full" else 4 * adapter_parameters(shape, train.lora)
    return linear + (shape.parameters - shape.linear) * size + adapter


def _copied_bytes(shape: Shape, train: TrainConfig, trained: int, gpus: int) -> float:
    """bfloat16 copies that autocast keeps of the float32 weights until the forward pass is over; where the
    model is split, the layers that are gathered."""
    full, float32 = train.method == "full", _bytes_of_a_weight(train) == 4
    if train.parallel == "ddp":
        return 2.0 * shape.linear if float32 and train.method != "qlora" else 0.0
    # One layer in use, the next on its way, and the head, in bfloat16, with their gradients.
    gathered = 2.0 * (2 * shape.linear / shape.layers + shape.head) * (2 if full else 1)
    gathered_from = 2 * trained / gpus if train.parallel == "zero3" and full and float32 else 0
    return gathered + gathered_from


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
    whole_head = train.method == "full" and train.parallel == "ddp"
    head = shape.head * _bytes_of_a_weight(train) if whole_head else 0
    return tile + head + 12 * tokens * shape.hidden


def generation_memory(shape: Shape, config: Config, lengths: Lengths, gpu: GPU) -> Memory:
    """Memory of the engine with 16-bit weights.

    The built-in one keeps lanes of doubling sizes, up to the longest answer's. vLLM keeps pages: as many as
    are used, within the share of the GPU that it may take, and at least those of one longest answer.
    """
    longest = lengths.prompt + config.responses.max_tokens
    if config.engine.name == "vllm":
        vllm = config.engine.vllm
        weights, room = vllm_room(shape, config, gpu)
        one_answer = longest * shape.kv_bytes / vllm.tensor_parallel_size
        return Memory(weights=weights, cache=max(min(room, vllm.max_num_seqs * one_answer), one_answer))
    drawing = 24.0 * config.engine.slots * shape.vocabulary  # probabilities in float64
    return Memory(
        weights=2.0 * shape.parameters,
        cache=2.0 * lane(longest) * config.engine.slots * shape.kv_bytes,
        logits=drawing,
    )


def vllm_room(shape: Shape, config: Config, gpu: GPU) -> tuple[float, float]:
    """Bytes of the weights on one of vLLM's GPUs, and what is left there for keys and values."""
    own = config.engine.vllm
    weights = 2.0 * shape.parameters / own.tensor_parallel_size
    return weights, (own.gpu_memory_utilization * gpu.memory * GIB - CONTEXT) / (1 + SLACK) - weights


def lane(positions: int) -> int:
    """The engine's lane for so many positions: the next power of two."""
    return max(64, 1 << (positions - 1).bit_length())


# Tokens and time.

PERSONA_FRAME = 150
"""Tokens around the persona and of it, in the request for a prompt (assumed)."""
PERSONA, DRAFTS_EACH = 60, 1.3
"""Tokens of a persona that the model writes itself, and how many it writes for one that is kept (assumed)."""
JUDGE_FRAME = 140
"""Tokens of the judge's template (assumed)."""
VERDICT = 5
"""Tokens of a ranking line."""
KEPT = {"all": 1.0, "confident": 0.5}
"""Share of the pairs that pass the filter (assumed: flips are reported for 18 to 56 % of pairs, arXiv
2309.00267)."""
LAUNCH = 0.0007
"""Seconds that the built-in engine takes at least for a layer of a decoding step (assumed: Python starts its
kernels)."""
VLLM_STEP = 0.008
"""Seconds that a step of vLLM takes at least (assumed: its scheduler; kernels are started by a graph)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What is assumed: mean tokens of a prompt and of an answer, and the share of the GPU's peak rate that is
    reached."""

    prompt: int = 60
    response: int = 400
    mfu: float = 0.40

    def __post_init__(self) -> None:
        if min(self.prompt, self.response) < 1 or not 0 < self.mfu <= 1:
            raise ConfigError(
                "--prompt-tokens and --response-tokens are at least 1, --mfu lies between 0 and 1",
                key="--prompt-tokens",
            )

    def pair(self, train: TrainConfig) -> int:
        """Tokens computed for a mean pair."""
        shared = train.share_prompt and train.batches == "packed"
        return self.prompt * (1 if shared else 2) + 2 * self.response

    def worst(self, train: TrainConfig, pairs: int) -> int:
        """Tokens of the largest micro-batch of so many pairs. A longest pair has PEAK times the mean, at most
        what train.max_length lets pass; packed rows get one each, beside mean ones; padded rows get those of
        like length."""
        longest = min(PEAK * self.pair(train), 2 * train.max_length)
        return longest + (pairs - 1) * (
            min(self.pair(train), longest) if train.batches == "packed" else longest
        )


def flops_per_token(shape: Shape, train: TrainConfig, context: float) -> float:
    """FLOP to train on one token with `context` tokens before it on average: 6 for each weight, 8 with
    checkpointing, 4 and 6 with an adapter; the tiled head is made again in the backward pass, unless it is
    frozen."""
    full = 2 if train.method == "full" else 0
    again = 2 if train.gradient_checkpointing else 0
    attention = 4 * context * shape.heads * shape.head_dim * shape.layers  # forward: scores and their use
    return shape.linear * (4 + full + again) + shape.head * (4 + 2 * full) + attention * (3 + again / 2)


def training_seconds(shape: Shape, train: TrainConfig, tokens: int, lengths: Lengths, rate: float) -> float:
    """Seconds for so many tokens at `rate` FLOP/s; losses with a reference need one more forward pass."""
    context = lengths.prompt + lengths.response / 2
    flops = flops_per_token(shape, train, context)
    if train.needs_reference:
        flops += 2 * (shape.linear + shape.head) / train.epochs
    return tokens * flops / rate


def writing_seconds(shape: Shape, slots: int, tokens: int, length: int, gpu: GPU) -> float:
    """Seconds to write `tokens` tokens, `slots` samples at once: each step reads all weights and the lane's
    keys and values."""
    step = (2 * shape.parameters + slots * lane(length) * shape.kv_bytes) / (gpu.bandwidth * 1e9)
    return tokens / slots * max(step, shape.layers * LAUNCH)


def vllm_seconds(shape: Shape, config: Config, tokens: int, length: int, gpu: GPU) -> float:
    """The same for vLLM: as many samples at once as its pages hold at their full mean length, half of which a
    step reads."""
    own = config.engine.vllm
    _, room = vllm_room(shape, config, gpu)
    held = room * own.tensor_parallel_size / (length * shape.kv_bytes)
    at_once = max(1.0, min(own.max_num_seqs, held))
    read = (2 * shape.parameters + at_once * length / 2 * shape.kv_bytes) / own.tensor_parallel_size
    return tokens / at_once * max(read / (gpu.bandwidth * 1e9), VLLM_STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Requests to a model in one stage, and the mean tokens read and written for each."""

    name: str
    items: int
    read: float
    written: int


def stages(config: Config, shape: Shape, gpu: GPU, gpus: int, lengths: Lengths) -> list[PlannedStage]:
    """Tokens and seconds by stage. All but the training run on one GPU. Of a given data set (pairs.source),
    whose size is not known here, personas.n pairs are assumed."""
    before, after = _asked_before_training(config, lengths), _asked_for_evaluation(config, lengths)
    return [
        *(_asked_stage(asked, config, shape, gpu, lengths) for asked in before),
        _training_stage(config, shape, gpu, gpus, lengths),
        *(_asked_stage(asked, config, shape, gpu, lengths) for asked in after),
    ]


def _people(config: Config) -> int:
    """Personas whose prompts are trained on; none where pairs are given."""
    return 0 if config.pairs.source is not None else config.personas.n


def _asked_before_training(config: Config, lengths: Lengths) -> list[_Asked]:
    people, n, judging = _people(config), config.responses.n, config.judging
    writers = people + config.personas.held_out if config.prompts.source is None else 0
    compared = people * len(compared_pairs(n, judging.comparisons_per_answer)) * (1 + len(judging.panel))
    asks_model = judging.method in ("logprob", "text")
    verdicts = compared * (2 if judging.orders == "both" else 1) if asks_model else 0
    drafts = int(DRAFTS_EACH * writers) if config.personas.source == "self" else 0
    read, written = _verdict_tokens(config, lengths)
    return [
        *([_Asked(name="personas", items=drafts, read=PERSONA_FRAME, written=PERSONA)] if drafts else []),
        _Asked(name="prompts", items=writers, read=PERSONA_FRAME, written=lengths.prompt),
        # A prompt is read once for all its answers.
        _Asked(name="responses", items=people * n, read=lengths.prompt / n, written=lengths.response),
        _Asked(name="verdicts", items=verdicts, read=read, written=written),
    ]


def _asked_for_evaluation(config: Config, lengths: Lengths) -> list[_Asked]:
    items = 2 * config.personas.held_out
    read, written = _verdict_tokens(config, lengths)
    return [
        _Asked(name="held-out answers", items=items, read=lengths.prompt, written=lengths.response),
        _Asked(name="held-out verdicts", items=items, read=read, written=written),
    ]


def _verdict_tokens(config: Config, lengths: Lengths) -> tuple[int, int]:
    """Tokens read and written for one verdict."""
    read = JUDGE_FRAME + lengths.prompt + 2 * lengths.response
    return read, VERDICT if config.judging.method == "text" else 0


def _asked_stage(asked: _Asked, config: Config, shape: Shape, gpu: GPU, lengths: Lengths) -> PlannedStage:
    elsewhere = "verdicts" in asked.name and config.judging.engine is not None  # another model's work
    written = asked.items * asked.written
    reading = 2 * asked.items * (asked.read * shape.linear + shape.head) / _rate(gpu, lengths)
    length = int(max(asked.read, lengths.prompt)) + asked.written
    if config.engine.name == "vllm":
        writing = vllm_seconds(shape, config, written, length, gpu)
    else:
        writing = writing_seconds(shape, config.engine.slots, written, length, gpu)
    seconds = 0.0 if elsewhere else reading + writing
    return _planned(asked.name, asked.items, int(asked.items * asked.read), written, seconds)


def _training_stage(config: Config, shape: Shape, gpu: GPU, gpus: int, lengths: Lengths) -> PlannedStage:
    people, n = _people(config), config.responses.n
    chosen = {"all": people * n * (n - 1) // 2, "adjacent": people * (n - 1)}.get(config.pairs.rule, people)
    given = config.pairs.source is not None
    pairs = config.personas.n if given else int(chosen * KEPT[config.pairs.keep])
    tokens = pairs * lengths.pair(config.train) * config.train.epochs
    seconds = training_seconds(shape, config.train, tokens, lengths, _rate(gpu, lengths) * gpus)
    return _planned("training", pairs, tokens, 0, seconds)


def _rate(gpu: GPU, lengths: Lengths) -> float:
    """FLOP/s that one GPU reaches."""
    return gpu.tflops * 1e12 * lengths.mfu


def _planned(name: str, items: int, read: int, written: int, seconds: float) -> PlannedStage:
    return PlannedStage(
        name=name, items=items, read=read, written=written, seconds=seconds, hours=seconds / 3600
    )


# The plan.


WAYS: dict[str, tuple[str, str, str]] = {
    "full, float32, adamw": ("full", "float32", "adamw"),
    "full, float32, adamw_8bit": ("full", "float32", "adamw_8bit"),
    "full, bfloat16, adamw_sr": ("full", "bfloat16", "adamw_sr"),
    "lora, bfloat16": ("lora", "bfloat16", "adamw"),
    "qlora, bfloat16": ("qlora", "bfloat16", "adamw"),
}
"""Ways of training by name: train.method, train.weights, train.optimizer."""


def make_plan(config: Config, gpu: GPU, gpus: int | None = None, lengths: Lengths | None = None) -> Plan:
    """The plan of a config; `gpus` is train.processes, if not given.

    Raises ConfigError where the batch does not divide among the GPUs.
    """
    shape, train, lengths = read_shape(config.model, config.revision), config.train, lengths or Lengths()
    gpus = train.processes if gpus is None else gpus
    if gpus < 1 or train.batch_size % (train.micro_batch_size * gpus):
        raise ConfigError(
            f"train.batch_size {train.batch_size} is no multiple of {gpus} GPUs times train.micro_batch_size "
            f"{train.micro_batch_size}. Set --train.micro_batch_size or --gpus",
            key="train.batch_size",
        )
    longest = lengths.worst(train, train.micro_batch_size)
    training = training_memory(shape, train, longest, gpus)
    generation = generation_memory(shape, config, lengths, gpu)
    planned = stages(config, shape, gpu, gpus, lengths)
    return Plan(
        model=config.model,
        parameters=shape.parameters,
        gpu=gpu.name,
        gpus=gpus,
        gpu_gib=gpu.memory,
        fits=max(training.total, generation.total) <= gpu.memory * GIB,
        assumed=Assumptions(**dataclasses.asdict(lengths), longest_pair=PEAK, kept=KEPT[config.pairs.keep]),
        engine=config.engine.name,
        method=train.method,
        weights=train.weights,
        optimizer=train.optimizer,
        parallel=train.parallel,
        gradient_checkpointing=train.gradient_checkpointing,
        micro_batch_size=train.micro_batch_size,
        micro_batch_tokens=longest,
        training_gib=training.in_gib(),
        generation_gib=generation.in_gib(),
        stages=planned,
        hours=sum(stage.seconds for stage in planned) / 3600,
        ways=list(_ways(shape, train, gpu, gpus, lengths)),
    )


def _ways(shape: Shape, train: TrainConfig, gpu: GPU, gpus: int, lengths: Lengths) -> Iterator[TrainingWay]:
    for name, (method, weights, optimizer) in WAYS.items():
        # 4-bit weights are not split; DeepSpeed keeps float32 masters, which stochastic rounding does
        # without.
        zero3 = train.parallel == "zero3" and optimizer != "adamw_sr"
        splits = gpus > 1 and method != "qlora"
        for parallel in ("ddp", "zero3" if zero3 else "fsdp2") if splits else ("ddp",):
            settings = {"method": method, "weights": weights, "optimizer": optimizer, "parallel": parallel}
            yield _way(name, train.model_copy(update=settings), shape, gpu, gpus, lengths)


def _way(name: str, train: TrainConfig, shape: Shape, gpu: GPU, gpus: int, lengths: Lengths) -> TrainingWay:
    def gib(pairs: int) -> float:
        return training_memory(shape, train, lengths.worst(train, pairs), gpus).total / GIB

    sizes = [2**k for k in range(11) if 2**k * gpus <= train.batch_size]
    return TrainingWay(
        name=name,
        parallel=train.parallel,
        one_pair_gib=gib(1),
        micro_batch_gib=gib(train.micro_batch_size),
        largest_micro_batch=max((size for size in sizes if gib(size) <= gpu.memory), default=0),
    )
