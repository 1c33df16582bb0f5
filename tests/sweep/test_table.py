"""The table over cells made by hand, and what is kept of cells."""

from pathlib import Path

import pytest

from sao.errors import ConfigError, StoreError
from sao.records import Prompt
from sao.report.sweep import markdown_sweep, show_sweep
from sao.results.checks import CheckedGain, ChecksOutcome, Texts
from sao.results.sweep import Cell, Sweep
from sao.sweep import Cells, Plan, make_plan, make_table
from sao.sweep.scores import half_of, measured
from support.checks import known
from support.errors import raises
from support.sweeps import lines, scores_of, small, write_cell

OVER = ("judging.method=random", "train.lr=1e-5", "train.seed=0,1")
CHOICE, REPORT = {"c1": 0.0, "c2": 0.2}, {"r1": 0.0, "r2": 0.2, "r3": 0.4}


def plan_in(root: Path, *over: str) -> Plan:
    return make_plan(small(), over or OVER, root)


def fill(plan: Plan, choice: dict[str, float], report: dict[str, float], failing: str = "") -> None:
    """A line for each cell: gains as in CHOICE and REPORT, and more by setting."""
    for cell in plan.cells:
        key = cell.label.split()[0]
        if failing and failing in cell.label:
            write_cell(plan, cell, error="NoPairsError: none")
            continue
        better, seed = choice.get(key, 0.0), 0.1 * float(str(cell.repeats["train.seed"]))
        scores = scores_of({name: gain + better for name, gain in CHOICE.items()}, "choice")
        more = report.get(key, 0.0) + seed
        write_cell(plan, cell, scores + scores_of({name: gain + more for name, gain in REPORT.items()}))


def test_the_best_by_the_choice_half_is_reported_by_the_other(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    fill(plan, {"judging.method=random": 0.5, "train.lr=1e-05": 0.1}, {"judging.method=random": -0.1})
    table = make_table(plan)
    base, random, lr = table.rows
    assert (table.measure, table.circular, table.chosen) == ("oracle", False, "judging.method=random")
    assert [row.chosen for row in table.rows] == [False, True, False]
    assert base.is_base
    assert (base.label, table.recipe) == ("the recipe", {"judging.method": "logprob", "train.lr": 3e-4})
    oracle = {figure.measure: figure for figure in random.measures}["oracle"]
    assert known(oracle.choice) == pytest.approx(0.6)
    assert known(oracle.report).value == pytest.approx(0.15)  # 0.2 − 0.1, and 0.05 for the seeds
    assert (known(oracle.report).prompts, known(oracle.report).seeds) == (3, 2)
    difference = known(oracle.difference)
    assert difference.value == pytest.approx(-0.1)
    assert difference.paired
    assert lr.measures[0].difference is not None
    assert base.measures[0].difference is None
    assert table.repeats == {"train.seed": [0, 1]}
    assert Sweep.model_validate_json(table.model_dump_json()) == table


def test_a_setting_that_lacks_a_cell_is_not_chosen(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    fill(plan, {"judging.method=random": 0.5}, {}, failing="judging.method=random train.seed=1")
    table = make_table(plan)
    assert table.chosen == "the recipe"
    row = table.rows[1]
    assert (row.done, row.failed, row.missing, row.errors) == (1, 1, 0, ["NoPairsError: none"])
    assert known(row.measures[0].difference).seeds == 1
    assert (table.cells, table.done, table.failed) == (6, 5, 1)
    assert "Failed: judging.method=random: NoPairsError: none" in show_sweep(table)


def test_a_sweep_that_has_only_begun(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    empty = make_table(plan)
    assert (empty.measure, empty.chosen, empty.done) == (None, None, 0)
    assert "2 missing" in show_sweep(empty)
    write_cell(plan, plan.cells[0], scores_of(CHOICE, "choice") + scores_of(REPORT))
    begun = make_table(plan)
    assert (begun.measure, begun.chosen, begun.rows[0].missing) == ("oracle", None, 1)


def test_without_gold_the_judge_decides_and_that_is_said(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "judging.method=random")
    for cell in plan.cells:
        points = {"c1": 0.5, "c2": 1.0 if cell.settings else 0.0}
        rows = scores_of(CHOICE, "choice", points) + scores_of(REPORT, points={"r1": 1.0, "r2": 0.5})
        write_cell(plan, cell, [row.model_copy(update={"oracle": None}) for row in rows])
    table = make_table(plan)
    assert (table.measure, table.circular, table.chosen) == ("win_rate", True, "judging.method=random")
    assert "CIRCULAR" in show_sweep(table)
    assert "the setting is chosen by the judge that it was trained on (CIRCULAR)" in table.notes
    assert "one seed" in show_sweep(table)


def test_another_measure_can_be_named(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "judging.method=random")
    for cell in plan.cells:
        write_cell(plan, cell, scores_of(CHOICE, "choice", {"c1": 1.0}) + scores_of(REPORT))
    assert make_table(plan, "win_rate").measure == "win_rate"
    for name in ("checks", "words", "nonsense"):
        with raises(ConfigError, key="--measure"):
            make_table(plan, name)


def test_lines_of_other_recipes_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    fill(plan_in(tmp_path), {}, {})
    changed = make_plan(small(train_beta="3"), OVER, tmp_path)
    table = make_table(changed)
    assert (table.done, table.left_out) == (0, 6)
    assert any(note.startswith("6 lines") for note in table.notes)
    assert len(lines(tmp_path)) == 6
    wider = make_plan(small(), [*OVER[:2], "train.seed=0,1,2"], tmp_path)
    assert (make_table(wider).done, make_table(wider).left_out) == (6, 0)


def outcome(beyond: float, before: float, after: float) -> ChecksOutcome:
    """What constraints say of a cell: the gain beyond brevity, and repetition before and after."""
    gain = CheckedGain(
        n=9, before=0.2, after=0.5, gain=0.3, beyond_brevity=beyond, beyond_ci95=(beyond - 0.1, beyond + 0.2)
    )
    base, tuned = (Texts(words=9, repetition=each, finished=1, distinct=1) for each in (before, after))
    unseen = CheckedGain(n=0)
    return ChecksOutcome(trained=gain, unseen=unseen, kinds=[], left_out=[], base=base, tuned=tuned)


def test_what_brevity_earns_and_repetition_are_means_over_the_seeds(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    outcomes = {0: outcome(0.1, 0.02, 0.04), 1: outcome(0.2, 0.02, 0.08)}
    for cell in plan.cells:
        checked = None if cell.settings else outcomes[int(str(cell.repeats["train.seed"]))]
        write_cell(plan, cell, scores_of(CHOICE, "choice") + scores_of(REPORT), checks=checked)
    table = make_table(plan)
    base, random, _ = table.rows
    assert known(base.beyond_brevity).value == pytest.approx(0.15)
    assert known(known(base.beyond_brevity).ci95) == pytest.approx((0.05, 0.35))
    assert (known(base.beyond_brevity).prompts, known(base.beyond_brevity).seeds) == (9, 2)
    assert known(base.repetition) == pytest.approx((0.02, 0.06))
    assert (random.beyond_brevity, random.repetition) == (None, None)
    shown = show_sweep(table)
    assert "+0.150 [+0.050, +0.350]" in shown and "2.0 → 6.0 %" in shown
    assert "beyond brevity" in shown
    assert "2.0 → 6.0 %" in markdown_sweep(table)


def test_a_sweep_without_constraints_has_no_columns_of_them(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    fill(plan, {}, {})
    assert "brevity" not in show_sweep(make_table(plan))


def test_markdown_has_all_rows(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    fill(plan, {}, {})
    text = markdown_sweep(make_table(plan))
    assert sum(line.startswith("|") for line in text.splitlines()) == 2 + 3
    assert "Cameron" in text


# What is kept.


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    fill(plan, {}, {})
    path = tmp_path / "cells.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert len(lines(tmp_path)) == 5
    write_cell(plan, plan.cells[-1], scores_of(REPORT))
    assert len(lines(tmp_path)) == 6
    assert path.read_bytes()[: len(whole) - 400].startswith(whole.split(b"\n")[0])


def test_the_last_line_of_a_cell_counts(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    write_cell(plan, plan.cells[0], error="DropError: too many")
    write_cell(plan, plan.cells[0], scores_of(REPORT))
    (found,) = Cells(tmp_path).read().values()
    assert found.error is None


def test_broken_lines_and_lost_scores_are_errors(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    with raises(StoreError, key="cells.jsonl"):
        Cells(tmp_path).must_exist()
    write_cell(plan, plan.cells[0], scores_of(REPORT))
    file = tmp_path / "scores" / f"{plan.cells[0].fingerprint}.jsonl"
    file.unlink()
    with raises(StoreError, key=file.name):
        make_table(plan)
    with (tmp_path / "cells.jsonl").open("a") as out:
        out.write('{"kind": "cell"}\n')
    with raises(StoreError, key="cells.jsonl", match="line 2"):
        Cells(tmp_path).read()


def test_a_cell_reads_back(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    write_cell(plan, plan.cells[0], scores_of({"a": 0.1, "b": 0.3}))
    (found,) = Cells(tmp_path).read().values()
    assert Cell.model_validate_json(found.model_dump_json()) == found
    oracle = next(m for m in found.measures if (m.measure, m.half) == ("oracle", "report"))
    assert (oracle.n, oracle.before) == (2, 0.0)
    assert known(oracle.after) == pytest.approx(0.2)
    assert known(oracle.mean) == pytest.approx(0.2)
    assert known(oracle.se) == pytest.approx(0.1)  # √(0.02 / 2)


def test_measures_of_nothing() -> None:
    assert {found.n for found in measured([])} == {0}


# Halves.


def prompt(text: str, row: int = 0) -> Prompt:
    return Prompt(id=f"{row:016x}", row=row, persona_id="p", text=text)


def test_halves_follow_the_text_alone() -> None:
    halves = [half_of(prompt(f"question {k}", k)) for k in range(400)]
    assert 160 < halves.count("choice") < 240
    assert halves[:100] == [half_of(prompt(f"question {k}", k + 7)) for k in range(100)]
