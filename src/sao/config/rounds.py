"""Self-alignment again and again: the section rounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sao.config.section import Section, setting

Rule = Literal["length", "repetition", "cut_off", "win_rate", "gold", "pairs", "judge", "converged"]


class RoundsConfig(Section):
    """How often the loop is run, each round with the model that the one before trained. Rounds beyond the
    first are the round's own; the first round is the same whatever stands here."""

    n: int = setting(
        default=1, ge=1, affects_records=False, because="how many: each round has a folder of its own"
    )
    """Rounds at most; raised later, the run goes on."""
    personas: Literal["fresh", "same"] = "fresh"
    """Who asks in later rounds: personas that no earlier round had, or the first round's again."""
    judge: Literal["initial", "current", "both"] = "initial"
    """Who judges where the model judges itself: the model that the run began with (frozen), the round's own,
    or both, which vote. A judge named by judging.engine.model stays what it is."""
    rejected: Literal["current", "initial"] = "current"
    """Who writes the rejected answers: the round's own model, or the one that the run began with, which then
    writes half of each prompt's answers (Temporal Self-Rewarding, arXiv 2508.06026)."""
    train_from: Literal["current", "initial"] = "current"
    """What training starts from: the round's own model, or the one that the run began with."""
    data: Literal["newest", "all"] = "newest"
    """Pairs that are trained on: the round's own, or those of the earlier rounds too."""
    reference: Literal["current", "initial"] = "current"
    """The reference of losses that have one (dpo, ipo, dpo_norm, kto): what training starts from, or the
    model that the run began with."""
    lr: list[float] | None = None
    """Peak learning rate of each round, the last one for all after it; null: train.lr, changed by
    lr_decay."""
    lr_decay: float = Field(default=1.0, gt=0)
    """Factor on train.lr from one round to the next."""
    beta: list[float] | None = None
    """β of each round, the last one for all after it; null: train.beta, changed by beta_decay."""
    beta_decay: float = Field(default=1.0, gt=0)
    """Factor on β from one round to the next."""
    stop: list[Rule] = setting(
        default=["length", "repetition", "cut_off", "win_rate", "gold", "pairs", "judge", "converged"],
        affects_records=False,
        because="when the run ends",
    )
    """Rules that end a run after a round (docs/rounds.md says what each looks at); [] for none."""
    keep: Literal["all", "best", "last"] = setting(
        default="all", affects_records=False, because="what is deleted when the run has ended"
    )
    """Trained models that stay when the run has ended: all, the best round's, or the best's and the last
    (which a later round can start from). Records, metrics and cards always stay."""

    @model_validator(mode="after")
    def _check(self) -> RoundsConfig:
        for name in ("lr", "beta"):
            values = getattr(self, name)
            if values is not None and not (values and all(value > 0 for value in values)):
                raise ValueError(f"{name} is {values}: give a value above 0 for each round")
            if values is not None and getattr(self, f"{name}_decay") != 1.0:
                raise ValueError(f"{name} and {name}_decay are both given; keep one")
        return self
