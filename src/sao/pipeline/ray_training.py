"""Training on a cluster: the same training in many processes, on as many machines as there are, by Ray Train.

Every process runs `sao train` on the run folder, which must lie on a disk that all machines share: they read
the pairs there, and each writes its piece of a checkpoint there. Where a process or a machine dies, all begin
again from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sao.config import Config
from sao.engines import cluster
from sao.errors import EngineError, SAOError, Terminated, TrainingError
from sao.execution.runner import Runner
from sao.execution.step import Work
from sao.pipeline.rounds import Round

TRIES = 4
"""Times that a training is begun whose processes die, without one further checkpoint between two of them."""
PATIENCE = 120.0
"""Seconds for which GPUs are waited for."""
LOOK_EVERY = 1.0
CHECKPOINTS = "checkpoints/checkpoint-*"
RAY_WORKER = "SAO_RAY_WORKER"
"""Is in the environment of a process that Ray trains in."""

Said = str | tuple[str, int, int]
"""A line for the user, or progress: what, steps done, steps in all."""


def check_cluster(config: Config) -> None:
    """Raise EngineError where the cluster cannot train as the recipe says: before hours of other work."""
    ray = cluster.connect(config.ray)
    with cluster.errors(ray):
        processes = processes_of(config, ray)
        n_nodes, wanted = len(cluster.nodes(ray)), config.train.nodes or 1
        if n_nodes < wanted or processes % wanted:
            raise EngineError(
                f"train.nodes {wanted}: the cluster has {n_nodes} machines, and {processes} processes train. "
                "Give as many as there are, by which the processes divide",
                key="train.nodes",
            )
        what, there = _resource(config, ray)
        if there < processes:
            raise EngineError(_too_few(processes, what, there), key="train.processes")


def train_on_ray(work: Work[Round]) -> None:
    """Train a round on the cluster, into the stage's folder.

    Raises EngineError where the cluster has no room, and TrainingError where the training failed or its
    processes died too often.
    """
    config, run, stage = work.config, work.run, work.stage
    ray = cluster.connect(config.ray)
    tries, seen, died = 0, -1, ""
    while tries < TRIES:
        with cluster.errors(ray):
            processes = processes_of(config, ray)
            wait_for_room(config, ray, processes)
            work.runner.notify(f"training in {processes} processes on {len(cluster.nodes(ray))} machines")
            died = attempt(ray, run, processes, work.runner)
        if stage.open().finished and run.is_trained:
            return
        newest = max((int(path.name.rpartition("-")[2]) for path in stage.path.glob(CHECKPOINTS)), default=-1)
        tries = 1 if newest > seen else tries + 1
        seen = newest
        work.runner.notify(f"training: {died}; it goes on from the newest checkpoint")
    raise TrainingError(
        f"training on the cluster ended {TRIES} times without a further checkpoint: {died}. Checkpoints are "
        "kept, and the same command goes on from them",
        key="ray",
    )


def processes_of(config: Config, ray: ModuleType) -> int:
    """How many processes train: train.processes, or as many as the cluster has places and as divide the
    batch."""
    train = config.train
    if train.processes is not None:
        return train.processes
    found = cluster.nodes(ray)
    places = cluster.places(found, config.engine.model_copy(update={"name": "transformers"}))
    fits = [n for n in range(1, max(1, places) + 1) if train.batch_size % (train.micro_batch_size * n) == 0]
    return max([n for n in fits if n % (train.nodes or 1) == 0], default=train.nodes or 1)


def wait_for_room(config: Config, ray: ModuleType, processes: int) -> None:
    """Until the cluster has room for them: replicas that were just ended give back their GPUs in a moment,
    and a machine that was lost may come back.

    Raises EngineError where that does not come.
    """
    what, there = _resource(config, ray)
    until = time.monotonic() + PATIENCE
    while ray.available_resources().get(what, 0) < processes:
        if time.monotonic() > until:
            what, there = _resource(config, ray)
            raise EngineError(_too_few(processes, what, there), key="train.processes")
        time.sleep(1)


def _resource(config: Config, ray: ModuleType) -> tuple[str, float]:
    """What each process needs one of, and how many the cluster has."""
    what = "GPU" if cluster.uses_gpus(cluster.nodes(ray), config.engine) else "CPU"
    return what, float(ray.cluster_resources().get(what, 0))


def _too_few(processes: int, what: str, there: float) -> str:
    return (
        f"training in {processes} processes needs {processes} {what}s, and the cluster has {there:g}, "
        f"which others may use (`ray status`). Give --train.processes {int(there) or 1}, or wait"
    )


def attempt(ray: ModuleType, run: Round, processes: int, runner: Runner) -> str:
    """Train in `processes` processes until they end; why they did, where it was no error of SAO's.

    Raises Terminated after SIGTERM, when the processes have saved a checkpoint and ended.
    """
    scratch = run.root.resolve() / ".ray"  # Ray Train wants a folder that all machines share
    scratch.mkdir(exist_ok=True)
    told = ray.remote(num_cpus=0)(Told).remote()
    trainer = _trainer(ray, run, processes, scratch, told)
    failures: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever it is, the other thread raises it
            failures.append(error)

    # In a thread of its own Ray leaves Ctrl-C to this one.
    training = threading.Thread(target=fit, daemon=True)
    training.start()
    try:
        with _sigterm() as signals:
            while training.is_alive():
                training.join(LOOK_EVERY)
                follow(ray, told, runner)
                if signals:
                    told.stop.remote()
    except BaseException:
        told.stop.remote()  # where this process lives on, no training does
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if signals:
        raise Terminated("training: ended by SIGTERM; what was saved is kept")
    return _why(ray, failures[0]) if failures else "its processes ended without a model"


@contextlib.contextmanager
def _sigterm() -> Iterator[list[int]]:
    """Notes SIGTERM in a list instead of obeying at once."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


def _why(ray: ModuleType, error: Exception) -> str:
    """Why a training ended, where another try may help: a process or a machine died. Raises the error of
    SAO's that it ended with otherwise."""
    failed: dict[int, BaseException] = getattr(error, "worker_failures", {})
    causes = [cause for failure in failed.values() for cause in chain_of(failure)]
    died = [cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError)]
    if not died:  # else what the others say follows from that
        for cause in causes:
            if isinstance(cause, SAOError):
                raise cause from error
    lines = str(died[0] if died else error).strip().splitlines()
    return " ".join((lines[0] if died else lines[-1]).split())[:300]


def chain_of(failure: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of, however Ray wraps it."""
    while failure is not None:
        yield failure
        failure = getattr(failure, "cause", None) or failure.__cause__


def _trainer(ray: ModuleType, run: Round, processes: int, scratch: Path, told: Any) -> Any:
    """Ray's trainer of so many processes, of which the first speaks to `told`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config = run.recipe
    gpus = cluster.uses_gpus(cluster.nodes(ray), config.engine)
    given = {
        "recipe": config.model_dump(mode="json"), "out": str(run.root.resolve()), "round": run.number,
        "world": processes, "nodes": config.train.nodes, "threads": config.engine.threads or 1, "told": told,
        "folder": str(Path.cwd()),
    }  # fmt: skip
    return TorchTrainer(
        train_worker,
        train_loop_config=given,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=3 * 3600),
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=gpus,
            resources_per_worker={"GPU": 1, "CPU": 0} if gpus else {"CPU": 1},
            placement_strategy="SPREAD" if (config.train.nodes or 1) > 1 else "PACK",
        ),
        run_config=RunConfig(
            name=f"round-{run.number}-{time.time_ns()}",  # under an old name Ray would go on with its state
            storage_path=str(scratch),
            # train_on_ray tries again where that helps.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=TRIES),  # type: ignore[call-arg]
        ),
    )


class Told:
    """What the first process says, until somebody takes it, and whether all are to end (a Ray actor)."""

    def __init__(self) -> None:
        self._said: list[Said] = []
        self._is_over = False

    def say(self, said: Said) -> None:
        """Keep it."""
        self._said.append(said)

    def take(self) -> list[Said]:
        """All that was said since the last call."""
        said, self._said = self._said, []
        return said

    def stop(self) -> None:
        """The processes are to save a checkpoint and end."""
        self._is_over = True

    def is_over(self) -> bool:
        """Whether they are."""
        return self._is_over


def follow(ray: ModuleType, told: Any, runner: Runner) -> None:
    """Show what the first process said."""
    try:
        said = ray.get(told.take.remote(), timeout=10)
    except ray.exceptions.RayError:
        return  # its machine is gone, and with it the training
    for line in said:
        if isinstance(line, str):
            runner.notify(line)
        else:
            runner.progress(*line)


def train_worker(given: dict[str, Any]) -> None:
    """What each process does. Raises TrainingError where there are not as many as asked, or not on as many
    machines."""
    import ray
    import torch

    from sao.config import make_config

    # As torchrun's processes do: this module is below the method.
    method: Any = importlib.import_module("sao.method")
    os.environ[RAY_WORKER] = "1"
    if Path(given["folder"]).is_dir():
        os.chdir(given["folder"])  # relative paths are those of the command
    torch.set_num_threads(given["threads"])
    context = ray.train.get_context()
    world = context.get_world_size()
    hosts = context.get_world_size() // context.get_local_world_size()
    if world != given["world"] or (given["nodes"] not in (None, hosts)):
        raise TrainingError(
            f"training: {world} processes on {hosts} machines found each other, but train.processes is "
            f"{given['world']} and train.nodes {given['nodes']}",
            key="train.processes",
        )
    told, is_first = given["told"], context.get_world_rank() == 0
    threading.Thread(target=_listen, args=(ray, told), daemon=True).start()
    method.run(
        make_config(given["recipe"]),
        given["out"],
        until="train",
        number=given["round"],
        progress=lambda what, done, total: told.say.remote(("train", done, total)) if is_first else None,
        notify=lambda line: told.say.remote(line) if is_first else None,
    )


def _listen(ray: Any, told: Any) -> None:
    """Pass on that the training is to end: no signal reaches a process on another machine."""
    while not ray.get(told.is_over.remote()):
        time.sleep(LOOK_EVERY)
    importlib.import_module("sao.training.monitors").STOP.set()
