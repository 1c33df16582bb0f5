"""Many HTTP requests at once against one server that may refuse, stall, answer nonsense, or be gone for a
while.

`Client.stream` takes calls as they are asked for and gives their results in order of finishing. An event loop
in a thread of its own keeps as many calls in flight as the server bears (`sao.engines.flow_control`): the
number grows while it answers and shrinks when it says that it is too much (429, 503, or no answer in time).
What fails for a reason that may pass is sent again, after a growing, jittered pause or the one that the
server asks for (Retry-After, RFC 9110 section 10.2.3).
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sao.config import OpenAIConfig
from sao.engines import Usage
from sao.engines.flow_control import Pace, Rate, Window
from sao.engines.json_http import BadAnswerError, FailedError, JsonHttp, RefusedError
from sao.errors import EngineError

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 60.0
"""Seconds between two tries: at first, doubled with each, and at most."""
OPTIONAL_TRIES = 3
OUTAGE_SECONDS = 10.0
"""Seconds without a good answer after which the user is told."""
MOST_TOKENS = 2**31
"""Counts of tokens beyond this are not believed."""

R = TypeVar("R")


@dataclass(slots=True)
class Call(Generic[R]):
    """One request. `read` turns the answer into a result or raises BadAnswerError. `refused` says what
    becomes of it when the server refuses it: a result, or a Call to send in its place. `given_up` gives the
    result when it failed more than `retries` times (None: engine.openai.retries) while the server answers
    others."""

    body: dict[str, Any]
    tokens: int
    read: Callable[[dict[str, Any]], R]
    refused: Callable[[RefusedError], R | Call[R]]
    given_up: Callable[[str], R]
    retries: int | None = None
    path: str = "/chat/completions"


class Client:
    """A connection to one server, with its own thread. Raises EngineError where the server is gone or will
    have none of us."""

    def __init__(self, config: OpenAIConfig, key: str | None, notify: Callable[[str], None]) -> None:
        self.config, self.notify, self.usage = config, notify, Usage()
        self._http = JsonHttp(config, key)
        self.url, self.where = self._http.url, self._http.where
        self._window = Window(config.max_concurrency)
        self._requests, self._tokens = Pace(config.requests_per_minute), Pace(config.tokens_per_minute)
        self._last_answer = time.monotonic()
        """When the server last gave a good answer (or a stream began)."""
        self._outage_told = False
        """Whether the user knows of the present outage."""
        self._health_check: Call[Any] | None = None
        """The first call that was answered: a short one, by which a server shows that it is alive."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sao-client", daemon=True)
        self._thread.start()

    def stream(self, pull: Callable[[], Call[R] | None]) -> Iterator[R]:
        """Results in order of finishing. `pull` gives the next call, None where there is none for now: it is
        asked again after each result, until none is in flight. Where the server fails for good, what had come
        by then is given out first."""
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        tasks: set[asyncio.Task[None]] = set()
        ahead, pending = 2 * self.config.max_concurrency, 0
        rate = Rate(self.config.min_rows_per_minute, self.notify)
        self._last_answer = time.monotonic()
        self._window.begin()

        try:
            while True:
                while pending < ahead and (call := pull()) is not None:
                    self._loop.call_soon_threadsafe(self._start, call, results, tasks)
                    pending += 1
                if not pending:
                    return
                try:
                    result = results.get(timeout=1.0)
                except queue.Empty:
                    rate.check()
                    continue
                pending -= 1
                if isinstance(result, Exception):
                    yield from _waiting_results(results)
                    raise result
                rate.row()
                rate.check()
                yield result
        finally:
            # A loop that has ended means that the client was closed before, with all that was in flight.
            if pending and self._loop.is_running():
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

    def get(self, url: str) -> Any:
        """The JSON at `url`, None where the server knows no such address, forbids it, or has something else
        there (a web page, say). Waits for a server that is not up yet."""
        return self._once("GET", url, None)

    def post(self, url: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The same by POST, an object; None too where the server refuses it."""
        answer: dict[str, Any] | None = self._once("POST", url, body)
        return answer

    def close(self) -> None:
        """End the thread and the connections."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._http.close()

        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(timeout=30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=30)
            self._loop.close()

    def _once(self, method: str, url: str, body: dict[str, Any] | None) -> Any:
        async def ask() -> Any:
            failures = 0
            while True:
                try:
                    answer = await self._try(method, url, body, optional=True)
                except RefusedError:
                    return None
                except (FailedError, BadAnswerError) as fault:
                    failures += 1
                    starts_up = isinstance(fault, FailedError) and (fault.overload or not fault.status)
                    if failures == OPTIONAL_TRIES and not starts_up:
                        return None
                    await self._back_off(fault, failures)
                else:
                    self._last_answer = time.monotonic()
                    return answer

        self._last_answer = time.monotonic()
        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()

    # On the event loop's thread.

    def _start(self, call: Call[R], results: queue.SimpleQueue[Any], tasks: set[asyncio.Task[None]]) -> None:
        task = self._loop.create_task(self._deliver(call, results))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _deliver(self, call: Call[R], results: queue.SimpleQueue[Any]) -> None:
        """One call to its end, whatever that is."""
        try:
            results.put(await self._finish(call))
        except Exception as error:
            results.put(error)  # raised again where the stream is read

    async def _finish(self, call: Call[R]) -> R:
        """Send until there is a good answer, a refusal, or no more patience."""
        began, failures = time.monotonic(), 0
        while True:
            try:
                return await self._send(call, again=failures > 0)
            except RefusedError as error:
                instead = call.refused(error)
                if not isinstance(instead, Call):
                    return instead
                call = instead
            except (FailedError, BadAnswerError) as fault:
                failures += 1
                exhausted = failures > (self.config.retries if call.retries is None else call.retries)
                if exhausted and (self._last_answer > began or await self._is_alive()):
                    # Others are answered, this one never: it is dropped, so that the run comes to its end.
                    return call.given_up(str(fault))
                await self._back_off(fault, failures)

    async def _send(self, call: Call[R], again: bool) -> R:
        """One try, within the window and the rates."""
        await self._window.enter(again)
        try:
            await self._requests.take(1)
            await self._tokens.take(call.tokens)
            answer = await self._try("POST", self.url + call.path, call.body)
            result = _read(call, answer)
            self._count_tokens(call, answer)
            self._last_answer, self._outage_told = time.monotonic(), False
            self._health_check = self._health_check or call
            self._window.answered()
            return result
        except FailedError as fault:
            if fault.overload:
                self._window.refused()
            raise
        finally:
            self._window.leave()

    async def _try(self, method: str, url: str, body: dict[str, Any] | None, optional: bool = False) -> Any:
        self.usage.requests += 1
        return await self._http.request(method, url, body, optional)

    def _count_tokens(self, call: Call[R], answer: dict[str, Any]) -> None:
        usage = answer.get("usage")

        def reported(key: str) -> int:
            count = usage.get(key) if isinstance(usage, dict) else None
            return count if isinstance(count, int) and 0 <= count < MOST_TOKENS else 0

        prompt, completion = reported("prompt_tokens"), reported("completion_tokens")
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += completion
        if prompt:
            self._tokens.correct(prompt + completion - call.tokens)

    async def _back_off(self, fault: Exception, failures: int) -> None:
        """Pause before the next try. Raises EngineError where the server has not answered for too long."""
        self.usage.retries += 1
        patience = self.config.patience
        silent = time.monotonic() - self._last_answer
        wait = fault.wait if isinstance(fault, FailedError) else 0.0
        if silent > patience >= wait and await self._is_alive():
            silent = 0.0
        self._check_patience(fault, silent, wait)
        if wait:
            self._window.closed_until = max(self._window.closed_until, time.monotonic() + wait)
        longest = min(LONGEST_PAUSE, patience / 4)
        pause = min(longest, FIRST_PAUSE * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)
        await asyncio.sleep(max(pause, wait))

    def _check_patience(self, fault: Exception, silent: float, wait: float) -> None:
        """Tell the user of an outage. Raises EngineError where the server was `silent`, or asks to `wait`,
        for more seconds than engine.openai.patience."""
        patience = self.config.patience
        if max(silent, wait) > patience:
            asks_to_wait = f"it asks to wait {wait:.0f} s"
            why = asks_to_wait if wait > patience else f"no good answer for {silent:.0f} s"
            raise EngineError(
                f"{self.where}: {why} (last: {fault}), longer than engine.openai.patience = {patience:g} s. "
                "All that was finished is kept: see to the server and run the same command again",
                key="engine.openai.patience",
            )
        if max(silent, wait) > OUTAGE_SECONDS and not self._outage_told:
            self._outage_told = True
            self.notify(
                f"{self.where}: no good answer for {silent:.0f} s ({fault}); trying on for {patience:g} s"
            )

    async def _is_alive(self) -> bool:
        """Whether a short request is answered: then those that fail are odd ones out, or the others just take
        long."""
        call = self._health_check
        if call is None:
            return False
        try:
            async with asyncio.timeout(self.config.patience):
                _read(call, await self._try("POST", self.url + call.path, call.body))
        except (TimeoutError, FailedError, BadAnswerError, RefusedError):
            return False
        self._last_answer = time.monotonic()
        return True


def _read(call: Call[R], answer: dict[str, Any]) -> R:
    """The call's result; an answer of another shape than the call expects is a bad one."""
    try:
        return call.read(answer)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BadAnswerError(f"an answer of another shape: {type(error).__name__}: {error}") from error


def _waiting_results(results: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """The good results that have come already."""
    while not results.empty():
        if not isinstance(result := results.get(), Exception):
            yield result
