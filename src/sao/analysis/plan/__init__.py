"""What a recipe will take before anything starts: memory for each GPU, tokens and hours of each stage (`sao
plan RECIPE`).

What enters: a config, a GPU and assumed lengths. What leaves: a `Plan`. All of it is arithmetic on the
model's config.json (docs/recipes.md has the formulas in a table); `sao preview` measures on this machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sao.analysis.plan.hours import (
    KEPT,
    flops_per_token,
    stages,
    together,
    training_seconds,
    vllm_seconds,
    writing_seconds,
)
from sao.analysis.plan.lengths import PEAK, Lengths
from sao.analysis.plan.memory import (
    CONTEXT,
    GIB,
    Memory,
    adapter_parameters,
    generation_memory,
    layer_bytes,
    training_memory,
)
from sao.config import Config, TrainConfig
from sao.engines import replicas_of
from sao.errors import ConfigError
from sao.models.counting import read_shape
from sao.models.shapes import GPU, Shape
from sao.results.plan import Assumptions, Plan, TrainingWay

__all__ = [
    "CONTEXT",
    "GIB",
    "Lengths",
    "Memory",
    "adapter_parameters",
    "flops_per_token",
    "generation_memory",
    "layer_bytes",
    "make_plan",
    "stages",
    "together",
    "training_memory",
    "training_seconds",
    "vllm_seconds",
    "writing_seconds",
]

WAYS: dict[str, tuple[str, str, str]] = {
    "full, float32, adamw": ("full", "float32", "adamw"),
    "full, float32, adamw_8bit": ("full", "float32", "adamw_8bit"),
    "full, bfloat16, adamw_sr": ("full", "bfloat16", "adamw_sr"),
    "lora, bfloat16": ("lora", "bfloat16", "adamw"),
    "qlora, bfloat16": ("qlora", "bfloat16", "adamw"),
}
"""Ways of training by name: train.method, train.weights, train.optimizer."""
LARGEST = 1024
"""Pairs of the largest micro-batch that is looked at."""


def make_plan(
    config: Config,
    gpu: GPU,
    gpus: int | None = None,
    lengths: Lengths | None = None,
    nodes: int | None = None,
) -> Plan:
    """The plan of a config. `gpus` is train.processes, if not given; `nodes` is the machines that they are
    in, train.nodes if not given.

    Raises ConfigError where the batch does not divide among the GPUs, or the GPUs among the machines.
    """
    shape, train, lengths = read_shape(config.model, config.revision), config.train, lengths or Lengths()
    gpus, nodes = _sizes(train, gpus, nodes)
    longest = lengths.worst(train, train.micro_batch_size)
    training = training_memory(shape, train, longest, gpus)
    generation = generation_memory(shape, config, lengths, gpu)
    replicas = planned_replicas(config, gpus, nodes)
    planned = [stages(config, shape, gpu, gpus, lengths, replicas, n) for n in range(1, config.rounds.n + 1)]
    hours = [sum(stage.seconds for stage in round_) / 3600 for round_ in planned]
    return Plan(
        model=config.model, parameters=shape.parameters,
        gpu=gpu.name, gpus=gpus, nodes=nodes, replicas=replicas, gpu_gib=gpu.memory,
        fits=max(training.total, generation.total) <= gpu.memory * GIB,
        assumed=Assumptions(**dataclasses.asdict(lengths), longest_pair=PEAK, kept=KEPT[config.pairs.keep]),
        engine=config.engine.name,
        method=train.method, weights=train.weights, optimizer=train.optimizer, parallel=train.parallel,
        gradient_checkpointing=train.gradient_checkpointing,
        micro_batch_size=train.micro_batch_size, micro_batch_tokens=longest,
        training_gib=training.in_gib(), generation_gib=generation.in_gib(),
        stages=together(planned), rounds=config.rounds.n, hours_by_round=hours, hours=sum(hours),
        ways=list(_ways(shape, train, gpu, gpus, lengths)),
    )  # fmt: skip


def _sizes(train: TrainConfig, gpus: int | None, nodes: int | None) -> tuple[int, int]:
    """GPUs and machines, the recipe's where none are given. Raises ConfigError where they and the batch do
    not go together."""
    gpus = (train.processes or 1) if gpus is None else gpus
    nodes = (train.nodes or 1) if nodes is None else nodes
    if nodes < 1 or gpus % nodes:
        raise ConfigError(f"{gpus} GPUs are not as many on each of {nodes} machines", key="--nodes")
    if gpus < 1 or train.batch_size % (train.micro_batch_size * gpus):
        raise ConfigError(
            f"train.batch_size {train.batch_size} is no multiple of {gpus} GPUs times train.micro_batch_size "
            f"{train.micro_batch_size}. Set --train.micro_batch_size or --gpus",
            key="train.batch_size",
        )
    return gpus, nodes


def planned_replicas(config: Config, gpus: int, nodes: int) -> int:
    """Engines that write and judge side by side: those that the recipe names, or as many as the GPUs hold, a
    model never spanning two machines.

    Raises ConfigError where the GPUs of a machine are too few for one.
    """
    each = config.engine.vllm.tensor_parallel_size if config.engine.name == "vllm" else 1
    on_cluster = config.ray if nodes == 1 else config.ray.model_copy(update={"address": "auto"})
    asked = replicas_of(config.engine, on_cluster)
    room = nodes * (gpus // nodes // each)
    if asked != 1 and room < 1:
        raise ConfigError(
            f"engine.vllm.tensor_parallel_size {each}: each machine has {gpus // nodes} GPUs, and a model is "
            f"never shared by two machines. Give at most {gpus // nodes}",
            key="engine.vllm.tensor_parallel_size",
        )
    return room if asked == "auto" else min(asked, max(1, room))


def _ways(shape: Shape, train: TrainConfig, gpu: GPU, gpus: int, lengths: Lengths) -> Iterator[TrainingWay]:
    """The other ways to train, in each way of sharing out that they can have."""
    for name, (method, weights, optimizer) in WAYS.items():
        settings = {"method": method, "weights": weights, "optimizer": optimizer}
        for parallel in _sharings(train.parallel, method, optimizer, gpus):
            changed = train.model_copy(update={**settings, "parallel": parallel})
            yield _way(name, changed, shape, gpu, gpus, lengths)


def _sharings(own: str, method: str, optimizer: str, gpus: int) -> tuple[str, ...]:
    """Values of train.parallel for a way of training: a whole model on each GPU, and one that is split."""
    if gpus == 1 or method == "qlora":  # 4-bit weights are not split
        return ("ddp",)
    # DeepSpeed keeps float32 masters, which stochastic rounding does without.
    return ("ddp", "zero3" if own == "zero3" and optimizer != "adamw_sr" else "fsdp2")


def _way(name: str, train: TrainConfig, shape: Shape, gpu: GPU, gpus: int, lengths: Lengths) -> TrainingWay:
    def gib(pairs: int) -> float:
        return training_memory(shape, train, lengths.worst(train, pairs), gpus).total / GIB

    sizes = [2**k for k in range(LARGEST.bit_length()) if 2**k * gpus <= train.batch_size]
    return TrainingWay(
        name=name,
        parallel=train.parallel,
        one_pair_gib=gib(1),
        micro_batch_gib=gib(train.micro_batch_size),
        largest_micro_batch=max((size for size in sizes if gib(size) <= gpu.memory), default=0),
    )
