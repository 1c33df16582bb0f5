"""An evaluation's result as a Markdown table, and as the files that the hub reads.

`.eval_results/*.yaml` of a model's repository is the hub's form for results (https://huggingface.co/docs/hub/eval-results): a
list of {dataset: {id, task_id}, value, date, notes}.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sao.store import write_atomic

WITHHELD = "withheld"


def show_table(found: Mapping[str, Any]) -> str:
    """The result as Markdown: a line for each suite and task, and below it all that must be known to read them."""
    lines = [
        "| suite | base | tuned | reference | Δ | 95 % CI | p | p (Holm) | n | detectable |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for suite in found["suites"].values():
        lines += [_row(*cells) for cells in _cells(suite, found["headline"])]
    lines += [_task_row(task) for task in found.get("tasks", ())]
    return "\n".join([*lines, "", *_notes(found)])


def _row(
    title: str, scale: float, base: Any, tuned: Any, reference: str, delta: Mapping[str, Any] | None, shown: bool
) -> str:
    def figure(value: float | None) -> str:
        return "–" if value is None else f"{scale * value:.1f}" if shown else WITHHELD

    cells = [title, figure(base), figure(tuned), reference]
    if delta is None or not shown:
        cells += ["–" if delta is None else WITHHELD, "–", "–", "–", "–" if delta is None else str(delta["n"]), "–"]
    else:
        low, high = (scale * end for end in delta["ci95"])
        holm = delta.get("p_holm")
        cells += [
            f"{scale * delta['value']:+.1f}",
            f"[{low:+.1f}, {high:+.1f}]",
            f"{delta['p']:.3g}",
            "–" if holm is None else f"{holm:.3g}",
            str(delta["n"]),
            f"{scale * delta['detectable']:.1f}",
        ]
    return "| " + " | ".join(cells) + " |"


def _cells(suite: Mapping[str, Any], shown: bool) -> list[tuple[Any, ...]]:
    """The lines of one suite: title, scale, base, tuned, reference, delta, whether figures are shown."""
    if "mark" in suite["tuned"]:
        marks = [_value(suite.get(role, {}).get("mark")) for role in ("base", "tuned", "reference")]
        reference = "–" if marks[2] is None else f"{marks[2]:.2f}"
        return [(f"{suite['title']}, mark", 1.0, marks[0], marks[1], reference, suite["delta"], shown)]
    direct = suite["against"] == "base"
    sides = {role: suite.get(role, {}) for role in ("base", "tuned")}
    reference = "50.0 (base)" if direct else "50.0"
    base = {"win_rate": {"value": 0.5}} if direct else sides["base"]
    rates = [_value(side.get("win_rate")) for side in (base, sides["tuned"])]
    found = [(f"{suite['title']}, win rate %", 100.0, *rates, reference, suite.get("delta"), shown)]
    for key in ("adjusted", "arena", "arena_style"):
        scores = [side.get(key) for side in (sides["base"], sides["tuned"])]
        if scores[1] is not None:
            title = f"{suite['title']}, {scores[1]['name']} %"
            found.append(
                (title, 100.0, 0.5 if direct else _value(scores[0]), scores[1]["value"], reference, None, shown)
            )
    return found


def _value(found: Mapping[str, Any] | None) -> float | None:
    return None if found is None else float(found["value"])


def _task_row(task: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in task["ci95"])
    holm = task.get("p_holm")
    cells = [
        f"{task['task']}, {task['shots']} shots, {task['metric']} %",
        *(f"{100 * task[role]:.1f}" for role in ("base", "tuned")),
        "–",
        f"{100 * task['difference']:+.1f}",
        f"[{low:+.1f}, {high:+.1f}]",
        f"{task['p']:.3g}",
        "–" if holm is None else f"{holm:.3g}",
        str(task["n"]),
        f"{100 * task['detectable']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _notes(found: Mapping[str, Any]) -> list[str]:
    """What must stand beside the figures."""
    lines = []
    if found.get("judge"):
        lines.append(f"judge: {found['judge']}")
    if found["label"]:
        lines.append(
            f"{found['label']}: {found['why']}."
            + ("" if found["headline"] else " Figures are withheld; --headline shows them.")
        )
    for name, suite in found["suites"].items():
        lines += [f"{name}: {line}" for line in _suite_notes(suite)]
    if tests := found.get("self_tests"):
        parts = [
            f"{name} {100 * row['rate']:.0f} % (n {row['n']})" for name, row in tests.items() if row["rate"] is not None
        ]
        lines.append(
            "the judge on an answer against itself, padded, cut and shuffled, for the answer as it was: "
            + ", ".join(parts)
        )
    return lines


def _suite_notes(suite: Mapping[str, Any]) -> list[str]:
    lines = [f"{role}: {line}" for role, wrong in suite["degenerate"].items() for line in wrong]
    lines += [f"{role}: no answer to {n} questions" for role, n in suite["missing"].items() if n]
    for role in ("base", "tuned"):
        side = suite.get(role, {})
        lines += [f"{role}: {warning}" for warning in side.get("warnings", ())]
        if side.get("unreadable"):
            low, high = side["bounds"]
            lost = f"{side['unreadable']} of {side['verdicts']} verdicts unreadable"
            lines.append(f"{role}: {lost}; with them the figure would be between {low:.3f} and {high:.3f}")
        if side.get("by_length"):
            ours, theirs = side["words"]
            bins = ", ".join(
                f"{b['ratio'][0]:.2f}–{b['ratio'][1]:.2f}: {100 * b['win_rate']:.0f} %" for b in side["by_length"]
            )
            lines.append(f"{role}: {ours:.0f} words against {theirs:.0f}; win rate by length ratio {bins}")
    return lines


def write_eval_results(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """One YAML file a suite and task in folder/.eval_results; none for circular results that are withheld."""
    written = []
    for name, suite in found["suites"].items():
        tuned = suite["tuned"].get("mark") or suite["tuned"].get("win_rate")
        if found["headline"] and tuned is not None:
            against = f"against {suite['against']}" if "against" in suite else "marks"
            notes = f"judge {found['judge']}; {against}; {found['label']}".strip("; ")
            scale = 1 if "mark" in suite["tuned"] else 100
            written.append(_write(folder, name, suite["questions"], scale * tuned["value"], notes))
    for task in found.get("tasks", ()):
        written.append(
            _write(folder, task["task"], task["task"], 100 * task["tuned"], f"{task['shots']} shots, {task['metric']}")
        )
    return written


def _write(folder: Path, name: str, dataset: str, value: float, notes: str) -> Path:
    path = folder / ".eval_results" / f"{name}.yaml"
    row = {
        "dataset": {"id": dataset, "task_id": name},
        "value": round(value, 4),
        "date": time.strftime("%Y-%m-%d"),
        "notes": notes,
    }
    write_atomic(path, yaml.safe_dump([row], sort_keys=False, allow_unicode=True))
    return path
