"""What an engine is: requests in lazily, completions out as they finish.

An engine keeps its queue full from the iterable it is given: it may read ahead as far as it likes and answers in any
order, so there is no barrier between batches. Concurrency lives inside the engine; a stage is a plain loop. A sample
depends on its request (messages, sampling settings, its own seed) and on nothing else that happens to run beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sao.types import FinishReason

if TYPE_CHECKING:
    from sao.config import Config


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: `temperature` 0 is greedy; `top_p` is the nucleus; at most `max_tokens` new tokens; a sample also
    ends before the first of the `stop` strings."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One wanted sample of a request: the id that its completion carries, and its seed."""

    id: str
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    """A chat to continue, once for each of `samples` (all from one prefill)."""

    messages: tuple[Message, ...]
    samples: tuple[Sample, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample. `token_ids` are as sampled, the end of turn included; `text` is without it."""

    id: str
    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """A chat whose next turn begins with one of `choices`."""

    id: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """The log-probability (nats, over the whole vocabulary) of each choice's first token."""

    id: str
    logprobs: tuple[float, ...]


class Engine(Protocol):
    """Something that continues chats. `name` goes into records, `identity` into fingerprints (weights, not paths)."""

    name: str
    identity: str

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions in order of finishing, one for each sample of each request."""
        ...

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices]:
        """One forward pass for each request, in any order."""
        ...

    def close(self) -> None:
        """Give back the memory; the engine is not used afterwards."""
        ...


def open_engine(config: Config, model: str, revision: str | None = None) -> Engine:
    """The engine that `config.engine` names, with `model` (a hub id or a folder) loaded."""
    match config.engine.name:
        case "transformers":
            from sao.engines.transformers import TransformersEngine

            return TransformersEngine(model, config.engine, revision)
        case "scripted":
            from sao.engines.scripted import ScriptedEngine

            return ScriptedEngine(model)
