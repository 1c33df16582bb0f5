"""Which verdicts become training pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sao.config.section import Section, setting


class PairsConfig(Section):
    """Which judgments become training pairs; or the labelled set that takes their place."""

    source: str | None = None
    """null: the run's own answers and verdicts. Else a preference data set to train on (a labelled baseline,
    say): a .jsonl, .json or .parquet file, a folder of Parquet files, or a hub id; the forms are those of TRL
    and SimPO."""
    revision: str | None = None
    """Revision of the hub data set; required for one."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    split: str = "train"
    """Split of the hub data set, or of the folder."""
    licence: str | None = setting(default=None, affects_records=False, because="copied to the cards")
    """Licence of the data set, copied to the manifest and the model card."""
    imported: str | None = None
    """Written by `sao import`: what the data set is whose rows this run's prompts, answers and verdicts
    are."""
    imported_from: str | None = setting(default=None, affects_records=False, because="copied to the cards")
    """Written by `sao import`: the data set's name and revision."""
    rule: Literal["all", "first_last", "best_random", "mu_2sigma", "quality_aware", "adjacent"] = "all"
    """Which of a prompt's answers become pairs, by their ranks: every two; best and worst; best and a random
    one; best and the one nearest to μ−2σ (arXiv 2502.16825); best and the best one that is clearly worse
    (arXiv 2501.18578, 2504.03612); neighbours. With two answers all rules are the same."""
    keep: Literal["confident", "all"] = "confident"
    """confident: both orders agree and p is large enough; all: every readable verdict (the paper's way)."""
    min_p: float = Field(default=0.92, ge=0.5, lt=1)
    """Least probability, as calibrated over the run, that the chosen answer of a kept pair is the better one
    (verdicts without probabilities, judged in one order, have none and pass)."""
    calibrate: bool = True
    """Whether the judge's taste for a slot is subtracted and its confidence scaled to fit the agreement of
    its orders."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """Longest over shortest of a pair's answers, in characters; null: any."""
    length_matched: bool = False
    """Whether pairs are dropped until the longer answer is chosen as often as the shorter one."""
    max_repetition: float = Field(default=0.5, ge=0, le=1)
    """Answers in which a larger share of the 4-grams of words repeats an earlier one make no pair."""
