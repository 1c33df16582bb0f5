"""The built-in engine's usual way: continuous batching for models whose caches are keys and values.

A prompt is read once for all its samples, and what it begins with like another one is read once for both.
Each step takes the next token of every sample under way and as much of the next prompts as it has room for,
in one forward pass without padding; where a sample ends, the next takes its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic

from sao.engines import ChoiceRequest, Choices, ContinuationRequest, Continuations, Failure, Request
from sao.engines.caches import BLOCK, Group, Pass, Prefixes, Text, group_size
from sao.engines.continuations import score_continuations
from sao.engines.network import Network
from sao.engines.samples import SampleState, T, TokenPrompt, samples_of, taken
from sao.engines.sampling import draw_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sao.models.chat import ChatTokenizer

READ_TOKENS = {"cpu": 256, "other": 4096}
"""Tokens of prompts in a step beside the samples' own, by device: enough to keep it busy."""


class Continuous:
    """A causal language model that writes and reads texts of any lengths together."""

    def __init__(self, model: PreTrainedModel, chat: ChatTokenizer, slots: int, exact: bool) -> None:
        """Raises ModelError where the model's layers keep anything but keys and values of their own, or where
        its numbers are others than by a plain forward pass."""
        self.slots = slots
        read = READ_TOKENS.get(model.device.type, READ_TOKENS["other"])
        self.network = Network(model, chat, slots + read, slots + BLOCK, exact)
        self.forget()

    def forget(self) -> None:
        """Drop what is kept of prompts for later ones that begin alike."""
        self.prefixes = Prefixes()

    def generate(self, prompts: Iterator[TokenPrompt[Request] | None]) -> Iterator[list[SampleState]]:
        """The samples of the prompts in order of ending; those of a prompt as long as the model's context
        have no tokens. None: no prompt for now."""
        writing = _Writing(self.network, self.prefixes, self.slots)
        has_more = True
        while writing.busy or has_more:
            while has_more and writing.wants():
                new, has_more = taken(prompts, 1)
                if not new:
                    break
                (prompt,) = new
                if len(prompt.ids) < self.network.context:
                    writing.add(prompt)
                else:
                    yield samples_of(prompt, self.network.chat, self.network.context)
            if writing.busy:
                yield writing.step()

    def choice_logprobs(self, prompts: Iterator[TokenPrompt[ChoiceRequest] | None]) -> Iterator[Choices]:
        """Each prompt is read once, many to a forward pass. A prompt longer than the model's context gives
        NaN."""
        reader: _Reader[ChoiceRequest] = _Reader(self.prefixes)
        has_more = True
        while has_more or len(reader):
            while has_more and len(reader) < self.slots:
                new, has_more = taken(prompts, 1)
                if not new:
                    break
                (prompt,) = new
                if len(prompt.ids) <= self.network.context:
                    reader.add(prompt, prompt.ids)
                else:
                    yield prompt.choices_of(None)
            work = self.network.work()
            read = reader.fill(work, self.network.tokens)
            if not len(work):
                continue
            logits = self.network.logits(work, [place for _, _, place in read], float32=True)
            logprobs = logits.float().log_softmax(-1).cpu()
            self.prefixes.settle()
            for (prompt, _, _), row in zip(read, logprobs, strict=True):
                yield prompt.choices_of(row)

    def continuation_logprobs(
        self, requests: Iterable[ContinuationRequest]
    ) -> Iterator[Continuations | Failure]:
        """One forward pass for each context, in which all its continuations are read."""
        yield from score_continuations(self.network, requests)


class _Reader(Generic[T]):
    """Prompts whose texts are to be read, in their order."""

    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes = prefixes
        self._waiting: deque[tuple[TokenPrompt[T], list[int]]] = deque()
        self._text: Text | None = None
        self._next = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, prompt: TokenPrompt[T], ids: list[int]) -> None:
        """Read `ids`, the beginning of `prompt`, when its turn comes."""
        self._waiting.append((prompt, ids))

    def fill(self, work: Pass, room: int) -> list[tuple[TokenPrompt[T], Text, int]]:
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
        self.ready: deque[SampleState] = deque()
        self.live: dict[int, tuple[Group, list[SampleState]]] = {}
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

    def add(self, prompt: TokenPrompt[Request]) -> None:
        """Take a prompt in: all but its last token are read, which is each sample's first step."""
        if len(prompt.ids) > 1:
            self._expected += len(prompt.request.samples)
            self.reader.add(prompt, prompt.ids[:-1])
        else:
            self.ready += samples_of(prompt, self.network.chat, self.network.context)

    def step(self) -> list[SampleState]:
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
        drawn = draw_for(logits, rows) if rows else []
        for prompt, text, _ in read:
            self._expected -= len(prompt.request.samples)
            for one in samples_of(prompt, self.network.chat, self.network.context):
                one.layers = text.layers
                self.ready.append(one)
        return self._advance(groups, drawn)

    def _place(self, sequence: SampleState) -> None:
        size = group_size(sequence.length)
        group, sequences = self.live.setdefault(size, (Group(size, self.slots), []))
        group.add(sequence.layers, sequence.length)
        sequence.layers = {}  # they are in the group now
        sequences.append(sequence)

    def _advance(self, groups: list[tuple[Group, list[SampleState]]], drawn: list[int]) -> list[SampleState]:
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
                if one.is_over(self.network.chat):
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
