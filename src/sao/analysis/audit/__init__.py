"""What a run's judge is worth: `sao audit RUN`. A run folder in, an `Audit` out; nothing is written.

Every rate has a 95 % interval whose unit is the prompt. Where gold is known (the toy world's oracle;
elsewhere people's labels by `sao label`), accuracy and calibration are measured; without it the judge's own
consistency has to do. The paper (arXiv 2510.06652) reports none of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from sao.analysis.audit.agreement import agreements
from sao.analysis.audit.constraints import JudgeOnChecks, KindTally
from sao.analysis.audit.judge_tests import self_tests
from sao.analysis.audit.labels import Words, read_labels
from sao.analysis.audit.tally import Counts, Curve, RateSums, Tally
from sao.analysis.audit.verdict import verdict_on
from sao.evaluation.compare import Oracle
from sao.pipeline.reader import Reader
from sao.records import PreferencePair, Response
from sao.results.audit import Audit, JudgeAudit, KeptLabels
from sao.results.base import Rate
from sao.stages import pairs
from sao.stages.calibration import Calibration
from sao.stages.rows import pairs_each

__all__ = ["audit", "possible_pairs", "read_labels", "self_tests", "verdict_on"]


def _figures(tally: Tally, scores_alone: bool) -> JudgeAudit:
    """A judge's figures. What hangs on the order is not known of one that scores each answer by itself: its
    two orders agree whatever it is worth."""
    found, unknown = tally.figures(), Rate(rate=None, ci95=(0.0, 1.0), n=0)
    if not scores_alone:
        return found
    return found.model_copy(
        update={"first_slot_rate": unknown, "flip_rate": unknown, "order_agreement": None}
    )


def audit(run: Reader, labels: Path | None = None) -> Audit:
    """All that the run's files say about its judges.

    Args:
        run: A run whose pairs are made.
        labels: People's verdicts (see `sao.analysis.label`); RUN/labels.jsonl is taken by itself where it is
            there.

    Raises:
        StoreError: The run's pairs are not made yet.
        DataError: `labels` cannot be read.

    """
    people = read_labels(labels or run.root / "labels.jsonl", must=labels is not None)
    panel, calibrations = run.panel(), pairs.calibrate(run.judged())
    tallies = {judge.name: Tally(calibrations.get(judge.name, Calibration())) for judge in run.judges}
    on_checks = None
    if run.checks is not None:
        kinds = KindTally((prompt, [a.text for a in answers]) for prompt, answers in run.answered())
        on_checks = JudgeOnChecks(kinds, panel)
    same_answers, curve = RateSums(), Curve()
    for prompt, answers, judgments in run.judged():
        same_answers.add(len(answers) > 1 and len({a.text for a in answers}) == 1, 1)
        gold = {a.id: run.gold(prompt.conversation, a.text) for a in answers} if run.gold else {}
        for name, tally in tallies.items():
            tally.see(answers, [j for j in judgments if j.judge == name], gold)
        if on_checks is not None:
            on_checks.see(prompt, answers, [j for j in judgments if j.judge == run.judges[0].name])
        curve.see(answers, judgments, gold, people, panel)
    first, *others = run.judges
    figures = {name: _figures(tally, run.scores_alone) for name, tally in tallies.items()}
    judge, coverage = figures[first.name], curve.coverage(possible_pairs(run))
    compared = agreements(run, panel, people)
    by_people = compared["people"].agreement_where_both_decide if "people" in compared else None
    return Audit(
        verdict=verdict_on(judge, coverage, by_people),
        judge=judge,
        panel={other.name: figures[other.name] for other in others},
        kept=_kept_labels(run, people),
        checks=None if on_checks is None else on_checks.figures(),
        same_answers=same_answers.rate(),
        calibration=curve.calibration(),
        coverage=coverage,
        agreement=compared,
    )


def possible_pairs(run: Reader) -> int:
    """How many pairs the answers to all training prompts make."""
    return run.config.personas.n * pairs_each(run.config.responses.n)


def _kept_labels(run: Reader, people: Words) -> KeptLabels:
    """The pairs that were kept: their share and, against oracle and people, the accuracy of their labels."""
    kept = 0
    sums = {name: RateSums() for name in ("by_oracle", "by_people", "longer_chosen")}
    for prompt, group in groupby(run.labelled(), key=lambda row: row[0]):
        counts = Counts()
        for _, pair, chosen, rejected in group:
            kept += 1
            for name, hit in _agreements(run.gold, people, prompt.conversation, pair, chosen, rejected):
                counts.note(name, hit)
        for name, (hits, of) in counts.items():
            sums[name].add(hits, of)
    possible, by_people = possible_pairs(run), sums["by_people"].rate()
    return KeptLabels(
        pairs=kept,
        share=kept / possible if possible else None,
        label_accuracy=sums["by_oracle"].rate(),
        longer_chosen_rate=sums["longer_chosen"].rate(),
        by_people=by_people if by_people.n else None,
    )


def _agreements(
    gold: Oracle | None,
    people: Words,
    prompt: str,
    pair: PreferencePair,
    chosen: Response,
    rejected: Response,
) -> Iterator[tuple[str, bool]]:
    """Whether oracle and people agree with a label, and whether the chosen answer is the longer one, each
    where it can be said."""
    scores = (gold(prompt, chosen.text), gold(prompt, rejected.text)) if gold else (None, None)
    if scores[0] is not None and scores[1] is not None and scores[0] != scores[1]:
        yield "by_oracle", scores[0] > scores[1]
    low, high = sorted((pair.chosen_id, pair.rejected_id))
    if word := people.get((low, high), 0):
        yield "by_people", (word > 0) == (pair.chosen_id == low)
    if len(chosen.text) != len(rejected.text):
        yield "longer_chosen", len(chosen.text) > len(rejected.text)
