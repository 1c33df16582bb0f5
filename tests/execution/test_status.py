"""status.json says what a run does: while it works, and however it ended; and `sao status` shows it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sao.cli import main
from sao.config import Config, load_recipe, make_config
from sao.engines.scripted import ScriptedEngine, default_reply
from sao.errors import ConfigError, DropError, StoreError
from sao.execution import status as status_module
from sao.execution.status import StatusFile, read_status
from sao.execution.step import Work
from sao.method import run
from sao.pipeline import preflight
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS
from sao.report.status import duration, show_status
from sao.results import Status
from sao.results.base import StageCounts
from support.errors import raises

PROMPTS = 20


def recipe(**sections: Any) -> Config:
    people = {"source": "builtin:world", "n": PROMPTS - 5, "held_out": 5}
    return make_config({"engine": {"name": "scripted"}, "personas": people, "max_drop_share": 1.0} | sections)


@pytest.fixture(autouse=True)
def _written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "EVERY", 0.0)


def watched_run(root: Path, fail_at: int = 0, error: BaseException | None = None) -> list[Status]:
    """What stood in the file before each answer of a run up to the prompts. The 3rd and 7th answers are no
    prompts; `error` is raised instead of answer `fail_at`."""
    seen: list[Status] = []

    def reply(messages: Any, seed: int, sampling: Any) -> str:
        seen.append(read_status(root))
        if error is not None and len(seen) == fail_at:
            raise error
        return "no such thing" if len(seen) in (3, 7) else default_reply(messages, seed, sampling)

    run(recipe(), root, until="prompts", engine=ScriptedEngine(reply=reply))
    return seen


def test_it_is_true_while_a_run_works(tmp_path: Path) -> None:
    seen = watched_run(tmp_path)
    assert len(seen) == PROMPTS
    for number, status in enumerate(seen):
        assert (status.state, status.step, status.planned) == ("running", "prompts", PROMPTS)
        assert (status.done, status.pid, status.error) == (number, os.getpid(), None)
    assert [sum(status.drops.values()) for status in seen[:5]] == [0, 0, 0, 0, 1]  # seen with the next row
    assert seen[-1].drops == {"no marker": 2}
    assert seen[-1].rate is not None and seen[-1].eta_s is not None
    assert seen[-1].updated >= seen[0].updated >= seen[0].started


def trained_without_work(work: Work[Round]) -> None:
    work.run.model_dir.mkdir()
    work.stage.finish(StageCounts(stage="train", records=0, dropped=0, reasons={}))


def test_no_more_rows_are_planned_than_come(tmp_path: Path) -> None:
    """Prompts and answers are lost and filtered, some answers are the same: all this is counted."""
    seen: dict[str, list[tuple[int, int]]] = {}

    def reply(messages: Any, seed: int, sampling: Any) -> str:
        text = default_reply(messages, seed, sampling)
        if text.startswith("Prompt:"):
            return "no such thing" if seed % 4 == 0 else text
        return "" if seed % 5 == 0 else "The same." if seed % 2 else text

    def progress(what: str, done: int, total: int) -> None:
        seen.setdefault(what, []).append((done, total))

    people = {"source": "builtin:world", "n": 60, "held_out": 20}
    config = recipe(personas=people, responses={"n": 3}, filters={"min_words": 2})
    steps = [replace(s, build=trained_without_work) if s.name == "train" else s for s in STEPS]
    run(config, tmp_path, steps=steps, engine=ScriptedEngine(reply=reply), progress=progress)
    assert {"responses", "judgments", "pairs", "heldout_base", "heldout_tuned", "comparisons"} <= seen.keys()
    for what, rows in seen.items():
        assert len({total for _, total in rows}) == 1, what
        done, total = rows[-2]  # the last row; then that all have come
        assert done == total > 0, what
    assert seen["responses"][-1][1] < 60 * 3
    assert seen["comparisons"][-1][1] <= seen["heldout_base"][-1][1] * 2 < 20 * 2


def test_it_says_that_a_run_is_finished(tmp_path: Path) -> None:
    watched_run(tmp_path)
    status = read_status(tmp_path)
    assert (status.state, status.step, status.done, status.error) == ("finished", None, 0, None)
    assert (status.rate, status.eta_s, status.drops, status.doing) == (None, None, {}, None)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (DropError("too much is lost"), "failed", "DropError: too much is lost"),
        (ZeroDivisionError("a bug"), "failed", "ZeroDivisionError('a bug')"),
        (KeyboardInterrupt(), "stopped", None),
    ],
)
def test_it_says_how_a_run_ended(tmp_path: Path, error: BaseException, state: str, said: str | None) -> None:
    with pytest.raises(type(error)):
        watched_run(tmp_path, 12, error)
    status = read_status(tmp_path)
    assert (status.state, status.error) == (state, said)
    assert (status.step, status.done, status.planned) == ("prompts", 11, PROMPTS)
    assert status.drops == {"no marker": 2}
    watched_run(tmp_path)
    assert read_status(tmp_path).state == "finished"


def test_a_killed_run_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from sao.config import Config; from sao.method import run\n"
        "from sao.engines.scripted import ScriptedEngine\n"
        "config = Config.model_validate_json(sys.argv[2])\n"
        "run(config, Path(sys.argv[1]), until='prompts', engine=ScriptedEngine(delay=0.1))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), recipe().model_dump_json()])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "status.json").exists() or read_status(tmp_path).step != "prompts":
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        working = read_status(tmp_path)
        assert (working.state, working.pid) == ("running", child.pid)
        os.kill(child.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while read_status(tmp_path).state == "running":  # it is seen before its parent has asked for it
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    killed = read_status(tmp_path)
    assert (killed.state, killed.step, killed.rate, killed.error) == ("stopped", "prompts", None, None)
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}: stopped\n")


def test_it_says_that_a_model_is_loaded(tmp_path: Path) -> None:
    lines: dict[str, Status] = {}

    def hear(line: str) -> None:
        if line.startswith("loading"):
            lines[line] = read_status(tmp_path)

    during: list[Status] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "prompts" and done:
            during.append(read_status(tmp_path))

    config = recipe()
    run(config, tmp_path, until="prompts", notify=hear, progress=progress)
    line = f"loading {config.model}"
    assert (lines[line].step, lines[line].done, lines[line].doing) == ("prompts", 0, line)
    assert {(status.doing, status.said) for status in during} == {(None, line)}


@pytest.mark.slow
def test_it_counts_optimiser_steps_while_a_model_is_trained(tmp_path: Path) -> None:
    loading: list[Status] = []
    trained: list[Status] = []

    def hear(line: str) -> None:
        if line.startswith("loading"):
            loading.append(read_status(tmp_path))

    def progress(what: str, done: int, total: int) -> None:
        if what == "train":
            trained.append(read_status(tmp_path))

    small = {"personas.n": "30", "personas.held_out": "5", "train.epochs": "1", "train.batch_size": "8"}
    small["train.micro_batch_size"] = "8"
    run(load_recipe("demo", small), tmp_path, until="train", progress=progress, notify=hear)
    assert (loading[-1].step, loading[-1].planned) == ("train", None)
    assert loading[-1].doing == "loading builtin:world"
    steps = trained[-1].planned
    assert steps is not None and steps >= 3
    assert [status.done for status in trained] == list(range(steps + 1))
    assert {status.step for status in trained} == {"train"}
    assert trained[-1].rate is not None and trained[-1].eta_s == 0.0
    assert trained[-1].doing is None


def test_the_checks_before_a_run_show_in_a_folder_that_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Status | None] = []

    def look(*args: Any, **kwargs: Any) -> None:
        seen.append(read_status(tmp_path) if (tmp_path / "status.json").exists() else None)

    monkeypatch.setattr(preflight, "check", look)
    run(recipe(), tmp_path, until="prompts", engine=ScriptedEngine())
    assert seen == [None]  # a folder that does not exist yet is not made for it
    run(recipe(), tmp_path, until="prompts", engine=ScriptedEngine())
    checking = seen[-1]
    assert checking is not None
    assert (checking.state, checking.step, checking.doing) == ("running", None, status_module.CHECKS)
    assert (read_status(tmp_path).state, read_status(tmp_path).doing) == ("finished", None)


@pytest.mark.parametrize("before", [b"half a status \xff", None])
def test_a_refused_run_leaves_the_status_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    run(recipe(), tmp_path, until="prompts", engine=ScriptedEngine())
    path = tmp_path / "status.json"
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)
    listed = sorted(tmp_path.iterdir())

    def refuse(*args: Any, **kwargs: Any) -> None:
        assert read_status(tmp_path).state == "running"
        raise ConfigError("not so", key="model")

    monkeypatch.setattr(preflight, "check", refuse)
    with raises(ConfigError, key="model"):
        run(recipe(), tmp_path, until="prompts", engine=ScriptedEngine())
    assert sorted(tmp_path.iterdir()) == listed
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("status", [None, "{}"])
def test_a_folder_of_another_format_is_said_to_be_one(tmp_path: Path, status: str | None) -> None:
    (tmp_path / "manifest.json").write_text('{"config": {}}')
    if status is not None:
        (tmp_path / "status.json").write_text(status)
    with raises(StoreError, key="manifest.json", match="format 1"):
        read_status(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_file_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == "status.json":
            raise OSError(number, os.strerror(number))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    run(recipe(), tmp_path, until="prompts")
    assert not list(tmp_path.glob(".status*"))
    with raises(StoreError, key="status.json", match="no status"):
        read_status(tmp_path)


def test_a_folder_in_its_place_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir(parents=True)
    run(recipe(), tmp_path, until="prompts")
    with raises(StoreError, key="status.json", match="cannot be read"):
        read_status(tmp_path)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


def test_rate_and_time_left_by_hand(root: Path) -> None:
    clock = Clock()
    file = StatusFile(root, clock=clock)
    file.start()
    file.begin("responses", 40, 100)  # 40 rows lay there already: they count for no rate
    status = read_status(root)
    assert (status.done, status.planned, status.rate, status.eta_s) == (40, 100, None, None)
    clock.now += 30.0
    file.see(50, 100)
    status = read_status(root)
    assert (status.rate, status.eta_s) == (20.0, 150.0)  # 10 rows in half a minute; 50 are left
    clock.now += 60.0
    file.see(53, 100, {"empty": 1})
    status = read_status(root)
    assert status.rate == pytest.approx(8.7)  # 13 rows in 90 s
    assert status.eta_s == pytest.approx(47 * 90 / 13)
    assert status.drops == {"empty": 1}
    file.begin("pairs", 0, 7)
    status = read_status(root)
    assert (status.done, status.rate, status.eta_s, status.drops) == (0, None, None, {})


def test_training_counts_optimiser_steps_from_the_first_on(root: Path) -> None:
    clock = Clock()
    file = StatusFile(root, clock=clock)
    file.start()
    file.begin("train", 0, 0)
    assert read_status(root).planned is None
    clock.now += 500.0  # a model is loaded
    file.see(0, 400)
    assert (read_status(root).planned, read_status(root).rate) == (400, None)
    clock.now += 10.0
    file.see(301, 400)  # it goes on from a checkpoint at step 300
    assert read_status(root).rate is None
    clock.now += 12.0
    file.see(304, 400)
    assert (read_status(root).rate, read_status(root).eta_s) == (15.0, 384.0)  # 3 steps in 12 s; 96 are left


def test_it_is_written_every_two_seconds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "EVERY", 2.0)
    clock = Clock()
    file = StatusFile(root, clock=clock)
    file.start()
    file.begin("responses", 0, 10)
    clock.now += 1.9
    file.see(1, 10)
    assert read_status(root).done == 0
    clock.now += 0.2
    file.see(2, 10)
    assert read_status(root).done == 2
    file.see(3, 10)
    file.end("failed", "a reason")  # the last row is not lost
    assert (read_status(root).done, read_status(root).error) == (3, "a reason")
    file.say("a thread that comes late")
    assert (read_status(root).state, read_status(root).said) == ("failed", "a thread that comes late")


def test_no_file_before_there_is_a_run_nor_from_a_second_process(tmp_path: Path) -> None:
    StatusFile(tmp_path).begin("prompts", 0, 1)
    second = StatusFile(tmp_path, writes=False)
    second.start()
    second.begin("prompts", 0, 1)
    assert not (tmp_path / "status.json").exists()


def test_a_line_that_is_no_unicode_is_said(root: Path) -> None:
    file = StatusFile(root)
    file.start()
    file.say("half \ud800")
    assert read_status(root).doing == "half ?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no status.json"),
        ("{", "Invalid JSON"),
        ("\udcff", "Invalid JSON"),
        ("[1]", "no status of this version"),
        ('{"version": 0, "state": "running"}', "version"),
        ('{"state": "resting", "pid": 1, "host": "", "started": 0, "updated": 0}', "state"),
    ],
)
def test_a_missing_old_or_broken_file_is_an_error_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "status.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with raises(StoreError, key="status.json", match=message):
        read_status(tmp_path)
    assert main(["status", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "StoreError" in error and str(tmp_path) in error and "sao run" in error
    assert main(["status", str(tmp_path / "nothing" / "here")]) == 1


def full_status(**changes: Any) -> Status:
    values: dict[str, Any] = {
        "state": "running", "step": "responses", "done": 1200, "planned": 5000, "rate": 40.0, "eta_s": 5700.0,
        "drops": {"truncated": 10, "empty": 2}, "doing": "loading\nm", "said": "loading\nm",
        "pid": 7, "host": "elsewhere", "started": 1000.0, "updated": 4600.0,
    }  # fmt: skip
    return Status(**{**values, **changes})


def test_the_block_by_hand() -> None:
    assert show_status(full_status(), Path("runs/a"), 4603.0).splitlines() == [
        "runs/a: running",
        "step      responses, 1,200 of 5,000",
        "rate      40 a minute, 1 h 35 min left",
        "dropped   truncated 10, empty 2",
        "doing     loading m",
        "process   7 on elsewhere, for 60 min",
        "updated   3 s ago",
    ]
    done = full_status(
        state="failed", planned=None, rate=None, drops={}, doing=None, said="a warning", error="E: why"
    )
    assert show_status(done, Path("b"), 4600.0 + 7200.0).splitlines() == [
        "b: failed",
        "step      responses, 1,200",
        "said      a warning",
        "error     E: why",
        "updated   2 h 0 min ago",
    ]


def test_durations() -> None:
    assert [duration(s) for s in (-1.0, 0.4, 89.4, 90.0, 5369.0, 5400.0, 90000.0)] == [
        "0 s", "0 s", "89 s", "2 min", "89 min", "1 h 30 min", "25 h 0 min",
    ]  # fmt: skip


def test_json_is_the_status(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = StatusFile(root)
    file.start()
    file.begin("prompts", 1, 4)
    assert main(["status", str(root), "--json"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert Status.model_validate_json(line) == read_status(root)
    assert (json.loads(line)["kind"], json.loads(line)["step"]) == ("status", "prompts")
