"""A run folder opened for reading: with a recipe, or with the one that it was last used with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sao.config import Config, make_config
from sao.engines import Engine
from sao.errors import ConfigError
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round, rounds_of
from sao.pipeline.settings import asking
from sao.pipeline.steps import STEPS
from sao.store.manifest import grown, read_manifest


def reader(config: Config, root: Path, given: Engine | None = None, number: int = 1) -> Reader:
    """The records of one round of a recipe in a run folder. `given` takes the place of the configured
    engine."""
    return Reader(_round(asking(config), root, number, given))


def recorded(root: Path, number: int | None = None) -> Reader:
    """The records of a run folder by the recipe that it was last used with: its sources, templates and
    weights may be gone. Without a `number` they are those of the round whose model the run gave back, of the
    first where it did not end yet.

    Raises StoreError where there is no run, ConfigError where there is no such round.
    """
    manifest = read_manifest(root)
    config = make_config(manifest.config, f"{root}/manifest.json")
    n = config.rounds.n
    if number is not None and not 1 <= number <= n:
        raise ConfigError(
            f"--round {number}: the run in {root} has rounds.n {n}. For more: sao run … --out {root} "
            f"--rounds.n {number}",
            key="--round",
        )
    best, model = best_round(root)
    found = _round(config, root, number or min(n, best), None, manifest.outside)
    if number is None and best > 1 and str(found.model_dir.relative_to(root)) != model:
        found = found.first  # the summary is of another recipe
    return Reader(found)


def best_round(root: Path) -> tuple[int, str]:
    """The round whose model a finished run gave back, by its summary, and that model's folder below the
    run's; 1 where it does not say."""
    try:
        found = json.loads((root / "summary.json").read_text("utf-8"))
        best = int(found["best"])
        return best, str(found["rounds"][best - 1]["model"])
    except (OSError, ValueError, LookupError, TypeError):
        return 1, ""


def _round(
    config: Config, root: Path, number: int, given: Engine | None, known: Mapping[str, Any] | None = None
) -> Round:
    """A round of a recipe, and those before it."""
    sizes = grown(root, config)
    config = config.model_copy(update={"rounds": config.rounds.model_copy(update={"n": number})})
    rounds = rounds_of(config, root, STEPS, given=given, known=known, sizes=sizes)
    return next(islice(rounds, number - 1, None))
