"""A few optimiser steps on random tokens, timed: what `sao plan --probe` prints besides the arithmetic of
`sao.analysis.plan`."""

from __future__ import annotations

import contextlib
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sao.analysis.plan import GIB, Plan
from sao.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was measured on this machine, on one device."""

    device: str
    tokens_per_second: float
    peak_gib: float
    """Most memory in use: by the GPU's allocator, or by the whole process on a CPU."""
    training_hours: float
    """All training tokens at that rate, on as many such devices as planned."""

    @property
    def line(self) -> str:
        """The measurement as text."""
        return (
            f"measured on {self.device}: {self.tokens_per_second:,.0f} tokens/s in training, peak memory "
            f"{self.peak_gib:.2f} "
            f"GiB; all of the training at that rate: {self.training_hours:.2f} hours"
        )


class _EnoughError(Exception):
    """Ends a training before anything is saved."""


def probe(config: Config, plan: Plan, steps: int = 3) -> Probe:
    """Train on pairs of the planned mean lengths for `steps` optimiser steps of one micro-batch each, after
    one to warm up.

    Raises SAOError's children as training does: memory that does not suffice, packages that are missing.
    """
    import torch

    from sao.models.chat import ChatTokenizer
    from sao.training.batches import TokenPair
    from sao.training.job import load_to_train
    from sao.training.run import train

    t, lengths = config.train, plan.lengths
    bare = {"held_out_share": 0.0, "samples": 0, "report_to": [], "parallel": "ddp", "epochs": 1}
    bare |= {"save_steps": 10**9, "save_minutes": 1e9}
    quick = t.model_copy(update={**bare, "batch_size": t.micro_batch_size})
    answer = max(1, min(lengths.response, t.max_length - lengths.prompt))
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(plan.shape.vocabulary, (n,), generator=generator).tolist())

    pairs = [
        TokenPair(
            id=str(i),
            prompt_ids=tokens(lengths.prompt),
            chosen_ids=tokens(answer),
            rejected_ids=tokens(answer),
        )
        for i in range(t.micro_batch_size * (steps + 1))
    ]
    ends: list[float] = []

    def on_log(line: dict[str, Any]) -> None:
        if "loss" in line:
            ends.append(time.perf_counter())
        if len(ends) > steps:
            raise _EnoughError

    model = load_to_train(config)
    tokenizer = ChatTokenizer.load(config.model, config.engine, config.revision)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_EnoughError):
        train(pairs, model, tokenizer, Path(folder), quick, config.seed, on_log)
    cuda = model.device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    copies = lengths.pair(t) - 2 * lengths.response  # of the prompt
    rate = steps * t.micro_batch_size * (copies + 2 * answer) / (ends[-1] - ends[0])
    total = next(stage.read for stage in plan.stages if stage.name == "training")
    return Probe(
        device=torch.cuda.get_device_name() if cuda else "CPU",
        tokens_per_second=rate,
        peak_gib=peak / GIB,
        training_hours=total / rate / plan.gpus / 3600,
    )
