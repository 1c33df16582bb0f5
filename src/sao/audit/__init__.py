"""What a run's judge is worth: `sao audit RUN`. A run folder in, a summary and a table out; nothing is written.

Every rate has a 95 % interval whose unit is the prompt. Where gold is known (the proving ground's oracle, or people's labels by
`sao label`), accuracy and calibration are measured; elsewhere the judge's own consistency has to do. The paper (arXiv 2510.06652)
reports none of this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from sao import pairs
from sao.audit.self_tests import self_tests
from sao.audit.tally import EVERY, Curve, Tally, rate_of
from sao.audit.text import show_audit, verdict_on
from sao.errors import DataError
from sao.evaluation.statistics import cohen_kappa, wilson
from sao.folder import Grouped, RunFolder, named
from sao.store import read_jsonl
from sao.types import Judgment, Prompt, Response, from_dict

__all__ = ["audit", "self_tests", "show_audit", "verdict_on"]


def audit(run: RunFolder, labels: Path | None = None) -> dict[str, Any]:
    """All that the run's files say about its judges.

    Args:
        run: A run whose pairs are made.
        labels: People's verdicts (see `sao.label`); RUN/labels.jsonl is taken by itself where it is there.

    Raises:
        StoreError: The run's pairs are not made yet.
        DataError: `labels` cannot be read.

    """
    people = _people(labels or run.root / "labels.jsonl", must=labels is not None)
    jury = run.jury_at_work()
    tallies = {juror.name: Tally(jury.calibration(juror.name)) for juror in run.jury}
    same: list[float] = []
    curve = Curve()
    for prompt, answers, judgments in run.judged():
        same.append(float(len(answers) > 1 and len({a.text for a in answers}) == 1))
        gold = {a.id: run.oracle(prompt.text, a.text) for a in answers} if run.oracle else {}
        for name, tally in tallies.items():
            tally.see(answers, [j for j in judgments if j.judge == name], gold)
        curve.see(answers, judgments, gold, jury)
    possible = run.config.personas.n * run.config.responses.n * (run.config.responses.n - 1) // 2
    judges = {name: tally.summary() for name, tally in tallies.items()}
    first = run.jury[0].name
    others = {name: _opinions(run.judged(), name, jury) for name in tallies if name != first}
    others |= {name: _opinions(stream, name, jury) for name, stream in _judges_beside(run)}
    found: dict[str, Any] = {
        "judge": judges[first],
        "panel": {name: summary for name, summary in judges.items() if name != first},
        "kept": _kept(run, possible, people),
        "same_answers": rate_of(same, [1.0] * len(same)),
        "calibration": curve.calibration(),
        "coverage": curve.coverage(possible),
        "agreement": {
            name: _agreement(_opinions(run.judged(), first, jury), other)
            for name, other in {**others, **({"people": people} if people else {})}.items()
        },
    }
    return found | {"verdict": verdict_on(found)}


def _kept(run: RunFolder, possible: int, people: dict[tuple[str, str], int]) -> dict[str, Any]:
    """The pairs that were kept: share and, against oracle and people, the share of right labels."""
    n, gold, human = 0, [0, 0], [0, 0]
    longer = shorter = 0
    for prompt, pair, chosen, rejected in run.labelled():
        n += 1
        longer += len(chosen.text) > len(rejected.text)
        shorter += len(chosen.text) < len(rejected.text)
        x, y = (run.oracle(prompt.text, r.text) if run.oracle else None for r in (chosen, rejected))
        if x is not None and y is not None and x != y:
            gold[0] += x > y
            gold[1] += 1
        low, high = sorted((pair.chosen_id, pair.rejected_id))
        word = people.get((low, high), 0)
        if word:
            human[0] += (word > 0) == (pair.chosen_id == low)
            human[1] += 1
    found: dict[str, Any] = {
        "pairs": n,
        "share": n / possible if possible else None,
        "label_accuracy": gold[0] / gold[1] if gold[1] else None,
        "longer_chosen_rate": longer / (longer + shorter) if longer + shorter else None,
    }
    if gold[1]:
        found["ci95"] = list(wilson(*gold))
    if human[1]:
        found["by_people"] = {"label_accuracy": human[0] / human[1], "ci95": list(wilson(*human)), "n": human[1]}
    return found


Words = dict[tuple[str, str], int]
"""What somebody says of two answers, by their ids in order: 1 the first, −1 the second, 0 a tie."""


def _opinions(groups: Iterable[tuple[Prompt, list[Response], list[Judgment]]], judge: str, jury: pairs.Jury) -> Words:
    """One judge's word on each pair that it judged."""
    found: Words = {}
    for _, answers, judgments in groups:
        own = [j for j in judgments if j.judge == judge]
        for a, b in combinations(sorted(answers, key=lambda r: r.id), 2):
            opinion = pairs.opinion_on([a, b], own, EVERY, jury)
            if opinion.reason is None:
                lean = opinion.votes if opinion.margin is None else opinion.margin
                found[a.id, b.id] = (lean > 0) - (lean < 0)
    return found


def _judges_beside(run: RunFolder) -> Iterator[tuple[str, Iterator[tuple[Prompt, list[Response], list[Judgment]]]]]:
    """Finished verdicts by other recipes on the same answers in this folder, under the name of their judge and folder."""
    mine = {stage.path for stage in run.judgments_stages}
    for info in sorted(run.responses_stage.path.parent.glob("judgments-*/stage.json")):
        settings = json.loads(info.read_text("utf-8"))
        if info.parent in mine or settings["counts"] is None:
            continue
        if settings["settings"].get("upstream") != run.responses_stage.fingerprint:
            continue
        name = f"{settings['settings']['method']} ({info.parent.name})"

        def stream(
            path: Path = info.parent, name: str = name
        ) -> Iterator[tuple[Prompt, list[Response], list[Judgment]]]:
            rows = (from_dict(Judgment, row) for row in read_jsonl(path / "records.jsonl"))
            verdicts = Grouped(rows)
            return ((prompt, answers, named(verdicts.take(prompt.id), name)) for prompt, answers in run.answered())

        yield name, stream()


def _agreement(ours: Words, theirs: Words) -> dict[str, Any]:
    """How often two judges say the same, where both say anything; Cohen's κ over first, second and tie."""
    both = ours.keys() & theirs.keys()
    table = np.zeros((3, 3))
    for key in both:
        table[ours[key] + 1, theirs[key] + 1] += 1
    n, same = len(both), float(np.trace(table))
    decided = table[np.ix_([0, 2], [0, 2])]
    kappa = cohen_kappa(table)
    return {
        "pairs": n,
        "agreement": same / n if n else None,
        "ci95": list(wilson(same, n)),
        "kappa": None if math.isnan(kappa) else kappa,
        "agreement_where_both_decide": float(np.trace(decided)) / float(decided.sum()) if decided.any() else None,
    }


def _people(path: Path, must: bool) -> Words:
    """People's verdicts from a file of lines {"first_id", "second_id", "verdict"}; the last word on a pair counts."""
    if not path.is_file():
        if must:
            raise DataError(f"{path}: no such file of labels. Make one with `sao label RUN`")
        return {}
    found: Words = {}
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            first, second = str(row["first_id"]), str(row["second_id"])
            word = {"first": 1, "second": -1, "tie": 0}[row["verdict"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not a label (it needs first_id, second_id and verdict: first, second or tie)"
            ) from error
        found[min(first, second), max(first, second)] = word if first < second else -word
    return found
