"""What each process of tests/training/test_parallel.py runs: trainings one after the other, each described in
a JSON file.

torchrun --nproc-per-node 2 -m support.parallel_worker jobs.json
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sao.config import TrainConfig
from sao.training import TrainResult, monitors, train
from support.tiny_training import END, WORDS, some_pairs, tiny_model, tiny_tokenizer

RANK = int(os.environ.get("RANK", "0"))


def untied_model() -> Qwen3ForCausalLM:
    """A model whose head is not its embedding."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END}
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(WORDS), num_key_value_heads=2, tie_word_embeddings=False, **sizes, **ids)
    )


def tied_model(dropout: float) -> PreTrainedModel:
    model = tiny_model(dropout)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def train_one(job: dict[str, Any]) -> TrainResult:
    """Train as `job` says; see the functions of test_parallel.py for what it may hold."""
    dropout = job.get("dropout", 0.0)
    model = untied_model() if job.get("untied") else tied_model(dropout)
    if job.get("broken"):
        model.model.embed_tokens.weight.data[30] = float("inf")
    pairs = some_pairs(job.get("pairs", 22))
    return train(pairs, model, tiny_tokenizer(), Path(job["out"]), TrainConfig(**job["config"]), seed=7)


def signal_at(step: int, number: int, ranks: list[int]) -> None:
    """Let these processes send themselves a signal at the end of an optimiser step, once."""
    plain = monitors.SaveAndStop.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step and RANK in ranks:
            os.kill(os.getpid(), number)
        plain(self, args, state, control, **kwargs)

    monitors.SaveAndStop.on_step_end = on_step_end  # type: ignore[method-assign]


def hurry(ranks: list[int]) -> None:
    """Let the clocks of these processes say that a checkpoint is always due, and those of the others that it
    never is."""
    plain: Any = monitors.SaveAndStop.__init__
    hours = itertools.count(0, 3600)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs, clock=lambda: float(next(hours)) if RANK in ranks else 0.0)

    monitors.SaveAndStop.__init__ = init  # type: ignore[method-assign]


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    plain, start = monitors.SaveAndStop.on_step_end, monitors.SaveAndStop.__init__
    for job in jobs:
        monitors.SaveAndStop.on_step_end = plain  # type: ignore[method-assign]
        monitors.SaveAndStop.__init__ = start  # type: ignore[method-assign]
        if "hurried" in job:
            hurry(job["hurried"])
        if "signal" in job:
            signal_at(job["step"], getattr(signal, job["signal"]), job.get("ranks", [0, 1]))
        Path(job["out"]).mkdir(parents=True, exist_ok=True)
        try:
            result = train_one(job)
            said = {"steps": result.steps, "metrics": result.metrics}
        except (Exception, KeyboardInterrupt) as error:
            if job.get("loud"):
                raise
            said = {"error": f"{type(error).__name__}: {error}"}
        Path(f"{job['out']}.rank{RANK}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
