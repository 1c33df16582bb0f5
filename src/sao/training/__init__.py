"""Preference optimisation: token pairs in, an aligned model out. Needs torch and transformers."""

from __future__ import annotations

from sao.training.losses import response_logps, simpo_loss
from sao.training.trainer import TokenPair, TrainResult, train

__all__ = ["TokenPair", "TrainResult", "response_logps", "simpo_loss", "train"]
