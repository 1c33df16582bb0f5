"""Who does what in a round: one model writes and answers (`policy`), judges judge, training starts from
`initial`, and the result is compared with `base`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sao.config import ChatConfig, Config, EngineConfig, JudgingConfig
from sao.config.judging import READERS
from sao.execution.session import Role
from sao.stages.judging import reading_judge

ASKED = (*READERS, "reward")
"""The methods of judging that ask a model."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge of the run: its name in the records, how it judges, the weight of its vote, and what runs
    it."""

    name: str
    config: JudgingConfig
    weight: float
    role: Role


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The models of one round."""

    policy: Role
    """Writes personas and prompts, and answers them."""
    judges: tuple[Judge, ...]
    """The first judge, and those of the panel."""
    initial: Role
    """What training starts from."""
    reference: Role
    """What losses with a reference compare with."""
    rejected: Role | None
    """Writes the second half of a prompt's answers; None where the policy writes all."""
    base: Role
    """What the trained model is compared with."""
    reader: Judge
    """Who judges the comparison of base and tuned: the first judge in both orders; controls label training
    pairs only, and then the model itself judges."""


def roles_of(config: Config, current: str | None = None) -> Roles:
    """The roles of a round. `current` is the model that the round before trained, a folder; None in the
    first round, which begins with the recipe's model."""
    first = Role(
        name="policy", engine=config.engine, model=config.model, revision=config.revision, chat=config.chat,
        ray=config.ray,
    )  # fmt: skip
    rounds, later = config.rounds, current is not None
    policy = first if current is None else replace(first, name="current", model=current, revision=None)
    initial = policy if rounds.train_from == "current" else first
    how = reading_judge(config.judging.model_copy(update={"panel": []}))
    return Roles(
        policy=policy,
        judges=_judges(config, current),
        initial=replace(initial, name="current" if initial is policy and later else "initial"),
        reference=initial if rounds.reference == "current" else first,
        rejected=first if later and rounds.rejected == "initial" else None,
        base=replace(first, name="base", engine=_evaluation_engine(config)),
        reader=Judge(name=judge_name(how), config=how, weight=1.0, role=judge_role(config, how)),
    )


def _judges(config: Config, current: str | None) -> tuple[Judge, ...]:
    """The judges of the round: the first, and those of the panel, each with a name of its own. Where the
    model judges itself, the `current` one takes its place, or votes beside it, as rounds.judge says."""
    judging = config.judging
    first = judging.model_copy(update={"panel": []})
    each = [(first, 1.0)]
    for member in judging.panel:
        own: dict[str, Any] = {"engine": member.engine or judging.engine}
        if member.template is not None:
            own |= {"template": member.template, "wordings": []}
        each.append((first.model_copy(update=own), member.weight))
    found: list[Judge] = []
    for number, (how, weight) in enumerate(each, 1):
        told = f" with {how.template}" if how.template != judging.template else ""
        for after, role in _who(config, how, current):
            name = f"{judge_name(how)}{after}{told}"
            if name in {judge.name for judge in found}:
                name = f"{name} #{number}"
            found.append(Judge(name=name, config=how, weight=weight, role=role))
    return tuple(found)


def _who(config: Config, how: JudgingConfig, current: str | None) -> list[tuple[str, Role]]:
    """What runs a judge, with what its name says of it."""
    first = judge_role(config, how)
    if current is None or not judges_itself(how):
        return [("", first)]
    now = replace(first, name="current", model=current, revision=None)
    known = {"initial": [("", first)], "current": [("", now)]}
    return known.get(config.rounds.judge, [(AT_FIRST, first), (NOW, now)])


AT_FIRST, NOW = " at first", " now"
"""Ends of the names of two judges of rounds.judge both: the model that the run began with, and the round's
own."""


def judges_itself(judging: JudgingConfig) -> bool:
    """Whether the model that writes also judges."""
    named = judging.engine is not None and judging.engine.model is not None
    return judging.method in READERS and not named


def judge_name(judging: JudgingConfig) -> str:
    """Who judges, in the records."""
    if judging.method not in ASKED:
        return judging.function or judging.method
    return "self" if judging.engine is None or judging.engine.model is None else judging.engine.model


def judge_role(config: Config, judging: JudgingConfig) -> Role:
    """What judges: the recipe's model, unless judging.engine names another, to which the recipe's section
    `chat` does not belong."""
    engine, model, revision = judging.engine or config.engine, config.model, config.revision
    if judging.engine is not None and judging.engine.model is not None:
        model, revision = judging.engine.model, judging.engine.revision
    chat = config.chat if model == config.model else ChatConfig()
    return Role(name="judge", engine=engine, model=model, revision=revision, chat=chat, ray=config.ray)


def _evaluation_engine(config: Config) -> EngineConfig:
    """What runs base and tuned model: a server cannot be given the tuned weights."""
    if config.evaluation.engine is not None or config.engine.name != "openai":
        return config.evaluation.engine or config.engine
    return config.engine.model_copy(update={"name": "transformers"})
