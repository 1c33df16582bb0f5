"""AdamW on bfloat16 weights and states, with stochastic rounding: 8 bytes a weight, its gradient included.

Rounded to the nearest, a bfloat16 weight ignores every step below 1/512 of itself, which at the learning
rates of preference training is nearly all of them. Rounded up or down with the probability that makes the
mean right, it follows them on average (arXiv 2010.06192).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

PIECE = 1 << 24
"""Weights that are stepped at once."""


class AdamWStochastic(Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) computed in float32, kept in the format of the weights."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. The rounding's random numbers depend on the step alone: copies of a model in several
        processes, which may have used torch's for dropout, stay the same."""
        loss = None if closure is None else closure()
        noise: torch.Generator | None = None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    if noise is None:
                        noise = torch.Generator(weight.device).manual_seed(
                            int(self.state[weight].get("step", 0))
                        )
                    self._update(weight, group, noise)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any], noise: torch.Generator) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        t, (beta1, beta2) = state["step"], group["betas"]
        every = [_local(x) for x in (weight, weight.grad, state["mean"], state["square"])]
        # In pieces: the float32 copies of a whole head would be many gigabytes.
        for w, g, m, s in zip(*(torch.split(x.view(-1), PIECE) for x in every), strict=True):
            gradient = g.float()
            mean = m.float().lerp_(gradient, 1 - beta1)
            square = s.float().lerp_(gradient.square(), 1 - beta2)
            size = (square / (1 - beta2**t)).sqrt_().add_(group["eps"])
            new = w.float().mul(1 - group["lr"] * group["weight_decay"])
            new.addcdiv_(mean, size, value=-group["lr"] / (1 - beta1**t))
            for kept, exact in ((w, new), (m, mean), (s, square)):
                kept.copy_(round_stochastically(exact, noise) if kept.dtype == torch.bfloat16 else exact)


def _local(tensor: Any) -> Tensor:
    """What this process holds of a tensor that is shared out (FSDP2), or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rounded(exact: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """`exact` as `dtype`; stochastically where that is bfloat16, so that small changes of a weight survive on
    average."""
    if exact.dtype == torch.float32 and dtype == torch.bfloat16:
        return round_stochastically(exact, generator)
    return exact.to(dtype)


def round_stochastically(exact: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """float32 → bfloat16, up or down with probabilities that make the expected value `exact`; same shape."""
    # bfloat16 is the upper half of a float32: noise below its last digit carries into it as often as it
    # should.
    noise = torch.randint(
        0, 1 << 16, exact.shape, generator=generator, dtype=torch.int32, device=exact.device
    )
    bits = (exact.view(torch.int32) + noise) & -65536
    return torch.where(exact.isfinite(), bits.view(torch.float32), exact).to(torch.bfloat16)
