"""The method as a table of steps. START HERE.

Personas write prompts, the model answers each several times and judges its own answers; the preferences that
both orders of a pair agree on train it, and it is compared with its base on prompts that it was not trained
on (Algorithm 1 of arXiv 2510.06652, and its evaluation). Each entry of STEPS says what a step makes, what it
reads, what its records depend on, and the function that makes them; `sao.stages` and `sao.training` have
these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from sao.config import Config, JudgingConfig, ResponsesConfig
from sao.errors import DropError
from sao.evaluation import compare
from sao.execution.drops import check_readable
from sao.execution.runner import undone
from sao.execution.step import Step, Work
from sao.pipeline.reader import Reader
from sao.pipeline.roles import ASKED, Judge
from sao.pipeline.rounds import Round
from sao.pipeline.train_step import train
from sao.records import Comparison, Drop, Judgment, Persona, PreferencePair, Prompt, Response
from sao.stages import filters, judging, personas, prompts, responses
from sao.store.stage import Stage

Settings = dict[str, Any]

CHOSEN_BY = ("rule", "keep", "min_p", "calibrate", "max_length_ratio", "length_matched", "max_repetition")
"""The keys of the section `pairs` that decide which pairs are kept."""
NEUTRAL: dict[str, Any] = {"method": "instruct", "prefill": False}
"""Keys of section `prompts` that enter ids only where they differ from this."""


# Which steps a recipe has.


def writes_prompts(config: Config) -> bool:
    """Whether the model writes the prompts."""
    return config.prompts.source is None


def own_pairs(config: Config) -> bool:
    """Whether the pairs are made here, not given."""
    return config.pairs.source is None


def filters_prompts(config: Config) -> bool:
    """Whether prompts are filtered."""
    return filters.is_active(config.filters) and config.pairs.imported is None


def filters_answers(config: Config) -> bool:
    """Whether answers are searched for evaluation items."""
    return own_pairs(config) and bool(config.filters.against) and config.pairs.imported is None


def compares(config: Config) -> bool:
    """Whether there are held-out prompts to compare on."""
    return config.personas.held_out > 0


# Personas.


def persona_settings(run: Round, _: Any) -> Settings:
    """The source by its content; what the model depends on where it writes them itself."""
    config = run.config.personas
    settings = personas.source_identity(config, run.config.seed, run.outside.source(config.source))
    return settings | (writing_settings(run) if config.source == "self" else {})


def writing_settings(run: Round) -> Settings:
    """What personas that the model writes depend on."""
    writing = run.config.personas.writing
    traits = run.outside.look(
        f"traits {writing.traits}", lambda: asdict(personas.load_traits(writing.traits))
    )
    # min_new says only when to stop.
    return writing.model_dump(mode="json", exclude={"min_new"}) | {
        "traits": traits,
        "texts": [run.outside.template(name) for name in (writing.template, writing.template_related)],
        "model": run.model_identity,
        "seed": run.config.seed,
    }


def make_personas(work: Work[Round]) -> Iterable[Persona | Drop]:
    """Read or drawn from the source, or written by the model."""
    config = work.config.personas
    wanted = config.n + config.held_out
    if config.source == "self":
        return undone(_written(work, wanted), work.done)  # type: ignore[return-value]
    return undone(personas.read_personas(config, work.config.seed), work.done)  # type: ignore[return-value]


def _written(work: Work[Round], wanted: int) -> Iterator[Persona | Drop]:
    """Personas of the model's own, written in rounds of drafts until `wanted` distinct ones exist.

    Raises DropError where the last round brought hardly any new ones.
    """
    config, run, runner = work.config.personas.writing, work.run, work.runner
    settled = personas.Settled(config.max_similarity)
    stage: Stage | None = None
    number = 0
    while len(settled.kept) < wanted:
        size = personas.round_size(len(settled.kept))
        stage = run.make_stage(
            "drafts", stage, {**writing_settings(run), "number": number, "size": size}
        ).open()
        if not stage.finished:
            write = partial(personas.write_drafts, size, settled.kept, work.engine(run.roles.policy), config)
            make = partial(write, stage.key, stage.done)
            runner.fill(stage, Persona, make, size, runner.limit, range(size))
        runner.check(stage)
        new = settled.add(stage.records(Persona), stage.drops())
        number, known = number + 1, len(settled.kept)
        runner.notify(
            f"round {number}: {new} of {size} personas are new; {min(known, wanted)} of {wanted} stand"
        )
        if new < config.min_new * size and known < wanted:
            raise DropError(
                f"personas: the model has run dry: of the last {size} it wrote {new} were new, less than "
                f"personas.writing.min_new = {config.min_new:g}. {known} distinct ones stand and are kept. "
                f"Take no more (--personas.n {max(0, known - work.config.personas.held_out)}), or give it "
                "more "
                "to start from: personas.writing.traits, traits_each or temperature (these begin anew)"
            )
    return (yield from settled.records(wanted))


# Prompts.


def prompt_settings(run: Round, _: Any) -> Settings:
    """The section prompts, with the texts of its templates, the model and the seed."""
    config, run_config = run.config.prompts, run.config
    if config.source is not None:
        given = config.model_dump(mode="json", include={"column", "revision", "subset", "split"})
        sizes = run_config.personas.model_dump(include={"n", "held_out"})
        return {"source": run.outside.source(config.source), **given, **sizes, "seed": run_config.seed}
    settings = config.model_dump(mode="json", include={"marker", "temperature", "top_p", "max_tokens", "mix"})
    settings["texts"] = {name: run.outside.template(name) for name in prompt_templates(run_config)}
    settings |= {"model": run.model_identity, "seed": run_config.seed}
    return settings | {"method": config.method, "prefill": config.prefill}


def prompt_ids(run: Round, _: Any) -> Settings:
    """The same without what stands at the value that a run had before it existed."""
    settings = prompt_settings(run, None)
    return {name: value for name, value in settings.items() if name not in NEUTRAL or value != NEUTRAL[name]}


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


def make_prompts(work: Work[Round]) -> Iterable[Prompt | Drop]:
    """Each persona's prompt, or those given."""
    config = work.config
    if config.prompts.source is not None:
        given = prompts.given_prompts(config.prompts, config.personas, config.seed, work.key)
        return undone(given, work.done)  # type: ignore[return-value]
    engine = work.engine(work.run.roles.policy)
    return prompts.write_prompts(work.read("personas", Persona), engine, config.prompts, work.key, work.done)


def persona_rows(work: Work[Round]) -> Iterable[int]:
    """The rows of the personas."""
    return (persona.row for persona in work.read("personas", Persona)) if writes_prompts(work.config) else ()


# Filters.


def filter_settings(run: Round, _: Any) -> Settings:
    """Every value counts for what is kept, the defaults too: another default is another filter."""
    return run.config.filters.model_dump(mode="json") | _filter_facts(run)


def filter_ids(run: Round, _: Any) -> Settings:
    """The ids of what comes later derive from what was set only, since a filter makes no record."""
    return run.config.filters.model_dump(mode="json", exclude_defaults=True) | _filter_facts(run)


def _filter_facts(run: Round) -> Settings:
    config = run.config.filters
    facts: Settings = {
        "against": [run.outside.evaluation_set(name) for name in config.against],
        "marker": run.config.prompts.marker,
    }
    if config.reject is not None:
        function = config.reject
        facts["reject"] = run.outside.look(f"reject {function}", lambda: filters.plug_identity(function))
    return facts


def make_filtered(work: Work[Round]) -> Iterable[Prompt | Drop]:
    """The prompts that pass the filters."""

    def read() -> Iterator[tuple[Prompt, str]]:
        written = work.read("prompts", Prompt)
        if work.config.prompts.source is not None:
            return ((prompt, "") for prompt in written)
        return Reader(work.run).with_persona(written)

    marker = "" if work.config.prompts.source is not None else work.config.prompts.marker  # others' have none
    return filters.filter_prompts(read, work.config.filters, marker, work.done)


def some_are_left(work: Work[Round]) -> None:
    """Raise DropError where the filters left no prompt."""
    if work.run.stage("prompts").counts["records"] and not work.stage.counts["records"]:
        reasons = work.stage.counts["reasons"]
        raise DropError(
            f"filtered: no prompt is left ({reasons}). Look at {work.stage.path}; change section filters"
        )


def answer_filter_settings(run: Round, _: Any) -> Settings:
    """The evaluation sets, and how much of an item may stand in an answer."""
    config = run.config.filters
    sets = [run.outside.evaluation_set(name) for name in config.against]
    return {"against": sets, "max_overlap": config.max_overlap}


# Answers and verdicts.


def response_settings(run: Round, _: Any) -> Settings:
    """The section responses."""
    # Of imported pairs the answers exist, whatever the recipe says of new ones.
    return {} if run.config.pairs.imported is not None else run.config.responses.model_dump(mode="json")


def make_responses(work: Work[Round]) -> Iterator[Response | Drop]:
    """N answers to each training prompt."""
    asked, engine = Reader(work.run).asked(held_out=False), work.engine(work.run.roles.policy)
    return responses.answer_prompts(asked, engine, work.config.responses, work.key, work.done)


def response_rows(work: Work[Round]) -> Iterable[int]:
    """The rows of all answers that are asked for."""
    n = work.config.responses.n
    return (prompt.row * n + index for prompt in Reader(work.run).asked(held_out=False) for index in range(n))


def make_filtered_responses(work: Work[Round]) -> Iterator[Response | Drop]:
    """The answers in which no evaluation item stands."""
    return filters.filter_responses(work.read("responses", Response), work.config.filters, work.done)


def judgment_settings(run: Round, judge: Judge) -> Settings:
    """What one judge's verdicts depend on."""
    return judging_settings(run, judge.config)


def judging_settings(run: Round, how: JudgingConfig) -> Settings:
    """The section judging with the template's text; the judge, where it is not the model itself."""
    used = {  # temperature and max_tokens: a server without log-probabilities is asked for text instead
        "logprob": {"choices", "min_mass", "template", "temperature", "max_tokens"},
        "text": {"choices", "temperature", "max_tokens", "template", "reasoning"},
    }.get(how.method, set())
    settings = how.model_dump(mode="json", include={"method", "orders", *used})
    if how.opponents is not None and how.opponents < run.config.responses.n - 1:
        settings["opponents"] = how.opponents
    settings |= {"text": run.outside.template(how.template)} if used else {}
    settings |= {"prefill": how.prefill} if used and how.prefill else {}
    if how.engine is not None and how.method in ASKED and (run.given is None or how.method == "reward"):
        settings |= run.other_judge(how)
    return settings | (run.model_of_import if how.method in ASKED else {})


def training_pairs(work: Work[Round]) -> Iterator[judging.OrderedPair]:
    """The pairs of answers that a judge is shown."""
    judge: Judge = work.variant
    groups = ((p.id, p.conversation, answers) for p, answers in Reader(work.run).answered())
    n, orders = work.config.responses.n, _orders(judge.config)
    return judging.ordered_pairs(groups, orders, work.key, n, judge.config.opponents)


def make_judgments(work: Work[Round]) -> Iterator[Judgment | Drop]:
    """A judge's verdicts."""
    judge: Judge = work.variant
    how, pairs = judge.config, training_pairs(work)
    if how.method == "reward":
        with work.runner.session.reward_model(judge.role) as scorer:
            yield from judging.judge(pairs, None, how, work.done, scorer=scorer, name=judge.name)
        return
    engine = work.engine(judge.role) if how.method in ("logprob", "text") else None
    yield from judging.judge(pairs, engine, how, work.done, Reader(work.run).oracle, name=judge.name)


def judgment_total(work: Work[Round]) -> int:
    """Verdicts at most: identical answers are not judged."""
    n, how = work.config.responses.n, work.variant.config
    return work.config.personas.n * len(judging.opponents_of(n, how.opponents)) * _orders(how)


def _orders(how: JudgingConfig) -> int:
    return 2 if how.orders == "both" else 1


def pair_settings(run: Round, _: Any) -> Settings:
    """The rule by which pairs are chosen, and the panel."""
    settings = run.config.pairs.model_dump(mode="json", include=set(CHOSEN_BY))
    _, *others = run.stages("judgments")
    if others:
        weights = [judge.weight for judge in run.roles.judges[1:]]
        settings["panel"] = [(stage.fingerprint, w) for stage, w in zip(others, weights, strict=True)]
    return settings


def make_pairs(work: Work[Round]) -> Iterator[PreferencePair | Drop]:
    """The preferences that are learnt from."""
    return Reader(work.run).chosen(work.key, work.done)


# Training and evaluation.


def train_settings(run: Round, _: Any) -> Settings:
    """The section train, but for what changes only the rounding; the given pairs, where there are such."""
    settings = run.config.train.learnt_from() | run.model_of_import
    if own_pairs(run.config):
        return settings
    given = run.config.pairs.model_dump(mode="json", include={"revision", "subset", "split"})
    given |= {"source": run.outside.source(str(run.config.pairs.source))}
    return settings | {"pairs": given, "model": run.model_identity, "seed": run.config.seed}


def one_answer(config: Config) -> ResponsesConfig:
    """How held-out prompts are answered: as the others, once."""
    return config.responses.model_construct(**(config.responses.model_dump() | {"n": 1}))


def answer_held_out(work: Work[Round], tuned: bool) -> Iterator[Response | Drop]:
    """Held-out prompts answered by the trained model or its base."""
    role = work.run.tuned if tuned else work.run.roles.base
    asked = Reader(work.run).asked(held_out=True)
    # What is cut off or empty is an answer here: to leave it out would flatter the model.
    return responses.answer_prompts(
        asked, work.engine(role), one_answer(work.config), work.key, work.done, keep_cut=True
    )


def held_out_pairs(work: Work[Round]) -> Iterator[judging.OrderedPair]:
    """Base's and trained model's answers, in both orders."""
    for prompt, base, tuned in Reader(work.run).held_out():
        answers = [replace(base, row=2 * prompt.row), replace(tuned, row=2 * prompt.row + 1, index=1)]
        yield from judging.ordered_pairs([(prompt.id, prompt.conversation, answers)], 2, work.key, 2)


def make_comparisons(work: Work[Round]) -> Iterator[Comparison | Drop]:
    """The judge on base against trained model."""
    bases = {base.id for _, base, _ in Reader(work.run).held_out()}
    judge = work.run.roles.reader
    engine = work.engine(judge.role)
    for verdict in judging.judge(held_out_pairs(work), engine, judge.config, work.done, name=judge.name):
        if isinstance(verdict, Drop):
            yield replace(verdict, stage="comparisons")
            continue
        base_id = verdict.first_id if verdict.first_id in bases else verdict.second_id
        yield compare.comparison_of(verdict, base_id)


def _persona_total(work: Work[Round]) -> int:
    return work.config.personas.n + work.config.personas.held_out


def _records_of(step: str, work: Work[Round]) -> int:
    return int(work.run.stage(step).counts["records"])


def _possible_pairs(work: Work[Round]) -> int:
    n = work.config.responses.n
    return work.config.personas.n * n * (n - 1) // 2


STEPS: tuple[Step[Round], ...] = (
    # Personas: who asks.
    Step(
        name="personas", record=Persona, settings=persona_settings, make=make_personas,
        when=writes_prompts, total=_persona_total, limited=False,
    ),
    # Each writes a prompt.
    Step(
        name="prompts", record=Prompt, reads=("personas",), settings=prompt_settings, ids=prompt_ids,
        make=make_prompts, rows=persona_rows, total=_persona_total,
    ),
    # Some of these are not worth an answer.
    Step(
        name="filtered", record=Prompt, reads=("prompts", "personas"), settings=filter_settings,
        ids=filter_ids,
        make=make_filtered, when=filters_prompts, total=partial(_records_of, "prompts"), limited=False,
        after=some_are_left,
    ),
    # The model answers each several times …
    Step(
        name="responses", record=Response, reads=("filtered",), settings=response_settings,
        make=make_responses,
        when=own_pairs, rows=response_rows,
        total=lambda work: work.config.personas.n * work.config.responses.n,
    ),
    Step(
        name="filtered_responses", record=Response, reads=("responses",), settings=answer_filter_settings,
        make=make_filtered_responses, when=filters_answers, total=partial(_records_of, "responses"),
    ),
    # … and judges its own answers, in both orders.
    Step(
        name="judgments", record=Judgment, reads=("filtered_responses", "filtered"),
        settings=judgment_settings,
        make=make_judgments, when=own_pairs, variants=lambda run: run.roles.judges,
        rows=lambda work: (pair.row for pair in training_pairs(work)), total=judgment_total,
        after=lambda work: check_readable(work.stage, work.config.max_drop_share),
    ),
    # The clear preferences become pairs,
    Step(
        name="pairs", record=PreferencePair, reads=("judgments", "filtered_responses", "filtered"),
        settings=pair_settings, make=make_pairs, when=own_pairs, total=_possible_pairs, limited=False,
    ),
    # on which the model is trained.
    Step(
        name="train", record=PreferencePair, reads=("pairs", "filtered_responses", "filtered"),
        settings=train_settings, make=lambda work: (), build=train, product="model",
    ),
    # Then both answer prompts that it was not trained on,
    Step(
        name="heldout_base", record=Response, reads=("filtered",),
        settings=lambda run, _: one_answer(run.config).model_dump(mode="json") | run.model_of_import,
        make=partial(answer_held_out, tuned=False), when=compares,
        total=lambda work: work.config.personas.held_out, in_funnel=False,
    ),
    Step(
        name="heldout_tuned", record=Response, reads=("train", "filtered"),
        settings=lambda run, _: one_answer(run.config).model_dump(mode="json"),
        make=partial(answer_held_out, tuned=True), when=compares,
        total=lambda work: work.config.personas.held_out, in_funnel=False,
    ),
    # and the judge says whose answers are better.
    Step(
        name="comparisons", record=Comparison, reads=("heldout_tuned", "heldout_base", "filtered"),
        settings=lambda run, _: judging_settings(run, run.roles.reader.config), make=make_comparisons,
        when=compares, rows=lambda work: (pair.row for pair in held_out_pairs(work)),
        total=lambda work: 2 * work.config.personas.held_out, in_funnel=False,
    ),
)  # fmt: skip
"""The method, in order."""
