"""A run folder opened for reading: with a recipe, or with the one that it was last used with."""

from __future__ import annotations

from pathlib import Path

from sao.config import Config, make_config
from sao.engines import Engine
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round
from sao.pipeline.settings import asking
from sao.pipeline.steps import STEPS
from sao.store.manifest import grown, read_manifest


def reader(config: Config, root: Path, given: Engine | None = None) -> Reader:
    """The records of a recipe in a run folder. `given` takes the place of the configured engine."""
    config = asking(config)
    return Reader(Round(config, root, STEPS, given=given, sizes=grown(root, config)))


def recorded(root: Path) -> Reader:
    """The records of a run folder by the recipe that it was last used with: its sources, templates and
    weights may be gone. Raises StoreError where there is no run."""
    manifest = read_manifest(root)
    config = make_config(manifest.config, f"{root}/manifest.json")
    return Reader(Round(config, root, STEPS, known=manifest.outside, sizes=grown(root, config)))
