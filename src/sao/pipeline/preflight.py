"""What is checked before a run starts: what would only show itself hours later."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sao.config import Config, JudgingConfig, uses_ray
from sao.config.judging import READERS
from sao.engines import require_prefill
from sao.errors import ConfigError
from sao.execution.session import Notify, Role, Session
from sao.models import gguf
from sao.models.load import check_model, check_trainable
from sao.models.locate import is_local
from sao.pipeline.checkable import base_as_reader
from sao.pipeline.kept_models import is_done
from sao.pipeline.ray_training import RAY_WORKER, check_cluster
from sao.pipeline.reader import Reader
from sao.pipeline.roles import Judge
from sao.pipeline.rounds import Round
from sao.pipeline.settings import has_personas, prompt_templates
from sao.records import Message
from sao.stages import filters, personas, prompts
from sao.stages.by_model import needs_logprobs, require_logprobs
from sao.stages.functions import load_function
from sao.stages.wordings import check_words
from sao.store import manifest
from sao.store.stage import Stage
from sao.templates import load_template

FILTERS = ("filtered", "filtered_responses")


def check(run: Round, session: Session, trains: bool) -> None:
    """Raise ConfigError, ModelError or EngineError for what cannot work. `trains`: whether the weights will
    be needed."""
    config = run.config
    for name, fields in templates(run).items():
        load_template(name, fields)
    readers = [run.roles.reader] if run.has("comparisons") else []
    for judge in (*run.roles.judges, *readers):
        check_words(judge.config)
    if trains and not is_done(run.model_dir):
        manifest.check_packages(config)
        if uses_ray(config) and RAY_WORKER not in os.environ:
            check_cluster(config)
    if run.has("filtered") and not all(run.stage(name).finished for name in FILTERS if name in run.table):
        filters.check_filters(config.filters)
    if run.has("judgments"):
        check_judges(run)
    if run.given is None:
        check_engines(run, session, trains)
    if run.before is None and run.has("prompts"):
        check_enough(run)
    if config.pairs.source is not None and run.has("train") and not is_done(run.model_dir):
        deque(itertools.islice(Reader(run).to_train_on(), 200), maxlen=0)  # raises where the set is none


def check_enough(run: Round) -> None:
    """Raise DataError where a source that is here holds too few personas (or given prompts) for all rounds.
    One on the hub is not read twice."""
    config, n = run.config, run.recipe.rounds.n
    source = first_source(config)
    is_here = source in personas.LICENCES or Path(source).expanduser().is_file()
    if n == 1 or config.rounds.personas == "same" or not is_here:
        return
    rounds = [run]
    while len(rounds) < n:
        rounds.append(rounds[-1].next())
    if all(round_.stage("prompts").finished for round_ in rounds):
        return
    skipped = (n - 1) * config.personas.n
    if config.prompts.source is not None:
        deque(
            prompts.given_prompts(config.prompts, config.personas, config.seed, "", skipped, True), maxlen=0
        )
    else:
        deque(personas.read_personas(config.personas, config.seed, skipped), maxlen=0)


def check_judges(run: Round) -> None:
    """Raise ConfigError for a panel whose members are the same, and for an oracle that does not exist."""
    stages = [stage.fingerprint for stage in run.stages("judgments")]
    if len(set(stages)) < len(stages):
        raise ConfigError(
            "judging.panel: two judges are the same; give each another template or engine",
            key="judging.panel",
        )
    if (function := run.config.judging.function) is not None:
        load_function(function, "judging.function")
    if run.config.judging.method == "oracle" and Reader(run).oracle is None:
        raise ConfigError(
            "judging.method oracle exists in the toy world only (personas.source builtin:world)",
            key="judging.method",
        )


def templates(run: Round) -> dict[str, tuple[str, ...]]:
    """The templates of personas and prompts that a run uses, with the fields that must be in each."""
    config = run.config
    found: dict[str, tuple[str, ...]] = {}
    if config.personas.source == "self":
        writing = config.personas.writing
        found[writing.template] = ("traits",) if writing.traits_each else ()
        found[writing.template_related] = ("persona", "relation")
    told = has_personas(config) or config.prompts.method == "user_turn"
    return found | dict.fromkeys(prompt_templates(config), ("persona",) if told else ())


@dataclass(frozen=True)
class Use:
    """One model in one stage. `begun`: whether requests carry the beginning of a turn; `as_user`: whether the
    user's turn is left open; `judging`: how it judges, where it does."""

    role: Role
    stage: Stage
    begun: bool = False
    as_user: bool = False
    judging: JudgingConfig | None = None


def check_engines(run: Round, session: Session, trains: bool) -> None:
    """Raise a ConfigError, ModelError or EngineError for a model or a server that cannot do what the recipe
    asks of it."""
    opening = (Message("system", "a"),) if has_personas(run.config) else ()
    checked: list[Role] = []
    for use in uses(run, trains):
        role, server = use.role, use.role.engine.name == "openai"
        if server and use.judging is not None and needs_logprobs(use.judging) and not use.stage.finished:
            require_logprobs(session.engine(role), use.judging)
        seen = _anonymous(role, use.begun)
        if use.stage.finished or role.engine.name == "scripted" or seen in checked:
            continue
        checked.append(seen)
        if server and use.begun:
            require_prefill(session.engine(role), role.engine.openai.base_url)
        if not server or use.as_user:
            as_user = opening if use.as_user else None
            check_model(role.model, role.engine, role.revision, as_user, role.chat)
    initial = run.roles.initial
    if trains and not is_done(run.model_dir) and initial.engine.name != "scripted":
        check_trainable(initial.model, initial.revision)
        if initial.engine.name == "openai":
            check_model(initial.model, initial.engine, initial.revision, chat=initial.chat)


def _anonymous(role: Role, begun: bool) -> Role:
    """The same role for whatever it does; beginning a turn asks more of it."""
    return replace(role, name="begun" if begun else "")


def uses(run: Round, trains: bool) -> Iterator[Use]:
    """Which model is needed in which stage. A reward model is checked at once."""
    config, roles = run.config, run.roles
    written = config.prompts.source is None and config.pairs.imported is None
    as_user = written and config.prompts.method == "user_turn"
    begun = as_user or (written and config.prompts.prefill)
    if run.has("prompts"):
        yield Use(roles.policy, run.stage("prompts"), begun, as_user)
    if run.has("responses") and config.pairs.imported is None:
        yield Use(roles.policy, run.stage("responses"))
    if trains and run.has("heldout_base"):
        yield Use(roles.base, run.stage("heldout_base"))
    if trains and run.has("base_logprobs"):
        yield Use(base_as_reader(run), run.stage("base_logprobs"))
    judging: list[tuple[Judge, Stage]] = []
    if run.has("judgments"):
        judging += [(judge, run.stage("judgments", judge)) for judge in roles.judges]
    if trains and run.has("comparisons"):
        judging.append((roles.reader, run.stage("comparisons")))
    for judge, stage in judging:
        if judge.config.method in READERS:
            yield Use(judge.role, stage, bool(judge.config.prefill), judging=judge.config)
        elif judge.config.method == "reward" and not stage.finished:
            from sao.engines.reward import check_reward_model

            check_reward_model(judge.role.model, judge.role.engine, judge.role.revision)


def announce(run: Round, licences: dict[str, str], notify: Notify) -> None:
    """Say what binds the results, and what a GGUF file means."""
    for what, licence in licences.items():
        if personas.non_commercial(licence):
            notify(
                f"NON-COMMERCIAL: the licence of the {what} is {licence}; it binds the data and the model "
                "made here"
            )
    model = run.config.model
    if gguf.is_gguf(model) and is_local(model) and run.given is None:
        notify(gguf.notice(Path(model).expanduser()))


def licences_of(run: Round) -> dict[str, str]:
    """The licence of each thing that a run is made from."""
    config = run.config
    found = {"model": run.model_licence}
    if config.prompts.source is not None:
        found["prompts"] = config.prompts.licence or "unknown: set prompts.licence to the data set's licence"
    elif config.pairs.imported is None:
        found["personas"] = personas.licence_of(config.personas, run.model_licence)
    if config.pairs.source is not None or config.pairs.imported is not None:
        found["pairs"] = config.pairs.licence or "unknown: set pairs.licence to the data set's licence"
    return found


def first_source(config: Config) -> str:
    """The set from which a run's prompts derive."""
    return config.personas.source if config.prompts.source is None else config.prompts.source
