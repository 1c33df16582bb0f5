"""Engines for pools: what `sao.engines.pool` opens in its processes. They are sent there by value, since the
tests are not installed."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sao.engines import Engine, Usage, cluster
from sao.engines.scripted import ScriptedEngine
from sao.errors import ModelError
from sao.records import Message

POISON = "this ends the process"


def by_value() -> None:
    """Have Ray send this module's functions themselves."""
    cloudpickle: Any = importlib.import_module("ray.cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def end_ray() -> None:
    """End Ray that was started here, without the warnings that it does not wait for its processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster.leave()
        gc.collect()


def reply(messages: tuple[Message, ...], seed: int, sampling: object) -> str:
    """A text that says what was asked; POISON kills."""
    if messages[-1].content == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{messages[-1].content} {seed}"


def quick(notify: Callable[[str], None]) -> Engine:
    """An engine that takes a hundredth of a second."""
    notify("opened")
    return ScriptedEngine("quick", reply=reply, delay=0.01, slots=4)


def slow(notify: Callable[[str], None]) -> Engine:
    """An engine that takes half a second."""
    return ScriptedEngine("slow", reply=reply, delay=0.5, slots=4)


def refusing(notify: Callable[[str], None]) -> Engine:
    """No engine."""
    raise ModelError("no such model here", key="model")


def dying(notify: Callable[[str], None]) -> Engine:
    """An engine that dies of every request."""
    engine = ScriptedEngine("dying")
    engine.reply = lambda messages, seed, sampling: os._exit(3)
    return engine


class Bare:
    """An engine that only writes, as a server or vLLM: of a scripted one what every engine has."""

    name, identity, has_logprobs, has_prefill = "bare", "bare", True, True
    usage: Usage | None = None

    def __init__(self) -> None:
        engine = ScriptedEngine("bare")
        self.generate, self.choice_logprobs, self.close = (
            engine.generate,
            engine.choice_logprobs,
            engine.close,
        )


def without_continuations(notify: Callable[[str], None]) -> Engine:
    """An engine that cannot say how probable a text is, and is not fed."""
    return Bare()


class Numbered:
    """Opens engines with another identity each time, counted by files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, notify: Callable[[str], None]) -> Engine:
        number = len(list(self.folder.iterdir()))
        (self.folder / str(number)).touch()
        return ScriptedEngine(f"model {number}", delay=0.2)


class Sparing:
    """Opens engines that POISON kills some times, counted by files in a folder; then it is answered."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def __call__(self, notify: Callable[[str], None]) -> Engine:
        return ScriptedEngine("sparing", reply=self.reply, delay=0.01, slots=4)

    def reply(self, messages: tuple[Message, ...], seed: int, sampling: object) -> str:
        """As `reply` above, but for the deaths that are over."""
        if messages[-1].content == POISON:
            if len(list(self.folder.iterdir())) == self.deaths:
                return "spared"
            (self.folder / str(os.getpid())).touch()
        return reply(messages, seed, sampling)
