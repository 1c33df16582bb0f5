"""Small checks that also tell the type checker what is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def known(value: T | None) -> T:
    """The value, which must be there."""
    assert value is not None
    return value


def a(kind: type[T], value: object) -> T:
    """The value, which must be of this kind."""
    assert isinstance(value, kind), value
    return value


def all_of(kind: type[T], values: Iterable[object]) -> list[T]:
    """The values, each of which must be of this kind."""
    return [a(kind, value) for value in values]
