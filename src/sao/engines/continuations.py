"""How probable texts are after a plain text, for the built-in engine: (context, continuations) in, summed
log-probabilities out.

A context and all its continuations are one row: [context | continuation 1 | continuation 2 | …]. The mask
lets a continuation see the context and itself, and each continuation's positions start where the context
ends, so the context is read once. On a CPU each context is a forward pass of its own, without padding: a row
of a hundred tokens keeps the cores busy, and its numbers depend on nothing beside it. On a GPU contexts of
like length share a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sao.engines import ContinuationRequest, Continuations, Failure
from sao.engines.network import Network, float32_head

READ_AHEAD = 256
"""Requests that are sorted by length together."""
GPU_TOKENS = 4096
"""Tokens of one forward pass on a GPU: with 152,000 words their logits take 2.5 GB, and as much again while
they are normalised."""
_CONTEXT, _PADDING = -1, -2


@dataclass(frozen=True, slots=True)
class _Tree:
    """The token ids of a request."""

    id: str
    context: list[int]
    endings: list[list[int]]

    @property
    def size(self) -> int:
        """Tokens of the endings together."""
        return sum(map(len, self.endings))


def score_continuations(
    network: Network, requests: Iterable[ContinuationRequest]
) -> Iterator[Continuations | Failure]:
    """The log-probabilities of each request; a Failure for one that does not fit into the model's context."""
    waiting = iter(requests)
    while block := list(islice(waiting, READ_AHEAD)):
        trees = []
        for request in block:
            tree = _Tree(request.id, *network.chat.continuation_ids(request.context, request.continuations))
            if len(tree.context) + max(map(len, tree.endings)) > network.context:
                yield Failure(request.id, "longer than the model's context")
            elif not all(tree.endings):
                yield Failure(request.id, "a continuation without tokens")
            else:
                trees.append(tree)
        for batch in _batches(network, trees):
            yield from _score(network, batch)


def _batches(network: Network, trees: list[_Tree]) -> Iterator[list[_Tree]]:
    """Trees of like length together, as many as a pass may have."""
    if network.model.device.type == "cpu":
        yield from ([tree] for tree in trees)
        return
    batch: list[_Tree] = []
    for tree in sorted(trees, key=lambda tree: (len(tree.context) + tree.size, tree.id)):
        columns = max(len(t.context) for t in [*batch, tree]) + max(t.size for t in [*batch, tree])
        if batch and columns * (len(batch) + 1) > GPU_TOKENS:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


@torch.inference_mode()
def _score(network: Network, trees: list[_Tree]) -> Iterator[Continuations]:
    """One forward pass. Contexts are padded on the left, so that all end in the same column."""
    contexts, sizes = max(len(tree.context) for tree in trees), max(tree.size for tree in trees)
    shape = len(trees), contexts + sizes
    ids, places = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    parts = np.full(shape, _PADDING)
    for row, tree in enumerate(trees):
        n = len(tree.context)
        start = contexts - n
        ids[row, start:contexts], parts[row, start:contexts] = tree.context, _CONTEXT
        places[row, start:contexts] = np.arange(n)
        start = contexts
        for number, ending in enumerate(tree.endings):
            end = start + len(ending)
            ids[row, start:end], parts[row, start:end] = ending, number
            places[row, start:end] = np.arange(n, n + len(ending))
            start = end
    with float32_head(network.model):
        logits = network.forward(
            input_ids=network.tensor(ids),
            attention_mask=_mask(network, parts, places),
            position_ids=network.tensor(places),
            use_cache=False,
            logits_to_keep=sizes + 1,  # from the last token of the context on
        )
    for tree, row in zip(trees, logits, strict=True):
        tokens = tuple(map(len, tree.endings))
        yield Continuations(tree.id, _sums(tree, row[: tree.size + 1]), tokens)


def _mask(network: Network, parts: NDArray[np.int64], places: NDArray[np.int64]) -> Any:
    """What each token sees: the context and its own continuation, up to itself, within the layer's window."""
    query, key = parts[:, :, None], parts[:, None, :]
    order = np.arange(parts.shape[1])
    sees = (key == _CONTEXT) | (key == query)
    sees &= (key != _PADDING) & (order[None, :, None] >= order[None, None, :])
    away = places[:, :, None] - places[:, None, :]
    dtype = network.model.dtype
    masks = {}
    for kind, window in network.windows.items():
        closed = network.tensor(~(sees & (away < window)))[:, None]
        mask = torch.zeros(closed.shape, dtype=dtype, device=closed.device)
        masks[kind] = mask.masked_fill(closed, torch.finfo(dtype).min)
    return network.mask_argument(masks)


def _sums(tree: _Tree, logits: torch.Tensor) -> tuple[float, ...]:
    """The summed log-probability of each ending, from the logits after the context and after each of the
    endings' tokens [tokens + 1, vocabulary]."""
    logprobs = logits.float().log_softmax(-1)
    sums, start = [], 0
    for ending in tree.endings:
        rows = [0, *range(start + 1, start + len(ending))]
        sums.append(float(logprobs[rows, ending].double().sum()))
        start += len(ending)
    return tuple(sums)
