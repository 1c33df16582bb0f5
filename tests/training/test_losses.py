"""Losses worked by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from sao.config import TrainConfig
from sao.training import PairLogps, orpo_loss, preference_loss, simpo_loss


def test_simpo_by_hand() -> None:
    chosen, rejected = torch.tensor([-1.0, -0.8, -2.0]), torch.tensor([-1.5, -1.0, -2.0])
    # β 2, γ 0.5: margins 1, 0.4, 0; less γ 0.5, −0.1, −0.5; −log σ = log(1 + e^−x)
    expected = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.1)), math.log(1 + math.exp(0.5))]
    assert simpo_loss(chosen, rejected, 2.0, 0.5).tolist() == pytest.approx(expected, abs=1e-6)
    # 2 − 3 = −1
    assert simpo_loss(chosen[1:2], rejected[1:2], 10.0, 3.0).item() == pytest.approx(1.3132617, abs=1e-6)
    # margin = γ
    assert simpo_loss(chosen[:1], rejected[:1], 4.0, 2.0).item() == pytest.approx(math.log(2), abs=1e-6)


def test_gamma_shifts_the_margin_and_is_not_scaled_by_beta() -> None:
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-1.25])
    with_gamma = simpo_loss(chosen, rejected, 4.0, 3.0)
    assert with_gamma.item() == pytest.approx(
        simpo_loss(chosen - 3.0 / 4.0, rejected, 4.0, 0.0).item(), abs=1e-6
    )
    assert with_gamma.item() == pytest.approx(math.log(1 + math.exp(2.0)), abs=1e-6)


def test_simpo_gradient_by_hand_and_no_overflow() -> None:
    chosen = torch.tensor([-1.0, -100.0], requires_grad=True)
    loss = simpo_loss(chosen, torch.tensor([-1.0, -1.0]), 10.0, 0.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(2), 990.0])
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-5.0, -10.0])  # −β σ(−margin)


LOGPS = PairLogps(
    chosen=torch.tensor([-4.0]),
    rejected=torch.tensor([-9.0]),
    chosen_tokens=torch.tensor([4.0]),
    rejected_tokens=torch.tensor([6.0]),
    ref_chosen=torch.tensor([-5.0]),
    ref_rejected=torch.tensor([-8.0]),
)
SIGMOID = {m: 1 / (1 + math.exp(-m)) for m in (0.1, 1.0, -0.2)}
# By hand: ā −1 and −1.5; gains +1 and −1, a token +1/4 and −1/6.
BY_HAND = [
    ("simpo", 2.0, math.log(1 + math.exp(-(2 * 0.5 - 0.6))), 2 * -1, 2 * -1.5),  # γ is 0.3 β
    ("dpo", 0.5, math.log(1 + math.exp(-0.5 * 2)), 0.5, -0.5),
    ("dpo_norm", 3.0, math.log(1 + math.exp(-3 * (1 / 4 + 1 / 6))), 3 / 4, -3 / 6),
    ("ipo", 0.5, (1 / 4 + 1 / 6 - 1 / (2 * 0.5)) ** 2, 0.5 / 4, -0.5 / 6),
    ("cpo", 0.1, math.log(1 + math.exp(-0.1 * 5)), -0.4, -0.9),
    ("kto", 0.1, (1 - SIGMOID[0.1]) + (1 - SIGMOID[0.1]), 0.1, -0.1),
    # Odds e^−1 / (1 − e^−1) against e^−1.5 / (1 − e^−1.5); −log σ of the difference of their logarithms.
    ("orpo", 0.1, 0.1 * math.log(1 + (math.exp(1) - 1) / (math.exp(1.5) - 1)), -0.1, -0.15),
]


@pytest.mark.parametrize(("loss", "beta", "value", "reward_w", "reward_l"), BY_HAND)
def test_losses_by_hand(loss: Any, beta: float, value: float, reward_w: float, reward_l: float) -> None:
    config = TrainConfig(loss=loss, beta=beta)
    losses, chosen, rejected = preference_loss(config, LOGPS, config.target_margin, 1.0)
    assert losses.item() == pytest.approx(value, rel=1e-5)
    assert chosen.item() == pytest.approx(reward_w, rel=1e-5)
    assert rejected.item() == pytest.approx(reward_l, rel=1e-5)


@pytest.mark.parametrize("loss", [row[0] for row in BY_HAND])
def test_every_loss_falls_as_the_chosen_answer_gains(loss: Any) -> None:
    chosen = torch.tensor([-4.0], requires_grad=True)
    rejected = torch.tensor([-9.0], requires_grad=True)
    config = TrainConfig(loss=loss)
    logps = dataclasses.replace(LOGPS, chosen=chosen, rejected=rejected)
    preference_loss(config, logps, config.target_margin, 1.0)[0].sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("loss", [row[0] for row in BY_HAND])
def test_a_label_of_zero_is_the_pair_the_other_way_round(loss: Any) -> None:
    config = TrainConfig(loss=loss)
    swapped = PairLogps(
        chosen=LOGPS.rejected,
        rejected=LOGPS.chosen,
        chosen_tokens=LOGPS.rejected_tokens,
        rejected_tokens=LOGPS.chosen_tokens,
        ref_chosen=LOGPS.ref_rejected,
        ref_rejected=LOGPS.ref_chosen,
    )
    with_zero = preference_loss(config, LOGPS, 0.0, 0.0)[0]
    assert with_zero.item() == pytest.approx(preference_loss(config, swapped, 0.0, 1.0)[0].item(), rel=1e-5)
    half = preference_loss(config, LOGPS, 0.0, 0.5)[0].item()
    assert half == pytest.approx(
        (with_zero.item() + preference_loss(config, LOGPS, 0.0, 1.0)[0].item()) / 2, rel=1e-5
    )


def test_orpo_is_finite_where_an_answer_is_certain_or_hopeless() -> None:
    chosen = torch.tensor([0.0, -1e-9, -400.0, -3.0], requires_grad=True)
    losses = orpo_loss(chosen, torch.tensor([-2.0, 0.0, 0.0, -400.0]), 1.0)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()
