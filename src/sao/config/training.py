"""How the model is trained on the pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sao.config.section import Section, setting

Loss = Literal["simpo", "dpo", "ipo", "dpo_norm", "orpo", "cpo", "kto"]
DEFAULT_BETA: dict[str, float] = {
    "simpo": 10.0, "dpo": 0.1, "ipo": 0.1, "dpo_norm": 5.0, "orpo": 0.1, "cpo": 0.1, "kto": 0.1,
}  # fmt: skip
"""What train.beta is where it is not given; the losses measure it in different units (see
sao/training/losses.py)."""


class LoraConfig(Section):
    """The adapter of `train.method: lora` and `qlora`."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: str | list[str] = "all-linear"
    """Layers that get an adapter: all-linear (every linear layer but the head) or a list of names such as
    q_proj."""


class TrainConfig(Section):
    """Preference optimisation."""

    loss: Loss = "simpo"
    """simpo, dpo, ipo, dpo_norm (length-normalised DPO), orpo, cpo or kto; equations in
    sao/training/losses.py."""
    beta: float | None = Field(default=None, gt=0)
    """β of the loss (for ipo its τ, for orpo its λ). null takes the loss's usual one: simpo 10 (as the
    paper), dpo_norm 5, others 0.1."""
    gamma: float | None = Field(default=None, ge=0)
    """SimPO's target margin γ in units of reward (paper: 3). Give this or gamma_beta_ratio, not both."""
    gamma_beta_ratio: float | None = Field(default=None, ge=0)
    """Target margin as a share of β (the SimPO repository's way of writing it): γ = ratio · β."""
    margin_weight: float = Field(default=0.0, ge=0)
    """Further target margin of each pair, in units of reward: this times the judge's margin (nats) of the
    pair."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability with which a label is taken to be wrong."""
    soft_labels: bool = False
    """Whether a pair's label is the judge's probability of the chosen answer instead of 1."""
    nll_weight: float | None = Field(default=None, ge=0)
    """Weight of the chosen answer's negative log-likelihood, nats per token. null: 1 for orpo and cpo, else
    0."""
    nll_average: Literal["pairs", "tokens"] = "pairs"
    """Whether each pair or each token of the batch weighs the same in that term (TRL: tokens)."""
    nll_on_prompt: bool = False
    """Whether that term also covers the prompt (TRL's ORPO does)."""
    method: Literal["full", "lora", "qlora"] = "full"
    """full: all weights; lora: an adapter; qlora: an adapter on weights held in 4 bits (bitsandbytes)."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Format of the weights while they are trained (bfloat16 with optimizer adamw only for adapters: small
    steps round away)."""
    half_precision: bool | None = None
    """Whether matrix products are made in bfloat16 while the weights keep their format (autocast). null: on a
    GPU, not on a CPU; true pays on a CPU that has AVX512-BF16 or AMX (docs/results.md). Full training of
    bfloat16 weights needs none."""
    optimizer: Literal["adamw", "adamw_8bit", "adamw_sr"] = "adamw"
    """adamw; adamw_8bit (bitsandbytes: states in 8 bits); adamw_sr (weights and states in bfloat16, rounded
    stochastically)."""
    router: Literal["frozen", "trained"] = "frozen"
    """What becomes of the routers of a mixture of experts. Either way no loss that balances experts is added.
    (Adapters never go to routers.)"""
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate (paper: 1e-6)."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Pairs that are trained on, at most, drawn by a hash of their ids; null: all. Runs that are compared can
    be given as many steps."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    seed: int | None = Field(default=None, ge=0)
    """Order of the pairs, the adapter's start and dropout: another one repeats a training on the same pairs.
    null: the run's."""
    batch_size: int = Field(default=128, ge=1)
    """Pairs to one optimiser step, over all GPUs."""
    micro_batch_size: int = setting(default=8, ge=1, affects_records=False, because="rounding only")
    """Pairs to one forward pass on one GPU; times the number of GPUs it must divide batch_size."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; then it falls as a cosine."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_length: int = Field(default=2048, ge=8)
    """Longest prompt plus answer, in tokens."""
    reasoning: Literal["learn", "keep", "drop"] = "learn"
    """What becomes of what a model thought before an answer: learn (it counts in the loss like the answer),
    keep (the answer is learnt after it, but it is not) or drop (the answer is learnt without it)."""
    too_long: Literal["drop", "cut"] = "drop"
    """What happens to a pair that is longer: dropped, or its answers cut at the end (too long a prompt is
    always dropped)."""
    batches: Literal["auto", "packed", "padded"] = setting(
        default="auto", affects_records=False, because="rounding only"
    )
    """packed: the answers of a micro-batch in one row without padding; padded: one row each, the model's own
    attention; auto: packed where a comparison at the start shows that no answer sees another one, else padded
    (linear attention, convolutions, state spaces)."""
    share_prompt: bool = setting(default=True, affects_records=False, because="rounding only")
    """Whether a packed pair's prompt is computed once for both answers."""
    gradient_checkpointing: bool = setting(default=False, affects_records=False, because="memory")
    """Keep only each layer's input and compute the rest again in the backward pass: less memory, a third more
    time."""
    processes: Annotated[int, Field(ge=1)] | None = setting(
        default=None, affects_records=False, because="rounding only"
    )
    """Processes that train together, one to a GPU: on this machine by torchrun, on a cluster (ray.address) by
    Ray. null: 1; on a cluster as many as it has GPUs (machines, where it has none) and as divide the batch.
    (Without Ray, for several machines call `sao train` by torchrun.)"""
    nodes: Annotated[int, Field(ge=1)] | None = setting(
        default=None, affects_records=False, because="where work is done"
    )
    """Machines of the cluster over which the processes are spread, as many on each; null: wherever there is
    room. More than 1 needs Ray."""
    parallel: Literal["ddp", "fsdp2", "zero3"] = "ddp"
    """How several processes share the work: copies of the model, or its weights, gradients and states
    split."""
    held_out_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pairs kept from training and measured while it runs (metrics eval_*)."""
    eval_steps: int = setting(default=50, ge=1, affects_records=False, because="when metrics are measured")
    """Optimiser steps between those measurements and between the alarms' samples."""
    samples: int = setting(default=0, ge=0, le=64, affects_records=False, because="metrics only")
    """Answers sampled every eval_steps (to held-out prompts where there are any), to watch their length and
    repetition."""
    on_alarm: Literal["warn", "stop"] = setting(
        default="warn",
        affects_records=False,
        because="a training that an alarm stopped is not finished: it goes on from its checkpoint",
    )
    """What an alarm does (falling chosen log-probability, exploding margin, growing or repetitive
    samples)."""
    save_steps: int = setting(default=50, ge=1, affects_records=False, because="when checkpoints are written")
    """Optimiser steps between checkpoints."""
    save_minutes: float = setting(
        default=5.0, gt=0, affects_records=False, because="when checkpoints are written"
    )
    """Minutes after which a checkpoint is also written, at the end of the step under way: no more work than
    that is lost."""
    report_to: list[Literal["wandb", "tensorboard"]] = setting(
        default=[], affects_records=False, because="where metrics go"
    )
    """Where metrics go besides metrics.jsonl."""
    push_to_hub: str | None = setting(default=None, affects_records=False, because="where the model goes")
    """Hub id to which the finished model is uploaded with its card, as a private repository (HF_TOKEN in the
    environment)."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ValueError(
                f"gamma ({self.gamma}) and gamma_beta_ratio ({self.gamma_beta_ratio}) are both given; keep "
                "one (gamma = gamma_beta_ratio * beta)"
            )
        if self.loss != "simpo" and (self.gamma or self.gamma_beta_ratio):
            raise ValueError(f"gamma and gamma_beta_ratio belong to simpo, not to {self.loss}; take them out")
        processes = self.processes or 1
        if self.batch_size % (self.micro_batch_size * processes):
            each = f" times processes {processes}" if processes > 1 else ""
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size}{each} does not divide batch_size {self.batch_size}"
            )
        if self.method == "full" and self.weights == "bfloat16" and self.optimizer != "adamw_sr":
            raise ValueError(
                f"weights bfloat16 with optimizer {self.optimizer}: steps of lr {self.lr:g} are mostly "
                "rounded away (they are smaller than the weights' last digit). Take weights float32, "
                "optimizer adamw_sr, or method lora"
            )
        if self.optimizer == "adamw_sr" and self.weights != "bfloat16":
            raise ValueError(
                "optimizer adamw_sr rounds bfloat16 weights stochastically: set weights bfloat16 with it"
            )
        return self

    @property
    def scale(self) -> float:
        """β, or the loss's usual one where it is not given."""
        return DEFAULT_BETA[self.loss] if self.beta is None else self.beta

    @property
    def target_margin(self) -> float:
        """SimPO's γ, however it was written; the paper's γ/β of 0.3 where neither form is given; 0 for other
        losses."""
        if self.loss != "simpo":
            return 0.0
        if self.gamma is not None:
            return self.gamma
        ratio = 0.3 if self.gamma_beta_ratio is None else self.gamma_beta_ratio
        return ratio * self.scale

    @property
    def likelihood_weight(self) -> float:
        """The weight of the likelihood term; 1 for the losses that are defined with it."""
        if self.nll_weight is not None:
            return self.nll_weight
        return 1.0 if self.loss in ("orpo", "cpo") else 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the untrained model."""
        return self.loss in ("dpo", "ipo", "dpo_norm", "kto")
