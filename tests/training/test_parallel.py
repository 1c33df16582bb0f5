"""Training in two processes: the weights of one process, exact resume, and no set-up that is another than
asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from sao.config import TrainConfig
from sao.errors import TrainingError
from sao.store.files import read_jsonl
from sao.training import parallel, train
from sao.training.batches import EpochOrder, TokenPair
from sao.training.parallel import Processes
from support.errors import raises
from support.parallel_worker import train_one
from support.tiny_training import lines, some_pairs, tiny_model, tiny_tokenizer, weights

TESTS = Path(__file__).parents[1]
BUILD = TESTS.parent / "build"
# 21 pairs in batches of 4: six steps an epoch, the last one with a single pair, so that one process gets a
# filler.
SETTINGS = {"batch_size": 4, "lr": 1e-3, "epochs": 2, "save_steps": 2, "max_length": 32}
STEPS = 12
MEASURED = {"loss": "dpo", "held_out_share": 0.2, "eval_steps": 3, "samples": 2}
CASES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"untied": True},
    "checkpointing": {"config": {"gradient_checkpointing": True}},
    "lora": {"config": {"method": "lora"}},
    "measured": {"config": MEASURED, "pairs": 22},
}


def jobs_in(
    folder: Path, way: str, micro_batch_size: int, cases: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """What parallel_worker.py is to train: into folder/NAME for each case."""
    common = {**SETTINGS, "parallel": way, "micro_batch_size": micro_batch_size}
    return [
        {"pairs": 21, **case, "out": str(folder / name), "config": {**common, **case.get("config", {})}}
        for name, case in cases.items()
    ]


def work(folder: Path, jobs: list[dict[str, Any]], processes: int = 2, way: str = "ddp") -> tuple[int, str]:
    """Run the jobs under torchrun, or in one process; the exit status and what was written to stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    found = [str(TESTS), *filter(None, sys.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if way == "zero3":
        assert (BUILD / "zero3/deepspeed").is_dir(), (
            "DeepSpeed is not in build/zero3: run `make build/zero3/.installed`"
        )
        found.append(str(BUILD / "zero3"))
        environment |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(BUILD / "torch_extensions")}
        tools = [str(Path(sys.executable).parent), str(BUILD / "zero3/bin"), environment["PATH"]]
        environment["PATH"] = os.pathsep.join(tools)
    environment["PYTHONPATH"] = os.pathsep.join(found)
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    command = [sys.executable, *start, "-m", "support.parallel_worker", str(folder / "jobs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def said(out: Path, rank: int) -> dict[str, Any]:
    """What a process's training returned or raised."""
    found: dict[str, Any] = json.loads(Path(f"{out}.rank{rank}.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process with the whole batch at once."""
    folder = tmp_path_factory.mktemp("alone")
    assert work(folder, jobs_in(folder, "ddp", 4, CASES), processes=1)[0] == 0
    return folder


def difference(found: Path, expected: Path) -> float:
    """The largest difference between two models' weights."""
    a, b = weights(found / "model"), weights(expected / "model")
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def assert_same_metrics(found: Path, expected: Path) -> None:
    for a, b in zip(lines(found), lines(expected), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)


def assert_as_alone(folder: Path, alone: Path, tolerance: float, names: Iterable[str] = CASES) -> None:
    for name in names:
        assert [said(folder / name, rank).get("error") for rank in (0, 1)] == [None, None]
        assert difference(folder / name, alone / name) <= tolerance, name
        assert_same_metrics(folder / name, alone / name)
        assert said(folder / name, 0) == said(folder / name, 1)
        assert said(folder / name, 0)["steps"] == len(
            [line for line in lines(alone / name) if "loss" in line]
        )
        if name == "measured":
            assert_same_reference(folder / name, alone / name)
        left = {path.name for path in (folder / name).iterdir()}
        assert left == {path.name for path in (alone / name).iterdir()}
        assert (folder / name / "model/config.json").read_text() == (
            alone / name / "model/config.json"
        ).read_text()


def assert_same_reference(found: Path, expected: Path) -> None:
    a, b = ({line["id"]: line for line in read_jsonl(out / "reference.jsonl")} for out in (found, expected))
    assert len(a) == 22
    assert a == {key: pytest.approx(line, abs=1e-4) for key, line in b.items()}


def lone_pairs() -> list[TokenPair]:
    """The pairs of the last batch of each epoch."""
    pairs = some_pairs(21)
    order = EpochOrder([len(pair) for pair in pairs], 7, 4)
    rows = []
    for epoch in range(2):
        order.set_epoch(epoch)
        rows.append(list(order)[-1])
    return [pairs[row] for row in rows]


# Two copies


def test_two_copies_give_the_weights_of_one_process(tmp_path: Path) -> None:
    pair, single = tmp_path / "pair", tmp_path / "single"
    some: dict[str, dict[str, Any]] = {"tied": {}}
    status, error = work(pair, jobs_in(pair, "ddp", 1, some))
    assert status == 0, error
    [job] = jobs_in(single, "ddp", 4, some)
    train_one(job)
    assert_as_alone(pair, single, 1e-5, some)
    # The last step of each epoch is of one pair, so one process had nothing but a filler.
    expected = [len(p.chosen_ids) + len(p.rejected_ids) for p in lone_pairs()]
    assert [line["tokens"] for line in lines(pair / "tied")][5::6] == expected


@pytest.mark.slow
def test_copies_give_the_weights_of_one_process_in_every_case(tmp_path: Path, alone: Path) -> None:
    status, error = work(tmp_path, jobs_in(tmp_path, "ddp", 1, CASES))
    assert status == 0, error
    assert_as_alone(tmp_path, alone, 1e-5)


def resumed(tmp_path: Path, way: str, case: dict[str, Any]) -> tuple[Path, Path]:
    """The folders of a training that was killed after a checkpoint and went on, and of one that was left
    alone."""
    [job] = jobs_in(tmp_path, way, 1, {"killed": case})
    status, error = work(tmp_path, [{**job, "step": 5, "signal": "SIGKILL"}], way=way)
    assert status != 0
    assert "Signal 9 (SIGKILL)" in error
    out = Path(job["out"])
    complete = {path.parent.name for path in out.glob("checkpoints/*/complete.json")}
    assert complete == {"checkpoint-2", "checkpoint-4"}
    assert [line["step"] for line in lines(out)] == [1, 2, 3, 4]
    undisturbed = {**job, "out": str(tmp_path / "undisturbed")}
    status, error = work(tmp_path, [job, undisturbed], way=way)
    assert status == 0, error
    assert said(out, 1).get("error") is None, error
    return out, tmp_path / "undisturbed"


def assert_identical(found: Path, expected: Path) -> None:
    assert difference(found, expected) == 0
    assert (found / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.mark.slow
def test_copies_go_on_exactly_after_a_kill(tmp_path: Path) -> None:
    assert_identical(*resumed(tmp_path, "ddp", {"dropout": 0.1}))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path: Path, way: str) -> None:
    cases: dict[str, dict[str, Any]] = {
        "first": {"step": 3, "signal": "SIGTERM", "ranks": [0]},
        "second": {"step": 3, "signal": "SIGTERM", "ranks": [1]},
        "both": {"step": 3, "signal": "SIGTERM"},
    }
    jobs = jobs_in(tmp_path, way, 2, cases)
    again = [{key: job[key] for key in ("out", "config", "pairs")} for job in jobs]
    status, error = work(tmp_path, jobs)
    assert status == 0, error
    for name in cases:
        for rank in (0, 1):
            assert said(tmp_path / name, rank)["error"].startswith(
                "Terminated: training: SIGTERM at step 3 of 12"
            )
        assert (tmp_path / name / "checkpoints/checkpoint-3/complete.json").is_file()
        assert [line["step"] for line in lines(tmp_path / name)] == [1, 2, 3]
    undisturbed = jobs_in(tmp_path, way, 2, {"undisturbed": {}})
    status, error = work(tmp_path, [*again, *undisturbed])
    assert status == 0, error
    for name in cases:
        assert_identical(tmp_path / name, tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_the_first_process_says_when_a_checkpoint_is_due(tmp_path: Path, way: str) -> None:
    """Two clocks that disagree. All save at the same steps, and go on exactly."""
    rarely = {"config": {"save_steps": 100}, "dropout": 0.1}
    first, second = jobs_in(tmp_path, way, 1, {"first": rarely, "second": rarely})
    kill = {"step": 5, "signal": "SIGKILL"}
    for job, hurried, expected in ((first, [0], {"checkpoint-3", "checkpoint-4"}), (second, [1], set())):
        status, error = work(tmp_path, [{**job, **kill, "hurried": hurried}])
        assert status != 0
        assert "Signal 9 (SIGKILL)" in error
        assert {path.parent.name for path in Path(job["out"]).glob("checkpoints/*/complete.json")} == expected
    undisturbed = {**first, "out": str(tmp_path / "undisturbed")}
    status, error = work(tmp_path, [{**first, "hurried": [0]}, undisturbed])
    assert status == 0, error
    assert_identical(tmp_path / "first", tmp_path / "undisturbed")


@pytest.mark.slow
def test_errors_come_in_all_processes(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "broken": {"broken": True, "untied": True},
        "uneven": {"config": {"micro_batch_size": 4}},
        "empty": {"pairs": 0},
        "quantised": {"config": {"parallel": "fsdp2", "method": "qlora"}},
    }
    status, error = work(tmp_path, jobs_in(tmp_path, "ddp", 1, cases))
    assert status == 0, error
    expected = {
        "broken": "TrainingError: optimiser step 2: the loss is not finite for the pairs pair-3. ",
        "uneven": "TrainingError: train.micro_batch_size 4 times 2 processes does not divide "
        "train.batch_size 4",
        "empty": "TrainingError: there are no pairs to train on",
        "quantised": "TrainingError: train.method qlora cannot be shared out by fsdp2",
    }
    for name, message in expected.items():
        errors = [said(tmp_path / name, rank)["error"] for rank in (0, 1)]
        assert errors[0] == errors[1]
        assert errors[0].startswith(message)
        assert not (tmp_path / name / "model").exists()


# A share each


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp2", "zero3"])
def test_shares_give_the_weights_of_one_process(tmp_path: Path, alone: Path, way: str) -> None:
    status, error = work(tmp_path, jobs_in(tmp_path, way, 1, CASES), way=way)
    assert status == 0, error
    assert_as_alone(tmp_path, alone, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp2", "zero3"])
@pytest.mark.parametrize("case", ["tied", "lora"])
def test_shares_go_on_exactly_after_a_kill(tmp_path: Path, way: str, case: str) -> None:
    assert_identical(*resumed(tmp_path, way, CASES[case]))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_bfloat16_weights_are_the_same_in_all_processes(tmp_path: Path, way: str) -> None:
    half = {"config": {"weights": "bfloat16", "optimizer": "adamw_sr"}, "dropout": 0.1}
    out, undisturbed = resumed(tmp_path, way, half)
    assert_identical(out, undisturbed)
    assert said(out, 0) == said(out, 1)


# Set-ups that are another than asked for


@pytest.mark.parametrize("way", ["fsdp2", "zero3"])
def test_one_process_cannot_share(tmp_path: Path, way: str) -> None:
    config = TrainConfig.model_validate({**SETTINGS, "micro_batch_size": 4, "parallel": way})
    with raises(TrainingError, key="train.parallel", match=rf"train\.parallel {way}.*there is one.*torchrun"):
        train(some_pairs(), tiny_model(), tiny_tokenizer(), tmp_path, config, seed=0)


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "zero3"])
def test_a_wrong_wrapper_is_refused(way: Any) -> None:
    config = TrainConfig(parallel=way)
    parallel.check_wrapper(tiny_model(), config, Processes(1, 0))
    with raises(
        TrainingError,
        key="train.parallel",
        match=rf"train\.parallel {way} in 2 processes, but the model is a LlamaForCausalLM",
    ):
        parallel.check_wrapper(tiny_model(), config, Processes(2, 0))


def test_torchrun_whose_processes_did_not_meet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lonely:
        num_processes, process_index = 1, 0

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "PartialState", lambda cpu: Lonely())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with raises(TrainingError, key="torchrun", match="2 processes, but 1"):
        parallel.processes()
