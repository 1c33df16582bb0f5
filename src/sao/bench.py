"""Evaluation of a trained model against its base: `sao eval --base A --tuned B --suite heldout alpaca … --out DIR`.

Questions in; answers of each model, verdicts or marks of a judge, and a summary with intervals out. Answers and verdicts are
stages (sao.store) of the folder DIR, named by the hash of the weights and settings that made them: a killed evaluation goes on,
and what a model has answered is not asked again, whatever it is compared with. `sao.evaluation` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sao import judging
from sao.chat import find_model, identity_of, is_local
from sao.config import Config, EngineConfig, JudgingConfig
from sao.engines import Engine, open_engine
from sao.errors import ConfigError, DropError
from sao.evaluation.guards import Identity, read_identity
from sao.evaluation.questions import Question, read_answers
from sao.evaluation.suites import FIELDS, Suite, duels, judge_by_text, rate, turn_prompt
from sao.responses import answer_prompts
from sao.store import Stage, read_manifest
from sao.templates import load_template
from sao.types import Drop, Judgment, Prompt, Rating, Record, Response, make_id

Answers = dict[str, list[Response]]
"""By a question's id, one for each turn."""
Notify = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A model that is evaluated: a folder, a hub id, or the file of its answers."""

    role: str
    model: str
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether its answers are given."""
        return Path(self.model).is_file()


def player(role: str, name: str) -> Player:
    """A player by what the user gives: a folder, `ID@REVISION`, a file of answers, or a run folder (its base or trained
    model)."""
    path = Path(name)
    if (path / "manifest.json").is_file():
        if role == "tuned":
            found = sorted(path.glob("round-*/train-*/model/config.json"), key=lambda p: p.stat().st_mtime)
            if not found:
                raise ConfigError(f"{name}: a run without a trained model. Train it first: sao run … --out {name}")
            return Player(role=role, model=str(found[-1].parent))
        config = read_manifest(path)["config"]
        return Player(role=role, model=config["model"], revision=config["revision"])
    model, _, revision = name.partition("@") if not path.exists() else (name, "", "")
    return Player(role=role, model=model, revision=revision or None)


@dataclass
class Bench:
    """The work of an evaluation in the folder `out`. `given` engines (by role: base, tuned, reference, judge) take the place of
    the configured ones (tests, planted judges)."""

    config: Config
    out: Path
    given: Mapping[str, Engine] = field(default_factory=dict)
    notify: Notify = lambda line: None
    progress: Progress = lambda stage, done, total: None
    _open: tuple[Any, Engine] | None = field(default=None, init=False)

    # Engines: one is open at a time, so that each has all the memory.

    def engine(self, role: str, config: EngineConfig, model: str, revision: str | None) -> Engine:
        """The engine of a role, opened when first needed."""
        if role in self.given:
            return self.given[role]
        key = (config, model, revision)
        if self._open is None or self._open[0] != key:
            self.close()
            self.notify(f"asking {config.openai.base_url}" if config.name == "openai" else f"loading {model}")
            self._open = (key, open_engine(config, model, revision, self.notify))
        return self._open[1]

    def close(self) -> None:
        """Give back the engine's memory."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    @property
    def own_engine(self) -> EngineConfig:
        """What runs the models that are evaluated."""
        return self.config.eval.engine or self.config.engine

    @cached_property
    def judge(self) -> tuple[EngineConfig, str, str | None]:
        """What judges."""
        engine = self.config.judging.engine
        if engine is None:
            return self.config.engine, self.config.model, self.config.revision
        return engine, engine.model or self.config.model, engine.revision if engine.model else self.config.revision

    def identity(self, player: Player) -> Identity:
        """Who a player is."""
        if player.role in self.given:
            return Identity(weights=self.given[player.role].identity, name=player.model)
        if player.is_file:
            return Identity(weights=make_id("file", Path(player.model).read_bytes()), name=Path(player.model).name)
        return _identity(self.own_engine, player.model, player.revision)

    @cached_property
    def judge_identity(self) -> Identity:
        """Who judges."""
        config, model, revision = self.judge
        if "judge" in self.given:
            return Identity(weights=self.given["judge"].identity, name=self.given["judge"].name)
        return _identity(config, model, revision)

    # Answers.

    def answers(self, player: Player, questions: list[Question]) -> Answers:
        """The player's answers, those cut off or empty among them. Raises DropError where the engine gave none to many."""
        if player.is_file:
            return read_answers(player.model, questions)
        found: Answers = {}
        c, before = self.config.responses.model_copy(update={"n": 1}), None
        for turn in range(1 + max(len(q.later) for q in questions)):
            asked = [q for q in questions if len(q.later) >= turn and len(found.get(q.prompt.id, ())) == turn]
            prompts = [turn_prompt(q, found, turn) for q in asked]
            settings = {
                "model": self.identity(player).weights,
                "questions": make_id(*(p.id for p in prompts)),
                **c.model_dump(mode="json", include={"system", "temperature", "top_p", "max_tokens"}),
            }
            before = self._stage("answers", settings, before)

            def make(key: str, done: Container[str], prompts: list[Prompt] = prompts) -> Iterator[Response | Drop]:
                engine = self.engine(player.role, self.own_engine, player.model, player.revision)
                return answer_prompts(prompts, engine, c, key, done, keep_cut=True)

            self._fill(f"{player.role} answers", before, Response, len(prompts), make)
            answered = {r.prompt_id: r for r in before.records(Response)}
            for question, prompt in zip(asked, prompts, strict=True):
                if prompt.id in answered:
                    answer = replace(answered[prompt.id], prompt_id=question.prompt.id, index=turn)
                    found.setdefault(question.prompt.id, []).append(answer)
        whole = {q.prompt.id: 1 + len(q.later) for q in questions}
        return {id_: group for id_, group in found.items() if len(group) == whole[id_]}

    # Verdicts.

    def verdicts(
        self, suite: Suite, questions: list[Question], ours: Answers, theirs: Answers, template: str
    ) -> list[Judgment]:
        """The judge on our answers against theirs, in both orders."""
        c = self.config.judging.model_copy(update={"orders": "both", "opponents": None, "template": template})
        if c.method not in ("logprob", "text"):
            c = c.model_copy(update={"method": "logprob", "reasoning": False})
        settings = self._judging(suite, template, c) | {"pairs": _digest(questions, ours, theirs)}
        stage = self._stage("verdicts", settings)
        name = self.judge_identity.name

        def make(key: str, done: Container[str]) -> Iterator[Judgment | Drop]:
            pairs = duels(questions, ours, theirs, key)
            engine = self.engine("judge", *self.judge)
            if suite.way == "duel":
                return judging.judge(pairs, engine, c, done, name=name)
            return judge_by_text(pairs, engine, suite, template, self.config.eval.max_tokens, done, name)

        self._fill(f"{suite.name} verdicts", stage, Judgment, 2 * len(questions), make)
        return list(stage.records(Judgment))

    def ratings(self, suite: Suite, questions: list[Question], ours: Answers, template: str) -> list[Rating]:
        """The judge's marks of our answers."""
        settings = self._judging(suite, template, None) | {"answers": _digest(questions, ours, {})}
        stage = self._stage("ratings", settings)
        turns = sum(1 + len(q.later) for q in questions)

        def make(key: str, done: Container[str]) -> Iterator[Rating | Drop]:
            engine = self.engine("judge", *self.judge)
            return rate(
                questions, ours, engine, template, self.config.eval.max_tokens, key, done, self.judge_identity.name
            )

        self._fill(f"{suite.name} marks", stage, Rating, turns, make)
        return list(stage.records(Rating))

    def _judging(self, suite: Suite, template: str, c: JudgingConfig | None) -> dict[str, Any]:
        """What a judge's word depends on."""
        used = {"method", "choices", "min_mass", "temperature", "max_tokens", "reasoning"}
        own = (
            c.model_dump(mode="json", include=used)
            if c and suite.way == "duel"
            else {"max_tokens": self.config.eval.max_tokens}
        )
        return {
            "way": suite.way,
            "judge": self.judge_identity.weights,
            "text": load_template(template, FIELDS[suite.way]),
            **own,
        }

    # Stages.

    def _stage(self, name: str, settings: dict[str, Any], before: Stage | None = None) -> Stage:
        return Stage(self.out, name, settings | {"upstream": before.fingerprint if before else None})

    def _fill(
        self, title: str, stage: Stage, kind: type[Record], total: int,
        make: Callable[[str, Container[str]], Iterable[Record | Drop]],
    ) -> None:  # fmt: skip
        if not stage.open().finished:
            done = len(stage.done)

            def see(record: Record | Drop) -> None:
                nonlocal done
                done += 1
                self.progress(title, done, total)

            self.progress(title, done, total)
            stage.fill(kind, make, see)
        counts = stage.counts
        if counts["dropped"] > self.config.max_drop_share * max(1, counts["dropped"] + counts["records"]):
            raise DropError(
                f"{title}: {counts['dropped']} were not to be had ({counts['reasons']}). Look at {stage.path}"
            )


def _identity(config: EngineConfig, model: str, revision: str | None) -> Identity:
    weights = identity_of(config, model, revision)
    here = config.name in ("transformers", "vllm") or (config.name == "openai" and is_local(model))
    name = f"{config.openai.model or model}" if config.name == "openai" else model
    return read_identity(weights, name, find_model(model, revision) if here else None)


def _digest(questions: list[Question], ours: Answers, theirs: Answers) -> str:
    """What is judged, by the ids and texts of the answers."""
    groups = (group for q in questions for side in (ours, theirs) for group in side.get(q.prompt.id, ()))
    return make_id(*(part for answer in groups for part in (answer.id, answer.text)))
