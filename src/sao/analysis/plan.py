"""What a recipe will take before anything starts: memory for each GPU, tokens and hours of each stage (`sao
plan RECIPE`).

What enters: a config, a GPU's name and assumed lengths. What leaves: a `Plan`. All of it is arithmetic on the
model's config.json (docs/recipes.md has the formulas in a table); `sao.analysis.probe` measures a few real
optimiser steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sao.config import Config, LoraConfig, TrainConfig
from sao.errors import ConfigError
from sao.models.shapes import GPU, Shape, read_shape
from sao.stages.judging import opponents_of

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
KEPT_BY_NORMS = {(2, "bfloat16"): 16, (2, "float32"): 26, (2, "adapter"): 22,
                 (4, "bfloat16"): 36, (4, "float32"): 42, (4, "adapter"): 24}  # fmt: skip
"""Bytes for each hidden unit that a layer's norms and the inputs of its linear maps keep for the backward
pass. Counted with saved_tensors_hooks on tiny models (tests/test_plan.py), by norms in a layer and what is
trained."""


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

    def parts(self) -> dict[str, float]:
        """GiB by name."""
        named = dataclasses.asdict(self) | {"overhead": self.overhead, "total": self.total}
        return {name: round(value / GIB, 2) for name, value in named.items() if value}


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
    size = 4 if _format(train) == "float32" else 2
    trained = shape.parameters if full else adapter_parameters(shape, train.lora)
    linear = shape.linear * (FOUR_BITS if train.method == "qlora" else size)
    # adapters are float32
    weights = linear + (shape.parameters - shape.linear) * size + (0 if full else 4 * trained)
    gradients, states = trained * (size if full else 4.0), trained * STATES[train.optimizer]
    # Autocast keeps a bfloat16 copy of the float32 weights that it has used until the forward pass is over.
    copies = 2.0 * shape.linear if size == 4 and train.method != "qlora" else 0.0
    if split:
        weights, gradients, states = weights / gpus, gradients / gpus, states / gpus
        # One layer in use, the next on its way, and the head, in bfloat16, with their gradients.
        copies = 2.0 * (2 * shape.linear / shape.layers + shape.head) * (2 if full else 1)
        # what is gathered from
        copies += 2 * trained / gpus if train.parallel == "zero3" and full and size == 4 else 0
    elif gpus > 1:
        gradients *= 2  # DDP sums them in buckets of its own
    layer = layer_bytes(shape, train) * tokens
    if train.gradient_checkpointing:  # the layers' inputs, and one layer with its gradients
        activations = shape.layers * shape.hidden * size * tokens + 2 * layer
    else:
        activations = (shape.layers + 1) * layer
    if shape.softcap:  # capped scores are made segment by segment, and again in the backward pass
        activations += 16 * shape.heads * train.max_length**2
    tile = 4 * min(tokens, TILE) * min(shape.vocabulary, TILE) * (3 if shape.softcap else 2)
    head = shape.head * size if full and not split else 0  # its gradient is made whole, then added
    logits = tile + head + 12 * tokens * shape.hidden
    return Memory(
        weights=weights,
        copies=copies,
        gradients=gradients,
        optimiser=states,
        activations=activations,
        logits=logits,
        loading=float(size * shape.parameters) if split else 0.0,
    )


def generation_memory(shape: Shape, config: Config, lengths: Lengths, gpu: GPU) -> Memory:
    """Memory of the engine with 16-bit weights.

    The built-in one keeps lanes of doubling sizes, up to the longest answer's. vLLM keeps pages: as many as
    are used, within the share of the GPU that it may take, and at least those of one longest answer.
    """
    if config.engine.name == "vllm":
        weights, room = vllm_room(shape, config, gpu)
        longest = lengths.prompt + config.responses.max_tokens
        wanted = (
            config.engine.vllm.max_num_seqs
            * longest
            * shape.kv_bytes
            / config.engine.vllm.tensor_parallel_size
        )
        cache = max(min(room, wanted), longest * shape.kv_bytes / config.engine.vllm.tensor_parallel_size)
        return Memory(weights=weights, cache=cache)
    longest = lane(lengths.prompt + config.responses.max_tokens)
    drawing = 24.0 * config.engine.slots * shape.vocabulary  # probabilities in float64
    return Memory(
        weights=2.0 * shape.parameters,
        cache=2.0 * longest * config.engine.slots * shape.kv_bytes,
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
                "--prompt-tokens and --response-tokens are at least 1, --mfu lies between 0 and 1"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Tokens read in one go, tokens written one by one, and the seconds of both."""

    name: str
    items: int
    read: int
    written: int
    seconds: float


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


def stages(config: Config, shape: Shape, gpu: GPU, gpus: int, lengths: Lengths) -> list[Stage]:
    """Tokens and seconds by stage. All but the training run on one GPU. Of a given data set (pairs.source),
    whose size is not known here, personas.n pairs are assumed."""
    given = config.pairs.source is not None
    people, n, held = 0 if given else config.personas.n, config.responses.n, config.personas.held_out
    x, y, rate = lengths.prompt, lengths.response, gpu.tflops * 1e12 * lengths.mfu
    possible = people * n * (n - 1) // 2
    asked, text = config.judging.method in ("logprob", "text"), config.judging.method == "text"
    compared = people * len(opponents_of(n, config.judging.opponents)) * (1 + len(config.judging.panel))
    judged = compared * (2 if config.judging.orders == "both" else 1) * asked
    verdict = (JUDGE_FRAME + x + 2 * y, VERDICT if text else 0)
    drafts = (
        DRAFTS_EACH * (people + held)
        if config.personas.source == "self" and config.prompts.source is None
        else 0
    )
    asking = people + held if config.prompts.source is None else 0
    rows = [  # name, items, tokens read and written for each
        *([("personas", int(drafts), PERSONA_FRAME, PERSONA)] if drafts else []),
        ("prompts", asking, PERSONA_FRAME, x),
        ("responses", people * n, x / n, y),  # a prompt is read once for all its answers
        ("verdicts", judged, *verdict),
        ("held-out answers", 2 * held, x, y),
        ("held-out verdicts", 2 * held, *verdict),
    ]
    found = []
    for name, items, read, written in rows:
        seconds = 2 * items * (read * shape.linear + shape.head) / rate
        length = int(max(read, x)) + written
        seconds += (
            vllm_seconds(shape, config, items * written, length, gpu)
            if config.engine.name == "vllm"
            else writing_seconds(shape, config.engine.slots, items * written, length, gpu)
        )
        if "verdicts" in name and config.judging.engine is not None:
            seconds = 0.0  # another model's work, elsewhere
        found.append(
            Stage(name=name, items=items, read=int(items * read), written=items * written, seconds=seconds)
        )
    chosen = {"all": possible, "adjacent": people * (n - 1)}.get(config.pairs.rule, people)
    pairs = config.personas.n if given else int(chosen * KEPT[config.pairs.keep])
    tokens = pairs * lengths.pair(config.train) * config.train.epochs
    seconds = training_seconds(shape, config.train, tokens, lengths, rate * gpus)
    found.insert(len(found) - 2, Stage(name="training", items=pairs, read=tokens, written=0, seconds=seconds))
    return found


# The plan.

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("full, float32, adamw", {"method": "full", "weights": "float32", "optimizer": "adamw"}),
    ("full, float32, adamw_8bit", {"method": "full", "weights": "float32", "optimizer": "adamw_8bit"}),
    ("full, bfloat16, adamw_sr", {"method": "full", "weights": "bfloat16", "optimizer": "adamw_sr"}),
    ("lora, bfloat16", {"method": "lora", "weights": "bfloat16", "optimizer": "adamw"}),
    ("qlora, bfloat16", {"method": "qlora", "weights": "bfloat16", "optimizer": "adamw"}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way of training: bytes on each GPU with one pair and with the recipe's micro-batch, the largest one
    that fits."""

    name: str
    parallel: str
    one_pair: float
    micro_batch: float
    largest: int
    """Pairs; a power of two; 0 where not even one fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe takes on `gpus` GPUs."""

    model: str
    shape: Shape
    gpu: GPU
    gpus: int
    lengths: Lengths
    train: TrainConfig
    engine: str
    """The recipe's engine.name; auto is planned as the built-in one."""
    vllm: bool
    """Whether vLLM generates."""
    kept: float
    """Share of the pairs that are taken to pass the filter."""
    longest: int
    """Tokens of the longest micro-batch."""
    training: Memory
    generation: Memory
    stages: list[Stage]
    ways: list[Way]

    @property
    def fits(self) -> bool:
        """Whether both training and generation do."""
        return max(self.training.total, self.generation.total) <= self.gpu.memory * GIB

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints: GiB, tokens, hours."""
        t = self.train
        return {
            "model": self.model, "parameters": self.shape.parameters, "gpu": self.gpu.name, "gpus": self.gpus,
            "gpu_gib": self.gpu.memory, "fits": self.fits, "assumed": dataclasses.asdict(self.lengths),
            "method": t.method, "weights": t.weights, "optimizer": t.optimizer, "parallel": t.parallel,
            "micro_batch_tokens": self.longest, "training_gib": self.training.parts(),
            "generation_gib": self.generation.parts(),
            "stages": [{**dataclasses.asdict(s), "hours": round(s.seconds / 3600, 2)} for s in self.stages],
            "hours": round(sum(s.seconds for s in self.stages) / 3600, 2),
            "ways": [
                {"name": w.name, "parallel": w.parallel, "one_pair_gib": round(w.one_pair / GIB, 1),
                 "micro_batch_gib": round(w.micro_batch / GIB, 1), "largest_micro_batch": w.largest}
                for w in self.ways
            ],
        }  # fmt: skip


def make_plan(config: Config, gpu: GPU, gpus: int | None = None, lengths: Lengths | None = None) -> Plan:
    """The plan of a config; `gpus` is train.processes, if not given."""
    shape, train, lengths = read_shape(config.model, config.revision), config.train, lengths or Lengths()
    gpus = train.processes if gpus is None else gpus
    if gpus < 1 or train.batch_size % (train.micro_batch_size * gpus):
        raise ConfigError(
            f"train.batch_size {train.batch_size} is no multiple of {gpus} GPUs times train.micro_batch_size "
            f"{train.micro_batch_size}. Set --train.micro_batch_size or --gpus"
        )
    longest = lengths.worst(train, train.micro_batch_size)
    return Plan(
        model=config.model, shape=shape, gpu=gpu, gpus=gpus, lengths=lengths, train=train,
        engine=config.engine.name, vllm=config.engine.name == "vllm", kept=KEPT[config.pairs.keep],
        longest=longest,
        training=training_memory(shape, train, longest, gpus), generation=generation_memory(shape, config,
        lengths, gpu),
        stages=stages(config, shape, gpu, gpus, lengths), ways=_ways(shape, train, gpu, gpus, lengths),
    )  # fmt: skip


def _ways(shape: Shape, train: TrainConfig, gpu: GPU, gpus: int, lengths: Lengths) -> list[Way]:
    sizes = [2**k for k in range(11) if 2**k * gpus <= train.batch_size]
    found = []
    for name, settings in WAYS:
        # 4-bit weights are not split; DeepSpeed keeps float32 masters, which stochastic rounding does
        # without.
        split = "zero3" if train.parallel == "zero3" and settings["optimizer"] != "adamw_sr" else "fsdp2"
        for parallel in ("ddp",) if gpus == 1 or settings["method"] == "qlora" else ("ddp", split):
            way = train.model_copy(update={**settings, "parallel": parallel})
            need = {
                b: training_memory(shape, way, lengths.worst(train, b), gpus).total
                for b in {*sizes, train.micro_batch_size}
            }
            largest = max((b for b in sizes if need[b] <= gpu.memory * GIB), default=0)
            here = need[train.micro_batch_size]
            found.append(
                Way(name=name, parallel=parallel, one_pair=need[1], micro_batch=here, largest=largest)
            )
    return found


AUTO = "Engine: the built-in one is assumed. Where vLLM is installed engine.name auto takes that: plan it by --engine.name vllm."  # noqa: E501


def show_plan(plan: Plan) -> str:
    """The plan as text."""
    t, gib, a = plan.train, plan.gpu.memory, plan.lengths
    full = [name for name in ("training", "generation") if getattr(plan, name).total > gib * GIB]
    verdict = f"{' and '.join(full)} DO NOT FIT" if full else "fits"
    lines = [
        f"{plan.model}: {plan.shape.parameters:,} weights; {plan.gpus} × {plan.gpu.name} ({gib:g} GiB each): "
        f"{verdict}",
        f"Computed, not measured. Assumed: prompts of {a.prompt} tokens, answers of {a.response}, "
        f"{100 * a.mfu:.0f} % of the "
        f"GPU's peak rate, the longest pairs {PEAK} times the mean, {100 * plan.kept:.0f} % of the pairs "
        "kept.",
        *([AUTO] if plan.engine == "auto" else []),
        "",
        f"{'GiB on each GPU':18}{'training':>10}{'generation':>12}",
    ]
    training, generation = plan.training.parts(), plan.generation.parts()
    for name in (*(f.name for f in dataclasses.fields(Memory)), "overhead", "total"):
        lines.append(f"{name:18}{training.get(name, 0):10.1f}{generation.get(name, 0):12.1f}")
    lines += [
        f"training: {t.method}, weights {t.weights}, {t.optimizer}, {t.parallel}"
        + (", gradient checkpointing" if t.gradient_checkpointing else "")
        + f"; longest micro-batch: {t.micro_batch_size} pairs, {plan.longest:,} tokens",
        "",
        f"{'stage':18}{'items':>10}{'M tokens read':>15}{'written':>10}{'hours':>8}",
    ]
    for s in plan.stages:
        lines.append(
            f"{s.name:18}{s.items:10,}{s.read / 1e6:15.2f}{s.written / 1e6:10.2f}{s.seconds / 3600:8.1f}"
        )
    total = sum(s.seconds for s in plan.stages) / 3600
    lines += [f"{'all':53}{total:8.1f}", "training on all GPUs, the rest on one", ""]
    lines.append(
        f"{'other ways to train':28}{'processes':>10}{'1 pair':>9}{'as here':>9}{'largest micro-batch that fits':>31}"  # noqa: E501
    )
    for w in plan.ways:
        largest = f"{w.largest} pairs" if w.largest else "none"
        lines.append(
            f"{w.name:28}{w.parallel:>10}{w.one_pair / GIB:9.1f}{w.micro_batch / GIB:9.1f}{largest:>31}"
        )
    if plan.generation.total > gib * GIB:
        way = "more --engine.vllm.tensor_parallel_size" if plan.vllm else "fewer --engine.slots"
        lines.append(f"Generation needs less memory with {way} or a smaller --responses.max_tokens.")
    return "\n".join(lines)
