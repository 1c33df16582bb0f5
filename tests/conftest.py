"""Fixtures that tests of several packages use. Functions that they share stand in `support`."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from sao.engines import client

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a hub

if find_spec("hypothesis"):  # vLLM's environment is without
    from hypothesis import settings

    settings.register_profile("busy", deadline=None)  # a machine that does other work is slow now and then
    settings.load_profile("busy")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of a server tries again sooner than it would for a real one."""
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.03)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.5)
