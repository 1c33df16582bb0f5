"""When a stage loses too much: what the user is told, and how soon.

A hopeless stage ends after its first rows: once the FIRST rows that it asks for are all in, it ends if the
lower 95 % bound of the lost share lies above `max_drop_share`. Which rows these are follows from the stage
alone, so a run that was killed ends at the same place. Later the share itself is watched, and once more at
the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from sao.errors import DropError
from sao.records import Comparison, Drop, Judgment
from sao.statistics import wilson

if TYPE_CHECKING:
    from sao.records import Record
    from sao.store.stage import Stage

FIRST = 32
"""Rows on which a stage is judged early."""
WATCHED_FROM = 500
"""Rows from which on the share is watched while the stage works."""
SHOWN = 3
SHOWN_TEXT = 300
"""Texts that a message shows, and characters of each."""

UNPARSEABLE = "unparseable verdict"
ADVICE = {
    "no marker": "put the marker at the start of the reply (--prompts.prefill true), or let the model write "
    "as the user (--prompts.method user_turn)",
    "answers itself": "let the model write as the user (--prompts.method user_turn)",
    "no conversation": "take the template of conversations out of prompts.mix",
    "empty": "look at the chat template, and at the temperature of this stage",
    UNPARSEABLE: "give the judge's reply a beginning (--judging.prefill), other words (--judging.choices), "
    "another template or another judge; where your own function judges, look at when it returns None",
}
CUT = {
    "personas": "--personas.writing.max_tokens", "drafts": "--personas.writing.max_tokens",
    "prompts": "--prompts.max_tokens",
    "responses": "--responses.max_tokens",
}  # fmt: skip


class DropWatch:
    """Counts what one stage loses, and raises DropError where it is too much."""

    def __init__(self, stage: Stage, limit: float, rows: Iterable[int] = ()) -> None:
        """`rows` are those that the stage asks for, in order; `limit` is max_drop_share. Rows that lie in the
        stage's part files already are counted."""
        self.stage, self.limit = stage, limit
        self.done = self.lost = 0
        self.reasons: dict[str, int] = {}
        self.texts: dict[int, str] = {}
        self._first = set(islice(rows, FIRST))
        self._waiting = set(self._first)
        self._lost_first: dict[int, str] = {}
        for row in stage.written():
            self._see(row["row"], *_lost_row(row))
        self._check_first()

    def see(self, record: Record | Drop) -> None:
        """One row that came."""
        self._see(record.row, *lost(record))
        if record.row in self._first:
            self._check_first()
        if self.done >= WATCHED_FROM and self.lost / self.done > self.limit:
            raise self.error(self.lost, self.done)

    def _see(self, row: int, reason: str | None, text: str | None) -> None:
        self.done += 1
        self._waiting.discard(row)
        if reason is None:
            return
        self.lost += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if row in self._first:
            self._lost_first[row] = reason
        if text and (len(self.texts) < SHOWN or row < max(self.texts)):
            self.texts[row] = text
            while len(self.texts) > SHOWN:
                del self.texts[max(self.texts)]

    def _check_first(self) -> None:
        if len(self._first) < FIRST or self._waiting or wilson(len(self._lost_first), FIRST)[0] <= self.limit:
            return
        self.reasons = dict(Counter(self._lost_first.values()))
        raise self.error(len(self._lost_first), FIRST, "the first ")

    def error(self, lost: int, of: int, which: str = "") -> DropError:
        """What is lost, three of the texts, and what to change."""
        common = sorted(self.reasons.items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"{reason} ({n})" for reason, n in common)
        shown = "".join(f"\n  - {short(text)}" for _, text in sorted(self.texts.items()))
        advice = list(
            dict.fromkeys(change for reason, _ in common if (change := _advice(reason, self.stage.name)))
        )
        return DropError(
            f"{self.stage.name}: {lost} of {which}{of} items were lost, more than max_drop_share = "
            f"{self.limit:g}. Commonest reasons: {named}."
            + (f" What was written:{shown}\n" if shown else " ")
            + f"What to change: {'; or '.join(advice) or 'the settings of this stage'}. Look at "
            f"{self.stage.path}; to go on nevertheless allow more with --max_drop_share",
            key="max_drop_share",
        )


def lost(record: Record | Drop) -> tuple[str | None, str | None]:
    """Why a row is of no use (None where it is) and what was written. A verdict that cannot be read is no
    drop, but nothing can be learnt from it either."""
    if isinstance(record, Drop):
        return record.reason, record.text
    if isinstance(record, Judgment) and record.verdict is None:
        return UNPARSEABLE, _wrote(record.text, record.verdict_prob)
    if isinstance(record, Comparison) and record.winner is None:
        return UNPARSEABLE, None
    return None, None


def _lost_row(row: dict[str, Any]) -> tuple[str | None, str | None]:
    """The same of a row in a part file."""
    if "verdict" in row and row["verdict"] is None:
        return UNPARSEABLE, _wrote(row.get("text"), row.get("verdict_prob"))
    if "winner" in row and row["winner"] is None:
        return UNPARSEABLE, None
    return row.get("reason"), row.get("text")


def _wrote(text: str | None, verdict_prob: float | None) -> str | None:
    if text is not None or verdict_prob is None:
        return text
    return f"(probability of the verdict's words together: {verdict_prob:.3f})"


def check_finished(stage: Stage, limit: float) -> None:
    """Raise DropError where a finished stage has lost more than `limit`."""
    counts = stage.counts
    dropped, of = counts.dropped, counts.dropped + counts.records
    if not of or dropped / of <= limit:
        return
    watch = DropWatch(stage, limit)
    watch.reasons = dict(counts.reasons)
    watch.texts = dict(islice(((d.row, d.text) for d in stage.drops() if d.text), SHOWN))
    raise watch.error(dropped, of)


def check_readable(stage: Stage, limit: float) -> None:
    """Raise DropError where more than `limit` of a finished stage's verdicts cannot be read."""
    watch = DropWatch(stage, 1.0)
    for judgment in stage.records(Judgment):
        watch.see(judgment)
    watch.limit = limit
    if watch.lost > limit * watch.done:
        raise watch.error(watch.lost, watch.done)


def short(text: str) -> str:
    """A text on one line, cut to what a message shows."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_TEXT else line[: SHOWN_TEXT - 1] + "…"


def _advice(reason: str, stage: str) -> str:
    if stage == "drafts" and reason in ("no marker", "empty"):
        return "take personas from elsewhere (--personas.source builtin:general or a file), or a larger model"
    if reason == "cut off at max_tokens":
        ask = " or ask for short answers (--responses.system)" if stage == "responses" else ""
        return f"allow more tokens ({CUT.get(stage, 'max_tokens')}){ask}"
    return ADVICE.get(reason, "")
