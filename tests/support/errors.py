"""Errors by class and key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from sao.errors import SAOError

E = TypeVar("E", bound=SAOError)


@contextmanager
def raises(kind: type[E], *, key: str, match: str | None = None) -> Iterator[pytest.ExceptionInfo[E]]:
    """As pytest.raises, for an error of SAO about `key`. `match` is for what the message itself must say."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert caught.value.key == key, f"{caught.value!r} is about {caught.value.key!r}, not {key!r}"
