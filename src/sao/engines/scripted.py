"""An engine that follows a rule instead of a model: for tests, for trying a recipe out, and for planted
judges.

Its default rule writes prompts and answers out of the request's own seed, so it is as reproducible as a
model. Pass functions to script anything else.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    ContinuationRequest,
    Continuations,
    Request,
    Sample,
    Sampling,
    Usage,
    cut_at,
)
from sao.engines.samples import taken
from sao.records import Message

_ANSWERS = re.compile(
    r"<answer_(\w+)>\n(?P<first>.*)\n</answer_\1>.*<answer_(\w+)>\n(?P<second>.*)\n</answer_\3>"
    r"| answer 1: (?P<tiny_first>.*) answer 2: (?P<tiny_second>.*)",
    re.DOTALL,
)


_NAMED = re.compile(r'"([^"\n]{1,40}:)"')
_REPLY = "Reply:"


def default_reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
    """A text that depends on the chat and the seed alone, and begins with the marker that the chat asks for.

    Which one is told by the chat's last paragraph, where the shipped templates name it in quotation marks;
    with "Reply:" beside it a conversation is asked for. A chat about a person or persona that names none gets
    "Prompt:"; any other gets an answer.
    """
    last = messages[-1].content
    words = hashlib.blake2b(f"{seed}:{last}".encode("utf-8", "replace"), digest_size=6).hexdigest()
    markers = _NAMED.findall(last.rstrip().rpartition("\n\n")[2])
    if _REPLY in markers[1:]:
        first, second = f"Explain {words[:6]} to me.", f"Now in {int(words[6:8], 16)} words, for {words[8:]}."
        return f"{markers[0]} {first}\n{_REPLY} It is {words[::-1]}.\n{markers[0]} {second}"
    if markers and markers[0] != "Prompt:":
        return f"{markers[0]} Works with {words[:4]}, lives near {words[4:8]} and cares about {words[8:]}."
    if "{persona}" in last or "persona" in last.lower() or "person " in last.lower():
        return f"Prompt: Explain {words[:6]} in {int(words[6:8], 16)} words."
    return f"Answer {words} " + "word " * (int(words[:2], 16) % 7)


def default_choice(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
    """Log-probabilities that prefer one answer wherever it stands: each answer's worth is a hash of its
    text."""
    answers = read_answers(messages)
    gap = (
        6 * (_worth(answers[0]) - _worth(answers[1])) if answers else 6 * (_worth(messages[-1].content) - 0.5)
    )
    return (-math.log1p(math.exp(-gap)), -math.log1p(math.exp(gap)), *(-30.0 for _ in choices[2:]))


def default_continue(context: str, continuations: tuple[str, ...]) -> tuple[float, ...]:
    """Log-probabilities that are a hash of each whole text, longer continuations being less probable."""
    return tuple(-len(text) * (0.5 + _worth(context + text)) for text in continuations)


def read_answers(messages: tuple[Message, ...]) -> tuple[str, str] | None:
    """The two answers in a question by one of the shipped judging templates, None in any other."""
    found = _ANSWERS.search(messages[-1].content)
    if found is None:
        return None
    first, second = found["first"], found["second"]
    return (first, second) if first is not None else (found["tiny_first"], found["tiny_second"])


def _worth(text: str) -> float:
    """A text's worth, from 0 to 1: a hash of it."""
    return int(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest(), 16) / 2**32


@dataclass
class ScriptedEngine:
    """An engine whose words come from functions. Each completion takes `delay` seconds; `slots` of them are
    under way at once."""

    identity: str = "scripted"
    reply: Callable[[tuple[Message, ...], int, Sampling], str] = default_reply
    choose: Callable[[tuple[Message, ...], tuple[str, ...]], tuple[float, ...]] = default_choice
    go_on: Callable[[str, tuple[str, ...]], tuple[float, ...]] = default_continue
    delay: float = 0.0
    slots: int = 1
    name: str = "scripted"
    has_logprobs: bool = True
    has_prefill: bool = True
    is_fed: bool = True
    usage: Usage | None = None
    calls: int = field(default=0, init=False)

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See `sao.engines.Engine.generate` and `sao.engines.FedEngine`."""
        source, has_more = iter(requests), True
        running: deque[tuple[float, Request, Sample]] = deque()  # with the time at which each ends
        while running or has_more:
            while has_more and len(running) < self.slots:
                new, has_more = taken(source, 1)
                if not new:
                    break
                ends = time.monotonic() + self.delay
                running += [(ends, request, sample) for request in new for sample in request.samples]
            if running:
                ends, request, sample = running.popleft()
                yield self._ended(request, sample, ends)

    def choice_logprobs(self, requests: Iterable[ChoiceRequest | None]) -> Iterator[Choices]:
        """See `sao.engines.Engine.choice_logprobs` and `sao.engines.FedEngine`."""
        for request in requests:
            if request is None:
                continue
            self._wait()
            yield Choices(request.id, self.choose(request.messages, request.choices))

    def continuation_logprobs(self, requests: Iterable[ContinuationRequest]) -> Iterator[Continuations]:
        """See `sao.engines.ContinuationEngine`."""
        for request in requests:
            self._wait()
            context = request.context
            if not isinstance(context, str):
                context = "".join(f"{message.role}: {message.content}\n" for message in context)
            words = tuple(len(text.split()) + 1 for text in request.continuations)
            yield Continuations(request.id, self.go_on(context, request.continuations), words)

    def close(self) -> None:
        """Nothing to give back."""

    def _ended(self, request: Request, sample: Sample, ends: float) -> Completion:
        """A sample, when its time has come."""
        self.calls += 1
        if (left := ends - time.monotonic()) > 0:
            time.sleep(left)
        text = self.reply(request.messages, sample.seed, request.sampling).removeprefix(request.prefill)
        return Completion(sample.id, text[: cut_at(text, request.sampling.stop)], None, "stop")

    def _wait(self) -> None:
        self.calls += 1
        if self.delay:
            time.sleep(self.delay)
