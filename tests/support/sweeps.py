"""Small sweeps: a recipe that is run in seconds, and cells made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sao.config import Config, load_recipe
from sao.results.checks import ChecksOutcome
from sao.results.sweep import Cell, PromptScores
from sao.sweep import Cells, Plan, Planned
from sao.sweep.scores import measured


def small(**changes: str) -> Config:
    """The demo on a few prompts; changes as `train_lr="1"` for train.lr."""
    settings = {
        "personas.n": "24", "personas.held_out": "16", "engine.name": "transformers", "engine.threads": "1",
        "train.epochs": "1",
    }  # fmt: skip
    return load_recipe("demo", settings | {key.replace("_", ".", 1): text for key, text in changes.items()})


def scores_of(
    gains: Mapping[str, float], half: str = "report", points: Mapping[str, float] | None = None
) -> list[PromptScores]:
    """Prompts with these gains by the oracle."""
    return [
        PromptScores.model_validate(
            {
                "id": name,
                "half": half,
                "oracle": (0.0, gain),
                "words": (3, 4),
                "win_rate": (points or {}).get(name),
            }
        )
        for name, gain in gains.items()
    ]


def write_cell(
    plan: Plan,
    cell: Planned,
    scores: Sequence[PromptScores] = (),
    error: str | None = None,
    pairs: int = 5,
    checks: ChecksOutcome | None = None,
) -> None:
    """A line as if the cell had been run."""
    cells = Cells(plan.root)
    cells.open()
    line = Cell(
        settings=cell.settings, repeats=cell.repeats, fingerprint=cell.fingerprint, run=cell.run, error=error,
        measures=[] if error else measured(scores), judge=None if error else "CIRCULAR",
        kept_pairs=None if error else pairs, checks=checks, date="2026-01-01T00:00:00+00:00", seconds=60.0,
    )  # fmt: skip
    cells.append(line, scores)


def lines(root: Path) -> list[dict[str, object]]:
    """The lines of a sweep, apart from times."""
    found = list(Cells(root).read().values())
    return [cell.model_dump(mode="json", exclude={"date", "seconds"}) for cell in found]
