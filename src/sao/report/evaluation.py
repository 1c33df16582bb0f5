"""An evaluation as a Markdown table, with what must be known to read it below."""

from __future__ import annotations

from collections.abc import Iterator

from sao.results.audit import SelfTest
from sao.results.base import Interval
from sao.results.evaluation import (
    AnswersOnly,
    EffectSize,
    Evaluation,
    FittedScore,
    KnownSuiteResult,
    LengthBin,
    MarkedSuite,
    Marks,
    PairedSuite,
    SuiteResult,
    TaskComparison,
    WinRate,
)
from sao.tables import MISSING, Column, markdown_table, percent, percent_with_interval

WITHHELD = "withheld"
"""The cell of a circular judge's figure."""
HEADS = ["suite", "base", "tuned", "reference", "Δ", "95 % CI", "p", "p (Holm)", "n", "detectable"]
Row = list[str]


def show_evaluation(evaluation: Evaluation) -> str:
    """A line for each suite and task, and below it all that must be known to read them."""
    rows: list[Row] = []
    for suite in evaluation.suites.values():
        rows += _suite_rows(suite, evaluation.headline)
    rows += [_task_row(task) for task in evaluation.tasks]
    if average := evaluation.task_average:
        rows.append(_row("tasks, mean %", _share(average.base), _share(average.tuned)))
    return "\n".join([*markdown_table([Column(head) for head in HEADS], rows), "", *_notes(evaluation)])


# The table.


def _suite_rows(suite: SuiteResult, headline: bool) -> Iterator[Row]:
    match suite:
        case MarkedSuite():
            yield _marks_row(suite, headline)
        case PairedSuite():
            yield from _win_rate_rows(suite, headline)
        case KnownSuiteResult():
            yield from _known_rows(suite)
        case AnswersOnly():
            yield _row(f"{suite.title}, answers only", MISSING, MISSING)


def _known_rows(suite: KnownSuiteResult) -> Iterator[Row]:
    """The lines of a suite with known answers, one for each figure; Holm's p stands beside the main one."""
    for number, score in enumerate(suite.scores):
        less = "" if score.higher_is_better else " (less is better)"
        delta = suite.delta if number == 0 else score.delta
        base, tuned = (
            MISSING if side is None else percent_with_interval(side.value, side.ci95).replace(" %", "")
            for side in (score.base, score.tuned)
        )
        yield _row(f"{suite.title}, {score.title} %{less}", base, tuned, delta=delta)


def _row(
    title: str,
    base: str,
    tuned: str,
    reference: str = MISSING,
    delta: EffectSize | TaskComparison | None = None,
    in_percent: bool = True,
) -> Row:
    if delta is None:
        return [title, base, tuned, reference, *[MISSING] * 6]
    scale, digits = (100, 1) if in_percent else (1, 2)
    value = delta.difference if isinstance(delta, TaskComparison) else delta.value
    low, high = (scale * end for end in delta.ci95)
    return [
        title,
        base,
        tuned,
        reference,
        f"{scale * value:+.{digits}f}",
        f"[{low:+.{digits}f}, {high:+.{digits}f}]",
        f"{delta.p:.3g}",
        MISSING if delta.p_holm is None else f"{delta.p_holm:.3g}",
        str(delta.n),
        MISSING if delta.detectable is None else f"{scale * delta.detectable:.{digits}f}",
    ]


def _share(value: float | None) -> str:
    """A share as a number of percent; the unit stands in the row's title."""
    return percent(value, unit="")


def _marks_row(suite: MarkedSuite, headline: bool) -> Row:
    base, tuned, reference = (_mark(side, headline) for side in (suite.base, suite.tuned, suite.reference))
    delta = suite.delta if headline else None
    return _row(f"{suite.title}, rating", base, tuned, reference, delta, in_percent=False)


def _mark(side: Marks | None, headline: bool) -> str:
    if side is None or side.mark is None:
        return MISSING
    return f"{side.mark.value:.2f}" if headline else WITHHELD


def _win_rate_rows(suite: PairedSuite, headline: bool) -> Iterator[Row]:
    """The lines of one suite: the win rate, then the scores that are fitted."""
    half = "50.0"
    reference = "base" if suite.against == "base" else half
    for name, base, tuned, delta in _scores(suite):
        title = f"{suite.title}, {name} %"
        if headline:
            shown = half if suite.against == "base" else _share(None if base is None else base.value)
            yield _row(title, shown, _share(tuned.value), reference, delta)
        else:
            yield _row(title, WITHHELD, WITHHELD, reference)


def _scores(
    suite: PairedSuite,
) -> Iterator[tuple[str, EffectSize | FittedScore | None, EffectSize | FittedScore, EffectSize | None]]:
    """Name, base's score, tuned's score and the difference, of each score that tuned has."""
    base, tuned = suite.base, suite.tuned
    if tuned.win_rate is not None:
        yield "win rate", base.win_rate if base else None, tuned.win_rate, suite.delta
    fitted = [
        (base.adjusted if base else None, tuned.adjusted),
        (base.arena if base else None, tuned.arena),
        (base.arena_style if base else None, tuned.arena_style),
    ]
    for base_score, score in fitted:
        if score is not None:
            yield score.name, base_score, score, score.delta


def _task_row(task: TaskComparison) -> Row:
    title = f"{task.task}, {task.shots} shots, {task.metric} %"
    return _row(title, _share(task.base), _share(task.tuned), delta=task)


# What stands below it.


def _notes(evaluation: Evaluation) -> Iterator[str]:
    """What must stand beside the figures."""
    if evaluation.judge:
        yield f"judge: {evaluation.judge}"
    if evaluation.label:
        withheld = "" if evaluation.headline else " Figures are withheld; --headline shows them."
        yield f"{evaluation.label}: {evaluation.why}.{withheld}"
    for name, suite in evaluation.suites.items():
        yield from (f"{name}: {line}" for line in _suite_notes(suite, evaluation.headline))
    for task in evaluation.tasks:
        if task.cut:
            yield f"{task.task}: {task.cut} requests were too long and lost their beginning"
    if evaluation.self_tests:
        yield (
            "the judge, asked about made-up pairs, prefers the answer as it was to one that is … : "
            + _self_tests(evaluation.self_tests)
        )


def _self_tests(tests: dict[str, SelfTest]) -> str:
    titles = {"identical": "the first of two identical ones"}
    return ", ".join(
        f"{titles.get(name, name)} {percent(test.rate, 0)} (n {test.n}{_flips(test)})"
        for name, test in tests.items()
        if test.rate is not None
    )


def _flips(test: SelfTest) -> str:
    if test.flips is None or test.flips.rate is None:
        return ""
    return f", {percent(test.flips.rate, 0)} flip when swapped"


def _suite_notes(suite: SuiteResult, headline: bool) -> Iterator[str]:
    for role, sentences in suite.degenerate.items():
        yield from (f"{role}: {sentence}" for sentence in sentences)
    for role, missing in suite.missing.items():
        if missing:
            yield f"{role}: no answer to {missing} questions"
    for role, cut in suite.cut_off.items():
        if cut:
            yield f"{role}: {cut} answers to the {suite.n} questions were cut off"
    if isinstance(suite, AnswersOnly):
        yield f"the answers stand in {suite.file}"
    if not isinstance(suite, PairedSuite | MarkedSuite):
        return
    for role, side in (("base", suite.base), ("tuned", suite.tuned)):
        if side is not None:
            yield from (f"{role}: {line}" for line in _side_notes(side, headline))


def _side_notes(side: WinRate | Marks, headline: bool) -> Iterator[str]:
    if isinstance(side, WinRate):
        yield from side.warnings
    if side.unparseable or side.lost:
        bounds = _bounds(side.bounds, isinstance(side, Marks)) if headline else ""
        yield f"{side.unparseable} of {side.verdicts} verdicts unparseable or not given{bounds}"
    if isinstance(side, WinRate) and side.by_length:
        flips = (
            ""
            if side.flip_rate is None
            else f"; {percent(side.flip_rate, 0)} of the verdicts flip when swapped"
        )
        ours, theirs = (words or 0.0 for words in side.words)
        yield f"{ours:.0f} words against {theirs:.0f}{flips}"
        if headline:
            yield "win rate by length ratio " + ", ".join(map(_length_bin, side.by_length))


def _bounds(bounds: tuple[float | None, float | None], marks: bool) -> str:
    low, high = bounds
    if low is None or high is None:
        return ""
    if marks:
        return f"; with them the mean would be between {low:.2f} and {high:.2f}"
    return f"; with them the figure would be between {_share(low)} and {_share(high)} %"


def _length_bin(found: LengthBin) -> str:
    return f"{_ratio(found.ratio)}: {percent(found.win_rate, 0)} (n {found.n})"


def _ratio(ratio: Interval) -> str:
    low, high = (f"{end:.2f}" for end in ratio)
    return low if low == high else f"{low}–{high}"
