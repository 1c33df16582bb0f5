"""The result of `sao stats`: how varied a run's texts are."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Rate, Result, StageCounts


class Spread(Result):
    """How a length is distributed over the texts."""

    mean: float
    """Mean."""
    median: float
    """Median."""
    p5: float
    """5 % quantile."""
    p95: float
    """95 % quantile."""


class ExactRepetition(Rate):
    """Texts that repeat an earlier one but for case, punctuation and spaces."""

    among: dict[int, float | None]
    """The rate to be expected among so many of the texts; null where there are fewer."""


class NearRepetition(Rate):
    """Texts that nearly repeat an earlier one, exact repetitions among them."""

    jaccard: float
    """Least Jaccard similarity of the word pairs."""


class Distinct(Result):
    """Different n-grams of words over all n-grams; null where there are none."""

    distinct_1: float | None
    """Of single words."""
    distinct_2: float | None
    """Of pairs of words."""
    distinct_3: float | None
    """Of triples of words."""
    words: int
    """Words in the sample."""


class Compression(Result):
    """How well the texts compress: the larger, the more they repeat each other."""

    ratio: float | None
    """Bytes over compressed bytes (zlib, level 9); null of nothing."""
    bytes: int
    """Bytes in the sample."""


class Vendi(Result):
    """The Vendi score."""

    score: float | None
    """How many quite different texts they are worth, from 1 to their number; null of nothing."""
    texts: int
    """Texts in the sample."""


class Topic(Rate):
    """A cluster of texts."""

    words: list[str]
    """The words that tell it from the other texts."""


class Topics(Result):
    """Clusters of the texts (k-means on TF-IDF)."""

    texts: int
    """Texts in the sample."""
    clusters: list[Topic]
    """The largest first; empty for too few texts or words."""


class TextFigures(Result):
    """The figures of one kind of texts."""

    n: int
    """Number of texts."""
    words: Spread | None
    """Words of a text; null of nothing."""
    characters: Spread | None
    """Characters of a text; null of nothing."""
    exact_repetition: ExactRepetition
    """Texts that repeat an earlier one."""
    near_repetition: NearRepetition | None
    """Texts that nearly do; null where it was not measured (answers)."""
    distinct: Distinct
    """distinct-n of a sample."""
    compression: Compression
    """Compression of a sample."""
    vendi: Vendi
    """Vendi score of a sample."""
    topics: Topics | None = None
    """Topics of a sample; null where they were not asked for, or scikit-learn is missing."""


class TemplateCounts(Result):
    """One template of prompts.mix."""

    asked: int
    """Prompts that were asked for by it."""
    written: int
    """Prompts that the model wrote."""
    kept: int | None = None
    """Prompts that the filters let through; null before the filters ran."""


class Statistics(Result):
    """The statistics of one run. Figures are null for what the run does not hold."""

    sources: dict[str, str]
    """Where model, personas or prompts, and pairs come from, with the revision."""
    licences: dict[str, str]
    """Their licences."""
    funnel: list[StageCounts]
    """The finished stages in order."""
    templates: dict[str, TemplateCounts]
    """By template of prompts.mix; empty without a mix."""
    personas: TextFigures | None = None
    """The personas."""
    prompts: TextFigures | None = None
    """The prompts as written, before any filter."""
    kept_prompts: TextFigures | None = None
    """The prompts after the filters, where these dropped any."""
    answers: TextFigures | None = None
    """The answers."""


class RunStatistics(Result):
    """The statistics of one run, or of two side by side."""

    kind: Literal["statistics"] = "statistics"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    runs: dict[str, Statistics]
    """By run folder."""
