"""How the built-in engine draws a token: by inverting the cumulative distribution with a uniform number that
depends on the sample's seed and the token's place alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sao.engines.samples import SampleState
from sao.errors import EngineError

_BLOCK = 256
"""Tokens whose probabilities are summed together before one block is looked into."""
_NUCLEUS = 1024
"""Most probable tokens among which a nucleus is sought first; where they do not reach it, all are sorted."""


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


def draw_for(logits: torch.Tensor, samples: list[SampleState]) -> list[int]:
    """The next token of each sample, from its logits [rows, vocabulary]."""
    if logits.device.type == "mps":
        logits = logits.cpu()  # Metal has no float64
    sampling = [one.sampling for one in samples]
    seeds = np.array([one.sample.seed % 2**64 for one in samples], np.uint64)
    settings = (
        np.array([one.temperature for one in sampling], np.float64),
        np.array([one.top_p for one in sampling], np.float64),
        uniforms(seeds, np.array([len(one.tokens) for one in samples], np.int64)),
    )
    drawn: list[int] = draw(logits, *(torch.from_numpy(x).to(logits.device) for x in settings)).tolist()
    return drawn


def draw(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Sample one token for each row. A row's token depends on its own numbers alone.

    Args:
        logits: [rows, vocabulary].
        temperature: [rows], float64; 0 (below 1e-6) takes the most probable token.
        top_p: [rows], float64; only the most probable tokens that together reach this share can be drawn.
        uniform: [rows], float64 in [0, 1).

    Returns:
        Token ids, [rows], int64.

    Raises EngineError where logits are not numbers.

    """
    if bool(logits.isnan().any()):
        raise EngineError(
            "the model's logits are not numbers (NaN): its weights are broken, or too large for engine.dtype "
            "float16. Try engine.dtype bfloat16 or float32",
            key="engine.dtype",
        )
    is_free, is_whole = temperature >= 1e-6, top_p >= 1
    if bool((is_free & is_whole).all()):  # the usual case
        return _from_all(_softmax(logits, temperature), top_p, uniform)
    tokens = logits.argmax(-1)
    for rows, pick in ((is_free & is_whole, _from_all), (is_free & ~is_whole, _from_nucleus)):
        places = rows.nonzero()[:, 0]
        if len(places):
            probabilities = _softmax(logits[places], temperature[places])
            tokens[places] = pick(probabilities, top_p[places], uniform[places])
    return tokens


def _softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Probabilities in float32, [rows, vocabulary]."""
    return torch.softmax(logits.float() * (1 / temperature[:, None]).float(), -1)


def _from_all(probabilities: torch.Tensor, _: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token of each row of `probabilities` [rows, vocabulary]: first the block in which the cumulative
    distribution passes `uniform`, then the token in it, both summed in float64."""
    rows, n = probabilities.shape
    padded = torch.nn.functional.pad(probabilities, (0, -n % _BLOCK)) if n % _BLOCK else probabilities
    padded = padded.view(rows, -1, _BLOCK)
    blocks = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniform * blocks[:, -1]
    block = _passes(blocks, target)
    each = torch.arange(rows, device=block.device)
    before = torch.where(block > 0, blocks[each, (block - 1).clamp_min(0)], 0.0)
    inside = padded[each, block].double().cumsum(-1)
    # A block's sum and its last partial sum may differ by rounding: no further than its last token.
    within = _passes(inside, torch.minimum(target - before, inside[:, -1] * (1 - 2**-53)))
    return (block * _BLOCK + within).clamp_max(n - 1)


def _from_nucleus(probabilities: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token of each row among the most probable ones that together reach `top_p`."""
    tokens = torch.empty(len(top_p), dtype=torch.int64, device=probabilities.device)
    few, order = probabilities.topk(min(_NUCLEUS, probabilities.shape[-1]))
    enough = few.sum(-1, dtype=torch.float64) >= top_p
    for rows, whole in ((enough, False), (~enough, True)):
        places = rows.nonzero()[:, 0]
        if not len(places):
            continue
        ordered, ids = few[places], order[places]
        if whole:
            ordered, ids = probabilities[places].sort(dim=-1, descending=True, stable=True)
        before = ordered.double().cumsum(-1) - ordered.double()
        before[:, 0] = 0.0  # the most probable token always stays
        nucleus = ordered.double().masked_fill(before >= top_p[places, None], 0.0).cumsum(-1)
        ranks = _passes(nucleus, uniform[places] * nucleus[:, -1])
        tokens[places] = ids.gather(-1, ranks[:, None])[:, 0]
    return tokens


def _passes(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first place [rows] at which `cumulative` [rows, n] is larger than `target` [rows]."""
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp_max(
        cumulative.shape[-1] - 1
    )
