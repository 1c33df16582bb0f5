"""What a run is doing, as one short block of text."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from sao.results.status import ReplicaStatus, Status
from sao.tables import Column, plain_table


def show_status(status: Status, root: Path, now: float) -> str:
    """The status of the run folder `root` as text; `now` is the time in UNIX seconds."""
    columns = [Column(width=9), Column()]
    lines = [[name, text] for name, text in _facts(status, now)]
    return "\n".join([f"{root}: {status.state}", *plain_table(columns, lines, heads=False)])


def _facts(status: Status, now: float) -> Iterator[tuple[str, str]]:
    """Names and texts of what is known."""
    if status.step is not None:
        yield "step", f"{status.step}, {status.done:,}{_planned(status)}"
    if status.rate is not None:
        left = f", {duration(status.eta_s)} left" if status.eta_s is not None else ""
        yield "rate", f"{status.rate:,g} a minute{left}"
    if status.drops:
        yield "dropped", ", ".join(f"{reason} {n:,}" for reason, n in status.drops.items())
    for number, one in enumerate(status.replicas):
        yield "" if number else "replicas", _replica(one)
    if status.doing is not None:
        yield "doing", " ".join(status.doing.split())
    elif status.said is not None and status.state != "finished":
        yield "said", " ".join(status.said.split())
    if status.error is not None:
        yield "error", status.error
    if status.state == "running":
        yield "process", f"{status.pid}{_host(status)}, for {duration(status.updated - status.started)}"
    yield "updated", f"{duration(now - status.updated)} ago"


def _replica(one: ReplicaStatus) -> str:
    """What a replica does, where, and how fast."""
    where = f" on {one.address} (process {one.pid})" if one.address else " for room on a machine"
    rate = f", {one.done:,} answers, {one.rate:g} a second" if one.phase == "working" else ""
    return f"{one.number} ({one.role}) {one.phase}{where}{rate}"


def _planned(status: Status) -> str:
    return f" of {status.planned:,}" if status.planned is not None else ""


def _host(status: Status) -> str:
    """Where the process is, if it is elsewhere: whether it lives is not known here."""
    return "" if status.host == socket.gethostname() else f" on {status.host}"


def duration(seconds: float) -> str:
    """About so long: 45 s, 22 min, 3 h 10 min."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
