"""Preference optimisation: token pairs in, an aligned model out. Needs torch and transformers."""

from __future__ import annotations

from sao.training.batches import TokenPair
from sao.training.logps import token_logps
from sao.training.losses import (
    PairLogps,
    cpo_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    preference_loss,
    simpo_loss,
)
from sao.training.run import TrainResult, train

__all__ = [
    "PairLogps",
    "TokenPair",
    "TrainResult",
    "cpo_loss",
    "dpo_loss",
    "ipo_loss",
    "kto_loss",
    "orpo_loss",
    "preference_loss",
    "simpo_loss",
    "token_logps",
    "train",
]
