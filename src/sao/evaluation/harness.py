"""The boundary to lm-evaluation-harness (extra sao[tasks]): its tasks, with data from here or the hub, on
SAO's models.

Enters: names of tasks, and a model. Leaves: tasks that are ready to run, and what each document scored.
lm-eval's own output is silenced, its errors become SAO's. Model, number format and chat template are those of
`sao.models.chat`; questions, examples and metrics are lm-eval's
(https://github.com/EleutherAI/lm-evaluation-harness). Used by `sao eval --suite tasks`.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import math
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache as cached
from itertools import chain
from pathlib import Path
from typing import Any

from sao.config import ChatConfig, EngineConfig
from sao.data.shards import check_shards
from sao.errors import ConfigError, DataError, EngineError
from sao.models.chat import ChatTokenizer
from sao.models.load import load_model
from sao.records import Message
from sao.statistics import mean

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A task or group of lm-eval's that is ready to run: its members, and the group that averages them (None:
    a single task)."""

    name: str
    tasks: tuple[Any, ...]
    group: Any = None

    def average(self, figures: Mapping[str, float], sizes: Mapping[str, int], metric: str) -> float:
        """The figure of the whole from those of its members, as lm-eval weights them."""
        if self.group is None:
            return figures[self.name]
        return float(
            self.group.aggregate({m: {metric: figures[m], "sample_len": sizes[m]} for m in figures})[metric]
        )

    @property
    def group_metrics(self) -> set[str] | None:
        """The metrics that the group averages; None: any."""
        return None if self.group is None else {entry.metric for entry in self.group.aggregate_metric_list}


def task_index(include_path: Path | None, data_dir: Path | None) -> Any:
    """lm-eval's TaskManager, with the tasks of `include_path`, and the data of `data_dir` put in the place of
    the hub's.

    Raises ConfigError where lm-eval is not installed, or a folder is missing.
    """
    for folder in filter(None, (include_path, data_dir)):
        if not folder.is_dir():
            raise ConfigError(
                f"{folder}: no such folder; it is to hold tasks or their data", key="--data-dir"
            )
    manager = copy.copy(_read_index())
    if include_path:
        with quiet():
            own = type(manager)(include_path=str(include_path), include_defaults=False)
        manager._index = {**manager.task_index, **own.task_index}
    manager._factory = copy.copy(manager._factory)
    read = manager._factory._load_full_config

    def definition(entry: Any, overrides: dict[str, Any] | None = None) -> Any:
        found = read(entry, overrides)
        return (
            {**found, **_local_data(entry.name, found.get("dataset_path"), data_dir)} if data_dir else found
        )

    manager._factory._load_full_config = definition
    return manager


@cached
def _read_index() -> Any:
    # Reads the heads of 14,000 YAML files, which takes about ten seconds.
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"the suite tasks needs lm-eval: pip install 'sao[tasks]' ({error})", key="lm-eval"
        ) from error
    with quiet():
        return TaskManager()


def _local_data(name: str, source: Any, data_dir: Path) -> dict[str, Any]:
    """What points a task's definition to the local copy of its data; nothing where there is none. Raises
    DataError where a file of it is missing or there twice."""
    if (folder := data_dir / name).is_dir():
        files: dict[str, list[str]] = {}
        found = sorted(file for file in folder.iterdir() if file.suffix in _BUILDERS)
        check_shards(found)
        for file in found:
            files.setdefault(file.stem.split("-")[0], []).append(str(file))
        kinds = {_BUILDERS[file.suffix] for file in found}
        if len(kinds) != 1:
            raise ConfigError(
                f"{folder}: give the data of task {name} as one file a split, all of one kind: "
                "<split>.jsonl, .parquet or .csv",
                key="task data",
            )
        return {"dataset_path": kinds.pop(), "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    if isinstance(source, str) and source and (data_dir / source).is_dir():
        for folder in sorted({file.parent for file in (data_dir / source).rglob("*.parquet")}):
            check_shards(sorted(folder.glob("*.parquet")))
        return {"dataset_path": str(data_dir / source)}
    return {}


def check_name(manager: Any, name: str) -> None:
    """Raises ConfigError where lm-eval has no task, group or tag of this name."""
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.task_index, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` shows all names"
        raise ConfigError(
            f"no task {name!r}: {hint} Tasks of your own lie in the folder given by include_path", key="task"
        )


def load_bench(manager: Any, name: str, shots: int | None, seed: int) -> list[Bench]:
    """The task, group or, from a tag, tasks of this name, their data loaded, with `shots` examples (None: the
    task's own number).

    Raises ConfigError where the data cannot be had, or the task shows no examples and some are asked for.
    """
    loaded = _load(manager, name, seed)
    for task in loaded["tasks"].values():
        own = task.config.num_fewshot
        if own == 0 and shots:
            raise ConfigError(
                f"task {task.task_name} is defined without examples: give {name} or {name}:0",
                key="task examples",
            )
        task.set_config(key="num_fewshot", value=(own or 0) if shots is None else shots)
        task.set_fewshot_seed(seed)
    group = loaded.get("groups", {}).get(name)
    if group is not None and group.has_aggregation:
        return [Bench(name=name, tasks=tuple(loaded["tasks"].values()), group=group)]
    return [Bench(name=member, tasks=(task,)) for member, task in loaded["tasks"].items()]


def _load(manager: Any, name: str, seed: int) -> Any:
    """lm-eval's tasks and groups under a name. Raises ConfigError where their data cannot be had."""
    with quiet(seed):
        try:
            return manager.load([name])
        except (ConfigError, DataError):
            raise
        except Exception as error:
            source = (manager.task_index[name].cfg or {}).get("dataset_path", "its data set's hub id")
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise ConfigError(
                f"task {name}: its data ({source}) cannot be loaded ({reason}). Without a network, set "
                "HF_HUB_OFFLINE=1 to use what the hub's cache holds; or put a copy into a folder and give it "
                f"as data_dir: FOLDER/<task>/<split>.jsonl, or `hf download {source} --repo-type dataset "
                f"--local-dir FOLDER/{source}`",
                key="task data",
            ) from error


def questions_hash(task: Any, limit: int | None) -> str:
    """What a task asks: a hash of its definition, its documents, and those that its examples are drawn
    from."""
    # Where the data lies is no part of it: the documents are.
    places = ("metadata", "dataset_path", "dataset_name", "dataset_kwargs")
    digest = hashlib.blake2b(digest_size=8)
    with quiet():
        definition = {key: value for key, value in task.dump_config().items() if key not in places}
        examples = (task.fewshot_docs() or []) if task.config.num_fewshot else []
        for item in chain([definition], (doc for _, doc in task.doc_iterator(limit=limit)), examples):
            digest.update(json.dumps(item, default=_text_of, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _text_of(value: object) -> str:
    """A value that JSON has no form for; functions without their address, which is another in every
    process."""
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else str(value)


def language_model(
    model: str,
    config: EngineConfig,
    revision: str | None,
    batch_size: int,
    template: ChatConfig | None = None,
) -> Any:
    """The model as lm-eval's LM. Its `cut` counts requests that were too long for the model and lost their
    beginning.

    Encoding, batches and generation are those of lm-eval's `hf` model, but for three things:
    log-probabilities are taken in float32 whatever the weights are, of logits in the model's format; the
    chat template is asked for as
    everywhere in SAO; a template without system messages gets them with the user's first one, where lm-eval
    drops them.
    """
    chat = ChatTokenizer.load(model, config, revision, template)
    chat_lm = _chat_lm(chat)
    loaded = load_model(model, config, revision)
    with quiet():
        return chat_lm(
            pretrained=loaded, tokenizer=chat.tokenizer, batch_size=batch_size, softmax_dtype="float32"
        )


def _chat_lm(chat: ChatTokenizer) -> Any:
    """The class of such a model, with `chat`'s template."""
    from lm_eval.models.huggingface import HFLM

    class ChatLM(HFLM):  # type: ignore[misc]
        cut = 0

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
            return chat.text(messages, begun=not add_generation_prompt)

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            self.cut += sum(len(context) + len(words) > self.max_length + 1 for _, context, words in requests)
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def tok_batch_encode(
            self, *args: Any, left_truncate_len: int | None = None, **kwargs: Any
        ) -> tuple[Any, Any]:
            ids, mask = super().tok_batch_encode(*args, **kwargs)
            longest = left_truncate_len or ids.shape[1]
            self.cut += int((mask.sum(1) > longest).sum())
            return ids[:, -longest:], mask[:, -longest:]

    return ChatLM


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """What one model scored on one task, as it is kept in a file."""

    task: str
    version: Any
    """lm-eval's version of the task's definition."""
    shots: int
    """Examples shown."""
    n: int
    """Documents."""
    values: dict[str, float]
    """By metric, as NAME,FILTER of the answer: the means over the documents."""
    higher_is_better: dict[str, bool]
    """By metric."""
    cut: int
    """Requests that were too long for the model's context and lost their beginning."""
    dtype: str
    """Number format of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What one document scored, as it is kept in a line of a file."""

    doc_id: int
    doc: str
    """Hash of the document."""
    prompt: str
    """Hash of what the model was shown."""
    scores: dict[str, float]
    """By metric, as NAME,FILTER of the answer."""
    answers: Any
    """What the model said, as lm-eval has it."""


def evaluate_task(
    lm: Any, task: Any, *, limit: int | None, template: bool, seed: int
) -> tuple[TaskRun, list[Document]]:
    """Run one task. Raises EngineError where it fails."""
    from lm_eval.evaluator import evaluate

    name, lm.cut = task.task_name, 0
    with _explained(name), quiet(seed):
        found = evaluate(
            lm,
            {"tasks": {name: task}},
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    documents = _documents(found["samples"][name])
    values = {m: float(v) for m, v in found["results"][name].items() if _is_mean(documents, m, v)}
    better = found["higher_is_better"][name]
    run = TaskRun(
        task=name,
        version=found["versions"][name],
        shots=found["n-shot"][name],
        n=len(documents),
        values=values,
        higher_is_better={metric: bool(better.get(metric.split(",")[0], True)) for metric in values},
        cut=lm.cut,
        dtype=str(lm.model.dtype).removeprefix("torch."),
    )
    return run, documents


def _documents(samples: list[dict[str, Any]]) -> list[Document]:
    """The documents in order. lm-eval gives a sample of each for each filter of the answer."""
    documents: dict[int, Document] = {}
    for sample in samples:
        number = sample["doc_id"]
        if number not in documents:
            documents[number] = Document(
                doc_id=number,
                doc=sample["doc_hash"][:16],
                prompt=sample["prompt_hash"][:16],
                scores={},
                answers=sample["resps"],
            )
        for metric in sample["metrics"]:
            score = sample[metric]
            if hasattr(score, "__float__") and getattr(score, "ndim", 0) == 0:
                documents[number].scores[f"{metric},{sample['filter']}"] = float(score)
    return [documents[number] for number in sorted(documents)]


def _is_mean(documents: list[Document], metric: str, value: Any) -> bool:
    """Whether a metric is the mean of what the documents score: only then can two models be compared document
    by document."""
    scores = [document.scores[metric] for document in documents if metric in document.scores]
    return len(scores) == len(documents) and math.isclose(mean(scores), value, rel_tol=1e-6, abs_tol=1e-9)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns whatever goes wrong inside lm-eval into an EngineError that says what to do."""
    try:
        yield
    except Exception as error:
        import torch

        full = isinstance(error, torch.OutOfMemoryError)
        hint = (
            "The GPU's memory does not suffice: give a smaller batch size"
            if full
            else "Finished tasks are kept"
        )
        raise EngineError(f"task {name}: {type(error).__name__}: {error}. {hint}", key="task") from error


@contextmanager
def quiet(seed: int | None = None) -> Iterator[None]:
    """No progress bars, logs and warnings of lm-eval and what it uses; given a seed, random numbers start
    from it, and go on afterwards as if nothing had been drawn."""
    loggers = [
        logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers", "evaluate", "absl")
    ]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:
        sink = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(redirect_stdout(sink))
        stack.enter_context(redirect_stderr(sink))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        restore = _seed(seed) if seed is not None else lambda: None
        try:
            yield
        finally:
            restore()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _seed(seed: int) -> Callable[[], None]:
    """Seed all three sources of random numbers; returns what puts their states back."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    # lm-eval's own run starts Python's generator from 0 whatever the other seeds are; some tasks shuffle
    # choices by it.
    random.seed(0)
    np.random.seed(seed)
    torch.manual_seed(seed)

    def restore() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])

    return restore
