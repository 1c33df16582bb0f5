"""One layer's attention over a packed row by each way that the device has.

Letters in shapes: B pairs, T tokens of the row, d head size.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_parts.setting import SEED, SIZES, SMALL_SIZES, Setting, guarded, report, some_pairs, timed
from sao.training import attention
from sao.training.batches import pack


@dataclass(frozen=True)
class Row:
    """Queries [1, heads, T, d], keys and values [1, key heads, T, d] of a packed row, and who sees whom."""

    query: Tensor
    key: Tensor
    value: Tensor
    segments: attention.Segments
    pair: Tensor
    """[T] the number of each token's pair."""
    part: Tensor
    """[T] 0 in a prompt, 1 in a chosen answer, 2 in a rejected one."""
    widths: list[int]
    """Tokens of each padded row: prompt and one answer."""

    def detached(self) -> Row:
        """The same without gradients."""
        query, key, value = (x.detach() for x in states_of(self))
        return replace(self, query=query, key=key, value=value)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the token at `query` sees that at `key`, bool."""
        own = (self.part[key] == 0) | (self.part[key] == self.part[query])
        return (self.pair[key] == self.pair[query]) & own & (key <= query)


def make_row(setting: Setting) -> Row:
    """8 pairs, prompts shared, with the heads of Llama-3-8B; small: 4 pairs."""
    pairs = some_pairs(4 if setting.small else 8, 1000, setting.small)
    _, _, heads, key_heads, size, *_ = (SMALL_SIZES if setting.small else SIZES)["llama-3-8b"]
    dtype = torch.float32 if setting.small else torch.bfloat16
    parts = [
        [[i, kind] for kind, ids in enumerate((p.prompt_ids, p.chosen_ids, p.rejected_ids)) for _ in ids]
        for i, p in enumerate(pairs)
    ]
    marks = torch.tensor([mark for each in parts for mark in each], device=setting.device)  # [T, 2]
    torch.manual_seed(SEED)

    def states(n: int) -> Tensor:
        shape = (1, n, len(marks), size)
        return torch.randn(shape, device=setting.device, dtype=dtype).requires_grad_()

    segments = pack(pairs).to(setting.device).segments
    assert segments is not None
    answers = [answer for p in pairs for answer in (p.chosen_ids, p.rejected_ids)]
    widths = [len(pairs[i // 2].prompt_ids) + len(answer) for i, answer in enumerate(answers)]
    return Row(states(heads), states(key_heads), states(key_heads), segments, *marks.unbind(1), widths)


def by_sao(row: Row) -> Tensor:
    """What training uses, [1, T, heads, d]."""
    out, _ = attention.packed_attention(nn.Module(), *states_of(row), None, segments=row.segments)
    return out


def by_segment(row: Row) -> Tensor:
    """Our way without the kernel for all segments: SDPA one after the other."""
    query, key, value = states_of(row)
    index = row.segments.key_index
    key, value = key.index_select(2, index), value.index_select(2, index)
    return attention._by_segment(query, key, value, 0.0, None, None, None, row.segments)


def by_varlen(row: Row) -> Tensor:
    """torch's FlashAttention over all segments, also in versions that do not share key heads (2.10)."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    query, key, value, *bounds = flat_states(row)
    return varlen_attn(query, key, value, *bounds, **causal)[None]


def by_flash_attn(row: Row) -> Tensor:
    """The package flash-attn over all segments."""
    from flash_attn import flash_attn_varlen_func

    query, key, value, *bounds = flat_states(row)
    return flash_attn_varlen_func(query, key, value, *bounds, causal=True)[None]


def by_dense_mask(row: Row) -> Tensor:
    """SDPA over the whole row with a mask [T, T]."""
    query, key, value = states_of(row)
    each = torch.arange(query.shape[2], device=query.device)
    mask = row.visible(each[:, None], each[None])
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True).transpose(1, 2)


def flex_of(row: Row, compiled: bool) -> Callable[[Row], Tensor]:
    """FlexAttention with a block mask that is made beforehand; compiled, since else it holds all scores."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return row.visible(query, key)

    tokens = row.query.shape[2]
    mask = create_block_mask(visible, None, None, tokens, tokens, device=row.query.device)
    call: Any = torch.compile(flex_attention) if compiled else flex_attention

    def by_flex(row: Row) -> Tensor:
        out: Tensor = call(*states_of(row), block_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    return by_flex


def by_padded_rows(row: Row) -> Tensor:
    """SDPA with a causal mask over padded rows [2B, heads, T, d], as plain training does: other tokens than
    those of the packed row, but as many rows and as long ones."""
    rows, width = len(row.widths), max(row.widths)
    query, key, value = (
        x.repeat(1, 1, -(-rows * width // x.shape[2]), 1)[:, :, : rows * width]
        .view(x.shape[1], rows, width, -1)
        .transpose(0, 1)
        for x in states_of(row)
    )
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def states_of(row: Row) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    return row.query, row.key, row.value


def flat_states(row: Row) -> tuple[Any, ...]:
    """What a kernel over all segments takes: queries [T, heads, d], keys and values [keys, heads, d], where
    segments begin, and the longest."""
    query, key, value = states_of(row)
    groups = query.shape[1] // key.shape[1]
    index = row.segments.key_index
    key, value = (x.index_select(2, index).repeat_interleave(groups, 1) for x in (key, value))
    flat = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    starts = row.segments.starts(query.device)
    return *flat, *starts, max(row.segments.queries), max(row.segments.keys)


def attention_part(setting: Setting) -> None:
    """Forward and backward pass of one layer's attention by each way, and how far its output is off ours.
    `one_kernel` says whether ours is one call for all segments or goes segment by segment."""
    row = make_row(setting)
    one_kernel = setting.device.type == "cuda" and attention._has_varlen()
    found: dict[str, Any] = {"gpu": setting.gpu, "tokens": row.query.shape[2], "one_kernel": one_kernel}
    found["ways"] = {}
    with torch.no_grad():
        expected = by_sao(row).float()
    ways: dict[str, Callable[[], Callable[[Row], Tensor]]] = {
        "sao": lambda: by_sao,
        "by_segment": lambda: by_segment,
        "dense_mask": lambda: by_dense_mask,
        "padded_rows": lambda: by_padded_rows,
        "varlen": lambda: by_varlen,
        "flash_attn": lambda: by_flash_attn,
        "flex": lambda: flex_of(row, compiled=not setting.small),
    }
    for name, make in ways.items():
        missing = why_missing(name, setting)
        if missing:
            found["ways"][name] = {"skipped": missing}
        else:
            own = row.detached() if name == "flex" and setting.small else row  # a CPU has no backward of it
            found["ways"][name] = guarded(lambda m=make, r=own: one_way(m(), r, expected, setting))
        report(found)
    if "seconds" not in found["ways"]["sao"]:
        report(found | {"error": found["ways"]["sao"]["error"]})


def why_missing(name: str, setting: Setting) -> str | None:
    """Why this device has no such way, or None."""
    if name in ("varlen", "flash_attn") and setting.device.type != "cuda":
        return "needs a GPU"
    if name == "flash_attn" and importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    wanted = 20 if name == "flex" and not setting.small else 2
    return f"{setting.left:.0f} s are left" if setting.left < wanted else None


def one_way(way: Callable[[Row], Tensor], row: Row, expected: Tensor, setting: Setting) -> dict[str, Any]:
    """Seconds, peak memory, and the norm of the output's difference as a share of `expected`'s. Where the
    row's states take no gradients, of the forward pass alone."""

    def passes() -> Tensor:
        out = way(row)
        if row.query.requires_grad:
            torch.autograd.grad(out.float().sum(), states_of(row))
        return out

    out = passes().detach().float()
    off = float((out - expected).norm() / expected.norm()) if way is not by_padded_rows else None
    if off is not None and off > 0.05:
        raise ValueError(f"its output is off by {off:.3g} of ours")
    seconds, peak = timed(setting, passes, 2 if setting.small else 10)
    return {"seconds": seconds, "peak_gib": peak, "off": off}
