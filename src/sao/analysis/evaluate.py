"""`sao eval --base A --tuned B --suite …`: the suites one after the other, and what came of them.

Enters: a recipe (engine, judge, sampling), two models, suites. Leaves: an `Evaluation`, and in the folder
results.json (the same), items-SUITE.jsonl (one line for each question), alpaca/ (files that alpaca_eval
reads) and .eval_results/ (for the model's repository on the hub).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from pydantic import TypeAdapter

from sao.analysis.suite_results import SuiteWork
from sao.data.contamination_sets import on_disk, parse_source
from sao.errors import ConfigError, StoreError
from sao.evaluation import alpaca_files, score
from sao.evaluation.identities import Label, judge_label
from sao.evaluation.judge_tests import try_judge
from sao.evaluation.outputs import write_eval_results
from sao.evaluation.questions import Question, held_out_questions, read_questions, with_references
from sao.evaluation.suites import FIELDS, TASKS, Suite, find_suites, read_template
from sao.execution.runner import watched
from sao.pipeline.folder import recorded
from sao.pipeline.players import Player, run_of
from sao.pipeline.two_models import Answers, TwoModels
from sao.records import make_id
from sao.results.audit import SelfTest
from sao.results.evaluation import (
    Evaluation,
    JudgingSettings,
    MadeWith,
    SamplingSettings,
    SuiteResult,
    TaskAverage,
    TaskComparison,
)
from sao.statistics import holm
from sao.store.files import dumps, write_atomic
from sao.store.manifest import package_versions
from sao.templates import load_template

SELF_TESTS = TypeAdapter(dict[str, SelfTest])
"""The self-tests as they are kept in a file."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is evaluated."""

    base: Player
    tuned: Player
    reference: Player | None = None
    """A third whose answers both are compared with."""
    questions: Mapping[str, str] = field(default_factory=dict)
    """By suite: a set in place of its own."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """By suite: a template in place of its own."""
    references: Mapping[str, str] = field(default_factory=dict)
    """By suite: right answers that the judge is shown."""
    difficulty: str | None = None
    """AlpacaEval's file of difficulties."""
    gamed: str | None = None
    """AlpacaEval's file of gamed rows."""
    headline: bool = False
    """Whether a circular result is shown too."""

    @property
    def players(self) -> list[Player]:
        """All that answer."""
        return [self.base, self.tuned, *([self.reference] if self.reference else [])]

    def source(self, suite: Suite) -> str:
        """The set of a suite's questions; "" for the held-out prompts of the tuned model's run."""
        return self.questions.get(suite.name) or suite.questions


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
    models: TwoModels, asked: Asked, names: Sequence[str], tasks: TaskOptions | None = None
) -> Evaluation:
    """Run the suites of these names; what `sao eval --json` prints. Files are written into the evaluation's
    folder.

    Raises ConfigError for what cannot be, before any model is asked.
    """
    with watched(models.runner):
        suites, options = find_suites(names), tasks or TaskOptions()
        _check(models, asked, suites, options if TASKS in names else None)
        models.runner.status.start()
        evaluation = _judged(models, asked, suites, _official(asked))
        models.close()
        _write_results(models.root, evaluation)  # what is judged is kept, whatever becomes of the tasks
        if TASKS in names:
            compared, average = _tasks(models, asked, options)
            evaluation = evaluation.model_copy(update={"tasks": compared, "task_average": average})
        evaluation = _with_holm(evaluation)
        _write_results(models.root, evaluation)
        write_eval_results(models.root, evaluation)
    return evaluation


def _with_holm(evaluation: Evaluation) -> Evaluation:
    """The evaluation with p values corrected over the main scores of all suites and tasks."""
    deltas = {name: suite.delta for name, suite in evaluation.suites.items() if suite.delta is not None}
    corrected = holm([*(d.p for d in deltas.values()), *(task.p for task in evaluation.tasks)])
    suites: dict[str, SuiteResult] = dict(evaluation.suites)
    for (name, delta), p_holm in zip(deltas.items(), corrected, strict=False):
        update = {"delta": delta.model_copy(update={"p_holm": p_holm})}
        suites[name] = suites[name].model_copy(update=update)
    tasks = [
        task.model_copy(update={"p_holm": p_holm})
        for task, p_holm in zip(evaluation.tasks, corrected[len(deltas) :], strict=True)
    ]
    return evaluation.model_copy(update={"suites": suites, "tasks": tasks})


def _check(models: TwoModels, asked: Asked, suites: list[Suite], tasks: TaskOptions | None) -> None:
    """Raise ConfigError for what would only show itself after hours."""
    _check_options(asked, suites)
    for suite in suites:
        template = _template(models, suite, asked)
        if suite.way == "duel":
            load_template(template, FIELDS[suite.way])
        else:
            read_template(template, suite.way)
    for player in asked.players:
        if not player.is_file and player.role not in models.given:
            models.check(models.role(player))
    if suites and "judge" not in models.given:
        models.check(models.judge, prefill=bool(models.judging.prefill))
    if tasks is not None:
        _check_tasks(tasks)


def _check_options(asked: Asked, suites: list[Suite]) -> None:
    """Raise ConfigError for options that do not go together."""
    names = {suite.name for suite in suites}
    by_suite = {
        "--questions": asked.questions, "--template": asked.templates, "--references": asked.references
    }  # fmt: skip
    for option, given in by_suite.items():
        if unknown := sorted(set(given) - names):
            raise ConfigError(
                f"{option} {unknown[0]}=…: that suite is not among those asked for (--suite)", key=option
            )
    if (asked.difficulty or asked.gamed) and not (asked.reference and asked.reference.is_file):
        raise ConfigError(
            "--difficulty and --gamed go with --reference FILE, the baseline's model_outputs.json",
            key="--difficulty",
        )


def _check_tasks(tasks: TaskOptions) -> None:
    """Raise ConfigError where lm-eval or a folder is missing."""
    if find_spec("lm_eval") is None:
        raise ConfigError("suite tasks needs the package lm-eval: pip install 'sao[tasks]'", key="lm-eval")
    for folder in filter(None, (tasks.data_dir, tasks.include_path)):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder (--data-dir, --include-path)", key="--data-dir")


def _template(models: TwoModels, suite: Suite, asked: Asked) -> str:
    return asked.templates.get(suite.name) or suite.template or models.judging.template


def _write_results(out: Path, evaluation: Evaluation) -> None:
    write_atomic(out / "results.json", evaluation.model_dump_json(indent=1) + "\n")


def _judged(
    models: TwoModels, asked: Asked, suites: list[Suite], official: score.Official | None
) -> Evaluation:
    """The judged suites: all answers first, model by model, so that each is loaded once; then the judge."""
    questions = {suite.name: questions_of(suite, asked) for suite in suites}
    sides: dict[str, dict[str, Answers]] = {suite.name: {} for suite in suites}
    for player in asked.players:
        for name, own in sides.items():
            own[player.role] = models.answers(player, questions[name])
    label, why = _label(models, asked) if suites else ("", "")
    headline = label != "CIRCULAR" or asked.headline
    for name in ("alpaca", ".eval_results"):  # of an earlier evaluation here
        shutil.rmtree(models.root / name, ignore_errors=True)
    results = {
        suite.name: SuiteWork(
            models=models,
            suite=suite,
            template=_template(models, suite, asked),
            source=_source_in_words(asked.source(suite)),
            questions=questions[suite.name],
            players=asked.players,
            sides=sides[suite.name],
            official=official,
            headline=headline,
        ).result()
        for suite in suites
    }
    first = suites[0].name if suites and models.config.evaluation.self_tests else None
    return Evaluation(
        base=asked.base.model,
        tuned=asked.tuned.model,
        reference=asked.reference.model if asked.reference else None,
        judge=models.judge_identity.name if suites else None,
        label=label,
        why=why,
        headline=headline,
        made_with=made_with(models, asked),
        suites=results,
        self_tests=_try_judge(models, questions[first], sides[first]["tuned"]) if first else None,
    )


def _label(models: TwoModels, asked: Asked) -> tuple[Label, str]:
    """How the judge is related to the models."""
    return judge_label(models.judge_identity, models.identity(asked.tuned), models.identity(asked.base))


def _source_in_words(source: str) -> str:
    return str(parse_source(source)) if source else "held-out prompts of the run"


def made_with(models: TwoModels, asked: Asked) -> MadeWith:
    """What the figures depend on: who answered and judged, by weights, and with which settings."""
    c, judging = models.config, models.judging
    return MadeWith(
        weights={player.role: models.identity(player).weights for player in asked.players},
        judge=models.judge_identity.weights,
        judging=JudgingSettings(**judging.model_dump(include=set(JudgingSettings.model_fields))),
        sampling=SamplingSettings(**c.responses.model_dump(include=set(SamplingSettings.model_fields))),
        engine={
            player.role: "a file" if player.is_file else models.own_engine(player).name
            for player in asked.players
        },
        seed=c.seed,
        resamples=c.evaluation.bootstrap,
        packages=package_versions(),
    )


def _tasks(models: TwoModels, asked: Asked, options: TaskOptions) -> tuple[list[TaskComparison], TaskAverage]:
    """Both models on lm-eval's tasks, paired; and the mean over the tasks of each."""
    from sao.evaluation.tasks import compare_tasks, run_tasks

    # lm-eval runs on transformers, whatever answers the questions.
    engine = models.own_engine(asked.base).model_copy(update={"name": "transformers"})
    base, tuned = (
        run_tasks(
            player.model,
            options.tasks,
            cache=models.root / "tasks",
            engine=engine,
            revision=player.revision,
            limit=options.limit,
            batch_size=options.batch_size,
            include_path=options.include_path,
            data_dir=options.data_dir,
            template=options.template,
            notify=models.runner.notify,
        )
        for player in (asked.base, asked.tuned)
    )
    compared = compare_tasks(
        base, tuned, resamples=models.config.evaluation.bootstrap, seed=models.config.seed
    )
    return compared, TaskAverage(base=base.average, tuned=tuned.average)


def questions_of(suite: Suite, asked: Asked) -> list[Question]:
    """The suite's questions: those given, the held-out prompts of the tuned model's run, or the preset's.

    Raises ConfigError where there are none.
    """
    source = asked.source(suite)
    run = asked.tuned.run or run_of(asked.tuned.model)
    if not source and run is not None:
        questions = held_out_questions(recorded(run).asked(True))
        if questions:
            return questions
    if not source:
        raise ConfigError(
            f"suite {suite.name}: no questions. Give them (--questions {suite.name}=FILE), or as --tuned a "
            "run that has held-out prompts",
            key="--questions",
        )
    given = on_disk(parse_source(source))
    questions = read_questions(
        given.path, revision=given.revision, subset=given.subset, split=given.split, column=given.column
    )
    references = asked.references.get(suite.name)
    return questions if references is None else with_references(questions, references)


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


def _try_judge(models: TwoModels, questions: list[Question], answers: Answers) -> dict[str, SelfTest]:
    """The judge on made-up pairs of the tuned model's own answers; asked once, then read from the folder."""
    groups = [(q.prompt, answers[q.prompt.id]) for q in questions if q.prompt.id in answers]
    n, config, seed = models.config.evaluation.self_tests, models.judging, models.config.seed
    shown = (text for q, own in groups for a in own for text in (q.id, q.conversation, a.id, a.text))
    settings = {**config.counted(), "template": load_template(config.template, FIELDS["duel"])}
    key = make_id(models.judge_identity.weights, dumps(settings), n, seed, *shown)
    path = models.root / f"self-tests-{key[:8]}.json"
    if not path.is_file():
        tests = try_judge(groups, n, lambda: models.session.engine(models.judge), config, seed)
        write_atomic(path, SELF_TESTS.dump_json(tests, indent=1).decode() + "\n")
    try:
        return SELF_TESTS.validate_json(path.read_text("utf-8"))
    except ValueError as error:
        raise StoreError(
            f"{path}: no self-tests as SAO writes them. Delete the file: the judge is asked again",
            key="self-tests",
        ) from error
