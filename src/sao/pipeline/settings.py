"""What the records of each step depend on: its section of the recipe with all defaults, and what that names
by what it holds (models, files, templates, functions). Together with the step's revision and the steps that
it reads this is hashed into the name of its folder.

A key that changes no record is marked in its section (`sao.config.section.setting`); tests walk all keys.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sao.config import Config, ResponsesConfig
from sao.pipeline.roles import ASKED, Judge
from sao.pipeline.rounds import Round
from sao.stages import personas
from sao.store.manifest import Sizes
from sao.store.stage import Stage

Settings = dict[str, Any]


def own_pairs(config: Config) -> bool:
    """Whether the pairs are made here, not given."""
    return config.pairs.source is None


def asking(config: Config) -> Config:
    """The recipe as it is run: where pairs are given nobody is asked for training, and the evaluation has its
    own personas."""
    if own_pairs(config):
        return config
    return config.model_copy(update={"personas": config.personas.model_copy(update={"n": 0})})


def writes_prompts(config: Config) -> bool:
    """Whether the model writes the prompts."""
    return config.prompts.source is None


def persona_settings(run: Round, _: Any) -> Settings:
    """Which personas these are: those that the model writes are chosen among its drafts, so that their
    numbers count."""
    settings = persona_ids(run, _)
    return settings | ({"sizes": run.sizes} if run.config.personas.source == "self" else {})


def skipped(run: Round) -> int:
    """How many of the personas (or given prompts) in the order of the draw went to earlier rounds."""
    fresh = run.config.rounds.personas == "fresh"
    return sum(round_.sizes[-1][0] for round_ in run.earlier) if fresh else 0


def _fresh(run: Round) -> Settings:
    """What personas of a later round depend on: those that earlier rounds had are not among them."""
    if not run.earlier or run.config.rounds.personas == "same":
        return {}
    if run.config.personas.source == "self" and run.config.prompts.source is None:
        return {"earlier": [round_.stage("personas").key for round_ in run.earlier]}
    return {"skipped": skipped(run)}


def persona_ids(run: Round, _: Any) -> Settings:
    """The section personas, its source by what it holds, and the seed."""
    config, source = run.config, run.config.personas.source
    if config.pairs.imported is not None:
        return {"imported": config.pairs.imported}
    fresh = _fresh(run)
    settings = config.personas.counted() | {"source": run.outside.source(source), "seed": config.seed}
    settings["writing"] = writing_settings(run) if source == "self" else None
    # The first ones of a file are held out where the file's order counts.
    ordered = config.personas.sample == "first" and source not in ("self", "none", "builtin:world")
    return settings | fresh | ({"held_out": config.personas.held_out} if ordered else {})


def writing_settings(run: Round) -> Settings:
    """What personas that the model writes depend on."""
    writing = run.config.personas.writing
    key = f"traits {writing.traits}"
    return writing.counted() | {
        "traits": run.outside.look(key, lambda: asdict(personas.load_traits(writing.traits))),
        "template": run.outside.template(writing.template),
        "template_related": run.outside.template(writing.template_related),
        "model": run.identity(run.roles.policy),
        "seed": run.config.seed,
        **_fresh(run),
    }


def prompt_settings(run: Round, _: Any) -> Settings:
    """The section prompts, its source by what it holds and its templates by their texts, the model and the
    seed."""
    config, asked = run.config, run.config.prompts
    if config.pairs.imported is not None:
        return {}
    settings = _without_checkable(asked.counted()) | {"seed": config.seed} | dict.fromkeys(TEMPLATES)
    if run.earlier:  # none may repeat a held-out prompt; given ones that are answered again are other records
        settings |= {"held_out": run.first.sizes[-1][1], "round": run.number}
    if asked.source is not None:
        return settings | _fresh(run) | {"mix": None, "source": run.outside.source(asked.source)}
    settings["mix"] = [asked.mix.get(name) for name in prompt_templates(config)]
    settings["texts"] = [run.outside.template(name) for name in prompt_templates(config)]
    return settings | {"model": run.identity(run.roles.policy)}


def _without_checkable(settings: Settings) -> Settings:
    """What counts for the step that appends the constraints is left out."""
    return {name: value for name, value in settings.items() if name not in CHECKABLE}


def checkable_settings(run: Round, _: Any) -> Settings:
    """How many prompts get constraints, how many of what kinds each, and the seed."""
    config, asked = run.config, run.config.prompts
    shares = {"trained": asked.checkable, "held_out": config.evaluation.checkable}
    return {"shares": shares, "kinds": asked.check_kinds, "most": asked.max_checks, "seed": config.seed}


CHECKABLE = ("checkable", "check_kinds", "max_checks")
"""Keys of the section prompts that count for the step checkable alone."""
TEMPLATES = ("template", "template_user_turn", "template_without_persona")
"""Keys of the section prompts that count by the text of the template, where it is used."""


def has_personas(config: Config) -> bool:
    """Whether somebody asks."""
    return config.personas.source != "none" and config.prompts.source is None


def prompt_templates(config: Config) -> list[str]:
    """The templates by which prompts are asked for; none where they are given."""
    asked = config.prompts
    if asked.source is not None:
        return []
    if asked.method == "user_turn":
        return [asked.template_user_turn]
    return (list(asked.mix) or [asked.template]) if has_personas(config) else [asked.template_without_persona]


def filter_settings(run: Round, _: Any) -> Settings:
    """Which prompts are kept depends on those before, and so on their numbers."""
    return filter_ids(run, _) | {"sizes": run.sizes}


def prompts_before(run: Round) -> list[Stage]:
    """Where the prompts lie that a later round's may not repeat: the held-out ones of the first round and,
    unless the same personas ask, those that earlier rounds trained on."""
    rounds = run.earlier if run.config.rounds.personas == "fresh" else run.earlier[:1]
    return [round_.stage("filtered") for round_ in rounds]


def filter_ids(run: Round, _: Any) -> Settings:
    """The section filters, what it names by what that holds, and the prompts' marker."""
    config = run.config.filters
    sets = [run.outside.evaluation_set(name) for name in config.decontaminate]
    settings = config.counted() | {"decontaminate": sets, "marker": run.config.prompts.marker}
    if run.earlier:
        settings["before"] = [stage.key for stage in prompts_before(run)]
    if config.embeddings is not None:
        settings["embeddings"] = run.outside.folder(config.embeddings)
    if config.reject is not None:
        settings["reject"] = run.outside.function(config.reject, "filters.reject")
    return settings


def answer_filter_settings(run: Round, _: Any) -> Settings:
    """The evaluation sets, and how much of an item may stand in an answer."""
    config = run.config.filters
    sets = [run.outside.evaluation_set(name) for name in config.decontaminate]
    return {"decontaminate": sets, "max_overlap": config.max_overlap}


def response_settings(run: Round, _: Any) -> Settings:
    """The section responses, the model and the seed."""
    if run.config.pairs.imported is not None:
        return {}  # the answers exist, whatever the recipe says of new ones
    settings = run.config.responses.counted() | {"model": run.identity(run.roles.policy)}
    if (other := run.roles.rejected) is not None:
        settings["rejected"] = run.identity(other)
    return settings | {"seed": run.config.seed}


def judgment_settings(run: Round, judge: Judge) -> Settings:
    """What one judge's verdicts depend on: the section judging with the templates' texts, and the judge's
    model."""
    how = judge.config
    if how.method == "given":  # the labels exist, whatever the recipe says of new ones
        return {"method": "given", "orders": how.orders, "comparisons_per_answer": None}
    settings = how.counted() | dict.fromkeys(("engine", "panel", "template", "template_pointwise"))
    settings |= {
        "wordings": [run.outside.template(name) for name in how.templates], "seed": run.config.seed
    }  # fmt: skip
    if how.function is not None:
        settings["function"] = run.outside.function(how.function, "judging.function")
    if how.method in ASKED:
        settings["engine"] = run.identity(judge.role, reward=how.method == "reward")
    return settings


def pair_settings(run: Round, _: Any) -> Settings:
    """The section pairs, and the votes; calibration looks at all verdicts, so that their numbers count."""
    weights = [judge.weight for judge in run.roles.judges]
    settings = run.config.pairs.counted() | {"weights": weights, "sizes": training_sizes(run.sizes)}
    return settings | ({"rejected": "initial"} if run.roles.rejected is not None else {})


def training_sizes(sizes: Sizes) -> Sizes:
    """How the run grew up to the last time that personas for training came."""
    last = max(i for i, (n, _) in enumerate(sizes) if i == 0 or n > sizes[i - 1][0])
    return sizes[: last + 1]


def train_settings(run: Round, _: Any) -> Settings:
    """The section train, the model and the seed; the given pairs, where there are such."""
    config = run.config
    settings = config.train.counted() | {"model": run.initial_identity(), "run_seed": config.seed}
    if config.train.needs_reference and run.roles.reference.model != run.roles.initial.model:
        settings["reference"] = run.weights_of(run.roles.reference)
    if run.earlier and config.rounds.data == "all":
        settings["earlier"] = [round_.stage("pairs").key for round_ in run.earlier]
    if config.pairs.imported is not None:  # the folder of the answers does not tell it apart
        settings["system"] = config.responses.system
    if own_pairs(config):
        return settings
    given = {name: getattr(config.pairs, name) for name in ("revision", "subset", "split")}
    return settings | {"pairs": {**given, "source": run.outside.source(str(config.pairs.source))}}


def one_answer(config: Config) -> ResponsesConfig:
    """How held-out prompts are answered: as the others, once."""
    return config.responses.model_construct(**(config.responses.model_dump() | {"n": 1}))


def held_out_settings(run: Round, _: Any) -> Settings:
    """The section responses for one answer, the model and the seed."""
    return one_answer(run.config).counted() | {"model": run.identity(run.roles.base), "seed": run.config.seed}
