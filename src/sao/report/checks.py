"""What checkable prompts say, as text: the judge on constraints, and before and after training."""

from __future__ import annotations

from collections.abc import Iterator

from sao.results.checks import CheckedGain, ChecksAudit, ChecksOutcome, Texts
from sao.tables import Column, percent, percent_with_interval, plain_table

LEFT_OUT = "not counted, since nearly all answers keep them, or nearly none: "


def judge_on_checks(found: ChecksAudit) -> Iterator[str]:
    """The judge's accuracy on constraints, and a table of the kinds."""
    rate, both = found.accuracy, found.both_orders
    shares = percent_with_interval(rate.rate, rate.ci95), percent_with_interval(both.rate, both.ci95)
    yield f"on constraints             {shares[0]} of {rate.n} verdicts are for the answer that keeps more;"
    yield f"                           both orders summed: {shares[1]} of {both.n} pairs"
    columns = [Column("kind", width=24), Column("answers that keep it", "right", width=22)]
    columns.append(Column("judge's accuracy", "right", width=26))
    rows = [
        [
            kind.kind,
            percent(kind.kept.rate),
            f"{percent_with_interval(kind.accuracy.rate, kind.accuracy.ci95)} of {kind.accuracy.n}",
        ]
        for kind in found.kinds
        if kind.counted
    ]
    if rows:
        yield ""
        yield from plain_table(columns, rows)
    if found.left_out:
        yield LEFT_OUT + ", ".join(found.left_out)


def before_and_after(found: ChecksOutcome) -> Iterator[str]:
    """The constraints kept before and after, by kinds that were trained on and others, and what would show
    gaming."""
    for name, gain in (("trained", found.trained), ("unseen", found.unseen)):
        if gain.n:
            yield f"constraints  {name} kinds: {_gain(gain)} (95 %, {gain.n} held-out prompts)"
            yield f"             {_gaming(gain)}"
    yield f"             answers {_texts(found.base, found.tuned)}"
    if found.left_out:
        yield f"             {LEFT_OUT}{', '.join(found.left_out)}"


def kinds_table(found: ChecksOutcome) -> list[str]:
    """A row for each kind."""
    columns = [
        Column("kind", width=24),
        Column("prompts", "right", width=8),
        Column("before", "right", width=8),
    ]
    columns += [Column("after", "right", width=8), Column("gain", "right", width=24)]
    columns += [Column("constant", "right", width=9), Column("", width=20)]
    rows = []
    for kind in found.kinds:
        notes = [*([] if kind.trained else ["unseen"]), *([] if kind.counted else ["not counted"])]
        low, high = kind.ci95 or (0.0, 0.0)
        change = f"{kind.gain or 0.0:+z.3f} [{low:+z.3f}, {high:+z.3f}]"
        cells = [percent(kind.before), percent(kind.after), change, percent(kind.constant)]
        rows.append([kind.kind, f"{kind.n}", *cells, ", ".join(notes)])
    return plain_table(columns, rows)


def _gain(found: CheckedGain) -> str:
    low, high = found.ci95 or (0.0, 0.0)
    return f"{found.before:.3f} → {found.after:.3f}: gain {found.gain:+z.3f} [{low:+z.3f}, {high:+z.3f}]"


def _gaming(found: CheckedGain) -> str:
    low, high = found.beyond_ci95 or (0.0, 0.0)
    return (
        f"of this brevity alone {found.brevity:+z.3f}, beyond it {found.beyond_brevity:+z.3f} "
        f"[{low:+z.3f}, {high:+z.3f}]; a constant answer keeps {found.constant:.3f}"
    )


def _texts(base: Texts, tuned: Texts) -> str:
    parts = [
        f"words {base.words:.1f} → {tuned.words:.1f}",
        f"repetition {base.repetition:.3f} → {tuned.repetition:.3f}",
        f"finished {percent(base.finished)} → {percent(tuned.finished)}",
        f"distinct {percent(base.distinct)} → {percent(tuned.distinct)}",
    ]
    if base.base_logprob is not None and tuned.base_logprob is not None:
        parts.append(f"base's log-probability {base.base_logprob:.2f} → {tuned.base_logprob:.2f} a token")
    return "; ".join(parts)
