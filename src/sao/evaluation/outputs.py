"""An evaluation's result as the files that the hub reads.

`.eval_results/*.yaml` of a model's repository is the hub's form for results of benchmarks that it knows
(https://huggingface.co/docs/hub/eval-results): a list of {dataset: {id, task_id}, value, date, notes}. What
has no data set there, such as a run's own held-out prompts, gets no file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from sao.results.evaluation import Evaluation, MarkedSuite, PairedSuite
from sao.store.files import write_atomic

HUB_SETS = {
    "alpaca": "tatsu-lab/alpaca_eval", "arena": "lmarena-ai/arena-hard-auto",
    "mtbench": "HuggingFaceH4/mt_bench_prompts",
    "arc_challenge": "allenai/ai2_arc", "truthfulqa_mc2": "truthfulqa/truthful_qa",
    "winogrande": "allenai/winogrande",
    "gsm8k": "openai/gsm8k", "hellaswag": "Rowan/hellaswag", "mmlu": "cais/mmlu",
}  # fmt: skip
"""The hub's data sets of suites and tasks."""


def write_eval_results(folder: Path, evaluation: Evaluation) -> list[Path]:
    """One YAML file for each suite and task that the hub has a data set of; none for circular results that
    are withheld."""
    figures = [*(_suite_figures(evaluation) if evaluation.headline else ()), *_task_figures(evaluation)]
    return [_write(folder, name, value, notes) for name, value, notes in figures if name in HUB_SETS]


def _suite_figures(evaluation: Evaluation) -> Iterator[tuple[str, float, str]]:
    """Name, the trained model's main figure (a mark, or percent) and notes of each suite that has one."""
    for name, suite in evaluation.suites.items():
        if isinstance(suite, MarkedSuite):
            value = None if suite.tuned.mark is None else suite.tuned.mark.value
            against = "marks"
        elif not isinstance(suite, PairedSuite):
            continue  # not asked as the hub's benchmarks are
        else:
            value = None if suite.tuned.win_rate is None else 100 * suite.tuned.win_rate.value
            against = f"against {suite.against}"
        if value is not None:
            yield (
                name,
                value,
                "; ".join(filter(None, (f"judge {evaluation.judge}", against, evaluation.label))),
            )


def _task_figures(evaluation: Evaluation) -> Iterator[tuple[str, float, str]]:
    for task in evaluation.tasks:
        yield task.task, 100 * task.tuned, f"{task.shots} shots, {task.metric}"


def _write(folder: Path, name: str, value: float, notes: str) -> Path:
    path = folder / ".eval_results" / f"{name}.yaml"
    dataset = {"id": HUB_SETS[name], "task_id": name}
    row = {"dataset": dataset, "value": round(value, 4), "date": time.strftime("%Y-%m-%d"), "notes": notes}
    write_atomic(path, yaml.safe_dump([row], sort_keys=False, allow_unicode=True))
    return path
