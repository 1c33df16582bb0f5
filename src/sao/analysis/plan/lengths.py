"""The lengths and the speed that a plan assumes."""

from __future__ import annotations

from dataclasses import dataclass

from sao.config import TrainConfig
from sao.errors import ConfigError

PEAK = 3
"""The longest pairs of a set over the mean (assumed; lengths are roughly log-normal)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What is assumed: mean tokens of a prompt and of an answer, and the share of the GPU's peak rate that is
    reached."""

    prompt: int = 60
    response: int = 400
    mfu: float = 0.40

    def __post_init__(self) -> None:
        if min(self.prompt, self.response) < 1 or not 0 < self.mfu <= 1:
            raise ConfigError(
                "--prompt-tokens and --response-tokens are at least 1, --mfu lies between 0 and 1",
                key="--prompt-tokens",
            )

    def pair(self, train: TrainConfig) -> int:
        """Tokens computed for a mean pair."""
        is_shared = train.share_prompt and train.batches != "padded"
        return self.prompt * (1 if is_shared else 2) + 2 * self.response

    def worst(self, train: TrainConfig, pairs: int) -> int:
        """Tokens of the largest micro-batch of so many pairs.

        A longest pair has PEAK times the mean, at most what train.max_length lets pass. Packed rows get one
        each, beside mean ones; padded rows get those of like length.
        """
        mean = self.pair(train)
        longest = min(PEAK * mean, 2 * train.max_length)
        other = min(mean, longest) if train.batches != "padded" else longest
        return longest + (pairs - 1) * other
