"""Sweeps that are run: what is shared, what goes on after a kill, what fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sao import checks
from sao.cli import main
from sao.config import make_config, overridden
from sao.engines.scripted import ScriptedEngine
from sao.errors import StoreError
from sao.execution.status import read_status
from sao.pipeline.folder import recorded
from sao.results import Summary
from sao.sweep import Cells, Plan, make_plan, make_table, run_cells
from support.checks import known
from support.errors import raises
from support.sweeps import lines, small

TINY = ["--personas.n", "24", "--personas.held_out", "16", "--engine.threads", "1", "--train.epochs", "1"]


def scripted(root: Path, *over: str, **changes: str) -> tuple[Plan, ScriptedEngine]:
    engine = ScriptedEngine()
    return make_plan(small(**changes), over, root, given=engine), engine


@pytest.mark.slow
def test_what_cells_share_is_made_once(tmp_path: Path) -> None:
    plan, engine = scripted(tmp_path, "judging.method=random,longer", "train.lr=1e-4")
    said: list[str] = []
    run_cells(plan, notify=said.append)
    root = tmp_path / plan.cells[0].run
    # 40 prompts, 2 answers to each of 24, both orders, and the base's answers: once. Comparisons: each cell.
    once = 40 + 2 * 24 + 2 * 24 + 16
    assert once < engine.calls <= once + 4 * 2 * 16
    for step, stages in {"prompts": 1, "responses": 1, "heldout_base": 1, "judgments": 3, "train": 4}.items():
        assert len(list(root.glob(f"round-1/{step}-*"))) == stages, step
    assert next(line for line in said if line.startswith("cell ")) == "cell 1 of 4: the recipe (4 left)"
    assert "cell 4 of 4: train.lr=0.0001 (1 left, about a minute)" in said
    assert not any("changed since" in line for line in said)
    # The folder stands by its last cell.
    assert recorded(root).config.train.lr == 1e-4
    assert read_status(root).state == "finished"

    calls, before = engine.calls, (tmp_path / "cells.jsonl").read_bytes()
    run_cells(plan, notify=said.append)
    assert engine.calls == calls
    assert (tmp_path / "cells.jsonl").read_bytes() == before
    wider, engine = scripted(tmp_path, "judging.method=random,longer", "train.lr=1e-4", "train.beta=3")
    run_cells(wider)
    assert engine.calls <= 2 * 16  # the new cell's comparisons
    assert (tmp_path / "cells.jsonl").read_bytes().startswith(before)
    table = make_table(wider)
    assert (table.done, table.left_out) == (5, 0)
    assert make_table(plan).left_out == 1


@pytest.mark.slow
def test_a_cell_that_fails_is_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    plan, engine = scripted(tmp_path, "pairs.min_p=0.999999", "prompts.marker=ask:", "judging.method=random")
    said: list[str] = []
    run_cells(plan, notify=said.append)
    errors = [
        known(cell.error).split(":")[0] if cell.error else "" for cell in Cells(tmp_path).read().values()
    ]
    assert errors == ["", "NoPairsError", "DropError", ""]
    assert sum("failed:" in line for line in said) == 2
    calls = engine.calls
    run_cells(plan, notify=said.append)
    assert said[-1] == "cells that failed earlier and are not tried again: 2. To try them: --retry"
    assert (engine.calls, len((tmp_path / "cells.jsonl").read_text().splitlines())) == (calls, 4)
    run_cells(plan, retry=True)
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 6
    table = make_table(plan)
    assert [row.failed for row in table.rows] == [0, 1, 1, 0]
    assert (table.done, table.failed) == (2, 2)


@pytest.mark.slow
def test_other_sizes_and_seeds_have_run_folders_of_their_own(tmp_path: Path) -> None:
    plan, _ = scripted(tmp_path, "personas.n=30", "seed=0,1", judging_method="random")
    run_cells(plan)
    assert {cell.error for cell in Cells(tmp_path).read().values()} == {None}
    folders = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.glob("run-*"))
    assert folders == ["run-n24-h16-seed0", "run-n24-h16-seed1", "run-n30-h16-seed0", "run-n30-h16-seed1"]
    base, grown = make_table(plan).rows
    (words,) = [figure for figure in grown.measures if figure.measure == "words"]
    assert known(words.difference).paired  # the held-out prompts are the same
    (own,) = [figure for figure in base.measures if figure.measure == "words"]
    small_ids, large_ids = (
        {score.id for score in Cells(tmp_path).scores(cell)} for cell in _seed(0, tmp_path)
    )
    assert small_ids == large_ids
    assert known(own.report).prompts > 8  # of both seeds


def _seed(seed: int, root: Path) -> list[Any]:
    return [cell for cell in Cells(root).read().values() if cell.repeats["seed"] == seed]


def test_a_full_disk_ends_the_sweep(tmp_path: Path) -> None:
    plan, _ = scripted(tmp_path, "judging.method=random")
    folder = tmp_path / plan.cells[0].run
    folder.write_text("a file where the run folder should be")
    with raises(StoreError, key="manifest.json"):
        run_cells(plan)
    assert lines(tmp_path) == []


SCRIPT = """
import sys
from pathlib import Path
from typing import Any
from sao.engines.scripted import ScriptedEngine
from sao.sweep import make_plan, run_cells
from support.sweeps import small
over = ["judging.method=random,longer", "train.lr=1e-4"]
run_cells(make_plan(small(), over, Path(sys.argv[1]), given=ScriptedEngine(delay=0.01)))
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_of_cells_changes_no_line(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, tests])}
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "whole")], check=True, env=environment)
    killed = tmp_path / "killed"
    for finished, pause in ((0, 0.5), (1, 0.7)):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(killed)], env=environment, start_new_session=True
        )
        while process.poll() is None and not (_lines(killed) >= finished and list(killed.glob("run-*"))):
            time.sleep(0.01)
        time.sleep(pause)
        assert process.poll() is None, "it ended before the kill"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with (killed / "cells.jsonl").open("ab") as torn:
        torn.write(b'{"kind":"cell","sett')
    subprocess.run([sys.executable, "-c", SCRIPT, str(killed)], check=True, env=environment)
    assert lines(killed) == lines(tmp_path / "whole")
    assert len((killed / "cells.jsonl").read_text().splitlines()) == 4
    for file in (tmp_path / "whole" / "scores").iterdir():
        assert (killed / "scores" / file.name).read_bytes() == file.read_bytes()


def _lines(root: Path) -> int:
    path = root / "cells.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
def test_the_command_on_checkable_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sweep")
    command = ["sweep", "demo", *TINY, "--prompts.checkable", "0.5", "--evaluation.checkable", "0.5"]
    command += ["--over", "judging.method=random", "--out", out, "--json"]
    assert main(command) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out.splitlines()[-1])
    assert (found["kind"], found["done"], found["cells"]) == ("sweep", 2, 2)
    assert {figure["measure"] for figure in found["rows"][0]["measures"]} >= {"oracle", "win_rate", "words"}
    assert found["rows"][0]["label_accuracy"] is not None
    assert "cell 1 of 2: the recipe" in shown.err
    assert (tmp_path / "sweep" / "table.md").read_text().startswith("# Sweep")
    assert main([*command, "--table"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def test_the_table_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nowhere"
    assert main(["sweep", "demo", "--over", "train.lr=1", "--out", str(out), "--table"]) == 1
    assert "no sweep has finished a cell here" in capsys.readouterr().err
    assert not out.exists()


def test_a_wrong_key_and_a_wrong_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "demo", "--out", str(tmp_path / "s"), "--over"]
    assert main([*command, "train.lrr=1"]) == 1
    assert "Did you mean train.lr?" in capsys.readouterr().err
    assert main([*command, "train.lr=1", "--measure", "luck"]) == 1
    assert "--measure luck" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_constraints_measure_cells_that_no_judge_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the comparisons there is no win rate; the kinds that count are those of the summary."""
    asked = {
        "prompts.checkable": "1", "evaluation.checkable": "1", "evaluation.judged": "false",
        "personas.held_out": "60",
    }  # fmt: skip
    kinds = ("sentences", "word_length", "no_commas", "no_digits", "avoid_words", "max_words", "start_word")
    monkeypatch.setattr(checks, "TRAINED", kinds)  # scripted answers keep some of them now and then
    config = make_config(overridden(small().model_dump(mode="json"), asked))
    plan = make_plan(config, ["judging.method=random,longer"], tmp_path, given=ScriptedEngine())
    run_cells(plan)
    lines = Cells(tmp_path).read().values()
    assert [line.error for line in lines] == [None] * len(lines)
    for line in lines:
        by = {(figure.measure, figure.half): figure for figure in line.measures}
        assert by["win_rate", "report"].n == 0
        assert line.judge is None
    (summary,) = tmp_path.glob("run-*/summary.json")
    last = known(Summary.model_validate_json(summary.read_text()).checks)
    assert list(lines)[-1].checks == last
    again = make_config(dict(list(lines)[-1].recipe))
    assert (again.judging.method, again.evaluation.checkable) == ("longer", 1.0)
    scored = list(lines)[-1].measures
    assert sum(figure.n for figure in scored if figure.measure == "checks") == last.trained.n > 0
