"""Personas: who asks. A source in, `Persona` records out (r_1 … r_n in Algorithm 1 of arXiv 2510.06652).

Sources: `self` (the model writes them, seeded by a small grid of traits), `builtin:general` (part of the
package, written for SAO, CC0), `builtin:world` (the toy world's 17,280), `none` (nobody: the control), a
file, or a hub data set by id and revision. Equal texts count once. Those held out for the evaluation are a
draw of their own, so that either can grow.

The model writes them in batches of drafts (`write_drafts`): some from traits, some as people whom an earlier
persona knows. A draft that is similar to an earlier one is dropped (`DistinctPersonas`); writing ends when a
batch brings few new ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from sao.config import PersonasConfig, WritingConfig
from sao.data.readers import column_texts, draw_texts
from sao.data.similarity import find_duplicates
from sao.engines import Engine, Request, Sample, Sampling, dropped, read_marked
from sao.errors import ConfigError, DataError
from sao.records import Drop, Message, Persona, make_id, seed_of
from sao.stages.rows import first_free_row, persona_row
from sao.templates import fill, load_template

LICENCES = {"builtin:general": "CC0-1.0", "builtin:world": "Apache-2.0", "none": "none (no personas)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """The seeds of personas: axes of short phrases ("works in aviation", "wants to save time"), and the ways
    in which two people may be related ("colleague")."""

    axes: tuple[tuple[str, ...], ...]
    relations: tuple[str, ...]


@cache
def load_traits(name: str) -> Traits:
    """A shipped grid (`general`, `world`) or a YAML file {axes: [[phrase, …], …], relations: [word, …]}.

    Raises ConfigError where there is none, it has another shape, or a phrase is no text (a bare `no` or
    `30`).
    """
    shipped = resources.files("sao").joinpath(f"data/traits_{name}.yaml")
    try:
        text = shipped.read_text("utf-8") if shipped.is_file() else Path(name).read_text("utf-8")
        grid = yaml.safe_load(text)
        axes = tuple(_phrases(axis) for axis in grid["axes"])
        relations = _phrases(grid["relations"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"personas.traits {name!r}: neither a shipped grid (general, world) nor a YAML file with axes "
            f"and relations, both lists of texts ({type(error).__name__}: {error})",
            key="personas.traits",
        ) from error
    if not axes or not all(axes) or not relations:
        raise ConfigError(
            f"personas.traits {name!r}: an axis or the list of relations is empty", key="personas.traits"
        )
    return Traits(axes=axes, relations=relations)


def _phrases(given: Any) -> tuple[str, ...]:
    """The texts of a list. Raises TypeError for anything else."""
    if not isinstance(given, list):
        raise TypeError(f"{given!r} is no list")
    if odd := [phrase for phrase in given if not isinstance(phrase, str)]:
        raise TypeError(f"{odd[0]!r} is no text: put it in quotes")
    return tuple(given)


def draw_traits(traits: Traits, rng: random.Random, n: int) -> list[str]:
    """One phrase each of `n` different axes (of all, where there are fewer), in the order of the axes."""
    axes = sorted(rng.sample(range(len(traits.axes)), min(n, len(traits.axes))))
    return [rng.choice(traits.axes[axis]) for axis in axes]


PAPER_SOURCES = {
    "proj-persona/PersonaHub": "CC-BY-NC-SA-4.0",
    "nvidia/Nemotron-Personas": "CC-BY-4.0",
    "nvidia/Nemotron-Personas-USA": "CC-BY-4.0",
    "argilla/FinePersonas-v0.1": "llama3",
}
"""Hub data sets of personas whose licence is known."""


def licence_of(config: PersonasConfig, model_licence: str) -> str:
    """The licence of the source, as far as it is known."""
    if config.licence or config.source not in ("self", *LICENCES):
        return config.licence or PAPER_SOURCES.get(
            config.source, "unknown: set personas.licence to the source's licence"
        )
    if config.source == "self":
        return f"written by the model itself, from a CC0 grid; the model's licence: {model_licence}"
    return LICENCES[config.source]


def non_commercial(licence: str) -> bool:
    """Whether a licence forbids commercial use, as far as its name says so."""
    return bool(re.search(r"(?<![a-z])nc(?![a-z])|non[\s_-]?commercial", licence, re.IGNORECASE))


def read_personas(config: PersonasConfig, seed: int, skipped: int = 0) -> Iterator[Persona]:
    """`n` personas for training and `held_out` others, all distinct, in the source's order. Where the first
    `skipped` of those for training went to earlier rounds, all others are for training.

    Raises DataError for a source that cannot be read (with file and line) or holds too few.
    """
    wanted, n_found = skipped + config.n + config.held_out, 0
    for index, held_out, text in _drawn(config.model_copy(update={"n": skipped + config.n}), seed):
        n_found += 1
        if index < skipped or (skipped and held_out):
            continue
        row = persona_row(index - skipped, held_out)
        yield Persona(id=make_id("persona", text or persona_row(index, held_out)), row=row, text=text)
    if n_found < wanted:
        raise DataError(
            f"{config.source}: holds {n_found} distinct personas, but personas.n + personas.held_out = "
            f"{config.n} + {config.held_out} are asked for"
            + (f", and {skipped} went to earlier rounds (--rounds.personas same)" if skipped else "")
            + ". Lower them, take a larger source, or let the model write them (--personas.source self)",
            key="personas.n",
        )


def _drawn(config: PersonasConfig, seed: int) -> Iterator[tuple[int, bool, str]]:
    """Texts with their number in training or in the held-out draw; fewer where there are fewer."""
    if config.source == "none":
        yield from ((index, False, "") for index in range(config.n))
        yield from ((index, True, "") for index in range(config.held_out))
    elif config.sample == "random" or config.source == "builtin:world":
        yield from draw_texts(lambda: _texts(config), config.n, config.held_out, seed)
    else:
        first = _distinct(_texts(config))
        yield from ((index, True, text) for index, text in enumerate(islice(first, config.held_out)))
        yield from ((index, False, text) for index, text in enumerate(islice(first, config.n)))


def _distinct(texts: Iterable[str]) -> Iterator[str]:
    seen = set()
    for text in texts:
        key = int(make_id(text.casefold()), 16)  # smaller than the text
        if key not in seen:
            seen.add(key)
            yield text


def _texts(config: PersonasConfig) -> Iterator[str]:
    """Every text of the source, with single spaces; empty ones are left out."""
    source = config.source
    raw: Iterator[str]
    if source == "builtin:general":
        raw = iter(resources.files("sao").joinpath("data/personas.txt").read_text("utf-8").splitlines())
    elif source == "builtin:world":
        from sao.toy_world.language import every_persona

        raw = every_persona()
    elif Path(source).is_dir():
        raise DataError(
            f"{source}: a folder. Name the file of personas in it with --personas.source",
            key="personas.source",
        )
    else:
        raw = column_texts(
            source,
            config.column,
            what="personas",
            section="personas",
            revision=config.revision,
            subset=config.subset,
        )
    return (text for text in (" ".join(text.split()) for text in raw) if text)


# Personas that the model writes itself.


def batch_size(kept: int) -> int:
    """How many drafts the next batch asks for. It depends only on the personas kept so far, so that a run
    that needs fewer personas finds its batches done."""
    return max(256, kept // 2)


def write_drafts(
    size: int, kept: Sequence[Persona], engine: Engine, config: WritingConfig, key: str, done: Container[str]
) -> Iterator[Persona | Drop]:
    """A batch of `size` personas as the model writes them, or Drops, that are not `done`, in order of
    finishing.

    Its id, which derives from `key`, decides what each draft is asked for: traits, or a relation to one of
    those `kept` so far.
    """
    traits = load_traits(config.traits)
    by_traits = load_template(config.template, ("traits",) if config.traits_each else ())
    related = load_template(config.template_related, ("persona", "relation"))
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    rows: dict[str, int] = {}

    def requests() -> Iterator[Request]:
        for row in range(size):
            draft = make_id(key, row)
            if draft in done:
                continue
            rows[draft] = row
            rng = random.Random(draft)
            if kept and rng.random() < config.related:
                text = fill(related, persona=rng.choice(kept).text, relation=rng.choice(traits.relations))
            else:
                text = fill(by_traits, traits="; ".join(draw_traits(traits, rng, config.traits_each)))
            yield Request((Message("user", text),), (Sample(draft, seed_of(draft)),), sampling)

    for completion in engine.generate(requests()):
        row = rows.pop(completion.id)
        text, reason = read_marked(completion, config.marker)
        if reason:
            yield dropped(completion, row, "personas", reason)
        else:
            yield Persona(id=completion.id, row=row, text=" ".join(text.split()))


class DistinctPersonas:
    """The distinct personas among the drafts so far: of similar ones the first is kept."""

    def __init__(self, max_similarity: float, before: Sequence[Persona] = ()) -> None:
        """`before`: the personas of earlier rounds, of which none comes again."""
        self.kept: list[Persona] = list(before)
        self._before = len(self.kept)
        self.dropped: list[Drop] = []
        self._max_similarity = max_similarity

    def add(self, drafts: Iterable[Persona], unparseable: Iterable[Drop] = ()) -> int:
        """Add a batch, in the order of its rows; how many of its personas are new."""
        self.dropped += unparseable
        kept_before, new = len(self.kept), list(drafts)
        texts = [persona.text for persona in (*self.kept, *new)]
        earlier = find_duplicates(lambda: iter(texts), self._max_similarity).earlier
        for number, draft in enumerate(new, kept_before):
            if earlier[number] < 0:
                self.kept.append(replace(draft, id=make_id("persona", draft.text)))
                continue
            detail = f"{draft.text} | {texts[earlier[number]]}"
            reason = "repeats an earlier persona"
            self.dropped.append(
                Drop(row=0, stage="personas", record_id=draft.id, reason=reason, detail=detail)
            )
        return len(self.kept) - kept_before

    def counts(self, n: int, held_out: int) -> tuple[int, int]:
        """How many of `n` personas for training and of `held_out` others there are."""
        held = sum(_is_held_out(persona) for persona in self.new)
        return min(n, len(self.new) - held), min(held_out, held)

    @property
    def new(self) -> list[Persona]:
        """Those kept that earlier rounds did not have."""
        return self.kept[self._before :]

    def records(self, n: int, held_out: int) -> Iterator[Persona | Drop]:
        """The first `n` personas for training and `held_out` others, then Drops for all other drafts, with
        rows behind theirs. Which of the two a persona is for follows from its text."""
        taken, spare = [0, 0], list[Drop]()
        for persona in self.new:
            held = _is_held_out(persona)
            if taken[held] < (n, held_out)[held]:
                yield replace(persona, row=persona_row(taken[held], held))
                taken[held] += 1
            else:
                id_ = make_id("spare", persona.id)
                spare.append(Drop(row=0, stage="personas", record_id=id_, reason="more than asked for"))
        for row, drop in enumerate([*self.dropped, *spare], first_free_row(n, held_out)):
            yield replace(drop, row=row)


def _is_held_out(persona: Persona) -> bool:
    """One written persona in six is kept from training, by its text alone: the draw grows and what is there
    stays."""
    return int(make_id("held out", persona.text), 16) % 6 == 0
