"""`sao eval --base A --tuned B --suite …`: the suites one after the other, and what came of them as table, JSON and files.

Enters: a recipe (engine, judge, sampling), two models, suites. Leaves, in the folder: results.json, table.md,
items-SUITE.jsonl (one line for each question), alpaca/ (files that alpaca_eval reads) and .eval_results/ (for the model's
repository on the hub).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sao.bench import Answers, Bench, Player
from sao.config import make_config
from sao.errors import ConfigError
from sao.evaluation import score
from sao.evaluation.guards import degenerate, judge_label
from sao.evaluation.questions import Question, held_out_questions, read_questions
from sao.evaluation.self_tests import try_judge
from sao.evaluation.statistics import holm
from sao.evaluation.suites import Suite, find_suites
from sao.folder import RunFolder
from sao.leaks import parse_source
from sao.store import dumps, read_manifest, write_atomic
from sao.types import Judgment, Rating, to_dict


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is evaluated: two models, and a third whose answers both are compared with where there is one (`reference`); the
    questions and templates that take the place of a suite's own, by suite; `headline`: whether a circular result is shown too."""

    base: Player
    tuned: Player
    reference: Player | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    headline: bool = False

    @property
    def players(self) -> list[Player]:
        """All that answer."""
        return [self.base, self.tuned, *([self.reference] if self.reference else [])]


def evaluate(bench: Bench, asked: Asked, names: Sequence[str]) -> dict[str, Any]:
    """Run the judged suites of these names; what `sao eval --json` prints. Files are written into the bench's folder."""
    suites = find_suites(names)
    questions = {suite.name: questions_of(suite, asked) for suite in suites}
    answers: dict[tuple[str, str], Answers] = {}
    for player in asked.players:  # model by model, so that each is loaded once
        for suite in suites:
            answers[suite.name, player.role] = bench.answers(player, questions[suite.name])
    label, why = judge_label(bench.judge_identity, bench.identity(asked.tuned), bench.identity(asked.base))
    found: dict[str, Any] = {
        "base": asked.base.model,
        "tuned": asked.tuned.model,
        "reference": asked.reference.model if asked.reference else None,
        "judge": bench.judge_identity.name,
        "label": label,
        "why": why,
        "headline": label != "CIRCULAR" or asked.headline,
        "suites": {},
    }
    for suite in suites:
        sides = {player.role: answers[suite.name, player.role] for player in asked.players}
        found["suites"][suite.name] = _one(bench, suite, asked, questions[suite.name], sides)
    if bench.config.eval.self_tests and suites:
        found["self_tests"] = _try_judge(bench, questions[suites[0].name], answers[suites[0].name, "tuned"])
    deltas = [suite["delta"] for suite in found["suites"].values() if suite.get("delta")]
    for delta, p in zip(deltas, holm([delta["p"] for delta in deltas]), strict=True):
        delta["p_holm"] = p
    return found


def questions_of(suite: Suite, asked: Asked) -> list[Question]:
    """The suite's questions: those given, the held-out prompts of the tuned model's run, or the preset's.

    Raises ConfigError where there are none.
    """
    source = asked.questions.get(suite.name) or suite.questions
    run = run_of(asked.tuned.model)
    if not source and run is not None:
        config = make_config(read_manifest(run)["config"], f"{run}/manifest.json")
        found = held_out_questions(RunFolder(config, run).asked(True))
        if found:
            return found
    if not source:
        raise ConfigError(
            f"suite {suite.name}: no questions. Give them (--questions {suite.name}=FILE), or as --tuned a run that has held-out "
            "prompts"
        )
    place = parse_source(source)
    return read_questions(
        place.path, revision=place.revision, subset=place.subset, split=place.split, column=place.column
    )


def run_of(model: str) -> Path | None:
    """The run folder in which a trained model lies, None where it lies in none."""
    parents = list(Path(model).resolve().parents)
    return next((folder for folder in parents[:4] if (folder / "manifest.json").is_file()), None)


def _one(
    bench: Bench, suite: Suite, asked: Asked, questions: list[Question], sides: Mapping[str, Answers]
) -> dict[str, Any]:
    """One suite's result."""
    template = asked.templates.get(suite.name) or suite.template or bench.config.judging.template
    texts = {role: [answer.text for group in side.values() for answer in group] for role, side in sides.items()}
    found: dict[str, Any] = {
        "title": suite.title,
        "n": len(questions),
        "questions": asked.questions.get(suite.name) or suite.questions or "held-out prompts of the run",
        "template": template,
        "degenerate": {role: wrong for role, side in texts.items() if (wrong := degenerate(side))},
        "missing": {role: len(questions) - len(side) for role, side in sides.items()},
    }
    work = _marks if suite.way == "rating" else _duels
    return found | work(bench, suite, questions, sides, template)


def _marks(
    bench: Bench, suite: Suite, questions: list[Question], sides: Mapping[str, Answers], template: str
) -> dict[str, Any]:
    """Marks of each model, and the difference."""
    resamples, seed = bench.config.eval.bootstrap, bench.config.seed
    ratings = {role: bench.ratings(suite, questions, side, template) for role, side in sides.items()}
    points = {role: score.marks_of(found) for role, found in ratings.items()}
    _write_items(bench.out, suite, questions, sides, ratings)
    return {
        **{role: score.mean_mark(found, resamples, seed) for role, found in points.items()},
        "delta": score.difference(points["tuned"], points["base"], (-9.0, 9.0), resamples, seed),
    }


def _duels(
    bench: Bench, suite: Suite, questions: list[Question], sides: Mapping[str, Answers], template: str
) -> dict[str, Any]:
    """Win rates against the reference, or of tuned against base where there is none, and the difference."""
    resamples, seed = bench.config.eval.bootstrap, bench.config.seed
    other = "reference" if "reference" in sides else "base"
    found: dict[str, Any] = {"against": other}
    judged: dict[str, list[Judgment]] = {}
    points, played = {}, {}
    for role in [name for name in ("base", "tuned") if name != other]:
        games = score.Games.of(questions, sides[role], sides[other])
        judged[role] = bench.verdicts(suite, questions, sides[role], sides[other], template)
        points[role] = games.points(judged[role])
        found[role] = score.win_rate(points[role], judged[role], games.words, resamples, seed)
        found[role] |= {"adjusted": games.length_adjusted(judged[role], resamples, seed)}
        played[role] = games.arena_games(role, judged[role])
    if suite.way == "arena":
        for role, scores in score.arena(played, resamples, seed).items():
            found[role] |= scores
    _write_items(bench.out, suite, questions, sides, judged)
    if "base" in points:
        found["delta"] = score.difference(points["tuned"], points["base"], (-1.0, 1.0), resamples, seed)
    elif points["tuned"].ids:
        rate = found["tuned"]["win_rate"]
        found["delta"] = rate | {"value": rate["value"] - 0.5, "ci95": [end - 0.5 for end in rate["ci95"]]}
    return found


def _write_items(
    out: Path,
    suite: Suite,
    questions: list[Question],
    sides: Mapping[str, Answers],
    judged: Mapping[str, Sequence[Judgment | Rating]],
) -> None:
    """One JSON line for each question: its turns, every answer, every verdict or mark."""
    by_question: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for role, found in judged.items():
        for one in found:
            by_question.setdefault(one.prompt_id, {}).setdefault(role, []).append(to_dict(one))

    def lines() -> Iterator[str]:
        for question in questions:
            id_ = question.prompt.id
            yield dumps(
                {
                    "id": id_,
                    "question": [question.prompt.conversation, *question.later],
                    "category": question.category,
                    "answers": {role: [a.text for a in side[id_]] for role, side in sides.items() if id_ in side},
                    "judged": by_question.get(id_, {}),
                }
            )

    write_atomic(out / f"items-{suite.name}.jsonl", "".join(line + "\n" for line in lines()))


def _try_judge(bench: Bench, questions: list[Question], answers: Answers) -> dict[str, Any]:
    """The judge on made-up pairs of the tuned model's own answers."""
    groups = ((q.prompt, answers[q.prompt.id]) for q in questions if q.prompt.id in answers)
    config = bench.config.judging
    if config.method not in ("logprob", "text"):
        config = config.model_copy(update={"method": "logprob", "reasoning": False})
    return try_judge(
        groups, bench.config.eval.self_tests, lambda: bench.engine("judge", *bench.judge), config, bench.config.seed
    )
