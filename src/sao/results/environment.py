"""Versions and devices of this machine: printed by `sao env`."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Result


class Environment(Result):
    """What a bug report needs to know of a machine."""

    kind: Literal["environment"] = "environment"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    packages: dict[str, str | None]
    """Version of Python and of each package that a run depends on; null where it is not installed."""
    git: str | None
    """Revision of the git checkout that SAO runs from; null where it is installed otherwise."""
    cpus: int | None
    """Logical processors."""
    threads: int | None
    """Threads that torch computes with; null without torch."""
    gpus: list[str]
    """Names of the CUDA devices that torch sees."""
