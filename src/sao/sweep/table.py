"""The table of a sweep: its lines in, a typed `Sweep` out.

The best setting is chosen by the choice half of the held-out prompts, and what the table says of it comes
from the report half: the best of several is always partly the luckiest, and luck stays behind in the half by
which it was chosen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from sao.errors import ConfigError
from sao.results.base import Rate
from sao.results.checks import CheckedGain
from sao.results.sweep import (
    Cell,
    Difference,
    Estimate,
    Half,
    MeasureName,
    Pair,
    PromptScores,
    RowMeasure,
    Sweep,
    SweepRow,
)
from sao.statistics import mean
from sao.sweep.cells import Cells
from sao.sweep.estimate import FORMULA, Mean, differences, estimate
from sao.sweep.plan import Plan, Planned, Settings, label_of, value_of
from sao.sweep.scores import MEASURES, values_of

MAIN: tuple[MeasureName, ...] = ("checks", "oracle", "win_rate")
"""What a setting is chosen by: the first of these that all finished cells have."""
BY_NAME: tuple[MeasureName, ...] = ("checks", "checks_unseen", "oracle", "win_rate")
"""What --measure may name."""
SPANS: dict[MeasureName, tuple[float, float]] = {
    "checks": (-1, 1), "checks_unseen": (-1, 1), "oracle": (-1, 1), "win_rate": (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The finished cells of one setting: the scores of each by its seeds."""

    settings: Settings
    planned: list[Planned]
    lines: list[Cell]
    scores: dict[str, list[PromptScores]]

    @property
    def finished(self) -> list[Cell]:
        return [line for line in self.lines if line.error is None]

    def values(self, measure: MeasureName, half: Half) -> dict[str, dict[str, float]]:
        """A measure by prompt, by the seeds of each repeat."""
        return {seeds: values_of(scores, measure, half) for seeds, scores in self.scores.items()}


def make_table(plan: Plan, measure: str | None = None) -> Sweep:
    """The table of the cells that exist. Raises ConfigError for a measure that there is not."""
    store = Cells(plan.root)
    lines = store.read()
    groups = _groups(plan, lines, store)
    main = _main_measure(groups, measure)
    base = next(group for group in groups if group.settings == plan.base.settings)
    best = _best(groups, main)
    ours = {cell.fingerprint for cell in plan.cells}
    left_out = sum(fingerprint not in ours for fingerprint in lines)
    done = sum(len(group.finished) for group in groups)
    rows = [_row(group, base, group is best) for group in groups]
    return Sweep(
        model=plan.config.model,
        recipe=_recipe(plan),
        measure=main,
        circular=main == "win_rate",
        repeats=_repeats(plan),
        rows=rows,
        chosen=None if best is None else label_of(best.settings),
        cells=len(plan.cells),
        done=done,
        failed=sum(len(group.lines) for group in groups) - done,
        left_out=left_out,
        formula=FORMULA,
        notes=[*plan.notes, *_notes(plan, groups, main, left_out)],
    )


def check_measure(measure: str | None) -> None:
    """Raise ConfigError for a main measure that there is not."""
    if measure is not None and measure not in BY_NAME:
        raise ConfigError(f"--measure {measure}: there are {', '.join(BY_NAME)}", key="--measure")


def _groups(plan: Plan, lines: dict[str, Cell], store: Cells) -> list[Group]:
    """The cells by setting, in the order of the sweep."""
    found: dict[str, Group] = {}
    for cell in plan.cells:
        group = found.setdefault(_key(cell.settings), Group(cell.settings, [], [], {}))
        group.planned.append(cell)
        if (line := lines.get(cell.fingerprint)) is not None:
            group.lines.append(line)
            if line.error is None:
                group.scores[_key(cell.repeats)] = store.scores(line)
    return list(found.values())


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _repeats(plan: Plan) -> dict[str, list[JsonValue]]:
    found: dict[str, list[JsonValue]] = {}
    for cell in plan.cells:
        for key, value in cell.repeats.items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return found


# The best.


def _main_measure(groups: Sequence[Group], asked: str | None) -> MeasureName | None:
    """The measure by which the best setting is chosen."""
    check_measure(asked)
    finished = [group for group in groups if group.scores]
    if not finished:
        return None
    names = MAIN if asked is None else [name for name in BY_NAME if name == asked]
    for name in names:
        if all(all(group.values(name, "choice").values()) for group in finished):
            return name
    raise ConfigError(
        f"no main measure: not all finished cells have {' or '.join(names)} on the choice half of their "
        "held-out prompts. Raise personas.held_out; checks need evaluation.checkable above 0, a win rate "
        f"evaluation.judged true; or name another with --measure ({', '.join(BY_NAME)})",
        key="--measure",
    )


def _best(groups: Sequence[Group], main: MeasureName | None) -> Group | None:
    """The best setting by the choice half; of equal ones the first. One that lacks a cell, because it failed
    or was not run yet, is none: its other cells may be the lucky ones."""
    whole = [group for group in groups if len(group.finished) == len(group.planned)]
    if main is None or not whole:
        return None

    def choice(group: Group) -> float:
        found = _choice(group, main)
        return float("-inf") if found is None else found

    return max(whole, key=choice)


def _choice(group: Group, measure: MeasureName) -> float | None:
    found = estimate(list(group.values(measure, "choice").values()))
    return None if found is None else found.value


# Rows.


def _recipe(plan: Plan) -> Settings:
    """What the recipe has for the keys that are changed."""
    keys = [factor.key for factor in plan.factors if not factor.is_repeat]
    return {key: value_of(plan.config, key) for key in keys}


def _row(group: Group, base: Group, chosen: bool) -> SweepRow:
    finished = group.finished
    outcomes = [line.checks for line in finished if line.checks is not None]
    return SweepRow(
        settings=group.settings,
        label=label_of(group.settings),
        is_base=group is base,
        chosen=chosen,
        done=len(finished),
        failed=len(group.lines) - len(finished),
        missing=len(group.planned) - len(group.lines),
        errors=list(dict.fromkeys(line.error for line in group.lines if line.error is not None)),
        measures=[_row_measure(name, group, base) for name in MEASURES if _has(group, name)],
        kept_pairs=_mean_of([line.kept_pairs for line in finished]),
        label_accuracy=_mean_rate([line.label_accuracy for line in finished]),
        judge_accuracy=_mean_rate([line.judge_accuracy for line in finished]),
        beyond_brevity=_mean_gain([found.trained for found in outcomes]),
        repetition=_mean_pair([(found.base.repetition, found.tuned.repetition) for found in outcomes]),
    )


def _mean_rate(rates: Sequence[Rate | None]) -> Rate | None:
    """The mean of rates and of their intervals. Repeats of the training have the same pairs, so that their
    numbers do not add up."""
    known = [rate for rate in rates if rate is not None and rate.rate is not None]
    if not known:
        return None
    low, high = (mean([rate.ci95[end] for rate in known]) for end in (0, 1))
    return Rate(rate=mean([rate.rate or 0.0 for rate in known]), ci95=(low, high), n=known[0].n)


def _has(group: Group, measure: MeasureName) -> bool:
    return any(found.n for line in group.finished for found in line.measures if found.measure == measure)


def _row_measure(name: MeasureName, group: Group, base: Group) -> RowMeasure:
    values, span = group.values(name, "report"), SPANS.get(name)
    of = [f for line in group.finished for f in line.measures if (f.measure, f.half) == (name, "report")]
    return RowMeasure(
        measure=name,
        choice=_choice(group, name),
        before=_mean_of([figure.before for figure in of]),
        after=_mean_of([figure.after for figure in of]),
        report=_as_estimate(estimate(list(values.values()), span)),
        difference=None if group is base else _difference(values, base.values(name, "report"), span),
    )


def _difference(
    cells: dict[str, dict[str, float]], bases: dict[str, dict[str, float]], span: tuple[float, float] | None
) -> Difference | None:
    """Less the base, over the repeats that both have finished."""
    seeds = [key for key in cells if key in bases]
    # Differences of gains reach twice as far.
    wide = None if span is None else (span[0] - span[1], span[1] - span[0])
    found, paired = differences([cells[key] for key in seeds], [bases[key] for key in seeds], wide)
    if found is None:
        return None
    return Difference(
        value=found.value, ci95=found.interval, prompts=found.prompts, seeds=found.seeds, paired=paired
    )


def _as_estimate(found: Mean | None) -> Estimate | None:
    if found is None:
        return None
    return Estimate(value=found.value, ci95=found.interval, prompts=found.prompts, seeds=found.seeds)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _mean_gain(gains: Sequence[CheckedGain]) -> Estimate | None:
    """What is gained beyond brevity: the mean over the repeats, and that of the intervals."""
    values = [gain.beyond_brevity for gain in gains if gain.beyond_brevity is not None]
    if not values:
        return None
    ends = [gain.beyond_ci95 for gain in gains if gain.beyond_ci95 is not None]
    low, high = (mean([pair[end] for pair in ends]) if ends else 0.0 for end in (0, 1))
    interval = (low, high) if len(ends) == len(values) else None
    return Estimate(value=mean(values), ci95=interval, prompts=gains[0].n, seeds=len(values))


def _mean_pair(pairs: Sequence[Pair]) -> Pair | None:
    if not pairs:
        return None
    return mean([before for before, _ in pairs]), mean([after for _, after in pairs])


# Notes.


def _notes(
    plan: Plan, groups: Sequence[Group], main: MeasureName | None, left_out: int
) -> list[str]:  # fmt: skip
    found: list[str] = []
    if left_out:
        found.append(
            f"{left_out} {'line' if left_out == 1 else 'lines'} of {plan.root / 'cells.jsonl'} left out: of "
            "other recipes, factors or values, or of models and files that have changed"
        )
    if {} not in [group.settings for group in groups]:
        found.append(f"the recipe is no cell of this product; the base is {label_of(plan.base.settings)}")
    if main == "win_rate":
        found.append("the setting is chosen by the judge that it was trained on (CIRCULAR)")
    judges = {line.judge for group in groups for line in group.finished}
    if len(judges) > 1:
        found.append("the cells have different judges, so their win rates measure different things")
    if any(len(group.finished) < len(group.planned) for group in groups):
        found.append("a setting with cells that failed or are missing cannot be chosen")
    if len(groups) > 2:
        found.append("each interval stands for its row alone: they are not adjusted for the number of rows")
    return found


def table_path(root: Path) -> Path:
    """Where the table lies as Markdown."""
    return root / "table.md"
