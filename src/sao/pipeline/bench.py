"""Evaluation of a trained model against its base: `sao eval --base A --tuned B --suite heldout alpaca … --out
DIR`.

Questions in; answers of each model, verdicts or marks of a judge, and a summary with intervals out. Answers
and verdicts are stages (sao.store) of the folder DIR, named by the hash of the weights and settings that made
them: a killed evaluation goes on, and what a model has answered is not asked again, whatever it is compared
with. `sao.evaluation` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sao.config import Config, EngineConfig, JudgingConfig, make_config
from sao.engines import Engine, open_engine, require_prefill
from sao.engines.auto import settled
from sao.errors import ConfigError
from sao.evaluation.identities import Identity, read_identity
from sao.evaluation.questions import Question, read_answers
from sao.evaluation.suites import (
    FIELDS,
    Suite,
    judge_by_text,
    ordered_pairs,
    rate,
    references_of,
    turn_prompt,
)
from sao.execution.drops import DropWatch, check_finished
from sao.models.gguf import is_gguf
from sao.models.load import check_model
from sao.models.locate import find_model, identity_of, is_local, weights_identity
from sao.pipeline.folder import recorded
from sao.records import Drop, Judgment, Prompt, Rating, Record, Response, make_id
from sao.stages import judging
from sao.stages.responses import answer_prompts
from sao.store.manifest import read_manifest
from sao.store.stage import Stage
from sao.templates import load_template

Answers = dict[str, list[Response]]
"""By a question's id, one for each turn."""
Notify = Callable[[str], None]
FAILED = "the judge gave no answer"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A model that is evaluated: a folder, a hub id, or the file of its answers. `run` is the run folder that
    it was named by."""

    role: str
    model: str
    revision: str | None = None
    run: Path | None = None

    @property
    def is_file(self) -> bool:
        """Whether its answers are given."""
        return Path(self.model).is_file() and not is_gguf(self.model)

    @property
    def title(self) -> str:
        """What it is called in files for others: no path of this machine."""
        path = Path(self.model)
        if not path.exists():
            return self.model
        run = run_of(self.model) if path.name == "model" else None
        return path.name if run is None else run.name


def player(role: str, name: str) -> Player:
    """A player by what the user gives: a folder, `ID@REVISION`, a file of answers, or a run folder (its base
    or trained model).

    Raises ConfigError for a run without the trained model that its recipe asks for.
    """
    path = Path(name)
    if (path / "manifest.json").is_file():
        config = recipe_of(path)
        if role == "base":
            return Player(role=role, model=config.model, revision=config.revision, run=path)
        model = recorded(path).round.model_dir
        if not (model / "config.json").is_file():
            others = (
                ", ".join(str(p.parent) for p in sorted(path.glob("round-*/train-*/model/config.json")))
                or "none"
            )
            raise ConfigError(
                f"{name}: a run without a trained model of its recipe. Train it (sao run … --out {name}), or "
                "name one of these "
                f"folders: {others}"
            )
        return Player(role=role, model=str(model), run=path)
    model_id, _, revision = name.partition("@") if not path.exists() else (name, "", "")
    return Player(role=role, model=model_id, revision=revision or None)


def recipe_of(run: Path) -> Config:
    """The recipe that a run folder was last used with."""
    return make_config(read_manifest(run)["config"], f"{run}/manifest.json")


def run_of(model: str) -> Path | None:
    """The run folder in which a trained model lies, None where it lies in none."""
    parents = list(Path(model).resolve().parents)
    return next((folder for folder in parents[:4] if (folder / "manifest.json").is_file()), None)


@dataclass
class Bench:
    """The work of an evaluation in the folder `out`. `given` engines (by role: base, tuned, reference, judge)
    take the place of the configured ones (tests, planted judges)."""

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

    def own_engine(self, player: Player) -> EngineConfig:
        """What runs a model that is evaluated: eval.engine, or the recipe's, or the built-in one where that
        is a server, which cannot be given two models. A server of eval.engine is asked for the model by its
        own name."""
        c = self.config
        engine = c.eval.engine or c.engine
        if c.eval.engine is None and engine.name == "openai":
            return engine.model_copy(update={"name": "transformers"})
        if engine.name == "openai":
            if engine.openai.model is not None:
                raise ConfigError(
                    "eval.engine.openai.model: base and tuned would be the same model there. Leave it out"
                )
            return engine.model_copy(
                update={"openai": engine.openai.model_copy(update={"model": player.model})}
            )
        return settled(engine, player.model, player.revision)

    def check(self, config: EngineConfig, model: str, revision: str | None, prefill: bool = False) -> None:
        """Raise ModelError or EngineError for a model or a server that cannot be used."""
        if config.name not in ("openai", "scripted"):
            check_model(model, config, revision)
        elif prefill:
            require_prefill(self.engine("judge", config, model, revision), config.openai.base_url)

    @cached_property
    def judging(self) -> JudgingConfig:
        """How is judged."""
        return judging.reading_judge(self.config.judging)

    @cached_property
    def judge(self) -> tuple[EngineConfig, str, str | None]:
        """What judges."""
        c, engine = self.config, self.judging.engine
        if engine is None or engine.model is None:
            return settled(engine or c.engine, c.model, c.revision), c.model, c.revision
        return settled(engine, engine.model, engine.revision), engine.model, engine.revision

    def identity(self, player: Player) -> Identity:
        """Who a player is."""
        if player.role in self.given:
            return Identity(weights=self.given[player.role].identity, name=player.model)
        if player.is_file:
            return Identity(
                weights=make_id("file", Path(player.model).read_bytes()), name=Path(player.model).name
            )
        return _identity(self.own_engine(player), player.model, player.revision)

    @cached_property
    def judge_identity(self) -> Identity:
        """Who judges."""
        if "judge" in self.given:
            return Identity(weights=self.given["judge"].identity, name=self.given["judge"].name)
        engine = self.judging.engine
        return _identity(*self.judge, named=engine is None or engine.model is not None)

    # Answers.

    def answers(self, player: Player, questions: list[Question]) -> Answers:
        """The player's answers, those cut off or empty among them. Raises DropError where the engine gave
        none to many."""
        if player.is_file:
            return read_answers(player.model, questions)
        found: Answers = {}
        c, before = self.config.responses.model_copy(update={"n": 1}), None
        for turn in range(1 + max(len(q.later) for q in questions)):
            asked = [q for q in questions if len(q.later) >= turn and len(found.get(q.prompt.id, ())) == turn]
            prompts = [turn_prompt(q, found, turn) for q in asked]
            settings = {
                "model": self.identity(player).weights,
                "engine": self._engine_of(player),
                "seed": self.config.seed,
                "questions": make_id(*(p.id for p in prompts)),
                **c.model_dump(mode="json", include={"system", "temperature", "top_p", "max_tokens"}),
            }
            before = self._stage("answers", settings, before)

            def make(
                key: str, done: Container[str], prompts: list[Prompt] = prompts
            ) -> Iterator[Response | Drop]:
                engine = self.engine(player.role, self.own_engine(player), player.model, player.revision)
                return answer_prompts(prompts, engine, c, key, done, keep_cut=True)

            self._fill(
                f"{player.role} answers", before, Response, len(prompts), make, (p.row for p in prompts)
            )
            answered = {r.prompt_id: r for r in before.records(Response)}
            for question, prompt in zip(asked, prompts, strict=True):
                if prompt.id in answered:
                    answer = replace(answered[prompt.id], prompt_id=question.prompt.id, index=turn)
                    found.setdefault(question.prompt.id, []).append(answer)
        whole = {q.prompt.id: 1 + len(q.later) for q in questions}
        return {id_: group for id_, group in found.items() if len(group) == whole[id_]}

    def _engine_of(self, player: Player) -> list[str]:
        """What else than its weights a model's words depend on."""
        engine = self.own_engine(player)
        return ["given"] if player.role in self.given else [engine.name, engine.dtype]

    # Verdicts.

    def verdicts(
        self, suite: Suite, questions: list[Question], ours: Answers, theirs: Answers, template: str
    ) -> list[Judgment]:
        """The judge on our answers against theirs, in both orders; what the judge failed to answer is
        unreadable."""
        c = self.judging.model_copy(update={"template": template})
        settings = self._judging(suite, template, c, questions) | {"pairs": _digest(questions, ours, theirs)}
        stage = self._stage("verdicts", settings)
        name = self.judge_identity.name

        def make(key: str, done: Container[str]) -> Iterator[Judgment | Drop]:
            pairs = ordered_pairs(questions, ours, theirs, key)
            engine = self.engine("judge", *self.judge)
            if suite.way == "duel":
                return judging.judge(pairs, engine, c, done, name=name)
            references, longest = references_of(questions), self.config.eval.max_tokens
            return judge_by_text(pairs, engine, suite, template, longest, done, name, references=references)

        rows = (pair.row for pair in ordered_pairs(questions, ours, theirs, stage.key))
        self._fill(f"{suite.name} verdicts", stage, Judgment, 2 * len(questions), make, rows)
        said = {judgment.id: judgment for judgment in stage.records(Judgment)}
        return [
            said.get(pair.id)
            or Judgment(
                id=pair.id, row=pair.row, prompt_id=pair.prompt_id, first_id=pair.first.id,
                second_id=pair.second.id,
                judge=name, verdict=None, text=FAILED,
            )
            for pair in ordered_pairs(questions, ours, theirs, stage.key)
        ]  # fmt: skip

    def ratings(self, suite: Suite, questions: list[Question], ours: Answers, template: str) -> list[Rating]:
        """The judge's marks of our answers."""
        settings = self._judging(suite, template, None, questions) | {"answers": _digest(questions, ours, {})}
        stage = self._stage("ratings", settings)
        turns, name = sum(1 + len(q.later) for q in questions), self.judge_identity.name

        def make(key: str, done: Container[str]) -> Iterator[Rating | Drop]:
            engine = self.engine("judge", *self.judge)
            return rate(
                questions,
                ours,
                engine,
                template,
                self.config.eval.max_tokens,
                key,
                done,
                self.judge_identity.name,
            )

        self._fill(f"{suite.name} marks", stage, Rating, turns, make)
        said = {rating.response_id: rating for rating in stage.records(Rating)}
        return [
            said.get(answer.id)
            or Rating(
                id=answer.id,
                row=0,
                prompt_id=answer.prompt_id,
                response_id=answer.id,
                judge=name,
                score=None,
                text=FAILED,
            )
            for group in ours.values()
            for answer in group
        ]

    def _judging(
        self, suite: Suite, template: str, c: JudgingConfig | None, questions: list[Question]
    ) -> dict[str, Any]:
        """What a judge's word depends on."""
        used = {"method", "choices", "min_mass", "temperature", "max_tokens", "reasoning"}
        own: dict[str, Any] = {"max_tokens": self.config.eval.max_tokens}
        if c is not None and suite.way == "duel":
            own = c.model_dump(mode="json", include=used) | ({"prefill": c.prefill} if c.prefill else {})
        elif any(q.references for q in questions):
            own["references"] = make_id(*(text for q in questions for text in q.references))
        text = load_template(template, FIELDS[suite.way])
        return {"way": suite.way, "judge": self.judge_identity.weights, "text": text, **own}

    # Stages.

    def _stage(self, name: str, settings: dict[str, Any], before: Stage | None = None) -> Stage:
        return Stage(self.out, name, settings | {"upstream": before.fingerprint if before else None})

    def _fill(
        self, title: str, stage: Stage, kind: type[Record], total: int,
        make: Callable[[str, Container[str]], Iterable[Record | Drop]], rows: Iterable[int] = (),
    ) -> None:  # fmt: skip
        limit = self.config.max_drop_share
        if not stage.open().finished:
            done, watch = len(stage.done), DropWatch(stage, limit, rows)

            def see(record: Record | Drop) -> None:
                nonlocal done
                done += 1
                self.progress(title, done, total)
                watch.see(record)

            self.progress(title, done, total)
            stage.fill(kind, make, see)
        check_finished(stage, limit)


def _identity(config: EngineConfig, model: str, revision: str | None, named: bool = True) -> Identity:
    """Who the engine would run; `named`: whether the model was said for this engine, or is only the
    recipe's."""
    if config.name == "openai" and not named and config.openai.model is not None:
        # The server's own name says who it is; the recipe's model is another one.
        return read_identity(
            f"openai:{config.openai.base_url}:{config.openai.model}", config.openai.model, None, plain=""
        )
    here = config.name in ("transformers", "vllm") or (config.name == "openai" and is_local(model))
    plain = weights_identity(model, revision) if here else model
    folder = find_model(model, revision) if here else None
    return read_identity(identity_of(config, model, revision), model, folder, plain=plain)


def _digest(questions: list[Question], ours: Answers, theirs: Answers) -> str:
    """What is judged, by the ids and texts of the answers."""
    groups = (group for q in questions for side in (ours, theirs) for group in side.get(q.prompt.id, ()))
    return make_id(*(part for answer in groups for part in (answer.id, answer.text)))
