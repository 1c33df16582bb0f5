"""How varied a run's data is: `sao stats RUN`, or two runs side by side. A run folder in, a dict of figures
and a table out.

Repetition is the share of texts that repeat an earlier one: exactly (equal but for case, punctuation and
spaces), or nearly (a Jaccard similarity of word pairs of at least 0.7; the exact ones are among them). It is
measured on all prompts as the model wrote them, held-out ones included, before any filter, and once more
after the filters. The exact rate is what stands beside the paper's "prompt repetition" of 0.73 % with
personas and 45.65 % without (arXiv 2510.06652, 10,000 pairs; how it was counted is not said there). It rises
with the number of texts, so it is also given for 1,000 and for 10,000 of them. Of answers, equal ones to one
prompt count too.

Distinct-n, compression and the Vendi score hang on the size of what they are taken on. They are taken on
samples of fixed size, drawn by the hash of a record's id, and the size is shown wherever there was less than
that.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
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
from sao.analysis.stats.show import show_stats
from sao.config import Config
from sao.data.similarity import find_duplicates, words
from sao.errors import StoreError
from sao.pipeline.reader import Reader
from sao.records import Persona, Prompt, Response
from sao.stages.prompts import drawn_template
from sao.store.manifest import read_manifest
from sao.store.stage import Stage

__all__ = ["describe", "show_stats", "stats"]

Texts = Callable[[], Iterator[tuple[str, str]]]
"""(id, text), in the order of the rows; called a few times."""


def stats(run: Reader, seed: int = 0) -> dict[str, Any]:
    """The figures of a run, ready for JSON.

    Args:
        run: A run whose prompts are written. One that trains on given pairs has none of its own; what there
            is is shown.
        seed: Another one draws other samples.

    Returns:
        `personas`, `prompts` (as written), `kept_prompts` (where the filters dropped any) and `answers`, each
        only where it is there and as `describe` gives it; `sources`, `licences`, `funnel`; `templates`, for
        prompts.mix.

    Raises:
        StoreError: The run's prompts are not written yet.

    """
    if run.config.pairs.source is None and not run.stage("prompts").finished:
        raise StoreError(
            f"{run.root}: its prompts are not all written yet. Go on with its recipe: sao prompts RECIPE "
            f"--out {run.root}"
        )
    found: dict[str, Any] = {
        "sources": sources(run.config),
        "licences": read_manifest(run.root).get("licences", {}),
        "funnel": run.funnel(),
        "templates": by_template(run),
    }
    for name, stage, kind in _kinds(run):

        def texts(stage: Stage = stage, kind: Any = kind) -> Iterator[tuple[str, str]]:
            return ((record.id, _text(record)) for record in stage.records(kind))

        # Answers are long and many, and MinHash takes time by the word: of them only what is exactly the same
        # is counted.
        found[name] = describe(texts, seed, topics=name == "prompts", near=name != "answers")
    return found


def _kinds(run: Reader) -> Iterator[tuple[str, Stage, type[Persona | Prompt | Response]]]:
    """What a run holds that can be described: its name, its stage, its kind of record."""
    c, kept = run.config, run.stage("filtered")
    if c.personas.source != "none" and c.prompts.source is None and run.stage("personas").finished:
        yield "personas", run.stage("personas"), Persona
    if run.stage("prompts").finished:
        yield "prompts", run.stage("prompts"), Prompt
    if kept.path != run.stage("prompts").path and kept.finished and kept.counts["dropped"]:
        yield "kept_prompts", kept, Prompt
    if c.pairs.source is None and run.stage("filtered_responses").finished:
        yield "answers", run.stage("filtered_responses"), Response


def _text(record: Persona | Prompt | Response) -> str:
    return record.conversation if isinstance(record, Prompt) else record.text


def sources(config: Config) -> dict[str, str]:
    """Where model, personas or prompts, and pairs come from, with the revision."""
    c = config
    if c.pairs.imported is not None:
        return {"pairs": "imported"}
    asked = ("prompts", c.prompts) if c.prompts.source is not None else ("personas", c.personas)
    found = {"model": c.model if c.revision is None else f"{c.model}@{c.revision}"}
    for name, part in (asked, ("pairs", c.pairs)):
        if part.source is not None:
            found[name] = part.source if part.revision is None else f"{part.source}@{part.revision}"
    return found


def by_template(run: Reader) -> dict[str, dict[str, int]]:
    """Of each template of prompts.mix how many prompts were asked for, written, and kept by the filters; {}
    without a mix."""
    c, kept = run.config, run.stage("filtered")
    written_by_mix = c.prompts.source is None and c.personas.source != "none" and c.pairs.imported is None
    if not c.prompts.mix or not written_by_mix or not run.stage("prompts").finished:
        return {}
    found = {name: {"asked": 0, "written": 0} for name in c.prompts.mix}
    for prompt in run.stage("prompts").records(Prompt):
        found[drawn_template(c.prompts, prompt.id)]["written"] += 1
    lost = Counter(drawn_template(c.prompts, drop.record_id) for drop in run.stage("prompts").drops())
    for name, counts in found.items():
        counts["asked"] = counts["written"] + lost[name]
    if kept.finished:
        left = Counter(drawn_template(c.prompts, prompt.id) for prompt in kept.records(Prompt))
        for name, counts in found.items():
            counts["kept"] = left[name]
    return found


def describe(texts: Texts, seed: int = 0, topics: bool = True, near: bool = True) -> dict[str, Any]:
    """The figures of some texts; `topics` and `near` leave out what takes longest.

    Passes over the texts: one for lengths and sample, one for exact repetition, two more for near. Memory: 16
    bytes a text, a sample of SAMPLE texts, and what `sao.data.similarity.find_duplicates` takes.
    """
    said, characters = array("q"), array("q")

    def measured() -> Iterator[tuple[str, str]]:
        for record_id, text in texts():
            said.append(len(words(text)))
            characters.append(len(text))
            yield record_id, text[:LONGEST]

    sampled = [text for _, text in smallest(measured(), SAMPLE, seed)]
    repeats = find_duplicates(lambda: (text for _, text in texts()), NEAR if near else None)
    n, groups, start = len(said), group_sizes(repeats), first_words(sampled)
    exact = rate(sum(value >= 1 for value in repeats.similarity), n)
    found: dict[str, Any] = {
        "n": n,
        "words": spread(said),
        "characters": spread(characters),
        "exact_repetition": exact | {"among": {str(m): repetition_among(groups, m) for m in AMONG}},
        "near_repetition": rate(sum(place >= 0 for place in repeats.earlier), n) | {"jaccard": NEAR}
        if near
        else None,
        "distinct": {str(k): distinct_n(start, k) for k in (1, 2, 3)} | {"words": sum(map(len, start))},
        "compression": compression(sampled),
        "vendi": {"score": vendi(sampled[:VENDI_TEXTS]), "texts": min(VENDI_TEXTS, len(sampled))},
    }
    return found | ({"topics": topics_of(sampled, seed)} if topics else {})
