"""Preference optimisation: token pairs in, an aligned model out. Needs torch and transformers, which are
loaded when a name of it is first used: reading a data set of pairs (`sao.training.data`) needs neither."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_PLACES = {"TokenPair": "batches", "token_logps": "logps", "TrainResult": "run", "train": "run"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'losses')}"), name)
