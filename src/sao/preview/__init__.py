"""A look before a run: what a model does with a recipe, on a few personas and in minutes (`sao preview`).

A recipe in, a `Preview` out: texts as they are, how many prompts are usable by each way to get them, what the
answers look like, what the judge is worth, what the whole run will take here, and what to change. The records
lie in a folder like a run's; the same call goes on where it stopped.

`ways` has what is tried, as data; `rules` what to change; `look` the folder and its steps; `verdicts` what
the judge is worth.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from sao.config import Config
from sao.data.readers import content_identity
from sao.engines import Engine
from sao.engines.auto import settle
from sao.errors import ConfigError, EngineError, ModelError
from sao.execution.runner import Progress, watched
from sao.execution.session import Notify
from sao.models.load import check_model
from sao.pipeline import preflight
from sao.preview import budget as times
from sao.preview.budget import Budget
from sao.preview.costs import run_cost, spent
from sao.preview.figures import answer_figures, prompt_figures
from sao.preview.look import Look
from sao.preview.recipe import write_recipe
from sao.preview.rules import changes, chosen_way
from sao.preview.verdicts import with_verdicts
from sao.preview.ways import RECIPE, Settings, prompt_ways, varied
from sao.records import Message
from sao.results.preview import AnswerFigures, Change, Preview, PromptWay
from sao.store import manifest

__all__ = ["preview"]

NO_TEMPLATE = (
    "This is a base model: its tokenizer has no chat template, so it has not learnt to answer. Take the "
    "instruct version of the model (its name mostly ends with -Instruct, -it or -Chat). If this one was "
    "trained on chats, give the template that was used there (--chat.template FILE), and look again."
)


def preview(
    config: Config,
    folder: str | Path,
    *,
    minutes: float = 3.0,
    write: Path | None = None,
    engine: Engine | None = None,
    progress: Progress = lambda stage, done, total: None,
    notify: Notify = lambda line: None,
) -> Preview:
    """Look at a recipe in `folder`, in about so many minutes, and write the recipe with what to change to
    `write` (default: recipe.yaml in the folder).

    `engine` takes the place of the configured one (tests, planted judges). Raises SAOError's children.
    """
    if config.pairs.source is not None or config.pairs.imported is not None:
        raise ConfigError(
            "the recipe trains on given pairs: there are no prompts, answers and verdicts to look at. "
            "`sao plan` computes what training takes",
            key="pairs.source",
        )
    budget, root = Budget(minutes), Path(folder)
    settled, why = (config, "given") if engine is not None else settle(config)
    small, notes = small_recipe(settled)
    look = Look(small, root, engine, progress, notify, minutes)
    shown = Preview(
        model=config.model,
        engine=why,
        folder=str(root),
        notes=notes,
        cpus=os.cpu_count() or 1,
        other_load=_other_load(settled),
        quick_bfloat16=_has_quick_bfloat16(settled),
    )
    with watched(look.runner):
        try:
            _open(look)
        except ModelError as error:
            if error.key != "chat template":
                raise
            change = Change(rule="no chat template", says=NO_TEMPLATE)
            return shown.model_copy(update={"problem": str(error), "changes": [change]})
        shown = _with_texts(look, budget, settled, shown)
        shown = with_verdicts(look, budget, shown)
    return _finished(look, budget, config, settled, shown, write or root / "recipe.yaml")


def _other_load(config: Config) -> float | None:
    """How many CPUs are busy with something else, where CPUs run the model; None elsewhere. Measured for half
    a second: the load average also counts what has ended."""
    if config.engine.name != "transformers" or not _on_cpu(config):
        return None
    import psutil

    return psutil.cpu_percent(interval=0.5) / 100 * (psutil.cpu_count() or 1)


def _on_cpu(config: Config) -> bool:
    """Whether this machine's CPUs run the model."""
    from sao.models.load import pick_device

    return config.engine.name in ("transformers", "vllm") and pick_device(config.engine) == "cpu"


def _has_quick_bfloat16(config: Config) -> bool:
    from sao.models.load import has_quick_bfloat16

    return _on_cpu(config) and has_quick_bfloat16()


def small_recipe(config: Config) -> tuple[Config, list[str]]:
    """The recipe as the preview uses it, and what differs."""
    settings = {
        "max_drop_share": "1",
        "rounds.n": "1",
        "judging.flipped": "0",
        "personas.n": str(times.PEOPLE),
        "personas.held_out": "0",
        "prompts.checkable": "0",
        "evaluation.checkable": "0",
        "responses.n": "2",
        "filters.decontaminate": "[]",
        "filters.embeddings": "null",
    }
    notes = []
    if config.judging.method == "checks":
        settings["judging.method"] = "logprob"
        notes.append("The recipe's judge is the checks of constraints; here the model itself judges.")
    if config.personas.source == "self":
        settings["personas.source"] = "builtin:general"
        notes.append("The recipe's personas are written by the model; here they are those of the package.")
    if config.filters.decontaminate or config.filters.embeddings:
        notes.append("Not searched here: evaluation items, and prompts that mean the same (filters).")
    return varied(config, settings), notes


def _open(look: Look) -> None:
    """Check model and folder before any work starts. Raises SAOError's children."""
    round_, config = look.round({}), look.config
    if look.given is None and config.engine.name not in ("openai", "scripted"):
        check_model(config.model, config.engine, config.revision, chat=config.chat)
    source = content_identity(preflight.first_source(config))
    licences = preflight.licences_of(round_)
    preflight.announce(round_, licences, look.runner.notify)
    identity, found = round_.model_identity, round_.outside.found
    manifest.open_manifest(look.root, config, identity, source, licences, found, round_.sizes)
    look.runner.status.start()


# Prompts and answers.


def _with_texts(look: Look, budget: Budget, config: Config, shown: Preview) -> Preview:
    """The preview with prompts by each way, and answers to those of the best."""
    ways = prompt_ways(config)
    each = look.notebook.decide("microseconds of a token", lambda: _microseconds(look)) / 1e6
    recipe = config.prompts.max_tokens
    tokens = look.notebook.decide(
        "tokens of a prompt", lambda: times.prompt_tokens(budget, each, len(ways), recipe)
    )
    people = look.notebook.decide("personas", lambda: times.people(budget, each, tokens, len(ways)))
    shared = {"personas.n": str(people), "prompts.max_tokens": str(tokens)}
    found = [_prompt_way(look, name, own, shared, is_recipe) for name, own, is_recipe in ways]
    if all(way.skipped for way in found):
        raise EngineError(f"no way to get prompts can be used: {found[0].skipped}", key="prompts.method")
    # Of ways that do as well: the recipe's, else the last one, since a prefilled marker fits any text.
    best = max(
        (way for way in reversed(found) if way.usable),
        key=lambda way: (way.usable, way.is_recipe),
        default=None,
    )
    shown = shown.model_copy(update={"prompts": found, "best": best.name if best else None})
    chosen = chosen_way(shown)
    if chosen is None:
        return shown
    longest = look.notebook.decide(
        "tokens of an answer", lambda: times.answer_tokens(budget, each, config.responses.max_tokens)
    )
    settings = {**shared, **chosen.settings, "responses.max_tokens": str(longest)}
    return shown.model_copy(update={"answers": _answers(look, settings, config)})


def _microseconds(look: Look) -> int:
    return round(1e6 * times.seconds_of_a_token(look.engine))


def _prompt_way(look: Look, name: str, own: Settings, shared: Settings, is_recipe: bool) -> PromptWay:
    """One way to get prompts, tried."""
    way = PromptWay(name=name, settings=dict(own), is_recipe=is_recipe)
    settings = {**shared, **own}
    try:
        _check_way(look, varied(look.config, settings))
        with look.notebook.timed(f"prompts, {name}"):
            run = look.run(settings, "checkable")
    except (ModelError, EngineError, ConfigError) as error:
        return way.model_copy(update={"skipped": str(error)})
    return prompt_figures(way, run)


def _check_way(look: Look, config: Config) -> None:
    """Raise EngineError or ModelError where the model cannot go on from a turn that has begun."""
    as_user = config.prompts.method == "user_turn"
    if config.prompts.source is not None or not (as_user or config.prompts.prefill):
        return
    if not look.engine.has_prefill:
        raise EngineError("the engine cannot go on from a turn that has begun", key="prefill")
    if as_user and look.given is None and config.engine.name not in ("openai", "scripted"):
        opening = (Message("system", "a"),) if config.personas.source != "none" else ()
        check_model(config.model, config.engine, config.revision, opening, config.chat)


def _answers(look: Look, settings: Settings, config: Config) -> AnswerFigures:
    with look.notebook.timed("answers"):
        run = look.run(settings, "responses")
    return answer_figures(run, look.notebook.tokens_each("answers"), config.responses.max_tokens)


# The end.


def _finished(
    look: Look, budget: Budget, config: Config, settled: Config, shown: Preview, recipe: Path
) -> Preview:
    """The preview with its costs, what to change, and the recipe written."""
    tried = [way.name for way in shown.judging if way.skipped is None]
    judge = f"verdicts, {RECIPE if RECIPE in tried or not tried else tried[0]}"
    cost = run_cost(settled, look.notebook, chosen_way(shown), shown.answers, judge)
    shown = shown.model_copy(
        update={
            "loading": round(look.session.counts.loading, 1),
            "seconds": round(time.monotonic() - budget.began, 1),
            "spent": spent(look.notebook),
            "run": cost,
        }
    )
    found = changes(shown, config)
    write_recipe(recipe, config, found)
    return shown.model_copy(update={"changes": found, "recipe": str(recipe)})
