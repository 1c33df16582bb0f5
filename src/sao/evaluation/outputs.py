"""An evaluation's result as a Markdown table, and as the files that the hub reads.

`.eval_results/*.yaml` of a model's repository is the hub's form for results of benchmarks that it knows
(https://huggingface.co/docs/hub/eval-results): a list of {dataset: {id, task_id}, value, date, notes}. What
has no data set there, such as a run's own held-out prompts, gets no file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sao.store.files import write_atomic

WITHHELD = "withheld"
HUB_SETS = {
    "alpaca": "tatsu-lab/alpaca_eval", "arena": "lmarena-ai/arena-hard-auto",
    "mtbench": "HuggingFaceH4/mt_bench_prompts",
    "arc_challenge": "allenai/ai2_arc", "truthfulqa_mc2": "truthfulqa/truthful_qa",
    "winogrande": "allenai/winogrande",
    "gsm8k": "openai/gsm8k", "hellaswag": "Rowan/hellaswag", "mmlu": "cais/mmlu",
}  # fmt: skip
"""The hub's data sets of suites and tasks."""
HEADS = ["suite", "base", "tuned", "reference", "Δ", "95 % CI", "p", "p (Holm)", "n", "detectable"]


def show_table(found: Mapping[str, Any]) -> str:
    """The result as Markdown: a line for each suite and task, and below it all that must be known to read
    them."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for suite in found["suites"].values():
        lines += _suite_rows(suite, found["headline"])
    lines += [_task_row(task) for task in found.get("tasks", ())]
    if average := found.get("task_average"):
        lines.append(_row("tasks, mean %", _percent(average["base"]), _percent(average["tuned"])))
    return "\n".join([*lines, "", *_notes(found)])


def _row(
    title: str,
    base: str,
    tuned: str,
    reference: str = "–",
    delta: Mapping[str, Any] | None = None,
    scale: float = 100.0,
) -> str:
    cells = [title, base, tuned, reference]
    if delta is None:
        return f"| {' | '.join([*cells, *'––––––'])} |"
    digits = 1 if scale == 100 else 2
    low, high = (scale * end for end in delta["ci95"])
    cells += [
        f"{scale * delta['value']:+.{digits}f}",
        f"[{low:+.{digits}f}, {high:+.{digits}f}]",
        f"{delta['p']:.3g}",
        "–" if delta.get("p_holm") is None else f"{delta['p_holm']:.3g}",
        str(delta["n"]),
        "–" if delta.get("detectable") is None else f"{scale * delta['detectable']:.{digits}f}",
    ]
    return f"| {' | '.join(cells)} |"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _value(found: Mapping[str, Any] | None) -> float | None:
    return None if found is None else float(found["value"])


def _suite_rows(suite: Mapping[str, Any], headline: bool) -> list[str]:
    """The lines of one suite: its main score, then those that are refitted."""
    if "mark" in suite["tuned"]:
        marks = [_value(suite.get(role, {}).get("mark")) for role in ("base", "tuned", "reference")]
        cells = ["–" if mark is None else f"{mark:.2f}" if headline else WITHHELD for mark in marks]
        delta = suite["delta"] if headline else None
        return [_row(f"{suite['title']}, mark", cells[0], cells[1], cells[2], delta, 1.0)]
    direct = suite["against"] == "base"
    reference = "base" if direct else "50.0"
    sides = [{} if direct else suite["base"], suite["tuned"]]
    found = []
    for key, name in (("win_rate", "win rate"), ("adjusted", ""), ("arena", ""), ("arena_style", "")):
        scores = [side.get(key) for side in sides]
        if scores[1] is None:
            continue
        base, tuned = "50.0" if direct else _percent(_value(scores[0])), _percent(_value(scores[1]))
        delta = suite.get("delta") if key == "win_rate" else scores[1].get("delta")
        title = f"{suite['title']}, {name or scores[1]['name']} %"
        found.append(
            _row(title, base, tuned, reference, delta)
            if headline
            else _row(title, WITHHELD, WITHHELD, reference)
        )
    return found


def _task_row(task: Mapping[str, Any]) -> str:
    title = f"{task['task']}, {task['shots']} shots, {task['metric']} %"
    delta = {**task, "value": task["difference"]}
    return _row(title, _percent(task["base"]), _percent(task["tuned"]), delta=delta)


def _notes(found: Mapping[str, Any]) -> list[str]:
    """What must stand beside the figures."""
    lines = [f"judge: {found['judge']}"] if found.get("judge") else []
    if found["label"]:
        withheld = "" if found["headline"] else " Figures are withheld; --headline shows them."
        lines.append(f"{found['label']}: {found['why']}.{withheld}")
    for name, suite in found["suites"].items():
        lines += [f"{name}: {line}" for line in _suite_notes(suite, found["headline"])]
    lines += [
        f"{t['task']}: {t['cut']} requests were too long and lost their beginning"
        for t in found.get("tasks", ())
        if t["cut"]
    ]
    if tests := found.get("self_tests"):
        titles = {"identical": "the first of two identical ones"}
        parts = [
            f"{titles.get(name, name)} {100 * row['rate']:.0f} % (n {row['n']}{_flips(row)})"
            for name, row in tests.items()
            if row["rate"] is not None
        ]
        lines.append(
            "the judge, asked about made-up pairs, prefers the answer as it was to one that is … : "
            + ", ".join(parts)
        )
    return lines


def _flips(row: Mapping[str, Any]) -> str:
    flips = row.get("flips")
    return "" if not flips or flips["rate"] is None else f", {100 * flips['rate']:.0f} % flip when swapped"


def _suite_notes(suite: Mapping[str, Any], headline: bool) -> list[str]:
    lines = [f"{role}: {line}" for role, wrong in suite["degenerate"].items() for line in wrong]
    lines += [f"{role}: no answer to {n} questions" for role, n in suite["missing"].items() if n]
    lines += [
        f"{role}: {n} of {suite['n']} answers were cut off" for role, n in suite["cut_off"].items() if n
    ]
    for role in ("base", "tuned"):
        side = suite.get(role, {})
        lines += [f"{role}: {warning}" for warning in side.get("warnings", ())]
        if side.get("unreadable") or side.get("lost"):
            line = f"{role}: {side['unreadable']} of {side['verdicts']} verdicts unreadable or not given"
            lines.append(line + (_bounds(side) if headline else ""))
        if side.get("by_length"):
            ours, theirs = side["words"]
            flips = (
                ""
                if side["flip_rate"] is None
                else f"; {100 * side['flip_rate']:.0f} % of the verdicts flip when swapped"
            )
            lines.append(f"{role}: {ours:.0f} words against {theirs:.0f}{flips}")
            if headline:
                lines.append(
                    f"{role}: win rate by length ratio " + ", ".join(_bin(b) for b in side["by_length"])
                )
    return lines


def _bounds(side: Mapping[str, Any]) -> str:
    low, high = side["bounds"]
    if low is None or high is None:
        return ""
    if "mark" in side:
        return f"; with them the mean would be between {low:.2f} and {high:.2f}"
    return f"; with them the figure would be between {100 * low:.1f} and {100 * high:.1f} %"


def _bin(found: Mapping[str, Any]) -> str:
    low, high = found["ratio"]
    ratio = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}–{high:.2f}"
    return f"{ratio}: {100 * found['win_rate']:.0f} % (n {found['n']})"


def write_eval_results(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """One YAML file for each suite and task that the hub has a data set of; none for circular results that
    are withheld."""
    written = []
    for name, suite in found["suites"].items():
        tuned = suite["tuned"].get("mark") or suite["tuned"].get("win_rate")
        if found["headline"] and tuned is not None and name in HUB_SETS:
            against = f"against {suite['against']}" if "against" in suite else "marks"
            notes = "; ".join(filter(None, (f"judge {found['judge']}", against, found["label"])))
            written.append(
                _write(folder, name, (1 if "mark" in suite["tuned"] else 100) * tuned["value"], notes)
            )
    for task in found.get("tasks", ()):
        if task["task"] in HUB_SETS:
            written.append(
                _write(folder, task["task"], 100 * task["tuned"], f"{task['shots']} shots, {task['metric']}")
            )
    return written


def _write(folder: Path, name: str, value: float, notes: str) -> Path:
    path = folder / ".eval_results" / f"{name}.yaml"
    dataset = {"id": HUB_SETS[name], "task_id": name}
    row = {"dataset": dataset, "value": round(value, 4), "date": time.strftime("%Y-%m-%d"), "notes": notes}
    write_atomic(path, yaml.safe_dump([row], sort_keys=False, allow_unicode=True))
    return path
