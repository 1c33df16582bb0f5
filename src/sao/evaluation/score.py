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
from sao.evaluation.length_control import LC, GamedRow, LengthControlled, Row, length_controlled, score_name
from sao.evaluation.questions import Question
from sao.evaluation.sanity_checks import by_length, slot_warning
from sao.evaluation.suites import said
from sao.evaluation.verdicts import parse_arena
from sao.records import Judgment, Rating, Response
from sao.statistics import Effect, Points, effect, effect_of_samples, paired, prompt_points

WORTH = {"first": 1.0, "second": 0.0, "tie": 0.5}
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
        """(question, order, our points from 0 to 1 or None where unreadable). `soft`: the judge's
        probability, if given."""
        yield from ((id_, "tied", 0.5) for id_ in self.tied)
        yield from ((id_, "missing", None) for id_ in self.missing)
        for j in judgments:
            first = j.first_id == self.ours[j.prompt_id]
            worth = WORTH.get(str(j.verdict))
            if soft and j.p_first is not None and worth is not None:
                worth = j.p_first
            yield (
                j.prompt_id,
                "ours first" if first else "theirs first",
                worth if first or worth is None else 1 - worth,
            )

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
        found = []
        for id_, side, verdict in [
            *((id_, first, "A=B") for id_ in self.tied for first in (True, False)),
            *(
                (
                    j.prompt_id,
                    j.first_id == self.ours[j.prompt_id],
                    parse_arena(j.text or "") if j.verdict else None,
                )
                for j in judgments
            ),
        ]:
            mine, other = self.texts[id_]
            styles = {"style": style_of(mine), "baseline_style": style_of(other)}
            found.append(Game(question=id_, model=role, model_is_a=side, verdict=verdict, **styles))
        return found


Scores = dict[str, LengthControlled] | dict[str, ArenaScore]


def refitted(scores: Scores, name: str) -> dict[str, dict[str, Any]]:
    """Scores in % that are refitted in each resample, as JSON by role, with the difference under "delta": of
    tuned to base where both stand on the same questions, or of tuned to a half where base is what it is
    compared with."""
    found: dict[str, dict[str, Any]] = {}
    for role, one in scores.items():
        interval = [end / 100 for end in one.interval]
        found[role] = {"value": one.score / 100, "ci95": interval, "name": name}
    tuned, base = scores.get("tuned"), scores.get("base")
    if tuned is None:
        return found
    n = len(tuned.prompts) if isinstance(tuned, LengthControlled) else tuned.questions
    if base is None:
        delta = effect_of_samples((tuned.score - 50) / 100, (tuned.samples - 50) / 100, n)
    elif (
        isinstance(tuned, LengthControlled)
        and isinstance(base, LengthControlled)
        and tuned.prompts != base.prompts
    ):
        return found
    else:
        delta = effect_of_samples((tuned.score - base.score) / 100, (tuned.samples - base.samples) / 100, n)
    found["tuned"]["delta"] = shown(delta)
    return found


def arena(
    played: Mapping[str, list[Game]], resamples: int, seed: int, controlled: bool
) -> dict[str, ArenaScore]:
    """Arena-Hard's score of each model by Bradley and Terry, with style controlled or not; {} where nothing
    is readable."""
    games = [game for own in played.values() if any(g.verdict for g in own) for game in own]
    return arena_scores(games, controlled=controlled, resamples=resamples, seed=seed) if games else {}


def shown(found: Effect) -> dict[str, Any]:
    """An effect as JSON; `detectable` is None where the values tell nothing of their spread."""
    detectable = found.detectable if 0 < found.detectable < math.inf else None
    return {
        "value": found.mean,
        "ci95": list(found.interval),
        "p": found.p,
        "n": found.n,
        "detectable": detectable,
    }


def number(value: float) -> float | None:
    """A number that JSON has, or None."""
    return value if math.isfinite(value) else None


def win_rate(
    points: Points, judgments: Sequence[Judgment], words: Words, resamples: int, seed: int
) -> dict[str, Any]:
    """Our win rate against the other side, with everything that has to stand beside it."""
    decided = [j.verdict for j in judgments if j.verdict in ("first", "second")]
    first = decided.count("first") / len(decided) if decided else None
    found: dict[str, Any] = {
        "win_rate": shown(effect(points.values, 0.5, (0.0, 1.0), resamples, seed)) if points.ids else None
    }
    values = dict(zip(points.ids, points.values.tolist(), strict=True))
    found |= {
        "win": sum(v > 0.5 for v in values.values()),
        "tie": sum(v == 0.5 for v in values.values()),
        "loss": sum(v < 0.5 for v in values.values()),
        "unreadable": sum(j.verdict is None for j in judgments),
        "verdicts": len(judgments),
        "lost": points.lost,
        "bounds": [number(end) for end in points.bounds],
        "first_slot_rate": first,
        "flip_rate": flip_rate(judgments),
        "by_length": by_length((*words[q], float(v)) for q, v in values.items() if q in words),
        "words": [
            float(np.mean(side)) if side else None
            for side in ([w[i] for w in words.values()] for i in (0, 1))
        ],
    }
    warning = slot_warning(first, len(decided))
    return found | {"warnings": [warning] if warning else []}


def flip_rate(judgments: Iterable[Judgment]) -> float | None:
    """The share of the pairs decided in both orders in which the same slot won twice; None of none."""
    slots: dict[str, list[str]] = {}
    for j in judgments:
        if j.verdict in ("first", "second"):
            slots.setdefault(j.prompt_id, []).append(str(j.verdict))
    both = [pair for pair in slots.values() if len(pair) == 2]
    return sum(a == b for a, b in both) / len(both) if both else None


def difference(
    tuned: Points, base: Points, span: tuple[float, float], resamples: int, seed: int
) -> dict[str, Any] | None:
    """The mean of tuned's points less base's over the questions that both have; None where there are none."""
    x, y = paired(tuned, base)
    return shown(effect(x - y, 0.0, span, resamples, seed)) if len(x) else None


def marks_of(ratings: Iterable[Rating]) -> Points:
    """The mean mark by question, from 1 to 10, its turns averaged first."""
    return prompt_points(((r.prompt_id, r.response_id, r.score) for r in ratings), worst=1.0, best=10.0)


def mean_mark(points: Points, resamples: int, seed: int) -> dict[str, Any]:
    """The mean of the marks over the questions."""
    found = None
    if points.ids:
        found = shown(effect(points.values, 1.0, (1.0, 10.0), resamples, seed))
        del found["p"], found["detectable"]  # against what? marks are compared with marks
    bounds = [number(end) for end in points.bounds]
    return {
        "mark": found,
        "unreadable": points.unreadable,
        "verdicts": points.verdicts,
        "lost": points.lost,
        "bounds": bounds,
    }
