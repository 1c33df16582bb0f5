"""The built-in engine: continuous batching over any transformers chat model whose cache is keys and values.

Requests come in lazily, completions leave as they finish. A prompt is read once for all its samples, and what
it begins with like another one is read once for both. Each step takes the next token of every sample under
way and as much of the next prompts as it has room for, in one forward pass without padding; where a sample
ends, the next takes its place.

On a CPU (`engine.exact`) a sample is bitwise the same alone, beside any others and after a restart: its
attention has shapes that follow from its own text alone, and the matrix products get a number of rows for
which they round each row alike (`sao.engines.network.rows_multiple`). Another number of `threads` may round
otherwise. On a GPU the same code runs, but its kernels promise no such thing: samples there agree up to
rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch

from sao.config import EngineConfig
from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    ContinuationRequest,
    Continuations,
    Failure,
    Request,
    Sample,
    Sampling,
    Usage,
    cut_at,
)
from sao.engines.caches import BLOCK, Group, Pair, Pass, Prefixes, Text, group_size
from sao.engines.continuations import score_continuations
from sao.engines.network import Network
from sao.engines.sampling import draw, uniforms
from sao.errors import EngineError
from sao.models.chat import ChatTokenizer
from sao.models.load import load_model
from sao.models.locate import weights_identity

READ_TOKENS = {"cpu": 256, "other": 4096}
"""Tokens of prompts in a step beside the samples' own, by device: enough to keep it busy."""
_STOP_SLACK = 8
"""Tokens looked at beyond a stop string's bytes (each token is at least a byte; a few may be parts of
characters)."""

T = TypeVar("T", Request, ChoiceRequest)


@dataclass(slots=True)
class _Prompt(Generic[T]):
    """A request and its token ids."""

    request: T
    ids: list[int]
    choices: tuple[int, ...] = ()


@dataclass(eq=False, slots=True)
class _Sequence:
    """A sample under way: its first `length` tokens are in `layers` or in its group, `token` comes next."""

    sample: Sample
    sampling: Sampling
    limit: int
    as_user: bool
    length: int
    token: int
    layers: dict[int, Pair]
    tokens: list[int] = field(default_factory=list)


class _Reader(Generic[T]):
    """Prompts whose texts are to be read, in their order."""

    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self._waiting: deque[tuple[_Prompt[T], list[int]]] = deque()
        self._text: Text | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, prompt: _Prompt[T], ids: list[int]) -> None:
        """Read `ids`, the beginning of `prompt`, when its turn comes."""
        self._waiting.append((prompt, ids))

    def fill(self, work: Pass, room: int) -> list[tuple[_Prompt[T], Text, int]]:
        """Put about `room` tokens into a pass; the prompts whose last token is in it, and its place. What a
        prompt shares with an earlier one is not read again, but its last token is."""
        read = []
        while self._waiting and room > 0:
            prompt, ids = self._waiting[0]
            if self._text is None:
                source, self._next = self.prefixes.find(ids[:-1], work)
                self._text = Text(ids, source, self._next)
            start, text = self._next, self._text
            self._next = work.read(text, start, room)
            room -= self._next - start
            if self._next < len(ids):
                break
            self.prefixes.add(text)
            self._waiting.popleft()
            self._text = None
            read.append((prompt, text, len(work) - 1))
        return read


class _Writing:
    """One `generate` call: prompts to be read, samples that wait for a slot, and samples that are written."""

    def __init__(self, network: Network, prefixes: Prefixes, slots: int) -> None:
        self.network, self.slots = network, slots
        self.reader: _Reader[Request] = _Reader(prefixes)
        self.ready: deque[_Sequence] = deque()
        self.live: dict[int, tuple[Group, list[_Sequence]]] = {}
        self._expected = 0

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.ready or len(self.reader) or self._count())

    def _count(self) -> int:
        return sum(len(sequences) for _, sequences in self.live.values())

    def wants(self) -> bool:
        """Whether a further prompt can be taken in: some slot would be free."""
        return self._count() + len(self.ready) + self._expected < self.slots

    def add(self, prompt: _Prompt[Request]) -> None:
        """Take a prompt in: all but its last token are read, which is each sample's first step."""
        if len(prompt.ids) > 1:
            self._expected += len(prompt.request.samples)
            self.reader.add(prompt, prompt.ids[:-1])
        else:
            self._begin(prompt, {})

    def _begin(self, prompt: _Prompt[Request], layers: dict[int, Pair]) -> None:
        sampling, as_user = prompt.request.sampling, prompt.request.as_user
        if as_user and (stops := self.network.chat.user_ends[1]):
            sampling = replace(sampling, stop=(*sampling.stop, *stops))
        limit = min(sampling.max_tokens, self.network.context - len(prompt.ids))
        start = len(prompt.ids) - 1
        for sample in prompt.request.samples:
            self.ready.append(_Sequence(sample, sampling, limit, as_user, start, prompt.ids[-1], layers))

    def step(self) -> list[_Sequence]:
        """One forward pass: every sample in a slot gets its next token, and prompts are read on. The samples
        that ended."""
        free = self.slots - self._count()
        for _ in range(min(free, len(self.ready))):
            self._place(self.ready.popleft())
        work = self.network.work()
        groups = [self.live[size] for size in sorted(self.live)]
        for group, sequences in groups:
            work.rows(group, [one.token for one in sequences], [one.length for one in sequences])
        rows = [one for _, sequences in groups for one in sequences]
        read = self.reader.fill(work, self.network.tokens - len(rows))
        logits = self.network.logits(work, list(range(len(rows))))
        self.reader.prefixes.settle()
        drawn = self._draw(rows, logits) if rows else []
        for prompt, text, _ in read:
            self._expected -= len(prompt.request.samples)
            self._begin(prompt, text.layers)
        return self._advance(groups, drawn)

    def _place(self, sequence: _Sequence) -> None:
        size = group_size(sequence.length)
        group, sequences = self.live.setdefault(size, (Group(size, self.slots), []))
        group.add(sequence.layers, sequence.length)
        sequence.layers = {}  # they are in the group now
        sequences.append(sequence)

    def _draw(self, rows: list[_Sequence], logits: torch.Tensor) -> list[int]:
        steps = np.array([len(one.tokens) for one in rows], np.int64)
        seeds = np.array([one.sample.seed % 2**64 for one in rows], np.uint64)
        settings = (
            np.array([one.sampling.temperature for one in rows], np.float64),
            np.array([one.sampling.top_p for one in rows], np.float64),
            uniforms(seeds, steps),
        )
        drawn: list[int] = draw(logits, *map(self.network.tensor, settings)).tolist()
        return drawn

    def _advance(self, groups: list[tuple[Group, list[_Sequence]]], drawn: list[int]) -> list[_Sequence]:
        """Give each row its token; those that ended leave, those that outgrew their group move on."""
        ended, last = [], len(drawn)
        for group, sequences in reversed(groups):  # the largest first, since samples move to larger ones
            tokens = drawn[last - len(sequences) : last]
            last -= len(sequences)
            # From the last row on: where a row leaves, the last one, done with, takes its place.
            for row in range(len(sequences) - 1, -1, -1):
                one = sequences[row]
                one.tokens.append(tokens[row])
                one.token, one.length = tokens[row], one.length + 1
                if self._is_over(one):
                    ended.append(one)
                elif one.length >= group.size:
                    one.layers = group.row(row)
                    self._place(one)
                else:
                    continue
                group.remove(row)
                sequences[row] = sequences[-1]
                sequences.pop()
        self.live = {size: pair for size, pair in self.live.items() if pair[1]}
        return ended

    def _is_over(self, one: _Sequence) -> bool:
        """Whether a sample ends with its newest token: an end of turn, its limit or a stop string."""
        if one.token in self.network.ends[one.as_user] or len(one.tokens) >= one.limit:
            return True
        if not (stops := one.sampling.stop):
            return False
        tail = max(len(stop.encode()) for stop in stops) + _STOP_SLACK
        text = self.network.chat.decode(one.tokens[-tail:])
        return any(stop in text for stop in stops)


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
        self.slots = config.slots
        loaded = load_model(model, config, revision)
        kind = loaded.device.type
        exact = kind == "cpu" if config.exact is None else config.exact
        read = READ_TOKENS.get(kind, READ_TOKENS["other"])
        self.network = Network(loaded, self.chat, config.slots + read, config.slots + BLOCK, exact)
        self.prefixes = Prefixes()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in order of finishing.

        A prompt that leaves no room in the model's context gives an empty completion without tokens that
        finished by length; one that leaves little room gets fewer tokens than `max_tokens`.
        """
        prompts = map(self._prompt, requests)
        writing = _Writing(self.network, self.prefixes, self.slots)
        while True:
            while writing.wants() and (prompt := next(prompts, None)) is not None:
                if len(prompt.ids) < self.network.context:
                    writing.add(prompt)
                else:
                    yield from (Completion(one.id, "", (), "length") for one in prompt.request.samples)
            if not writing.busy:
                return
            with self._enough_memory():
                ended = writing.step()
            yield from map(self._completion, ended)

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices]:
        """Each prompt is read once, many to a forward pass. A prompt longer than the model's context gives
        NaN."""
        prompts = map(self._choice_prompt, requests)
        reader: _Reader[ChoiceRequest] = _Reader(self.prefixes)
        waiting = True
        while waiting or len(reader):
            while waiting and len(reader) < self.slots:
                prompt = next(prompts, None)
                if prompt is None:
                    waiting = False
                elif len(prompt.ids) <= self.network.context:
                    reader.add(prompt, prompt.ids)
                else:
                    yield Choices(prompt.request.id, (float("nan"),) * len(prompt.request.choices))
            work = self.network.work()
            read = reader.fill(work, self.network.tokens)
            if not len(work):
                continue
            with self._enough_memory():
                logits = self.network.logits(work, [place for _, _, place in read], float32=True)
                logprobs = logits.float().log_softmax(-1).cpu()
            self.prefixes.settle()
            for (prompt, _, _), row in zip(read, logprobs, strict=True):
                yield Choices(prompt.request.id, tuple(row[list(prompt.choices)].tolist()))

    def continuation_logprobs(
        self, requests: Iterable[ContinuationRequest]
    ) -> Iterator[Continuations | Failure]:
        """One forward pass for each context, in which all its continuations are read."""
        with self._enough_memory("engine.device", "free what other programs hold, or take engine.device cpu"):
            yield from score_continuations(self.network, requests)

    def close(self) -> None:
        """Give back the model's memory."""
        del self.network, self.prefixes
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _enough_memory(self, key: str = "engine.slots", advice: str = "") -> Iterator[None]:
        """Turns a full GPU into an EngineError that says what to do: `advice`, or to take fewer slots."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            fewer = f"engine.slots is {self.slots}, try engine.slots={max(1, self.slots // 2)}"
            raise EngineError(
                f"the GPU's memory does not suffice: {advice or fewer} ({error})", key=key
            ) from error

    def _prompt(self, request: Request) -> _Prompt[Request]:
        if request.as_user:
            return _Prompt(request, self.chat.user_turn_ids(request.messages))
        return _Prompt(request, self.chat.prompt_ids(request.messages, request.prefill))

    def _choice_prompt(self, request: ChoiceRequest) -> _Prompt[ChoiceRequest]:
        return _Prompt(request, *self.chat.choice_ids(request.messages, request.choices, request.prefill))

    def _completion(self, sequence: _Sequence) -> Completion:
        """The finished sample, its text cut before the end of turn and the first stop string."""
        tokens = sequence.tokens
        ended = tokens[-1] in self.network.ends[sequence.as_user]
        text = self.chat.decode(tokens[:-1] if ended else tokens)
        cut = cut_at(text, sequence.sampling.stop)
        return Completion(
            sequence.sample.id, text[:cut], tuple(tokens), "stop" if ended or cut is not None else "length"
        )
