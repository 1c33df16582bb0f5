"""What a finished run says of each held-out prompt, and of the labels that it trained on.

The held-out prompts fall into two halves by a hash of their text: the choice half says which setting is best,
the report half how good it is. A prompt is in the same half in every cell, however large the run grows, and
prompts of the same text are never in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from sao import checks
from sao.analysis.audit.constraints import KindTally
from sao.analysis.audit.tally import RateSums
from sao.evaluation.compare import POINTS
from sao.pipeline.reader import Reader
from sao.pipeline.settings import own_pairs
from sao.records import Constraint, Prompt, make_id
from sao.results.base import Rate
from sao.results.sweep import Half, Measured, MeasureName, Pair, PromptScores
from sao.statistics import mean, prompt_points

HALVES: tuple[Half, Half] = ("choice", "report")
MEASURES: tuple[MeasureName, ...] = ("checks", "checks_unseen", "oracle", "win_rate", "words")


def half_of(prompt: Prompt) -> Half:
    """The half that a held-out prompt belongs to."""
    return HALVES[int(make_id("half", prompt.conversation), 16) % 2]


# Prompts.


def prompt_scores(run: Reader) -> list[PromptScores]:
    """The scores of all held-out prompts that both models answered."""
    points = _win_points(run) if run.round.has("comparisons") else {}
    kinds = KindTally((prompt, [base.text]) for prompt, base, _ in run.held_out())
    return [
        PromptScores(
            id=prompt.id,
            half=half_of(prompt),
            win_rate=points.get(prompt.id),
            oracle=_oracle(run, prompt, base.text, tuned.text),
            checks=_kept(kinds.counted(prompt), checks.TRAINED, base.text, tuned.text),
            checks_unseen=_kept(kinds.counted(prompt), checks.UNSEEN, base.text, tuned.text),
            words=(len(base.text.split()), len(tuned.text.split())),
        )
        for prompt, base, tuned in run.held_out()
    ]


def _win_points(run: Reader) -> dict[str, float]:
    """The trained model's points by prompt, both orders averaged; equal answers are ties."""
    rows: list[tuple[str, str, float | None]] = [
        (prompt.id, "", 0.5) for prompt, base, tuned in run.held_out() if base.text == tuned.text
    ]
    for comparison in run.compared():
        points = None if comparison.winner is None else POINTS[comparison.winner]
        rows.append((comparison.prompt_id, comparison.order, points))
    found = prompt_points(rows) if rows else None
    return {} if found is None else dict(zip(found.ids, found.values.tolist(), strict=True))


def _oracle(run: Reader, prompt: Prompt, before: str, after: str) -> Pair | None:
    if run.oracle is None:
        return None
    return _both(run.oracle(prompt.conversation, before), run.oracle(prompt.conversation, after))


def _kept(counted: Sequence[Constraint], kinds: Sequence[str], before: str, after: str) -> Pair | None:
    """The share of the counted constraints of these kinds that each answer keeps."""
    asked = [constraint for constraint in counted if constraint.kind in kinds]
    return _both(checks.score(before, asked), checks.score(after, asked))


def _both(before: float | None, after: float | None) -> Pair | None:
    return None if before is None or after is None else (before, after)


def values_of(scores: Sequence[PromptScores], measure: MeasureName, half: Half) -> dict[str, float]:
    """A measure by prompt: points, or after less before."""
    found: dict[str, float] = {}
    for score in scores:
        value = getattr(score, measure) if score.half == half else None
        if value is not None:
            found[score.id] = value if measure == "win_rate" else value[1] - value[0]
    return found


def measured(scores: Sequence[PromptScores]) -> list[Measured]:
    """All measures on both halves."""
    return [_measured(scores, measure, half) for measure in MEASURES for half in HALVES]


def _measured(scores: Sequence[PromptScores], measure: MeasureName, half: Half) -> Measured:
    values = list(values_of(scores, measure, half).values())
    found: dict[str, float | None] = {}
    if values:
        center = mean(values)
        found["mean"] = center
        if len(values) > 1:
            squares = sum((value - center) ** 2 for value in values)
            found["se"] = math.sqrt(squares / (len(values) - 1) / len(values))
    pairs = [getattr(score, measure) for score in scores if score.half == half and measure != "win_rate"]
    if pairs := [pair for pair in pairs if pair is not None]:
        found["before"], found["after"] = (mean([pair[side] for pair in pairs]) for side in (0, 1))
    return Measured(measure=measure, half=half, n=len(values), **found)


# Labels.


@dataclass(frozen=True)
class Labels:
    """How many pairs a run trained on, and how right they and their judge are."""

    trained: int | None = None
    label_accuracy: Rate | None = None
    judge_accuracy: Rate | None = None


def labels_of(run: Reader) -> Labels:
    """The labels of a run against gold; nothing of a run that trained on given pairs."""
    if not own_pairs(run.config):
        return Labels()
    labelled = ((prompt, _prefers(run, prompt, a.text, b.text)) for prompt, _, a, b in run.labelled())
    trained = run.stage("train").counts.records
    return Labels(trained, _rate(labelled), _rate(_right_verdicts(run)))


def _right_verdicts(run: Reader) -> Iterator[tuple[Prompt, bool | None]]:
    """For each decided verdict of the first judge, its prompt and whether gold agrees."""
    name = run.judges[0].name
    for prompt, answers, judgments in run.judged():
        texts = {answer.id: answer.text for answer in answers}
        for verdict in judgments:
            if verdict.judge == name and verdict.winner_id is not None:
                loser = verdict.second_id if verdict.verdict == "first" else verdict.first_id
                yield prompt, _prefers(run, prompt, texts[verdict.winner_id], texts[loser])


def _prefers(run: Reader, prompt: Prompt, one: str, other: str) -> bool | None:
    """Whether gold prefers the first of two answers; None where it does not say."""
    if run.gold is None:
        return None
    first, second = run.gold(prompt.conversation, one), run.gold(prompt.conversation, other)
    return None if first is None or second is None or first == second else first > second


def _rate(said: Iterable[tuple[Prompt, bool | None]]) -> Rate | None:
    """How often it is true, of what is known, with an interval by prompt; None of nothing."""
    sums = RateSums()
    for _, group in groupby(said, key=lambda row: row[0].id):
        known = [right for _, right in group if right is not None]
        sums.add(sum(known), len(known))
    return sums.rate() if sums.of else None
