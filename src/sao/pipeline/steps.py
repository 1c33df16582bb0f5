"""The method as a table of steps. START HERE.

Personas write prompts, the model answers each several times and judges its own answers; the preferences that
both orders of a pair agree on train it, and it is compared with its base on prompts that it was not trained
on (Algorithm 1 of arXiv 2510.06652, and its evaluation). Each entry of STEPS says what a step makes, what it
reads, what its records depend on, and the function that makes them; `sao.stages` and `sao.training` have
these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from sao.config import Config
from sao.errors import DataError, DropError
from sao.execution.drops import check_readable
from sao.execution.step import Step, Work
from sao.pipeline.checkable import (
    base_logprob_settings,
    has_checkable,
    make_base_logprobs,
    make_checkable,
    reads_answers,
)
from sao.pipeline.kept_models import is_done
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round
from sao.pipeline.settings import (
    answer_filter_settings,
    checkable_settings,
    filter_ids,
    filter_settings,
    held_out_settings,
    judgment_settings,
    one_answer,
    own_pairs,
    pair_settings,
    persona_ids,
    persona_settings,
    prompt_settings,
    prompts_before,
    response_settings,
    skipped,
    train_settings,
    writes_prompts,
    writing_settings,
)
from sao.pipeline.train_step import train
from sao.pipeline.verdicts import (
    compares,
    compares_rounds,
    comparison_settings,
    comparison_total,
    held_out_pairs,
    judge_before,
    judges_anew,
    judges_held_out,
    judgment_total,
    make_comparisons,
    make_judgments,
    make_rejudged,
    rejudged_total,
    training_pairs,
)
from sao.records import (
    KEPT_TEXT,
    Comparison,
    Drop,
    Judgment,
    Likelihoods,
    Persona,
    PreferencePair,
    Prompt,
    Response,
)
from sao.stages import filters, personas, prompts, responses, rows
from sao.store.stage import Stage

# Which steps a recipe has.


def filters_prompts(config: Config) -> bool:
    """Whether prompts are filtered."""
    return filters.is_active(config.filters) and config.pairs.imported is None


def filters_answers(config: Config) -> bool:
    """Whether answers are searched for evaluation items."""
    return own_pairs(config) and bool(config.filters.decontaminate) and config.pairs.imported is None


def refuse_import(work: Work[Round]) -> None:
    """Raise DataError where the records come with `sao import`, and it has not finished."""
    if work.config.pairs.imported is not None:
        raise DataError(
            f"{work.run.root}: the import is not finished. Give the same `sao import` again; it goes on "
            "where it "
            "stopped",
            key="run folder",
        )


# Personas.


def make_personas(work: Work[Round]) -> Iterator[Persona | Drop]:
    """Read or drawn from the source, or written by the model."""
    refuse_import(work)
    config = work.config.personas
    if config.source == "self":
        yield from _written(work)
    else:
        yield from personas.read_personas(config, work.config.seed, skipped(work.run))


def _written(work: Work[Round]) -> Iterator[Persona | Drop]:
    """Personas of the model's own, written in batches of drafts until there are enough distinct ones.

    Raises DropError where the last batch brought hardly any new ones.
    """
    config, runner = work.config.personas, work.runner
    asked = _wanted_personas(work.run)
    before_these = [p for earlier in work.run.earlier for p in earlier.stage("personas").records(Persona)]
    chosen = personas.DistinctPersonas(config.writing.max_similarity, before_these)
    before: Stage | None = None
    number = 0
    while chosen.counts(*asked) != asked:
        size = personas.batch_size(len(chosen.kept))
        before = _drafts(work, before, number, size, chosen.kept)
        new = chosen.add(before.records(Persona), before.drops())
        number, known = number + 1, chosen.counts(*asked)
        runner.notify(
            f"drafts, batch {number}: {new} of {size} are new personas; {sum(known)} of {sum(asked)} exist"
        )
        if new < config.writing.min_new * size and known != asked:
            raise DropError(
                f"personas: the model has run dry: of the last {size} it wrote {new} were new, less than "
                f"personas.writing.min_new = {config.writing.min_new:g}. {sum(known)} distinct ones exist "
                f"and are kept. Take no more (--personas.n {known[0]} --personas.held_out {known[1]}), or "
                "give it more to start from: personas.writing.traits, traits_each or temperature (new "
                "drafts)",
                key="personas.writing.min_new",
            )
    yield from chosen.records(*asked)


def _wanted_personas(run: Round) -> tuple[int, int]:
    """Personas for training and held out; later rounds have none of the second kind of their own."""
    config = run.config.personas
    return config.n, config.held_out if run.before is None else 0


def _drafts(work: Work[Round], before: Stage | None, number: int, size: int, kept: list[Persona]) -> Stage:
    """Batch `number` of the personas that the model writes, with `size` drafts, finished."""
    run, runner = work.run, work.runner
    chain = {"revision": run.table["personas"].revision, "upstream": before.key if before else None}
    settings = {**writing_settings(run), "number": number, "size": size, "step": chain}
    stage = Stage(run.place, "drafts", settings).open()
    if not stage.finished:
        engine, writing = work.engine(run.roles.policy), work.config.personas.writing
        drafts = personas.write_drafts(size, kept, engine, writing, stage.key, stage.done)
        runner.fill(stage, Persona, drafts, size, runner.limit, range(size))
    runner.check(stage)
    return stage


# Prompts.


def make_prompts(work: Work[Round]) -> Iterator[Prompt | Drop]:
    """Each persona's prompt, or those given."""
    refuse_import(work)
    held_out = _held_out_texts(work.run)
    for made in _given_or_written(work):
        if isinstance(made, Prompt) and _plain(made.conversation) in held_out:
            reason, text = "equals a held-out prompt", made.text[:KEPT_TEXT]
            yield Drop(row=made.row, stage="prompts", record_id=made.id, reason=reason, text=text)
        else:
            yield made


def _given_or_written(work: Work[Round]) -> Iterable[Prompt | Drop]:
    config, run = work.config, work.run
    if config.prompts.source is not None:
        past, later = skipped(run), run.before is not None
        return prompts.given_prompts(config.prompts, config.personas, config.seed, work.key, past, later)
    engine = work.engine(run.roles.policy)
    return prompts.write_prompts(_asking(work), engine, config.prompts, work.key, work.done)


def _asking(work: Work[Round]) -> Iterator[Persona]:
    """The personas that are asked: in later rounds none that are held out."""
    everyone = work.read("personas", Persona)
    if work.run.before is None:
        return everyone
    return (p for p in everyone if rows.within(_wanted_personas(work.run), p.row))


def _held_out_texts(run: Round) -> set[str]:
    """The prompts of the first round that a later one must not train on, without their constraints."""
    if run.before is None:
        return set()
    prompts_of = run.first.stage("filtered").records(Prompt)
    return {_plain(prompt.conversation) for prompt in prompts_of if rows.is_held_out(prompt.row)}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def persona_rows(work: Work[Round]) -> Iterable[int]:
    """The rows of the personas."""
    return (persona.row for persona in _asking(work)) if writes_prompts(work.config) else ()


# Filters.


def make_filtered(work: Work[Round]) -> Iterator[Prompt | Drop]:
    """The prompts that pass the filters."""
    marker = "" if work.config.prompts.source is not None else work.config.prompts.marker  # others' have none
    before = {prompt.id for prompt in _asked_before(work.run)}
    for kept in filters.filter_prompts(partial(_to_filter, work.run), work.config.filters, marker, work.done):
        if (kept.record_id if isinstance(kept, Drop) else kept.id) not in before:
            yield kept


def _to_filter(run: Round) -> Iterator[tuple[Prompt, str]]:
    """The prompts with their personas; first those of earlier rounds, which these may not repeat."""
    yield from ((prompt, "") for prompt in _asked_before(run))
    yield from _in_order_of_growth(run)


def _asked_before(run: Round) -> Iterator[Prompt]:
    """The prompts that a later round's may not repeat."""
    only_held_out = run.config.rounds.personas == "same"
    for stage in prompts_before(run):
        prompts_of = stage.records(Prompt)
        yield from (p for p in prompts_of if not only_held_out or rows.is_held_out(p.row))


def _in_order_of_growth(run: Round) -> Iterator[tuple[Prompt, str]]:
    """The prompts with their personas in the order in which it is decided which are kept: as they came when
    the run grew, and of those that came together the ones for training first, so that no held-out prompt
    repeats them."""
    n_before, held_out_before = 0, 0
    for n, held_out in run.sizes:
        later: list[tuple[Prompt, str]] = []
        for prompt, persona in Reader(run).written():
            index = rows.index_of(prompt.row)
            if rows.is_held_out(prompt.row):
                if held_out_before <= index < held_out:
                    later.append((prompt, persona))
            elif n_before <= index < n:
                yield prompt, persona
        yield from later
        n_before, held_out_before = n, held_out


def some_are_left(work: Work[Round]) -> None:
    """Raise DropError where the filters left no prompt."""
    if work.run.stage("prompts").counts.records and not work.stage.counts.records:
        reasons = work.stage.counts.reasons
        raise DropError(
            f"filtered: no prompt is left ({reasons}). Look at {work.stage.path}; change section filters",
            key="filters",
        )


# Answers and verdicts.


def make_responses(work: Work[Round]) -> Iterator[Response | Drop]:
    """N answers to each training prompt, by the policy or half of them by the model that it began with."""
    refuse_import(work)
    how, roles, extra = work.config.responses, work.run.roles, work.config.chat.reasoning_tokens
    own = how.n if roles.rejected is None else rows.newer_answers(how.n)
    for role, numbers in ((roles.policy, range(own)), (roles.rejected, range(own, how.n))):
        if role is not None and numbers:
            asked, engine = Reader(work.run).asked(held_out=False), work.engine(role)
            yield from responses.answer_prompts(
                asked, engine, how, work.key, work.done, reasoning_tokens=extra, numbers=numbers
            )


def response_rows(work: Work[Round]) -> Iterable[int]:
    """The rows of all answers that are asked for."""
    n, asked = work.config.responses.n, Reader(work.run).asked(held_out=False)
    return (rows.answer_row(prompt, n, number) for prompt in asked for number in range(n))


def make_filtered_responses(work: Work[Round]) -> Iterator[Response | Drop]:
    """The answers in which no evaluation item stands."""
    return filters.filter_responses(work.read("responses", Response), work.config.filters, work.done)


def make_pairs(work: Work[Round]) -> Iterator[PreferencePair | Drop]:
    """The preferences that are learnt from."""
    yield from Reader(work.run).chosen(work.key)


# Training and evaluation.


def answer_held_out(work: Work[Round], tuned: bool) -> Iterator[Response | Drop]:
    """Held-out prompts answered by the trained model or its base."""
    role = work.run.tuned if tuned else work.run.roles.base
    asked = Reader(work.run).asked(held_out=True)
    # What is cut off or empty is an answer here: to leave it out would flatter the model.
    extra = role.chat.reasoning_tokens
    yield from responses.answer_prompts(
        asked, work.engine(role), one_answer(work.config), work.key, work.done, True, extra
    )


def _persona_total(work: Work[Round]) -> int:
    return sum(_wanted_personas(work.run))


def _records_of(step: str, work: Work[Round]) -> int:
    return work.run.stage(step).counts.records


def _answer_total(work: Work[Round]) -> int:
    return Reader(work.run).count_asked(held_out=False) * work.config.responses.n


def _possible_pairs(work: Work[Round]) -> int:
    return Reader(work.run).count_asked(held_out=False) * rows.pairs_each(work.config.responses.n)


def _held_out_total(work: Work[Round]) -> int:
    return Reader(work.run).count_asked(held_out=True)


STEPS: tuple[Step[Round], ...] = (
    # Personas: who asks.
    Step(
        name="personas", record=Persona, settings=persona_settings, ids=persona_ids, make=make_personas,
        when=writes_prompts, total=_persona_total, limited=False,
    ),
    # Each writes a prompt.
    Step(
        name="prompts", record=Prompt, reads=("personas",), settings=prompt_settings,
        make=make_prompts, rows=persona_rows, total=_persona_total,
    ),
    # Some of these are not worth an answer.
    Step(
        name="filtered", record=Prompt, reads=("prompts",), settings=filter_settings,
        ids=filter_ids,
        make=make_filtered, when=filters_prompts, total=partial(_records_of, "prompts"), limited=False,
        after=some_are_left,
    ),
    # To a share of them constraints are appended that a program can check, where the recipe says so.
    Step(
        name="checkable", record=Prompt, revision=2, reads=("filtered",), settings=checkable_settings,
        make=make_checkable, when=has_checkable, total=partial(_records_of, "filtered"), limited=False,
        in_funnel=False,
    ),
    # The model answers each several times …
    Step(
        name="responses", record=Response, reads=("checkable",), settings=response_settings,
        make=make_responses,
        when=own_pairs, rows=response_rows, total=_answer_total,
    ),
    Step(
        name="filtered_responses", record=Response, reads=("responses",), settings=answer_filter_settings,
        make=make_filtered_responses, when=filters_answers, total=partial(_records_of, "responses"),
    ),
    # … and judges its own answers, in both orders.
    Step(
        name="judgments", record=Judgment, reads=("filtered_responses",),
        settings=judgment_settings,
        make=make_judgments, when=own_pairs, variants=lambda run: run.roles.judges,
        rows=lambda work: (pair.row for pair in training_pairs(work)), total=judgment_total,
        after=lambda work: check_readable(work.stage, work.config.max_drop_share),
    ),
    # The clear preferences become pairs,
    Step(
        name="pairs", record=PreferencePair, reads=("judgments",),
        settings=pair_settings, make=make_pairs, when=own_pairs, total=_possible_pairs, limited=False,
    ),
    # on which the model is trained.
    Step(
        name="train", record=PreferencePair, reads=("pairs",),
        settings=train_settings, make=lambda work: (), build=train, product="model",
        is_whole=is_done,
    ),
    # Then both answer prompts that it was not trained on,
    Step(
        name="heldout_base", record=Response, reads=("checkable",),
        settings=held_out_settings,
        make=partial(answer_held_out, tuned=False), when=compares,
        total=_held_out_total, in_funnel=False, held_out=True, once=True,
    ),
    Step(
        name="heldout_tuned", record=Response, reads=("train", "checkable"),
        settings=held_out_settings,
        make=partial(answer_held_out, tuned=True), when=compares,
        total=_held_out_total, in_funnel=False, held_out=True,
    ),
    # the base says how probable it finds both answers,
    Step(
        name="base_logprobs", record=Likelihoods, reads=("heldout_tuned", "heldout_base"),
        settings=base_logprob_settings, make=make_base_logprobs, when=reads_answers, total=_held_out_total,
        in_funnel=False, held_out=True,
    ),
    # and the judge says whose answers are better.
    Step(
        name="comparisons", record=Comparison, reads=("heldout_tuned", "heldout_base"),
        settings=lambda run, _: comparison_settings(run), make=make_comparisons,
        when=judges_held_out, rows=lambda work: (pair.row for pair in held_out_pairs(work)),
        total=comparison_total, in_funnel=False, held_out=True,
    ),
    # In later rounds it also says whether they are better than those of the model before,
    Step(
        name="comparisons_before", record=Comparison, reads=("heldout_tuned",),
        settings=lambda run, _: comparison_settings(run, "before"),
        make=partial(make_comparisons, since="before"), total=partial(comparison_total, since="before"),
        when=compares_rounds, in_funnel=False, held_out=True, later=True,
    ),
    # and the judge before is asked about some of the round's pairs where the judge is another one now.
    Step(
        name="rejudged", record=Judgment, reads=("filtered_responses",),
        settings=lambda run, _: judgment_settings(run, judge_before(run)), make=make_rejudged,
        when=judges_anew, total=rejudged_total, in_funnel=False, later=True,
    ),
)  # fmt: skip
"""The method, in order."""
