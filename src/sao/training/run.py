"""Training on preference pairs: `train(pairs, model, tokenizer, out, config, seed)`.

What enters: token pairs and a chat model. What leaves: `out/model`, a Hugging Face folder,
`out/metrics.jsonl`, a line for each optimiser step and each measurement, and, for adapters, `out/adapter`.

The same call again goes on from the last whole checkpoint; on a CPU it ends with the same weights, bit for
bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sao.config import TrainConfig
from sao.errors import ModelError, StoreError, TrainingError
from sao.models.chat import ChatTokenizer
from sao.models.linear import quicken
from sao.models.weights import is_whole
from sao.records import make_id
from sao.store.files import read_jsonl
from sao.training import parallel
from sao.training.adapters import add_adapter, merged
from sao.training.arguments import half_precision
from sao.training.attention import PACKED
from sao.training.batches import TokenPair, check_columns, check_pairs, pack, pad
from sao.training.checkpoints import claim, fsync, processes_of, remove, resume_point, writing
from sao.training.optimizer import rounded
from sao.training.policy import as_policy, check_policy, freeze
from sao.training.trainer import OnLog, PreferenceTrainer

PROBE = 128
"""Tokens of a prompt or an answer, at most, on which policy and model are compared before training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The trained model's folder, the optimiser steps taken, and the metrics of the last step and the last
    measurement."""

    model_dir: Path
    steps: int
    metrics: dict[str, Any]


def train(
    pairs: Sequence[TokenPair],
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    out: Path,
    config: TrainConfig,
    seed: int,
    on_log: OnLog | None = None,
) -> TrainResult:
    """Train `model` (in place) on `pairs` and save it to `out/model`; go on from `out/checkpoints` where
    there are any.

    Where `out/model` is whole nothing is trained and the stored result returned. The model is saved in the
    number format in which it came; an adapter is merged into it and also saved by itself. Under torchrun
    every process makes this call.

    Args:
        pairs: What to train on; none longer than `config.max_length`, which the caller sees to.
        model: The model to train; its device is kept.
        tokenizer: Its tokenizer, saved with the model.
        out: The folder to write into.
        config: The settings.
        seed: Decides the order of the pairs, the adapter's start and, where there is dropout, its noise.
        on_log: Called with every line of metrics.jsonl that is written, and with a "note" of what its user
            should know; in the first process only.

    Raises:
        TrainingError: There are no pairs, a pair has an empty part or impossible ids, the loss is not finite,
            memory does not suffice, or an alarm stopped the training (`config.on_alarm`).
        StoreError: `out` cannot be written, because the disk is full, say.
        Terminated: SIGTERM came; a checkpoint was saved, and the same call goes on from it.

    """
    group = parallel.processes()
    if group.first_alone(lambda: _finished(out)):
        return _stored_result(out)
    parallel.check_setup(model, config, group)
    check_pairs(pairs, model.config.get_text_config().vocab_size)
    check_columns(pairs, config)
    _check_index(pairs, model)
    saved_dtype, as_found = _saved_dtype(model), _AsFound(model)
    with _quiet():
        checkpoint = _resume_point(pairs, model, out, config, seed, group)
        try:
            policy, config, note = choose_policy(model, config, seed, pairs, group)
            if note and on_log is not None and group.rank == 0:
                on_log({"note": note})
            trainer = PreferenceTrainer(
                pairs, policy, tokenizer, out, config, seed, as_found.attention, on_log, checkpoint is None
            )
            with trainer.flow.listening():
                try:
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                finally:
                    as_found.restore()
                trainer.raise_if_stopped()
                _publish(trainer, tokenizer, saved_dtype, out)
                group.wait()
        except torch.OutOfMemoryError as error:
            raise TrainingError(_out_of_memory(config, error), key="GPU memory") from error
        trainer.flow.raise_if_terminated()
    return _stored_result(out)


class _AsFound:
    """What training changes in a model's settings, as it was found and as it is to be saved."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.settings: Any = model.config.get_text_config()
        self.use_cache, self.attention = self.settings.use_cache, self.settings._attn_implementation

    def restore(self) -> None:
        """Set it again; the model no longer trains."""
        self.settings.use_cache = self.use_cache
        self.model.set_attn_implementation(self.attention)
        self.model.train(False)


def _resume_point(
    pairs: Sequence[TokenPair],
    model: PreTrainedModel,
    out: Path,
    config: TrainConfig,
    seed: int,
    group: parallel.Processes,
) -> Path | None:
    """The last whole checkpoint in `out`, which is claimed for this training. Raises TrainingError where
    these processes cannot go on from it."""
    with writing(out):
        group.first_alone(lambda: claim(out, _settings(pairs, model, config, seed)))
        checkpoint = group.first_alone(lambda: resume_point(out))
    if config.parallel == "zero3" and checkpoint is not None:
        written_by = processes_of(checkpoint)
        if written_by != group.world:
            raise TrainingError(
                f"{checkpoint} was written by {written_by} processes, and zero3 cannot go on with "
                f"{group.world}. Give --train.processes {written_by}, or delete {out} to start again",
                key="train.processes",
            )
    return checkpoint


def _settings(
    pairs: Sequence[TokenPair], model: PreTrainedModel, config: TrainConfig, seed: int
) -> dict[str, Any]:
    """What a training depends on, compared when it goes on: settings, and hashes of the pairs and of some of
    each weight."""
    weights_hash = hashlib.sha256()
    for name, weight in model.named_parameters():
        weights_hash.update(f"{name} {tuple(weight.shape)}".encode())
        weights_hash.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    pairs_hash = make_id(
        *(
            value
            for pair in pairs
            for value in (pair.id, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
        ),
        *(pair.id for pair in pairs if pair.chosen_read or pair.rejected_read),
    )
    weights_id = weights_hash.hexdigest()[:16]
    return {**config.counted(), "seed": seed, "pairs": pairs_hash, "model": weights_id}


def choose_policy(
    model: PreTrainedModel,
    config: TrainConfig,
    seed: int,
    pairs: Sequence[TokenPair],
    group: parallel.Processes,
) -> tuple[PreTrainedModel, TrainConfig, str | None]:
    """The policy: weights in the format in which they are trained, adapter added, log-probabilities instead
    of logits; the settings with the batches that suit it; and what there is to say of them."""
    if config.method != "qlora":
        cast_weights(model, getattr(torch, config.weights))
    attention = model.config.get_text_config()._attn_implementation
    freeze(model, config.router == "frozen")
    policy = model if config.method == "full" else add_adapter(model, config, seed)
    as_policy(model)
    if group.world == 1:  # ZeRO-3 takes the weights out of the layers after each pass
        quicken(model)
    half = half_precision(config, model.device)
    exact = model.dtype == torch.float32 and config.method != "qlora" and not half
    some = _probe(pairs, _window(model))
    note = None
    for batches in ("packed", "padded") if config.batches == "auto" else (config.batches,):
        packed = batches == "packed"
        model.set_attn_implementation(PACKED if packed else attention)
        batch = pack(some, share_prompt=config.share_prompt) if packed else pad(some, 0)
        try:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=half):  # what trains is compared
                check_policy(model, attention, some, batch, exact)
            break
        except ModelError as error:
            if config.batches != "auto" or error.key != "train.batches" or not packed:
                raise
            note = f"train.batches padded: {error}".partition(". Train it with")[0]
    return policy, config.model_copy(update={"batches": batches}), note


def _check_index(pairs: Sequence[TokenPair], model: PreTrainedModel) -> None:
    """Raise TrainingError where a text is longer than what a model's index of keys (DeepSeek-V3.2) takes
    whole: transformers 5.19 then lets it choose keys that come later in the text."""
    most = getattr(model.config.get_text_config(), "index_topk", None)
    answers = (max(len(pair.chosen_ids), len(pair.rejected_ids)) + len(pair.prompt_ids) for pair in pairs)
    if most and (longest := max(answers)) > most:
        raise TrainingError(
            f"a prompt with its answer has {longest} tokens, and this model's index of keys takes {most} "
            f"whole; beyond that transformers may let it look ahead. Set --train.max_length {most}",
            key="train.max_length",
        )


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give all weights a number format. Buffers keep theirs: the frequencies of rotary positions would be
    rounded in bfloat16, and complex ones (Llama-4) lose their imaginary part."""
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype != dtype:
            weight.data = weight.data.to(dtype)


def _window(model: PreTrainedModel) -> int | None:
    """The model's sliding window, in tokens."""
    window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
    return window


def _probe(pairs: Sequence[TokenPair], window: int | None) -> list[TokenPair]:
    """Two pairs of unlike lengths to compare policy and model on, cut short: the comparison holds their whole
    logits.

    Where answers outgrow the model's sliding window, so do these.
    """
    longest = max(pairs, key=len)
    room = PROBE if window is None or len(longest) <= window else window + PROBE
    return [
        replace(
            pair,
            prompt_ids=pair.prompt_ids[-PROBE:],
            chosen_ids=pair.chosen_ids[:room],
            rejected_ids=pair.rejected_ids[:room],
            chosen_read=0,
            rejected_read=0,
        )
        for pair in (longest, min(pairs, key=len))
    ]


def _saved_dtype(model: PreTrainedModel) -> torch.dtype:
    """The number format in which the model lies on disk; its own where it was not loaded from a folder."""
    source = model.name_or_path
    if not source or not (Path(source) / "config.json").is_file():
        return model.dtype
    settings, _ = PreTrainedConfig.get_config_dict(source)
    name = settings.get("dtype") or settings.get("torch_dtype")  # the second is the older key
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return dtype if isinstance(dtype, torch.dtype) else model.dtype


def _out_of_memory(config: TrainConfig, error: Exception) -> str:
    ways = (
        [f"a smaller train.micro_batch_size (now {config.micro_batch_size})"]
        if config.micro_batch_size > 1
        else []
    )
    ways += [] if config.gradient_checkpointing else ["train.gradient_checkpointing true"]
    ways += ["train.method lora"] if config.method == "full" else ["a smaller train.max_length"]
    return (
        f"the GPU's memory does not suffice ({str(error).splitlines()[0]}). Try {', '.join(ways)}; `sao "
        "plan` estimates what fits. Checkpoints are kept"
    )


def _publish(trainer: PreferenceTrainer, tokenizer: ChatTokenizer, dtype: torch.dtype, out: Path) -> None:
    """Save the model; it appears as `out/model` when it is whole. The checkpoints are no longer needed
    then."""
    model = trainer.whole_model()
    if model is None:
        return  # another process than the first
    device = next(model.parameters()).device
    noise = torch.Generator(device).manual_seed(trainer.seed % 2**63)
    if trainer.config.method != "full":
        _publish_adapter(model, out)
        cpu = torch.Generator().manual_seed(trainer.seed % 2**63)
        model = merged(model, out / "adapter", dtype, cpu if trainer.config.method == "qlora" else noise)
    for weight in model.parameters():
        weight.data = rounded(weight.data, dtype, noise)
    unfinished = out / "model.partial"
    with writing(unfinished):
        model.save_pretrained(unfinished)
        tokenizer.tokenizer.save_pretrained(unfinished)
        fsync(unfinished, out / "metrics.jsonl")
        unfinished.rename(out / "model")
        fsync(out)
        remove(out / "checkpoints")


def _publish_adapter(model: Any, out: Path) -> None:
    """Save the adapter as `out/adapter`; like the model it appears when it is whole."""
    unfinished = out / "adapter.partial"
    with writing(unfinished):
        for old in (unfinished, out / "adapter"):
            remove(old)
        model.save_pretrained(unfinished)
        fsync(unfinished)
        unfinished.rename(out / "adapter")


def _finished(out: Path) -> bool:
    """Whether there is a model already. Clears away what a kill right after it was finished left over, and a
    model of which files are gone."""
    if not is_whole(out / "model"):
        remove(out / "model")
        return False
    remove(out / "checkpoints")
    return True


def _stored_result(out: Path) -> TrainResult:
    """The result of a finished training, from the last lines of its metrics."""
    path = out / "metrics.jsonl"
    last: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for line in read_jsonl(path) if path.is_file() else ():
        if "loss" in line:
            last = line
        elif "alarm" not in line:
            measured = {name: value for name, value in line.items() if name.startswith(("eval_", "samples/"))}
    if not last:
        raise StoreError(
            f"{path}: missing or empty beside a finished model. Delete {out} to train again", key=path.name
        )
    return TrainResult(model_dir=out / "model", steps=int(last["step"]), metrics=last | measured)


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
