"""Decoding for the built-in engine: a model with a key-value cache in buckets, and how a token is drawn.

A bucket is a cache of fixed size: a number of slots whose sequences decode together, each at a position of
its own. All tensors of a step have one shape for the whole life of the bucket, so the numbers of a sequence
do not depend on the others beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from sao.engines import Sample, Sampling
from sao.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sao.models.chat import ChatTokenizer

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, [rows, heads, positions, head size] each."""
Masks = dict[str, tuple[torch.Tensor, int]]
"""For each kind of layer its additive mask [slots, 1, 1, positions] and its window (most keys of a query)."""
_STOP_SLACK = 8
"""Tokens looked at beyond a stop string's bytes (each token is at least a byte; a few may be parts of
characters)."""
_NO_WINDOW = 1 << 60
_HEAD_ROWS = 1 << 14
"""Rows of the head that are widened to float32 at once."""


def uniforms(seeds: NDArray[np.uint64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each (seed, step), both [rows]: SplitMix64 (Steele et al. 2014), the seed hashed
    first."""

    def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    bits = mix(mix(seeds + golden) + (steps.astype(np.uint64) + np.uint64(1)) * golden)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Sample one token for each row by inverting its cumulative distribution.

    Args:
        logits: [rows, vocabulary].
        temperature: [rows], float64; 0 takes the most probable token.
        top_p: [rows], float64; only the most probable tokens that together reach this share can be drawn.
        uniform: [rows], float64 in [0, 1).

    Returns:
        Token ids, [rows], int64.

    """
    greedy = logits.argmax(-1)
    if not bool((temperature > 0).any()):
        return greedy
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    probabilities = torch.softmax(scaled, -1)
    tokens = _invert(probabilities.cumsum(-1), uniform)
    if bool((top_p < 1).any()):
        # Over all rows, not only those that ask for it, so that the shapes stay the same whoever else is
        # there.
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        before[:, 0] = 0.0  # the most probable token always stays
        nucleus = ordered.masked_fill(before >= top_p[:, None], 0.0)
        ranks = _invert(nucleus.cumsum(-1), uniform)
        tokens = torch.where(top_p < 1, order.gather(-1, ranks[:, None])[:, 0], tokens)
    return torch.where(temperature > 0, tokens, greedy)


def _invert(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first place [rows] at which `cumulative` [rows, n] passes `uniform` [rows] of its last value."""
    target = (uniform * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(cumulative.shape[-1] - 1)


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values of a bucket; in a step each row writes at a position of its own."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, like: tuple[torch.Tensor, torch.Tensor], slots: int, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = (t.new_zeros((slots, t.shape[1], size, t.shape[3])) for t in like)
        self.rows = torch.arange(slots, device=self.keys.device)
        self.positions = torch.zeros_like(self.rows)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's [slots, heads, 1, head size] and return all positions."""
        self.keys[self.rows, :, self.positions] = key_states[:, :, 0]
        self.values[self.rows, :, self.positions] = value_states[:, :, 0]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query meets, and the first one's position."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """The bucket's size; rows differ, so callers give positions themselves."""
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        """The bucket's size."""
        return self.keys.shape[2]


class Network:
    """A causal language model, prepared for buckets: `slots` rows to a decoding step."""

    def __init__(self, model: PreTrainedModel, chat: ChatTokenizer, slots: int) -> None:
        """Raises ModelError where the model's layers keep anything but keys and values."""
        self.model, self.chat, self.slots = model, chat, slots
        settings = model.config.get_text_config()
        kinds = getattr(settings, "layer_types", None)
        window = getattr(settings, "sliding_window", None) or _NO_WINDOW
        kinds = set(kinds) if kinds else {"full_attention" if window == _NO_WINDOW else "sliding_attention"}
        unknown = kinds - {"full_attention", "sliding_attention"}
        if unknown or getattr(model, "_is_stateful", False):
            raise ModelError(
                f"{type(model).__name__} has layers ({', '.join(sorted(unknown)) or 'state space'}) that "
                "keep more than keys and values, which the built-in engine cannot batch. Take a model of "
                "attention layers only",
                key="architecture",
            )
        self.windows = {kind: window if kind == "sliding_attention" else _NO_WINDOW for kind in sorted(kinds)}
        self.context = int(getattr(settings, "max_position_embeddings", 0) or _NO_WINDOW)
        self._vocabulary = int(settings.vocab_size)

    @cached_property
    def ends(self) -> NDArray[np.bool_]:
        """Which tokens end a reply (row 0) and a turn of the user (row 1), [2, vocabulary]."""
        ends = np.zeros((2, self._vocabulary), bool)
        for row, tokens in enumerate((self.chat.end_ids, self.chat.user_ends[0])):
            ends[row, [token for token in tokens if token < self._vocabulary]] = True
        return ends

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """`array` on the model's device."""
        return torch.from_numpy(array).to(self.model.device)

    def forward(self, **inputs: Any) -> torch.Tensor:
        """The model's logits."""
        logits: torch.Tensor = self.model(**inputs).logits
        return logits

    @torch.inference_mode()
    def prefill(self, ids: NDArray[np.int64]) -> Layers:
        """Keys and values of prompts [rows, columns], padded on the right: causal attention never looks
        there."""
        cache = DynamicCache()
        self.forward(input_ids=self.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers = []
        for layer in cache.layers:
            if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
                raise ModelError(
                    f"{type(self.model).__name__} keeps a cache that the built-in engine cannot batch",
                    key="architecture",
                )
            layers.append((layer.keys, layer.values))
        return layers

    @torch.inference_mode()
    def last_logits(self, ids: NDArray[np.int64], last: NDArray[np.int64]) -> torch.Tensor:
        """Logits [rows, vocabulary] at the places `last` [rows] of `ids` [rows, columns], padded on the
        right.

        The head gets these places only: logits of all of them would be the largest tensor by far.
        """
        rows, places = torch.arange(len(ids), device=self.model.device), self.tensor(last)
        head: torch.nn.Module = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, places][:, None],))
        try:
            with self.float32_head():
                return self.forward(input_ids=self.tensor(ids), use_cache=False)[:, 0]
        finally:
            hook.remove()

    @contextmanager
    def float32_head(self) -> Iterator[None]:
        """Logits in float32, also of a model in half precision. In bfloat16 a logit between 16 and 32 is a
        multiple of 1/8, which is more than most differences between two verdicts."""
        head: torch.nn.Module = self.model.get_output_embeddings()
        is_half = head.weight.dtype in (torch.bfloat16, torch.float16)
        if type(head) is not torch.nn.Linear or not is_half or "forward" in vars(head):
            yield
            return
        vars(head)["forward"] = partial(_in_float32, head)
        try:
            yield
        finally:
            del vars(head)["forward"]

    def closed_masks(self, size: int) -> Masks:
        """Masks of a bucket of `size` positions that let nothing through."""
        dtype, shape = self.model.dtype, (self.slots, 1, 1, size)
        closed = torch.finfo(dtype).min
        return {
            kind: (torch.full(shape, closed, dtype=dtype, device=self.model.device), window)
            for kind, window in self.windows.items()
        }

    @staticmethod
    def mask_argument(masks: Masks) -> Any:
        """`masks` as models take them: one tensor, or one for each kind of layer where a model mixes them."""
        tensors = {kind: mask for kind, (mask, _) in masks.items()}
        return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def _in_float32(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The head's output in float32; its weights are widened in blocks, since a copy of all is large."""
    wide = hidden.float()
    logits = wide.new_empty(*hidden.shape[:-1], head.out_features)
    for start in range(0, head.out_features, _HEAD_ROWS):
        block = slice(start, start + _HEAD_ROWS)
        logits[..., block] = wide @ head.weight[block].float().T
    return logits if head.bias is None else logits.add_(head.bias.float())


@dataclass(slots=True)
class Sequence:
    """A sample under way: the first `length` tokens are in row `row` of `layers`, `token` comes next."""

    sample: Sample
    sampling: Sampling
    limit: int
    length: int
    token: int
    layers: Layers
    row: int
    as_user: bool = False
    first: bool = False
    tokens: list[int] = field(default_factory=list)


class CacheBucket:
    """Slots for sequences of up to `size` positions. Arrays have one entry for each slot."""

    def __init__(self, network: Network, size: int, like: Layers) -> None:
        slots = network.slots
        self.network, self.size = network, size
        self.ready: deque[Sequence] = deque()
        self.held: list[Sequence | None] = [None] * slots
        self.layers = [SlotLayer(pair, slots, size) for pair in like]
        self.cache = Cache(layers=[*self.layers])
        self.masks = network.closed_masks(size)
        self.rows = np.arange(slots)
        self.live, self.stops, self.first = np.zeros((3, slots), bool)
        self.as_user = np.zeros(slots, np.int64)
        self.length, self.token, self.drawn, self.left, self.start = np.zeros((5, slots), np.int64)
        self.seed = np.zeros(slots, np.uint64)
        self.temperature, self.top_p = np.zeros(slots), np.ones(slots)
        self.history = np.zeros((slots, size), np.int64)

    def serves_first(self) -> bool:
        """Whether one of the first requests is here: in a slot, or waiting for one."""
        return bool((self.live & self.first).any()) or any(sequence.first for sequence in self.ready)

    @torch.inference_mode()
    def refill(self) -> None:
        """Move ready sequences into the free slots."""
        for slot in np.flatnonzero(~self.live)[: len(self.ready)]:
            sequence = self.ready.popleft()
            length = sequence.length
            for layer, (keys, values) in zip(self.layers, sequence.layers, strict=True):
                layer.keys[slot, :, :length] = keys[sequence.row, :, :length]
                layer.values[slot, :, :length] = values[sequence.row, :, :length]
            for mask, window in self.masks.values():
                mask[slot] = torch.finfo(mask.dtype).min
                mask[slot, ..., max(0, length - window) : length] = 0
            sequence.layers = []
            self.held[slot], self.live[slot] = sequence, True
            self.stops[slot], self.first[slot] = bool(sequence.sampling.stop), sequence.first
            self.as_user[slot] = sequence.as_user
            self.length[slot], self.token[slot], self.drawn[slot] = length, sequence.token, 0
            self.start[slot], self.left[slot] = len(sequence.tokens), sequence.limit - len(sequence.tokens)
            self.seed[slot] = sequence.sample.seed % 2**64
            self.temperature[slot], self.top_p[slot] = sequence.sampling.temperature, sequence.sampling.top_p

    @torch.inference_mode()
    def step(self) -> tuple[list[Sequence], list[Sequence]]:
        """Give every live slot one more token; the sequences that ended, and those that need a larger
        bucket."""
        token = self._draw(self._forward())
        self.history[self.rows, self.drawn] = token
        self.token = token
        self.length += self.live
        self.drawn += self.live
        ended = self.network.ends[self.as_user, token] | (self.drawn >= self.left)
        for slot in np.flatnonzero(self.live & self.stops & ~ended):
            ended[slot] = self._stopped(int(slot))
        outgrown = self.live & ~ended & (self.length >= self.size)
        return (
            [self._release(int(slot)) for slot in np.flatnonzero(self.live & ended)],
            [self._release(int(slot), keep=True) for slot in np.flatnonzero(outgrown)],
        )

    def _forward(self) -> torch.Tensor:
        """Logits [slots, vocabulary] after each slot's next token. Idle slots write into their own position
        0."""
        next_position = np.where(self.live, self.length, 0)  # [slots]
        positions = self.network.tensor(next_position)
        for layer in self.layers:
            layer.positions = positions
        for mask, window in self.masks.values():
            mask[self.rows, 0, 0, next_position] = 0
            if (windowed := np.flatnonzero(next_position >= window)).size:
                leaves_window = next_position[windowed] - window
                mask[windowed, 0, 0, leaves_window] = torch.finfo(mask.dtype).min
        return self.network.forward(
            input_ids=self.network.tensor(self.token)[:, None],
            attention_mask=self.network.mask_argument(self.masks),
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )[:, -1]

    def _draw(self, logits: torch.Tensor) -> NDArray[np.int64]:
        settings = (self.temperature, self.top_p, uniforms(self.seed, self.start + self.drawn))
        return draw(logits, *map(self.network.tensor, settings)).cpu().numpy()

    def _stopped(self, slot: int) -> bool:
        """Whether the text so far holds one of the stop strings; only its last tokens are looked at first."""
        sequence = self.held[slot]
        if sequence is None or not (stops := sequence.sampling.stop):
            return False
        tail = max(len(stop.encode()) for stop in stops) + _STOP_SLACK
        drawn = self.history[slot, : self.drawn[slot]].tolist()
        text = self.network.chat.decode((sequence.tokens + drawn)[-tail:])
        return any(stop in text for stop in stops)

    def _release(self, slot: int, keep: bool = False) -> Sequence:
        """Take a sequence out of its slot, with a copy of its keys and values if it is to go on."""
        sequence = self.held[slot]
        assert sequence is not None
        sequence.tokens += self.history[slot, : self.drawn[slot]].tolist()
        sequence.length, sequence.token, sequence.row = int(self.length[slot]), int(self.token[slot]), 0
        if keep:
            sequence.layers = [
                (layer.keys[slot : slot + 1].clone(), layer.values[slot : slot + 1].clone())
                for layer in self.layers
            ]
        self.held[slot], self.live[slot], self.length[slot], self.drawn[slot] = None, False, 0, 0
        return sequence
