"""What the built-in engine works on: prompts as token ids, and samples under way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from sao.engines import ChoiceRequest, Choices, Request, Sample, Sampling

if TYPE_CHECKING:
    import torch

    from sao.engines.caches import Pair
    from sao.models.chat import ChatTokenizer

_STOP_SLACK = 8
"""Tokens looked at beyond a stop string's bytes (each token is at least a byte; a few may be parts of
characters)."""

T = TypeVar("T", Request, ChoiceRequest)
Item = TypeVar("Item")


@dataclass(slots=True)
class TokenPrompt(Generic[T]):
    """A request and its token ids."""

    request: T
    ids: list[int]
    choices: tuple[int, ...] = ()

    def choices_of(self: TokenPrompt[ChoiceRequest], logprobs: torch.Tensor | None) -> Choices:
        """The log-probabilities of its choices, from those of the next token [vocabulary]; NaN without."""
        if logprobs is None:
            return Choices(self.request.id, (float("nan"),) * len(self.choices))
        return Choices(self.request.id, tuple(logprobs[list(self.choices)].tolist()))


@dataclass(eq=False, slots=True)
class SampleState:
    """A sample under way: its first `length` tokens have been read, `token` comes next. Their keys and values
    lie in `layers` until it has a place in a group."""

    sample: Sample
    sampling: Sampling
    limit: int
    as_user: bool
    length: int
    token: int
    layers: dict[int, Pair] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)

    def is_over(self, chat: ChatTokenizer) -> bool:
        """Whether it ends with its newest token: an end of turn, its limit or a stop string."""
        if self.tokens[-1] in chat.ends(self.as_user) or len(self.tokens) >= self.limit:
            return True
        if not (stops := self.sampling.stop):
            return False
        tail = max(len(stop.encode()) for stop in stops) + _STOP_SLACK
        text = chat.decode(self.tokens[-tail:])
        return any(stop in text for stop in stops)


def taken(source: Iterator[Item | None], most: int) -> tuple[list[Item], bool]:
    """Up to `most` items, as many as there are until the first None ("none for now"), and whether more may
    come."""
    items: list[Item] = []
    for item in source:
        if item is None:
            return items, True
        items.append(item)
        if len(items) == most:
            return items, True
    return items, False


def samples_of(prompt: TokenPrompt[Request], chat: ChatTokenizer, context: int) -> list[SampleState]:
    """A prompt's samples, before their first token; `context` is the longest text, in tokens."""
    sampling, as_user = prompt.request.sampling, prompt.request.as_user
    if as_user and (stops := chat.user_ends[1]):
        sampling = replace(sampling, stop=(*sampling.stop, *stops))
    limit = min(sampling.max_tokens, context - len(prompt.ids))
    start = len(prompt.ids) - 1
    return [
        SampleState(sample, sampling, limit, as_user, start, prompt.ids[-1])
        for sample in prompt.request.samples
    ]
