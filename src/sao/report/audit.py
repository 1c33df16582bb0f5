"""An audit as text: the verdict, a table of the judges' rates, and what to keep."""

from __future__ import annotations

from collections.abc import Iterator

from sao.report.checks import judge_on_checks
from sao.results.audit import Audit, CalibrationError, Coverage, Effects, JudgeAudit, LogOdds
from sao.results.base import Rate
from sao.statistics import Z95
from sao.tables import MISSING, Column, number, percent, percent_with_interval, plain_table

RATES = {
    "accuracy": "accuracy", "first_slot_rate": "first slot wins", "flip_rate": "flips when swapped",
    "unparseable_rate": "unparseable", "tie_rate": "ties", "longer_wins_rate": "longer wins",
    "intransitive_rate": "intransitive",
}  # fmt: skip
"""What the rates of a judge are called."""
CHANGES = {
    "identical": "for the first slot (50 % is fair)", "padded": "against a padded copy",
    "truncated": "against a copy cut in half", "shuffled": "against a shuffled copy",
}  # fmt: skip
"""What the self-tests are of."""


def show_audit(audit: Audit) -> str:
    """The audit as text."""
    judges = {"judge": audit.judge, **audit.panel}
    kept = audit.kept
    labels = "" if kept.label_accuracy.rate is None else f", label accuracy {rate_cell(kept.label_accuracy)}"
    lines = [
        audit.verdict,
        "",
        *_judge_table(judges),
        *(_effects_line(name, judge.effects) for name, judge in judges.items() if judge.effects),
        f"\nall answers the same       {rate_cell(audit.same_answers)} of the prompts",
        f"pairs kept                 {kept.pairs} ({percent(kept.share)} of the possible ones){labels}",
        *(judge_on_checks(audit.checks) if audit.checks else ()),
        "",
        *_coverage_table(audit.coverage),
        *(_calibration_lines(audit.calibration) if audit.calibration else ()),
        *_agreement_lines(audit),
    ]
    for name, test in (audit.self_tests or {}).items():
        lines.append(f"self-test {name:12} {rate_cell(test)} {CHANGES[name]} ({test.n} verdicts)")
    return "\n".join(lines)


def rate_cell(rate: Rate) -> str:
    """A rate in percent with its interval."""
    return percent_with_interval(rate.rate, rate.ci95)


def _judge_table(judges: dict[str, JudgeAudit]) -> list[str]:
    """A row for each rate and bias, a column for each judge."""
    columns = [Column(width=26), *(Column(name[:24], "right", width=25) for name in judges)]
    rows = []
    for field, title in RATES.items():
        cells = [rate_cell(getattr(judge, field)) for judge in judges.values()]
        if set(cells) != {MISSING}:
            rows.append([title, *cells])
    rows += [
        ["position bias, nats", *(number(judge.position_bias_nats) for judge in judges.values())],
        ["temperature", *(number(judge.temperature) for judge in judges.values())],
        ["verdicts", *(number(judge.verdicts) for judge in judges.values())],
    ]
    return plain_table(columns, rows)


def _effects_line(name: str, effects: Effects) -> str:
    causes = {"slot": effects.slot, "length": effects.length, "quality": effects.quality}
    parts = ", ".join(_effect(cause, found) for cause, found in causes.items() if found is not None)
    unfit = "" if effects.converged else " (one of them decides alone: no finite fit)"
    return (
        f"\nwhat decides ({name}), log-odds for the first slot, a doubled length, quality 1: {parts}{unfit}"
    )


def _effect(cause: str, found: LogOdds) -> str:
    return f"{cause} {found.log_odds:+z.2f} ± {Z95 * found.se:.2f}"


def _coverage_table(coverage: list[Coverage]) -> list[str]:
    columns = [
        Column("keep p ≥", "right", width=10),
        Column("share", "right", width=8),
        Column("accuracy", "right", width=23),
        Column("expected", "right", width=10),
    ]
    rows = [
        [f"{row.min_p:g}", percent(row.share), rate_cell(row.accuracy), percent(row.expected)]
        for row in coverage
    ]
    return plain_table(columns, rows)


def _calibration_lines(calibration: CalibrationError) -> Iterator[str]:
    bins = "  ".join(f"{row.p:.2f}→{row.accuracy:.2f} ({row.n})" for row in calibration.bins)
    yield f"\ncalibration (p → accuracy): {bins}"
    yield f"expected calibration error {calibration.expected_error:.3f} on {calibration.n} pairs"


def _agreement_lines(audit: Audit) -> Iterator[str]:
    for name, found in audit.agreement.items():
        agrees = percent_with_interval(found.agreement, found.ci95)
        yield f"agrees with {name}: {agrees} of {found.pairs} pairs, κ {number(found.kappa)}"
