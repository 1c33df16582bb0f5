"""What `sao eval --base --tuned` is asked for: models, suites, sets of questions, options; and the questions
of the judged suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sao.data.contamination_sets import on_disk, parse_source
from sao.errors import ConfigError
from sao.evaluation.known_items import KnownSuite
from sao.evaluation.questions import Question, held_out_questions, read_questions, with_references
from sao.evaluation.suites import Suite
from sao.pipeline.folder import recorded
from sao.pipeline.players import Player, run_of


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
    limit: int | None = None
    """Questions of each suite at most; None: all."""
    data_dir: Path | None = None
    """Where the questions lie as files."""
    answers_only: bool = False
    """Whether the judged suites are answered and not judged."""

    @property
    def players(self) -> list[Player]:
        """All that answer."""
        return [self.base, self.tuned, *([self.reference] if self.reference else [])]

    def source(self, suite: Suite) -> str:
        """The set of a suite's questions: the one that is given, a file of the set's name in the folder, or
        the set itself; "" for the held-out prompts of the tuned model's run."""
        file = self.data_dir / f"{suite.questions}.jsonl" if self.data_dir and suite.questions else None
        in_folder = str(file) if file is not None and file.is_file() else ""
        return self.questions.get(suite.name) or in_folder or suite.questions


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What `sao.evaluation.tasks.run_tasks` is told."""

    tasks: Sequence[str] = ("leaderboard",)
    template: bool = False
    limit: int | None = None
    batch_size: int = 8
    data_dir: Path | None = None
    include_path: Path | None = None


def check_options(asked: Asked, suites: Sequence[Suite], known: Sequence[KnownSuite]) -> None:
    """Raise ConfigError for options that do not go together."""
    judged = {suite.name for suite in suites}
    by_suite = {
        "--questions": (asked.questions, judged | {suite.name for suite in known}),
        "--template": (asked.templates, judged),
        "--references": (asked.references, judged),
    }
    if asked.limit is not None and asked.limit < 1:
        raise ConfigError(f"--limit {asked.limit}: give a number of questions from 1 on", key="--limit")
    for option, (given, names) in by_suite.items():
        if unknown := sorted(set(given) - names):
            raise ConfigError(
                f"{option} {unknown[0]}=…: that suite is not among those asked for (--suite)", key=option
            )
    if (asked.difficulty or asked.gamed) and not (asked.reference and asked.reference.is_file):
        raise ConfigError(
            "--difficulty and --gamed go with --reference FILE, the baseline's model_outputs.json",
            key="--difficulty",
        )


def source_in_words(source: str) -> str:
    """Where a suite's questions come from."""
    return str(parse_source(source)) if source else "held-out prompts of the run"


def questions_of(suite: Suite, asked: Asked) -> list[Question]:
    """The suite's questions: those given, the held-out prompts of the tuned model's run, or the preset's.

    Raises ConfigError where there are none.
    """
    source = asked.source(suite)
    run = asked.tuned.run or run_of(asked.tuned.model)
    if not source and run is not None:
        questions = held_out_questions(recorded(run).asked(True))
        if questions:
            return questions[: asked.limit]
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
    questions = questions if references is None else with_references(questions, references)
    return questions[: asked.limit]
