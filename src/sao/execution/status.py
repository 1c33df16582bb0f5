"""status.json of a run folder: what a run is doing now. Written by the runner, read by `sao status RUN`.

It is replaced when a step begins, when something is said, when the run ends, and every few seconds between.
A run that was killed leaves its last one; whether its process still lives is seen when it is read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from sao.errors import StoreError
from sao.results.status import ReplicaStatus, State, Status
from sao.store.files import write_atomic
from sao.store.manifest import MANIFEST, read_manifest

NAME = "status.json"
EVERY = 2.0
"""Seconds between two updates."""
CHECKS = "checks before the run: recipe, models, servers"


class StatusFile:
    """Keeps status.json of the folder `root` true: from `check` on in a folder that holds a run, from
    `start` on in any. A run that is refused by its checks leaves the folder as it was. Errors of the disk are
    left to the stages, which report them."""

    def __init__(
        self,
        root: Path,
        writes: bool = True,
        clock: Callable[[], float] = time.monotonic,
        replicas: Callable[[], list[ReplicaStatus]] = list,
    ) -> None:
        """`writes`: false in all but one of several processes. `replicas`: says what engines that work side
        by side do."""
        self._replicas = replicas
        self.path = root / NAME
        self._writes, self._clock, self._is_kept = writes, clock, False
        self._is_checked = False
        self._before: bytes | None = None
        self._lock = threading.Lock()  # engines speak from threads of their own
        self._started = time.time()
        self._state: State = "running"
        self._error: str | None = None
        self._written = -EVERY
        self._step: str | None = None
        self._done, self._planned = 0, 0
        self._drops: Mapping[str, int] = {}
        self._doing: str | None = None
        self._said: str | None = None
        self._counted_from: tuple[int, float] | None = None
        """Rows and time that the rate is counted from."""

    def check(self) -> None:
        """The checks before the run begin (weights are hashed, servers asked). In a folder that holds a run
        the file says so, in place of what the last call left; where the checks fail, `end` puts that back."""
        self._doing = CHECKS
        if self._writes and (self.path.is_file() or (self.path.parent / MANIFEST).is_file()):
            self._before = self.path.read_bytes() if self.path.is_file() else None
            self._is_kept = True
            self._write()

    def start(self) -> None:
        """The run has been checked and works from now on."""
        self._is_kept = self._is_checked = True
        self._doing = None
        self._write()

    @property
    def step(self) -> str | None:
        """The step at work."""
        return self._step

    def begin(self, step: str, done: int, planned: int) -> None:
        """A step begins with `done` of `planned` rows (0: not known)."""
        self._state, self._error = "running", None
        self._step, self._done, self._planned = step, done, planned
        self._drops, self._doing = {}, None
        # A step that does not know its rows (training) loads a model first, or goes on from a checkpoint: its
        # rate is counted from its first row on.
        self._counted_from = (done, self._clock()) if planned else None
        self._write()

    def see(self, done: int, planned: int, drops: Mapping[str, int] | None = None) -> None:
        """`done` of `planned` rows of the step exist now, and `drops` were lost so far; written at most every
        EVERY seconds."""
        is_news = planned != self._planned
        if done > self._done:
            self._doing = None
            self._counted_from = self._counted_from or (done, self._clock())
        self._done, self._planned = done, planned
        if drops is not None:
            self._drops = drops  # not a copy: the runner counts on, and this is called for each row
        if is_news or self._clock() - self._written >= EVERY:
            self._write()

    def say(self, line: str) -> None:
        """Something that the user is told."""
        self._doing = self._said = line
        self._write()

    def end(self, state: State, error: str | None = None) -> None:
        """The run ends here."""
        if not self._is_checked:
            self._put_back()
            return
        self._state, self._error = state, error
        self._doing, self._counted_from = None, None
        if state == "finished":
            self._step, self._done, self._planned, self._drops = None, 0, 0, {}
        self._write()

    def _rate(self) -> float:
        """Rows a minute; 0 where that is not known."""
        if self._counted_from is None:
            return 0.0
        rows, since = self._counted_from
        minutes = (self._clock() - since) / 60
        return (self._done - rows) / minutes if minutes > 0 else 0.0

    def _put_back(self) -> None:
        """Leave the file as it was before the checks, and write no more."""
        with self._lock, contextlib.suppress(OSError):
            if self._is_kept and self._before is not None:
                self.path.write_bytes(self._before)
            elif self._is_kept:
                self.path.unlink(missing_ok=True)
            self._is_kept = False

    def _write(self) -> None:
        self._written = self._clock()
        with self._lock:
            if not (self._writes and self._is_kept):
                return
            try:
                write_atomic(self.path, self._now().model_dump_json(indent=1) + "\n")
            except StoreError:
                return  # a full disk: the stage's own write says so

    def _now(self) -> Status:
        rate, left = self._rate(), max(0, self._planned - self._done)
        return Status(
            state=self._state,
            step=self._step,
            done=self._done,
            planned=self._planned or None,
            rate=round(rate, 1) or None,
            eta_s=60 * left / rate if rate > 0 and self._planned else None,
            drops=dict(self._drops),
            replicas=self._replicas() if self._state == "running" else [],
            doing=self._doing,
            said=self._said,
            error=self._error,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=self._started,
            updated=time.time(),
        )


def read_status(root: Path) -> Status:
    """What a run folder's run does, or did last. One that was killed is `stopped`.

    Raises StoreError where there is no status file, or an unreadable one, and where it has another format.
    """
    path = root / NAME
    try:
        status = Status.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        _check_format(root)
        raise StoreError(
            f"{root}: no {NAME}, so no run has worked here. Start one: sao run … --out {root}",
            key="status.json",
        ) from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}", key="status.json") from error
    except ValidationError as error:
        _check_format(root)
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"{path}: no status of this version of SAO ({where + ': ' if where else ''}{first['msg']}). The "
            f"next run here writes a new one: sao run … --out {root}",
            key="status.json",
        ) from error
    if status.state == "running" and status.host == socket.gethostname() and not _lives(status.pid):
        return status.model_copy(update={"state": "stopped", "rate": None, "eta_s": None, "doing": None})
    return status


def _check_format(root: Path) -> None:
    """Raise StoreError for a run folder that `sao run` refuses too: one of another format, say."""
    if (root / MANIFEST).is_file():
        read_manifest(root)


def _lives(pid: int) -> bool:
    """Whether a process of this machine is at work. One that ended, and that nobody asked how, still has its
    number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:  # no Linux
        return True
    return stat.rpartition(")")[2].split()[0] != "Z"
