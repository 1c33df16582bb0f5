"""How varied a run's data is: `sao stats RUN`, or two runs side by side. A run folder in, `Statistics` out.

Repetition is the share of texts that repeat an earlier one: exactly (equal but for case, punctuation and
spaces), or nearly (a Jaccard similarity of word pairs of at least 0.7; the exact ones are among them). It is
measured on all prompts as the model wrote them, held-out ones included, before any filter, and once more
after the filters. The exact rate is what stands beside the paper's "prompt repetition" of 0.73 % with
personas and 45.65 % without (arXiv 2510.06652, 10,000 pairs; how it was counted is not said there). It rises
with the number of texts, so it is also given for 1,000 and for 10,000 of them. Of answers, equal ones to one
prompt count too.

Distinct-n, compression and the Vendi score depend on the size of what they are taken on. They are taken on
samples of fixed size, drawn by the hash of a record's id, and the size is shown wherever there was less than
that.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sao.analysis.stats.measures import (
    AMONG,
    LONGEST,
    NEAR,
    SAMPLE,
    VENDI_TEXTS,
    compression,
    distinct_n,
    first_words,
    group_sizes,
    rate,
    repetition_among,
    smallest,
    spread,
    topics_of,
    vendi,
)
from sao.config import Config
from sao.data.similarity import find_duplicates, words
from sao.errors import StoreError
from sao.pipeline.reader import Reader
from sao.records import Persona, Prompt, Response
from sao.results.statistics import (
    Distinct,
    ExactRepetition,
    NearRepetition,
    Statistics,
    TemplateCounts,
    TextFigures,
    Vendi,
)
from sao.stages.prompts import drawn_template
from sao.store.manifest import read_manifest
from sao.store.stage import Stage

__all__ = ["describe", "stats"]

Texts = Callable[[], Iterator[tuple[str, str]]]
"""(id, text), in the order of the rows; called a few times."""


def stats(run: Reader, seed: int = 0) -> Statistics:
    """The figures of a run.

    Args:
        run: A run whose prompts are written. One that trains on given pairs has none of its own.
        seed: Another one draws other samples.

    Raises:
        StoreError: The run's prompts are not written yet.

    """
    if run.config.pairs.source is None and not run.stage("prompts").finished:
        raise StoreError(
            f"{run.root}: its prompts are not all written yet. Go on with its recipe: sao prompts RECIPE "
            f"--out {run.root}",
            key="run folder",
        )
    figures: dict[str, TextFigures] = {}
    for name, stage, record_type in _kinds(run):

        def texts(stage: Stage = stage, record_type: Any = record_type) -> Iterator[tuple[str, str]]:
            return ((record.id, _text(record)) for record in stage.records(record_type))

        # Answers are long and many, and MinHash takes time by the word: of them only what is exactly the same
        # is counted.
        figures[name] = describe(texts, seed, topics=name == "prompts", near=name != "answers")
    return Statistics(
        sources=sources(run.config),
        licences=dict(read_manifest(run.root).licences),
        funnel=run.funnel(),
        templates=by_template(run),
        personas=figures.get("personas"),
        prompts=figures.get("prompts"),
        kept_prompts=figures.get("kept_prompts"),
        answers=figures.get("answers"),
    )


def _kinds(run: Reader) -> Iterator[tuple[str, Stage, type[Persona | Prompt | Response]]]:
    """What a run holds that can be described: its name, its stage, its kind of record. Where pairs are given
    there are held-out prompts only, which say nothing of what is trained on."""
    if run.config.pairs.source is not None:
        return
    c, kept = run.config, run.stage("filtered")
    if c.personas.source != "none" and c.prompts.source is None and run.stage("personas").finished:
        yield "personas", run.stage("personas"), Persona
    if run.stage("prompts").finished:
        yield "prompts", run.stage("prompts"), Prompt
    if kept.path != run.stage("prompts").path and kept.finished and kept.counts.dropped:
        yield "kept_prompts", kept, Prompt
    if run.stage("filtered_responses").finished:
        yield "answers", run.stage("filtered_responses"), Response


def _text(record: Persona | Prompt | Response) -> str:
    return record.conversation if isinstance(record, Prompt) else record.text


def sources(config: Config) -> dict[str, str]:
    """Where model, personas or prompts, and pairs come from, with the revision."""
    c = config
    if c.pairs.imported is not None:
        return {"pairs": "imported"}
    asked = ("prompts", c.prompts) if c.prompts.source is not None else ("personas", c.personas)
    named = {"model": c.model if c.revision is None else f"{c.model}@{c.revision}"}
    for name, part in (asked, ("pairs", c.pairs)):
        if part.source is not None:
            named[name] = part.source if part.revision is None else f"{part.source}@{part.revision}"
    return named


def by_template(run: Reader) -> dict[str, TemplateCounts]:
    """Of each template of prompts.mix how many prompts were asked for, written, and kept by the filters; {}
    without a mix."""
    c, kept_stage = run.config, run.stage("filtered")
    written_by_mix = c.prompts.source is None and c.personas.source != "none" and c.pairs.imported is None
    if not c.prompts.mix or not written_by_mix or not run.stage("prompts").finished:
        return {}

    def count(ids: Iterable[str]) -> Counter[str]:
        return Counter(drawn_template(c.prompts, id_) for id_ in ids)

    written = count(prompt.id for prompt in run.stage("prompts").records(Prompt))
    dropped = count(drop.record_id for drop in run.stage("prompts").drops())
    kept = count(p.id for p in kept_stage.records(Prompt)) if kept_stage.finished else None
    return {
        name: TemplateCounts(
            asked=written[name] + dropped[name],
            written=written[name],
            kept=None if kept is None else kept[name],
        )
        for name in c.prompts.mix
    }


def describe(texts: Texts, seed: int = 0, topics: bool = True, near: bool = True) -> TextFigures:
    """The figures of some texts; `topics` and `near` leave out what takes longest.

    Passes over the texts: one for lengths and sample, one for exact repetition, two more for near. Memory: 16
    bytes a text, a sample of SAMPLE texts, and what `sao.data.similarity.find_duplicates` takes.
    """
    word_counts, characters = array("q"), array("q")

    def measured() -> Iterator[tuple[str, str]]:
        for record_id, text in texts():
            word_counts.append(len(words(text)))
            characters.append(len(text))
            yield record_id, text[:LONGEST]

    sample = [text for _, text in smallest(measured(), SAMPLE, seed)]
    exact, nearly = _repetition(texts, near)
    return TextFigures(
        n=len(characters),
        words=spread(word_counts),
        characters=spread(characters),
        exact_repetition=exact,
        near_repetition=nearly,
        distinct=_distinct(sample),
        compression=compression(sample),
        vendi=Vendi(score=vendi(sample[:VENDI_TEXTS]), texts=min(VENDI_TEXTS, len(sample))),
        topics=topics_of(sample, seed) if topics else None,
    )


def _repetition(texts: Texts, near: bool) -> tuple[ExactRepetition, NearRepetition | None]:
    """How many texts repeat an earlier one exactly, and nearly where that is asked for."""
    repeats = find_duplicates(lambda: (text for _, text in texts()), NEAR if near else None)
    n, groups = len(repeats.similarity), group_sizes(repeats)
    exact = ExactRepetition(
        **dict(rate(sum(similarity >= 1 for similarity in repeats.similarity), n)),
        among={size: repetition_among(groups, size) for size in AMONG},
    )
    if not near:
        return exact, None
    nearly = rate(sum(earlier >= 0 for earlier in repeats.earlier), n)
    return exact, NearRepetition(**dict(nearly), jaccard=NEAR)


def _distinct(sample: list[str]) -> Distinct:
    first = first_words(sample)
    return Distinct(
        distinct_1=distinct_n(first, 1),
        distinct_2=distinct_n(first, 2),
        distinct_3=distinct_n(first, 3),
        words=sum(map(len, first)),
    )
