"""The step that trains: the pairs in, a model out, in one process or in several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sao import errors
from sao.config import Config, uses_ray
from sao.errors import ConfigError, NoPairsError, SAOError, Terminated, TrainingError
from sao.execution.session import Notify, Role
from sao.execution.step import Work
from sao.pipeline.ray_training import RAY_WORKER, train_on_ray
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round
from sao.results import StageCounts
from sao.store.files import dumps, write_atomic
from sao.store.manifest import MANIFEST, read_manifest
from sao.training.cards import model_card, push_model

FAILED = "failed.json"
"""In the folder of a training in several processes: the error that ended it."""
UPLOADED = "uploaded.json"
"""In the run folder: which model was last uploaded, and where to."""


def is_worker() -> bool:
    """Whether this is one of several processes that torchrun started, or one that Ray started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or RAY_WORKER in os.environ


def is_launched() -> bool:
    """Whether another process of SAO started this one."""
    from sao.training.monitors import LAUNCHER

    return LAUNCHER in os.environ or RAY_WORKER in os.environ


def is_first() -> bool:
    """Whether this process writes and speaks: of those that torchrun started, one does."""
    return int(os.environ.get("RANK", "0")) == 0


def train(work: Work[Round]) -> None:
    """Preference optimisation on the pairs, from the round's initial model into the stage's folder `model`.

    Raises NoPairsError where there are none, ConfigError where there is no model to train.
    """
    config, run, stage = work.config, work.run, work.stage
    if config.pairs.source is None and run.stage("pairs").counts.records == 0:
        reasons = run.stage("pairs").counts.reasons
        raise NoPairsError(
            f"no pairs to train on: all were dropped ({reasons}). Take another judge "
            "(--judging.engine.model) or --judging.prefill, lower --pairs.min_p, keep every readable verdict "
            "(--pairs.keep all), or take more personas (--personas.n)",
            key="pairs",
        )
    if config.engine.name == "scripted" and run.given is None:
        raise ConfigError(
            "the scripted engine has no model to train; stop before with `sao pairs`", key="engine.name"
        )
    work.runner.session.close()
    if is_worker():
        with told(stage.path / FAILED):
            train_here(work)
        return
    if uses_ray(config):
        train_on_ray(work)
        return
    if (config.train.processes or 1) == 1:
        train_here(work)
        return
    (stage.path / FAILED).unlink(missing_ok=True)
    status = launch(run, stage.path)
    # A process may be aborted while it ends, after all is done (torch's threads): what counts is what lies
    # there.
    if not (stage.open().finished and run.is_trained):
        raise_told(stage.path / FAILED)
        raise TrainingError(
            f"training in {config.train.processes} processes ended with status {status}; the reason stands "
            "above. Checkpoints are kept, and the same command goes on from them",
            key="train.processes",
        )


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Leave an error of the first process in a file, for the process that started them."""
    try:
        yield
    except SAOError as error:
        if is_first():
            failed = {"name": type(error).__name__, "key": error.key, "message": str(error)}
            write_atomic(path, f"{dumps(failed)}\n")
        raise


def raise_told(path: Path) -> None:
    """Raise the error that stands there, if one does."""
    if (failed := _read_note(path)) is not None:
        kind: type[SAOError] = getattr(errors, failed["name"])
        raise kind(failed["message"], key=failed["key"])


def train_here(work: Work[Round]) -> None:
    """The training itself; the first process writes the card and marks the stage as finished."""
    from sao.training import job

    config, run, stage, runner = work.config, work.run, work.stage, work.runner
    pairs = Reader(run).to_train_on()
    counts = job.train_run(
        starting_from(config, run.roles.initial), pairs, stage.path, runner.progress, runner.notify,
        starting_from(config, run.roles.reference),
    )  # fmt: skip
    if not is_first():
        return
    made = replace(read_manifest(run.root), config=config.model_dump(mode="json"))
    card = model_card(made, [*went_in(run), counts], run.number)
    write_atomic(run.model_dir / "README.md", card)
    write_atomic(run.model_dir / "sao_manifest.json", (run.root / MANIFEST).read_text("utf-8"))
    stage.finish(counts)


def went_in(run: Round) -> list[StageCounts]:
    """What the steps let through of the rounds whose pairs a round trains on."""
    if run.before is None or run.config.rounds.data == "newest":
        return Reader(run).funnel()
    return [
        count.model_copy(update={"stage": f"round {one.number}: {count.stage}"})
        for one in (*run.earlier, run)
        for count in Reader(one).funnel()
        if count.stage != "train"
    ]


def push(run: Round, notify: Notify) -> None:
    """Upload a round's model where the recipe says so, unless it is what this run last uploaded there."""
    repository, note = run.config.train.push_to_hub, run.root / UPLOADED
    if repository is None or not run.is_trained:
        return
    made = {"repository": repository, "model": run.stage("train").fingerprint}
    if _read_note(note) != made:
        notify(f"uploaded: {push_model(run.model_dir, repository)}")
        write_atomic(note, f"{dumps(made)}\n")


def _read_note(path: Path) -> Any:
    """What a small JSON file says; None where there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def starting_from(config: Config, role: Role) -> Config:
    """The recipe with a role's model as the model."""
    return config.model_copy(update={"model": role.model, "revision": role.revision})


def launch(run: Round, folder: Path) -> int:
    """Train a round in `train.processes` processes on this machine, by torchrun; its status. SIGTERM and
    Ctrl-C reach them.

    Raises Terminated where SIGTERM came.
    """
    from sao.training.monitors import LAUNCHER

    config, recipe = run.recipe, folder / "recipe.yaml"
    write_atomic(recipe, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(config.train.processes or 1)]
    command += ["-m", "sao", "train", str(recipe), "--out", str(run.root), "--round", str(run.number)]
    # torchrun gives its processes half a minute to end, too little for a large model's checkpoint.
    given = {"OMP_NUM_THREADS": str(config.engine.threads or 1), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900"}
    given[LAUNCHER] = str(os.getpid())  # they end when this process is gone
    listening = threading.current_thread() is threading.main_thread()
    with subprocess.Popen(command, env={**given, **os.environ}, stdout=subprocess.DEVNULL) as together:
        ended: list[int] = []

        def pass_on(number: int, frame: Any) -> None:
            ended.append(number)
            together.send_signal(signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, pass_on) if listening else None
        try:
            status = together.wait()
        finally:
            if listening:
                signal.signal(signal.SIGTERM, before)
    if ended:
        raise Terminated("training: ended by SIGTERM; what was saved is kept")
    return status
