"""Benchmarks with known answers, before and after training: lm-evaluation-harness runs them, SAO pairs the
results.

Enters: a model (folder or hub id) and the names of tasks. Leaves: `TaskResults` with the score of every
document, kept under `cache` so that no finished task is computed twice; from two of them, `compare_tasks`
makes a `TaskComparison` for each task.

    sao eval --suite tasks --base BASE --tuned TUNED --tasks leaderboard

"leaderboard" are the six tasks of the first Open LLM Leaderboard, with its numbers of examples and its
metrics (https://huggingface.co/docs/leaderboards/en/open_llm_leaderboard/archive); lm-eval's own group of
that name, the second leaderboard, is had by its members' names. Other names are lm-eval's, as NAME or
NAME:SHOTS.

Local copies of the data lie under `data_dir`: TASK/<split>.jsonl (or .json, .parquet, .csv), or the data
set's repository under its hub id, as `hf download allenai/ai2_arc --repo-type dataset --local-dir
DATA/allenai/ai2_arc` leaves it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sao.config import ChatConfig, EngineConfig
from sao.errors import ConfigError, DataError
from sao.evaluation import harness
from sao.evaluation.harness import Document, TaskRun
from sao.models.load import pick_device
from sao.models.locate import identity_of
from sao.records import make_id
from sao.results.evaluation import TaskComparison
from sao.statistics import effect, holm, mcnemar_exact, mean
from sao.store.files import dumps, read_jsonl, write_atomic

PRESET = "leaderboard"
LEADERBOARD = {
    "arc_challenge": (25, "acc_norm,none"),
    "truthfulqa_mc2": (0, "acc,none"),
    "winogrande": (5, "acc,none"),
    "gsm8k": (5, "exact_match,strict-match"),
    "hellaswag": (10, "acc_norm,none"),
    "mmlu": (5, "acc,none"),
}
"""Examples shown and metric (NAME,FILTER of the answer) of the leaderboard's tasks."""
COMMON_METRICS = ("acc_norm", "acc", "exact_match")
"""Of another task's metrics the first of these is reported, and its first one where it has none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One model on one task or group.

    `value` is lm-eval's figure; `scores` hold what each document earned, `asked` hashes of it and its prompt,
    both under TASK/number; `shots` are the examples shown; `cut` counts requests that were too long for the
    model's context and lost their beginning; `settings` must be the same for two models that are compared.
    """

    task: str
    shots: int
    metric: str
    higher_is_better: bool
    value: float
    scores: Mapping[str, float]
    asked: Mapping[str, str]
    cut: int
    settings: Mapping[str, Any]

    @property
    def n(self) -> int:
        """The number of documents."""
        return len(self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResults:
    """One model on all tasks asked for. `identity` is the hash of its weights."""

    model: str
    identity: str
    results: tuple[TaskResult, ...]

    @property
    def average(self) -> float:
        """The mean over tasks, as the leaderboard shows it."""
        return mean([result.value for result in self.results])


def run_tasks(
    model: str,
    tasks: Sequence[str],
    *,
    cache: Path,
    engine: EngineConfig,
    revision: str | None = None,
    chat: ChatConfig | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    include_path: Path | None = None,
    data_dir: Path | None = None,
    template: bool = False,
    seed: int = 1234,
    notify: Callable[[str], None] = lambda line: None,
) -> TaskResults:
    """The scores of a model on `tasks`, read from `cache` where they are there.

    Args:
        model: A folder, a hub id or builtin:world.
        tasks: "leaderboard", NAME or NAME:SHOTS.
        cache: Folder of the results: two files for each model, task and setting.
        engine: Its device, dtype, threads and trust_remote_code are used.
        revision: Revision of the hub model.
        chat: How chats with the model are written.
        limit: The first so many documents of each task (of each subject, in a group); None: all.
        batch_size: Requests in one forward pass.
        include_path: Folder with tasks of your own (lm-eval's YAML); one of the same name takes the place of
            lm-eval's.
        data_dir: Folder with local copies of the data, see the module's docstring.
        template: Whether questions and examples are turns of a chat. The leaderboard had plain text.
        seed: Draws the examples; 1234 is lm-eval's own.
        notify: Gets a line for each task that was computed.

    Raises:
        ConfigError: lm-eval is missing, a task is unknown, its data cannot be had, or `engine` is not
            transformers.
        EngineError: The model cannot be run on a task.

    """
    if engine.name not in ("transformers", "auto"):
        raise ConfigError(
            f"tasks are run by transformers, not by {engine.name}: give --engine.name transformers",
            key="engine.name",
        )
    manager = harness.task_index(include_path, data_dir)
    wanted = dict.fromkeys(spec for task in tasks for spec in _parse(task))
    for name, _ in wanted:
        harness.check_name(manager, name)
    # All data is loaded before anything is computed: what is missing shows in seconds and not after hours.
    benches = [bench for name, shots in wanted for bench in harness.load_bench(manager, name, shots, seed)]
    asked = {"template": template, "limit": limit, "seed": seed}
    runner = _Runner(model, revision, engine, asked, batch_size, cache, notify, chat)
    return TaskResults(model=model, identity=runner.identity, results=tuple(map(runner.result, benches)))


def _parse(task: str) -> Iterator[tuple[str, int | None]]:
    """Names and numbers of examples; None: the task's own."""
    if task == PRESET:
        yield from ((name, shots) for name, (shots, _) in LEADERBOARD.items())
        return
    name, colon, shots = task.rpartition(":")
    if not colon:
        yield task, LEADERBOARD[task][0] if task in LEADERBOARD else None
    elif shots.isdecimal():
        yield name, int(shots)
    else:
        raise ConfigError(f"task {task!r}: give {PRESET}, NAME or NAME:SHOTS, such as gsm8k:5", key="task")


class _Runner:
    """A model, loaded once a task needs it, and the folder of its results."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        engine: EngineConfig,
        asked: dict[str, Any],
        batch_size: int,
        cache: Path,
        notify: Callable[[str], None],
        chat: ChatConfig | None,
    ) -> None:
        self.model, self.revision, self.engine, self.batch_size = model, revision, engine, batch_size
        self.chat = chat
        self.identity = identity_of(engine, model, revision, chat)
        self.folder, self.asked, self.notify = cache / self.identity, asked, notify
        # The batch size and the number of threads change results by rounding alone: not part of what a result
        # is.
        device = pick_device(engine).split(":")[0]
        self.settings = {**asked, "backend": "transformers", "device": device, "lm_eval": version("lm-eval")}
        self._lm: Any = None

    def result(self, bench: harness.Bench) -> TaskResult:
        """What the model scores, its members' results put together."""
        finished = [self._finished(task) for task in bench.tasks]
        runs = [run for run, _ in finished]
        metric = _pick_metric(bench, [run.values for run in runs])
        documents = {f"{run.task}/{document.doc_id}": document for run, own in finished for document in own}
        figures = {run.task: run.values[metric] for run in runs}
        return TaskResult(
            task=bench.name,
            shots=max(run.shots for run in runs),
            metric=metric,
            higher_is_better=runs[0].higher_is_better[metric],
            value=bench.average(figures, {run.task: run.n for run in runs}, metric),
            scores={name: document.scores[metric] for name, document in documents.items()},
            asked={name: document.doc + document.prompt for name, document in documents.items()},
            cut=sum(run.cut for run in runs),
            settings={**self.settings, "dtype": runs[0].dtype},
        )

    def _finished(self, task: Any) -> tuple[TaskRun, list[Document]]:
        """One task's run, from its files; computed where they are not there."""
        questions = harness.questions_hash(task, self.asked["limit"])
        key = make_id(dumps(self.settings), self.engine.dtype, questions)
        name = re.sub(r"[^\w.-]+", "_", task.task_name)
        path, rows_path = self.folder / f"{name}-{key}.json", self.folder / f"{name}-{key}.jsonl"
        if not path.is_file():
            start = time.monotonic()
            if self._lm is None:
                self._lm = harness.language_model(
                    self.model, self.engine, self.revision, self.batch_size, self.chat
                )
            run, documents = harness.evaluate_task(self._lm, task, **self.asked)
            made_by = {"model": self.model, "identity": self.identity, "settings": self.settings}
            # The rows first: where the JSON is there, all is there.
            write_atomic(rows_path, "".join(dumps(asdict(document)) + "\n" for document in documents))
            write_atomic(path, json.dumps(asdict(run) | made_by, indent=1) + "\n")
            figures = ", ".join(f"{m.removesuffix(',none')} {v:.4f}" for m, v in run.values.items())
            seconds = time.monotonic() - start
            self.notify(f"{run.task}: {figures} ({run.n} documents, {seconds:.0f} s)")
        info = json.loads(path.read_text("utf-8"))
        run = TaskRun(**{field.name: info[field.name] for field in fields(TaskRun)})
        return run, [Document(**row) for row in read_jsonl(rows_path)]


def _pick_metric(bench: harness.Bench, values: list[dict[str, float]]) -> str:
    """The metric that is reported, as NAME,FILTER: the leaderboard's, or the first that all members have."""
    shared = [metric for metric in values[0] if all(metric in others for others in values)]
    if bench.group_metrics is not None:
        shared = [metric for metric in shared if metric.split(",")[0] in bench.group_metrics]
    first = [LEADERBOARD[bench.name][1]] if bench.name in LEADERBOARD else []
    common = [metric for name in COMMON_METRICS for metric in shared if metric.split(",")[0] == name]
    for metric in (*first, *common, *shared):
        if metric in shared:
            return metric
    raise ConfigError(
        f"task {bench.name}: no metric is a mean over documents, so two models cannot be paired on it",
        key="task metric",
    )


def compare_tasks(
    base: TaskResults, tuned: TaskResults, *, resamples: int = 10_000, seed: int = 0
) -> list[TaskComparison]:
    """Each task before and after, joined on documents.

    Raises ConfigError where the two ran on different tasks or under different settings, DataError where they
    were asked different questions.
    """
    after = {(result.task, result.shots): result for result in tuned.results}
    if [*after] != [(result.task, result.shots) for result in base.results]:
        raise ConfigError("base and tuned ran on different tasks: give both the same tasks", key="tasks")
    rows = [_compare(result, after[result.task, result.shots], resamples, seed) for result in base.results]
    corrected = holm([row.p for row in rows])
    return [row.model_copy(update={"p_holm": p}) for row, p in zip(rows, corrected, strict=True)]


def _check_same(base: TaskResult, tuned: TaskResult) -> None:
    """Raises where the two results are not of the same questions under the same settings."""
    for key, value in base.settings.items():
        if tuned.settings.get(key) != value:
            raise ConfigError(
                f"{base.task}: {key} is {value} for base and {tuned.settings.get(key)} for tuned, so they "
                "cannot be compared. Run both under the same settings; for the number format give "
                "--engine.dtype",
                key=key,
            )
    if base.asked != tuned.asked or base.metric != tuned.metric:
        raise DataError(
            f"{base.task}: base and tuned were asked different questions: the documents, the examples or "
            "the chat template differ. Run both on the same data; models of different templates can be "
            "compared without one only",
            key="documents",
        )


def _compare(base: TaskResult, tuned: TaskResult, resamples: int, seed: int) -> TaskComparison:
    _check_same(base, tuned)
    before, after = [*base.scores.values()], [tuned.scores[doc] for doc in base.scores]
    weights = _weights(base)
    gains = [weight * (b - a) for weight, a, b in zip(weights, before, after, strict=True)]
    lowest, highest = min(0.0, *before, *after), max(1.0, *before, *after)
    largest_gain = (highest - lowest) * max(weights)
    found = effect(gains, span=(-largest_gain, largest_gain), resamples=resamples, seed=seed)
    lost = sum(a > b for a, b in zip(before, after, strict=True))
    won = sum(a < b for a, b in zip(before, after, strict=True))
    accuracy = {*before, *after} <= {0.0, 1.0}
    p = mcnemar_exact(lost, won) if accuracy else found.p
    return TaskComparison(
        task=base.task,
        shots=base.shots,
        metric=base.metric,
        higher_is_better=base.higher_is_better,
        n=base.n,
        base=base.value,
        tuned=tuned.value,
        difference=tuned.value - base.value,
        ci95=found.interval,
        detectable=found.detectable or None,
        only_base=lost if accuracy else None,
        only_tuned=won if accuracy else None,
        p=p,
        p_holm=p,
        cut=max(base.cut, tuned.cut),
    )


def _weights(result: TaskResult) -> list[float]:
    """What a document counts in `value`, 1 on average: other than 1 in groups whose members count alike
    whatever their size."""
    members = [doc.rpartition("/")[0] for doc in result.scores]
    if math.isclose(mean([*result.scores.values()]), result.value, rel_tol=1e-6, abs_tol=1e-9):
        return [1.0] * len(members)
    sizes = {member: members.count(member) for member in set(members)}
    return [len(members) / (len(sizes) * sizes[member]) for member in members]
