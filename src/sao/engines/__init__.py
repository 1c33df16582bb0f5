"""What an engine is: requests in lazily, completions out as they finish.

An engine keeps its queue full from the iterable it is given: it may read ahead as far as it likes and answers
in any order, so there is no barrier between batches. Concurrency lives inside the engine; a stage is a plain
loop. A sample depends on its request (messages, sampling settings, its own seed) and on nothing else that
happens to run beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from sao.errors import EngineError
from sao.records import KEPT_TEXT, Drop, FinishReason, Message

if TYPE_CHECKING:
    from sao.config import ChatConfig, EngineConfig, RayConfig
    from sao.models.chat import ChatTokenizer


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: `temperature` 0 is greedy; `top_p` is the nucleus; at most `max_tokens` new tokens; a
    sample also ends before the first of the `stop` strings. `one_of` is a wish: where it can, the engine
    writes one of these texts."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One wanted sample of a request: the id that its completion carries, and its seed."""

    id: str
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    """A chat to continue, once for each of `samples` (all from one prefill of the cache).

    `prefill` is the beginning of the reply, which the engine goes on from and which is not in the
    completion's text. With `as_user` the model writes the user's next turn instead of a reply. Both need an
    engine that `has_prefill`.
    """

    messages: tuple[Message, ...]
    samples: tuple[Sample, ...]
    sampling: Sampling
    prefill: str = ""
    as_user: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sample. `token_ids` are as sampled, the end of turn included; `text` is without it."""

    id: str
    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: FinishReason
    reasoning: str = ""
    """What the model thought before the answer, which `text` is without."""


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """A chat whose next turn begins with `prefill` and then one of `choices`."""

    id: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Choices:
    """The log-probability (nats, over the whole vocabulary) of the token by which each choice begins."""

    id: str
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ContinuationRequest:
    """A plain text, outside any chat, and the texts that may follow it; or the messages of a chat, and whole
    replies to them."""

    id: str
    context: str | tuple[Message, ...]
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Continuations:
    """The log-probability (nats) of each continuation after the context, the sum over its tokens, and how
    many tokens it has, a reply's end of turn among them."""

    id: str
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample or a choice that the engine could not get, and why; the other requests went on."""

    id: str
    reason: str


@dataclass(slots=True)
class Usage:
    """What an engine was asked so far, where it counts that: HTTP requests, those of them that failed and
    were sent again, and the tokens that the server reports."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def completed(
    chat: ChatTokenizer,
    sample_id: str,
    ids: Sequence[int],
    as_user: bool,
    stops: Sequence[str],
    stopped: bool,
) -> Completion:
    """A finished sample from its token ids: the text without the end of turn, cut before the first stop
    string, and apart from it what the model thought. `stopped`: the engine says that it did not end by
    length."""
    ended = bool(ids) and ids[-1] in chat.ends(as_user)
    reply = chat.read(ids[:-1] if ended else ids, as_user)
    cut = cut_at(reply.text, stops)
    finish: FinishReason = "stop" if stopped or ended or cut is not None else "length"
    return Completion(
        sample_id, reply.text[:cut], tuple(ids) if reply.kept else None, finish, reply.reasoning
    )


def cut_at(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins in `text`, None where there is none."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def read_marked(completion: Completion | Failure, marker: str, prefill: str = "") -> tuple[str, str]:
    """What follows the marker with which a text (`prefill` and what was written) must begin, or "" and why
    there is nothing."""
    if isinstance(completion, Failure):
        return "", completion.reason
    text = (prefill + completion.text).strip()
    if not text.casefold().startswith(marker.casefold()):
        return "", "no marker" if text else "empty"
    if completion.finish_reason == "length":
        return "", "cut off at max_tokens"
    text = text[len(marker) :].strip()
    return (text, "") if text else ("", "empty")


def dropped(completion: Completion | Failure, row: int, stage: str, reason: str, prefill: str = "") -> Drop:
    """The Drop of what could not be used, with what was written (`prefill` before it), so that a person can
    see why."""
    text = None if isinstance(completion, Failure) else (prefill + completion.text)[:KEPT_TEXT]
    return Drop(row=row, stage=stage, record_id=completion.id, reason=reason, text=text)


class Engine(Protocol):
    """Something that continues chats. `name` goes into records, `identity` into fingerprints (weights, not
    paths).

    `has_logprobs` says whether `choice_logprobs` can be asked, `has_prefill` whether requests may begin the
    reply or leave the user's turn open; `usage` is None where nothing is counted.
    """

    name: str
    identity: str
    has_logprobs: bool

    @property
    def has_prefill(self) -> bool: ...

    usage: Usage | None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        """Completions in order of finishing, one for each sample of each request."""
        ...

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices | Failure]:
        """One forward pass for each request, in any order."""
        ...

    def close(self) -> None:
        """Give back the memory; the engine is not used afterwards."""
        ...


@runtime_checkable
class ContinuationEngine(Protocol):
    """An engine that also says how probable a text is after another, or a reply in a chat. The built-in one
    does."""

    def continuation_logprobs(
        self, requests: Iterable[ContinuationRequest]
    ) -> Iterator[Continuations | Failure]:
        """The log-probabilities of each request's continuations, in any order."""
        ...


@runtime_checkable
class FedEngine(Protocol):
    """An engine that can be fed while it works: where `is_fed`, None among its requests says that there is
    none for now. The engine goes on with what it has and asks again; the caller lets it wait for the next
    request only when it has nothing left to do."""

    is_fed: bool

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Failure]:
        """As `Engine.generate`."""
        ...

    def choice_logprobs(self, requests: Iterable[ChoiceRequest | None]) -> Iterator[Choices | Failure]:
        """As `Engine.choice_logprobs`."""
        ...


Phase = Literal["waiting", "loading", "working"]
"""A replica waits for room on a machine, loads its model, works."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica of an engine: its number, what it does, where it runs (None: nowhere yet), the answers that
    it gave, and how many a second."""

    number: int
    phase: Phase
    address: str | None
    pid: int | None
    done: int
    rate: float


@runtime_checkable
class ReplicatedEngine(Protocol):
    """An engine that is many."""

    def replicas(self) -> list[ReplicaState]:
        """What each of them does."""
        ...


def require_continuations(engine: Engine) -> ContinuationEngine:
    """The engine, as one that says how probable texts are. Raises EngineError where it is none."""
    if not isinstance(engine, ContinuationEngine):
        raise no_continuations(engine.name)
    return engine


def no_continuations(name: str) -> EngineError:
    """The error of an engine that is no ContinuationEngine."""
    return EngineError(
        f"engine {name} cannot say how probable a text is: give --engine.name transformers",
        key="engine.name",
    )


def require_prefill(engine: Engine, where: str) -> None:
    """Raise EngineError where an engine cannot go on from a turn that has begun."""
    if not engine.has_prefill:
        raise EngineError(
            f"{where}: cannot go on from a turn that has begun (prompts.prefill, prompts.method user_turn, "
            "judging.prefill). That needs POST /v1/completions with token ids, as vLLM has it, and the "
            "model's folder here as its name, for the chat template. Else take prompts.method instruct, and "
            "no prefill",
            key="prefill",
        )


def replicas_of(config: EngineConfig, ray: RayConfig | None) -> int | Literal["auto"]:
    """How many engines work side by side: where a cluster is named, as many as it has room for. A server is
    asked by one."""
    if config.replicas is None and ray is not None and ray.address is not None and config.name != "openai":
        return "auto"
    return config.replicas or 1


def open_engine(
    config: EngineConfig,
    model: str,
    revision: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
    chat: ChatConfig | None = None,
    ray: RayConfig | None = None,
) -> Engine:
    """The engine that `config` names, with `model` (a hub id, a folder, or a name on a server) loaded; with
    `engine.replicas` many of them. `notify` gets what its user should know while it works; `chat` says how
    chats with this model are written, `ray` where replicas run."""
    replicas = replicas_of(config, ray)
    if replicas != 1:
        from sao.engines.pool import pool_of

        config = config.model_copy(update={"replicas": replicas})
        return pool_of(config, model, revision, notify, chat, ray)
    if config.name == "auto":
        from sao.engines.auto import choose

        config, _ = choose(config, model, revision)
    match config.name:
        case "transformers":
            from sao.engines.transformers import TransformersEngine

            return TransformersEngine(model, config, revision, notify, chat)
        case "vllm":
            from sao.engines.vllm import VllmEngine

            return VllmEngine(model, config, revision, chat)
        case "openai":
            from sao.engines.openai import OpenAIEngine

            return OpenAIEngine(model, config, revision, notify, chat)
        case _:
            from sao.engines.scripted import ScriptedEngine

            return ScriptedEngine(model)
