"""What a GPU does with this project: one command, no downloads.

    python scripts/gpu_check.py --budget 480
    python scripts/gpu_check.py --small --parts 2,3,4       tiny shapes on the CPU, as without a GPU

It prints a JSON line after each part and one with everything last. A part that fails, or does not fit into
memory or into the rest of the budget, says so in its line ("error" or "skipped"), and the next goes on. Each
part is a process of its own, so that neither a crash nor a full GPU outlives it.

    1 tests       tests that need a GPU
    2 training    bfloat16 training of a random Llama-3-8B: our loss path against padded rows and whole logits
    3 attention   packed attention against what else the device has
    4 engine      the built-in engine at a random Llama of 1 billion weights, against plain `generate`
    5 toy         a run of the toy world, with its gain
    6 gemma       one training step of a random Gemma-2-9B, on GPUs of 100 GiB and more

A bare machine needs torch, transformers (with the tokenizers, safetensors, huggingface-hub, numpy, PyYAML and
tqdm that it brings) and these packages, with what they need 23 MB unpacked, besides 7 MB of this source tree:

    accelerate, jinja2, psutil, pydantic, httpx2    for the package itself
    peft                                            for LoRA in part 2 (without it that half is an error)
    pytest, pytest-timeout                          for part 1
    bitsandbytes, flash-attn                        not needed; used where they are there

pydantic brings pydantic-core, annotated-types and typing-inspection; httpx2 brings httpcore2, h11,
truststore, anyio and idna; jinja2 brings MarkupSafe; pytest brings pluggy, iniconfig and pygments. pyarrow
and rensa, which `pip install sao` takes along, are not used here. Nothing is installed: `src` and `tests` are
put on the path.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import json, torch, transformers
found = {"torch": torch.__version__, "transformers": transformers.__version__, "gpu": None, "gpu_gib": None}
if torch.cuda.is_available():
    found |= {"gpu": torch.cuda.get_device_name(0)}
    found |= {"gpu_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)}
print(json.dumps(found))
"""
GEMMA_GIB = 100
"""GPU memory that part 6 needs: 8 bytes for each of 9.2 billion weights, and the activations."""


@dataclass(frozen=True)
class Part:
    """One part: its name, the seconds that it takes about (on a GPU, small), its command by (small, seconds,
    an empty folder), and what reads its figures from what it prints."""

    name: str
    seconds: tuple[int, int]
    command: Callable[[bool, float, Path], list[str]]
    read: Callable[[str], dict[str, Any]]


@dataclass(frozen=True)
class Done:
    """What a process printed; `code` is None where its time ran out."""

    out: str
    err: str
    code: int | None


def tests_command(small: bool, seconds: float, folder: Path) -> list[str]:
    """The tests that need a GPU; all are skipped without one. pyproject.toml makes pytest quiet; a further -q
    would take the counts away."""
    files = ["tests/test_gpu.py", "tests/training/test_gpu.py"]
    there = [name for name in files if (ROOT / name).is_file()]
    return [sys.executable, "-m", "pytest", "-W", "default", "-p", "no:cacheprovider", *there]


def toy_command(small: bool, seconds: float, folder: Path) -> list[str]:
    """The whole method in the toy world; small: with few personas."""
    sizes = ["--personas.n", "40", "--personas.held_out", "10"] if small else []
    command = [sys.executable, "-m", "sao", "run", "demo", "--out", str(folder / "run")]
    return [*command, "--quiet", "--json", *sizes]


def measuring(name: str) -> Callable[[bool, float, Path], list[str]]:
    """The command of a part that the package gpu_parts beside this script measures."""

    def command(small: bool, seconds: float, folder: Path) -> list[str]:
        parts = [sys.executable, "-m", "gpu_parts", name, "--seconds", f"{seconds:.0f}"]
        return [*parts, "--small"] if small else parts

    return command


def read_last(out: str) -> dict[str, Any]:
    """The last line that is a JSON object."""
    for line in reversed(out.splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return {}


def read_tests(out: str) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and the names of those that failed."""
    lines = out.splitlines()
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", lines[-1]) if lines else []
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0}
    found |= {name: int(number) for number, name in counts}
    broken = [line[:200] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return found | ({"error": "; ".join(broken)} if broken else {})


def read_toy(out: str) -> dict[str, Any]:
    """The gain of the toy world's exact score with its 95 % interval, and the run's own seconds."""
    found = read_last(out)
    oracle = found.get("oracle")
    if not oracle:
        return {}
    scores = {name: oracle[name] for name in ("before", "after", "gain", "ci95", "n")}
    return scores | {"judge_accuracy": found["judge"]["accuracy"], "run_s": found["seconds"]}


PARTS = {
    1: Part("tests", (60, 5), tests_command, read_tests),
    2: Part("training", (90, 10), measuring("training"), read_last),
    3: Part("attention", (40, 10), measuring("attention"), read_last),
    4: Part("engine", (50, 10), measuring("engine"), read_last),
    5: Part("toy", (90, 20), toy_command, read_toy),
    6: Part("gemma", (60, 10), measuring("gemma"), read_last),
}


def run_process(command: list[str], seconds: float) -> Done:
    """Run a command for so many seconds at most; then it is killed with all that it started."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("src", "tests", "scripts"))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | quiet | {"PYTHONPATH": paths},
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            return Done(out, err, None)
    return Done(out, err, process.returncode)


def measure(part: Part, small: bool, seconds: float) -> dict[str, Any]:
    """The figures of a part, with an "error" where it did not end well; what it found until then is kept."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_process(part.command(small, seconds, Path(folder)), seconds)
    found = part.read(done.out)
    if done.code is None:
        found["error"] = f"stopped after {seconds:.0f} s"
    elif done.code or not found:
        last = (done.err.strip() or done.out.strip() or "it printed nothing").splitlines()[-1]
        found.setdefault("error", f"exit status {done.code}: {last[:300]}")
    return found


def why_not(number: int, machine: dict[str, Any], small: bool, left: float) -> str | None:
    """Why a part is not run, or None."""
    if number == 6 and not small and machine["gpu_gib"] < GEMMA_GIB:
        return f"needs {GEMMA_GIB} GiB of GPU memory, and there are {machine['gpu_gib']}"
    wanted = PARTS[number].seconds[small]
    return f"takes about {wanted} s, and {left:.0f} s are left" if wanted > left else None


def part_line(number: int, machine: dict[str, Any], small: bool, left: float) -> dict[str, Any]:
    """Run a part, and what its line says."""
    start = time.monotonic()
    device = "cpu" if small or machine.get("gpu") is None else "cuda"
    line = {"part": number, "name": PARTS[number].name, "device": device, "small": small}
    reason = why_not(number, machine, small, left)
    try:
        # One that hangs leaves time to the others.
        limit = min(left, max(60, 3 * PARTS[number].seconds[small]))
        figures = {"skipped": reason} if reason else measure(PARTS[number], small, limit)
    except Exception as error:
        figures = {"error": f"{type(error).__name__}: {error}"}
    return line | figures | {"wall_s": round(time.monotonic() - start, 1)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--parts", default="1,2,3,4,5,6", help="which, such as 2,4")
    options = parser.parse_args(arguments)
    try:
        options.parts = [int(number) for number in options.parts.split(",")]
    except ValueError:
        parser.error("--parts takes numbers, such as 2,4")
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"--parts: there is no part {min(unknown)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 where one of them failed."""
    options, start = parse(arguments), time.monotonic()
    probed = run_process([sys.executable, "-c", PROBE], options.budget)
    machine = read_last(probed.out)
    if not machine:
        machine = {"gpu": None, "error": (probed.err.strip() or "no torch").splitlines()[-1]}
    small = options.small or machine["gpu"] is None
    lines = []
    for number in options.parts:
        left = options.budget - (time.monotonic() - start)
        lines.append(part_line(number, machine, small, left))
        print(json.dumps(lines[-1]), flush=True)
    seconds = round(time.monotonic() - start, 1)
    everything = {"benchmark": "gpu_check", "machine": machine, "small": small, "cpus": os.cpu_count()}
    print(json.dumps(everything | {"seconds": seconds, "parts": lines}), flush=True)
    return int(any("error" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
