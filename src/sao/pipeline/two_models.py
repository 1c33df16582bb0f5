"""Evaluation of a trained model against its base: `sao eval --base A --tuned B --suite heldout alpaca … --out
DIR`.

Questions in; answers of each model, verdicts or marks of a judge, and a summary with intervals out. Answers
and verdicts are stages (sao.store) of the folder DIR, named by the hash of the weights and settings that made
them: a killed evaluation goes on, and what a model has answered is not asked again, whatever it is compared
with. `sao.evaluation` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sao.config import ChatConfig, Config, EngineConfig, JudgingConfig, ResponsesConfig
from sao.engines import Engine, require_prefill
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
from sao.execution.runner import Progress, Runner
from sao.execution.session import Notify, Role, Session
from sao.execution.step import Step, Work
from sao.models.load import check_model
from sao.models.locate import find_model, identity_of, is_local, weights_identity
from sao.pipeline.likelihoods import WEIGH, Weighing
from sao.pipeline.players import Player
from sao.pipeline.roles import judge_role
from sao.records import Drop, Judgment, Likelihoods, Prompt, Rating, Response, make_id
from sao.stages import judging
from sao.stages.judging import OrderedPair
from sao.stages.responses import answer_prompts
from sao.store.stage import Stage
from sao.templates import load_template

Answers = dict[str, list[Response]]
"""By a question's id, one for each turn."""
FAILED = "the judge gave no answer"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """One player's answers to one turn of the questions; `before` is the turn before."""

    player: Player
    prompts: list[Prompt]
    before: Stage | None
    how: ResponsesConfig


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What a judge is shown: one side's answers, or those of two sides."""

    suite: Suite
    questions: list[Question]
    ours: Answers
    theirs: Answers
    template: str


class TwoModels:
    """An evaluation in the folder `root`: models that answer (`Player`), and a judge.

    `given` engines (by role: base, tuned, reference, judge) take the place of the configured ones (tests,
    planted judges).
    """

    def __init__(
        self,
        config: Config,
        root: Path,
        given: Mapping[str, Engine] | None = None,
        *,
        notify: Notify = lambda line: None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.config, self.root, self.given = config, root, dict(given or {})
        self.session = Session(notify, self.given)
        limit = config.max_drop_share
        self.runner = Runner(root, self.session, limit, progress, notify)
        self.session.notify = self.runner.notify

    def close(self) -> None:
        """Give back the memory of the engine that is open."""
        self.session.close()

    # Who answers and judges.

    def role(self, player: Player) -> Role:
        """What runs a player's model. The recipe's section `chat` belongs to base and tuned; a reference is
        another model."""
        chat = self.config.chat if player.role in ("base", "tuned") else ChatConfig()
        engine = self.own_engine(player)
        return Role(
            name=player.role, engine=engine, model=player.model, revision=player.revision, chat=chat,
            ray=self.config.ray,
        )  # fmt: skip

    def own_engine(self, player: Player) -> EngineConfig:
        """What runs a model that is evaluated: evaluation.engine, or the recipe's, or the built-in one where
        that is a server, which cannot be given two models. A server of evaluation.engine is asked for the
        model by its own name."""
        config = self.config
        engine = config.evaluation.engine or config.engine
        if config.evaluation.engine is None and engine.name == "openai":
            return engine.model_copy(update={"name": "transformers"})
        if engine.name == "openai":
            if engine.openai.model is not None:
                raise ConfigError(
                    "evaluation.engine.openai.model: base and tuned would be the same model there. Leave it "
                    "out",
                    key="evaluation.engine.openai.model",
                )
            return engine.model_copy(
                update={"openai": engine.openai.model_copy(update={"model": player.model})}
            )
        return settled(engine, player.model, player.revision)

    @cached_property
    def judging(self) -> JudgingConfig:
        """How is judged."""
        return judging.reading_judge(self.config.judging)

    @cached_property
    def judge(self) -> Role:
        """What judges."""
        role = judge_role(self.config, self.judging)
        return replace(role, engine=settled(role.engine, role.model, role.revision))

    def check(self, role: Role, prefill: bool = False) -> None:
        """Raise ModelError or EngineError for a model or a server that cannot be used."""
        if role.engine.name not in ("openai", "scripted"):
            check_model(role.model, role.engine, role.revision, chat=role.chat)
        elif prefill:
            require_prefill(self.session.engine(role), role.engine.openai.base_url)

    def identity(self, player: Player) -> Identity:
        """Who a player is."""
        if player.role in self.given:
            return Identity(weights=self.given[player.role].identity, name=player.model)
        if player.is_file:
            return Identity(
                weights=make_id("file", Path(player.model).read_bytes()), name=Path(player.model).name
            )
        return _identity(self.role(player))

    @cached_property
    def judge_identity(self) -> Identity:
        """Who judges."""
        if "judge" in self.given:
            return Identity(weights=self.given["judge"].identity, name=self.given["judge"].name)
        engine = self.judging.engine
        return _identity(self.judge, named=engine is None or engine.model is not None)

    # The steps: answers, then verdicts or marks.

    @property
    def table(self) -> Mapping[str, Step[TwoModels]]:
        """The steps by name."""
        return TABLE

    def stage(self, step: str, variant: Any = None) -> Stage:
        """Where the records of a step lie, by what made them."""
        before = variant.before if isinstance(variant, Asking) else None
        chain = {"revision": TABLE[step].revision, "upstream": before.fingerprint if before else None}
        return Stage(self.root, step, {**TABLE[step].settings(self, variant), "step": chain})

    def answers(
        self,
        player: Player,
        questions: list[Question],
        how: ResponsesConfig | None = None,
        title: str = "answers",
    ) -> Answers:
        """The player's answers, those cut off or empty among them, sampled as the recipe's `responses` say or
        as `how` says. Raises DropError where the engine gave none to many."""
        if player.is_file:
            return read_answers(player.model, questions)
        found: Answers = {}
        before: Stage | None = None
        for turn in range(1 + max(len(q.later) for q in questions)):
            asked = [q for q in questions if len(q.later) >= turn and len(found.get(q.prompt.id, ())) == turn]
            prompts = [turn_prompt(question, found, turn) for question in asked]
            asking = Asking(player=player, prompts=prompts, before=before, how=how or self.config.responses)
            before = self.runner.run_variant(TABLE["answers"], self, asking, f"{player.role} {title}")
            answered = {answer.prompt_id: answer for answer in before.records(Response)}
            for question, prompt in zip(asked, prompts, strict=True):
                if prompt.id in answered:
                    answer = replace(answered[prompt.id], prompt_id=question.prompt.id, index=turn)
                    found.setdefault(question.prompt.id, []).append(answer)
        whole = {question.prompt.id: 1 + len(question.later) for question in questions}
        return {id_: group for id_, group in found.items() if len(group) == whole[id_]}

    def likelihoods(self, weighing: Weighing, title: str) -> dict[str, Likelihoods]:
        """The player's log-probabilities of the endings of each text, by the question's id."""
        stage = self.runner.run_variant(WEIGH, self, weighing, f"{weighing.player.role} {title}")
        return {found.prompt_id: found for found in stage.records(Likelihoods)}

    def verdicts(self, shown: Judging) -> list[Judgment]:
        """The judge on our answers against theirs, in both orders; what the judge failed to answer is
        unparseable."""
        step, title = TABLE["verdicts"], f"{shown.suite.name} verdicts"
        stage = self.runner.run_variant(step, self, shown, title)
        said = {judgment.id: judgment for judgment in stage.records(Judgment)}
        name = self.judge_identity.name
        pairs = ordered_pairs(shown.questions, shown.ours, shown.theirs, stage.key)
        return [said.get(pair.id) or _no_verdict(pair, name) for pair in pairs]

    def ratings(self, shown: Judging) -> list[Rating]:
        """The judge's marks of our answers."""
        step, title = TABLE["ratings"], f"{shown.suite.name} ratings"
        stage = self.runner.run_variant(step, self, shown, title)
        said = {rating.response_id: rating for rating in stage.records(Rating)}
        name = self.judge_identity.name
        answers = (answer for group in shown.ours.values() for answer in group)
        return [said.get(answer.id) or _no_mark(answer, name) for answer in answers]


Two = Work[TwoModels]


def answer_settings(run: TwoModels, asking: Asking) -> dict[str, Any]:
    """What a player's answers depend on."""
    engine = run.own_engine(asking.player)
    return {
        **asking.how.counted(),
        "n": 1,
        "model": run.identity(asking.player).weights,
        "engine": ["given"] if asking.player.role in run.given else [engine.name, engine.dtype],
        "seed": run.config.seed,
        "questions": make_id(*(prompt.id for prompt in asking.prompts)),
    }


def make_answers(work: Two) -> Iterator[Response | Drop]:
    """One answer to each question of this turn."""
    asking: Asking = work.variant
    role = work.run.role(asking.player)
    once, extra = asking.how.model_copy(update={"n": 1}), role.chat.reasoning_tokens
    return answer_prompts(asking.prompts, work.engine(role), once, work.key, work.done, True, extra)


def judging_settings(run: TwoModels, shown: Judging, how: JudgingConfig | None) -> dict[str, Any]:
    """What a judge's verdicts and marks depend on; `how` is None for marks."""
    by_duel = how is not None and shown.suite.way == "duel"
    longest = run.config.evaluation.max_tokens
    own: dict[str, Any] = how.counted() if how is not None and by_duel else {"max_tokens": longest}
    if not by_duel and any(question.references for question in shown.questions):
        own["references"] = make_id(*(text for q in shown.questions for text in q.references))
    if how is not None and by_duel:
        own |= {"template_pointwise": None, "wordings": [load_template(name, ()) for name in how.templates]}
    text = load_template(shown.template, FIELDS[shown.suite.way])
    judge = run.judge_identity.weights
    return {**own, "engine": judge, "template": text, "panel": None, "way": shown.suite.way}


def verdict_settings(run: TwoModels, shown: Judging) -> dict[str, Any]:
    """The judge, what it is shown, and the answers."""
    pairs = _digest(shown.questions, shown.ours, shown.theirs)
    return judging_settings(run, shown, _shown_by(run, shown)) | {"pairs": pairs}


def rating_settings(run: TwoModels, shown: Judging) -> dict[str, Any]:
    """The same for marks."""
    return judging_settings(run, shown, None) | {"answers": _digest(shown.questions, shown.ours, {})}


def _shown_by(run: TwoModels, shown: Judging) -> JudgingConfig:
    """How a suite is judged: by the recipe's judge, with the suite's own template where it has one."""
    how = run.judging
    if shown.template == how.template:
        return how
    own: dict[str, Any] = {"template": shown.template, "wordings": []}
    return how.model_copy(update=own | ({"method": "logprob"} if how.method == "pointwise" else {}))


def _pairs_of(work: Two) -> Iterator[OrderedPair]:
    shown: Judging = work.variant
    return ordered_pairs(shown.questions, shown.ours, shown.theirs, work.key)


def make_verdicts(work: Two) -> Iterator[Judgment | Drop]:
    """The judge on our answers against theirs, in both orders."""
    run, shown, name = work.run, work.variant, work.run.judge_identity.name
    engine, pairs = work.engine(run.judge), _pairs_of(work)
    if shown.suite.way == "duel":
        return judging.judge(pairs, engine, _shown_by(run, shown), work.done, name=name)
    references, longest = references_of(shown.questions), work.config.evaluation.max_tokens
    return judge_by_text(
        pairs, engine, shown.suite, shown.template, longest, work.done, name, references=references
    )


def make_ratings(work: Two) -> Iterator[Rating | Drop]:
    """The judge's marks."""
    run, shown, longest = work.run, work.variant, work.config.evaluation.max_tokens
    name = run.judge_identity.name
    engine = work.engine(run.judge)
    return rate(shown.questions, shown.ours, engine, shown.template, longest, work.key, work.done, name)


STEPS: tuple[Step[TwoModels], ...] = (
    Step(
        name="answers", record=Response, settings=answer_settings, make=make_answers,
        rows=lambda work: (prompt.row for prompt in work.variant.prompts),
        total=lambda work: len(work.variant.prompts),
    ),
    Step(
        name="verdicts", record=Judgment, settings=verdict_settings, make=make_verdicts,
        rows=lambda work: (pair.row for pair in _pairs_of(work)),
        total=lambda work: sum(1 for _ in _pairs_of(work)),
    ),
    Step(
        name="ratings", record=Rating, settings=rating_settings, make=make_ratings,
        total=lambda work: sum(len(answers) for answers in work.variant.ours.values()),
    ),
    WEIGH,
)  # fmt: skip
"""Both models answer, or weigh the endings of texts; a judge compares the answers, or marks them."""
TABLE = {step.name: step for step in STEPS}


def _no_verdict(pair: OrderedPair, name: str) -> Judgment:
    return Judgment(
        id=pair.id,
        row=pair.row,
        prompt_id=pair.prompt_id,
        first_id=pair.first.id,
        second_id=pair.second.id,
        judge=name,
        verdict=None,
        text=FAILED,
    )


def _no_mark(answer: Response, name: str) -> Rating:
    return Rating(
        id=answer.id,
        row=0,
        prompt_id=answer.prompt_id,
        response_id=answer.id,
        judge=name,
        score=None,
        text=FAILED,
    )


def _identity(role: Role, named: bool = True) -> Identity:
    """Who the engine would run; `named`: whether the model was said for this engine, or is only the
    recipe's."""
    engine, server = role.engine, role.engine.openai
    if engine.name == "openai" and not named and server.model is not None:
        # The server's own name says who it is; the recipe's model is another one.
        return read_identity(f"openai:{server.base_url}:{server.model}", server.model, None, plain="")
    here = engine.name in ("transformers", "vllm") or (engine.name == "openai" and is_local(role.model))
    plain = weights_identity(role.model, role.revision) if here else role.model
    folder = find_model(role.model, role.revision) if here else None
    weights = identity_of(engine, role.model, role.revision, role.chat)
    return read_identity(weights, role.model, folder, plain=plain)


def _digest(questions: list[Question], ours: Answers, theirs: Answers) -> str:
    """What is judged, by the ids and texts of the answers."""
    groups = (group for q in questions for side in (ours, theirs) for group in side.get(q.prompt.id, ()))
    return make_id(*(part for answer in groups for part in (answer.id, answer.text)))
