"""One round of a run: its recipe, who does what in it, and where each step's records lie.

Round k begins with the model that round k−1 trained. Held-out prompts are those of the first round, so that
all rounds are compared on the same ones and none trains on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sao.config import ChatConfig, Config
from sao.data.contamination_sets import source_identity
from sao.data.readers import content_identity
from sao.engines import Engine
from sao.execution.session import Role
from sao.execution.step import Step, check_table, known_step
from sao.models.locate import chat_identity, identity_of, is_local, model_licence, weights_identity
from sao.models.weights import digest_of, is_whole
from sao.pipeline.roles import Roles, roles_of
from sao.records import Persona, Prompt, make_id
from sao.stages import rows
from sao.stages.functions import function_identity
from sao.store.manifest import Sizes
from sao.store.stage import Stage
from sao.templates import load_template


class Outside:
    """What lies outside the run folder and its records depend on: models, files, templates.

    `known` is what the manifest says of it: with that a finished run is read without its sources and weights.
    Empty while a run works, so that what has changed shows. `found` is the same as this object found it, for
    the manifest.
    """

    def __init__(self, known: Mapping[str, Any] | None = None) -> None:
        self.known, self.found = dict(known or {}), dict[str, Any]()

    def look(self, key: str, find: Callable[[], Any]) -> Any:
        """What stands under `key` in the manifest, or what `find` finds."""
        if key not in self.found:
            self.found[key] = self.known[key] if key in self.known else find()
        return self.found[key]

    def template(self, name: str) -> str:
        """The text of a template."""
        return str(self.look(f"template {name}", lambda: load_template(name, ())))

    def source(self, name: str) -> str:
        """What a data set is, wherever it lies."""
        return str(self.look(f"source {name}", lambda: content_identity(name)))

    def folder(self, name: str) -> str:
        """What a local folder holds, wherever it lies; a hub id is its own name."""
        files = (path for path in sorted(Path(name).rglob("*")) if path.is_file())
        return str(self.look(f"folder {name}", lambda: digest_of(files) if Path(name).is_dir() else name))

    def function(self, path: str, key: str) -> str:
        """What a function of the user's is."""
        return str(self.look(f"{key} {path}", lambda: function_identity(path, key)))

    def evaluation_set(self, name: str) -> str:
        """What an evaluation set is."""
        return str(self.look(f"set {name}", partial(source_identity, name)))


def rounds_of(
    config: Config,
    root: Path,
    steps: Sequence[Step[Round]],
    *,
    given: Engine | None = None,
    known: Mapping[str, Any] | None = None,
    sizes: Sizes | None = None,
) -> Iterator[Round]:
    """The rounds of a recipe, one after the other. The first one's policy is the recipe's model."""
    round_ = Round(config, root, steps, given=given, known=known, sizes=sizes)
    yield round_
    for _ in range(1, config.rounds.n):
        round_ = round_.next()
        yield round_


def config_of(recipe: Config, number: int) -> Config:
    """The recipe of one round: its learning rate and its β."""
    rounds, train = recipe.rounds, recipe.train
    if number == 1 and rounds.lr is None and rounds.beta is None:
        return recipe
    lr = of_round(rounds.lr, number, train.lr * rounds.lr_decay ** (number - 1))
    own: dict[str, float] = {"lr": lr}
    if rounds.beta is not None or rounds.beta_decay != 1:
        own["beta"] = of_round(rounds.beta, number, train.scale * rounds.beta_decay ** (number - 1))
    return recipe.model_copy(update={"train": train.model_copy(update=own)})


def of_round(values: Sequence[float] | None, number: int, otherwise: float) -> float:
    """A round's value of a list, whose last one is for all rounds after it; `otherwise` without a list."""
    return otherwise if values is None else values[min(number, len(values)) - 1]


class Round:
    """Where the stages of one round lie and what each depends on. A single round is a run.

    `given` takes the place of the configured engine (tests, planted judges): its identity stands for the
    model's.
    """

    def __init__(
        self,
        config: Config,
        root: Path,
        steps: Sequence[Step[Round]],
        *,
        given: Engine | None = None,
        before: Round | None = None,
        known: Mapping[str, Any] | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        """`sizes`: the personas that the run was made for, at first and each time that it grew (see
        `sao.store.manifest.grown`). `before`: the round before; None for the first."""
        personas = config.personas
        self.sizes = sizes or ((personas.n, personas.held_out),)
        self.recipe, self.root, self.before = config, root, before
        self.number: int = 1 if before is None else before.number + 1
        self.first: Round = self if before is None else before.first
        self.config = config_of(config, self.number)
        self.steps, self.given = tuple(steps), given
        self.outside: Outside = Outside(known) if before is None else before.outside
        self.table = check_table(steps)
        self._stages: dict[tuple[str, int], Stage] = {}

    def next(self) -> Round:
        """The round after this one. All its personas are for training."""
        return Round(
            self.recipe, self.root, self.steps,
            given=self.given, before=self, sizes=((self.sizes[-1][0], 0),),
        )  # fmt: skip

    @property
    def earlier(self) -> tuple[Round, ...]:
        """The rounds before this one, the first one first."""
        return () if self.before is None else (*self.before.earlier, self.before)

    def has(self, name: str) -> bool:
        """Whether this round has a step of that name: whether it is in the table, and the recipe has it."""
        if name not in self.table or (self.table[name].later and self.before is None):
            return False
        return self.table[name].when(self.config)

    def stage(self, step: str, variant: Any = None) -> Stage:
        """Where the records of a step lie. For a filter that the recipe does not have this is what it would
        read."""
        if not self.has(step) and (stand_in := self._stand_in(step)):
            return self.stage(stand_in)
        if self.before is not None and self.of_first(step):
            return self.first.stage(step, variant)
        variants = known_step(self.table, step).variants(self)
        if variant is None and len(variants) > 1:
            raise ValueError(f"step {step} has {len(variants)} stages: say which (stage(step, variant))")
        number = list(variants).index(variant) if variant is not None else 0
        if (step, number) not in self._stages:
            self._stages[step, number] = self._make(self.table[step], variant)
        return self._stages[step, number]

    def stages(self, step: str) -> list[Stage]:
        """All stages of a step that has several."""
        return [self.stage(step, variant) for variant in known_step(self.table, step).variants(self)]

    def of_first(self, name: str) -> bool:
        """Whether a step's records are those of the first round in every round."""
        is_same = name == "personas" and self.config.rounds.personas == "same"
        return is_same or known_step(self.table, name).once

    def _stand_in(self, name: str) -> str | None:
        """The step whose records stand in for those of a step that the recipe does not have; None where none
        can."""
        step = known_step(self.table, name)
        if not step.reads or self.table[step.reads[0]].record is not step.record:
            return None
        before = step.reads[0]
        return before if self.has(before) else self._stand_in(before)

    def _make(self, step: Step[Round], variant: Any) -> Stage:
        if variant is None:
            variant = next(iter(step.variants(self)))
        upstream = {name: self._upstream(step, name) for name in self.inputs(step.name)}
        # Under a key of its own: sections have keys such as `revision`, too.
        chain = {"step": {"revision": step.revision, "upstream": upstream}}
        settings = {**step.settings(self, variant), **chain}
        ids = None if step.ids is None else {**step.ids(self, variant), **chain}
        if step.build is not None:
            return Stage(self.place, step.name, settings, ids, holds_records=False)
        size = (self.first if step.held_out else self).sizes[-1]
        # Stages that grow, of which a size may be given up; where sizes name the folder there is another one.
        grows = step.record in (Persona, Prompt) and "sizes" not in settings
        keeps = partial(rows.within, size) if grows and self.config.pairs.imported is None else None
        return Stage(self.place, step.name, settings, ids, size, keeps)

    def _upstream(self, step: Step[Round], read: str) -> str | list[str]:
        """What the ids of the records that a step reads derive from. A held-out step reads prompts of the
        first round."""
        from_first = step.held_out and self.table[read].record is Prompt
        return (self.first if from_first else self)._keys(read)

    def inputs(self, name: str) -> list[str]:
        """The steps of this round that a step hangs on."""
        if not self.has(name):
            return []
        return [found for read in self.table[name].reads if (found := self.in_place_of(read)) is not None]

    def in_place_of(self, name: str) -> str | None:
        """The step itself where this round has it, else the one whose records stand in; None where none
        can."""
        return name if self.has(name) else self._stand_in(name)

    def _keys(self, name: str) -> str | list[str]:
        """What the ids of a step's records derive from; a step with several stages has several."""
        keys = [stage.key for stage in self.stages(name)]
        return keys if len(keys) > 1 else keys[0]

    @property
    def place(self) -> Path:
        """Where the stages of this round lie."""
        return self.root / f"round-{self.number}"

    @cached_property
    def roles(self) -> Roles:
        """Who does what."""
        return roles_of(self.config, None if self.before is None else str(self.before.model_dir))

    @property
    def tuned(self) -> Role:
        """The trained model."""
        return replace(self.roles.base, name="tuned", model=str(self.model_dir), revision=None)

    @property
    def model_dir(self) -> Path:
        """Where the trained model lies."""
        return self.stage("train").path / "model"

    @property
    def is_trained(self) -> bool:
        """Whether a whole model lies there."""
        return is_whole(self.model_dir)

    def identity(self, role: Role, reward: bool = False) -> str:
        """What a role's model is, whatever its path. A given engine takes the place of any but a `reward`
        model."""
        if (trained := self._trained_by(role.model)) is not None:
            return identity_of(role.engine, role.model, None, role.chat, weights=trained)
        if self.given is not None and not reward:
            given = self.given
            return str(self.outside.look(f"given {role.name}", lambda: given.identity))
        if (known := self.outside.known.get(f"given {role.name}")) is not None and not reward:
            return str(self.outside.look(f"given {role.name}", lambda: known))
        settings = make_id(role.engine.name, json.dumps(role.engine.counted(), sort_keys=True))
        key = f"model {role.model}@{role.revision or ''} {settings}{_chat_key(role)}"
        return str(
            self.outside.look(key, lambda: identity_of(role.engine, role.model, role.revision, role.chat))
        )

    def initial_identity(self) -> str:
        """What training starts from: weights, also where a server answers."""
        return self.weights_of(self.roles.initial)

    def weights_of(self, role: Role) -> str:
        """What the weights of a role's model are, which training needs, also where a server answers."""
        if self.given is not None or role.engine.name != "openai":
            return self.identity(role)
        told = str(self.outside.look(f"chat{_chat_key(role)}", lambda: chat_identity(role.chat)))
        if not is_local(role.model):
            return "@".join(filter(None, (role.model, role.revision))) + told
        return str(self.outside.look(f"weights {role.model}", lambda: weights_identity(role.model))) + told

    def _trained_by(self, model: str) -> str | None:
        """What made a model that an earlier round trained; None for any other."""
        made = (round_.stage("train").key for round_ in self.earlier if str(round_.model_dir) == model)
        return next(made, None)

    @property
    def model_identity(self) -> str:
        """What the recipe's model is."""
        return self.first.identity(self.first.roles.policy)

    @cached_property
    def model_licence(self) -> str:
        """The licence that the model's own card names."""
        if self.given is not None or self.config.engine.name == "scripted":
            return "none (no weights)"
        if self.config.engine.name == "openai" and not is_local(self.config.model):
            return "unknown: see the base model's own card"
        return model_licence(self.config.model, self.config.revision)


def _chat_key(role: Role) -> str:
    """What the manifest names a role's chat settings by; nothing where there are none."""
    if role.chat == ChatConfig():
        return ""
    return " " + make_id(json.dumps(role.chat.model_dump(), sort_keys=True))
