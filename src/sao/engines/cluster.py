"""Ray: the connection to a cluster, and what the cluster has. Nothing here is imported without it being asked
for."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from sao.config import EngineConfig, RayConfig
from sao.errors import EngineError

STORE_BYTES = 200_000_000
"""Memory of Ray's object store where Ray is started here: requests and answers are small, and pass by."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster: Ray's id of it, its address, CPUs and GPUs that Ray may give away."""

    id: str
    address: str
    cpus: float
    gpus: float


def connect(config: RayConfig | None, cpus: int | None = None) -> ModuleType:
    """The module `ray`, connected as `ray.address` says; a process that is connected already stays so.
    `cpus`: how many Ray gives away where it is started here (default: all). Raises EngineError where that
    cannot be."""
    if find_spec("ray") is None:
        raise EngineError(
            "engine.replicas, train.nodes and ray.address need the package ray: pip install 'sao[ray]'",
            key="ray",
        )
    address = (config.address if config else None) or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise EngineError(
            "RAY_ADDRESS ray://… is a connection from outside the cluster, which is not supported. Start sao "
            "on a machine of the cluster, without RAY_ADDRESS and with --ray.address auto",
            key="ray.address",
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local" and "ray" not in sys.modules:  # Ray reads these when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Ray then takes this machine's own address 127.0.0.1, and listens there only, as it does on Windows.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    if not ray.is_initialized():
        with _own_signals():
            try:
                ray.init(**_options(address, cpus))
            except Exception as error:  # Ray raises many kinds
                raise EngineError(_why(address, error), key="ray.address") from error
        _silence()
    return ray


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray would end the process on SIGTERM by itself: what SAO does then stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def errors(ray: ModuleType) -> Iterator[None]:
    """Turns an error of Ray's own (its head is gone, say) into an EngineError."""
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise EngineError(
            f"Ray failed ({type(error).__name__}: {' '.join(str(error).split())[:300]}). All that was "
            "finished is kept: when the cluster is up again, the same command goes on",
            key="ray",
        ) from error


def _silence() -> None:
    """Keep Ray's messages about processes that died off stdout, where `--json` prints; who runs replicas or
    trains says it."""
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *given, **named: None


def _options(address: str, cpus: int | None) -> dict[str, Any]:
    """The arguments of ray.init."""
    options: dict[str, Any] = {
        "address": address, "namespace": "sao", "log_to_driver": False, "logging_level": logging.ERROR,
    }  # fmt: skip
    if address == "local":
        options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        options |= {"object_store_memory": STORE_BYTES, "num_cpus": cpus}
    return options


def _why(address: str, error: Exception) -> str:
    """What kept Ray from connecting, and what to do."""
    said = " ".join(str(error).split())[:500]
    if address == "local":
        return f"Ray could not be started on this machine: {said}"
    return (
        f"ray.address {address}: no Ray cluster could be reached ({type(error).__name__}: {said}). On its "
        "first machine run `ray start --head`, on the others `ray start --address HOST:6379`, with the same "
        "RAY_AUTH_TOKEN everywhere, and start sao on one of them (docs/scale.md)"
    )


def nodes(ray: ModuleType) -> list[Node]:
    """The machines that are there now."""
    return [
        Node(
            one["NodeID"],
            one["NodeManagerAddress"],
            one["Resources"].get("CPU", 0.0),
            one["Resources"].get("GPU", 0.0),
        )
        for one in ray.nodes()
        if one["Alive"]
    ]


def places(found: list[Node], config: EngineConfig) -> int:
    """How many replicas the cluster holds: one to each GPU, or group of GPUs of one machine that share a
    model; on a cluster without GPUs one to each machine with CPUs."""
    if uses_gpus(found, config):
        return sum(int(node.gpus) // gpus_each(config) for node in found)
    return sum(node.cpus >= 1 for node in found)


def uses_gpus(found: list[Node], config: EngineConfig) -> bool:
    """Whether replicas run on GPUs."""
    return config.device != "cpu" and any(node.gpus >= 1 for node in found)


def gpus_each(config: EngineConfig) -> int:
    """GPUs of one replica."""
    return config.vllm.tensor_parallel_size if config.name == "vllm" else 1


def share(found: list[Node], config: EngineConfig, replicas: int) -> dict[str, float]:
    """What Ray keeps free for each replica. On CPUs: the threads that the recipe gives it, else an equal
    share, at most a whole machine."""
    if uses_gpus(found, config):
        return {"num_gpus": float(gpus_each(config)), "num_cpus": 0.0}
    if config.threads:
        return {"num_cpus": float(config.threads)}
    each = int(sum(node.cpus for node in found)) // max(1, replicas)
    smallest = min((int(node.cpus) for node in found if node.cpus >= 1), default=1)
    return {"num_cpus": float(max(1, min(each, smallest)))}


def leave() -> None:
    """Disconnect; Ray that was started here ends."""
    if find_spec("ray") is None:
        return
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()
