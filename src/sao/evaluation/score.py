"""What a comparison comes to: judgments or marks of two sides in, a summary with intervals out.

The unit is the question: the orders of a pair, and the turns of a conversation, are averaged first. Answers
that are the same are ties; verdicts that cannot be read are neither that nor a label, and the bounds say what
they could have made of the figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sao.evaluation.alpaca_files import Annotation
from sao.evaluation.arena import ArenaScore, Game, arena_scores, style_of
from sao.evaluation.compare import wins_ties_losses
from sao.evaluation.length_control import LC, GamedRow, LengthControlled, Row, length_controlled, score_name
from sao.evaluation.questions import Question
from sao.evaluation.sanity_checks import by_length, slot_warning
from sao.evaluation.suites import said
from sao.evaluation.verdicts import parse_arena
from sao.records import Judgment, Rating, Response
from sao.results.evaluation import EffectSize, FittedScore, Marks, MeanMark, WinRate
from sao.statistics import Effect, Points, effect, effect_of_samples, paired, prompt_points

POINTS = {"first": 1.0, "second": 0.0, "tie": 0.5}
"""The first answer's points for a verdict."""
Words = Mapping[str, tuple[int, int]]
"""By question: words of our answer, and of theirs."""
Answers = Mapping[str, Sequence[Response]]
"""By question, one for each turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """AlpacaEval's own files, as far as given: the set's instructions, the baseline's name, difficulties,
    gamed rows."""

    baseline: str = ""
    instructions: Sequence[str] | None = None
    difficulty: Mapping[str, float] | None = None
    gamed: Sequence[GamedRow] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Games:
    """Who played: by question what our side and theirs said, our answer's id, and the question's text;
    `missing` are those that one of them did not answer."""

    texts: Mapping[str, tuple[str, str]]
    ours: Mapping[str, str]
    asked: Mapping[str, str]
    missing: Sequence[str] = ()

    @classmethod
    def of(cls, questions: Iterable[Question], ours: Answers, theirs: Answers) -> Games:
        """The games of two sides on the questions that both answered."""
        questions = list(questions)
        both = [q for q in questions if q.prompt.id in ours and q.prompt.id in theirs]
        return cls(
            texts={q.prompt.id: (said(q, ours[q.prompt.id]), said(q, theirs[q.prompt.id])) for q in both},
            ours={q.prompt.id: ours[q.prompt.id][0].id for q in both},
            asked={q.prompt.id: q.prompt.conversation for q in both},
            missing=sorted({q.prompt.id for q in questions} - {q.prompt.id for q in both}),
        )

    @property
    def tied(self) -> list[str]:
        """The questions to which both said the same: ties that nobody judged."""
        return [id_ for id_, (mine, other) in self.texts.items() if mine == other]

    @property
    def words(self) -> Words:
        """How many words both sides said."""
        return {id_: (len(mine.split()), len(other.split())) for id_, (mine, other) in self.texts.items()}

    def rows(
        self, judgments: Iterable[Judgment], soft: bool = False
    ) -> Iterator[tuple[str, str, float | None]]:
        """(question, order, our points from 0 to 1 or None where unparseable). `soft`: the judge's
        probability, if given."""
        yield from ((id_, "tied", 0.5) for id_ in self.tied)
        yield from ((id_, "missing", None) for id_ in self.missing)
        for judgment in judgments:
            ours_first = judgment.first_id == self.ours[judgment.prompt_id]
            points = POINTS.get(str(judgment.verdict))
            if soft and judgment.p_first is not None and points is not None:
                points = judgment.p_first
            if points is not None and not ours_first:
                points = 1 - points
            yield judgment.prompt_id, "ours first" if ours_first else "theirs first", points

    def points(self, judgments: Iterable[Judgment], soft: bool = False) -> Points:
        """Our points by question; `soft` as in `rows` (AlpacaEval 2's way)."""
        return prompt_points(self.rows(judgments, soft))

    def length_adjusted(
        self, points: Points, resamples: int, seed: int, official: Official | None = None
    ) -> tuple[LengthControlled, str] | None:
        """Our win rate if our answers were as long as theirs, by AlpacaEval's model
        (sao.evaluation.length_control), from soft points; and its name, LC only with all official files. None
        where nothing can be read."""
        rows = []
        for id_, p in zip(points.ids, points.values.tolist(), strict=True):
            mine, other = self.texts[id_]
            rows.append(Row(instruction=self.asked[id_], p=p, length=len(mine), baseline_length=len(other)))
        if not rows:
            return None
        o = official or Official()
        name = score_name(
            {row.instruction for row in rows}, o.baseline, o.instructions, o.difficulty, o.gamed
        )
        # What is called LC is fitted as alpaca_eval fits it, with its folds and a lasso chosen by
        # cross-validation.
        fitted: dict[str, Any] = {"penalty": None, "order": o.instructions} if name == LC else {}
        return length_controlled(
            rows, o.difficulty, o.gamed or (), resamples=resamples, seed=seed, **fitted
        ), name

    def annotations(
        self, judgments: Iterable[Judgment], ours: str, theirs: str, judge: str
    ) -> list[Annotation]:
        """The verdicts as alpaca_eval's annotations, one for each question: the mean of its orders."""
        points = prompt_points(self.rows(judgments, soft=True))
        values = dict(zip(points.ids, points.values.tolist(), strict=True))
        return [
            Annotation(
                instruction=self.asked[id_], output_1=other, generator_1=theirs, output_2=mine,
                generator_2=ours, annotator=judge,
                p=values.get(id_),
            )
            for id_, (mine, other) in self.texts.items()
        ]  # fmt: skip

    def arena_games(self, role: str, judgments: Iterable[Judgment]) -> list[Game]:
        """The verdicts as Arena-Hard's games against the other side; answers that are the same are two
        ties."""
        verdicts: list[tuple[str, bool, str | None]] = [
            (id_, ours_first, "A=B") for id_ in self.tied for ours_first in (True, False)
        ]
        for judgment in judgments:
            ours_first = judgment.first_id == self.ours[judgment.prompt_id]
            verdict = parse_arena(judgment.text or "") if judgment.verdict else None
            verdicts.append((judgment.prompt_id, ours_first, verdict))
        return [
            Game(
                question=id_,
                model=role,
                model_is_a=ours_first,
                verdict=verdict,
                style=style_of(self.texts[id_][0]),
                baseline_style=style_of(self.texts[id_][1]),
            )
            for id_, ours_first, verdict in verdicts
        ]


Scores = dict[str, LengthControlled] | dict[str, ArenaScore]
"""Fitted scores by role."""


def fitted_scores(scores: Scores, name: str) -> dict[str, FittedScore]:
    """Scores that are fitted again in each resample, by role."""
    return {
        role: FittedScore(
            value=score.score / 100,
            ci95=(score.interval[0] / 100, score.interval[1] / 100),
            name=name,
            delta=fitted_difference(scores) if role == "tuned" else None,
        )
        for role, score in scores.items()
    }


def fitted_difference(scores: Scores) -> EffectSize | None:
    """The difference of tuned to base, or to a half where base is what tuned is compared with; None where
    they do not stand on the same questions."""
    tuned, base = scores["tuned"], scores.get("base")
    n = len(tuned.prompts) if isinstance(tuned, LengthControlled) else tuned.questions
    if base is None:
        return effect_size(effect_of_samples((tuned.score - 50) / 100, (tuned.samples - 50) / 100, n))
    if _prompts_of(tuned) != _prompts_of(base):
        return None
    return effect_size(
        effect_of_samples((tuned.score - base.score) / 100, (tuned.samples - base.samples) / 100, n)
    )


def _prompts_of(score: LengthControlled | ArenaScore) -> tuple[str, ...]:
    """The prompts that a length-adjusted win rate stands on."""
    return score.prompts if isinstance(score, LengthControlled) else ()


def arena(
    played: Mapping[str, list[Game]], resamples: int, seed: int, controlled: bool
) -> dict[str, ArenaScore]:
    """Arena-Hard's score of each model by Bradley and Terry, with style controlled or not; {} where nothing
    is readable."""
    games = [game for own in played.values() if any(g.verdict for g in own) for game in own]
    return arena_scores(games, controlled=controlled, resamples=resamples, seed=seed) if games else {}


def effect_size(found: Effect) -> EffectSize:
    """An effect as a result; `detectable` is None where the values tell nothing of their spread."""
    detectable = found.detectable if 0 < found.detectable < math.inf else None
    return EffectSize(value=found.mean, ci95=found.interval, p=found.p, n=found.n, detectable=detectable)


def win_rate(
    points: Points, judgments: Sequence[Judgment], words: Words, resamples: int, seed: int
) -> WinRate:
    """Our win rate against the other side, with everything that has to stand beside it."""
    decided = [j.verdict for j in judgments if j.verdict in ("first", "second")]
    first_slot_rate = decided.count("first") / len(decided) if decided else None
    by_question = dict(zip(points.ids, points.values.tolist(), strict=True))
    win, tie, loss = wins_ties_losses(by_question.values())
    rate = effect(points.values, 0.5, (0.0, 1.0), resamples, seed) if points.ids else None
    warning = slot_warning(first_slot_rate, len(decided))
    return WinRate(
        win_rate=None if rate is None else effect_size(rate),
        win=win,
        tie=tie,
        loss=loss,
        unparseable=sum(j.verdict is None for j in judgments),
        verdicts=len(judgments),
        lost=points.lost,
        bounds=points.bounds,
        first_slot_rate=first_slot_rate,
        flip_rate=flip_rate(judgments),
        by_length=by_length((*words[q], float(p)) for q, p in by_question.items() if q in words),
        words=(_mean([ours for ours, _ in words.values()]), _mean([theirs for _, theirs in words.values()])),
        warnings=[warning] if warning else [],
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def flip_rate(judgments: Iterable[Judgment]) -> float | None:
    """The share of the pairs decided in both orders in which the same slot won twice; None of none."""
    slots: dict[str, list[str]] = {}
    for judgment in judgments:
        if judgment.verdict in ("first", "second"):
            slots.setdefault(judgment.prompt_id, []).append(str(judgment.verdict))
    both = [pair for pair in slots.values() if len(pair) == 2]
    return sum(one == other for one, other in both) / len(both) if both else None


def difference(
    tuned: Points, base: Points, span: tuple[float, float], resamples: int, seed: int
) -> EffectSize | None:
    """The mean of tuned's points less base's over the questions that both have; None where there are none."""
    ours, theirs = paired(tuned, base)
    return effect_size(effect(ours - theirs, 0.0, span, resamples, seed)) if len(ours) else None


def marks_of(ratings: Iterable[Rating]) -> Points:
    """The mean mark by question, from 1 to 10, its turns averaged first."""
    return prompt_points(((r.prompt_id, r.response_id, r.score) for r in ratings), worst=1.0, best=10.0)


def mean_mark(points: Points, resamples: int, seed: int) -> Marks:
    """The mean of the marks over the questions. It has no p value: marks are compared with marks."""
    found = effect(points.values, 1.0, (1.0, 10.0), resamples, seed) if points.ids else None
    return Marks(
        mark=None if found is None else MeanMark(value=found.mean, ci95=found.interval, n=found.n),
        unparseable=points.unparseable,
        verdicts=points.verdicts,
        lost=points.lost,
        bounds=points.bounds,
    )
