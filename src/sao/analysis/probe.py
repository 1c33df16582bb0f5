"""A few optimiser steps on random tokens, timed: what `sao plan --probe` prints besides the arithmetic of
`sao.analysis.plan`."""

from __future__ import annotations

import contextlib
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.analysis.plan import GIB, Lengths
from sao.config import Config
from sao.models.shapes import read_shape
from sao.results.plan import Measurement, Plan

if TYPE_CHECKING:
    from sao.training.batches import TokenPair

BARE = {
    "held_out_share": 0.0, "samples": 0, "report_to": [], "parallel": "ddp", "epochs": 1, "save_steps": 10**9,
    "save_minutes": 1e9,
}  # fmt: skip
"""Settings of a training that only steps: nothing is saved, measured or reported."""


class _EnoughError(Exception):
    """Ends a training before anything is saved."""


def probe(config: Config, plan: Plan, steps: int = 3) -> Measurement:
    """Train on pairs of the planned mean lengths for `steps` optimiser steps of one micro-batch each, after
    one to warm up.

    Raises SAOError's children as training does: memory that does not suffice, packages that are missing.
    """
    import torch

    from sao.models.chat import ChatTokenizer
    from sao.training.job import load_to_train
    from sao.training.run import train

    own, prompt = config.train, plan.assumed.prompt
    answer = max(1, min(plan.assumed.response, own.max_length - prompt))
    pairs = _random_pairs(config, prompt, answer, own.micro_batch_size * (steps + 1))
    step_ends: list[float] = []

    def on_log(line: dict[str, Any]) -> None:
        if "loss" in line:
            step_ends.append(time.perf_counter())
        if len(step_ends) > steps:
            raise _EnoughError

    model = load_to_train(config)
    tokenizer = ChatTokenizer.load(config.model, config.engine, config.revision)
    bare = own.model_copy(update={**BARE, "batch_size": own.micro_batch_size})
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        train(pairs, model, tokenizer, Path(folder), bare, config.seed, on_log)
    tokens = steps * own.micro_batch_size * Lengths(prompt=prompt, response=answer).pair(own)
    rate = tokens / (step_ends[-1] - step_ends[0])
    to_train = next(stage.read for stage in plan.stages if stage.name == "training")
    cuda = model.device.type == "cuda"
    return Measurement(
        device=torch.cuda.get_device_name() if cuda else "CPU",
        tokens_per_second=rate,
        peak_gib=_peak_bytes(cuda) / GIB,
        training_hours=to_train / rate / plan.gpus / 3600,
    )


def _random_pairs(config: Config, prompt: int, answer: int, n: int) -> list[TokenPair]:
    """Pairs of random tokens, with so many in the prompt and in each answer."""
    import torch

    from sao.training.batches import TokenPair

    vocabulary = read_shape(config.model, config.revision).vocabulary
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (length,), generator=generator).tolist())

    return [
        TokenPair(
            id=str(i), prompt_ids=tokens(prompt), chosen_ids=tokens(answer), rejected_ids=tokens(answer)
        )
        for i in range(n)
    ]


def _peak_bytes(cuda: bool) -> int:
    """Most memory in use so far."""
    import torch

    if cuda:
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
