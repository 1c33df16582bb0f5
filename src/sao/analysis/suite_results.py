"""One suite of an evaluation: the answers of all sides in, what the judge says of them out (`SuiteResult`).

Beside it lie items-SUITE.jsonl (one line for each question) and, for the suite alpaca, the files that
alpaca_eval reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sao.evaluation import alpaca_files, score
from sao.evaluation.length_control import LC, LengthControlled
from sao.evaluation.questions import Question, by_category
from sao.evaluation.sanity_checks import cut_off_and_degenerate
from sao.evaluation.suites import Suite
from sao.pipeline.players import Player
from sao.pipeline.two_models import Answers, Judging, TwoModels
from sao.records import Judgment, Rating, to_dict
from sao.results.evaluation import (
    CategoryMean,
    EffectSize,
    FittedScore,
    MarkedSuite,
    PairedSuite,
    SuiteResult,
    WinRate,
)
from sao.statistics import Points
from sao.store.files import dumps, write_atomic

Judged = Mapping[str, Sequence[Judgment | Rating]]
"""By role: the judge's verdicts or marks."""


@dataclass(frozen=True, kw_only=True)
class SuiteWork:
    """What is needed to judge one suite."""

    models: TwoModels
    suite: Suite
    template: str
    """What the judge is shown."""
    source: str
    """Where the questions come from, in words."""
    questions: list[Question]
    players: Sequence[Player]
    sides: Mapping[str, Answers]
    """By role: the answers."""
    official: score.Official | None
    """AlpacaEval's own files, where they were given."""
    headline: bool
    """Whether judged figures are shown."""

    def result(self) -> SuiteResult:
        """Judge the answers and write the suite's files."""
        return self._marks() if self.suite.way == "rating" else self._pairs()

    @property
    def _resampling(self) -> tuple[int, int]:
        return self.models.config.evaluation.bootstrap, self.models.config.seed

    def _about(self) -> dict[str, Any]:
        """What both kinds of suites say of the answers."""
        cut_off, wrong = cut_off_and_degenerate(self.sides)
        return {
            "title": self.suite.title,
            "n": len(self.questions),
            "questions": self.source,
            "template": self.template,
            "degenerate": wrong,
            "cut_off": cut_off,
            "missing": {role: len(self.questions) - len(side) for role, side in self.sides.items()},
        }

    def _shown(self, ours: Answers, theirs: Answers) -> Judging:
        return Judging(
            suite=self.suite, questions=self.questions, ours=ours, theirs=theirs, template=self.template
        )

    def _marks(self) -> MarkedSuite:
        """Marks of each model, and the difference."""
        ratings = {role: self.models.ratings(self._shown(side, {})) for role, side in self.sides.items()}
        points = {role: score.marks_of(found) for role, found in ratings.items()}
        self._write_items(ratings)
        marks = {role: score.mean_mark(found, *self._resampling) for role, found in points.items()}
        return MarkedSuite(
            **self._about(),
            base=marks["base"],
            tuned=marks["tuned"],
            reference=marks.get("reference"),
            delta=score.difference(points["tuned"], points["base"], (-9.0, 9.0), *self._resampling),
            by_category=self._by_category(points),
        )

    def _pairs(self) -> PairedSuite:
        """Win rates against the reference, or of tuned against base where there is none, and the
        difference."""
        other = "reference" if "reference" in self.sides else "base"
        soft = self.suite.name == "alpaca"  # AlpacaEval 2 takes the judge's probabilities
        judged: dict[str, list[Judgment]] = {}
        games: dict[str, score.Games] = {}
        points: dict[str, Points] = {}
        for role in [name for name in ("base", "tuned") if name != other]:
            ours, theirs = self.sides[role], self.sides[other]
            games[role] = score.Games.of(self.questions, ours, theirs)
            judged[role] = self.models.verdicts(self._shown(ours, theirs))
            points[role] = games[role].points(judged[role], soft)
        fitted = self._fitted(games, judged)
        win_rates = {
            role: score.win_rate(points[role], judged[role], games[role].words, *self._resampling).model_copy(
                update={name: scores.get(role) for name, scores in fitted.items()}
            )
            for role in games
        }
        if soft and self.headline:
            self._write_alpaca(other, games, judged, win_rates)
        self._write_items(judged)
        return PairedSuite(
            **self._about(),
            against="base" if other == "base" else "reference",
            base=win_rates.get("base"),
            tuned=win_rates["tuned"],
            delta=self._delta(points, win_rates["tuned"]),
            by_category=self._by_category(points),
        )

    def _delta(self, points: Mapping[str, Points], tuned: WinRate) -> EffectSize | None:
        """Tuned less base, or tuned's win rate less a half where base is what it is compared with."""
        if "base" in points:
            return score.difference(points["tuned"], points["base"], (-1.0, 1.0), *self._resampling)
        rate = tuned.win_rate
        if rate is None:
            return None
        low, high = rate.ci95
        return rate.model_copy(update={"value": rate.value - 0.5, "ci95": (low - 0.5, high - 0.5)})

    def _fitted(
        self, games: Mapping[str, score.Games], judged: Mapping[str, list[Judgment]]
    ) -> dict[str, dict[str, FittedScore]]:
        """Length-adjusted win rates, and Arena-Hard's scores: by field of `WinRate` and role. All is fitted
        again in each resample, so it is shown as a step of its own."""
        by_arena = self.suite.way == "arena"
        show = self.models.runner.computing(f"{self.suite.name} intervals", len(games) + by_arena)
        official = self.official if self.suite.name == "alpaca" else None
        adjusted: dict[str, LengthControlled] = {}
        name = ""
        for number, (role, own) in enumerate(games.items(), 1):
            points = own.points(judged[role], soft=True)
            fitted = own.length_adjusted(points, *self._resampling, official)
            if fitted is not None:
                adjusted[role], name = fitted
            show(number)
        found = {"adjusted": score.fitted_scores(adjusted, name)}
        if by_arena:
            played = {role: own.arena_games(role, judged[role]) for role, own in games.items()}
            plain, styled = (
                score.arena(played, *self._resampling, controlled) for controlled in (False, True)
            )
            show(len(games) + 1)
            title = "Bradley–Terry score"
            found["arena"] = score.fitted_scores(plain, title)
            found["arena_style"] = score.fitted_scores(styled, f"{title}, style controlled")
        return found

    def _by_category(self, points: Mapping[str, Points]) -> dict[str, dict[str, CategoryMean]]:
        values = {role: dict(zip(own.ids, own.values.tolist(), strict=True)) for role, own in points.items()}
        return {
            role: {
                name: CategoryMean.model_validate(found)
                for name, found in by_category(self.questions, own).items()
            }
            for role, own in values.items()
        }

    def _write_items(self, judged: Judged) -> None:
        lines = "".join(line + "\n" for line in self._items(judged))
        write_atomic(self.models.root / f"items-{self.suite.name}.jsonl", lines)

    def _items(self, judged: Judged) -> Iterator[str]:
        """One JSON line for each question: its turns, every answer, every verdict or mark."""
        by_question: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for role, verdicts in judged.items():
            for verdict in verdicts:
                by_question.setdefault(verdict.prompt_id, {}).setdefault(role, []).append(to_dict(verdict))
        for question in self.questions:
            id_ = question.prompt.id
            answers = {role: [a.text for a in side[id_]] for role, side in self.sides.items() if id_ in side}
            yield dumps(
                {
                    "id": id_,
                    "question": [question.prompt.conversation, *question.later],
                    "category": question.category,
                    "answers": answers,
                    "judged": by_question.get(id_, {}),
                }
            )

    def _write_alpaca(
        self,
        other: str,
        games: Mapping[str, score.Games],
        judged: Mapping[str, list[Judgment]],
        win_rates: Mapping[str, WinRate],
    ) -> None:
        """The files that alpaca_eval reads: each model's outputs and annotations, and the leaderboard."""
        names = {player.role: player.title for player in self.players}
        if len(set(names.values())) < len(names):
            names = {role: f"{name}-{role}" for role, name in names.items()}
        folder, judge = self.models.root / "alpaca", self.models.judge_identity.name
        standings = {}
        for role, own in games.items():
            annotations = own.annotations(judged[role], names[role], names[other], judge)
            outputs = [
                alpaca_files.Output(instruction=a.instruction, output=a.output_2, generator=names[role])
                for a in annotations
            ]
            write_atomic(folder / role / "model_outputs.json", alpaca_files.outputs_json(outputs))
            write_atomic(folder / role / "annotations.json", alpaca_files.annotations_json(annotations))
            if any(a.p is not None for a in annotations):
                standing = alpaca_files.standing_of(annotations)
                adjusted = win_rates[role].adjusted
                if adjusted is not None and adjusted.name == LC:
                    standing = replace(standing, length_controlled_winrate=100 * adjusted.value)
                standings[names[role]] = standing
        write_atomic(folder / "leaderboard.csv", alpaca_files.leaderboard_csv(standings))
