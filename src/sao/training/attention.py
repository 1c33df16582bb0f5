"""Attention over a packed row: the answers of a batch behind each other, each seeing its own prompt and
itself alone.

A row without padding is cut into segments of queries. A segment sees its own tokens up to each query and,
where the prompt is shared, the prompt's tokens in front of them. Registered with transformers as the
attention `sao_packed`; the model's forward pass hands the `segments` through to every layer.

On a GPU in half precision all segments go through one FlashAttention kernel (torch's varlen_attn); elsewhere,
and where attention scores are soft-capped (Gemma-2), segment by segment.

Letters in shapes: T tokens of the row, d head size; of one segment q queries and k keys.
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


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. A GPU copies it when it comes to it: from other than pinned memory the
    host would wait until the GPU has done all that it was given before."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


@dataclass
class Segments:
    """How one packed row is cut. Segment i has `queries[i]` consecutive queries, in the order of the row, and
    sees `keys[i]` ≥ `queries[i]` keys, the last of which are its own tokens. `key_index` lists the place in
    the row of every key of every segment; None where each segment sees itself alone."""

    queries: list[int]
    keys: list[int]
    key_index: Tensor | None = None
    """[sum of keys] int64."""
    attended: int = 0
    """Layers that have attended by these segments."""
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)
    _starts: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Segments:
        """The same on another device (only the index moves; masks are made where they are used)."""
        index = None if self.key_index is None else copy_to(self.key_index, device)
        return Segments(self.queries, self.keys, index)

    def mask(self, i: int, window: int | None, device: torch.device) -> Tensor | None:
        """[queries, keys] bool, True where segment i may look; None where plain causal masking says the
        same."""
        n_queries, n_keys = self.queries[i], self.keys[i]
        if window is not None and window >= n_keys:
            window = None
        if n_queries == n_keys and window is None:
            return None
        shape = (n_queries, n_keys, window)
        if shape not in self._masks:
            # Query j is key k − q + j and sees back `window` keys, itself included.
            query_at = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]  # [q, 1]
            key_at = torch.arange(n_keys, device=device)[None, :]  # [1, k]
            visible = key_at <= query_at
            self._masks[shape] = visible if window is None else visible & (key_at > query_at - window)
        return self._masks[shape]

    def starts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """[segments + 1] int32 where each segment's queries and keys begin, for varlen kernels."""
        if device not in self._starts:
            query_starts, key_starts = (
                copy_to(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), device)
                for lengths in (self.queries, self.keys)
            )
            self._starts[device] = (query_starts, key_starts)
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
            "padded",
            key="train.batches",
        )
    segments.attended += 1
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # The rotary embedding leaves queries and keys in float32, layers of 4 bits the values too.
        half = torch.get_autocast_dtype(kind)
        query, key, value = query.to(half), key.to(half), value.to(half)
    if segments.key_index is not None:
        key, value = key.index_select(2, segments.key_index), value.index_select(2, segments.key_index)
    if query.is_cuda and query.dtype != torch.float32 and not softcap and not dropout and _has_varlen():
        return _varlen(query, key, value, scaling, sliding_window, segments), None
    return _by_segment(query, key, value, dropout, scaling, sliding_window, softcap, segments), None


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    segments: Segments,
) -> Tensor:
    """[1, T, heads, d] attention, one segment after the other."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    # split, not slices: its backward is one concatenation instead of a full-sized sum for each segment.
    parts = zip(
        torch.split(query, segments.queries, 2),  # [1, heads, q, d]
        torch.split(key, segments.keys, 2),  # [1, heads, k, d]
        torch.split(value, segments.keys, 2),  # [1, heads, k, d]
        strict=True,
    )
    outputs = []
    for i, (q, k, v) in enumerate(parts):
        mask = segments.mask(i, window, q.device)
        if softcap:
            inputs = (q, k, v, mask, scaling, softcap, dropout)
            output = checkpoint(_softcapped, *inputs, use_reentrant=False, preserve_rng_state=bool(dropout))
        else:
            is_causal = mask is None
            output = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=is_causal, scale=scaling
            )
        outputs.append(output)  # [1, heads, q, d]
    return torch.cat(outputs, dim=2).transpose(1, 2)


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

    query_starts, key_starts = segments.starts(q.device)
    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))  # [T, heads, d]
    out: Any = varlen_attn(
        query,
        key,
        value,
        query_starts,
        key_starts,
        max(segments.queries),
        max(segments.keys),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return out[None]  # type: ignore[no-any-return]


AttentionInterface.register(PACKED, packed_attention)
