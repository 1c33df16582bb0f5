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
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from sao.config import TrainConfig
from sao.errors import Terminated, TrainingError
from sao.models.chat import ChatTokenizer
from sao.records import make_id, seed_of
from sao.store.files import dumps, read_jsonl
from sao.training import monitors, parallel
from sao.training.batches import Batch, EpochOrder, MicroBatches, TokenPair, pack, pad, split_pairs
from sao.training.checkpoints import seal, writing
from sao.training.losses import PairLogps, preference_loss
from sao.training.optimizer import AdamWStochastic
from sao.training.policy import part_sums
from sao.training.reference import reference_sums

OnLog = Callable[[dict[str, Any]], None]
MEASURES = ("loss", "nll", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "tokens")
"""The rows of what is measured of each pair; see `PreferenceTrainer.pair_losses`."""


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
        self.config = config
        self.pad_id = tokenizer.pad_id
        self.end_ids = tokenizer.end_ids
        self.seed = seed
        self.attention = attention
        self.checkpoints = out / "checkpoints"
        self.metrics_file = out / "metrics.jsonl"
        self.on_log = on_log
        self.group = parallel.processes()
        train_pairs, self.held_out = split_pairs(pairs, config.held_out_share)
        self.n_train = len(train_pairs)
        self.pairs = [*train_pairs, *self.held_out]
        self._step_pairs, self._step_tokens = 0, 0
        covered = [len(p.chosen_ids) + config.nll_on_prompt * (len(p.prompt_ids) - 1) for p in self.held_out]
        self._held_out_tokens = statistics.fmean(covered) if covered else 0.0
        self._measured: list[tuple[list[int], Tensor]] = []
        self._alarms = monitors.Alarms()
        self._alarm = self._alarms.replay(
            read_jsonl(self.metrics_file) if self.metrics_file.is_file() else ()
        )
        if config.on_alarm == "stop" and self._alarm is not None:
            raise self._by_alarm("before")
        self._targets = torch.tensor([_target(pair, config) for pair in self.pairs])  # [pairs, 2]
        self._reference: Tensor | None = None  # [pairs, 2]
        if config.needs_reference:
            size, world, rank = config.micro_batch_size, self.group.world, self.group.rank
            self._reference = reference_sums(
                model, self.pairs, self.batch_of, size, out, half_precision(config, model.device), world, rank
            )
        if "tensorboard" in config.report_to:  # its default is among the checkpoints, which are cleared away
            os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
        stochastic: Any = {"optimizer_cls_and_kwargs": (AdamWStochastic, {"lr": config.lr})}
        # Without the tokenizer: Trainer would rewrite the model's own end-of-turn ids to match it.
        super().__init__(
            model=model,
            args=self._arguments(model.device, from_start),
            data_collator=self.collate,
            eval_dataset=self.held_out or self.pairs,  # only so that Trainer calls `evaluate`
            **(stochastic if config.optimizer == "adamw_sr" else {}),
        )
        self.remove_callback(PrinterCallback)
        self.flow = monitors.SaveAndStop(
            config.save_steps, config.save_minutes, self.group.world, self.group.rank
        )
        self.add_callback(self.flow)

    def _arguments(self, device: torch.device, from_start: bool) -> TrainingArguments:
        c = self.config
        measured = bool(self.held_out or c.samples)
        # The unfused one makes copies of all weights.
        plain = "adamw_torch_fused" if device.type == "cuda" else "adamw_torch"
        args = TrainingArguments(
            output_dir=str(self.checkpoints),
            num_train_epochs=c.epochs,
            per_device_train_batch_size=c.micro_batch_size,
            gradient_accumulation_steps=self.group.micro_steps(c),
            gradient_checkpointing=c.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            optim="adamw_bnb_8bit" if c.optimizer == "adamw_8bit" else plain,
            learning_rate=c.lr,
            lr_scheduler_type="cosine",
            warmup_steps=c.warmup_ratio,  # below 1 it is a share of the steps
            weight_decay=c.weight_decay,
            max_grad_norm=c.max_grad_norm,
            bf16=half_precision(c, device),
            run_name=self.metrics_file.parent.name,
            save_strategy="no",  # the callback says when
            eval_strategy="steps" if measured else "no",
            eval_steps=c.eval_steps,
            eval_on_start=measured and from_start,
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would hide a broken loss
            seed=self.seed % 2**32,  # NumPy takes no more
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            log_level="error",
            report_to=list(c.report_to) or "none",
            ddp_find_unused_parameters=False,
            **({"use_cpu": device.type == "cpu"} | parallel.arguments(c, self.group)),
        )
        if args.n_gpu > 1:
            args._n_gpu = 1  # otherwise Trainer splits every batch over all GPUs it sees (DataParallel)
        return args

    # Data

    def batch_of(self, rows: Iterable[int]) -> Batch:
        """Rows of `pairs` as one batch; ~row is a filler of weight 0."""
        rows = list(rows)
        numbers = [row if row >= 0 else ~row for row in rows]
        chosen, weights = [self.pairs[row] for row in numbers], [float(row >= 0) for row in rows]
        if self.config.batches == "padded":
            return pad(chosen, self.pad_id, numbers, weights, self.config.nll_on_prompt)
        return pack(chosen, numbers, weights, self.config.share_prompt, self.config.nll_on_prompt)

    def collate(self, rows: list[int]) -> dict[str, Any]:
        """A micro-batch for `compute_loss`."""
        return {"batch": self.batch_of(rows)}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches of this process (see `sao.training.batches`)."""
        c, group = self.config, self.group
        lengths = [len(pair) for pair in self.pairs[: self.n_train]]
        order = EpochOrder(lengths, self.seed, c.batch_size)
        batches = MicroBatches(
            order, c.batch_size, c.micro_batch_size, group.world, group.rank, c.batches == "packed"
        )
        everything: Any = _Rows(-self.n_train, self.n_train)
        loader: DataLoader[Any] = DataLoader(everything, batch_sampler=batches, collate_fn=self.collate)
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
        pairs = sum(item["batch"].weights.sum().item() for item in inputs)
        tokens = sum((self._covered(item["batch"]) * item["batch"].weights).sum().item() for item in inputs)
        self._step_pairs, self._step_tokens = self.group.sums(round(pairs), round(tokens))
        return inputs, self._step_pairs

    def _covered(self, batch: Batch) -> Tensor:
        """[B] tokens of each pair that the likelihood term covers."""
        n = len(batch.rows)
        counts = torch.tensor(batch.lengths, dtype=torch.float32)
        return counts[:n] + counts[2 * n :] if self.config.nll_on_prompt else counts[:n]

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
        real = [i for i, row in enumerate(batch.rows) if bool(inputs["batch"].weights[i])]
        self._measured.append(([batch.rows[i] for i in real], measured[:, real]))
        # Wrappers average the gradients over the processes, so each gives its share times their number.
        loss = (losses * batch.weights).sum() / self._step_pairs * self.group.world
        return (loss, None) if return_outputs else loss

    def pair_losses(
        self, model: torch.nn.Module, batch: Batch, tokens_per_pair: float
    ) -> tuple[Tensor, Tensor]:
        """[B] losses, and [len(MEASURES), B] what is measured of each pair.

        `tokens_per_pair` is the mean over the global batch, for a likelihood that is averaged over tokens.
        """
        c = self.config
        chosen, rejected, *prompts = part_sums(model, batch)  # [B] each
        device, n = chosen.device, len(batch.rows)
        lengths = torch.tensor(batch.lengths, dtype=torch.float32, device=device)
        reference = None if self._reference is None else self._reference[batch.rows].to(device)
        logps = PairLogps(
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=lengths[:n],
            rejected_tokens=lengths[n : 2 * n],
            ref_chosen=None if reference is None else reference[:, 0],
            ref_rejected=None if reference is None else reference[:, 1],
        )
        gamma, label = self._targets[batch.rows].to(device).unbind(1)
        losses, reward_w, reward_l = preference_loss(c, logps, gamma, label)
        covered = self._covered(batch).to(device) if c.nll_average == "pairs" else tokens_per_pair
        nll = -(chosen + prompts[0] if prompts else chosen) / covered
        if c.likelihood_weight:
            losses = losses + c.likelihood_weight * nll
        seen = [losses, nll, reward_w, reward_l, *logps.means, logps.chosen_tokens + logps.rejected_tokens]
        return losses, torch.stack([row.detach().float() for row in seen])

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append the metrics of the optimiser step that was just taken to metrics.jsonl.

        Trainer calls this before it saves a checkpoint, so no broken weights are ever saved.
        """
        if "loss" in logs:
            rows, measured = self._take_measured()
            self._check_finite(rows, measured[0], logs["grad_norm"])
            logs.update(self._means(measured))
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

    def _take_measured(self) -> tuple[list[int], Tensor]:
        """What was measured since the last call, over all processes: rows, and [len(MEASURES), rows]."""
        rows = [row for rows, _ in self._measured for row in rows]
        columns = (
            torch.cat([m for _, m in self._measured], dim=1).double().cpu().t().tolist()
            if self._measured
            else []
        )
        self._measured.clear()
        found = self.group.gather(list(zip(rows, columns, strict=True)))
        return [row for row, _ in found], torch.tensor(
            [column for _, column in found], dtype=torch.float64
        ).t()

    def _means(self, measured: Tensor) -> dict[str, float]:
        """Means over pairs of what MEASURES names. Rewards are the implicit ones of the loss; margins are
        before γ."""
        mean = dict(zip(MEASURES, measured.mean(1).tolist(), strict=True))
        margins = measured[MEASURES.index("rewards/chosen")] - measured[MEASURES.index("rewards/rejected")]
        mean["rewards/margins"] = margins.mean().item()
        mean["rewards/accuracies"] = (margins > 0).double().mean().item()
        if not self.config.likelihood_weight:
            del mean["nll"]
        return mean

    def _check_finite(self, rows: list[int], losses: Tensor, grad_norm: float) -> None:
        """Raise TrainingError naming the pairs whose loss is not finite, or all where only the gradient is
        not."""
        broken = [row for row, fine in zip(rows, losses.isfinite().tolist(), strict=True) if not fine]
        if not broken and math.isfinite(grad_norm):
            return
        ids = ", ".join(self.pairs[row].id for row in broken or rows)
        raise TrainingError(
            f"optimiser step {self.state.global_step}: the {'loss' if broken else 'gradient'} is not finite "
            "for the "
            f"pairs {ids}. Look at these pairs and whether the model's weights are finite; else lower "
            "train.lr "
            f"({self.config.lr:g}) or train.beta ({self.config.scale:g})"
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss, accuracy and margin on the held-out pairs, and length and repetition of sampled answers."""
        model, metrics = self.model_wrapped, {}
        if self.held_out:
            model.eval()
            rows = range(self.n_train + self.group.rank, len(self.pairs), self.group.world)
            size = self.config.micro_batch_size
            # As many forward passes in every process: sharded weights are gathered by all of them together.
            for i in range(0, -(-len(self.held_out) // self.group.world), size):
                batch = self.batch_of(rows[i : i + size] or [self.n_train]).to(self.args.device)
                with (
                    torch.no_grad(),
                    self.compute_loss_context_manager(),
                    self.autocast_smart_context_manager(),
                ):
                    _, measured = self.pair_losses(model, batch, self._held_out_tokens)
                if rows[i : i + size]:
                    self._measured.append((batch.rows, measured))
            metrics = {f"eval_{name}": value for name, value in self._means(self._take_measured()[1]).items()}
            model.train()
        if self.config.samples:
            some = (self.held_out or self.pairs)[: self.config.samples]
            longest = 2 * max(len(pair.chosen_ids) for pair in some)
            chat, step = self.accelerator.unwrap_model(self.model), self.state.global_step
            prompts = [pair.prompt_ids for pair in some]
            seed = seed_of(make_id(self.seed, step))
            together = self.group.world > 1 and self.config.parallel != "ddp"
            metrics |= monitors.sample_metrics(
                chat, prompts, longest, self.attention, seed, self.end_ids, together
            )
        metrics = self.group.from_first(metrics)  # alarms must see the same in all of them
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Ends

    def raise_if_stopped(self) -> None:
        """Raise Terminated or TrainingError where training ended before its last step."""
        if self.state.global_step >= self.state.max_steps:
            return
        if self.flow.terminated:
            raise Terminated(
                f"training: SIGTERM at step {self.state.global_step} of {self.state.max_steps}; it is saved"
            )
        raise self._by_alarm(f"at step {self.state.global_step}")

    def _by_alarm(self, when: str) -> TrainingError:
        return TrainingError(
            f"stopped {when} by an alarm: {self._alarm}. The checkpoint is kept. Lower train.lr "
            f"({self.config.lr:g}), add "
            "train.nll_weight, or go on with --train.on_alarm warn"
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


def half_precision(config: TrainConfig, device: torch.device) -> bool:
    """Whether to autocast to bfloat16: on a GPU, except where the weights themselves are bfloat16 and trained
    as such."""
    return device.type == "cuda" and not (config.method == "full" and config.weights == "bfloat16")


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
