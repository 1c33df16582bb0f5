"""Preference losses: pure functions of each pair's log-probabilities, all in float32.

Letters in shapes: B pairs. s is the sum of the log-probabilities of an answer's tokens given the prompt, the
end of turn counted, in nats; ā = s / |y| its mean. w is the chosen answer, l the rejected one, ref the model
before training.

Every pairwise loss takes `label`, the probability [B] or () that the chosen answer is truly the better one: 1
trusts the label, 1 − ε smooths it (cDPO, https://ericmitchell.ai/cdpo.pdf), a judge's probability makes it
soft.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sao.config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogps:
    """What the losses need to know of B pairs; the reference's sums only for losses that compare with it."""

    chosen: Tensor
    """[B] s_w, nats."""
    rejected: Tensor
    """[B] s_l, nats."""
    chosen_tokens: Tensor
    """[B] |y_w|."""
    rejected_tokens: Tensor
    """[B] |y_l|."""
    ref_chosen: Tensor | None = None
    """[B] s_w under the reference, nats."""
    ref_rejected: Tensor | None = None
    """[B] s_l under the reference, nats."""

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """ā_w and ā_l, [B] each, nats per token."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens

    @property
    def gains(self) -> tuple[Tensor, Tensor]:
        """The differences s − s_ref of the chosen and of the rejected answers, [B] each, nats."""
        if self.ref_chosen is None or self.ref_rejected is None:
            raise ValueError("this loss compares with a reference, and the batch has none")
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected


def logistic_loss(margins: Tensor, label: Tensor | float = 1.0) -> Tensor:
    """−label · log σ(m) − (1 − label) · log σ(−m), [B], for margins m [B] in units of reward."""
    return -label * F.logsigmoid(margins) - (1 - label) * F.logsigmoid(-margins)


def simpo_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    beta: float,
    gamma: float | Tensor,
    label: Tensor | float = 1.0,
) -> Tensor:
    """SimPO (arXiv 2405.14734, equation 6): −log σ(β·ā_w − β·ā_l − γ).

    γ is subtracted as it is, in units of reward: it is not multiplied by β.

    Args:
        chosen_mean_logps: [B] ā_w, nats per token.
        rejected_mean_logps: [B] ā_l, likewise.
        beta: β, reward per nat.
        gamma: γ, the target margin, in units of reward; [B] or ().
        label: see the module.

    Returns:
        [B] the loss of each pair.

    """
    return logistic_loss(beta * (chosen_mean_logps - rejected_mean_logps) - gamma, label)


def dpo_loss(
    chosen_gains: Tensor,
    rejected_gains: Tensor,
    beta: float,
    gamma: float | Tensor = 0.0,
    label: Tensor | float = 1.0,
) -> Tensor:
    """DPO (arXiv 2305.18290, equation 7): −log σ(β·[(s_w − s_w^ref) − (s_l − s_l^ref)] − γ), [B].

    With gains per token, (s − s^ref) / |y|, it is length-normalised DPO (arXiv 2411.15124, section 5). A γ
    other than 0 is ODPO's offset (arXiv 2402.10571, equation 5).
    """
    return logistic_loss(beta * (chosen_gains - rejected_gains) - gamma, label)


def ipo_loss(
    chosen_gains: Tensor,
    rejected_gains: Tensor,
    tau: float,
    gamma: float | Tensor = 0.0,
    label: Tensor | float = 1.0,
) -> Tensor:
    """IPO (arXiv 2310.12036, equation 17): (h − 1/(2τ))² with h the difference of the gains, [B].

    The gains are per token, as TRL and the paper's authors recommend, so that lengths do not swamp the
    target. γ moves the
    target: (h − 1/(2τ) − γ)².
    """
    h = chosen_gains - rejected_gains
    target = 1 / (2 * tau) + gamma
    return label * (h - target) ** 2 + (1 - label) * (h + target) ** 2


def orpo_loss(
    chosen_mean_logps: Tensor,
    rejected_mean_logps: Tensor,
    lam: float,
    gamma: float | Tensor = 0.0,
    label: Tensor | float = 1.0,
) -> Tensor:
    """ORPO's odds-ratio term (arXiv 2403.07691, equations 6 and 7): −λ · log σ(log odds_w − log odds_l), [B].

    log odds = ā − log(1 − exp ā). The whole loss adds the chosen answer's negative log-likelihood.
    """
    log_odds = _log_odds(chosen_mean_logps) - _log_odds(rejected_mean_logps)
    return lam * logistic_loss(log_odds - gamma, label)


def cpo_loss(
    chosen: Tensor, rejected: Tensor, beta: float, gamma: float | Tensor = 0.0, label: Tensor | float = 1.0
) -> Tensor:
    """CPO's preference term (arXiv 2401.08417, equation 3): −log σ(β·(s_w − s_l)), [B]; the whole loss adds
    the NLL."""
    return logistic_loss(beta * (chosen - rejected) - gamma, label)


def kto_loss(
    chosen_gains: Tensor,
    rejected_gains: Tensor,
    beta: float,
    gamma: float | Tensor = 0.0,
    label: Tensor | float = 1.0,
) -> Tensor:
    """KTO (arXiv 2402.01306, equation 8) on pairs with the reference point z₀ = 0: 1 − σ(β·g_w − γ) + 1 −
    σ(−β·g_l), [B].

    Estimating z₀ takes answers to other prompts, which pairs do not have. With z₀ = 0 and equal weights this
    is APO-zero (arXiv 2408.06266, equation 4) up to a constant.
    """

    def value(gain_w: Tensor, gain_l: Tensor) -> Tensor:
        return torch.sigmoid(gamma - beta * gain_w) + torch.sigmoid(beta * gain_l)

    return label * value(chosen_gains, rejected_gains) + (1 - label) * value(rejected_gains, chosen_gains)


def preference_loss(
    config: TrainConfig, logps: PairLogps, gamma: float | Tensor, label: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss that `config.loss` names, without its likelihood term.

    Args:
        config: Names the loss and its β.
        logps: The pairs' log-probabilities.
        gamma: [B] or () target margin, in units of reward.
        label: [B] or () probability that the label is right.

    Returns:
        [B] losses, and the implicit rewards [B] of the chosen and of the rejected answers.

    """
    beta = config.scale
    match config.loss:
        case "simpo":
            w, l = logps.means  # noqa: E741
            losses = simpo_loss(w, l, beta, gamma, label)
        case "orpo":
            w, l = logps.means  # noqa: E741
            losses = orpo_loss(w, l, beta, gamma, label)
        case "cpo":
            w, l = logps.chosen, logps.rejected  # noqa: E741
            losses = cpo_loss(w, l, beta, gamma, label)
        case "dpo" | "kto":
            w, l = logps.gains  # noqa: E741
            losses = (dpo_loss if config.loss == "dpo" else kto_loss)(w, l, beta, gamma, label)
        case "dpo_norm" | "ipo":
            w, l = logps.gains  # noqa: E741
            w, l = w / logps.chosen_tokens, l / logps.rejected_tokens  # noqa: E741
            losses = (dpo_loss if config.loss == "dpo_norm" else ipo_loss)(w, l, beta, gamma, label)
    return losses, beta * w.detach(), beta * l.detach()


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 − p)) of p = exp(ā) < 1, stable at both ends (Mächler 2012, Rmpfr's log1mexp, equation
    7)."""
    a = mean_logps.clamp(max=-1e-7)  # p = 1 has no odds
    near_one = a > -math.log(2)
    safe = torch.where(near_one, a, -1.0)  # keeps the branch not taken from making NaN gradients
    return a - torch.where(near_one, torch.log(-torch.expm1(safe)), torch.log1p(-torch.exp(a)))
