"""SIGKILL at random moments: does the run end in the same bytes?

    python benchmarks/kill.py --kills 30 --personas 400

Runs `sao run demo` once undisturbed and once under kills at moments drawn evenly over the undisturbed run's
time, each time with the same command; then compares the exported data set, every finished stage and the
trained weights. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(out: Path, args: argparse.Namespace) -> list[str]:
    """The run under test."""
    sizes = ["--personas.n", str(args.personas), "--personas.held_out", "60", "--train.save_steps", "2"]
    return [
        *(sys.executable, "-m", "sao", "run", "demo", "--out", str(out), "--quiet"),
        *("--engine.threads", str(args.threads), *sizes),
    ]


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file that must be the same."""
    names = (
        "records.jsonl",
        "drops.jsonl",
        "train.parquet",
        "test.parquet",
        "model.safetensors",
        "metrics.jsonl",
    )
    found = sorted(p for p in out.rglob("*") if p.name in names and "checkpoint" not in str(p))
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def stage_of(out: Path) -> str:
    """The stage that a killed run was in: the one with parts, or with checkpoints."""
    for folder in sorted(out.glob("round-*/*")):
        if list(folder.glob("part-*")) or (folder / "checkpoints").exists():
            return folder.name.rsplit("-", 1)[0]
    return "between stages"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--personas", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        start = time.perf_counter()
        subprocess.run(
            command(whole, args), env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
        hit: dict[str, int] = {}
        runs = 0
        while sum(hit.values()) < args.kills:
            process = subprocess.Popen(
                command(killed, args),
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            runs += 1
            # Starting takes a good part of each life, so a life is drawn long enough to reach some work.
            try:
                process.wait(3 + rng.random() * seconds / 3)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                stage = stage_of(killed)
                hit[stage] = hit.get(stage, 0) + 1
                print(f"kill {sum(hit.values())}: {stage}", file=sys.stderr, flush=True)
                continue
            if process.returncode:
                raise SystemExit(f"the run itself failed with {process.returncode}")
            # Finished before all kills were spent: compare, then start a fresh run under kills.
            compare(whole, killed)
            killed = Path(folder, f"killed-{runs}")
        subprocess.run(
            command(killed, args), env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        files = compare(whole, killed)
    print(
        json.dumps(
            {
                "same": True,
                "kills": sum(hit.values()),
                "in": hit,
                "files": files,
                "undisturbed_s": round(seconds, 1),
            }
        )
    )


def compare(whole: Path, killed: Path) -> int:
    """Export both and raise unless every file is the same; the number of files."""
    for out in (whole, killed):
        subprocess.run(
            [sys.executable, "-m", "sao", "export", str(out)], check=True, stdout=subprocess.DEVNULL
        )
    one, two = digests(whole), digests(killed)
    different = sorted(name for name in {*one, *two} if one.get(name) != two.get(name))
    if different:
        raise SystemExit(json.dumps({"same": False, "different": different}))
    return len(one)


if __name__ == "__main__":
    main()
