"""The toy world for real: the shipped model, the whole run, the control, and kills."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sao.config import EngineConfig, load_recipe
from sao.method import run
from sao.models.chat import ChatTokenizer
from sao.models.locate import find_model
from sao.records import Message, Prompt, from_dict
from support.checks import known
from support.run_files import files, records_of

pytestmark = pytest.mark.slow
SMALLER = {"personas.n": "1500", "personas.held_out": "400", "engine.threads": "1", "seed": "7"}


def test_the_shipped_model_is_small_and_speaks_its_world() -> None:
    path = find_model("builtin:world")
    assert sum(f.stat().st_size for f in path.iterdir()) <= 4 * 2**20
    chat = ChatTokenizer.load("builtin:world", EngineConfig())
    text = "which of these does the baker use: saw, oven, net? use one word."
    assert chat.decode(chat.tokenizer(text).input_ids) == text
    assert chat.prompt_ids([Message("user", text)]).count(known(chat.bos_id)) == 1
    odd = "Ünïcode 漢字 \t and <html>"
    assert chat.decode(chat.tokenizer(odd).input_ids) == " ".join(odd.split())


def test_alignment_helps_and_random_labels_do_not(tmp_path: Path) -> None:
    """The demo at a third of its size: the oracle sees the gain, and no gain from a coin's labels on the same
    answers."""
    aligned = run(load_recipe("demo", SMALLER), tmp_path)
    oracle = known(aligned.oracle)
    assert 0.40 <= known(oracle.before) <= 0.65
    assert known(oracle.gain) > 0.03
    assert known(oracle.ci95)[0] > 0
    # 0.920 over five seeds (docs/results.md); a third of the size scatters by 0.01.
    assert known(known(aligned.judge).accuracy) == pytest.approx(0.92, abs=0.03)
    assert known(known(aligned.kept).label_accuracy) >= known(known(aligned.judge).accuracy)
    assert "CIRCULAR" in known(aligned.heldout).label
    again = run(load_recipe("demo", SMALLER), tmp_path)
    assert not again.worked
    assert again.oracle == oracle
    control = run(load_recipe("demo", {**SMALLER, "judging.method": "random"}), tmp_path)
    assert known(control.oracle).before == oracle.before  # the held-out answers of the base are reused
    assert known(known(control.oracle).gain) < 0.02
    # The persona role matters: without it the model's prompts repeat far more.
    prompts = {p.text for p in _prompts(tmp_path)}
    alone = tmp_path / "alone"
    run(load_recipe("demo", {**SMALLER, "personas.source": "none"}), alone, until="prompts")
    assert len({p.text for p in _prompts(alone)}) < 0.5 * len(prompts)


def _prompts(root: Path) -> list[Prompt]:
    return [from_dict(Prompt, row) for row in records_of(root, "prompts")]


def test_sigkill_at_random_moments_gives_the_same_bytes_and_weights(tmp_path: Path) -> None:
    def command(out: str) -> list[str]:
        sizes = [
            "--personas.n",
            "150",
            "--personas.held_out",
            "30",
            "--train.save_steps",
            "1",
            "--engine.threads",
            "1",
        ]
        return [sys.executable, "-m", "sao", "run", "demo", "--quiet", "--out", str(tmp_path / out), *sizes]

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = time.monotonic()
    subprocess.run(command("whole"), check=True, env=env, **quiet)
    undisturbed = time.monotonic() - started  # seconds: a faster machine is killed earlier
    rng, kills = random.Random(3), 0
    for _ in range(4):
        process = subprocess.Popen(command("killed"), env=env, start_new_session=True, **quiet)
        try:
            process.wait(undisturbed * rng.uniform(0.2, 0.6))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(command("killed"), check=True, env=env, **quiet)
    assert kills > 0
    names = ("records.jsonl", "drops.jsonl", "model.safetensors", "metrics.jsonl")
    whole, killed = (
        {path: hashlib.sha256(data).hexdigest() for path, data in files(tmp_path / out, names).items()}
        for out in ("whole", "killed")
    )
    assert whole == killed
    assert len(whole) > 10
