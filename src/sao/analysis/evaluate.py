"""`sao eval --base A --tuned B --suite …`: the suites one after the other, and what came of them as table,
JSON and files.

Enters: a recipe (engine, judge, sampling), two models, suites. Leaves, in the folder: results.json, table.md,
items-SUITE.jsonl (one line for each question), alpaca/ (files that alpaca_eval reads) and .eval_results/ (for
the model's repository on the hub).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sao.data.contamination_sets import on_disk, parse_source
from sao.errors import ConfigError
from sao.evaluation import alpaca_files, score
from sao.evaluation.identities import judge_label
from sao.evaluation.judge_tests import try_judge
from sao.evaluation.length_control import LC, LengthControlled
from sao.evaluation.outputs import show_table, write_eval_results
from sao.evaluation.questions import (
    Question,
    by_category,
    held_out_questions,
    read_questions,
    with_references,
)
from sao.evaluation.sanity_checks import degenerate
from sao.evaluation.suites import FIELDS, TASKS, Suite, find_suites, read_template
from sao.pipeline.folder import recorded
from sao.pipeline.players import Player, run_of
from sao.pipeline.two_models import Answers, Judging, TwoModels
from sao.records import Judgment, Rating, make_id, to_dict
from sao.statistics import Points, holm
from sao.store.files import dumps, write_atomic
from sao.store.manifest import package_versions
from sao.templates import load_template


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is evaluated: two models, and a third whose answers both are compared with where there is one
    (`reference`). By
    suite: the questions, templates and right answers that take the place of its own. AlpacaEval's files of
    difficulty and gamed rows. `headline`: whether a circular result is shown too."""

    base: Player
    tuned: Player
    reference: Player | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
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


def evaluate(
    bench: TwoModels, asked: Asked, names: Sequence[str], tasks: TaskOptions | None = None
) -> dict[str, Any]:
    """Run the suites of these names; what `sao eval --json` prints. Files are written into the bench's
    folder.

    Raises ConfigError for what cannot be, before any model is asked.
    """
    suites, options = find_suites(names), tasks or TaskOptions()
    _check(bench, asked, suites, options if TASKS in names else None)
    official = _official(asked)
    try:
        found = _judged(bench, asked, suites, official)
    finally:
        bench.close()
    _write_results(bench.root, found)
    if TASKS in names:
        found["tasks"], found["task_average"] = _tasks(bench, asked, options)
    main = [suite["delta"] for suite in found["suites"].values() if suite.get("delta")] + found.get(
        "tasks", []
    )
    for one, p in zip(main, holm([one["p"] for one in main]), strict=True):
        one["p_holm"] = p  # over all that this call compares
    _write_results(bench.root, found)
    write_eval_results(bench.root, found)
    return found


def _check(bench: TwoModels, asked: Asked, suites: list[Suite], tasks: TaskOptions | None) -> None:
    """Raise ConfigError for what would only show itself after hours."""
    named = {"--questions": asked.questions, "--template": asked.templates, "--references": asked.references}
    for option, given in named.items():
        if unknown := sorted(set(given) - {suite.name for suite in suites}):
            raise ConfigError(f"{option} {unknown[0]}=…: that suite is not among those asked for (--suite)")
    if (asked.difficulty or asked.gamed) and not (asked.reference and asked.reference.is_file):
        raise ConfigError(
            "--difficulty and --gamed go with --reference FILE, the baseline's model_outputs.json"
        )
    for suite in suites:
        template = _template(bench, suite, asked)
        if suite.way == "duel":
            load_template(template, FIELDS[suite.way])
        else:
            read_template(template, suite.way)
    for player in asked.players:
        if not player.is_file and player.role not in bench.given:
            bench.check(bench.role(player))
    if suites and "judge" not in bench.given:
        bench.check(bench.judge, prefill=bool(bench.judging.prefill))
    if tasks is not None:
        if find_spec("lm_eval") is None:
            raise ConfigError("suite tasks needs the package lm-eval: pip install 'sao[tasks]'")
        for folder in filter(None, (tasks.data_dir, tasks.include_path)):
            if not folder.is_dir():
                raise ConfigError(f"{folder}: no such folder (--data-dir, --include-path)")


def _template(bench: TwoModels, suite: Suite, asked: Asked) -> str:
    return asked.templates.get(suite.name) or suite.template or bench.judging.template


def _write_results(out: Path, found: dict[str, Any]) -> None:
    write_atomic(
        out / "results.json", json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    write_atomic(out / "table.md", show_table(found) + "\n")


def _judged(
    bench: TwoModels, asked: Asked, suites: list[Suite], official: score.Official | None
) -> dict[str, Any]:
    """The judged suites: all answers first, model by model, so that each is loaded once; then the judge."""
    questions = {suite.name: questions_of(suite, asked) for suite in suites}
    answers: dict[tuple[str, str], Answers] = {}
    for player in asked.players:
        for suite in suites:
            answers[suite.name, player.role] = bench.answers(player, questions[suite.name])
    found: dict[str, Any] = {player.role: player.model for player in asked.players}
    found |= {"reference": found.get("reference"), "judge": None, "label": "", "why": "", "suites": {}}
    found["made_with"] = made_with(bench, asked)
    if suites:
        found["judge"] = bench.judge_identity.name
        found["label"], found["why"] = judge_label(
            bench.judge_identity, bench.identity(asked.tuned), bench.identity(asked.base)
        )
    found["headline"] = found["label"] != "CIRCULAR" or asked.headline
    for name in ("alpaca", ".eval_results"):  # of an earlier evaluation here
        shutil.rmtree(bench.root / name, ignore_errors=True)
    for suite in suites:
        sides = {player.role: answers[suite.name, player.role] for player in asked.players}
        one = _Work(bench, suite, asked, questions[suite.name], sides, official, found["headline"])
        found["suites"][suite.name] = one.result()
    if bench.config.eval.self_tests and suites:
        found["self_tests"] = _try_judge(bench, questions[suites[0].name], answers[suites[0].name, "tuned"])
    return found


def made_with(bench: TwoModels, asked: Asked) -> dict[str, Any]:
    """What the figures hang on: who answered and judged, by weights, and with which settings."""
    c = bench.config
    sampling = c.responses.model_dump(mode="json", include={"system", "temperature", "top_p", "max_tokens"})
    return {
        "weights": {player.role: bench.identity(player).weights for player in asked.players},
        "judge": bench.judge_identity.weights,
        "judging": bench.judging.model_dump(
            mode="json", include={"method", "template", "choices", "prefill", "min_mass", "temperature"}
        ),
        "sampling": sampling,
        "engine": {
            player.role: "a file" if player.is_file else bench.own_engine(player).name
            for player in asked.players
        },
        "seed": c.seed,
        "resamples": c.eval.bootstrap,
        "packages": package_versions(),
    }


def _tasks(
    bench: TwoModels, asked: Asked, options: TaskOptions
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Both models on lm-eval's tasks, paired; and the mean over the tasks of each."""
    from sao.evaluation.tasks import compare_tasks, run_tasks

    # lm-eval runs on transformers, whatever answers the questions.
    engine = bench.own_engine(asked.base).model_copy(update={"name": "transformers"})
    results = [
        run_tasks(
            player.model,
            options.tasks,
            cache=bench.root / "tasks",
            engine=engine,
            revision=player.revision,
            limit=options.limit,
            batch_size=options.batch_size,
            include_path=options.include_path,
            data_dir=options.data_dir,
            template=options.template,
            notify=bench.runner.notify,
        )
        for player in (asked.base, asked.tuned)
    ]
    compared = compare_tasks(*results, resamples=bench.config.eval.bootstrap, seed=bench.config.seed)
    cut = {result.task: result.cut for side in results for result in side.results if result.cut}
    rows = [
        asdict(one) | {"cut": cut.get(one.task, 0), "detectable": one.detectable or None} for one in compared
    ]
    return rows, {"base": results[0].average, "tuned": results[1].average}


def questions_of(suite: Suite, asked: Asked) -> list[Question]:
    """The suite's questions: those given, the held-out prompts of the tuned model's run, or the preset's.

    Raises ConfigError where there are none.
    """
    source = asked.questions.get(suite.name) or suite.questions
    run = asked.tuned.run or run_of(asked.tuned.model)
    if not source and run is not None:
        found = held_out_questions(recorded(run).asked(True))
        if found:
            return found
    if not source:
        raise ConfigError(
            f"suite {suite.name}: no questions. Give them (--questions {suite.name}=FILE), or as --tuned a "
            "run that has held-out "
            "prompts"
        )
    place = on_disk(parse_source(source))
    found = read_questions(
        place.path, revision=place.revision, subset=place.subset, split=place.split, column=place.column
    )
    return with_references(found, asked.references[suite.name]) if suite.name in asked.references else found


@dataclass(frozen=True)
class _Work:
    """One suite's result."""

    bench: TwoModels
    suite: Suite
    asked: Asked
    questions: list[Question]
    sides: Mapping[str, Answers]
    official: score.Official | None
    headline: bool

    def result(self) -> dict[str, Any]:
        """The suite as JSON."""
        texts = {
            role: [a.text for group in side.values() for a in group] for role, side in self.sides.items()
        }
        cut = {
            role: sum(a.finish_reason == "length" for group in side.values() for a in group)
            for role, side in self.sides.items()
        }
        source = self.asked.questions.get(self.suite.name) or self.suite.questions
        found: dict[str, Any] = {
            "title": self.suite.title,
            "n": len(self.questions),
            "questions": str(parse_source(source)) if source else "held-out prompts of the run",
            "template": _template(self.bench, self.suite, self.asked),
            "degenerate": {
                role: wrong for role, side in texts.items() if (wrong := degenerate(side, cut=cut[role]))
            },
            "cut_off": cut,
            "missing": {role: len(self.questions) - len(side) for role, side in self.sides.items()},
        }
        return found | (self._marks() if self.suite.way == "rating" else self._pairs_judged())

    @property
    def _drawn(self) -> tuple[int, int]:
        return self.bench.config.eval.bootstrap, self.bench.config.seed

    def _shown(self, ours: Answers, theirs: Answers, template: str) -> Judging:
        return Judging(
            suite=self.suite, questions=self.questions, ours=ours, theirs=theirs, template=template
        )

    def _marks(self) -> dict[str, Any]:
        """Marks of each model, and the difference."""
        template = _template(self.bench, self.suite, self.asked)
        ratings = {
            role: self.bench.ratings(self._shown(side, {}, template)) for role, side in self.sides.items()
        }
        points = {role: score.marks_of(found) for role, found in ratings.items()}
        self._write_items(ratings)
        return {
            **{role: score.mean_mark(found, *self._drawn) for role, found in points.items()},
            "delta": score.difference(points["tuned"], points["base"], (-9.0, 9.0), *self._drawn),
            "by_category": {role: self._by_category(found) for role, found in points.items()},
        }

    def _pairs_judged(self) -> dict[str, Any]:
        """Win rates against the reference, or of tuned against base where there is none, and the
        difference."""
        other = "reference" if "reference" in self.sides else "base"
        template = _template(self.bench, self.suite, self.asked)
        soft = self.suite.name == "alpaca"  # AlpacaEval 2 takes the judge's probabilities
        found: dict[str, Any] = {"against": other}
        judged: dict[str, list[Judgment]] = {}
        games: dict[str, score.Games] = {}
        points: dict[str, Points] = {}
        for role in [name for name in ("base", "tuned") if name != other]:
            games[role] = score.Games.of(self.questions, self.sides[role], self.sides[other])
            judged[role] = self.bench.verdicts(self._shown(self.sides[role], self.sides[other], template))
            points[role] = games[role].points(judged[role], soft)
            found[role] = score.win_rate(points[role], judged[role], games[role].words, *self._drawn)
        for key, scores in self._refitted(games, judged).items():
            for role, one in scores.items():
                found[role][key] = one
        if soft and self.headline:
            _write_alpaca(self.bench, self.asked, other, games, judged, found)
        self._write_items(judged)
        found["by_category"] = {role: self._by_category(own) for role, own in points.items()}
        if "base" in points:
            found["delta"] = score.difference(points["tuned"], points["base"], (-1.0, 1.0), *self._drawn)
        elif rate := found["tuned"]["win_rate"]:
            found["delta"] = rate | {
                "value": rate["value"] - 0.5,
                "ci95": [end - 0.5 for end in rate["ci95"]],
            }
        return found

    def _refitted(
        self, games: Mapping[str, score.Games], judged: Mapping[str, list[Judgment]]
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Length-adjusted win rates, and Arena-Hard's scores: by kind and role."""
        official = self.official if self.suite.name == "alpaca" else None
        adjusted: dict[str, LengthControlled] = {}
        name = ""
        for role, own in games.items():
            fitted = own.length_adjusted(own.points(judged[role], soft=True), *self._drawn, official)
            if fitted is not None:
                adjusted[role], name = fitted
        found = {"adjusted": score.refitted(adjusted, name)}
        if self.suite.way == "arena":
            played = {role: own.arena_games(role, judged[role]) for role, own in games.items()}
            for key, controlled in (("arena", False), ("arena_style", True)):
                title = "Bradley–Terry score" + (", style controlled" if controlled else "")
                found[key] = score.refitted(score.arena(played, *self._drawn, controlled), title)
        return found

    def _by_category(self, points: Points) -> dict[str, Any]:
        return by_category(self.questions, dict(zip(points.ids, points.values.tolist(), strict=True)))

    def _write_items(self, judged: Mapping[str, Sequence[Judgment | Rating]]) -> None:
        _write_items(self.bench.root, self.suite, self.questions, self.sides, judged)


def _official(asked: Asked) -> score.Official | None:
    """AlpacaEval's own files, where they and the baseline's outputs were given."""
    if asked.reference is None or not (asked.difficulty or asked.gamed):
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
    bench: TwoModels, asked: Asked, other: str, games: Mapping[str, score.Games], judged: Mapping[str,
    list[Judgment]],
    found: Mapping[str, Any],
) -> None:  # fmt: skip
    """The files that alpaca_eval reads: each model's outputs and annotations, and the leaderboard."""
    names = {player.role: player.title for player in asked.players}
    if len(set(names.values())) < len(names):
        names = {role: f"{name}-{role}" for role, name in names.items()}
    standings = {}
    for role, own in games.items():
        annotations = own.annotations(judged[role], names[role], names[other], bench.judge_identity.name)
        outputs = [
            alpaca_files.Output(instruction=a.instruction, output=a.output_2, generator=names[role])
            for a in annotations
        ]
        folder = bench.root / "alpaca" / role
        write_atomic(folder / "model_outputs.json", alpaca_files.outputs_json(outputs))
        write_atomic(folder / "annotations.json", alpaca_files.annotations_json(annotations))
        if any(a.p is not None for a in annotations):
            adjusted = found[role].get("adjusted", {})
            controlled = adjusted.get("value") if adjusted.get("name") == LC else None
            standing = alpaca_files.standing_of(annotations)
            if controlled is not None:
                standing = replace(standing, length_controlled_winrate=100 * controlled)
            standings[names[role]] = standing
    write_atomic(bench.root / "alpaca" / "leaderboard.csv", alpaca_files.leaderboard_csv(standings))


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
                    "answers": {
                        role: [a.text for a in side[id_]] for role, side in sides.items() if id_ in side
                    },
                    "judged": by_question.get(id_, {}),
                }
            )

    write_atomic(out / f"items-{suite.name}.jsonl", "".join(line + "\n" for line in lines()))


def _try_judge(bench: TwoModels, questions: list[Question], answers: Answers) -> dict[str, Any]:
    """The judge on made-up pairs of the tuned model's own answers; asked once, then read from the folder."""
    groups = [(q.prompt, answers[q.prompt.id]) for q in questions if q.prompt.id in answers]
    n, config, seed = bench.config.eval.self_tests, bench.judging, bench.config.seed
    asked = make_id(
        bench.judge_identity.weights,
        config.model_dump_json(),
        n,
        seed,
        *(a.id for _, own in groups for a in own),
    )
    path = bench.root / f"self-tests-{asked[:8]}.json"
    if not path.is_file():
        found = try_judge(groups, n, lambda: bench.session.engine(bench.judge), config, seed)
        write_atomic(path, json.dumps(found, indent=1) + "\n")
    return dict(json.loads(path.read_text("utf-8")))
