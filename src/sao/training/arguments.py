"""The settings of a training as transformers.TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from sao.config import TrainConfig
from sao.models.parts import has_experts
from sao.training import parallel


def half_precision(config: TrainConfig, device: torch.device) -> bool:
    """Whether to autocast to bfloat16: train.half_precision, except where the weights themselves are bfloat16
    and trained as such."""
    if config.method == "full" and config.weights == "bfloat16":
        return False
    return device.type == "cuda" if config.half_precision is None else config.half_precision


def training_arguments(
    config: TrainConfig,
    group: parallel.Processes,
    out: Path,
    model: PreTrainedModel,
    seed: int,
    evaluates: bool,
    from_start: bool,
) -> TrainingArguments:
    """The arguments of transformers.Trainer; `evaluates` says whether there is anything to measure.

    The callback says when a checkpoint is saved (see `sao.training.monitors.SaveAndStop`).
    """
    device = model.device
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=group.micro_steps(config),
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=half_precision(config, device),
        run_name=out.name,
        save_strategy="no",
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_steps,
        eval_on_start=evaluates and from_start,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide a broken loss
        seed=seed % 2**32,  # NumPy takes no more
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        log_level="error",
        report_to=list(config.report_to) or "none",
        # Experts without tokens and an index of keys get no gradient: processes that wait for one would each
        # train on their own gradients alone.
        ddp_find_unused_parameters=has_experts(model),
        **_optimisation(config, device),
        **({"use_cpu": device.type == "cpu"} | parallel.arguments(config, group)),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # otherwise Trainer splits every batch over all GPUs it sees (DataParallel)
    return arguments


def _optimisation(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The arguments of the optimiser and its learning rate."""
    # The unfused one makes copies of all weights.
    adamw = "adamw_torch_fused" if device.type == "cuda" else "adamw_torch"
    return {
        "optim": "adamw_bnb_8bit" if config.optimizer == "adamw_8bit" else adamw,
        "learning_rate": config.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share of the steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
    }
