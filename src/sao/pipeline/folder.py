"""A run folder and its recipe: where each stage lies, what it depends on, and how the finished ones are read
together.

Reads only. `sao.method` does the work that fills the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sao.config import Config, EngineConfig, JudgingConfig, ResponsesConfig, make_config
from sao.data import readers
from sao.data.contamination_sets import source_identity
from sao.engines import Engine
from sao.evaluation import compare
from sao.models.locate import identity_of, is_local, model_licence
from sao.records import Drop, Judgment, PreferencePair, Prompt, Response, make_id
from sao.stages import judging, pairs, personas
from sao.stages.filters import is_active, plug_identity
from sao.store.manifest import read_manifest
from sao.store.stage import Stage
from sao.templates import load_template

if TYPE_CHECKING:
    from sao.data.preferences import TextPair


ASKED = ("logprob", "text", "reward")
"""The methods of judging that ask a model."""
CHOSEN_BY = ("rule", "keep", "min_p", "calibrate", "max_length_ratio", "length_matched", "max_repetition")
"""The keys of the section `pairs` that decide which pairs are kept."""

NEUTRAL: dict[str, Any] = {"method": "instruct", "prefill": False}
"""Keys of section `prompts` that enter ids only where they differ from this."""


@dataclass(frozen=True, kw_only=True)
class Juror:
    """A judge of the run: its name in the records, how it judges, and the weight of its vote."""

    name: str
    config: JudgingConfig
    weight: float


@dataclass
class RunFolder:
    """One run folder with one recipe. `given_engine` takes the place of the configured one (tests, planted
    judges)."""

    config: Config
    root: Path
    given_engine: Engine | None = None
    round: int = 1
    known: Mapping[str, Any] = field(default_factory=dict)
    """What lies outside the folder, as the manifest has it: with it a finished run is read without its
    sources, templates and weights (`recorded`). Empty while a run works, so that what has changed shows."""
    outside: dict[str, Any] = field(default_factory=dict, init=False)
    """The same, as this object has found it: for the manifest."""

    @classmethod
    def recorded(cls, root: Path) -> RunFolder:
        """A run folder with the recipe that it was last used with, for reading it. Raises StoreError where
        there is no run."""
        manifest = read_manifest(root)
        return cls(
            make_config(manifest["config"], f"{root}/manifest.json"), root, known=manifest.get("outside", {})
        )

    def _outside(self, key: str, find: Callable[[], Any]) -> Any:
        """What lies outside the folder and its records depend on: from the manifest, or found."""
        if key not in self.outside:
            self.outside[key] = self.known[key] if key in self.known else find()
        return self.outside[key]

    @cached_property
    def templates(self) -> dict[str, tuple[str, ...]]:
        """The templates that this run uses, with the fields that must stand in each."""
        c = self.config
        found: dict[str, tuple[str, ...]] = {
            j.config.template: ("prompt", "first", "second") for j in self.jury
        }
        if c.personas.source == "self":
            writing = c.personas.writing
            found[writing.template] = ("traits",) if writing.traits_each else ()
            found[writing.template_related] = ("persona", "relation")
        told = self._has_personas or self.config.prompts.method == "user_turn"
        return found | dict.fromkeys(self._prompt_templates, ("persona",) if told else ())

    @property
    def _has_personas(self) -> bool:
        return self.config.personas.source != "none" and self.config.prompts.source is None

    @property
    def _prompt_templates(self) -> list[str]:
        """The templates by which prompts are asked for; none where they are given."""
        c = self.config.prompts
        if c.source is not None:
            return []
        if c.method == "user_turn":
            return [c.template_user_turn]
        return (list(c.mix) or [c.template]) if self._has_personas else [c.template_without_persona]

    @cached_property
    def model_identity(self) -> str:
        """What the model is, whatever its path."""
        c, given = self.config, self.given_engine
        return str(
            self._outside(
                "model", lambda: given.identity if given else identity_of(c.engine, c.model, c.revision)
            )
        )

    @cached_property
    def model_licence(self) -> str:
        """The licence that the model's own card names."""
        if self.given_engine is not None or self.config.engine.name == "scripted":
            return "none (no weights)"
        if self.config.engine.name == "openai" and not is_local(self.config.model):
            return "unknown: see the base model's own card"
        return model_licence(self.config.model, self.config.revision)

    @cached_property
    def oracle(self) -> compare.Oracle | None:
        """The proving ground's oracle, None elsewhere: it knows what people of that world ask, or what its
        model writes."""
        if self.config.personas.source != "builtin:world" and self.config.model != "builtin:world":
            return None
        from sao.toy_world.oracle import score

        return score

    # Where each stage lies. Its settings hold all that its records depend on, the stage before it included.

    def _stage(
        self, name: str, before: Stage | None, ids: dict[str, Any] | None = None, **settings: Any
    ) -> Stage:
        """The stage with these settings. `ids` are those of them that the ids of its records derive from,
        where not all do."""
        if before is None and self.config.pairs.imported is not None:
            c = self.config
            settings = {"imported": c.pairs.imported, "n": c.personas.n, "held_out": c.personas.held_out}
        ids = settings if ids is None else ids
        upstream, key = (before.fingerprint, before.key) if before else (None, None)
        place = self.root / f"round-{self.round}"
        return Stage(place, name, {**settings, "upstream": upstream}, {**ids, "upstream": key})

    def template_text(self, name: str) -> str:
        return str(self._outside(f"template {name}", lambda: load_template(name, ())))

    def _source(self, name: str) -> str:
        return str(self._outside(f"source {name}", lambda: readers.content_identity(name)))

    @property
    def _model_of_import(self) -> dict[str, Any]:
        """Imported stages hang on no model, so those after them must."""
        return (
            {}
            if self.config.pairs.imported is None
            else {"model": self.model_identity, "seed": self.config.seed}
        )

    @cached_property
    def personas_stage(self) -> Stage:
        c = self.config.personas
        settings = personas.source_identity(c, self.config.seed, self._source(c.source))
        return self._stage("personas", None, **settings, **(self._writing if c.source == "self" else {}))

    @property
    def _writing(self) -> dict[str, Any]:
        """What personas that the model writes depend on."""
        c = self.config.personas.writing
        # min_new says only when to stop.
        return c.model_dump(mode="json", exclude={"min_new"}) | {
            "traits": self._outside(f"traits {c.traits}", lambda: asdict(personas.load_traits(c.traits))),
            "texts": [self.template_text(name) for name in (c.template, c.template_related)],
            "model": self.model_identity,
            "seed": self.config.seed,
        }

    def drafts_stage(self, before: Stage | None, number: int, size: int) -> Stage:
        """Round `number` of the personas that the model writes, with `size` drafts."""
        return self._stage("drafts", before, **self._writing, number=number, size=size)

    @cached_property
    def prompts_stage(self) -> Stage:
        c = self.config.prompts
        if self.config.pairs.imported is not None:
            return self._stage("prompts", None)
        if c.source is not None:
            given = c.model_dump(mode="json", include={"column", "revision", "subset", "split"})
            sizes = self.config.personas.model_dump(include={"n", "held_out"})
            identity = self._source(c.source)
            return self._stage("prompts", None, source=identity, **given, **sizes, seed=self.config.seed)
        settings = c.model_dump(mode="json", include={"marker", "temperature", "top_p", "max_tokens", "mix"})
        settings["texts"] = {name: self.template_text(name) for name in self._prompt_templates}
        settings |= {"model": self.model_identity, "seed": self.config.seed}
        asked = {"method": c.method, "prefill": c.prefill}
        return self._stage(
            "prompts", self.personas_stage, settings | without_neutral(asked), **settings, **asked
        )

    @cached_property
    def filtered_stage(self) -> Stage:
        """The prompts that pass the filters; used only where there are any (see `kept_prompts_stage`)."""
        c, marker = self.config.filters, self.config.prompts.marker
        found: dict[str, Any] = {"against": self._evaluation_sets, "marker": marker}
        plug = c.reject
        if plug is not None:
            found["reject"] = self._outside(f"reject {plug}", lambda: plug_identity(plug))
        # Every value counts for what is kept, the defaults too: another default is another filter. The ids of
        # what comes later derive from what was set only, since a filter makes no record.
        return self._stage(
            "filtered",
            self.prompts_stage,
            c.model_dump(mode="json", exclude_defaults=True) | found,
            **c.model_dump(mode="json") | found,
        )

    @property
    def _evaluation_sets(self) -> list[str]:
        return [
            self._outside(f"set {name}", partial(source_identity, name))
            for name in self.config.filters.against
        ]

    @property
    def kept_prompts_stage(self) -> Stage:
        """The prompts that are answered."""
        filtered = is_active(self.config.filters) and self.config.pairs.imported is None
        return self.filtered_stage if filtered else self.prompts_stage

    @cached_property
    def responses_stage(self) -> Stage:
        # the answers stand, whatever the recipe says of new ones
        given = self.config.pairs.imported is not None
        settings = {} if given else self.config.responses.model_dump(mode="json")
        return self._stage("responses", self.kept_prompts_stage, **settings)

    @cached_property
    def kept_responses_stage(self) -> Stage:
        """The answers that are judged: all, or those in which no evaluation item stands."""
        c = self.config.filters
        if not c.against or self.config.pairs.imported is not None:
            return self.responses_stage
        sets = self._evaluation_sets
        return self._stage(
            "filtered_responses", self.responses_stage, against=sets, max_overlap=c.max_overlap
        )

    @cached_property
    def jury(self) -> list[Juror]:
        """The judges of the run: the first, and those of the panel."""
        c = self.config.judging
        first = c.model_copy(update={"panel": []})
        rest = [
            (
                first.model_copy(
                    update={"template": j.template or c.template, "engine": j.engine or c.engine}
                ),
                j.weight,
            )
            for j in c.panel
        ]
        found: list[Juror] = []
        for number, (config, weight) in enumerate([(first, 1.0), *rest]):
            name = self.judge_name(config) + (
                f" with {config.template}" if config.template != c.template else ""
            )
            if name in {juror.name for juror in found}:
                name = f"{name} #{number + 1}"
            found.append(Juror(name=name, config=config, weight=weight))
        return found

    @staticmethod
    def judge_name(config: JudgingConfig) -> str:
        """Who judges, in the records."""
        if config.method not in ASKED:
            return config.method
        return "self" if config.engine is None or config.engine.model is None else config.engine.model

    def judge_model(self, judging: JudgingConfig) -> tuple[str, str | None]:
        """The model that judges, and its revision."""
        judge = judging.engine
        if judge is None or judge.model is None:
            return self.config.model, self.config.revision
        return judge.model, judge.revision

    def _judging_settings(self, c: JudgingConfig) -> dict[str, Any]:
        """What one judge's verdicts depend on."""
        used = {  # temperature and max_tokens: a server without log-probabilities is asked for text instead
            "logprob": {"choices", "min_mass", "template", "temperature", "max_tokens"},
            "text": {"choices", "temperature", "max_tokens", "template", "reasoning"},
        }.get(c.method, set())
        settings = c.model_dump(mode="json", include={"method", "orders", *used})
        if c.opponents is not None and c.opponents < self.config.responses.n - 1:
            settings["opponents"] = c.opponents
        settings |= {"text": self.template_text(c.template)} if used else {}
        settings |= {"prefill": c.prefill} if used and c.prefill else {}
        if c.engine is not None and c.method in ASKED and (self.given_engine is None or c.method == "reward"):
            # What judges, where that is not the model itself (which the stages before hang on anyway).
            engine, model = c.engine, self.judge_model(c)
            judge = self._outside(f"judge {model} {make_id(engine)}", lambda: identity_of(engine, *model))
            settings |= {"judge": judge} if judge != self.model_identity else {}
        return settings | (self._model_of_import if c.method in ASKED else {})

    @property
    def eval_engine(self) -> EngineConfig:
        """What runs base and tuned model: a server cannot be given the tuned weights."""
        c = self.config
        if c.eval.engine is not None or c.engine.name != "openai":
            return c.eval.engine or c.engine
        return c.engine.model_copy(update={"name": "transformers"})

    @cached_property
    def judgments_stages(self) -> list[Stage]:
        """One for each judge: another one on the panel leaves the verdicts of the others as they are."""
        return [
            self._stage("judgments", self.kept_responses_stage, **self._judging_settings(juror.config))
            for juror in self.jury
        ]

    @cached_property
    def pairs_stage(self) -> Stage:
        settings = self.config.pairs.model_dump(mode="json", include=set(CHOSEN_BY))
        first, *others = self.judgments_stages
        if others:
            settings["panel"] = [
                (s.fingerprint, j.weight) for s, j in zip(others, self.jury[1:], strict=True)
            ]
        return self._stage("pairs", first, **settings)

    @cached_property
    def train_stage(self) -> Stage:
        settings = self.config.train.learnt_from() | self._model_of_import
        if self.config.pairs.source is None:
            return self._stage("train", self.pairs_stage, **settings)
        identity = self._source(self.config.pairs.source)
        given = self.config.pairs.model_dump(mode="json", include={"revision", "subset", "split"}) | {
            "source": identity
        }
        return self._stage(
            "train", None, **settings, pairs=given, model=self.model_identity, seed=self.config.seed
        )

    @cached_property
    def base_answers_stage(self) -> Stage:
        settings = self.one_answer.model_dump(mode="json") | self._model_of_import
        return self._stage("heldout_base", self.kept_prompts_stage, **settings)

    @cached_property
    def tuned_answers_stage(self) -> Stage:
        return self._stage("heldout_tuned", self.train_stage, **self.one_answer.model_dump(mode="json"))

    @cached_property
    def comparisons_stage(self) -> Stage:
        return self._stage(
            "comparisons", self.tuned_answers_stage, **self._judging_settings(self.eval_judging)
        )

    @cached_property
    def one_answer(self) -> ResponsesConfig:
        return self.config.responses.model_construct(**(self.config.responses.model_dump() | {"n": 1}))

    @cached_property
    def eval_judging(self) -> JudgingConfig:
        """The first judge, in both orders; controls label training pairs only, and the model itself judges
        the result."""
        return judging.reading_judge(self.jury[0].config)

    # The finished records, joined. All files are in the order of their rows, so one group is in memory at a
    # time.

    def asked(self, held_out: bool) -> Iterator[Prompt]:
        n = self.config.personas.n
        return (p for p in self.kept_prompts_stage.records(Prompt) if (p.row >= n) == held_out)

    def answered(self) -> Iterator[tuple[Prompt, list[Response]]]:
        """Each training prompt with its answers: both files are in the same order."""
        answers = Grouped(self.kept_responses_stage.records(Response))
        return ((prompt, answers.take(prompt.id)) for prompt in self.asked(False))

    def judged(self) -> Iterator[tuple[Prompt, list[Response], list[Judgment]]]:
        """Each training prompt with its answers and the verdicts of all judges."""
        verdicts = [
            (juror.name, Grouped(stage.records(Judgment)))
            for juror, stage in zip(self.jury, self.judgments_stages, strict=True)
        ]
        return (
            (prompt, answers, [j for name, one in verdicts for j in named(one.take(prompt.id), name)])
            for prompt, answers in self.answered()
        )

    def chosen(self, key: str, done: Container[str]) -> Iterator[PreferencePair | Drop]:
        """The pairs that the verdicts come to, by the recipe's rule, and Drops for the others, that are not
        `done`."""
        c, jury = self.config.pairs, self.jury_at_work()
        balance = pairs.balance_lengths(self.judged(), c, key, jury) if c.length_matched else None
        found = pairs.build_pairs(self.judged(), c, key, self.config.responses.n, jury, balance)
        return (pair for pair in found if (pair.record_id if isinstance(pair, Drop) else pair.id) not in done)

    def texts(self) -> Iterator[tuple[str, str, str]]:
        """(kind, id, text) of every prompt that is answered and of every answer that stands, of given pairs
        likewise; held-out prompts are prompts too."""
        if self.config.pairs.source is not None:
            for number, pair in enumerate(self.to_train_on()):
                if not isinstance(pair, Drop | tuple):
                    yield "prompt", str(number), "\n\n".join(message.content for message in pair.messages)
                    yield from (
                        ("answer", f"{number} {name}", getattr(pair, name)) for name in ("chosen", "rejected")
                    )
            return
        yield from (("prompt", p.id, p.conversation) for p in self.kept_prompts_stage.records(Prompt))
        if self.kept_responses_stage.finished:
            yield from (("answer", r.id, r.text) for r in self.kept_responses_stage.records(Response))

    def jury_at_work(self) -> pairs.Jury:
        """The judges with what their verdicts over the run say about them."""
        orders = 2 if self.config.judging.orders == "both" else 1
        # scores know no slots
        calibrate = self.config.pairs.calibrate and self.config.judging.method != "reward"
        known = pairs.calibrate(self.judged()) if calibrate else {}
        return pairs.Jury(calibrations=known, weights={j.name: j.weight for j in self.jury}, orders=orders)

    def labelled(self) -> Iterator[tuple[Prompt, PreferencePair, Response, Response]]:
        """The finished data set: prompt, pair, chosen, rejected."""
        kept = Grouped(self.pairs_stage.records(PreferencePair))
        for prompt, answers in self.answered():
            by_id = {r.id: r for r in answers}
            for pair in kept.take(prompt.id):
                yield prompt, pair, by_id[pair.chosen_id], by_id[pair.rejected_id]

    def to_train_on(self) -> Iterator[tuple[Prompt, PreferencePair, Response, Response] | TextPair | Drop]:
        """The run's own data set, or the one that pairs.source names."""
        c = self.config.pairs
        if c.source is None:
            return self.labelled()
        from sao.data.preferences import read_pairs

        return read_pairs(c.source, c.revision, c.subset, c.split)

    def trained_texts(self) -> set[str]:
        """The questions that were trained on."""
        if self.config.pairs.source is None:
            return {p.conversation for p in self.asked(False)}
        from sao.data.preferences import TextPair

        return {
            Prompt(id="", row=0, persona_id="", text=turns[-1], earlier=tuple(turns[:-1])).conversation
            for pair in self.to_train_on()
            if isinstance(pair, TextPair)
            and (turns := [m.content for m in pair.messages if m.role != "system"])
        }

    @property
    def model_dir(self) -> Path:
        """Where the trained model lies."""
        return self.train_stage.path / "model"

    def held_out(self) -> Iterator[tuple[Prompt, Response, Response]]:
        """Held-out prompts that both models answered: prompt, base's answer, tuned model's answer."""
        base = Grouped(self.base_answers_stage.records(Response))
        tuned = Grouped(self.tuned_answers_stage.records(Response))
        for prompt in self.asked(True):
            x, y = base.take(prompt.id), tuned.take(prompt.id)
            if x and y:
                yield prompt, x[0], y[0]

    def funnel(self) -> list[dict[str, Any]]:
        """What entered and left each finished stage and why the rest was dropped; it adds up."""
        written = (
            [self.personas_stage] if self.config.personas.source == "self" and self._has_personas else []
        )
        asked = list(dict.fromkeys([self.prompts_stage, self.kept_prompts_stage]))
        answered = list(dict.fromkeys([self.responses_stage, self.kept_responses_stage]))
        judged = [*self.judgments_stages, self.pairs_stage]
        own = [*answered, *judged] if self.config.pairs.source is None else []
        return [
            {"stage": s.name, **s.counts} for s in [*written, *asked, *own, self.train_stage] if s.finished
        ]


def without_neutral(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that stand at the value which a run had before they existed: its ids stay as
    they are."""
    return {name: value for name, value in settings.items() if value != NEUTRAL[name]}


def named(judgments: list[Judgment], name: str) -> list[Judgment]:
    """The judgments under the name that their judge has in this recipe."""
    return [j if j.judge == name else replace(j, judge=name) for j in judgments]


class Grouped:
    """Records in order, handed out prompt by prompt: a merge join that holds one group in memory."""

    def __init__(self, records: Iterator[Any]) -> None:
        self._groups = groupby(records, key=lambda r: r.prompt_id)
        self._next: tuple[str, list[Any]] | None = None

    def take(self, prompt_id: str) -> list[Any]:
        """The records of this prompt; prompts must be asked for in the files' order."""
        if self._next is None:
            key, group = next(self._groups, ("", iter(())))
            self._next = (key, list(group))
        if self._next[0] != prompt_id:
            return []
        found, self._next = self._next[1], None
        return found
