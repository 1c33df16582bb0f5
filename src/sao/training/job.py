"""From labelled answers to a trained model folder: encoding, the length limit, and the weights on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sao.chat import ChatTokenizer, load_model
from sao.config import Config
from sao.engines import Message
from sao.errors import TrainingError
from sao.store import dumps, write_atomic
from sao.training.trainer import TokenPair, train
from sao.types import Drop, PreferencePair, Prompt, Response, to_dict

Labelled = Iterable[tuple[Prompt, PreferencePair, Response, Response]]


def train_run(
    config: Config, labelled: Labelled, folder: Path, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Train `config.model` on the labelled answers; the model arrives in folder/model. Returns the counts of the stage.

    A pair whose prompt and longer answer exceed train.max_length is dropped and counted (drops.jsonl), never cut.
    Raises TrainingError where no pair is left.
    """
    tokenizer = ChatTokenizer.load(config.model, config.engine, config.revision)
    pairs, drops = [], []
    for prompt, pair, chosen, rejected in labelled:
        encoded = encode_pair(tokenizer, config, prompt, pair, chosen, rejected)
        longest = len(encoded.prompt_ids) + max(len(encoded.chosen_ids), len(encoded.rejected_ids))
        if longest > config.train.max_length:
            drops.append(Drop(row=pair.row, stage="train", record_id=pair.id, reason="longer than max_length"))
        else:
            pairs.append(encoded)
    write_atomic(folder / "drops.jsonl", "".join(dumps(to_dict(drop)) + "\n" for drop in drops))
    if not pairs:
        raise TrainingError(
            f"no pairs to train on: all {len(drops)} are longer than --train.max_length {config.train.max_length}"
        )
    steps = -(-len(pairs) // config.train.batch_size) * config.train.epochs
    progress("train", 0, steps)

    def on_log(metrics: dict[str, float]) -> None:
        if "step" in metrics:
            progress("train", int(metrics["step"]), steps)

    # The weights are trained in float32 whatever they are stored in: bfloat16 weights hardly move at small rates.
    engine = config.engine.model_copy(update={"dtype": "float32"})
    model = load_model(config.model, engine, config.revision)
    result = train(pairs, model, tokenizer, folder, config.train, config.seed, on_log)
    reasons = {"longer than max_length": len(drops)} if drops else {}
    metrics = {key: round(value, 6) for key, value in result.metrics.items() if isinstance(value, float)}
    return {"records": len(pairs), "dropped": len(drops), "reasons": reasons, "steps": result.steps, "metrics": metrics}


def encode_pair(
    tokenizer: ChatTokenizer, config: Config, prompt: Prompt, pair: PreferencePair, chosen: Response, rejected: Response
) -> TokenPair:
    """The ids that the model is trained on: those that it sampled, where the engine gave them."""
    system = [Message("system", config.responses.system)] if config.responses.system else []
    messages = [*system, Message("user", prompt.text)]
    replies = [r.token_ids or tuple(tokenizer.reply_ids(messages, r.text)) for r in (chosen, rejected)]
    return TokenPair(
        id=pair.id, prompt_ids=tuple(tokenizer.prompt_ids(messages)), chosen_ids=replies[0], rejected_ids=replies[1]
    )
