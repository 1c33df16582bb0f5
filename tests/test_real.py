"""A real chat model through the whole loop: SmolLM2-135M-Instruct as a GGUF file (`make test` fetches it)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.repository import ROOT

MODEL = ROOT / "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not MODEL.is_file(), reason=f"no {MODEL.relative_to(ROOT)}: make {MODEL.relative_to(ROOT)}"
    ),
]
FEW = {
    "personas.n": 10, "personas.held_out": 4, "engine.slots": 16, "responses.max_tokens": 96,
    "train.batch_size": 4,
    "train.micro_batch_size": 2, "train.epochs": 1, "max_drop_share": 0.8,
}  # fmt: skip


def sao(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAO_CACHE": str(ROOT / "build/cache")}
    result = subprocess.run(
        [sys.executable, "-m", "sao", *words], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert result.returncode == status, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result


def keys(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def test_a_real_model_goes_through_the_whole_loop(tmp_path: Path) -> None:
    words = ["run", "smollm2", "--model", str(MODEL), "--out", str(tmp_path / "run"), *keys(FEW)]
    first = sao(*words, "--json")
    assert "weights rounded to Q4_1" in first.stderr
    assert "engine transformers: vLLM is not installed" in first.stderr.splitlines()[0]
    summary = json.loads(first.stdout.splitlines()[-1])
    funnel = {row["stage"]: row for row in summary["funnel"]}
    assert funnel["prompts"]["records"] + funnel["prompts"]["dropped"] == 14
    assert funnel["prompts"]["records"] >= 9
    assert funnel["train"]["records"] >= 1
    assert summary["judge"]["verdicts"] == funnel["judgments"]["records"] > 0
    assert "judge" in summary["verdict"]
    assert summary["heldout"]["n"] >= 1
    rows = [
        json.loads(line)
        for file in (tmp_path / "run").rglob("drops.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert all(row["text"] for row in rows if row["reason"] == "cut off at max_tokens")
    judgments = next((tmp_path / "run").rglob("judgments-*/records.jsonl")).read_text().splitlines()
    verdict_prob = [json.loads(line)["verdict_prob"] for line in judgments]
    assert sum(verdict_prob) / len(verdict_prob) > 0.7  # the prefill's doing: without it 0.26
    model = Path(summary["paths"]["model"])
    card = (model / "README.md").read_text("utf-8")
    assert "apache-2.0" in card.lower()
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        p.name for p in model.iterdir()
    }
    assert sao(*words).stdout.startswith("Nothing to do")
    assert "judge" in sao("audit", str(tmp_path / "run")).stdout

    # With the default filter and no prefill, SmolLM2 takes the first slot always: the end is clear. What
    # stands is reused.
    ended = sao(*words, "--pairs.keep", "confident", "--judging.prefill", "", status=1)
    assert "no pairs to train on" in ended.stderr
    assert "What the judge is worth: no judge" in ended.stderr
