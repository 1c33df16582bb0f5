"""Which prompts are not answered."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sao.config.section import Section


class FiltersConfig(Section):
    """Which prompts are not answered. Held-out prompts are filtered too: none repeats a training prompt. What
    was kept before a run grew stays."""

    duplicates: Literal["near", "exact", "none"] = "exact"
    """Prompts that repeat an earlier one: exact (but for case, spaces and punctuation), or near ones too
    (MinHash, verified; some 200 bytes of memory a prompt)."""
    max_similarity: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word pairs from which on a prompt is a near-duplicate."""
    embeddings: str | None = None
    """A sentence-transformers model (folder or hub id) by which prompts of like meaning are found too; null:
    none."""
    max_cosine: float = Field(default=0.95, gt=0, le=1)
    """Cosine of two embeddings from which on a prompt is a duplicate."""
    decontaminate: list[str] = []
    """Evaluation sets of which no item may stand in prompts or answers: presets (alpaca_eval, mt_bench,
    arena_hard, gsm8k …), files, or hub ids as ID@REVISION; `PLACE#COLUMN` names the column."""
    max_overlap: float = Field(default=0.7, gt=0, le=1)
    """Share of an evaluation item's n-grams (n = 8, or its number of words where that is less) from which on
    a text is contaminated by it."""
    min_words: int = Field(default=0, ge=0)
    """Shortest prompt, in words."""
    max_words: int | None = Field(default=None, ge=1)
    """Longest prompt, in words; null: any."""
    languages: list[str] = []
    """Languages that are kept, as ISO 639-1 codes such as en; empty: any."""
    refusals: bool = True
    """Whether prompts in which the model refuses to write one are dropped."""
    persona_text: bool = True
    """Whether prompts that quote their persona's text at length, or hold a marker of the template, are
    dropped."""
    unfinished: bool = True
    """Whether prompts that break off (in a comma, an opened bracket at the end, a bare list number) are
    dropped."""
    reject: str | None = None
    """A function of yours, as "package.module:function": takes the text, returns why it is dropped, or None
    (toxicity, say)."""
