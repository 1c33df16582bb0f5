"""One round of a run: its recipe, who does what in it, and where each step's records lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sao.config import Config, JudgingConfig
from sao.data.contamination_sets import source_identity
from sao.data.readers import content_identity
from sao.engines import Engine
from sao.execution.session import Role
from sao.execution.step import Step
from sao.models.locate import identity_of, is_local, model_licence
from sao.pipeline.roles import Roles, judge_role, roles_of
from sao.records import make_id
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

    def evaluation_set(self, name: str) -> str:
        """What an evaluation set is."""
        return str(self.look(f"set {name}", partial(source_identity, name)))


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
        number: int = 1,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.root, self.steps, self.number, self.given = (
            config,
            root,
            tuple(steps),
            number,
            given,
        )
        self.outside = Outside(known)
        self.table = {step.name: step for step in steps}
        self._stages: dict[tuple[str, int], Stage] = {}

    def has(self, name: str) -> bool:
        """Whether this round has a step of that name."""
        return name in self.table and self.table[name].when(self.config)

    def stage(self, step: str, variant: Any = None) -> Stage:
        """Where the records of a step lie. For a filter that the recipe does not have this is what it would
        read."""
        if not self.has(step) and (stand_in := self._stand_in(step)):
            return self.stage(stand_in)
        number = list(self.table[step].variants(self)).index(variant) if variant is not None else 0
        if (step, number) not in self._stages:
            self._stages[step, number] = self._lone(step, variant)
        return self._stages[step, number]

    def stages(self, step: str) -> list[Stage]:
        """All stages of a step that has several."""
        return [self.stage(step, variant) for variant in self.table[step].variants(self)]

    def _stand_in(self, name: str) -> str | None:
        """The step whose records stand in for those of a step that the recipe does not have; None where none
        can."""
        reads = self.table[name].reads
        same = reads and self.table[reads[0]].record is self.table[name].record
        return reads[0] if same else None

    def _lone(self, name: str, variant: Any) -> Stage:
        step = self.table[name]
        if variant is None:
            variant = next(iter(step.variants(self)))
        return self.make_stage(
            name, self._before(step), step.settings(self, variant), step.ids and step.ids(self, variant)
        )

    def _before(self, step: Step[Round]) -> Stage | None:
        """The stage that a step hangs on."""
        first = next(iter(step.reads), None)
        imported = self.config.pairs.imported is not None
        if first is None or (imported and step.name == "prompts"):
            return None
        return self.stage(first) if self.has(first) or self._stand_in(first) else None

    def make_stage(
        self,
        name: str,
        before: Stage | None,
        settings: Mapping[str, Any],
        ids: Mapping[str, Any] | None = None,
    ) -> Stage:
        """The stage with these settings after `before`. `ids` are those of them that the ids of its records
        derive from, where not all do."""
        if before is None and self.config.pairs.imported is not None:
            sizes = {"n": self.config.personas.n, "held_out": self.config.personas.held_out}
            settings, ids = {"imported": self.config.pairs.imported, **sizes}, None
        ids = settings if ids is None else ids
        upstream, key = (before.fingerprint, before.key) if before else (None, None)
        place = self.root / f"round-{self.number}"
        return Stage(place, name, {**settings, "upstream": upstream}, {**ids, "upstream": key})

    @cached_property
    def roles(self) -> Roles:
        """Who does what."""
        return roles_of(self.config)

    @property
    def tuned(self) -> Role:
        """The trained model."""
        return replace(self.roles.base, name="tuned", model=str(self.model_dir), revision=None)

    @property
    def model_dir(self) -> Path:
        """Where the trained model lies."""
        return self.stage("train").path / "model"

    @cached_property
    def model_identity(self) -> str:
        """What the policy is, whatever its path."""
        config, given = self.config, self.given
        find = lambda: given.identity if given else identity_of(config.engine, config.model, config.revision)  # noqa: E731
        return str(self.outside.look("model", find))

    @cached_property
    def model_licence(self) -> str:
        """The licence that the model's own card names."""
        if self.given is not None or self.config.engine.name == "scripted":
            return "none (no weights)"
        if self.config.engine.name == "openai" and not is_local(self.config.model):
            return "unknown: see the base model's own card"
        return model_licence(self.config.model, self.config.revision)

    @property
    def model_of_import(self) -> dict[str, Any]:
        """Imported stages hang on no model, so those after them must."""
        imported = self.config.pairs.imported is not None
        return {"model": self.model_identity, "seed": self.config.seed} if imported else {}

    def other_judge(self, how: JudgingConfig) -> dict[str, Any]:
        """What judges, where that is not the model itself (which the stages before hang on anyway)."""
        role, engine = judge_role(self.config, how), how.engine
        assert engine is not None
        asked = (role.model, role.revision)
        find = lambda: identity_of(engine, *asked)  # noqa: E731
        judge = self.outside.look(f"judge {asked} {make_id(engine)}", find)
        return {"judge": judge} if judge != self.model_identity else {}
