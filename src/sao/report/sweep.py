"""The table of a sweep as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from sao.results.base import Rate
from sao.results.sweep import Estimate, MeasureName, RowMeasure, Sweep, SweepRow
from sao.tables import MISSING, Column, markdown_table, number, percent_with_interval, plain_table

WORDS: dict[MeasureName, str] = {
    "checks": "constraints kept (trained kinds): gain",
    "checks_unseen": "constraints kept (unseen kinds): gain",
    "oracle": "oracle: gain",
    "win_rate": "win rate by the run's judge (CIRCULAR)",
    "words": "words",
}
"""What a measure is called."""
HEADS: dict[MeasureName, str] = {
    "checks": "checks", "checks_unseen": "unseen checks", "oracle": "oracle", "win_rate": "win rate",
    "words": "words",
}  # fmt: skip
CHECKS = ("checks beyond brevity [95 %]", "repetition")
"""Columns of a sweep with constraints, over all held-out prompts."""


def show_sweep(sweep: Sweep) -> str:
    """The sweep as plain text."""
    columns, rows = _table(sweep)
    return "\n".join([*_opening(sweep), "", *plain_table(columns, rows), "", *_closing(sweep)])


def markdown_sweep(sweep: Sweep) -> str:
    """The sweep as Markdown."""
    columns, rows = _table(sweep)
    opening, closing = ([f"- {line}" for line in lines] for lines in (_opening(sweep), _closing(sweep)))
    return "\n".join(["# Sweep", "", *opening, "", *markdown_table(columns, rows), "", *closing])


def _opening(sweep: Sweep) -> Iterator[str]:
    seeds = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in sweep.repeats.items())
    yield (
        f"{sweep.model}: {sweep.done} of {sweep.cells} cells finished, {sweep.failed} failed"
        + (f"; repeats: {seeds}" if seeds else "")
    )
    if sweep.recipe:
        yield f"the recipe: {', '.join(f'{key}={value}' for key, value in sweep.recipe.items())}"
    if sweep.measure is not None:
        yield f"main measure: {WORDS[sweep.measure]}"


def _table(sweep: Sweep) -> tuple[list[Column], list[list[str]]]:
    """Columns and rows; columns that no row has are left out."""
    names = {figure.measure for row in sweep.rows for figure in row.measures}
    main = sweep.measure
    columns = [Column("setting")]
    if main is not None:
        heads = (f"{HEADS[main]}, choice half", "report half [95 %]", "less the base [95 %]")
        columns += [Column(head, "right", gap=2) for head in heads]
    others = [name for name in HEADS if name in names and name != main]
    columns += [Column(_head(name), "right", gap=2) for name in others]
    has_checks = any(row.repetition is not None for row in sweep.rows)
    columns += [Column(head, "right", gap=2) for head in (CHECKS if has_checks else ())]
    columns += [Column(head, "right", gap=2) for head in ("pairs", "label acc.", "judge acc.", "cells")]
    return columns, [_row(row, main, others, has_checks) for row in sweep.rows]


def _head(name: MeasureName) -> str:
    return f"{HEADS[name]} (CIRCULAR)" if name == "win_rate" else HEADS[name]


def _row(row: SweepRow, main: MeasureName | None, others: list[MeasureName], has_checks: bool) -> list[str]:
    by_name = {figure.measure: figure for figure in row.measures}
    cells = [f"{'→ ' if row.chosen else ''}{row.label}"]
    if main is not None:
        figure = by_name.get(main)
        cells += [MISSING] * 3 if figure is None else _main_cells(figure, row.is_base)
    cells += [_other_cell(by_name.get(name)) for name in others]
    cells += _checks_cells(row) if has_checks else ()
    count = f"{row.done}" + (f", {row.failed} failed" if row.failed else "")
    count += f", {row.missing} missing" if row.missing else ""
    pairs = number(row.kept_pairs, 0)
    return [*cells, pairs, _accuracy(row.label_accuracy), _accuracy(row.judge_accuracy), count]


def _accuracy(rate: Rate | None) -> str:
    return MISSING if rate is None else f"{percent_with_interval(rate.rate, rate.ci95, 0)} of {rate.n}"


def _main_cells(figure: RowMeasure, is_base: bool) -> list[str]:
    signed = figure.measure != "win_rate"
    choice = MISSING if figure.choice is None else _value(figure.choice, signed)
    difference = "base" if is_base else _with_interval(figure.difference, True)
    if figure.difference is not None and not figure.difference.paired:
        difference += " not paired"
    return [choice, _with_interval(figure.report, signed), difference]


def _other_cell(figure: RowMeasure | None) -> str:
    if figure is None or figure.report is None:
        return MISSING
    if figure.measure == "words" and figure.before is not None and figure.after is not None:
        return f"{figure.before:.1f} → {figure.after:.1f}"
    return _with_interval(figure.report, figure.measure != "win_rate")


def _checks_cells(row: SweepRow) -> list[str]:
    beyond = _with_interval(row.beyond_brevity, True)
    if row.repetition is None:
        return [beyond, MISSING]
    before, after = (f"{100 * share:.1f}" for share in row.repetition)
    return [beyond, f"{before} → {after} %"]


def _value(value: float, signed: bool) -> str:
    return f"{value:+z.3f}" if signed else f"{value:z.3f}"


def _with_interval(found: Estimate | None, signed: bool) -> str:
    if found is None:
        return MISSING
    value = _value(found.value, signed)
    if found.ci95 is None:
        return value
    low, high = (_value(end, signed) for end in found.ci95)
    return f"{value} [{low}, {high}]"


def _closing(sweep: Sweep) -> Iterator[str]:
    best = next((row for row in sweep.rows if row.chosen), None)
    if best is not None:
        yield from _chosen_lines(best, sweep)
    if any(row.repetition is not None for row in sweep.rows):
        yield (
            "Beyond brevity (the gain less what shorter answers alone earn) and repetition: all held-out "
            "prompts. The half that chose the setting is among them, so the chosen row looks better than it "
            "is."
        )
    seeds = [f.report.seeds for row in sweep.rows for f in row.measures if f.report is not None]
    if seeds and min(seeds) < 2:
        yield "Where there is one seed, the interval counts prompts only: other seeds may differ by more."
    elif seeds and min(seeds) == 2:
        yield "Two seeds say little of how much seeds differ: the intervals may hold the truth in 89 % only."
    yield f"Intervals: {sweep.formula}."
    yield from (f"Note: {note}." for note in sweep.notes)
    for row in sweep.rows:
        yield from (f"Failed: {row.label}: {error}" for error in row.errors)


def _chosen_lines(best: SweepRow, sweep: Sweep) -> Iterator[str]:
    figure = next(figure for figure in best.measures if figure.measure == sweep.measure)
    yield f"Best by the choice half: {best.label}. What it is worth, the report half says."
    difference = figure.difference
    if best.is_base or difference is None or difference.ci95 is None:
        return
    low, high = difference.ci95
    if low <= 0 <= high:
        yield (
            "On the report half it cannot be told apart from the base (the interval of the difference holds "
            "0): take more prompts or seeds before you rely on it."
        )
