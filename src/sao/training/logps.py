"""Log-probabilities of given tokens from hidden states, without ever holding the logits.

A vocabulary of 256,000 makes the logits of a batch the largest tensor of all: 5,000 tokens take 5 GB in
float32, and autograd keeps several of them. Here tiles of tokens × vocabulary are made, reduced and dropped;
the backward pass makes them again. Where the head is frozen (adapters), the forward pass gathers the gradient
along the way and the second making is saved. The recomputation is as in Cut Cross-Entropy (arXiv 2411.09009),
the running sum as in FlashAttention's softmax.

Letters in shapes: N tokens, H hidden size, V vocabulary; in a tile n tokens and v words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sao.models.linear import product

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
        scaled = hidden.to(dtype) * scale  # [N, H]
        ctx.head_is_frozen = not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        gathers_gradient = ctx.head_is_frozen and ctx.needs_input_grad[0]
        softmax = _OnlineSoftmax(scaled, with_expected_rows=gathers_gradient)
        for columns, head_block in _blocks(weight, tile[1], dtype):
            for rows in _slices(len(scaled), tile[0]):
                logits = _logits(scaled[rows], head_block, bias, columns, softcap)
                softmax.add(rows, logits, head_block, softcap)
        log_normaliser = softmax.log_normaliser()  # [N]

        target_rows = weight[targets].to(dtype)  # [N, H]
        target_logits = _target_logits(scaled, target_rows, bias, targets, softcap)  # [N]
        ctx.settings = (scale, softcap, tile, dtype, hidden.dtype)
        if gathers_gradient:
            # ∂ log p(target) / ∂ hidden; what remains to be done in backward is a scalar for each token.
            slope_rows = target_rows.float()
            if softcap is not None:
                slope_rows = slope_rows * (1 - (target_logits / softcap).square())[:, None]
            gradient = (slope_rows - softmax.expected_rows()).mul_(scale)
            ctx.save_for_backward(gradient.to(dtype))
        elif not ctx.head_is_frozen:
            ctx.save_for_backward(hidden, weight, bias, targets, log_normaliser)
        return target_logits - log_normaliser

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        upstream = grads[0].float()  # [N] ∂L / ∂ log p
        no_gradients = (None,) * 5  # of targets and settings
        if ctx.head_is_frozen:
            (gradient,) = ctx.saved_tensors
            hidden_dtype = ctx.settings[-1]
            d_hidden = (gradient.float() * upstream[:, None]).to(hidden_dtype)
            return d_hidden, None, None, *no_gradients
        return *_recomputed_gradients(ctx, upstream), *no_gradients


def _target_logits(
    scaled: Tensor, target_rows: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
) -> Tensor:
    """[N] the logit of each token's target."""
    x = (scaled.float() * target_rows.float()).sum(1)
    if bias is not None:
        x = x + bias[targets].float()
    return x if softcap is None else softcap * torch.tanh(x / softcap)


class _OnlineSoftmax:
    """The softmax over the vocabulary, tile by tile, by the running maximum and sum of each token."""

    def __init__(self, scaled: Tensor, with_expected_rows: bool) -> None:
        """For the hidden states `scaled` [N, H]; `with_expected_rows` see there."""
        n = len(scaled)
        self._peak = scaled.new_full((n,), -torch.inf, dtype=torch.float32)  # [N] max z so far
        self._total = scaled.new_zeros(n, dtype=torch.float32)  # [N] Σ exp(z − peak) so far
        self._row_sums = scaled.new_zeros(scaled.shape, dtype=torch.float32) if with_expected_rows else None

    def add(self, rows: slice, logits: Tensor, head_block: Tensor, softcap: float | None) -> None:
        """Take in a tile of logits [n, v] of these rows, which is overwritten, and its rows of the head
        [v, H]."""
        peak = torch.maximum(self._peak[rows], logits.amax(1))  # [n]
        shrink = torch.exp(self._peak[rows] - peak)  # [n]
        slope = None  # [n, v] ∂z / ∂x
        if softcap is not None and self._row_sums is not None:
            slope = 1 - (logits / softcap).square_()
        p = logits.sub_(peak[:, None]).exp_()  # [n, v] unnormalised
        self._total[rows] = self._total[rows] * shrink + p.sum(1)
        self._peak[rows] = peak
        if self._row_sums is not None:
            p = p if slope is None else p.mul_(slope)
            self._row_sums[rows] = self._row_sums[rows] * shrink[:, None] + _product(p, head_block)

    def log_normaliser(self) -> Tensor:
        """[N] log Σ exp z."""
        return self._peak + self._total.log()

    def expected_rows(self) -> Tensor:
        """[N, H] Σ_v p_v · ∂z_v/∂x_v · w_v: the head's rows in the mean over the softmax."""
        assert self._row_sums is not None
        return self._row_sums / self._total[:, None]


def _recomputed_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients to hidden, weight and bias, where they are wanted; the tiles are made again."""
    scale, softcap, tile, dtype, hidden_dtype = ctx.settings
    hidden, weight, bias, targets, log_normaliser = ctx.saved_tensors
    scaled = hidden.to(dtype) * scale  # [N, H]
    weighted = (scaled.float() * upstream[:, None]).to(dtype)  # [N, H]
    d_hidden = torch.zeros_like(scaled, dtype=torch.float32) if ctx.needs_input_grad[0] else None
    d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
    d_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
    for columns, head_block in _blocks(weight, tile[1], dtype):
        d_block = None  # [v, H]
        if d_weight is not None:
            d_block = torch.zeros(head_block.shape, dtype=torch.float32, device=head_block.device)
        for rows in _slices(len(scaled), tile[0]):
            logits = _logits(scaled[rows], head_block, bias, columns, softcap)
            target_columns = targets[rows] - columns.start
            descent = _logit_descent(logits, log_normaliser[rows], target_columns, softcap)  # [n, v]
            if d_hidden is not None:
                _add_product(d_hidden[rows], descent, head_block)
            if d_block is not None:
                _add_product(d_block, descent.t(), weighted[rows])
            if d_bias is not None:
                d_bias[columns] += descent.t() @ upstream[rows]
        if d_weight is not None and d_block is not None:
            d_weight[columns] = torch.neg(d_block, out=d_block)
    if d_hidden is not None:
        d_hidden = d_hidden.mul_(-scale * upstream[:, None]).to(hidden_dtype)
    return d_hidden, d_weight, None if d_bias is None else (-d_bias).to(bias.dtype)


def _logit_descent(
    logits: Tensor, log_normaliser: Tensor, target_columns: Tensor, softcap: float | None
) -> Tensor:
    """−∂ log p(target) / ∂x of a tile [n, v], which is overwritten: the softmax less one at the target, times
    the slope of the cap. `target_columns` [n] may lie outside the tile."""
    slope = None if softcap is None else 1 - (logits / softcap).square_()
    p = logits.sub_(log_normaliser[:, None]).exp_()
    last = p.shape[1] - 1
    in_tile = (target_columns >= 0) & (target_columns <= last)
    p.scatter_add_(1, target_columns.clamp(0, last)[:, None], -in_tile[:, None].float())
    return p if slope is None else p.mul_(slope)


def _logits(
    scaled: Tensor, head_block: Tensor, bias: Tensor | None, columns: slice, softcap: float | None
) -> Tensor:
    """[n, v] float32 logits of a tile."""
    x = _product(scaled, head_block.t())
    if bias is not None:
        x += bias[columns]
    return x if softcap is None else x.div_(softcap).tanh_().mul_(softcap)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product a · b, summed and returned in float32, whatever their formats."""
    if b.dtype == torch.float32:
        return product(a, b.t())
    if b.is_cuda:
        return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a · b to `total`, in float32."""
    if b.dtype == torch.float32 and b.is_cuda:
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
