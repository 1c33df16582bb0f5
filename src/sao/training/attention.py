"""Attention over a packed row: the answers of a batch behind each other, each seeing its own prompt and
itself alone.

A row without padding is cut into segments of queries. A segment sees its own tokens up to each query and,
where the prompt is shared, the prompt's tokens in front of them. Registered with transformers as the
attention `sao_packed`; the model's forward pass hands the `segments` through to every layer.

On a GPU in half precision all segments go through one FlashAttention kernel (torch's varlen_attn); elsewhere,
and where attention scores are soft-capped (Gemma-2), segment by segment.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from sao.errors import ModelError

PACKED = "sao_packed"


@dataclass
class Segments:
    """How one packed row is cut. Segment i has `queries[i]` consecutive queries, in the order of the row, and
    sees `keys[i]` ≥ `queries[i]` keys, the last of which are its own tokens. `key_index` lists the place in
    the row of every key of every segment; None where each segment sees itself alone."""

    queries: list[int]
    keys: list[int]
    key_index: Tensor | None = None
    """[sum of keys] int64."""
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)
    _starts: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Segments:
        """The same on another device (only the index moves; masks are made where they are used)."""
        index = None if self.key_index is None else self.key_index.to(device)
        return Segments(self.queries, self.keys, index)

    def mask(self, i: int, window: int | None, device: torch.device) -> Tensor | None:
        """[queries, keys] bool, True where segment i may look; None where plain causal masking says the
        same."""
        q, k = self.queries[i], self.keys[i]
        if window is not None and window >= k:
            window = None
        if q == k and window is None:
            return None
        key = (q, k, window)
        if key not in self._masks:
            # Query j stands at key k − q + j and sees back `window` keys, itself included.
            at = torch.arange(k - q, k, device=device)[:, None]
            to = torch.arange(k, device=device)[None, :]
            seen = to <= at
            self._masks[key] = seen if window is None else seen & (to > at - window)
        return self._masks[key]

    def starts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """[segments + 1] int32 where each segment's queries and keys begin, for varlen kernels."""
        if device not in self._starts:
            sums = [[0, *itertools.accumulate(lengths)] for lengths in (self.queries, self.keys)]
            q, k = (torch.tensor(s, dtype=torch.int32, device=device) for s in sums)
            self._starts[device] = (q, k)
        return self._starts[device]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a packed row, with transformers' arguments for such a function.

    Args:
        module: The layer's attention.
        query: [1, heads, T, d].
        key: [1, key heads, T, d].
        value: [1, key heads, T, d].
        attention_mask: None for a packed row.
        dropout: Probability with which attention weights are dropped.
        scaling: Factor of the scores; None: 1/√d.
        sliding_window: Number of keys that a query sees at most, itself included.
        softcap: c of c · tanh(score / c).
        segments: How the row is cut; None for a batch that is not packed (SDPA then).
        **kwargs: Passed on to SDPA.

    Returns:
        [1, T, heads, d] and None (no weights).

    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("s_aux") is not None:
        raise ModelError(
            "this model's attention has sinks, which packed rows do not know. Train it with --train.batches "
            "padded"
        )
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        # The rotary embedding leaves queries and keys in float32, layers of 4 bits the values too.
        half = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(half), key.to(half), value.to(half)
    if segments.key_index is not None:
        key, value = key.index_select(2, segments.key_index), value.index_select(2, segments.key_index)
    if query.is_cuda and query.dtype != torch.float32 and not softcap and not dropout and _has_varlen():
        return _varlen(query, key, value, scaling, sliding_window, segments), None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    pieces = []
    # split, not slices: its backward is one concatenation instead of a full-sized sum for each segment.
    rows = zip(
        torch.split(query, segments.queries, 2),
        torch.split(key, segments.keys, 2),
        torch.split(value, segments.keys, 2),
        strict=True,
    )
    for i, (q, k, v) in enumerate(rows):
        mask = segments.mask(i, sliding_window, q.device)
        if softcap:
            inputs = (q, k, v, mask, scaling, softcap, dropout)
            piece = checkpoint(_softcapped, *inputs, use_reentrant=False, preserve_rng_state=bool(dropout))
            pieces.append(piece)
        else:
            pieces.append(
                F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling)
            )
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def _softcapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
    dropout: float,
) -> Tensor:
    """Attention with capped scores, which SDPA does not know; recomputed in backward, so no scores are
    kept."""
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout) @ v


@functools.cache
def _has_varlen() -> bool:
    """Whether this torch has the kernel with all that is asked of it (2.12 and later)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, segments: Segments
) -> Tensor:
    """One FlashAttention call for all segments; its causal mask is aligned with the last key, as ours is."""
    from torch.nn.attention.varlen import varlen_attn

    starts_q, starts_k = segments.starts(q.device)
    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))  # [T, heads, d]
    out: Any = varlen_attn(
        query,
        key,
        value,
        starts_q,
        starts_k,
        max(segments.queries),
        max(segments.keys),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return out[None]  # type: ignore[no-any-return]


AttentionInterface.register(PACKED, packed_attention)
