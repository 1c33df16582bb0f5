"""`sao eval --base A --tuned B --suite …`: the suites one after the other, and what came of them.

Enters: a recipe (engine, judge, sampling), two models, suites. Leaves: an `Evaluation`, and in the folder
results.json (the same), items-SUITE.jsonl (one line for each question), answers-SUITE.md (answers to be
read), alpaca/ (files that alpaca_eval reads) and .eval_results/ (for the model's repository on the hub).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pydantic import TypeAdapter

from sao.analysis.asked import Asked, TaskOptions, check_options, questions_of, source_in_words
from sao.analysis.known_results import KnownWork
from sao.analysis.reading import write_answers
from sao.analysis.suite_results import SuiteWork
from sao.errors import ConfigError, StoreError
from sao.evaluation import alpaca_files, score
from sao.evaluation.identities import Label, judge_label
from sao.evaluation.judge_tests import try_judge
from sao.evaluation.known_items import KnownSuite, find_file
from sao.evaluation.known_suites import find_known, read_items
from sao.evaluation.outputs import write_eval_results
from sao.evaluation.questions import Question
from sao.evaluation.suites import FIELDS, TASKS, Suite, find_suites, read_template
from sao.execution.runner import watched
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
from sao.stages.by_model import needs_logprobs, require_logprobs
from sao.statistics import holm
from sao.store.files import dumps, write_atomic
from sao.store.manifest import package_versions
from sao.templates import load_template

__all__ = ["Asked", "TaskOptions", "evaluate", "questions_of"]
SELF_TESTS = TypeAdapter(dict[str, SelfTest])
"""The self-tests as they are kept in a file."""


def evaluate(
    models: TwoModels, asked: Asked, names: Sequence[str], tasks: TaskOptions | None = None
) -> Evaluation:
    """Run the suites of these names; what `sao eval --json` prints. Files are written into the evaluation's
    folder.

    Raises ConfigError for what cannot be, before any model is asked.
    """
    with watched(models.runner):
        models.runner.status.check()
        suites, known, options = find_suites(names), find_known(names), tasks or TaskOptions()
        check_options(asked, suites, known)
        works = [_known_work(models, asked, suite) for suite in known]
        _check(models, asked, suites, options if TASKS in names else None)
        models.runner.status.start()
        sides = _answered(models, asked, suites, works)
        evaluation = _compared(models, asked, sides, works)
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
    judged = [] if asked.answers_only else suites
    for suite in judged:
        template = _template(models, suite, asked)
        if suite.way == "duel":
            load_template(template, FIELDS[suite.way])
        else:
            read_template(template, suite.way)
    for player in asked.players:
        if not player.is_file and player.role not in models.given:
            models.check(models.role(player))
    if judged and "judge" not in models.given:
        models.check(models.judge, prefill=bool(models.judging.prefill))
        if models.judge.engine.name == "openai" and needs_logprobs(models.judging):
            require_logprobs(models.session.engine(models.judge), models.judging)
    if tasks is not None:
        _check_tasks(tasks)


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


def _known_work(models: TwoModels, asked: Asked, suite: KnownSuite) -> KnownWork:
    """A suite with known answers and its items."""
    given = asked.questions.get(suite.name)
    items = read_items(suite, asked.data_dir, given, asked.limit)
    source = "shipped with SAO" if suite.shipped and not given else find_file(suite, asked.data_dir, given)
    return KnownWork(models=models, suite=suite, source=source, items=items)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A judged suite with all answers."""

    suite: Suite
    questions: list[Question]
    sides: dict[str, Answers]
    """By role."""


def _answered(models: TwoModels, asked: Asked, suites: list[Suite], works: list[KnownWork]) -> list[Answered]:
    """All answers, model by model, so that each is loaded once."""
    answered = [Answered(suite=suite, questions=questions_of(suite, asked), sides={}) for suite in suites]
    for player in asked.players:
        for own in answered:
            own.sides[player.role] = models.answers(player, own.questions)
        for work in works if player.role != "reference" else ():
            work.ask(player)
    return answered


def _compared(
    models: TwoModels, asked: Asked, answered: list[Answered], works: list[KnownWork]
) -> Evaluation:
    """The suites' results: those that a judge gives, then those that a program gives."""
    judged = bool(answered) and not asked.answers_only
    label, why = _label(models, asked) if judged else ("", "")
    headline = label != "CIRCULAR" or asked.headline
    for name in ("alpaca", ".eval_results"):  # of an earlier evaluation here
        shutil.rmtree(models.root / name, ignore_errors=True)
    results = {own.suite.name: _suite_result(models, asked, own, headline) for own in answered}
    results |= {work.suite.name: work.result() for work in works}
    first = answered[0] if judged and models.config.evaluation.self_tests else None
    return Evaluation(
        base=asked.base.model,
        tuned=asked.tuned.model,
        reference=asked.reference.model if asked.reference else None,
        judge=models.judge_identity.name if judged else None,
        label=label,
        why=why,
        headline=headline,
        made_with=made_with(models, asked),
        suites=results,
        self_tests=_try_judge(models, first.questions, first.sides["tuned"]) if first else None,
    )


def _suite_result(models: TwoModels, asked: Asked, own: Answered, headline: bool) -> SuiteResult:
    """What the judge says of one suite's answers, or where they can be read."""
    source = source_in_words(asked.source(own.suite))
    if asked.answers_only:
        return write_answers(models, own.suite, source, own.questions, asked.players, own.sides)
    return SuiteWork(
        models=models,
        suite=own.suite,
        template=_template(models, own.suite, asked),
        source=source,
        questions=own.questions,
        players=asked.players,
        sides=own.sides,
        official=_official(asked),
        headline=headline,
    ).result()


def _label(models: TwoModels, asked: Asked) -> tuple[Label, str]:
    """How the judge is related to the models."""
    return judge_label(models.judge_identity, models.identity(asked.tuned), models.identity(asked.base))


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
    results = []
    for player in (asked.base, asked.tuned):
        models.runner.status.begin(f"{player.role} {TASKS}", 0, 0)
        found = run_tasks(
            player.model,
            options.tasks,
            cache=models.root / "tasks",
            engine=engine,
            revision=player.revision,
            chat=models.role(player).chat,
            limit=options.limit,
            batch_size=options.batch_size,
            include_path=options.include_path,
            data_dir=options.data_dir,
            template=options.template,
            notify=models.runner.notify,
        )
        results.append(found)
    base, tuned = results
    compared = compare_tasks(
        base, tuned, resamples=models.config.evaluation.bootstrap, seed=models.config.seed
    )
    return compared, TaskAverage(base=base.average, tuned=tuned.average)


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
    settings = {**config.counted(), "wordings": [load_template(name, ()) for name in config.templates]}
    key = make_id(models.judge_identity.weights, dumps(settings), n, seed, *shown)
    path = models.root / f"self-tests-{key[:8]}.json"
    if not path.is_file():
        models.runner.status.begin("judge self-tests", 0, 0)
        tests = try_judge(groups, n, lambda: models.session.engine(models.judge), config, seed)
        write_atomic(path, SELF_TESTS.dump_json(tests, indent=1).decode() + "\n")
    try:
        return SELF_TESTS.validate_json(path.read_text("utf-8"))
    except ValueError as error:
        raise StoreError(
            f"{path}: no self-tests as SAO writes them. Delete the file: the judge is asked again",
            key="self-tests",
        ) from error
