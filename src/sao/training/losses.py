"""Log-probabilities of responses and the losses built on them: pure functions of tensors, all in float32.

Letters in shapes: B rows or pairs, T tokens of the padded row, V vocabulary. Log-probabilities are in nats.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a token outside the response: prompt or padding."""


def simpo_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, beta: float, gamma: float) -> Tensor:
    """SimPO (arXiv 2405.14734, equation 6): −log σ(β·ā_w − β·ā_l − γ), with ā = log π(y|x) / |y|.

    γ is subtracted as it is, in units of reward: it is not multiplied by β.

    Args:
        chosen_mean_logps: [B] ā_w, nats per response token, the end of turn counted.
        rejected_mean_logps: [B] ā_l, likewise.
        beta: β, reward per nat.
        gamma: γ, the target margin, in units of reward.

    Returns:
        [B] the loss of each pair.

    """
    margins = beta * (chosen_mean_logps - rejected_mean_logps)  # [B]
    return -F.logsigmoid(margins - gamma)  # [B], equation 6


def response_logps(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each row's response, log π(y|x) = Σ_t log π(y_t | x, y_<t), and its length |y|.

    The logits at t predict the token at t + 1: the shift is made here, so both arguments are aligned with the input.

    Args:
        logits: [B, T, V] of the model, in any number format; reckoned with in float32.
        labels: [B, T] token ids, −100 outside the response.

    Returns:
        sums: [B] float32, nats; 0 for a row without a response.
        counts: [B] int64, response tokens.

    """
    targets = labels[:, 1:]  # [B, T-1]
    flat = logits[:, :-1].float().flatten(0, 1)  # [B·(T-1), V]
    surprisals = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none")  # [B·(T-1)]
    return -surprisals.view(targets.shape).sum(-1), (targets != IGNORED).sum(-1)
