"""scripts/gpu_check.py on the CPU, with tiny shapes."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"
UNKNOWN_ON_A_CPU = {"gpu", "gpu_gib", "peak_gib", "share_of_peak", "off"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PROBE", 'print(\'{"gpu": null, "gpu_gib": null}\')')
    return module


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def figures(found: Any, name: str = "") -> Iterator[tuple[str, float | None]]:
    """Every number in a line, and every null, with its name."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from figures(value, key)
    elif isinstance(found, list):
        for value in found:
            yield from figures(value, name)
    elif found is None or (isinstance(found, (int, float)) and not isinstance(found, bool)):
        yield name, found


@pytest.mark.slow
def test_each_part_prints_finite_figures() -> None:
    command = [sys.executable, str(SCRIPT), "--small", "--parts", "2,3,4", "--budget", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    training, attention, engine, last = lines_of(done.stdout)
    assert last["parts"] == [training, attention, engine]
    for number, line in enumerate((training, attention, engine), 2):
        assert (line["part"], line["device"], line["small"]) == (number, "cpu", True)
        for name, value in figures(line):
            assert name in UNKNOWN_ON_A_CPU or (value is not None and math.isfinite(value) and value > 0)
    for method in ("full", "lora"):
        (only,) = training[method]["tries"]
        assert only["sao"]["loss"] == pytest.approx(only["padded"]["loss"], abs=0.02)
        assert training[method]["time_ratio"] == only["time_ratio"]
    seconds = {name for name, way in attention["ways"].items() if "seconds" in way}
    assert seconds == {"sao", "by_segment", "dense_mask", "padded_rows", "flex"}
    for name in ("even", "uneven"):
        assert engine[name]["sao"]["tokens"] == engine[name]["generate"]["tokens"]


def test_a_part_that_fails_is_reported_and_the_next_runs(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(code: str) -> Any:
        return script.Part("made", (1, 1), lambda *_: [sys.executable, "-c", code], script.read_last)

    def broken(*_: Any) -> Any:
        raise ValueError("no such command")

    codes = [
        "raise RuntimeError('broken')",
        "import os; print('{\"tokens\": 3}', flush=True); os.abort()",
        "import time; print('{\"tokens\": 4}', flush=True); time.sleep(60)",
        "print('{\"tokens\": 5}')",
    ]
    parts = {number: part(code) for number, code in enumerate(codes, 1)}
    parts[5] = script.Part("made", (1, 1), broken, script.read_last)
    monkeypatch.setattr(script, "PARTS", parts)
    assert script.main(["--parts", "1,2,5,4,3,4", "--budget", "6"]) == 1
    raised, died, not_started, fine, late, no_time, last = lines_of(capsys.readouterr().out)
    assert "broken" in raised["error"]
    assert died["tokens"] == 3 and "exit status" in died["error"]
    assert "no such command" in not_started["error"]
    assert fine["tokens"] == 5 and "error" not in fine
    assert late["tokens"] == 4 and "stopped after" in late["error"]
    assert "left" in no_time["skipped"]
    assert len(last["parts"]) == 6


def test_layers_are_halved_until_both_sides_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    part, setting = (import_module(f"gpu_parts.{name}") for name in ("training", "setting"))
    figures = part.Training.figures

    def little_memory(self: Any, loss_of: Any) -> Any:
        layers = self.base.config.num_hidden_layers
        if layers == 4 or (layers == 2 and loss_of is part.padded_loss):
            raise torch.OutOfMemoryError("full")
        return figures(self, loss_of)

    monkeypatch.setattr(part.Training, "figures", little_memory)
    end = time.monotonic() + 100
    part.training_part(setting.Setting(torch.device("cpu"), True, end), methods="full")
    found = lines_of(capsys.readouterr().out)[-1]["full"]
    assert [one["layers"] for one in found["tries"]] == [4, 2, 1]
    four, two, one = found["tries"]
    assert four["sao"] == two["padded"] == {"error": "does not fit into memory"}
    assert two["sao"]["seconds"] > 0
    assert (found["ratio_layers"], found["time_ratio"]) == (1, one["time_ratio"])


def test_gemma_needs_a_large_gpu(script: Any) -> None:
    assert "100 GiB" in script.why_not(6, {"gpu": "NVIDIA L40S", "gpu_gib": 44.4}, False, 400.0)
    assert script.why_not(6, {"gpu": "NVIDIA H200", "gpu_gib": 139.8}, False, 400.0) is None


def test_the_tests_summary_is_read(script: Any) -> None:
    text = "..F\nFAILED tests/test_gpu.py::test_a - assert 1 == 2\n1 failed, 2 passed, 3 skipped in 4.00s"
    found = script.read_tests(text)
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 1, 3)
    assert "test_a" in found["error"]
