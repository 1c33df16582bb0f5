"""The steps of checkable prompts: constraints are appended that a program can check (`sao.checks`), and the
base model says how probable it finds the held-out answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sao import checks
from sao.config import Config, PromptsConfig
from sao.data.messages import chat
from sao.engines import ContinuationRequest, Failure, require_continuations
from sao.errors import EngineError, ModelError
from sao.execution.session import Role
from sao.execution.step import Work
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round
from sao.pipeline.settings import own_pairs
from sao.records import Drop, Likelihoods, Prompt, make_id
from sao.stages import rows


def has_checkable(config: Config) -> bool:
    """Whether some prompts end with constraints that a program can check."""
    asked = config.prompts.checkable if own_pairs(config) else 0.0
    return config.pairs.imported is None and (asked > 0 or config.evaluation.checkable > 0)


def make_checkable(work: Work[Round]) -> Iterator[Prompt]:
    """All prompts again, a share of them with constraints. Training prompts have kinds that may be trained on
    only; of the held-out ones, half have these and half have the kinds that are never trained on."""
    config = work.config
    for prompt in work.read("filtered", Prompt):
        is_held_out = rows.is_held_out(prompt.row)
        share = config.evaluation.checkable if is_held_out else config.prompts.checkable
        yield with_checks(prompt, config.prompts, share, config.seed, make_id(work.key, prompt.id))


def with_checks(prompt: Prompt, asked: PromptsConfig, share: float, seed: int, new_id: str) -> Prompt:
    """A prompt with constraints, or without in all but a `share` of cases. What is drawn depends on seed and
    prompt alone, and a larger share adds to the smaller one."""
    held_out = rows.is_held_out(prompt.row)
    draw = random.Random(f"checkable {seed} {prompt.id}")
    if draw.random() >= share:
        return replace(prompt, id=new_id)
    unseen = held_out and draw.random() < 0.5
    names = checks.UNSEEN if unseen else asked.check_kinds or checks.TRAINED
    constraints = checks.draw(draw, prompt.text, names, asked.max_checks)
    text = checks.with_constraints(draw, prompt.text, constraints)
    return replace(prompt, id=new_id, text=text, checks=constraints)


def reads_answers(config: Config) -> bool:
    """Whether the base model says how probable the held-out answers are."""
    return (
        config.personas.held_out > 0 and config.evaluation.checkable > 0 and config.evaluation.base_logprobs
    )


def base_as_reader(run: Round) -> Role:
    """The base model in the built-in engine, which reads whole answers."""
    role = run.roles.base
    return replace(role, engine=role.engine.model_copy(update={"name": "transformers"}))


def base_logprob_settings(run: Round, _: object) -> dict[str, Any]:
    """The base model and the system message."""
    return {"model": run.identity(run.roles.base), "system": run.config.responses.system}


def make_base_logprobs(work: Work[Round]) -> Iterator[Likelihoods | Drop]:
    """How probable the base model finds its own and the trained model's answer to each checkable held-out
    prompt. An answer that was cut off is read as if it had ended there."""
    system, waiting = work.config.responses.system, dict[str, Prompt]()

    def requests() -> Iterator[ContinuationRequest]:
        for prompt, base, tuned in Reader(work.run).held_out():
            id_ = make_id(work.key, prompt.id, base.id, tuned.id)
            if prompt.checks and id_ not in work.done:
                waiting[id_] = prompt
                yield ContinuationRequest(id_, chat(prompt, system), (base.text, tuned.text))

    try:
        engine = require_continuations(work.engine(base_as_reader(work.run)))
    except (ModelError, EngineError) as error:
        left_out = "Without this step the run goes on: --evaluation.base_logprobs false"
        raise type(error)(f"base_logprobs: {error}. {left_out}", key=error.key) from error
    for found in engine.continuation_logprobs(requests()):
        prompt = waiting.pop(found.id)
        row = rows.index_of(prompt.row)
        if isinstance(found, Failure):
            yield Drop(row=row, stage="base_logprobs", record_id=found.id, reason=found.reason)
        else:
            yield Likelihoods(
                id=found.id, row=row, prompt_id=prompt.id, logprobs=found.logprobs, tokens=found.tokens
            )
