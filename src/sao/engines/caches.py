"""Keys and values of the texts that the built-in engine has under way, and attention over them.

`Text` holds those of the beginning of one prompt, shared by its samples and by prompts that begin alike.
`Group` holds those of samples that are written, each in a row of its own, of like length together. A `Pass`
says which tokens of which texts a forward pass gets; each layer's attention stores their keys and values and
then attends text by text, group by group.

The query heads that share a key head are taken together, so that keys and values are never repeated in
memory: with SmolLM2's three to one that is 10 to 20 times as fast on a CPU as copies of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sao.errors import ModelError

ATTENTION = "sao_texts"
"""The name under which `attend` is registered with transformers."""
BLOCK = 64
"""A prompt is read in parts that end at multiples of so many tokens: what a part computes depends on the
text before its end alone, so that prompts which begin alike share whole parts, to the last bit."""
_SMALLEST_GROUP = 64
KEPT_BYTES, _KEPT_TEXTS = 256 * 2**20, 2
"""Keys and values that are kept for prompts which begin alike; and texts that are kept in any case."""
_ROWS = 8
"""Rows by which a group grows."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values."""


def group_size(length: int) -> int:
    """Positions of the smallest group for `length` tokens and the next: 64, 96, 128, 192, 256, 384, …"""
    size = _SMALLEST_GROUP
    while length >= size:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


@dataclass(eq=False, slots=True)
class Text:
    """The beginning of a prompt: its token ids, and each layer's keys and values [key heads, tokens, head
    size]. The first `shared` tokens are copied from `source`; `is_read` once all are there."""

    ids: list[int]
    source: Text | None = None
    shared: int = 0
    layers: dict[int, Pair] = field(default_factory=dict)
    is_read: bool = False

    def store(self, layer: int, start: int, end: int, new: Pair) -> None:
        """Keep the keys and values of tokens `start` to `end`."""
        if layer not in self.layers:
            self.layers[layer] = _like(new, len(self.ids))
            if self.source is not None:
                for own, other in zip(self.layers[layer], self.source.layers[layer], strict=True):
                    own[:, : self.shared] = other[:, : self.shared]
        for own, other in zip(self.layers[layer], new, strict=True):
            own[:, start:end] = other

    @property
    def size(self) -> int:
        """Bytes of the keys and values."""
        return sum(one.numel() * one.element_size() for pair in self.layers.values() for one in pair)


def _like(new: Pair, tokens: int) -> Pair:
    keys, values = (one.new_empty((one.shape[0], tokens, one.shape[2])) for one in new)
    return keys, values


@dataclass(eq=False, slots=True)
class _Node:
    """A beginning of whole blocks: its number, and the text in which it was read last."""

    number: int
    text: Text


class Prefixes:
    """Texts that were read lately, by what they begin with: a tree of blocks of token ids."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, tuple[int, ...]], _Node] = {}
        self._numbers = 0
        self._new: list[Text] = []
        self._kept: deque[tuple[Text, int]] = deque()
        self._bytes = 0

    def find(self, ids: list[int], work: Pass) -> tuple[Text | None, int]:
        """A text that begins like `ids` and is read, or is whole by the end of `work`; and how many tokens
        they share: whole blocks."""
        found, shared, parent = None, 0, 0
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            node = self._nodes.get((parent, tuple(ids[end - BLOCK : end])))
            if node is None or not (node.text.is_read or work.has(node.text)):
                break
            found, shared, parent = node.text, end, node.number
        return found, shared

    def add(self, text: Text) -> None:
        """Let later prompts find a text."""
        if len(text.ids) < BLOCK:
            return
        parent = 0
        for end in range(BLOCK, len(text.ids) + 1, BLOCK):
            key = (parent, tuple(text.ids[end - BLOCK : end]))
            if key in self._nodes:
                self._nodes[key].text = text
            else:
                self._numbers += 1
                self._nodes[key] = _Node(self._numbers, text)
            parent = self._nodes[key].number
        self._new.append(text)

    def settle(self) -> None:
        """After a pass: count its texts, and let the oldest go where all take too much."""
        for text in self._new:
            size = text.size
            self._kept.append((text, size))
            self._bytes += size
        self._new = []
        while self._bytes > KEPT_BYTES and len(self._kept) > _KEPT_TEXTS:
            oldest, size = self._kept.popleft()
            self._bytes -= size
            self._forget(oldest)

    def _forget(self, text: Text) -> None:
        parent = 0
        for end in range(BLOCK, len(text.ids) + 1, BLOCK):
            key = (parent, tuple(text.ids[end - BLOCK : end]))
            if (node := self._nodes.get(key)) is None:
                return
            if node.text is text:
                del self._nodes[key]  # what lies below is of this text or older, and not found any more
            parent = node.number


class Group:
    """Keys and values [rows, key heads, `size`, head size] of each layer, of samples whose text so far is
    shorter than `size` tokens. Rows lie one after another: where one leaves, the last takes its place."""

    def __init__(self, size: int, most: int) -> None:
        """For at most `most` rows."""
        self.size, self.most, self.rows, self.capacity = size, most, 0, 0
        self.layers: dict[int, Pair] = {}

    def add(self, layers: dict[int, Pair], length: int) -> None:
        """A further row, the last, with the first `length` tokens of `layers`' keys and values."""
        self._resize(self.rows + 1)
        row = self.rows
        for layer, pair in layers.items():
            if layer not in self.layers:
                self.layers[layer] = self._empty(pair)
            for own, other in zip(self.layers[layer], pair, strict=True):
                own[row, :, :length] = other[:, :length]
                own[row, :, length:] = 0  # an attention of 0 times what another sample left must be 0
        self.rows += 1

    def row(self, row: int) -> dict[int, Pair]:
        """One row's keys and values, as they lie here."""
        return {layer: (keys[row], values[row]) for layer, (keys, values) in self.layers.items()}

    def remove(self, row: int) -> None:
        """Give a row's place to the last row."""
        self.rows -= 1
        if row != self.rows:
            for pair in self.layers.values():
                for own in pair:
                    own[row] = own[self.rows]
        if self.rows * 2 < self.capacity:
            self._resize(self.rows)

    def store(self, layer: int, new: Pair, each: torch.Tensor, positions: torch.Tensor) -> None:
        """Keep the step's keys and values [rows, key heads, head size], those of row `each` at its own of the
        `positions`."""
        if layer not in self.layers:
            self.layers[layer] = self._empty((new[0].transpose(0, 1), new[1].transpose(0, 1)))
        for own, other in zip(self.layers[layer], new, strict=True):
            own[each, :, positions] = other

    def _empty(self, like: Pair) -> Pair:
        keys, values = (one.new_zeros((self.capacity, one.shape[0], self.size, one.shape[2])) for one in like)
        return keys, values

    def _resize(self, rows: int) -> None:
        """Room for `rows`: a quarter more than before where it grows, no more than needed where few are
        left."""
        if rows * 2 >= self.capacity >= rows:
            return
        wanted = max(rows, self.capacity * 5 // 4) if rows > self.capacity else rows
        capacity = min(self.most, max(1, -(-wanted // _ROWS)) * _ROWS)
        if capacity == self.capacity:
            return
        self.capacity = capacity
        for layer, (keys, values) in self.layers.items():
            pair = self._empty((keys[0], values[0]))
            for own, other in zip(pair, (keys, values), strict=True):
                own[: self.rows] = other[: self.rows]
            self.layers[layer] = pair


@dataclass(slots=True)
class _Part:
    """Tokens `start` to `end` of a text, at `place` of the pass."""

    text: Text
    start: int
    end: int
    place: int
    masks: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Rows:
    """The next token of each row of a group, from `place` of the pass on."""

    group: Group
    lengths: list[int]
    place: int
    each: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    positions: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    masks: dict[int, torch.Tensor] = field(default_factory=dict)


class Pass:
    """The tokens of one forward pass."""

    def __init__(self, part: int = BLOCK, by_row: bool = False) -> None:
        """A text is read in parts that end at multiples of `part` tokens (whole blocks). `by_row`: each row
        of a group attends by itself, where a batch of rows would round otherwise."""
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.mask = torch.empty(0)
        self.attended = 0
        self.part, self.by_row = part, by_row
        self._parts: list[_Part] = []
        self._rows: list[_Rows] = []
        self._windows: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def has(self, text: Text) -> bool:
        """Whether a part of a text is read here."""
        return any(part.text is text for part in reversed(self._parts))

    def read(self, text: Text, start: int, room: int) -> int:
        """Read a text on from `start` as far as whole blocks fit into `room` tokens; where it stopped. An
        empty pass gets a block in any case."""
        while start < len(text.ids):
            end = min(len(text.ids), (start // self.part + 1) * self.part)
            if end - start > room:
                end = (start + room) // BLOCK * BLOCK
            if end <= start and self.ids:
                break
            end = end if end > start else min(len(text.ids), (start // BLOCK + 1) * BLOCK)
            self._parts.append(_Part(text, start, end, len(self.ids)))
            self.ids += text.ids[start:end]
            self.positions += range(start, end)
            room -= end - start
            start = end
        return start

    def rows(self, group: Group, tokens: list[int], lengths: list[int]) -> None:
        """Take the next token of each row of `group`, which has `lengths` tokens so far."""
        self._rows.append(_Rows(group, lengths, len(self.ids)))
        self.ids += tokens
        self.positions += lengths

    def prepare(self, device: torch.device, dtype: torch.dtype, windows: list[int]) -> None:
        """Masks and positions on the device: 0 where a token sees another, -inf elsewhere. `mask` is what
        the model is given, of the form that models hand on as it is."""
        self._windows, self.attended = windows, 0
        self.mask = torch.zeros((1, 1, 1, 1), dtype=dtype, device=device)
        for window in {*windows}:
            for part in self._parts:
                query = torch.arange(part.start, part.end, device=device)[:, None]
                part.masks[window] = _mask(query, part.end, window, dtype)
            for rows in self._rows:
                rows.each = torch.arange(len(rows.lengths), device=device)
                rows.positions = torch.tensor(rows.lengths, device=device)
                query = rows.positions[:, None]
                rows.masks[window] = _mask(query, rows.group.size, window, dtype)[:, None, None]

    def attend(self, layer: int, query: torch.Tensor, new: Pair, weigh: _Weigh) -> torch.Tensor:
        """The outputs [tokens, heads, head size] of one layer for `query` [heads, tokens, head size] and the
        new keys and values [key heads, tokens, head size]. Tokens that only fill the pass up get zeros."""
        self.attended += 1
        heads, tokens, _ = query.shape
        kv_heads = new[0].shape[0]
        out = query.new_zeros((tokens, heads, new[1].shape[2]))
        window = self._windows[layer]
        for part in self._parts:  # in their order: a part may copy from a text that was read before it
            here = slice(part.place, part.place + part.end - part.start)
            part.text.store(layer, part.start, part.end, (new[0][:, here], new[1][:, here]))
            keys, values = (one[:, : part.end] for one in part.text.layers[layer])
            asked = query[:, here].reshape(kv_heads, -1, query.shape[2])
            mask = part.masks[window].repeat(heads // kv_heads, 1)
            found = weigh(asked, keys, values, mask[None])
            out[here] = found.reshape(heads, -1, found.shape[-1]).transpose(0, 1)
        for rows in self._rows:
            here = slice(rows.place, rows.place + len(rows.lengths))
            n = len(rows.lengths)
            stored = (new[0][:, here].transpose(0, 1), new[1][:, here].transpose(0, 1))
            rows.group.store(layer, stored, rows.each, rows.positions)
            keys, values = (one[:n] for one in rows.group.layers[layer])
            asked = query[:, here].transpose(0, 1).reshape(n, kv_heads, -1, query.shape[2])
            step = 1 if self.by_row else n
            for first in range(0, n, step):
                some = slice(first, first + step)
                found = weigh(asked[some], keys[some], values[some], rows.masks[window][some])
                place = rows.place + first
                out[place : place + step] = found.reshape(-1, heads, found.shape[-1])
        return out

    def window(self, layer: int) -> int:
        """How many tokens back a layer sees."""
        return self._windows[layer]

    def finish(self) -> None:
        """All went well: texts that end here are read, and let go of those from which they copied."""
        for part in self._parts:
            part.text.source = None
            part.text.is_read |= part.end == len(part.text.ids)


def _mask(query: torch.Tensor, keys: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """[queries, keys] for the positions `query` [queries, 1]: it sees itself and `window` - 1 before it."""
    key = torch.arange(keys, device=query.device)[None]
    hidden = (key > query) | (key <= query - window)
    return torch.zeros(hidden.shape, dtype=dtype, device=query.device).masked_fill_(hidden, -math.inf)


_Weigh = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _weighing(scaling: float, softcap: float | None, sinks: torch.Tensor | None, kv_heads: int) -> _Weigh:
    """Attention of queries [..., key heads, queries, head size] over keys and values [..., key heads, keys,
    head size] with an additive mask; softmax in float32."""

    def weigh(
        query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        scores = torch.matmul(query * scaling, keys.transpose(-1, -2))
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = (scores + mask).float()
        if sinks is None:
            return torch.matmul(torch.softmax(scores, -1).to(values.dtype), values)
        # A sink takes a share of the attention and gives nothing. Queries of one key head come head by head.
        each = scores.shape[-2] // (len(sinks) // kv_heads)
        sink = sinks.float().view(kv_heads, -1, 1).expand(-1, -1, each).reshape(kv_heads, -1, 1)
        scores = torch.cat((scores, sink.expand(*scores.shape[:-1], 1)), -1)
        return torch.matmul(torch.softmax(scores, -1)[..., :-1].to(values.dtype), values)

    return weigh


def rounds_alike(heads: int, kv_heads: int, head_size: int, dtype: torch.dtype, rows: int) -> bool:
    """Whether attention of one row of a group is the same to the last bit whatever the number of rows beside
    it, up to `rows`; tried with random numbers on the CPU."""
    generator = torch.Generator().manual_seed(0)
    weigh = _weighing(head_size**-0.5, None, None, kv_heads)
    for size in (_SMALLEST_GROUP, 768):
        shapes = ((rows, kv_heads, heads // kv_heads, head_size), *2 * ((rows, kv_heads, size, head_size),))
        query, keys, values = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        mask = _mask(torch.full((rows, 1), size - 9), size, size, dtype)[:, None, None]
        whole = weigh(query, keys, values, mask)
        for n in {1, 2, 3, 5, rows // 2, rows - 1} - {0}:
            if not torch.equal(weigh(query[:n], keys[:n], values[:n], mask[:n]), whole[:n]):
                return False
    return True


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    sao_pass: Pass | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers asks for it: query [1, heads, tokens, head size], key and value with the key
    heads; the output is [1, tokens, heads, head size].

    Raises ModelError where the layer wants what a pass does not do.
    """
    work, layer = sao_pass, getattr(module, "layer_idx", None)
    if work is None or layer is None:
        raise _refused(module, "does not hand on what the engine gives it")
    if attention_mask is not work.mask:
        raise _refused(module, "changes the mask of attention")
    if sliding_window is not None and sliding_window != work.window(layer):
        raise _refused(module, f"has a window of {sliding_window} tokens, of which config.json tells nothing")
    if given := [name for name, one in others.items() if torch.is_tensor(one) and name not in _HARMLESS]:
        raise _refused(module, f"attends by {', '.join(given)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weigh = _weighing(scale, softcap, s_aux, key.shape[1])
    return work.attend(layer, query[0], (key[0], value[0]), weigh)[None], None


_HARMLESS = {"position_ids", "cache_position"}


def _refused(module: Any, why: str) -> ModelError:
    return ModelError(
        f"{type(module).__name__} {why}: the built-in engine cannot run this model. Take engine.name vllm",
        key="architecture",
    )
