"""status.json of a run folder: what a run is doing now. Written by the runner, read by `sao status RUN`.

It is replaced at the start and end of each step and every few seconds between. A run that was killed leaves
its last one; whether its process still lives is seen when it is read.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sao.errors import StoreError
from sao.store.files import write_atomic
from sao.store.manifest import MANIFEST

EVERY = 2.0
"""Seconds between two updates."""
State = Literal["running", "finished", "failed", "stopped"]


class Status(BaseModel):
    """What a run is doing. `rate` is in rows per minute since the step began (in this process); times are
    UNIX seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1] = 1
    state: State
    """running, finished, failed (with `error`), or stopped (by Ctrl-C, SIGTERM or SIGKILL)."""
    step: str | None = None
    """The step at work; None before the first and after the last."""
    done: int = 0
    """Rows of this step that exist; optimiser steps in training."""
    planned: int | None = None
    """How many there will be, at most; None where that is not known."""
    rate: float | None = None
    """Rows a minute."""
    eta_s: float | None = None
    """Seconds to the end of this step at that rate."""
    drops: dict[str, int] = {}
    """Rows of this step that were lost, by reason."""
    doing: str | None = None
    """The last line said (loading a model, asking a server, a warning)."""
    error: str | None = None
    """Why the run ended, where it failed."""
    pid: int
    host: str
    started: float
    """When this process began."""
    updated: float


class StatusFile:
    """Keeps status.json of the folder `root` true, once the folder is a run's. Errors of the disk are left to
    the stages, which report them."""

    def __init__(self, root: Path, writes: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        """`writes`: false in all but one of several processes."""
        self._writes = writes
        self.path = root / "status.json"
        self._clock = clock
        self._status = Status(
            state="running",
            pid=os.getpid(),
            host=socket.gethostname(),
            started=time.time(),
            updated=time.time(),
        )
        self._written = -EVERY
        self._begun, self._begun_at = 0, 0.0

    def begin(self, step: str, done: int, planned: int) -> None:
        """A step begins with `done` of `planned` rows (0: not known)."""
        self._begun, self._begun_at = done, self._clock()
        self._put(step=step, done=done, planned=planned or None, rate=None, eta_s=None, drops={}, error=None)

    def see(self, done: int, planned: int, drops: dict[str, int] | None = None) -> None:
        """`done` rows of the step exist now; written at most every EVERY seconds."""
        if self._clock() - self._written < EVERY:
            return
        minutes = (self._clock() - self._begun_at) / 60
        rate = (done - self._begun) / minutes if minutes > 0 else 0.0
        left = 60 * (planned - done) / rate if rate > 0 and planned else None
        found = self._status.drops if drops is None else dict(drops)
        self._put(done=done, planned=planned or None, rate=round(rate, 1) or None, eta_s=left, drops=found)

    def say(self, line: str) -> None:
        """Something that the user is told."""
        self._put(doing=line)

    def end(self, state: State, error: str | None = None) -> None:
        """The run ends here."""
        step = None if state == "finished" else self._status.step
        self._put(state=state, error=error, step=step, rate=None, eta_s=None)

    def _put(self, **changes: object) -> None:
        self._written = self._clock()
        self._status = self._status.model_copy(update={**changes, "updated": time.time()})
        if self._writes and (self.path.parent / MANIFEST).is_file():
            try:
                write_atomic(self.path, self._status.model_dump_json(indent=1) + "\n")
            except StoreError:
                return  # a full disk: the stage's own write says so


def read_status(root: Path) -> Status:
    """What a run folder's run does, or did last. One that was killed is `stopped`.

    Raises StoreError where there is no status file, or an unreadable one.
    """
    path = root / "status.json"
    try:
        status = Status.model_validate(json.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise StoreError(
            f"{root}: no status.json, so no run has worked here. Start one: sao run … --out {root}",
            key="status.json",
        ) from error
    except (OSError, ValueError, ValidationError) as error:
        raise StoreError(f"{path}: cannot be read: {error}", key="status.json") from error
    if status.state == "running" and status.host == socket.gethostname() and not _lives(status.pid):
        return status.model_copy(update={"state": "stopped", "rate": None, "eta_s": None})
    return status


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
