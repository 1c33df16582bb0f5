"""Runs the cells of a sweep one after the other, and keeps a line of each."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from statistics import median

from sao.analysis.rounds import best_of, judged_by_rules, measure
from sao.errors import SAOError, StoreError
from sao.execution.runner import Progress
from sao.execution.session import Notify
from sao.method import run
from sao.pipeline import folder
from sao.results.rounds import RoundResult
from sao.results.summary import Summary
from sao.results.sweep import Cell, PromptScores
from sao.store.manifest import git_revision, package_versions
from sao.sweep.cells import Cells
from sao.sweep.plan import Plan, Planned
from sao.sweep.scores import Labels, half_of, labels_of, measured, prompt_scores

CHANGED = "changed since the last run here: "
"""Begins what a run says of a folder that it shares; in a sweep that is no news."""


def run_cells(
    plan: Plan,
    *,
    retry: bool = False,
    progress: Progress = lambda what, done, total: None,
    notify: Notify = lambda line: None,
) -> None:
    """Run the cells that have no line yet; with `retry` also those that failed.

    A cell that fails is a line with its error, and the next one is run. A StoreError ends the sweep (a full
    disk would end all cells alike); the same command goes on.
    """
    cells = Cells(plan.root)
    cells.open()
    lines = cells.read()
    left = [cell for cell in plan.cells if _is_open(lines.get(cell.fingerprint), retry)]
    known = [lines[cell.fingerprint] for cell in plan.cells if cell.fingerprint in lines]
    if not retry and (failed := sum(line.error is not None for line in known)):
        notify(f"cells that failed earlier and are not tried again: {failed}. To try them: --retry")
    took = [line.seconds for line in lines.values() if line.error is None]
    for number, cell in enumerate(plan.cells, 1):
        if cell not in left:
            continue
        notify(f"cell {number} of {len(plan.cells)}: {cell.label} ({_left(len(left), took)})")
        line, scores = run_cell(plan, cell, progress, notify)
        cells.append(line, scores)
        left.remove(cell)
        if line.error is None:
            took.append(line.seconds)
        else:
            notify(f"cell {number} failed: {line.error}")


def _is_open(line: Cell | None, retry: bool) -> bool:
    """Whether a cell is to be run."""
    return line is None or (retry and line.error is not None)


def _left(cells: int, took: list[float]) -> str:
    """How many cells are left, this one among them, and for about how long."""
    if not took:
        return f"{cells} left"
    minutes = cells * median(took) / 60
    return f"{cells} left, about {f'{minutes:.0f} min' if minutes >= 1 else 'a minute'}"


def best_by_choice(plan: Plan, cell: Planned, summary: Summary) -> int:
    """The round whose figures are a cell's: the best by the choice half of the held-out prompts, which is all
    that the rules see here; of the report half no more comes in than how many rounds there are."""
    results: list[RoundResult] = []
    for result in summary.rounds:
        run = folder.reader(cell.config, plan.root / cell.run, plan.given, result.round).round
        found = measure(run, lambda prompt: half_of(prompt) == "choice")
        results.append(judged_by_rules([*results, found], cell.config.rounds.stop))
    return best_of(results).round if results else 1


def _figures(summary: Summary, labels: Labels, scores: list[PromptScores]) -> dict[str, object]:
    """What a finished run says, as the fields of its cell."""
    return {
        "measures": measured(scores),
        "judge": None if summary.heldout is None else summary.heldout.label,
        "rounds": summary.rounds,
        "best": summary.best,
        "stopped_by": summary.stopped_by,
        "kept_pairs": labels.trained,
        "kept_share": None if summary.kept is None else summary.kept.share,
        "label_accuracy": labels.label_accuracy,
        "judge_accuracy": labels.judge_accuracy,
    }


def run_cell(
    plan: Plan, cell: Planned, progress: Progress, notify: Notify
) -> tuple[Cell, list[PromptScores]]:
    """Run a cell, or go on with it, and measure it."""
    began = time.monotonic()
    scores: list[PromptScores] = []
    found: dict[str, object] = {}

    def say(line: str) -> None:
        if not line.startswith(CHANGED):
            notify(line)

    try:
        root = plan.root / cell.run
        summary = run(cell.config, root, engine=plan.given, progress=progress, notify=say)
        number = best_by_choice(plan, cell, summary)
        reader = folder.reader(cell.config, root, plan.given, number)
        scores = prompt_scores(reader)
        found = _figures(summary, labels_of(reader), scores)
        found["measured"] = number if summary.rounds else None
        found["checks"] = summary.checks if number == (summary.best or 1) else None
    except StoreError:
        raise
    except SAOError as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    common: dict[str, object] = {
        "settings": cell.settings,
        "repeats": cell.repeats,
        "recipe": cell.config.model_dump(mode="json", exclude_defaults=True),
        "fingerprint": cell.fingerprint,
        "run": cell.run,
        "versions": package_versions(),
        "git": git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
    }
    return Cell.model_validate(common | found), scores
