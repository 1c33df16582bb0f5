"""A recipe as a YAML file: the keys that differ from the defaults, and those that the preview changes, each
with the reason beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

from sao.config import Config
from sao.preview.ways import varied
from sao.results.preview import Change
from sao.store.files import write_atomic

WIDTH = 110
"""Characters of a line."""


def changed(config: Config, changes: Sequence[Change]) -> Config:
    """The recipe with these changes."""
    settings = {key: value for change in changes for key, value in change.settings.items()}
    return varied(config, settings) if settings else config


def write_recipe(path: Path, config: Config, changes: Sequence[Change]) -> None:
    """Write the recipe with these changes to `path`."""
    made = changed(config, changes)
    data = {"model": made.model, **made.model_dump(mode="json", exclude_defaults=True)}
    lines = [*_comment("Written by `sao preview`. Run it: sao run THIS-FILE")]
    for change in changes:
        if change.settings:
            lines += _comment(f"Changed ({', '.join(change.settings)}): {change.says}")
    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=WIDTH)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "\n".join(lines) + "\n" + body)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="#   ")
