"""What a run is doing now, or did last: status.json of its folder, printed by `sao status`."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Result

State = Literal["running", "finished", "failed", "stopped"]


class ReplicaStatus(Result):
    """One of the engines that work side by side (engine.replicas)."""

    number: int
    """Its number, from 1."""
    role: str
    """For whom it works: policy, judge, base, tuned …"""
    phase: Literal["waiting", "loading", "working"]
    """waiting for room on a machine, loading its model, or working."""
    address: str | None = None
    """The machine; null while it waits."""
    pid: int | None = None
    """The process there."""
    done: int
    """Answers since it was loaded."""
    rate: float
    """Answers a second since then."""


class Status(Result):
    """What a run is doing. Times are UNIX seconds."""

    kind: Literal["status"] = "status"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    state: State
    """running, finished, failed (with `error`), or stopped (by Ctrl-C, SIGTERM or SIGKILL)."""
    step: str | None = None
    """The step at work, or at which the run ended; null before the first and after the last."""
    done: int = 0
    """Rows of this step that exist; optimiser steps in training."""
    planned: int | None = None
    """How many there will be, at most; null where that is not known."""
    rate: float | None = None
    """Rows a minute since the step began in this process; in training, since its first optimiser step."""
    eta_s: float | None = None
    """Seconds to the end of this step at that rate."""
    drops: dict[str, int] = {}
    """Rows of this step that were lost, by reason."""
    replicas: list[ReplicaStatus] = []
    """The engines at work, where there are several; empty with one."""
    doing: str | None = None
    """What is under way while no row comes: loading a model, asking a server."""
    said: str | None = None
    """The last line that the user was told, such as a warning."""
    error: str | None = None
    """Why the run ended, where it failed."""
    pid: int
    """The process."""
    host: str
    """The machine it runs on."""
    started: float
    """When the process began with the run."""
    updated: float
    """When this was written."""
