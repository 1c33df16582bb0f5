"""Full fine-tuning on preference pairs: `train(pairs, model, tokenizer, out, config, seed)`.

What enters: token pairs and a chat model. What leaves: `out/model`, a Hugging Face folder, and `out/metrics.jsonl`, a
line for each optimiser step. The loss is SimPO (arXiv 2405.14734, equation 6), the optimiser AdamW on float32 weights.

The same call again goes on from the last whole checkpoint; on a CPU it ends with the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedConfig, PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from sao.chat import ChatTokenizer
from sao.config import TrainConfig
from sao.errors import StoreError, TrainingError
from sao.store import dumps, read_jsonl
from sao.training.checkpoints import fsync, remove, resume_point, seal, writing
from sao.training.losses import IGNORED, response_logps, simpo_loss
from sao.types import make_id, seed_of

OnLog = Callable[[dict[str, float]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A preference pair as token ids. The responses end with the end of turn."""

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The trained model's folder, the optimiser steps taken, and the metrics of the last one."""

    model_dir: Path
    steps: int
    metrics: dict[str, float]


def train(
    pairs: Sequence[TokenPair],
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    out: Path,
    config: TrainConfig,
    seed: int,
    on_log: OnLog | None = None,
) -> TrainResult:
    """Train `model` (in place) on `pairs` and save it to `out/model`; go on from `out/checkpoints` where there are any.

    Where `out/model` exists nothing is trained and the stored result returned. The weights are float32 while training
    (on a GPU the forward pass runs in bfloat16) and are saved in the format in which the model came.

    Args:
        pairs: What to train on; none longer than `config.max_length`, which the caller sees to.
        model: The model to train; its device is kept.
        tokenizer: Its tokenizer, saved with the model.
        out: The folder to write into.
        config: The settings.
        seed: Decides the order of the pairs and, where the model has dropout, its noise.
        on_log: Called with the metrics of each optimiser step that is run.

    Raises:
        TrainingError: There are no pairs, a pair has an empty part, or the loss is not finite.
        StoreError: `out` cannot be written, because the disk is full, say.

    """
    if (out / "model").is_dir():
        remove(out / "checkpoints")  # left over from a kill right after the model was finished
        return _stored_result(out)
    _check(pairs)
    dtype, use_cache = _saved_dtype(model), model.config.use_cache
    with _quiet():
        with writing(out):
            checkpoint = resume_point(out)
        model.float()  # in bfloat16, steps this small are mostly rounded away
        trainer = PreferenceTrainer(pairs, model, tokenizer.pad_id, out, config, seed, on_log)
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            model.config.use_cache = use_cache  # Trainer switches it off, and it would be saved so
            model.train(False)
        model.to(dtype=dtype)  # type: ignore[call-arg]
        _publish(model, tokenizer, out)
    return _stored_result(out)


class EpochOrder(Sampler[int]):
    """The rows of each epoch: a permutation that depends on the seed and the epoch's number alone."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; Trainer calls this before each, also when it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(make_id("order", self.seed, self.epoch)))
        return iter(torch.randperm(self.rows, generator=generator).tolist())


def collate(batch: Sequence[tuple[int, TokenPair]], pad_id: int) -> dict[str, Tensor]:
    """B numbered pairs as one batch of 2B sequences, padded on the right: the chosen ones first, then the rejected.

    Returns:
        input_ids, attention_mask and labels, each [2B, T] (labels −100 outside the responses), and rows [B].

    """
    pairs = [pair for _, pair in batch]
    sides = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    ids = [torch.tensor([*prompt, *response]) for prompt, response in sides]
    labels = [torch.tensor([*[IGNORED] * len(prompt), *response]) for prompt, response in sides]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "rows": torch.tensor([row for row, _ in batch]),
    }


class PreferenceTrainer(Trainer):
    """transformers.Trainer with a preference loss, an order of its own and checkpoints that are whole or nothing."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole global batch

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        model: PreTrainedModel,
        pad_id: int,
        out: Path,
        config: TrainConfig,
        seed: int,
        on_log: OnLog | None,
    ) -> None:
        self.pairs = pairs
        self.config = config
        self.order = EpochOrder(len(pairs), seed)
        self.checkpoints = out / "checkpoints"
        self.metrics_file = out / "metrics.jsonl"
        self.on_log = on_log
        self._step_rows: list[int] = []
        self._measured: list[Tensor] = []
        # Without the tokenizer: Trainer would rewrite the model's own end-of-turn ids to match it.
        super().__init__(
            model=model,
            args=_arguments(config, self.checkpoints, seed, model.device.type),
            data_collator=partial(collate, pad_id=pad_id),
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of numbered pairs in `EpochOrder`; the last one of an epoch may be smaller."""
        loader: DataLoader[Any] = DataLoader(
            list(enumerate(self.pairs)),  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of one optimiser step and the number of pairs in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_rows = [row for batch in batches for row in batch["rows"].tolist()]
        return batches, len(self._step_rows)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A micro-batch's share of the mean loss over the `num_items_in_batch` pairs of the global batch, [].

        Each pair weighs the same, also where micro-batches or the last global batch are smaller than the others.
        """
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        sums, counts = response_logps(outputs.logits, inputs["labels"])  # [2B], [2B]
        chosen, rejected = (sums / counts).chunk(2)  # [B], [B]
        losses = simpo_loss(chosen, rejected, self.config.beta, self.config.target_margin)  # [B]
        self._measured.append(torch.stack([losses, chosen, rejected]).detach())
        loss = losses.sum() / (num_items_in_batch or len(losses))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append the metrics of the optimiser step that was just taken to metrics.jsonl.

        Trainer calls this before it saves a checkpoint, so no broken weights are ever saved.
        """
        if "loss" not in logs:
            return  # Trainer's summary of the whole run
        measured = torch.cat(self._measured, dim=1).double()  # [3, pairs of the step]
        self._measured.clear()
        self._check_finite(measured[0], logs["grad_norm"])
        logs.update(self._metrics(measured))
        super().log(logs, start_time)  # adds the epoch
        line = {"step": self.state.global_step, **logs}
        with writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(dumps(line) + "\n")
        if self.on_log is not None:
            self.on_log(line)

    def _metrics(self, measured: Tensor) -> dict[str, float]:
        """Means over the pairs of a step; `measured` is [3, N]: losses, ā_w and ā_l in nats per token.

        Rewards are β·ā (arXiv 2405.14734, equation 4); the margins are those before γ is subtracted.
        """
        _, chosen, rejected = measured
        beta = self.config.beta
        return {
            "rewards/chosen": beta * chosen.mean().item(),
            "rewards/rejected": beta * rejected.mean().item(),
            "rewards/margins": beta * (chosen - rejected).mean().item(),
            "rewards/accuracies": (chosen > rejected).double().mean().item(),
            "logps/chosen": chosen.mean().item(),
            "logps/rejected": rejected.mean().item(),
        }

    def _check_finite(self, losses: Tensor, grad_norm: float) -> None:
        """Raise TrainingError naming the pairs whose loss is not finite, or all where only the gradient is not."""
        broken = [row for row, fine in zip(self._step_rows, losses.isfinite().tolist(), strict=True) if not fine]
        if not broken and math.isfinite(grad_norm):
            return
        ids = ", ".join(self.pairs[row].id for row in broken or self._step_rows)
        raise TrainingError(
            f"optimiser step {self.state.global_step}: the {'loss' if broken else 'gradient'} is not finite for the "
            f"pairs {ids}. Look at these pairs and whether the model's weights are finite; else lower train.lr "
            f"({self.config.lr:g}) or train.beta ({self.config.beta:g})"
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint that counts only once it is whole (see `sao.training.checkpoints`)."""
        folder = self.checkpoints / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            super()._save_checkpoint(model, trial)
        seal(folder, self.metrics_file)


def _arguments(config: TrainConfig, folder: Path, seed: int, device: str) -> TrainingArguments:
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        optim="adamw_torch",
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        save_steps=config.save_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide a broken loss
        seed=seed % 2**32,  # NumPy takes no more
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # otherwise Trainer splits every batch over all GPUs it sees (DataParallel)
    return args


def _check(pairs: Sequence[TokenPair]) -> None:
    """Raise TrainingError where there is nothing to train on."""
    if not pairs:
        raise TrainingError(
            "there are no pairs to train on. See in the report why they were dropped; then loosen the filter "
            "(pairs.min_margin, pairs.keep) or take more personas (personas.n)"
        )
    for pair in pairs:
        if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):
            raise TrainingError(f"pair {pair.id}: its prompt or a response has no tokens. Drop it before training")


def _saved_dtype(model: PreTrainedModel) -> torch.dtype:
    """The number format in which the model lies on disk; its own where it was not loaded from a folder."""
    source = model.name_or_path
    if not source or not (Path(source) / "config.json").is_file():
        return model.dtype
    settings, _ = PreTrainedConfig.get_config_dict(source)
    name = settings.get("dtype") or settings.get("torch_dtype")  # the second is the older key
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return dtype if isinstance(dtype, torch.dtype) else model.dtype


def _publish(model: PreTrainedModel, tokenizer: ChatTokenizer, out: Path) -> None:
    """Save the model; it appears as `out/model` when it is whole. The checkpoints are no longer needed then."""
    unfinished = out / "model.partial"
    with writing(unfinished):
        model.save_pretrained(unfinished)
        tokenizer.tokenizer.save_pretrained(unfinished)
        fsync(unfinished, out / "metrics.jsonl")
        unfinished.rename(out / "model")
        fsync(out)
        remove(out / "checkpoints")


def _stored_result(out: Path) -> TrainResult:
    """The result of a finished training, from the last line of its metrics."""
    path = out / "metrics.jsonl"
    lines = deque(read_jsonl(path), maxlen=1) if path.is_file() else ()
    if not lines:
        raise StoreError(f"{path}: missing or empty beside a finished model. Delete {out} to train anew")
    return TrainResult(model_dir=out / "model", steps=int(lines[0]["step"]), metrics=lines[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notices off stderr, and its settings as they were afterwards."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
