"""`sao eval --base A --tuned B --suite …`: the suites one after the other, and what came of them as table, JSON and files.

Enters: a recipe (engine, judge, sampling), two models, suites. Leaves, in the folder: results.json, table.md,
items-SUITE.jsonl (one line for each question), alpaca/ (files that alpaca_eval reads) and .eval_results/ (for the model's
repository on the hub).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sao.bench import Answers, Bench, Player
from sao.config import make_config
from sao.errors import ConfigError
from sao.evaluation import alpaca_files, score
from sao.evaluation.guards import degenerate, judge_label
from sao.evaluation.outputs import show_table, write_eval_results
from sao.evaluation.questions import Question, held_out_questions, read_questions
from sao.evaluation.self_tests import try_judge
from sao.evaluation.statistics import Points, holm
from sao.evaluation.suites import TASKS, Suite, find_suites
from sao.folder import RunFolder
from sao.leaks import parse_source
from sao.store import dumps, read_manifest, write_atomic
from sao.types import Judgment, Rating, to_dict


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is evaluated: two models, and a third whose answers both are compared with where there is one (`reference`); the
    questions and templates that take the place of a suite's own, by suite; AlpacaEval's files of difficulty and gamed rows;
    `headline`: whether a circular result is shown too."""

    base: Player
    tuned: Player
    reference: Player | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    difficulty: str | None = None
    gamed: str | None = None
    headline: bool = False

    @property
    def players(self) -> list[Player]:
        """All that answer."""
        return [self.base, self.tuned, *([self.reference] if self.reference else [])]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What `sao.evaluation.tasks.run_tasks` is told."""

    tasks: Sequence[str] = ("leaderboard",)
    template: bool = False
    limit: int | None = None
    batch_size: int = 8
    data_dir: Path | None = None
    include_path: Path | None = None


def evaluate(bench: Bench, asked: Asked, names: Sequence[str], tasks: TaskOptions | None = None) -> dict[str, Any]:
    """Run the suites of these names; what `sao eval --json` prints. Files are written into the bench's folder."""
    suites = find_suites(names)
    try:
        found = _judged(bench, asked, suites)
    finally:
        bench.close()
    if TASKS in names:
        found["tasks"], found["task_average"] = _tasks(bench, asked, tasks or TaskOptions())
    write_atomic(bench.out / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_atomic(bench.out / "table.md", show_table(found) + "\n")
    write_eval_results(bench.out, found)
    return found


def _judged(bench: Bench, asked: Asked, suites: list[Suite]) -> dict[str, Any]:
    """The judged suites: all answers first, model by model, so that each is loaded once; then the judge."""
    questions = {suite.name: questions_of(suite, asked) for suite in suites}
    answers: dict[tuple[str, str], Answers] = {}
    for player in asked.players:
        for suite in suites:
            answers[suite.name, player.role] = bench.answers(player, questions[suite.name])
    found: dict[str, Any] = {
        "base": asked.base.model,
        "tuned": asked.tuned.model,
        "reference": asked.reference.model if asked.reference else None,
        "judge": bench.judge_identity.name if suites else None,
        "label": "",
        "why": "",
        "suites": {},
    }
    if suites:
        label = judge_label(bench.judge_identity, bench.identity(asked.tuned), bench.identity(asked.base))
        found["label"], found["why"] = label
    found["headline"] = found["label"] != "CIRCULAR" or asked.headline
    for suite in suites:
        sides = {player.role: answers[suite.name, player.role] for player in asked.players}
        found["suites"][suite.name] = _one(bench, suite, asked, questions[suite.name], sides)
    if bench.config.eval.self_tests and suites:
        found["self_tests"] = _try_judge(bench, questions[suites[0].name], answers[suites[0].name, "tuned"])
    deltas = [suite["delta"] for suite in found["suites"].values() if suite.get("delta")]
    for delta, p in zip(deltas, holm([delta["p"] for delta in deltas]), strict=True):
        delta["p_holm"] = p
    return found


def _tasks(bench: Bench, asked: Asked, options: TaskOptions) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both models on lm-eval's tasks, paired; and the mean over the tasks of each."""
    from sao.evaluation.tasks import compare_tasks, run_tasks

    results = [
        run_tasks(
            player.model,
            options.tasks,
            cache=bench.out / "tasks",
            engine=bench.own_engine,
            revision=player.revision,
            limit=options.limit,
            batch_size=options.batch_size,
            include_path=options.include_path,
            data_dir=options.data_dir,
            template=options.template,
            notify=bench.notify,
        )
        for player in (asked.base, asked.tuned)
    ]
    compared = compare_tasks(*results, resamples=bench.config.eval.bootstrap, seed=bench.config.seed)
    cut = {result.task: result.cut for side in results for result in side.results if result.cut}
    rows = [asdict(one) | {"cut": cut.get(one.task, 0)} for one in compared]
    return rows, {"base": results[0].average, "tuned": results[1].average}


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
    return found | work(bench, suite, asked, questions, sides, template)


def _marks(
    bench: Bench, suite: Suite, asked: Asked, questions: list[Question], sides: Mapping[str, Answers], template: str
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
    bench: Bench, suite: Suite, asked: Asked, questions: list[Question], sides: Mapping[str, Answers], template: str
) -> dict[str, Any]:
    """Win rates against the reference, or of tuned against base where there is none, and the difference."""
    resamples, seed = bench.config.eval.bootstrap, bench.config.seed
    other = "reference" if "reference" in sides else "base"
    official = _official(asked) if suite.name == "alpaca" else None
    found: dict[str, Any] = {"against": other}
    judged: dict[str, list[Judgment]] = {}
    games: dict[str, score.Games] = {}
    points: dict[str, Points] = {}
    for role in [name for name in ("base", "tuned") if name != other]:
        games[role] = score.Games.of(questions, sides[role], sides[other])
        judged[role] = bench.verdicts(suite, questions, sides[role], sides[other], template)
        points[role] = games[role].points(judged[role])
        found[role] = score.win_rate(points[role], judged[role], games[role].words, resamples, seed)
        found[role]["adjusted"] = games[role].length_adjusted(judged[role], resamples, seed, official)
    if suite.way == "arena":
        played = {role: own.arena_games(role, judged[role]) for role, own in games.items()}
        for role, scores in score.arena(played, resamples, seed).items():
            found[role] |= scores
    if suite.name == "alpaca":
        _write_alpaca(bench, asked, other, games, judged)
    _write_items(bench.out, suite, questions, sides, judged)
    if "base" in points:
        found["delta"] = score.difference(points["tuned"], points["base"], (-1.0, 1.0), resamples, seed)
    elif points["tuned"].ids:
        rate = found["tuned"]["win_rate"]
        found["delta"] = rate | {"value": rate["value"] - 0.5, "ci95": [end - 0.5 for end in rate["ci95"]]}
    return found


def _official(asked: Asked) -> score.Official | None:
    """AlpacaEval's own files, where they and the baseline's outputs were given."""
    if asked.reference is None or not asked.reference.is_file or not (asked.difficulty or asked.gamed):
        return None
    outputs = alpaca_files.read_outputs(asked.reference.model)
    order = [output.instruction for output in outputs]
    return score.Official(
        baseline=outputs[0].generator,
        instructions=order,
        difficulty=alpaca_files.read_difficulty(asked.difficulty, order) if asked.difficulty else None,
        gamed=alpaca_files.read_gamed(asked.gamed, order) if asked.gamed else None,
    )


def _write_alpaca(
    bench: Bench, asked: Asked, other: str, games: Mapping[str, score.Games], judged: Mapping[str, list[Judgment]]
) -> None:
    """The files that alpaca_eval reads: each model's outputs and annotations, and the leaderboard."""
    names = {player.role: Path(player.model).name for player in asked.players}
    standings = {}
    for role, own in games.items():
        annotations = own.annotations(judged[role], names[role], names[other], bench.judge_identity.name)
        outputs = [
            alpaca_files.Output(instruction=a.instruction, output=a.output_2, generator=names[role])
            for a in annotations
        ]
        folder = bench.out / "alpaca" / role
        write_atomic(folder / "model_outputs.json", alpaca_files.outputs_json(outputs))
        write_atomic(folder / "annotations.json", alpaca_files.annotations_json(annotations))
        if any(a.p is not None for a in annotations):
            standings[f"{names[role]} ({role})"] = alpaca_files.standing_of(annotations)
    write_atomic(bench.out / "alpaca" / "leaderboard.csv", alpaca_files.leaderboard_csv(standings))


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
