"""Matrix products in float32 on a CPU by oneDNN, which torch itself uses for half precision only: the same
sums as MKL's, on AMD's CPUs twice as fast. (MKL takes AVX2 there, oneDNN AVX-512.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEAST_WEIGHTS = 1 << 16
"""Weights of a matrix from which on oneDNN is faster: it takes 10 microseconds to start."""


def has_onednn() -> bool:
    """Whether torch was built with oneDNN and its linear layer can be called (x86; torch 2.1 and later)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_HAS_ONEDNN = has_onednn()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """X · weightᵀ + bias for x [..., in] and weight [out, in], without gradients. By oneDNN where both are of
    float32 on a CPU, and large enough."""
    is_float32 = x.dtype == weight.dtype == torch.float32
    if not (_HAS_ONEDNN and is_float32 and x.is_cpu and weight.numel() >= _LEAST_WEIGHTS):
        return linear(x, weight, bias)
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class _Product(torch.autograd.Function):
    """`product` with gradients, which are two further products."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        d_x = product(grad.contiguous(), weight.t()) if wants_x else None
        d_weight = product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if wants_weight else None
        return d_x, d_weight, rows.sum(0) if wants_bias else None


class QuickLinear(torch.nn.Linear):
    """A linear layer whose products are `product`'s."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out]."""
        if torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        trained = (input, *self.parameters(recurse=False))
        if torch.is_grad_enabled() and any(one.requires_grad for one in trained):
            found: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias
            )
            return found
        return product(input, self.weight, self.bias)


def quicken(model: PreTrainedModel) -> None:
    """Make the plain linear layers of a model in float32 on a CPU `QuickLinear`."""
    if model.device.type != "cpu" or not _HAS_ONEDNN:
        return
    for module in model.modules():
        if type(module) is not torch.nn.Linear:
            continue
        if module.weight.dtype == torch.float32 and module.weight.numel() >= _LEAST_WEIGHTS:
            module.__class__ = QuickLinear
