"""One of many engines, in a process of its own (a Ray actor): what `sao.engines.pool` talks to.

A thread loads the engine and runs it (the number of CPU threads belongs to the thread that sets it). It is
fed from a queue that the pool fills by `exchange`, which brings back what has ended since; so both directions
go in one call, and an engine that can be fed never waits for the pool between two requests.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from sao.engines import (
    ChoiceRequest,
    Choices,
    Completion,
    ContinuationEngine,
    ContinuationRequest,
    Continuations,
    Engine,
    Failure,
    FedEngine,
    Request,
)
from sao.errors import SAOError

VERSION = version("sao")
Kind = Literal["generate", "choices", "continuations"]
AnyRequest = Request | ChoiceRequest | ContinuationRequest
Answer = Completion | Choices | Continuations | Failure
SLICE = 0.5
"""Seconds after which an exchange ends though nothing has."""
LINGER = 0.25
"""Seconds for which an exchange waits, once something has ended, until a quarter of the slots has: many
answers in one message. The pool keeps as many requests waiting here as there are slots."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica runs: the machine's address, the process."""

    address: str
    pid: int


@dataclass(frozen=True, slots=True)
class About:
    """What an engine is, once it is loaded. `said`: what its user should know."""

    name: str
    identity: str
    has_logprobs: bool
    has_prefill: bool
    has_continuations: bool
    version: str
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine failed: why, and the key of the error; `is_ours`: by an error that says what to do."""

    reason: str
    key: str
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """What ended since the last exchange of a round."""

    round: int
    answers: list[Answer]
    broken: Broken | None = None


def size(request: AnyRequest) -> int:
    """Answers that a request gets."""
    return len(request.samples) if isinstance(request, Request) else 1


class Feed:
    """The requests of one round, as they come. `out` counts answers that the engine owes."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.out, self.is_over = kind, 0, False
        self._waiting: deque[AnyRequest] = deque()
        self._changed = threading.Condition()

    def put(self, requests: Sequence[AnyRequest]) -> None:
        """Add requests."""
        with self._changed:
            self._waiting.extend(requests)
            self._changed.notify()

    def end(self) -> None:
        """Nobody waits for the rest."""
        with self._changed:
            self.is_over = True
            self._waiting.clear()
            self._changed.notify()

    @property
    def rest(self) -> int:
        """Answers that are still to come, and requests that nobody has begun."""
        return self.out + len(self._waiting)

    def wait(self) -> bool:
        """Until there is a request; False where there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.is_over)
            return not self.is_over

    def now(self) -> Iterator[Any]:
        """The requests that are there."""
        while (request := self._next()) is not None:
            yield request

    def fed(self) -> Iterator[Any]:
        """The requests as they come; None while there is none and the engine has something to do."""
        while not self.is_over:
            request = self._next()
            if request is None and self.out == 0:
                if not self.wait():
                    return
                continue
            yield request

    def _next(self) -> AnyRequest | None:
        with self._changed:
            if not self._waiting:
                return None
            request = self._waiting.popleft()
            self.out += size(request)
            return request


class Replica:
    """An engine and the thread that runs it. `open_one` opens it and is given a function that takes a line
    for its user."""

    def __init__(
        self, open_one: Callable[[Callable[[str], None]], Engine], slots: int, folder: str | None = None
    ) -> None:
        """`folder`: the one in which the pool's process works, so that relative paths are the same here."""
        if folder is not None and Path(folder).is_dir():
            os.chdir(folder)
        self._open_one, self._slots = open_one, slots
        self._about: Future[About | Broken] = Future()
        self._broken: Broken | None = None
        self._round = 0
        self._feed: Feed | None = None
        self._ended: list[Answer] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def place(self) -> Place:
        """Where this is."""
        ray = importlib.import_module("ray")
        context = ray.get_runtime_context()
        node = context.get_node_id()
        address = next(one["NodeManagerAddress"] for one in ray.nodes() if one["NodeID"] == node)
        return Place(address, os.getpid())

    def load(self) -> About | Broken:
        """Load the engine."""
        if not self._thread.is_alive():
            self._thread.start()
        return self._about.result()

    def exchange(self, number: int, kind: Kind, new: Sequence[AnyRequest]) -> Ended:
        """Take the requests `new` of round `number`, and wait a moment for answers. An earlier round is
        dropped."""
        with self._changed:
            if number != self._round or self._feed is None:
                if self._feed is not None:
                    self._feed.end()
                self._round, self._feed, self._ended = number, Feed(kind), []
                self._changed.notify_all()
            self._feed.put(new)
            if self._changed.wait_for(lambda: self._ended or self._broken, SLICE):
                self._changed.wait_for(self._has_enough, LINGER)
            ended, self._ended = self._ended, []
            return Ended(number, ended, self._broken)

    def _has_enough(self) -> bool:
        """Whether what has ended is worth a message, or is all that will end."""
        rest = self._feed.rest if self._feed is not None else 0
        return bool(self._broken) or rest == 0 or 4 * len(self._ended) >= self._slots

    def close(self) -> None:
        """End the engine in order; the process is ended by Ray."""
        with self._changed:
            self._is_closed = True
            if self._feed is not None:
                self._feed.end()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        said: list[str] = []
        try:
            engine = self._open_one(said.append)
            self._about.set_result(self._describe(engine, said))
            try:
                while (feed := self._next_feed()) is not None:
                    self._serve(engine, feed)
            finally:
                engine.close()
        except BaseException as error:  # whatever it is, the pool must hear of it
            self._fail(error)

    def _describe(self, engine: Engine, said: list[str]) -> About:
        return About(
            engine.name, engine.identity, engine.has_logprobs, engine.has_prefill,
            isinstance(engine, ContinuationEngine), VERSION, tuple(said),
        )  # fmt: skip

    def _next_feed(self) -> Feed | None:
        """The newest round, once there is one that is not over; None where this is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or (self._feed and not self._feed.is_over))
            return None if self._is_closed else self._feed

    def _serve(self, engine: Engine, feed: Feed) -> None:
        """Answer the requests of one round until it is over."""
        if feed.kind != "continuations" and isinstance(engine, FedEngine) and engine.is_fed:
            fed = engine.generate if feed.kind == "generate" else engine.choice_logprobs
            self._answer(feed, fed(feed.fed()))
            return
        asked = {
            "generate": engine.generate, "choices": engine.choice_logprobs,
            "continuations": getattr(engine, "continuation_logprobs", None),
        }[feed.kind]  # fmt: skip
        assert asked is not None  # the pool asks only for what the engine has
        while feed.wait():
            self._answer(feed, asked(feed.now()))

    def _answer(self, feed: Feed, answers: Iterator[Answer]) -> None:
        for answer in answers:
            with self._changed:
                feed.out -= 1
                if feed.is_over or feed is not self._feed:
                    break
                self._ended.append(answer)
                self._changed.notify_all()
        close = getattr(answers, "close", None)
        if close is not None:
            close()  # what the engine has begun is dropped

    def _fail(self, error: BaseException) -> None:
        ours = isinstance(error, SAOError)
        reason = str(error) if ours else f"{type(error).__name__}: {' '.join(str(error).split())[:1500]}"
        key = getattr(error, "key", "") or "engine"
        broken = Broken(f"{reason} (on {socket.gethostname()})", key, ours)
        with self._changed:
            self._broken = broken
            self._changed.notify_all()
        if not self._about.done():
            self._about.set_result(broken)
