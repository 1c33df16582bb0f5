"""A run on two machines (two Ray nodes on this one): the same bytes as in one process, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from support.ray_cluster import HEAD, Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs ray"),
]
OTHER = "127.0.0.3"
KILLS = 10
RECIPE = ["demo", "--personas.n", "600", "--personas.held_out", "50", "--engine.threads", "1"]
TRAINING = ["--train.micro_batch_size", "8", "--train.save_steps", "3", "--train.max_pairs", "256"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with a CPU each. Ray's sockets need a short path."""
    cluster = Cluster(Path(f"/tmp/sao-ray-{os.getpid()}"))
    cluster.start(HEAD)
    cluster.start(OTHER)
    yield cluster
    cluster.stop()
    shutil.rmtree(cluster.home, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    out = tmp_path_factory.mktemp("alone")
    subprocess.run(command("train", out, *TRAINING), check=True, capture_output=True)
    return out


def command(verb: str, out: Path, *more: str) -> list[str]:
    """A command of sao."""
    return [sys.executable, "-m", "sao", verb, *RECIPE, *more, "--out", str(out)]


def started(cluster: Cluster, verb: str, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """A command at work on the cluster."""
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            command(verb, out, "--ray.address", cluster.address, *more),
            env=os.environ | cluster.environment, stdout=log, stderr=log,
        )  # fmt: skip


def finish(process: subprocess.Popen[bytes], out: Path) -> str:
    """Wait until it ends well; what it said."""
    status = process.wait(400)
    said = (out.parent / f"{out.name}.log").read_text("utf-8", "replace")
    assert status == 0, said[-3000:]
    return said


def records(out: Path) -> dict[str, bytes]:
    """The records of all stages but training."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*.jsonl"))
        if "train-" not in str(path)
    }


def replicas(out: Path) -> list[int]:
    """The processes of the replicas at work."""
    try:
        found = json.loads((out / "status.json").read_text("utf-8"))["replicas"]
    except (OSError, ValueError):
        return []
    return [one["pid"] for one in found if one["pid"] and one["phase"] == "working"]


def test_kills_cost_nothing(two: Cluster, alone: Path, tmp_path: Path) -> None:
    """Replicas and a whole node are killed at random moments of writing, answering and judging."""
    draw, out = random.Random(5), tmp_path / "out"
    killed: list[str] = []
    process = started(two, "pairs", out)
    while len(killed) < KILLS:
        if process.poll() is not None:  # over before the last kill: once more from the start
            finish(process, out)
            assert_same(out, alone)
            shutil.rmtree(out)
            process = started(two, "pairs", out)
        time.sleep(draw.uniform(0, 2))
        pids = replicas(out)
        if not pids:
            continue
        if len(killed) % 4 == 2:
            two.kill(OTHER)
            time.sleep(draw.uniform(0, 2))
            two.start(OTHER)
            killed.append("node")
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(pids), signal.SIGKILL)
            killed.append("replica")
    finish(process, out)
    assert {"node", "replica"} == set(killed)
    assert_same(out, alone)


def assert_same(out: Path, alone: Path) -> None:
    """The records up to the pairs are those of the run in one process."""
    expected, found = records(alone), records(out)
    assert found == {name: data for name, data in expected.items() if name in found}
    assert any("judgments" in name for name in found)


@pytest.mark.parametrize("how", ["two by fsdp2", "one"])
def test_training_on_the_cluster_gives_the_weights_of_one_process(
    two: Cluster, alone: Path, tmp_path: Path, how: str
) -> None:
    """A process on each machine; and one alone, where no more divide the batch."""
    out, more = tmp_path / "out", ["--train.micro_batch_size", "32", "--train.max_pairs", "256"]
    copy_of(alone, out)
    if how != "one":
        more = [*TRAINING, "--train.nodes", "2", "--train.parallel", "fsdp2"]
    said = finish(started(two, "train", out, *more), out)
    assert f"training in {1 if how == 'one' else 2} processes on 2 machines" in said
    assert apart(out, alone) < 1e-5


def test_a_killed_process_of_a_training_costs_no_more_than_a_checkpoint(
    two: Cluster, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy_of(alone, out)
    more = [*TRAINING, "--train.processes", "2", "--train.nodes", "2"]
    process = started(two, "train", out, *more)
    until = time.monotonic() + 200
    while not list(out.glob("round-1/train-*/checkpoints/*")) and time.monotonic() < until:
        time.sleep(0.2)
    workers = [
        one
        for one in psutil.process_iter(["cmdline"])
        if "TrainWorker" in " ".join(one.info["cmdline"] or [])
    ]
    workers[-1].kill()
    said = finish(process, out)
    assert "it goes on from the newest checkpoint" in said
    assert apart(out, alone) < 1e-5


def test_a_training_that_is_terminated_goes_on_from_a_checkpoint(
    two: Cluster, alone: Path, tmp_path: Path
) -> None:
    out, more = tmp_path / "out", [*TRAINING[:2], *TRAINING[4:], "--train.processes", "2"]
    copy_of(alone, out)
    process = started(two, "train", out, *more)
    until = time.monotonic() + 200
    while not list(out.glob("round-1/train-*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 143
    assert list(out.glob("round-1/train-*/checkpoints/checkpoint-*"))
    finish(started(two, "train", out, *more), out)
    assert apart(out, alone) < 1e-5


def test_too_few_machines_are_named(two: Cluster, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copy_of(alone, out)
    process = started(two, "train", out, *TRAINING, "--train.processes", "4")
    assert process.wait(300) == 1
    said = (tmp_path / "out.log").read_text("utf-8")
    assert "needs 4 CPUs, and the cluster has 2" in said


STAND_INS = {
    "scontrol": "printf '127.0.0.4\\n127.0.0.5\\n'",
    "hostname": 'echo "$NODE"',
    "srun": """while [[ "$1" == --* ]]; do [[ "$1" == --nodelist=* ]] && export NODE="${1#*=}"; shift; done
if [ "$1 $2" = "ray start" ]; then set -- "$@" --num-cpus=1 --num-gpus=0 --object-store-memory=100000000; fi
case "$*" in *--head*) ;; ray*) set -- "$@" --node-ip-address="$NODE";; esac
exec "$@" """,
}
"""What stands in for Slurm's commands: a machine is an address of the loopback device."""


def test_the_script_for_slurm(alone: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    out = tmp_path / "out"
    given = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "machines[4-5]", "RECIPE": "demo", "OUT": str(out), "RAY_PORT": "22379",
    }  # fmt: skip
    script = Path(__file__).parents[2] / "docs/cluster/slurm.sbatch"
    log = tmp_path / "log"
    with log.open("wb") as said:
        command = ["bash", str(script), *RECIPE[1:], *TRAINING, "--train.processes", "2"]
        status = subprocess.run(command, env=os.environ | given, stdout=said, stderr=said, timeout=400)
    text = log.read_text("utf-8", "replace")
    assert status.returncode == 0, text[-3000:]
    assert "training in 2 processes on 2 machines" in text
    assert records(out) | records(alone) == records(out)
    assert apart(out, alone) < 1e-5


def copy_of(alone: Path, out: Path) -> None:
    """The run without its training."""
    for path in alone.rglob("*"):
        place = out / path.relative_to(alone)
        if path.is_file() and "train-" not in str(path):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def apart(one: Path, other: Path) -> float:
    """The largest difference of two weights."""
    files = [next(place.glob("round-1/train-*/model/model.safetensors")) for place in (one, other)]
    ours, theirs = map(load_file, files)
    assert set(ours) == set(theirs)
    return max(float(torch.max(torch.abs(ours[name] - theirs[name]))) for name in ours)
