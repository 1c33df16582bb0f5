"""The built-in engine: continuous batching over any transformers chat model whose cache is keys and values.

Requests come in lazily, completions leave as they finish. Requests of like length are prefilled together; a
prompt's keys and values are computed once and copied into one slot for each of its samples. The slots of a
cache bucket decode together and refill as samples end, so no step waits for a batch. Buckets double in size
(64, 128, 256, … positions): a sample that outgrows its bucket moves on to the next, and while requests last
every step runs with all its slots taken.

On a CPU a sample is bitwise the same alone, beside any others and after a restart, because a row's numbers
depend on the shapes of the tensors it is part of and not on the other rows, and every shape here follows from
the row alone: prefill has a number of rows and columns given by the prompt's length, decoding `slots` rows
(idle ones compute nothing of use) and the bucket size given by the length so far. Other values of `slots` or
`threads` may round otherwise. On a GPU the same code runs, but its kernels promise no such thing: samples
there agree up to rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sao.config import EngineConfig
from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    ContinuationRequest,
    Continuations,
    Failure,
    Request,
    Usage,
    cut_at,
)
from sao.engines.cache_buckets import CacheBucket, Network, Sequence
from sao.engines.continuations import score_continuations
from sao.errors import EngineError
from sao.models.chat import ChatTokenizer
from sao.models.load import load_model
from sao.models.locate import weights_identity

SMALLEST_BUCKET = 64
PREFILL_ROWS = 16
PREFILL_TOKENS = 4096
READ_AHEAD = 4
"""Requests read ahead, in multiples of the slots."""
FIRST = 32
"""Requests that are served before all others (as many as `sao.execution.drops.FIRST`)."""
TOO_LONG = 0
"""Stands for the padded length of a prompt that does not fit into the model's context."""

T = TypeVar("T", Request, ChoiceRequest)


def padded_length(length: int) -> int:
    """`length` tokens rounded up to the next of 16 steps between powers of two (never finer than 16
    tokens)."""
    step = max(16, (1 << (length - 1).bit_length()) // 16)
    return -(-length // step) * step


def prefill_rows(padded: int) -> int:
    """Rows of a prefill of `padded` columns: a function of the length alone, see the module's docstring."""
    return max(1, min(PREFILL_ROWS, PREFILL_TOKENS // padded))


def bucket_size(positions: int) -> int:
    """Positions of the smallest bucket that holds `positions`; no padded length lies across two buckets."""
    return max(SMALLEST_BUCKET, 1 << (positions - 1).bit_length())


@dataclass(slots=True)
class _Prompt(Generic[T]):
    """A request and its token ids."""

    request: T
    ids: list[int]
    choices: tuple[int, ...] = ()
    first: bool = False


class _Window(Generic[T]):
    """Prompts read ahead, grouped by padded length. Those too long for the model stand under length 0."""

    def __init__(self, prompts: Iterator[tuple[int, _Prompt[T]]], size: int) -> None:
        self._prompts: Iterator[tuple[int, _Prompt[T]]] = prompts
        self._size = size
        self._held = self._read = 0
        self.groups: dict[int, deque[tuple[int, _Prompt[T]]]] = {}

    def fill(self) -> None:
        """Read until the window is full or the prompts end."""
        while self._held < self._size and (item := next(self._prompts, None)) is not None:
            item[1].first = self._read < FIRST
            self.groups.setdefault(item[0], deque()).append((self._read, item[1]))
            self._read += 1
            self._held += 1

    def take(self, wanted: Callable[[int], bool]) -> tuple[int, list[_Prompt[T]]] | None:
        """One prefill's worth of prompts of one length: the fullest group that is `wanted`, or one
        overdue."""

        def rank(length: int) -> tuple[bool, float, int]:
            group, rows = self.groups[length], prefill_rows(length or 1)
            oldest = group[0][0]
            overdue = oldest < FIRST or self._read - oldest > 8 * self._size
            return overdue, min(1.0, len(group) / rows), -oldest

        length = max(filter(wanted, self.groups), key=rank, default=None)
        if length is None:
            return None
        group = self.groups[length]
        taken = [group.popleft()[1] for _ in range(min(len(group), prefill_rows(length or 1)))]
        if not group:
            del self.groups[length]
        self._held -= len(taken)
        return length, taken


class _Schedule:
    """Which bucket runs next. Holds the buckets of one `generate` call."""

    def __init__(self, network: Network, window: _Window[Request]) -> None:
        self.network, self.window = network, window
        self.buckets: dict[int, CacheBucket] = {}

    def step(self) -> list[Sequence] | None:
        """Run one step of one bucket; the sequences that ended, or None where there is nothing to run."""
        if (bucket := self._next_bucket()) is None:
            return None
        ended, outgrown = bucket.step()
        for sequence in outgrown:
            self._add(bucket.size * 2, sequence)
        return ended

    def _next_bucket(self) -> CacheBucket | None:
        """The largest bucket with all slots taken; once requests run short, the smallest with any (None: all
        done).

        Largest first, because samples only ever move up: so the room they need is there when they outgrow a
        bucket. But buckets with the first requests run before all others: by those it is decided whether a
        stage is worth going on with.
        """
        begun = {size for size, bucket in self.buckets.items() if bucket.serves_first()}
        waiting = {
            bucket_size(n) for n, group in self.window.groups.items() if n != TOO_LONG and group[0][1].first
        }
        for size in sorted(begun | waiting):
            self._top_up(size)
            if (bucket := self.buckets.get(size)) is not None and bucket.serves_first():
                return bucket
        sizes = {*self.buckets, *(bucket_size(length) for length in self.window.groups if length != TOO_LONG)}
        for size in sorted(sizes, reverse=True):
            self._top_up(size)
            if (bucket := self.buckets.get(size)) is not None and bucket.live.all():
                return bucket
        return next((bucket for _, bucket in sorted(self.buckets.items()) if bucket.live.any()), None)

    def _add(self, size: int, sequence: Sequence) -> None:
        if size not in self.buckets:
            self.buckets[size] = CacheBucket(self.network, size, sequence.layers)
        self.buckets[size].ready.append(sequence)

    def _top_up(self, size: int) -> None:
        """Fill the free slots of one bucket: samples that wait for it first, then new prompts."""
        while (bucket := self.buckets.get(size)) is None or not bucket.live.all():
            if bucket is not None and bucket.ready:
                bucket.refill()
            elif (taken := self.window.take(lambda n: n != TOO_LONG and bucket_size(n) == size)) is not None:
                self._prefill(size, *taken)
                self.window.fill()
            else:
                return

    def _prefill(self, size: int, padded: int, prompts: list[_Prompt[Request]]) -> None:
        """Keys and values of all but the last token of each prompt: a bucket's step takes that one and draws
        the next."""
        layers = self.network.prefill(_matrix([prompt.ids[:-1] for prompt in prompts], padded))
        for row, prompt in enumerate(prompts):
            sampling = prompt.request.sampling
            limit = min(sampling.max_tokens, self.network.context - len(prompt.ids))
            as_user = prompt.request.as_user
            if as_user and (stops := self.network.chat.user_ends[1]):
                sampling = replace(sampling, stop=(*sampling.stop, *stops))
            for sample in prompt.request.samples:
                start = (len(prompt.ids) - 1, prompt.ids[-1])
                self._add(size, Sequence(sample, sampling, limit, *start, layers, row, as_user, prompt.first))


class TransformersEngine:
    """See the module's docstring and `sao.engines.Engine`."""

    name = "transformers"
    has_logprobs = True
    has_prefill = True
    usage: Usage | None = None

    def __init__(self, model: str, config: EngineConfig, revision: str | None = None) -> None:
        """Load `model` (a hub id or a folder). Raises ModelError where it is no chat model that this engine
        can run."""
        self.identity = weights_identity(model, revision)
        self.chat = ChatTokenizer.load(model, config, revision)
        self.network = Network(load_model(model, config, revision), self.chat, config.slots)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in order of finishing.

        A prompt that leaves no room in the model's context gives an empty completion without tokens that
        finished by length; one that leaves little room gets fewer tokens than `max_tokens`.
        """
        window = self._window(requests, self._prompt, room=1)
        schedule = _Schedule(self.network, window)
        while True:
            window.fill()
            if (too_long := window.take(lambda length: length == TOO_LONG)) is not None:
                for prompt in too_long[1]:
                    yield from (Completion(sample.id, "", (), "length") for sample in prompt.request.samples)
                continue
            with self._enough_memory():
                ended = schedule.step()
            if ended is not None:
                yield from map(self._completion, ended)
            elif not window.groups:
                return

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices]:
        """One forward pass for each request, many to a batch. A prompt longer than the model's context gives
        NaN."""
        window = self._window(requests, self._choice_prompt, room=0)
        while True:
            window.fill()
            if (taken := window.take(lambda _: True)) is None:
                return
            padded, prompts = taken
            if padded == TOO_LONG:
                yield from (Choices(p.request.id, (float("nan"),) * len(p.request.choices)) for p in prompts)
            else:
                with self._enough_memory():
                    choices = self._choices(padded, prompts)
                yield from choices

    def continuation_logprobs(
        self, requests: Iterable[ContinuationRequest]
    ) -> Iterator[Continuations | Failure]:
        """One forward pass for each context, in which all its continuations are read."""
        with self._enough_memory("engine.device", "free what other programs hold, or take engine.device cpu"):
            yield from score_continuations(self.network, requests)

    def close(self) -> None:
        """Give back the model's memory."""
        del self.network
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _enough_memory(self, key: str = "engine.slots", advice: str = "") -> Iterator[None]:
        """Turns a full GPU into an EngineError that says what to do: `advice`, or to take fewer slots."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            slots = self.network.slots
            fewer = f"engine.slots is {slots}, try engine.slots={max(1, slots // 2)}"
            raise EngineError(
                f"the GPU's memory does not suffice: {advice or fewer} ({error})", key=key
            ) from error

    def _prompt(self, request: Request) -> _Prompt[Request]:
        if request.as_user:
            return _Prompt(request, self.chat.user_turn_ids(request.messages))
        return _Prompt(request, self.chat.prompt_ids(request.messages, request.prefill))

    def _choice_prompt(self, request: ChoiceRequest) -> _Prompt[ChoiceRequest]:
        return _Prompt(request, *self.chat.choice_ids(request.messages, request.choices, request.prefill))

    def _window(self, requests: Iterable[T], encode: Callable[[T], _Prompt[T]], room: int) -> _Window[T]:
        """`requests`, encoded lazily; those that leave less than `room` tokens in the context are too
        long."""

        def prompts() -> Iterator[tuple[int, _Prompt[T]]]:
            for prompt in map(encode, requests):
                fits = len(prompt.ids) + room <= self.network.context
                yield padded_length(len(prompt.ids)) if fits else TOO_LONG, prompt

        return _Window(prompts(), READ_AHEAD * self.network.slots)

    def _choices(self, padded: int, prompts: list[_Prompt[ChoiceRequest]]) -> list[Choices]:
        ids = _matrix([prompt.ids for prompt in prompts], padded)
        last = np.zeros(len(ids), np.int64)
        last[: len(prompts)] = [len(prompt.ids) - 1 for prompt in prompts]
        logprobs = self.network.last_logits(ids, last).float().log_softmax(-1).cpu()
        return [
            Choices(prompt.request.id, tuple(row[list(prompt.choices)].tolist()))
            for prompt, row in zip(prompts, logprobs, strict=False)
        ]

    def _completion(self, sequence: Sequence) -> Completion:
        """The finished sample, its text cut before the end of turn and the first stop string."""
        tokens = sequence.tokens
        ended = bool(self.network.ends[int(sequence.as_user), tokens[-1]])
        text = self.chat.decode(tokens[:-1] if ended else tokens)
        cut = cut_at(text, sequence.sampling.stop)
        return Completion(
            sequence.sample.id, text[:cut], tuple(tokens), "stop" if ended or cut is not None else "length"
        )


def _matrix(rows: list[list[int]], padded: int) -> NDArray[np.int64]:
    """Token ids padded on the right, [prefill_rows(padded), padded]; rows beyond those given are idle."""
    matrix = np.zeros((prefill_rows(padded), padded), np.int64)
    for row, ids in zip(matrix, rows, strict=False):
        row[: len(ids)] = ids
    return matrix
