"""The base of all results, and the small records that several of them hold.

A result is read back with `Audit.model_validate_json(text)`; unknown keys and other versions are errors.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

Interval = tuple[float, float]
"""The lower and the upper end of a 95 % interval."""


class Result(BaseModel):
    """A frozen record with a docstring under each field. JSON has no NaN and no infinity: they become null.
    Half a surrogate pair, which is no Unicode text, becomes "?"."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fit_for_json(cls, values: Any) -> Any:
        return _clean(values)


def _clean(value: Any) -> Any:
    """A value without what JSON cannot hold; records in it are clean already."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")
        case dict():
            return {key: _clean(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_clean(inner) for inner in value]
    return value


class Rate(Result):
    """How often something is so."""

    rate: float | None
    """Share from 0 to 1; null where it is a share of nothing."""
    ci95: Interval
    """95 % interval of the rate; the unit is the prompt."""
    n: int
    """Number of cases (verdicts, pairs or texts) that the rate is of."""


class StageCounts(Result):
    """What a finished stage let through, and why it dropped the rest."""

    stage: str
    """Name of the stage."""
    records: int
    """Records that it let through."""
    dropped: int
    """Records that it dropped."""
    reasons: dict[str, int]
    """Dropped records by reason."""
    steps: int | None = None
    """Optimiser steps; training only."""
    metrics: dict[str, float | None] | None = None
    """Metrics of the last step and the last measurement, by name; training only."""
    cut: int | None = None
    """Pairs whose answers were cut at train.max_length; training only, null for none."""
