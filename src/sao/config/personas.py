"""Who asks: the sections personas and personas.writing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sao.config.section import Section, setting


class WritingConfig(Section):
    """How the model writes the personas itself (personas.source self)."""

    traits: str = "general"
    """Grid of traits that seeds it: general or world (shipped, CC0), or a YAML file {axes: [[phrase, …], …],
    relations: [word, …]}."""
    traits_each: int = Field(default=3, ge=0)
    """Traits given for one persona, each of another axis; 0: none, so that the model writes what comes to
    mind."""
    related: float = Field(default=0.5, ge=0, le=1)
    """Share of the personas, once there are some, that are asked for as somebody whom an earlier one
    knows."""
    template: str = "persona"
    """Template with {traits}."""
    template_related: str = "persona_related"
    """Template with {persona} and {relation}."""
    marker: str = "Persona:"
    """What the model's text must begin with; stripped."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus share."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest persona, in tokens; a longer one is cut off and dropped."""
    max_similarity: float = Field(default=0.7, gt=0, le=1)
    """A persona this similar to an earlier one (Jaccard, word pairs) is dropped; 1: only equal texts are."""
    min_new: float = setting(
        default=0.1, ge=0, le=1, affects_records=False, because="when the run ends with an error"
    )
    """Where a smaller share of a batch's personas is new, the source has dried up and the run stops."""


class PersonasConfig(Section):
    """Who asks."""

    source: str = "builtin:general"
    """self (the model writes them), builtin:general, builtin:world, none, a .jsonl/.json/.parquet/.csv/.txt
    file (or .gz of one), or a hub data set id."""
    column: str = "persona"
    """The key or column that holds the persona in JSONL, Parquet, CSV and hub data sets."""
    sample: Literal["random", "first"] = "random"
    """random: drawn from the whole file or data set by the seed; first: the first ones of it."""
    writing: WritingConfig = WritingConfig()
    """How the model writes them (source self)."""
    revision: str | None = None
    """Revision of the hub data set; required for one."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    licence: str | None = setting(default=None, affects_records=False, because="copied to the cards")
    """Licence of the source, copied to the manifest and the model card; known for the built-in ones."""
    n: int = setting(
        default=1000,
        ge=0,
        affects_records=False,
        because="how many: each record stands for itself; steps that look at all of them count it themselves",
    )
    """Personas to train on; each writes one prompt. Not used where pairs.source is given."""
    held_out: int = setting(default=200, ge=0, affects_records=False, because="how many, as n")
    """Further personas, disjoint from those, whose prompts only the evaluation sees."""
