"""What is measured of each pair in a forward pass, and its means for a line of metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from sao.training.parallel import Processes

MEASURES = ("loss", "nll", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "tokens")
"""The rows of what is measured of each pair; see `sao.training.trainer.PreferenceTrainer.pair_losses`."""


class Measures:
    """What was measured in this process since it was last taken."""

    def __init__(self, group: Processes) -> None:
        self._group = group
        self._rows: list[int | None] = []  # None for a filler
        self._measured: list[Tensor] = []

    def add(self, rows: list[int], measured: Tensor, weights: list[float]) -> None:
        """Add [len(MEASURES), rows], measured of these rows, without those of weight 0. Nothing is read from
        `measured` before `take`: a GPU would be waited for."""
        self._rows += [row if weight else None for row, weight in zip(rows, weights, strict=True)]
        self._measured.append(measured)

    def take(self) -> tuple[list[int], Tensor]:
        """What all processes measured: rows, and [len(MEASURES), rows] in float64."""
        columns = torch.cat(self._measured, dim=1).cpu().double().t().tolist() if self._measured else []
        own = [(row, column) for row, column in zip(self._rows, columns, strict=True) if row is not None]
        self._rows, self._measured = [], []
        gathered = self._group.gather(own)
        all_columns = torch.tensor([column for _, column in gathered], dtype=torch.float64)
        return [row for row, _ in gathered], all_columns.t()


def means(measured: Tensor, with_nll: bool) -> dict[str, float]:
    """Means over pairs of what MEASURES names. Rewards are the implicit ones of the loss; margins are before
    γ."""
    mean = dict(zip(MEASURES, measured.mean(1).tolist(), strict=True))
    margins = measured[MEASURES.index("rewards/chosen")] - measured[MEASURES.index("rewards/rejected")]
    mean["rewards/margins"] = margins.mean().item()
    mean["rewards/accuracies"] = (margins > 0).double().mean().item()
    if not with_nll:
        del mean["nll"]
    return mean
