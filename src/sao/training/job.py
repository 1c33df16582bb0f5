"""From labelled answers to a trained model folder: encoding, the length limit, and the weights on disk."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sao.config import Config, TrainConfig
from sao.data.messages import chat
from sao.data.preferences import TextPair
from sao.errors import DropError, TrainingError
from sao.models.chat import ChatTokenizer
from sao.models.folder import check_quantisation, notices, read_settings
from sao.models.load import load_model
from sao.models.locate import find_model
from sao.records import Drop, Message, PreferencePair, Prompt, Response, make_id, to_dict
from sao.results.base import StageCounts
from sao.store.files import dumps, write_atomic
from sao.training import monitors, parallel
from sao.training.adapters import quantisation
from sao.training.arguments import half_precision
from sao.training.batches import Batch, TokenPair, batch_of, split_pairs
from sao.training.reference import reference_sums, stored_ids
from sao.training.run import choose_policy, train

Labelled = tuple[Prompt, PreferencePair, Response, Response]
"""A prompt, its pair, the chosen and the rejected answer."""
Progress = Callable[[str, int, int], None]
Notify = Callable[[str], None]


def train_run(
    config: Config,
    source: Iterable[Labelled | TextPair | Drop],
    folder: Path,
    progress: Progress,
    notify: Notify,
    reference: Config | None = None,
) -> StageCounts:
    """Train `config.model` on the pairs of `source`; the model arrives in folder/model. Returns the counts of
    the stage. `reference` names the model that losses compare with, where it is another one.

    A pair that cannot be trained on becomes a Drop (drops.jsonl), counted by its reason. Under torchrun every
    process makes this call. Raises TrainingError where no pair is left.
    """
    group = parallel.processes()
    if group.rank > 0:
        progress = notify = _silent
    tokenizer = ChatTokenizer.load(config.model, config.engine, config.revision, config.chat)
    pairs, drops, n_cut = encode_all(config, tokenizer, source, notify)
    if group.rank == 0:
        write_atomic(folder / "drops.jsonl", "".join(dumps(to_dict(drop)) + "\n" for drop in drops))
    reasons = dict(Counter(drop.reason for drop in drops).most_common())
    _check_drops(config, len(pairs), len(drops), reasons, folder)
    n_encoded = len(pairs)
    pairs = at_most(pairs, config.train.max_pairs)
    if len(pairs) < n_encoded:
        reasons["more than train.max_pairs"] = n_encoded - len(pairs)
    reference_run(config, reference, pairs, tokenizer, folder, notify)
    model = _loaded(config, notify)
    n_train = len(split_pairs(pairs, config.train.held_out_share)[0])
    steps = -(-n_train // config.train.batch_size) * config.train.epochs
    progress("train", 0, steps)
    seed = config.seed if config.train.seed is None else config.train.seed
    result = train(pairs, model, tokenizer, folder, config.train, seed, _teller(progress, notify, steps))
    metrics, dropped = _rounded(result.metrics), sum(reasons.values())
    counts = StageCounts(
        stage="train",
        records=len(pairs),
        dropped=dropped,
        reasons=reasons,
        steps=result.steps,
        metrics=metrics,
    )
    return counts.model_copy(update={"cut": n_cut}) if n_cut else counts


def _loaded(config: Config, notify: Notify) -> PreTrainedModel:
    """The model to train, with what its user should know of it."""
    for line in (f"loading {config.model}", *notices(find_model(config.model, config.revision))):
        notify(line)
    model = load_to_train(config)
    if warning := monitors.rate_warning(config.train, model.num_parameters()):
        notify(f"warning: {warning}")
    return model


def reference_run(
    trained: Config,
    reference: Config | None,
    pairs: list[TokenPair],
    tokenizer: ChatTokenizer,
    folder: Path,
    notify: Notify,
) -> None:
    """Write folder/reference.jsonl by `reference.model` where the loss needs it and it is not the model that
    is trained; it is gone from memory afterwards, and training finds the file."""
    if reference is None or reference.model == trained.model or not trained.train.needs_reference:
        return
    if {pair.id for pair in pairs} <= stored_ids(folder):
        return
    notify(f"loading {reference.model}, the reference")
    group, model = parallel.processes(), load_to_train(reference)
    policy, train_config, _ = choose_policy(model, reference.train, 0, pairs, group)
    half = half_precision(train_config, model.device)

    def collate(rows: Iterable[int]) -> Batch:
        return batch_of(pairs, list(rows), train_config, tokenizer.pad_id)

    folder.mkdir(parents=True, exist_ok=True)
    size = train_config.micro_batch_size
    reference_sums(policy, pairs, collate, size, folder, half, group.world, group.rank)
    del policy, model  # they hold each other: only the collector frees them
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    group.wait()


def _teller(progress: Progress, notify: Notify, steps: int) -> Callable[[dict[str, Any]], None]:
    """What shows the lines of metrics.jsonl while `steps` optimiser steps are taken."""

    def on_log(line: dict[str, Any]) -> None:
        if "note" in line:
            notify(str(line["note"]))
        elif "alarm" in line:
            notify(f"alarm at step {line['step']}: {line['alarm']}")
        elif "loss" in line:
            progress("train", int(line["step"]), steps)

    return on_log


def _check_drops(config: Config, n_pairs: int, n_drops: int, reasons: dict[str, int], folder: Path) -> None:
    """Raise DropError where too many pairs were dropped, TrainingError where all were."""
    if not n_pairs:
        raise TrainingError(
            f"no pairs to train on: all {n_drops} were dropped ({reasons}); --train.max_length is "
            f"{config.train.max_length}",
            key="train.max_length",
        )
    if n_drops / (n_drops + n_pairs) > config.max_drop_share:
        raise DropError(
            f"train: {n_drops} of {n_drops + n_pairs} pairs were dropped, more than max_drop_share = "
            f"{config.max_drop_share:g}: {reasons}. Look at {folder / 'drops.jsonl'}; then change "
            "--train.max_length or the data, or allow more with --max_drop_share",
            key="max_drop_share",
        )


def _rounded(metrics: dict[str, Any]) -> dict[str, float | None]:
    """The metrics that are numbers with a fraction, to 6 digits."""
    return {key: float(f"{value:.6g}") for key, value in metrics.items() if isinstance(value, float)}


def _silent(*args: object) -> None:
    """Say nothing: the first process speaks for all."""


def load_to_train(config: Config) -> PreTrainedModel:
    """`config.model` on its device, in the number format in which it is to be trained."""
    train_config = config.train
    folder = find_model(config.model, config.revision)
    check_quantisation(folder, read_settings(folder / "config.json"), trains=True)
    if train_config.method == "qlora":
        return load_model(config.model, config.engine, config.revision, quantisation(train_config))
    engine = config.engine.model_copy(update={"dtype": train_config.weights})
    return load_model(config.model, engine, config.revision)


def encode_all(
    config: Config,
    tokenizer: ChatTokenizer,
    source: Iterable[Labelled | TextPair | Drop],
    notify: Notify = lambda line: None,
) -> tuple[list[TokenPair], list[Drop], int]:
    """Token pairs, what was dropped, and how many answers were cut; `notify` is told where reasoning in given
    answers is left out."""
    pairs: list[TokenPair] = []
    drops: list[Drop] = []
    n_cut = n_reasoned = 0
    for item in source:
        if isinstance(item, Drop):
            drops.append(item)
            continue
        if isinstance(item, TextPair) and not tokenizer.thinks:
            n_reasoned += sum(bool(tokenizer.split(text)[0]) for text in (item.chosen, item.rejected))
        row, encoded = _encode(config, tokenizer, item)
        if isinstance(encoded, Drop):
            drops.append(encoded)
            continue
        pair, reason = fit(encoded, config.train)
        if pair is None:
            drops.append(Drop(row=row, stage="train", record_id=encoded.id, reason=reason))
            continue
        pairs.append(pair)
        n_cut += (pair.chosen_ids != encoded.chosen_ids) + (pair.rejected_ids != encoded.rejected_ids)
    if n_reasoned:
        notify(
            f"{n_reasoned} answers hold reasoning, which is left out: the model is trained without. To train "
            "on it, give --chat.template_args '{enable_thinking: true}'"
        )
    return pairs, drops, n_cut


def at_most(pairs: list[TokenPair], most: int | None) -> list[TokenPair]:
    """The pairs, or `most` of them, drawn by a hash of their ids, in the order in which they came."""
    if most is None or len(pairs) <= most:
        return pairs
    drawn = {pair.id for pair in sorted(pairs, key=lambda pair: make_id("max_pairs", pair.id))[:most]}
    return [pair for pair in pairs if pair.id in drawn]


def _encode(
    config: Config, tokenizer: ChatTokenizer, item: Labelled | TextPair
) -> tuple[int, TokenPair | Drop]:
    """The row of a pair and its ids, or a Drop where an answer has no text but special tokens and
    reasoning."""
    if not isinstance(item, TextPair):
        return item[1].row, encode_pair(tokenizer, config, *item)
    if all(tokenizer.split(text)[1].strip() for text in (item.chosen, item.rejected)):
        return item.row, encode_text(tokenizer, item, config.train.reasoning)
    return item.row, Drop(row=item.row, stage="train", record_id=item.id, reason="empty answer")


def fit(pair: TokenPair, config: TrainConfig) -> tuple[TokenPair | None, str]:
    """The pair within `max_length`, or None and the reason why it cannot be trained on."""
    room = config.max_length - len(pair.prompt_ids)
    if not pair.chosen_ids or not pair.rejected_ids:
        return None, "empty answer"
    if not pair.prompt_ids:
        return None, "no prompt"
    if room < 1:
        return None, "prompt as long as max_length"
    if max(len(pair.chosen_ids), len(pair.rejected_ids)) > room:
        if config.too_long == "drop":
            return None, "longer than max_length"
        pair = replace(pair, chosen_ids=pair.chosen_ids[:room], rejected_ids=pair.rejected_ids[:room])
    if not (pair.chosen_ids[pair.chosen_read :] and pair.rejected_ids[pair.rejected_read :]):
        return None, "nothing but reasoning within max_length"
    if pair.chosen_ids == pair.rejected_ids:
        return None, "chosen equals rejected"
    return pair, ""


def encode_pair(
    tokenizer: ChatTokenizer,
    config: Config,
    prompt: Prompt,
    pair: PreferencePair,
    chosen: Response,
    rejected: Response,
) -> TokenPair:
    """The ids that the model is trained on: those that it sampled, where the engine gave them."""
    messages, how = chat(prompt, config.responses.system), config.train.reasoning
    if how == "drop" and tokenizer.thinks:
        return _encoded(tokenizer, pair, messages, (chosen.text, rejected.text), direct=True)
    replies = [
        r.token_ids or tuple(tokenizer.reply_ids(messages, tokenizer.with_reasoning(r.reasoning, r.text)))
        for r in (chosen, rejected)
    ]
    return TokenPair(
        id=pair.id,
        prompt_ids=tuple(tokenizer.prompt_ids(messages)),
        chosen_ids=replies[0],
        rejected_ids=replies[1],
        p_chosen=pair.p_chosen,
        margin=pair.margin,
        chosen_read=_reasoning_tokens(tokenizer, replies[0]) if how == "keep" else 0,
        rejected_read=_reasoning_tokens(tokenizer, replies[1]) if how == "keep" else 0,
    )


def encode_text(tokenizer: ChatTokenizer, pair: TextPair, how: str = "learn") -> TokenPair:
    """The ids of a pair that came as text; `how` is train.reasoning."""
    encoded = _encoded(tokenizer, pair, pair.messages, (pair.chosen, pair.rejected), direct=how == "drop")
    if how != "keep":
        return encoded
    read = [_reasoning_tokens(tokenizer, ids) for ids in (encoded.chosen_ids, encoded.rejected_ids)]
    return replace(encoded, chosen_read=read[0], rejected_read=read[1])


def _encoded(
    tokenizer: ChatTokenizer,
    pair: TextPair | PreferencePair,
    messages: Sequence[Message],
    texts: tuple[str, str],
    direct: bool,
) -> TokenPair:
    """A pair by its texts; `direct`: without reasoning."""
    return TokenPair(
        id=pair.id,
        prompt_ids=tuple(tokenizer.prompt_ids(messages, direct=direct)),
        chosen_ids=tuple(tokenizer.reply_ids(messages, texts[0], direct)),
        rejected_ids=tuple(tokenizer.reply_ids(messages, texts[1], direct)),
        p_chosen=pair.p_chosen,
        margin=pair.margin,
    )


def _reasoning_tokens(tokenizer: ChatTokenizer, ids: Sequence[int]) -> int:
    """Tokens before the answer in a reply, its end included."""
    ended = ids[-1] in tokenizer.end_ids
    return tokenizer.read(ids[:-1] if ended else ids).start
