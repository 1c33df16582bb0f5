"""A model of two small layers, its tokenizer, and pairs to train it on."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from sao.config import TrainConfig
from sao.models.chat import ChatTokenizer
from sao.training import TokenPair, TrainResult, train

WORDS = ["<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", *"abcdefghijklmnopqrstuvwxyz"]
END = 2
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor "
    "%}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# 22 pairs in batches of 4: six steps an epoch, the last one with 2 pairs; checkpoints at every other step.
CONFIG = TrainConfig(batch_size=4, micro_batch_size=2, lr=1e-3, epochs=2, save_steps=2, max_length=32)


def tiny_model(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), attention_dropout=dropout, **sizes, **ids))


def tiny_tokenizer() -> ChatTokenizer:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|end|>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
    )
    return ChatTokenizer(tokenizer)


def some_pairs(n: int = 22) -> list[TokenPair]:
    """Pairs of uneven lengths: the chosen response is of early letters, the rejected one of late ones."""
    return [
        TokenPair(
            id=f"pair-{i}",
            prompt_ids=(1, 3, *(5 + (i * k) % 26 for k in range(1, 2 + i % 5)), END, 4),
            chosen_ids=(*(5 + (i + k) % 13 for k in range(1 + i % 7)), END),
            rejected_ids=(*(18 + (i * 3 + k) % 13 for k in range(1 + i % 4)), END),
        )
        for i in range(n)
    ]


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def stop_at(step: int) -> Callable[[dict[str, float]], None]:
    """An on_log that ends the run as Ctrl-C would."""

    def on_log(line: dict[str, float]) -> None:
        if line["step"] == step:
            raise KeyboardInterrupt

    return on_log


def run(out: Path, config: TrainConfig = CONFIG, dropout: float = 0.1, on_log: Any = None) -> TrainResult:
    return train(some_pairs(), tiny_model(dropout), tiny_tokenizer(), out, config, seed=7, on_log=on_log)


HASTY = CONFIG.model_copy(update={"save_steps": 1000, "save_minutes": 1e-9})


def die_in(function: str, call: int) -> None:
    """Make the `call`-th call of a function SIGKILL this process before it does anything."""
    owner_name, _, name = function.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    original, calls = getattr(owner, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, dying)
