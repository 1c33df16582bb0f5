"""What watches a training: alarms on its metrics and samples, a warning before it starts, and an orderly end
on SIGTERM.

Preference training fails in known ways: the chosen answers' log-probability falls while the margin grows
(displacement, arXiv 2410.08847), answers get longer or repeat themselves, the margin runs away at too high a
learning rate (princeton-nlp/SimPO, issues 12, 42 and 80). An alarm says so while there is time; it is a line
{"step", "alarm"} in metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sao.config import TrainConfig
from sao.errors import Terminated
from sao.training.policy import attention_of

FALL = 0.5
"""Nats per token by which the chosen answers' log-probability may fall below that of the first steps."""
MARGIN = 20.0
"""Mean margin in units of reward beyond which the logistic losses have no gradient left (e^−20)."""
LENGTH = 1.5
"""Factor by which samples may get longer than at the start."""
REPETITION = 0.15
"""By how much the share of repeated 4-grams in samples may grow."""
STOP = threading.Event()
"""Set where training is to save a checkpoint and end, as by SIGTERM (processes that Ray started)."""
LAUNCHER = "SAO_LAUNCHER"
"""The environment's name for the id of the process that started torchrun; training does not outlive it."""
SPAN = 8
"""Steps that are averaged before two states are compared."""


class Alarms:
    """Compares each step's metrics with the first ones; `see` returns the alarms that a line raises, each
    kind once."""

    def __init__(self) -> None:
        self.raised: set[str] = set()
        self._chosen: list[float] = []
        self._margins: list[float] = []
        self._first_samples: dict[str, Any] = {}

    def replay(self, lines: Iterable[dict[str, Any]]) -> str | None:
        """Take up what was seen before a restart; the last alarm of then."""
        alarms = [alarm for line in lines for alarm in self.see(line)]
        return alarms[-1] if alarms else None

    def see(self, line: dict[str, Any]) -> list[str]:
        """What is wrong now and was not before."""
        alarms: dict[str, str] = {}
        if "logps/chosen" in line:
            alarms |= self._see_step(line)
        if "samples/length" in line:
            alarms |= self._see_samples(line)
        new = [text for kind, text in alarms.items() if kind not in self.raised]
        self.raised |= alarms.keys()
        return new

    def _see_step(self, line: dict[str, Any]) -> dict[str, str]:
        alarms = {}
        self._chosen.append(line["logps/chosen"])
        self._margins.append(line["rewards/margins"])
        first, last = statistics.fmean(self._chosen[:SPAN]), statistics.fmean(self._chosen[-SPAN:])
        if len(self._chosen) >= 2 * SPAN and last < first - FALL:
            alarms["chosen"] = (
                f"log-probability of the chosen answers fell from {first:z.2f} to {last:z.2f} nats a token"
            )
        margin = statistics.fmean(self._margins[-SPAN:])
        if len(self._margins) >= SPAN and margin > MARGIN:
            alarms["margin"] = (
                f"the mean margin is {margin:.1f}; beyond {MARGIN:g} nothing more is learnt from the pairs"
            )
        return alarms

    def _see_samples(self, line: dict[str, Any]) -> dict[str, str]:
        alarms = {}
        self._first_samples = self._first_samples or line
        first, length = self._first_samples["samples/length"], line["samples/length"]
        if length > LENGTH * first:
            alarms["length"] = f"sampled answers grew from {first:.0f} to {length:.0f} tokens"
        first, repeated = self._first_samples["samples/repetition"], line["samples/repetition"]
        if repeated > first + REPETITION:
            alarms["repetition"] = (
                f"repeated 4-grams in sampled answers rose from {100 * first:.0f} to {100 * repeated:.0f} %"
            )
        return alarms


def sample_metrics(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    attention: str,
    seed: int,
    end_ids: Iterable[int] = (),
    together: bool = False,
) -> dict[str, float]:
    """Answers sampled at temperature 1, one to each prompt of token ids: mean length in tokens, share of
    repeated 4-grams.

    An answer ends with one of `end_ids` (none given: the model's own). `together` says that the weights are
    shared out, so that all processes must generate as long. Torch's random numbers are left as they were.
    """
    answers: list[list[int]] = []
    was_training, use_cache = model.training, model.config.use_cache
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), attention_of(model, attention):
        torch.manual_seed(seed % 2**63)
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=model.device)
            out: Any = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                # Not the model's own: these hide what is looked for.
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                max_new_tokens=max_tokens,
                eos_token_id=sorted(end_ids) or None,
                synced_gpus=together,
                use_cache=True,
            )
            answers.append(out[0, len(prompt) :].tolist())
    model.train(was_training)
    model.config.use_cache = use_cache
    length = statistics.fmean(len(answer) for answer in answers)
    return {"samples/length": length, "samples/repetition": _repetition(answers)}


def _repetition(answers: Sequence[Sequence[int]]) -> float:
    """The share of 4-grams that stand earlier in the same answer."""
    repeated = total = 0
    for answer in answers:
        grams = [tuple(answer[i : i + 4]) for i in range(len(answer) - 3)]
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return repeated / max(1, total)


def rate_warning(config: TrainConfig, weights: int) -> str | None:
    """A warning where the learning rate is far above what works for models of that many weights; None where
    it is not.

    The bounds are three times what SimPO's authors and ORPO's use for 7–9 billion weights (1e-6; 8e-6),
    rising for smaller models as the inverse square root of their size, and twenty times that for adapters.
    """
    usual = {"orpo": 8e-6, "cpo": 2e-6}.get(config.loss, 1e-6)
    bound = 3 * usual * max(1.0, (8e9 / weights) ** 0.5) * (1 if config.method == "full" else 20)
    if weights < 1e8 or config.lr <= bound:  # tiny models follow no such rule
        return None
    return (
        f"train.lr {config.lr:g} is high for {config.loss} ({config.method}) on {weights / 1e9:.1f} billion "
        f"weights: above about {bound:.1g} such trainings tend to collapse into long or repeated answers"
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class SaveAndStop(TrainerCallback):
    """Says when a checkpoint is due: every `save_steps`, `save_minutes` after the last one was written, after
    the last step (what follows may meet a full disk), and on SIGTERM (the end of a time slot, say), then to
    stop."""

    def __init__(
        self,
        save_steps: int,
        save_minutes: float,
        world: int = 1,
        rank: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.save_steps, self.save_minutes = save_steps, save_minutes
        self.terminated = False
        self._world, self._rank = world, rank
        self._launcher = int(os.environ.get(LAUNCHER, "0"))
        self._clock = clock  # of seconds; that of the first process counts
        self._saved_at = clock()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The minutes are counted from here, and from the end of each checkpoint."""
        self._saved_at = self._clock()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint is written."""
        self._saved_at = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop in all processes at the same step, whichever got the signal first, or lost its
        launcher."""
        self.terminated |= STOP.is_set() or (self._launcher > 0 and not _alive(self._launcher))
        due = self._rank == 0 and self._clock() - self._saved_at > 60 * self.save_minutes
        if self._world > 1:
            flags = torch.tensor([float(self.terminated), float(due)], device=args.device)
            torch.distributed.all_reduce(flags)
            self.terminated, due = (value > 0 for value in flags.tolist())
        last = state.global_step >= state.max_steps
        control.should_save |= self.terminated or due or last or state.global_step % self.save_steps == 0
        control.should_training_stop |= self.terminated

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGTERM instead of dying of it; afterwards the signal is given back to whom it belonged."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def raise_if_terminated(self) -> None:
        """Raise Terminated where SIGTERM came too late to stop the training."""
        if self.terminated:
            raise Terminated("training: SIGTERM after the last step; the model is saved")

    def _note(self, number: int, frame: Any) -> None:
        self.terminated = True
