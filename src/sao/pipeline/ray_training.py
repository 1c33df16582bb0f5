"""Training on a cluster: the same training in many processes, on as many machines as there are, by Ray Train.

Every process runs `sao train` on the run folder, which must lie on a disk that all machines share: they read
the pairs there, and each writes its piece of a checkpoint there. Where a process or a machine dies, all begin
again from the newest checkpoint.
"""

from __future__ import annotations

import importlib
import os
import shutil
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from sao.config import Config
from sao.engines import cluster
from sao.errors import EngineError, SAOError, TrainingError
from sao.execution.runner import Runner
from sao.execution.step import Work
from sao.pipeline.rounds import Round

TRIES = 4
"""Times that a training is begun whose processes die, without one further checkpoint between two of them."""
PATIENCE = 120.0
"""Seconds for which GPUs are waited for."""
LOOK_EVERY = 1.0
RAY_WORKER = "SAO_RAY_WORKER"
"""Is in the environment of a process that Ray trains in."""

Said = str | tuple[str, int, int]
"""A line for the user, or progress: what, steps done, steps in all."""


def uses_ray(config: Config) -> bool:
    """Whether the recipe trains on a cluster."""
    return config.ray.address is not None or (config.train.nodes or 1) > 1


def train_on_ray(work: Work[Round]) -> None:
    """Train a round on the cluster, into the stage's folder.

    Raises EngineError where the cluster has no room, and TrainingError where the training failed or its
    processes died too often.
    """
    config, run, stage = work.config, work.run, work.stage
    ray = cluster.connect(config.ray)
    tries, seen, died = 0, None, ""
    while tries < TRIES:
        processes = processes_of(config, ray)
        wait_for_room(config, ray, processes)
        work.runner.notify(f"training in {processes} processes on {len(cluster.nodes(ray))} machines")
        died = attempt(ray, run, processes, work.runner)
        if stage.open().finished and run.is_trained:
            return
        newest = max((path.name for path in stage.path.glob("checkpoints/*")), default=None)
        tries = 1 if newest != seen else tries + 1
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
    """Until the cluster has room for them: replicas that were just ended give back their GPUs in a moment.

    Raises EngineError where that does not come.
    """
    gpus = cluster.uses_gpus(cluster.nodes(ray), config.engine)
    what = "GPU" if gpus else "CPU"
    until = time.monotonic() + PATIENCE
    while (free := ray.available_resources().get(what, 0)) < processes:
        there = ray.cluster_resources().get(what, 0)
        if time.monotonic() > until or there < processes:
            raise EngineError(
                f"training in {processes} processes needs {processes} {what}s, and the cluster has {there:g}"
                f" ({free:g} free). Give --train.processes {int(there) or 1}, or wait for those "
                "that are in use (`ray status`)",
                key="train.processes",
            )
        time.sleep(1)


def attempt(ray: ModuleType, run: Round, processes: int, runner: Runner) -> str:
    """Train in `processes` processes until they end; why they did, where it was no error of SAO's."""
    from ray.train import TrainingFailedError

    scratch = run.root.resolve() / ".ray"  # Ray Train wants a folder that all machines share
    scratch.mkdir(exist_ok=True)
    told = ray.remote(num_cpus=0)(Told).remote()
    trainer = trainer_of(ray, run, processes, scratch, told)
    over = threading.Event()
    follower = threading.Thread(target=follow, args=(ray, told, runner, over), daemon=True)
    follower.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if (ours := error_of_sao(failure)) is not None:
                raise ours from error
        return " ".join(str(error).split())[:500]
    finally:
        over.set()
        follower.join()
        shutil.rmtree(scratch, ignore_errors=True)
    return "its processes ended without a model"


def trainer_of(ray: ModuleType, run: Round, processes: int, scratch: Path, told: Any) -> Any:
    """Ray's trainer of so many processes, of which the first speaks to `told`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config = run.recipe
    gpus = cluster.uses_gpus(cluster.nodes(ray), config.engine)
    given = {
        "recipe": config.model_dump(mode="json"), "out": str(run.root.resolve()), "round": run.number,
        "world": processes, "nodes": config.train.nodes, "threads": config.engine.threads or 1, "told": told,
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
            failure_config=FailureConfig(max_failures=0),  # train_on_ray tries again where that helps
        ),
    )


def error_of_sao(failure: BaseException | None) -> SAOError | None:
    """The error of SAO's that a process ended with, however Ray wraps it."""
    while failure is not None and not isinstance(failure, SAOError):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure


class Told:
    """What the first process says, until somebody takes it (a Ray actor)."""

    def __init__(self) -> None:
        self._said: list[Said] = []

    def say(self, said: Said) -> None:
        """Keep it."""
        self._said.append(said)

    def take(self) -> list[Said]:
        """All that was said since the last call."""
        said, self._said = self._said, []
        return said


def follow(ray: ModuleType, told: Any, runner: Runner, over: threading.Event) -> None:
    """Show what the first process says, until the training is over."""
    is_last = False
    while not is_last:
        is_last = over.wait(LOOK_EVERY)
        try:
            said = ray.get(told.take.remote(), timeout=10)
        except ray.exceptions.RayError:
            continue  # the machine is gone, and with it the training
        for one in said:
            if isinstance(one, str):
                runner.notify(one)
            else:
                runner.progress(*one)


def train_worker(given: dict[str, Any]) -> None:
    """What each process does. Raises TrainingError where there are not as many as asked, or not on as many
    machines."""
    import ray
    import torch

    from sao.config import make_config

    # As torchrun's processes do: this module is below the method.
    method: Any = importlib.import_module("sao.method")
    os.environ[RAY_WORKER] = "1"
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
    method.run(
        make_config(given["recipe"]),
        given["out"],
        until="train",
        number=given["round"],
        progress=lambda what, done, total: told.say.remote((what, done, total)) if is_first else None,
        notify=lambda line: told.say.remote(line) if is_first else None,
    )
