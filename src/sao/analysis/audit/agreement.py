"""Who else judged a run's answers (panel, other recipes, people), and how often they agree with the first
judge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np

from sao.analysis.audit.labels import Words
from sao.analysis.audit.tally import EVERY, RateSums
from sao.pipeline.reader import Reader
from sao.records import Judgment, Prompt, Response
from sao.results.audit import Agreement
from sao.stages import pairs
from sao.statistics import cohen_kappa

Judged = tuple[Prompt, list[Response], list[Judgment]]
"""A prompt, its answers, the verdicts on them."""
Both = tuple[Words, Words]
"""What the first judge and another say of one prompt's answers."""


def agreements(run: Reader, panel: pairs.Panel, people: Words) -> dict[str, Agreement]:
    """The first judge's agreement with whoever else judged the same answers, by name."""
    return {name: agreement(prompts) for name, prompts in _others(run, panel, people)}


def _others(run: Reader, panel: pairs.Panel, people: Words) -> Iterator[tuple[str, Iterator[Both]]]:
    first = run.judges[0].name

    def beside(others: Iterator[Judged], name: str) -> Iterator[Both]:
        for ours, theirs in zip(run.judged(), others, strict=True):
            yield words_of(ours, first, panel), words_of(theirs, name, panel)

    for judge in run.judges[1:]:
        yield judge.name, beside(run.judged(), judge.name)
    for name, judged in run.judged_beside():
        yield name, beside(judged, name)
    if people:
        ours = (words_of(group, first, panel) for group in run.judged())
        yield "people", ((words, {pair: people[pair] for pair in words if pair in people}) for words in ours)


def words_of(group: Judged, judge: str, panel: pairs.Panel) -> Words:
    """One judge's verdict on each pair of a prompt's answers that it judged."""
    _, answers, judgments = group
    own = [judgment for judgment in judgments if judgment.judge == judge]
    words: Words = {}
    for a, b in combinations(sorted(answers, key=lambda answer: answer.id), 2):
        opinion = pairs.opinion_on([a, b], own, EVERY, panel)
        if opinion.reason is None:
            words[a.id, b.id] = (opinion.lean > pairs.TINY) - (opinion.lean < -pairs.TINY)
    return words


def agreement(prompts: Iterable[Both]) -> Agreement:
    """How often two judges say the same, where both say anything; Cohen's κ over first, second and tie."""
    table, same = np.zeros((3, 3)), RateSums()
    for ours, theirs in prompts:
        both = ours.keys() & theirs.keys()
        for pair in both:
            table[ours[pair] + 1, theirs[pair] + 1] += 1
        same.add(sum(ours[pair] == theirs[pair] for pair in both), len(both))
    decided = table[np.ix_([0, 2], [0, 2])]
    kappa, rate = cohen_kappa(table), same.rate()
    return Agreement(
        pairs=rate.n,
        agreement=rate.rate,
        ci95=rate.ci95,
        kappa=None if math.isnan(kappa) else kappa,
        agreement_where_both_decide=float(np.trace(decided) / decided.sum()) if decided.any() else None,
    )
