"""What a run's judge is worth: `sao audit RUN`. A run folder in, a summary and a table out; nothing is
written.

Every rate has a 95 % interval whose unit is the prompt. Where gold is known (the proving ground's oracle;
elsewhere people's labels by `sao label`), accuracy and calibration are measured; without it the judge's own
consistency has to do. The paper (arXiv 2510.06652) reports none of this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np

from sao.analysis.audit.judge_tests import self_tests
from sao.analysis.audit.show import show_audit, verdict_on
from sao.analysis.audit.tally import EVERY, Curve, Rate, Tally
from sao.data.readers import id_text, kind_of
from sao.errors import DataError
from sao.pipeline.reader import Reader
from sao.records import Judgment, Prompt, Response
from sao.stages import pairs
from sao.stages.calibration import Calibration
from sao.statistics import cohen_kappa

__all__ = ["audit", "self_tests", "show_audit", "verdict_on"]


def audit(run: Reader, labels: Path | None = None) -> dict[str, Any]:
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
    jury, seen = run.jury(), pairs.calibrate(run.judged())
    tallies = {juror.name: Tally(seen.get(juror.name, Calibration())) for juror in run.judges}
    same, curve = Rate(), Curve()
    for prompt, answers, judgments in run.judged():
        same.add(len(answers) > 1 and len({a.text for a in answers}) == 1, 1)
        gold = {a.id: run.oracle(prompt.text, a.text) for a in answers} if run.oracle else {}
        for name, tally in tallies.items():
            tally.see(answers, [j for j in judgments if j.judge == name], gold)
        curve.see(answers, judgments, gold, people, jury)
    possible = run.config.personas.n * run.config.responses.n * (run.config.responses.n - 1) // 2
    judges = {name: tally.summary() for name, tally in tallies.items()}
    first = run.judges[0].name
    found: dict[str, Any] = {
        "judge": judges[first],
        "panel": {name: summary for name, summary in judges.items() if name != first},
        "kept": _kept(run, possible, people),
        "same_answers": same.summary(),
        "calibration": curve.calibration(),
        "coverage": curve.coverage(possible),
        "agreement": {name: _agreement(words) for name, words in _compared(run, first, jury, people)},
    }
    return found | {"verdict": verdict_on(found)}


def _kept(run: Reader, possible: int, people: Words) -> dict[str, Any]:
    """The pairs that were kept: share and, against oracle and people, the share of right labels."""
    n, gold, human, longer = 0, Rate(), Rate(), Rate()
    for prompt, group in groupby(run.labelled(), key=lambda row: row[0]):
        counts = [[0, 0], [0, 0], [0, 0]]
        for _, pair, chosen, rejected in group:
            n += 1
            a, b = len(chosen.text), len(rejected.text)
            x, y = (run.oracle(prompt.text, r.text) if run.oracle else None for r in (chosen, rejected))
            low, high = sorted((pair.chosen_id, pair.rejected_id))
            word = people.get((low, high), 0)
            for count, known, hit in (
                (counts[0], x is not None and y is not None and x != y, (x or 0) > (y or 0)),
                (counts[1], word != 0, (word > 0) == (pair.chosen_id == low)),
                (counts[2], a != b, a > b),
            ):
                count[0] += known and hit
                count[1] += known
        for rate, count in zip((gold, human, longer), counts, strict=True):
            rate.add(*count)
    right = gold.summary()
    found: dict[str, Any] = {
        "pairs": n,
        "share": n / possible if possible else None,
        "label_accuracy": right["rate"],
        "ci95": right["ci95"],
        "longer_chosen_rate": longer.summary()["rate"],
    }
    by_people = human.summary()
    return found | ({"by_people": by_people} if by_people["n"] else {})


# Other judges and people.

_WORDS = {"first": 1, "second": -1, "tie": 0}
Words = dict[tuple[str, str], int]
"""What somebody says of two answers, by their ids in order: 1 the first, −1 the second, 0 a tie."""
Judged = tuple[Prompt, list[Response], list[Judgment]]


def _compared(
    run: Reader, first: str, jury: pairs.Jury, people: Words
) -> Iterator[tuple[str, Iterator[tuple[Words, Words]]]]:
    """Whoever else judged the same answers, with the first judge's words and theirs, prompt by prompt."""

    def beside(others: Iterator[Judged], name: str) -> Iterator[tuple[Words, Words]]:
        for ours, theirs in zip(run.judged(), others, strict=True):
            yield _words(ours, first, jury), _words(theirs, name, jury)

    for juror in run.judges[1:]:
        yield juror.name, beside(run.judged(), juror.name)
    for name, stream in run.judged_beside():
        yield name, beside(stream, name)
    if people:
        words = (_words(group, first, jury) for group in run.judged())
        yield "people", ((ours, {key: people[key] for key in ours if key in people}) for ours in words)


def _words(group: Judged, judge: str, jury: pairs.Jury) -> Words:
    """One judge's word on each pair of a prompt's answers that it judged."""
    found: Words = {}
    _, answers, judgments = group
    own = [j for j in judgments if j.judge == judge]
    for a, b in combinations(sorted(answers, key=lambda r: r.id), 2):
        opinion = pairs.opinion_on([a, b], own, EVERY, jury)
        if opinion.reason is None:
            found[a.id, b.id] = (opinion.lean > pairs.TINY) - (opinion.lean < -pairs.TINY)
    return found


def _agreement(words: Iterable[tuple[Words, Words]]) -> dict[str, Any]:
    """How often two judges say the same, where both say anything; Cohen's κ over first, second and tie."""
    table, rate = np.zeros((3, 3)), Rate()
    for ours, theirs in words:
        both = ours.keys() & theirs.keys()
        for key in both:
            table[ours[key] + 1, theirs[key] + 1] += 1
        rate.add(sum(ours[key] == theirs[key] for key in both), len(both))
    decided = table[np.ix_([0, 2], [0, 2])]
    kappa, same = cohen_kappa(table), rate.summary()
    return {
        "pairs": same["n"],
        "agreement": same["rate"],
        "ci95": same["ci95"],
        "kappa": None if math.isnan(kappa) else kappa,
        "agreement_where_both_decide": float(np.trace(decided)) / float(decided.sum())
        if decided.any()
        else None,
    }


def read_labels(path: Path, must: bool) -> Words:
    """People's verdicts from a file of lines {"first_id", "second_id", "verdict", "by"}: each one's last word
    on a pair, and of several people the sum. A line without a verdict takes back that person's last word on
    its "prompt_id".

    Raises DataError where a line is no label, or where the file is not there but `must` be.
    """
    if not path.is_file():
        if must:
            raise DataError(f"{path}: no such file of labels. Make one with `sao label RUN`")
        return {}
    last: dict[tuple[str, str], tuple[str, str, int] | None] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break  # torn by a kill
            raise DataError(f"{place}: not a label, nor JSON ({error}). Mend or delete the line") from error
        if not isinstance(row, dict) or row.get("verdict", "") not in (None, *_WORDS):
            raise DataError(
                f"{place}: not a label (it needs first_id, second_id and verdict: first, second or tie)"
            )
        by, prompt = _id(row, "by", place, ""), _id(row, "prompt_id", place, "")
        if row["verdict"] is None:
            last[by, prompt] = None
            continue
        first, second = _id(row, "first_id", place), _id(row, "second_id", place)
        low, high = sorted((first, second))
        word = _WORDS[row["verdict"]]
        last[by, prompt or f"{low}:{high}"] = (low, high, word if first == low else -word)
    found: Words = {}
    for low, high, word in filter(None, last.values()):
        found[low, high] = found.get((low, high), 0) + word
    return {pair: (total > 0) - (total < 0) for pair, total in found.items()}


def _id(row: dict[str, Any], key: str, place: str, default: str | None = None) -> str:
    """The id or name under a key of a label; `default`, where one is given, for null and for a key that is
    not there."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    text = id_text(value)
    if not text and (default is None or value != default):
        raise DataError(
            f"{place}: not a label (under {key} stands {kind_of(value)}, and no id). Mend or delete the line"
        )
    return text
