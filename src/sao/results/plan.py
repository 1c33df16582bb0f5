"""The result of `sao plan`: what a recipe takes, computed before anything starts."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Result


class Assumptions(Result):
    """What the plan assumes."""

    prompt: int
    """Mean tokens of a prompt."""
    response: int
    """Mean tokens of an answer."""
    mfu: float
    """Share of the GPU's peak rate that is reached."""
    longest_pair: float
    """The longest pairs of a set over the mean one."""
    kept: float
    """Share of the pairs that are kept."""


class MemoryParts(Result):
    """Memory on one GPU at the worst moment, in GiB."""

    weights: float
    """The weights."""
    copies: float
    """bfloat16 copies of float32 weights, or layers gathered from the other GPUs."""
    gradients: float
    """Gradients."""
    optimiser: float
    """The optimiser's moments."""
    activations: float
    """What the layers keep for the backward pass."""
    logits: float
    """A tile of logits, what the head's gradient needs, and the answers' hidden states."""
    cache: float
    """Keys and values of the samples under way."""
    loading: float
    """The whole model before it is shared out among the GPUs; not on top of the rest."""
    overhead: float
    """The CUDA context, and what the allocator loses."""
    total: float
    """All of it."""


class PlannedStage(Result):
    """One stage: tokens read in one go, tokens written one by one, and the time of both."""

    name: str
    """Name of the stage."""
    items: int
    """Prompts, answers, verdicts or pairs."""
    read: int
    """Tokens read."""
    written: int
    """Tokens written."""
    seconds: float
    """Seconds; training on all GPUs, the rest on the plan's `replicas`."""
    hours: float
    """The same in hours."""


class TrainingWay(Result):
    """A way of training, and whether it fits."""

    name: str
    """Method, format of the weights, optimiser."""
    parallel: str
    """train.parallel."""
    one_pair_gib: float
    """GiB on each GPU with micro-batches of one pair."""
    micro_batch_gib: float
    """GiB on each GPU with the recipe's micro-batch."""
    largest_micro_batch: int
    """Pairs of the largest micro-batch that fits, a power of two; 0 where not even one pair does."""


class Plan(Result):
    """What a recipe takes: memory of each GPU, tokens and hours of each stage."""

    kind: Literal["plan"] = "plan"
    """What this result is."""
    version: Literal[2] = 2
    """Version of the schema."""
    model: str
    """The recipe's model."""
    parameters: int
    """Weights of the model."""
    gpu: str
    """The GPU that is planned for."""
    gpus: int
    """How many of them."""
    nodes: int = 1
    """Machines that they are in, as many in each."""
    replicas: int = 1
    """Engines that write and judge side by side."""
    gpu_gib: float
    """Memory of one, in GiB."""
    fits: bool
    """Whether training and generation both fit."""
    assumed: Assumptions
    """What is assumed."""
    engine: str
    """The recipe's engine.name; auto is planned as the built-in one."""
    method: str
    """train.method."""
    weights: str
    """train.weights."""
    optimizer: str
    """train.optimizer."""
    parallel: str
    """train.parallel."""
    gradient_checkpointing: bool
    """train.gradient_checkpointing."""
    micro_batch_size: int
    """Pairs of a micro-batch on each GPU."""
    micro_batch_tokens: int
    """Tokens of the longest micro-batch."""
    training_gib: MemoryParts
    """Memory while training."""
    generation_gib: MemoryParts
    """Memory while generating."""
    stages: list[PlannedStage]
    """The stages in order, all rounds together."""
    rounds: int = 1
    """Rounds of the recipe."""
    hours_by_round: list[float]
    """Hours of each round. A later one writes no held-out prompts; with rounds.data all it trains on more."""
    hours: float
    """Hours of all stages, all rounds together."""
    ways: list[TrainingWay]
    """Ways of training, the recipe's own among them."""
