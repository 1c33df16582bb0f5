"""The step that weighs the endings of texts: a model and items in, its log-probabilities of each item's
endings out (`Likelihoods`), one record for each item, so that a killed evaluation goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sao.engines import ContinuationRequest, Failure, require_continuations
from sao.evaluation.known_items import ChosenItem
from sao.execution.session import Role
from sao.execution.step import Step, Work
from sao.pipeline.players import Player
from sao.records import Drop, Likelihoods, make_id
from sao.stages.rows import index_of

if TYPE_CHECKING:
    from sao.pipeline.two_models import TwoModels


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """One player and the texts whose endings it weighs."""

    player: Player
    items: list[ChosenItem]


def weighing_role(run: TwoModels, player: Player) -> Role:
    """What runs a player's model here: the built-in engine, whatever answers the questions."""
    role = run.role(player)
    return replace(role, engine=role.engine.model_copy(update={"name": "transformers"}))


def _settings(run: TwoModels, weighing: Weighing) -> dict[str, Any]:
    """What the log-probabilities depend on. Seed and sampling play no part."""
    role = weighing_role(run, weighing.player)
    given = weighing.player.role in run.given
    asked = (part for item in weighing.items for part in (item.question.prompt.text, *item.continuations))
    return {
        "model": run.identity(weighing.player).weights,
        "engine": ["given"] if given else [role.engine.name, role.engine.dtype],
        "questions": make_id(*asked),
    }


def _make(work: Work[TwoModels]) -> Iterator[Likelihoods | Drop]:
    """The log-probabilities of the items that are not done."""
    weighing: Weighing = work.variant
    engine = require_continuations(work.engine(weighing_role(work.run, weighing.player)))
    waiting: dict[str, ChosenItem] = {}

    def requests() -> Iterator[ContinuationRequest]:
        for item in weighing.items:
            prompt = item.question.prompt
            if (id_ := make_id(work.key, prompt.id)) not in work.done:
                waiting[id_] = item
                yield ContinuationRequest(id_, prompt.text, item.continuations)

    for found in engine.continuation_logprobs(requests()):
        prompt = waiting.pop(found.id).question.prompt
        row = index_of(prompt.row)
        if isinstance(found, Failure):
            yield Drop(row=row, stage="likelihoods", record_id=found.id, reason=found.reason)
        else:
            yield Likelihoods(
                id=found.id, row=row, prompt_id=prompt.id, logprobs=found.logprobs, tokens=found.tokens
            )


WEIGH: Step[TwoModels] = Step(
    name="likelihoods",
    record=Likelihoods,
    settings=_settings,
    make=_make,
    rows=lambda work: (index_of(item.question.prompt.row) for item in work.variant.items),
    total=lambda work: len(work.variant.items),
)
