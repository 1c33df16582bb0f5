"""What `sao export` and `sao import` did."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Result


class Export(Result):
    """A data set that was written for another tool."""

    kind: Literal["export"] = "export"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    form: str
    """The tool that reads it: trl, simpo, llamafactory, axolotl or openrlhf."""
    view: str
    """pairs, kto (answers with a label) or sft (best answers)."""
    train: int
    """Rows for training."""
    test: int
    """Rows for testing."""
    left_out: int
    """Rows that the form cannot hold."""
    paths: list[str]
    """The data files."""
    card: str
    """The data set's card."""


class Import(Result):
    """A run made of pairs that others labelled."""

    kind: Literal["import"] = "import"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    pairs: int
    """Pairs to train on."""
    held_out: int
    """Prompts that only the evaluation sees."""
    dropped: int
    """Rows that could not be used."""
    reasons: dict[str, int]
    """Why, and how many."""
    licence: str
    """The data set's licence."""
    recipe: str
    """The recipe to go on with."""
    run: str
    """The run folder."""
