"""The trainer: transformers.Trainer does the stepping, saving and reporting; losses, log-probabilities and
batches are ours.

What enters: token pairs and a policy (`sao.training.policy`). What leaves: trained weights, checkpoints, and
a line of metrics.jsonl for each optimiser step and each measurement. `sao.training.run.train` is what makes
and ends it.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback

from sao.config import TrainConfig
from sao.errors import Terminated, TrainingError
from sao.models.chat import ChatTokenizer
from sao.records import make_id, seed_of
from sao.store.files import dumps, read_jsonl
from sao.training import monitors, parallel
from sao.training.arguments import half_precision, training_arguments
from sao.training.batches import Batch, EpochOrder, MicroBatches, TokenPair, batch_of, split_pairs
from sao.training.checkpoints import seal, writing
from sao.training.losses import PairLogps, preference_loss
from sao.training.measures import Measures, means
from sao.training.optimizer import AdamWStochastic
from sao.training.policy import part_sums
from sao.training.reference import reference_sums

OnLog = Callable[[dict[str, Any]], None]


class PreferenceTrainer(parallel.ParallelTrainer):
    """transformers.Trainer with preference losses, batches of its own and checkpoints that are whole or
    nothing."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole global batch

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        model: PreTrainedModel,
        tokenizer: ChatTokenizer,
        out: Path,
        config: TrainConfig,
        seed: int,
        attention: str,
        on_log: OnLog | None,
        from_start: bool,
    ) -> None:
        self.config, self.seed, self.attention = config, seed, attention
        self.pad_id, self.end_ids = tokenizer.pad_id, tokenizer.end_ids
        self.checkpoints, self.metrics_file = out / "checkpoints", out / "metrics.jsonl"
        self.on_log = on_log
        self.group = parallel.processes()
        train_pairs, self.held_out = split_pairs(pairs, config.held_out_share)
        self.n_train = len(train_pairs)
        self.pairs = [*train_pairs, *self.held_out]
        self._step_pairs, self._step_tokens = 0, 0
        self._measures, self._alarms = Measures(self.group), monitors.Alarms()
        self._alarm = self._past_alarm()
        self._reference = self._reference_sums(model, out) if config.needs_reference else None  # [pairs, 2]
        if "tensorboard" in config.report_to:  # its default is among the checkpoints, which are cleared away
            os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
        evaluates = bool(self.held_out or config.samples)
        stochastic: Any = {"optimizer_cls_and_kwargs": (AdamWStochastic, {"lr": config.lr})}
        # Without the tokenizer: Trainer would rewrite the model's own end-of-turn ids to match it.
        super().__init__(
            model=model,
            args=training_arguments(config, self.group, out, model, seed, evaluates, from_start),
            data_collator=self.collate,
            eval_dataset=self.held_out or self.pairs,  # only so that Trainer calls `evaluate`
            **(stochastic if config.optimizer == "adamw_sr" else {}),
        )
        device, targets = self.args.device, [_target(pair, config) for pair in self.pairs]
        self._targets = torch.tensor(targets, device=device)  # [pairs, 2]
        self._reference = None if self._reference is None else self._reference.to(device)
        self.flow = self._save_and_stop()

    def _save_and_stop(self) -> monitors.SaveAndStop:
        """What saves checkpoints and ends a training early; takes the place of Trainer's prints."""
        config, group = self.config, self.group
        flow = monitors.SaveAndStop(config.save_steps, config.save_minutes, group.world, group.rank)
        self.remove_callback(PrinterCallback)
        self.add_callback(flow)
        return flow

    def _past_alarm(self) -> str | None:
        """The last alarm of a training that goes on. Raises TrainingError where it stops training."""
        alarm = self._alarms.replay(read_jsonl(self.metrics_file) if self.metrics_file.is_file() else ())
        if self.config.on_alarm == "stop" and alarm is not None:
            raise self._stopped_by(alarm, "before")
        return alarm

    def _reference_sums(self, model: PreTrainedModel, out: Path) -> Tensor:
        """[pairs, 2] log-probabilities of the answers under the model as it starts."""
        half = half_precision(self.config, model.device)
        size, world, rank = self.config.micro_batch_size, self.group.world, self.group.rank
        return reference_sums(model, self.pairs, self.batch_of, size, out, half, world, rank)

    # Data

    def batch_of(self, rows: Iterable[int]) -> Batch:
        """Rows of `pairs` as one batch; ~row is a filler of weight 0."""
        return batch_of(self.pairs, list(rows), self.config, self.pad_id)

    def collate(self, rows: list[int]) -> dict[str, Any]:
        """A micro-batch for `compute_loss`."""
        return {"batch": self.batch_of(rows)}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches of this process (see `sao.training.batches`)."""
        config, group = self.config, self.group
        lengths = [len(pair) for pair in self.pairs[: self.n_train]]
        micro_batches = MicroBatches(
            EpochOrder(lengths, self.seed, config.batch_size),
            config.batch_size,
            config.micro_batch_size,
            group.world,
            group.rank,
            config.batches == "packed",
        )
        row_numbers: Any = _Rows(-self.n_train, self.n_train)
        loader: DataLoader[Any] = DataLoader(
            row_numbers, batch_sampler=micro_batches, collate_fn=self.collate
        )
        # They are dealt to the processes already: this only adds what Trainer expects of a loader.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, num_processes=1, process_index=0, put_on_device=False
        )
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of one optimiser step and the number of pairs in them, over all processes."""
        inputs = list(itertools.islice(epoch_iterator, num_batches))
        batches = [item["batch"] for item in inputs]
        pairs = sum(batch.weights.sum().item() for batch in batches)
        tokens = sum((self._covered_tokens(batch) * batch.weights).sum().item() for batch in batches)
        self._step_pairs, self._step_tokens = self.group.sums(round(pairs), round(tokens))
        return inputs, self._step_pairs

    def _covered_tokens(self, batch: Batch) -> Tensor:
        """[B] tokens of each pair that the likelihood term covers."""
        n_pairs = len(batch.rows)
        chosen, prompts = batch.tokens[:n_pairs], batch.tokens[2 * n_pairs :]
        return chosen + prompts if self.config.nll_on_prompt else chosen

    # Loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A micro-batch's share of the mean loss over the pairs of the global batch, [].

        Each pair weighs the same, also where micro-batches or the last global batch are smaller than the
        others.
        """
        parallel.check_wrapper(model, self.config, self.group)
        batch = inputs["batch"].to(self.args.device)
        losses, measured = self.pair_losses(model, batch, self._step_tokens / self._step_pairs)
        self._measures.add(batch.rows, measured, inputs["batch"].weights.tolist())
        # Wrappers average the gradients over the processes, so each gives its share times their number.
        loss = (losses * batch.weights).sum() / self._step_pairs * self.group.world
        return (loss, None) if return_outputs else loss

    def pair_losses(
        self, model: torch.nn.Module, batch: Batch, tokens_per_pair: float
    ) -> tuple[Tensor, Tensor]:
        """[B] losses, and [len(MEASURES), B] what is measured of each pair.

        `tokens_per_pair` is the mean over the global batch, for a likelihood that is averaged over tokens.
        """
        config = self.config
        chosen, rejected, *prompts = part_sums(model, batch)  # [B] each
        logps = self._pair_logps(batch, chosen, rejected)
        margin, label = self._targets[batch.row_index].unbind(1)  # [B] each
        losses, chosen_rewards, rejected_rewards = preference_loss(config, logps, margin, label)
        if config.nll_average == "pairs":
            covered: Tensor | float = self._covered_tokens(batch)
        else:
            covered = tokens_per_pair
        nll = -(chosen + prompts[0] if prompts else chosen) / covered
        if config.likelihood_weight:
            losses = losses + config.likelihood_weight * nll
        tokens = logps.chosen_tokens + logps.rejected_tokens
        measured = [losses, nll, chosen_rewards, rejected_rewards, *logps.means, tokens]  # as MEASURES
        return losses, torch.stack([row.detach().float() for row in measured])

    def _pair_logps(self, batch: Batch, chosen: Tensor, rejected: Tensor) -> PairLogps:
        """The sums of the policy and the reference, and the tokens that they cover."""
        n_pairs = len(batch.rows)
        reference = None if self._reference is None else self._reference[batch.row_index]  # [B, 2]
        return PairLogps(
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=batch.tokens[:n_pairs],
            rejected_tokens=batch.tokens[n_pairs : 2 * n_pairs],
            ref_chosen=None if reference is None else reference[:, 0],
            ref_rejected=None if reference is None else reference[:, 1],
        )

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append the metrics of the optimiser step that was just taken to metrics.jsonl.

        Trainer calls this before it saves a checkpoint, so no broken weights are ever saved.
        """
        if "loss" in logs:
            rows, measured = self._measures.take()
            self._check_finite(rows, measured[0], logs["grad_norm"])
            logs.update(means(measured, self._reports_nll))
        elif not any(name.startswith(("eval_", "samples/")) for name in logs):
            return  # Trainer's summary of the whole run
        # Trainer counts micro-batches, of which the last batch may have fewer: the share depends on how they
        # are cut.
        self.state.epoch = self.config.epochs * self.state.global_step / self.state.max_steps
        super().log(logs, start_time)  # adds the epoch, and tells W&B and the like
        line = {"step": self.state.global_step, **logs}
        self._write(line)
        for alarm in self._alarms.see(line):
            self._alarm = alarm
            self._write({"step": self.state.global_step, "alarm": alarm})
            if self.config.on_alarm == "stop":
                self.control.should_save = self.control.should_training_stop = True

    def _write(self, line: dict[str, Any]) -> None:
        if self.group.rank == 0:
            with writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(dumps(line) + "\n")
            if self.on_log is not None:
                self.on_log(line)

    @property
    def _reports_nll(self) -> bool:
        return bool(self.config.likelihood_weight)

    def _check_finite(self, rows: list[int], losses: Tensor, grad_norm: float) -> None:
        """Raise TrainingError naming the pairs whose loss is not finite, or all where only the gradient is
        not."""
        broken = [row for row, fine in zip(rows, losses.isfinite().tolist(), strict=True) if not fine]
        if not broken and math.isfinite(grad_norm):
            return
        ids = ", ".join(self.pairs[row].id for row in broken or rows)
        raise TrainingError(
            f"optimiser step {self.state.global_step}: the {'loss' if broken else 'gradient'} is not finite "
            f"for the pairs {ids}. Look at these pairs and whether the model's weights are finite; else "
            f"lower train.lr ({self.config.lr:g}) or train.beta ({self.config.scale:g})",
            key="loss",
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss, accuracy and margin on the held-out pairs, and length and repetition of sampled answers."""
        metrics = self._measure_held_out() if self.held_out else {}
        if self.config.samples:
            metrics |= self._sample_metrics()
        metrics = self.group.from_first(metrics)  # alarms must see the same in all of them
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measure_held_out(self) -> dict[str, float]:
        model = self.model_wrapped
        covered = [self._likelihood_tokens(pair) for pair in self.held_out]
        tokens_per_pair = statistics.fmean(covered)
        model.eval()
        rows = range(self.n_train + self.group.rank, len(self.pairs), self.group.world)
        size = self.config.micro_batch_size
        # As many forward passes in every process: sharded weights are gathered by all of them together.
        for i in range(0, -(-len(self.held_out) // self.group.world), size):
            own = rows[i : i + size]
            batch = self.batch_of(own or [self.n_train]).to(self.args.device)
            with (
                torch.no_grad(),
                self.compute_loss_context_manager(),
                self.autocast_smart_context_manager(),
            ):
                _, measured = self.pair_losses(model, batch, tokens_per_pair)
            self._measures.add(batch.rows, measured, [float(bool(own))] * len(batch.rows))
        _, measured = self._measures.take()
        model.train()
        return {f"eval_{name}": value for name, value in means(measured, self._reports_nll).items()}

    def _likelihood_tokens(self, pair: TokenPair) -> int:
        prompt = len(pair.prompt_ids) - 1 if self.config.nll_on_prompt else 0
        return len(pair.chosen_ids) - pair.chosen_read + prompt

    def _sample_metrics(self) -> dict[str, float]:
        pairs = (self.held_out or self.pairs)[: self.config.samples]
        return monitors.sample_metrics(
            self.accelerator.unwrap_model(self.model),
            prompts=[pair.prompt_ids for pair in pairs],
            max_tokens=2 * max(len(pair.chosen_ids) for pair in pairs),
            attention=self.attention,
            seed=seed_of(make_id(self.seed, self.state.global_step)),
            end_ids=self.end_ids,
            together=self.group.world > 1 and self.config.parallel != "ddp",
        )

    # Ends

    def raise_if_stopped(self) -> None:
        """Raise Terminated or TrainingError where training ended before its last step."""
        if self.state.global_step >= self.state.max_steps:
            return
        if self.flow.terminated:
            raise Terminated(
                f"training: SIGTERM at step {self.state.global_step} of {self.state.max_steps}; it is saved"
            )
        raise self._stopped_by(self._alarm, f"at step {self.state.global_step}")

    def _stopped_by(self, alarm: str | None, when: str) -> TrainingError:
        return TrainingError(
            f"stopped {when} by an alarm: {alarm}. The checkpoint is kept. Lower train.lr "
            f"({self.config.lr:g}), add train.nll_weight, or go on with --train.on_alarm warn",
            key="alarm",
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint that counts only once it is whole (see `sao.training.checkpoints`)."""
        folder = self.checkpoints / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            super()._save_checkpoint(model, trial)
        self.group.wait()
        if self.group.rank == 0:
            seal(folder, self.metrics_file, self.group.world)
        self.group.wait()


class _Rows:
    """A data set whose items are their own numbers."""

    def __init__(self, start: int, stop: int) -> None:
        self.rows = range(start, stop)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> int:
        return row


def _target(pair: TokenPair, config: TrainConfig) -> tuple[float, float]:
    """A pair's target margin γ, and the probability that its label is right."""
    label = 1.0 if pair.p_chosen is None or not config.soft_labels else pair.p_chosen
    smoothed = label * (1 - config.label_smoothing) + (1 - label) * config.label_smoothing
    return config.target_margin + config.margin_weight * (pair.margin or 0.0), smoothed
