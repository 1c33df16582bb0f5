"""An engine that follows a rule instead of a model: for tests, for trying a recipe out, and for planted judges.

Its default rule writes prompts and answers out of the request's own seed, so it is as reproducible as a model. Pass
functions to script anything else.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sao.engines import ChoiceRequest, Choices, Completion, Message, Request, Sampling, Usage, cut_at


def default_reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
    """A line that depends on the chat and the seed alone. It begins with both markers that the stages look for."""
    last = messages[-1].content
    words = hashlib.blake2b(f"{seed}:{last}".encode("utf-8", "replace"), digest_size=6).hexdigest()
    if "{persona}" in last or "persona" in last.lower() or "person " in last.lower():
        return f"Prompt: Explain {words[:6]} in {int(words[6:8], 16)} words."
    return f"Answer {words} " + "word " * (int(words[:2], 16) % 7)


def default_choice(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
    """Log-probabilities that prefer one answer wherever it stands: each answer's worth is a hash of its text."""
    text = messages[-1].content
    worth = int(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest(), 16) / 2**32
    first = 0.05 + 0.9 * worth
    return (math.log(first), math.log1p(-first), *(-30.0 for _ in choices[2:]))


@dataclass
class ScriptedEngine:
    """An engine whose words come from two functions. `delay` seconds pass before each completion."""

    identity: str = "scripted"
    reply: Callable[[tuple[Message, ...], int, Sampling], str] = default_reply
    choose: Callable[[tuple[Message, ...], tuple[str, ...]], tuple[float, ...]] = default_choice
    delay: float = 0.0
    name: str = "scripted"
    has_logprobs: bool = True
    usage: Usage | None = None
    calls: int = field(default=0, init=False)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `sao.engines.Engine.generate`."""
        for request in requests:
            for sample in request.samples:
                self._wait()
                text = self.reply(request.messages, sample.seed, request.sampling)
                yield Completion(sample.id, text[: cut_at(text, request.sampling.stop)], None, "stop")

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices]:
        """See `sao.engines.Engine.choice_logprobs`."""
        for request in requests:
            self._wait()
            yield Choices(request.id, self.choose(request.messages, request.choices))

    def close(self) -> None:
        """Nothing to give back."""

    def _wait(self) -> None:
        self.calls += 1
        if self.delay:
            time.sleep(self.delay)
