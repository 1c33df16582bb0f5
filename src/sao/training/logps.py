"""Log-probabilities of given tokens from hidden states, without ever holding the logits.

A vocabulary of 256,000 makes the logits of a batch the largest tensor of all: 5,000 tokens take 5 GB in
float32, and autograd keeps several of them. Here tiles of tokens × vocabulary are made, reduced and dropped;
the backward pass makes them again. Where the head is frozen (adapters), the forward pass gathers the gradient
along the way and the second making is saved. The recomputation is as in Cut Cross-Entropy (arXiv 2411.09009),
the running sum as in FlashAttention's softmax.

Letters in shapes: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CPU_TILE = (2048, 512)
"""Tokens × vocabulary of a tile on a CPU: 4 MB of float32, which stays in its caches."""
GPU_TILE = (8192, 8192)
"""The same on a GPU: 256 MB, large enough for its matrix units."""


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """The value of log π(target | hidden) of each token, with gradients to hidden, weight and bias.

    The logits are z = c · tanh(x / c) with x = scale · (hidden · weightᵀ) + bias; without `softcap` z = x.
    Matrix products run in the format of `hidden` (autocast's where that is on) and are summed in float32;
    everything else is float32.

    Args:
        hidden: [N, H] final hidden states.
        weight: [V, H] of the head; not copied, may be tied to the embedding.
        targets: [N] token ids, each in 0 … V − 1.
        bias: [V] of the head.
        scale: Multiplies the logits (Cohere, Granite).
        softcap: c, which bounds the logits (Gemma-2: 30).
        tile: Tokens × vocabulary made at once.

    Returns:
        [N] float32, nats.

    """
    kind = hidden.device.type
    tile = tile or (CPU_TILE if kind == "cpu" else GPU_TILE)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):  # it would round the sums
        logps: Tensor = _TokenLogps.apply(hidden, weight, bias, targets, scale, softcap, tile, dtype)  # type: ignore[no-untyped-call]
    return logps


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        tile: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        h = hidden.to(dtype) * scale  # [N, H]
        n = len(h)
        # Running maximum and sum of exp(z − maximum) over the vocabulary so far; their log is the normaliser.
        peak = h.new_full((n,), -torch.inf, dtype=torch.float32)
        total = h.new_zeros(n, dtype=torch.float32)
        frozen = not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        pulled = h.new_zeros(h.shape, dtype=torch.float32) if frozen and ctx.needs_input_grad[0] else None
        for columns, w in _blocks(weight, tile[1], dtype):
            for rows in _slices(n, tile[0]):
                z = _logits(h[rows], w, bias, columns, softcap)  # [n, v]
                higher = torch.maximum(peak[rows], z.amax(1))  # [n]
                shrink = torch.exp(peak[rows] - higher)  # [n]
                slope = None if softcap is None or pulled is None else 1 - (z / softcap).square_()
                p = z.sub_(higher[:, None]).exp_()  # [n, v]
                total[rows] = total[rows] * shrink + p.sum(1)
                peak[rows] = higher
                if pulled is not None:  # Σ_v p_v · ∂z_v/∂x_v · w_v, unnormalised
                    p = p if slope is None else p.mul_(slope)
                    pulled[rows] = pulled[rows] * shrink[:, None] + _product(p, w)
        norm = peak + total.log()  # [N] log Σ exp z
        chosen_rows = weight[targets].to(dtype)  # [N, H]
        x = (h.float() * chosen_rows.float()).sum(1)  # [N]
        if bias is not None:
            x = x + bias[targets].float()
        z_target = x if softcap is None else softcap * torch.tanh(x / softcap)
        ctx.settings = (scale, softcap, tile, dtype, hidden.dtype)
        if pulled is not None:
            at_target = chosen_rows.float()
            if softcap is not None:
                at_target = at_target * (1 - (z_target / softcap).square())[:, None]
            # ∂ log p(target) / ∂ hidden; what remains to be done in backward is a scalar for each token.
            ctx.save_for_backward((at_target - pulled / total[:, None]).mul_(scale).to(dtype))
        elif not frozen:
            ctx.save_for_backward(hidden, weight, bias, targets, norm)
        ctx.frozen = frozen
        return z_target - norm

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = grads[0].float()  # [N] ∂L / ∂ log p
        scale, softcap, tile, dtype, hidden_dtype = ctx.settings
        nothing = (None,) * 5
        if ctx.frozen:
            (direction,) = ctx.saved_tensors
            return (direction.float() * g[:, None]).to(hidden_dtype), None, None, *nothing
        hidden, weight, bias, targets, norm = ctx.saved_tensors
        h = hidden.to(dtype) * scale
        weighted = (h.float() * g[:, None]).to(dtype)  # [N, H]
        d_hidden = torch.zeros_like(h, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for columns, w in _blocks(weight, tile[1], dtype):
            d_block = (
                torch.zeros(w.shape, dtype=torch.float32, device=w.device) if d_weight is not None else None
            )
            for rows in _slices(len(h), tile[0]):
                # −∂ log p(target) / ∂x: softmax less one at the target, times the slope of the cap.
                z = _logits(h[rows], w, bias, columns, softcap)
                slope = None if softcap is None else 1 - (z / softcap).square_()
                p = z.sub_(norm[rows, None]).exp_()
                at = targets[rows] - columns.start
                here = (at >= 0) & (at < p.shape[1])
                p.scatter_add_(1, at.clamp(0, p.shape[1] - 1)[:, None], -here[:, None].float())
                p = p if slope is None else p.mul_(slope)
                if d_hidden is not None:
                    _add_product(d_hidden[rows], p, w)
                if d_block is not None:
                    _add_product(d_block, p.t(), weighted[rows])
                if d_bias is not None:
                    d_bias[columns] += p.t() @ g[rows]
            if d_weight is not None and d_block is not None:
                torch.neg(d_block, out=d_block)
                d_weight[columns] = d_block
        if d_hidden is not None:
            d_hidden = d_hidden.mul_(-scale * g[:, None]).to(hidden_dtype)
        return d_hidden, d_weight, None if d_bias is None else (-d_bias).to(bias.dtype), *nothing


def _logits(h: Tensor, w: Tensor, bias: Tensor | None, columns: slice, softcap: float | None) -> Tensor:
    """[n, v] float32 logits of a tile."""
    x = _product(h, w.t())
    if bias is not None:
        x += bias[columns]
    return x if softcap is None else x.div_(softcap).tanh_().mul_(softcap)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product a · b, summed and returned in float32, whatever their formats."""
    if b.dtype == torch.float32:
        return a @ b
    if b.is_cuda:
        return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a · b to `total`, in float32."""
    if b.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += _product(a, b)


def _blocks(weight: Tensor, size: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The head's rows in blocks [v, H], in the format of the products."""
    for columns in _slices(len(weight), size):
        yield columns, weight[columns].to(dtype)


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
