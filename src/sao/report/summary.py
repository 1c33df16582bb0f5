"""A run's summary as text: examples, funnel, judge, before and after, paths."""

from __future__ import annotations

from collections.abc import Iterator

from sao.report.checks import before_and_after, kinds_table
from sao.report.rounds import rounds_lines
from sao.results.base import Interval, StageCounts
from sao.results.summary import Gain, HeldOut, OracleWins, Spent, Summary
from sao.tables import Column, percent, plain_table

LONGEST = 160
"""Characters of a text in an example."""


def show_summary(summary: Summary) -> str:
    """The summary as text."""
    lines = [] if summary.worked else ["Nothing to do: this run is finished."]
    for example in summary.examples:
        lines += ["", f"  asked:  {_short(example.prompt)}"]
        lines += [f"  before: {_short(example.before)}", f"  after:  {_short(example.after)}"]
    lines += ["", *funnel_table(summary.funnel)]
    lines += _judge_lines(summary)
    lines += _usage_lines(summary.usage) if summary.usage else []
    lines += _outcome_lines(summary)
    lines += ["", *rounds_lines(summary)] if summary.rounds else []
    lines += ["", *(f"{name:12} {path}" for name, path in summary.paths.items())]
    return "\n".join(lines)


def funnel_table(funnel: list[StageCounts]) -> list[str]:
    """What each stage let through and why it dropped the rest."""
    columns = [
        Column("stage", width=12),
        Column("kept", "right", width=8),
        Column("dropped", "right", width=8),
        Column("reasons", gap=2),
    ]
    rows = [
        [
            row.stage,
            str(row.records),
            str(row.dropped),
            ", ".join(f"{why} {n}" for why, n in row.reasons.items()),
        ]
        for row in funnel
    ]
    return plain_table(columns, rows)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "…"


def _judge_lines(summary: Summary) -> Iterator[str]:
    judge, kept = summary.judge, summary.kept
    if judge is None:
        return
    rates = {
        "accuracy": judge.accuracy,
        "first slot wins": judge.first_slot_rate,
        "flips when swapped": judge.flip_rate,
    }
    parts = ", ".join(f"{name} {percent(rate)}" for name, rate in rates.items() if rate is not None)
    yield f"\njudge        {judge.verdicts} verdicts, {judge.unparseable} unparseable; {parts}"
    if kept is not None and kept.share is not None:
        labels = "" if kept.label_accuracy is None else f", label accuracy {percent(kept.label_accuracy)}"
        yield f"pairs kept   {percent(kept.share)}{labels}"
    if summary.verdict:
        yield f"verdict      {summary.verdict}"


def _usage_lines(usage: Spent) -> list[str]:
    cost = f"; cost {usage.cost:.2f}" if usage.cost else ""
    return [
        f"server       {usage.requests:,} requests, {usage.retries:,} of them sent again; "
        f"{usage.prompt_tokens:,} tokens in, {usage.completion_tokens:,} out{cost}"
    ]


def _outcome_lines(summary: Summary) -> Iterator[str]:
    oracle, heldout = summary.oracle, summary.heldout
    if oracle is not None and oracle.n:
        yield f"oracle       {_gain(oracle)} (95 %, {oracle.n} held-out prompts)"
        if oracle.unseen.n:
            unseen = f"the {oracle.unseen.n} of them whose text is in no training prompt"
            yield f"  unseen     {_gain(oracle.unseen)} ({unseen})"
    if summary.checks is not None:
        yield from before_and_after(summary.checks)
        yield from ("", *kinds_table(summary.checks), "")
    if heldout is not None and heldout.n:
        yield from _held_out_lines(heldout)
        if oracle is not None and oracle.verdict.n:
            yield _oracle_line(oracle.verdict)
        if heldout.cut_off.base or heldout.cut_off.tuned:
            cut = f"base {heldout.cut_off.base}, tuned {heldout.cut_off.tuned}"
            yield f"             answers cut off or empty: {cut}"


def _held_out_lines(heldout: HeldOut) -> Iterator[str]:
    yield (
        f"self-judged  win {heldout.win}, tie {heldout.tie}, loss {heldout.loss}: "
        f"{_win_rate(heldout.win_rate, heldout.ci95)}, p {heldout.p:.2g}; "
        f"words {heldout.words_base:.1f} → {heldout.words_tuned:.1f}"
    )
    yield f"             {heldout.label}"


def _oracle_line(wins: OracleWins) -> str:
    agrees = (
        ""
        if wins.agreement is None
        else f"; where both decide ({wins.both}) they agree on {percent(wins.agreement)}"
    )
    counts = f"win {wins.win}, tie {wins.tie}, loss {wins.loss}"
    return f"  the oracle {counts}: {_win_rate(wins.win_rate, wins.ci95)}{agrees}"


def _win_rate(rate: float | None, interval: Interval | None) -> str:
    low, high = interval or (0.0, 1.0)
    return f"{percent(rate)} [{100 * low:.1f}, {100 * high:.1f}]"


def _gain(found: Gain) -> str:
    low, high = found.ci95 or (0.0, 0.0)
    return f"{found.before:.3f} → {found.after:.3f}: gain {found.gain:+z.3f} [{low:+z.3f}, {high:+z.3f}]"
