"""The rounds of a run as a table, and what ended them."""

from __future__ import annotations

from collections.abc import Iterator

from sao.results.rounds import Against, Gold, RoundResult
from sao.results.summary import Summary
from sao.tables import Column, percent, plain_table


def rounds_lines(summary: Summary) -> Iterator[str]:
    """The table of rounds, what ended the run, and which round is the best."""
    yield from rounds_table(summary.rounds)
    if any(result.initial is not None for result in summary.rounds):
        yield "win rates are CIRCULAR: by the judge that the run began with, in both orders"
    last = summary.rounds[-1].round
    yield from (f"stopped after round {last}: {sentence}" for sentence in summary.stopped_by)
    if summary.best is not None:
        yield f"best round   {summary.best}; its model is the run's"
        if summary.rounds[summary.best - 1].stopped_by:
            yield "             a rule stopped it, though: the model that the run began with may be better"


def rounds_table(rounds: list[RoundResult]) -> list[str]:
    """One row for each round, one for the start."""
    names = ["pairs", "kept", "win: initial", "win: before", "words", "repeat", "flips", "agrees"]
    gold = "checks" if any(r.checks for r in rounds) else "oracle" if any(r.oracle for r in rounds) else None
    columns = [Column("round", width=6), *(Column(name, "right", gap=2) for name in names)]
    columns += [Column(gold, "right", gap=2)] if gold else []
    base = rounds[0].base
    first = [f"{base.words:.1f}", percent(base.repetition), "", ""]
    start = ["start", "", "", "", "", *first]
    found = rounds[0].checks or rounds[0].oracle
    rows = [start + ([_number(found.before if found else None)] if gold else [])]
    for r in rounds:
        judge = r.judge
        agrees = None if judge is None or judge.agreement is None else judge.agreement.rate
        row = [
            str(r.round), str(r.pairs), _share(r.kept_share), _win(r.initial), _win(r.previous),
            f"{r.answers.words:.1f}", percent(r.answers.repetition),
            _share(judge.flip_rate if judge else None), _share(agrees),
        ]  # fmt: skip
        rows.append(row + ([_gold(r.checks or r.oracle)] if gold else []))
    return plain_table(columns, rows)


def _share(rate: float | None) -> str:
    return "" if rate is None else percent(rate)


def _win(found: Against | None) -> str:
    if found is None or found.win_rate is None or found.ci95 is None:
        return ""
    return f"{percent(found.win_rate)} [{found.ci95[0] * 100:.0f}, {found.ci95[1] * 100:.0f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _gold(found: Gold | None) -> str:
    if found is None or found.after is None or found.ci95 is None:
        return ""
    return f"{found.after:.3f} ({found.gain:+.3f} [{found.ci95[0]:+.3f}, {found.ci95[1]:+.3f}])"
