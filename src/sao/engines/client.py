"""Many HTTP requests at once against one server that may refuse, stall, answer nonsense, or be gone for a
while.

`Client.stream` takes calls as they are asked for and gives their results in order of finishing. An event loop
in a thread of its
own keeps as many calls in flight as the server bears: the number grows while it answers and shrinks when it
says that it is too much (429, 503, or no answer in time), as TCP's window does. What fails for a reason that
may pass is sent again, after a growing, jittered pause or the one that the server asks for (Retry-After, RFC
9110 section 10.2.3).
"""

from __future__ import annotations

import asyncio
import json
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx

from sao.config import OpenAIConfig
from sao.engines import Usage
from sao.errors import EngineError

FIRST_WINDOW = 64
"""Requests in flight at first; the window doubles with each round of answers until the first refusal."""
SHRINK, TOLERATED = 0.7, 0.2
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 60.0
CONNECT_SECONDS = 30.0
OPTIONAL_TRIES = 3
RATE_SECONDS, OUTAGE_SECONDS = 60.0, 10.0
TOO_MUCH = {408, 429, 503, 504}
"""Statuses by which a server says that it is asked too much at once; 529 and others above 500 are retried all
the same."""
FATAL = {401, 402, 403, 404, 405, 410}

R = TypeVar("R")


class BadAnswerError(Exception):
    """An answer that is not what was asked for, such as broken JSON; asked for again."""


class RefusedError(Exception):
    """The server refuses this one request (HTTP 400, 413, 422): sent again it would be refused again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message = status, message


class _FailedError(Exception):
    """A try that failed for a reason that may pass. `wait` is the server's Retry-After, in seconds."""

    def __init__(self, reason: str, overload: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.overload, self.wait = overload, wait


@dataclass(slots=True)
class Call(Generic[R]):
    """One request. `read` turns the answer into a result or raises BadAnswerError; `refused` says what
    becomes of it when the
    server refuses it: a result, or a Call to send in its place; `given_up` what, when it failed too often,
    which is more often than `retries` (None: engine.openai.retries) while the server answers others."""

    body: dict[str, Any]
    tokens: int
    read: Callable[[dict[str, Any]], R]
    refused: Callable[[RefusedError], R | Call[R]]
    given_up: Callable[[str], R]
    retries: int | None = None
    path: str = "/chat/completions"


class Window:
    """How many requests may be in flight: AIMD, as in TCP (RFC 5681), but judged by rounds of as many answers
    as fit into the window, since a refusal now and then is no congestion.

    It grows by 1 for each answer (so it doubles with each round) up to the size that was last too much, then
    by 1 for each round. After a round in which more than `TOLERATED` of the requests were refused it shrinks
    to × 0.7.
    """

    def __init__(self, most: int) -> None:
        self.most, self.running, self.closed_until = most, 0, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.begin()

    def begin(self) -> None:
        """Start anew: a stage's requests may be longer than those before."""
        self.size = float(min(self.most, FIRST_WINDOW))
        self._too_much = float(self.most)
        self._seen = self._refused = 0

    async def enter(self, again: bool = False) -> None:
        """Wait for a place; a request that is sent `again` goes first."""
        while True:
            while (pause := self.closed_until - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            if self.running < int(self.size):
                self.running += 1
                return
            await self._wait(again)
            if self.closed_until <= time.monotonic():
                return
            self.leave()  # closed while it waited

    async def _wait(self, again: bool) -> None:
        """Wait until `leave` gives a place away."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # the place was given just before
            raise

    def leave(self) -> None:
        """Give the place to the next."""
        self.running -= 1
        while self._waiting and self.running < int(self.size):
            if not (place := self._waiting.popleft()).done():
                self.running += 1
                place.set_result(None)

    def answered(self) -> None:
        """The server kept up; grow where the window was the limit."""
        if self.running >= int(self.size):
            self.size = min(self.most, self.size + (1.0 if self.size < self._too_much else 1 / self.size))
        self._count(0)

    def refused(self) -> None:
        """The server said that it was too much."""
        self._count(1)

    def _count(self, refused: int) -> None:
        self._seen += 1
        self._refused += refused
        if self._seen >= self.size:
            if self._refused > TOLERATED * self._seen:
                self.size = self._too_much = max(1.0, self.size * SHRINK)
            self._seen = self._refused = 0


class Pace:
    """Spreads an amount evenly over each minute."""

    def __init__(self, per_minute: float | None) -> None:
        self.seconds = 60 / per_minute if per_minute else 0.0
        self._free = 0.0

    async def take(self, amount: float) -> None:
        """Wait until `amount` more may be used."""
        now = time.monotonic()
        start = max(now, self._free)
        self._free = start + amount * self.seconds
        if start > now:
            await asyncio.sleep(start - now)

    def correct(self, amount: float) -> None:
        """Add what was used beyond the amount taken (negative: less)."""
        self._free += amount * self.seconds


class Rate:
    """Answers in a minute. Says so once where they fall to a tenth of the best minute, raises EngineError
    below `least`."""

    def __init__(self, least: float, notify: Callable[[str], None]) -> None:
        self.least, self.notify = least, notify
        self._start, self._count, self._best, self._low, self._warned = time.monotonic(), 0, 0, 0, False

    def row(self) -> None:
        """One more answer."""
        self._count += 1

    def check(self) -> None:
        """To be called every second or so."""
        now = time.monotonic()
        if now - self._start < RATE_SECONDS:
            return
        count, self._count, self._start = self._count, 0, now
        self._low = self._low + 1 if count < self.least else 0
        if self._low >= 2:
            raise EngineError(
                f"fewer than engine.openai.min_rows_per_minute = {self.least:g} answers in each of the last "
                "two minutes "
                f"(the last: {count}). All that was finished is kept: see to the server and run the same "
                "command again"
            )
        if count < self._best / 10 and not self._warned:
            self._warned = True
            self.notify(f"the server gave {count} answers in the last minute, after {self._best} in its best")
        self._best = max(self._best, count)


class Client:
    """A connection to one server, with its own thread. Raises EngineError where the server is gone or will
    have none of us."""

    def __init__(self, config: OpenAIConfig, key: str | None, notify: Callable[[str], None]) -> None:
        self.config, self.notify, self.usage = config, notify, Usage()
        self.url = config.base_url.rstrip("/")
        try:
            _ = urlsplit(
                self.url
            ).port  # httpx only fails on a port of 99999 once it connects, with an ExceptionGroup
        except ValueError as error:
            raise EngineError(f"{self.url}: not a URL ({error}). Set engine.openai.base_url") from error
        self._key = key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise EngineError(
                f"the environment variable {config.api_key_env} holds something that cannot be a key"
            )
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        self._window = Window(config.max_concurrency)
        self._requests, self._tokens = Pace(config.requests_per_minute), Pace(config.tokens_per_minute)
        self._answered = time.monotonic()
        """When the server last gave a good answer (or a stream began)."""
        self._told = False
        """Whether the user knows of the present outage."""
        self._proof: Call[Any] | None = None
        """The first call that was answered: a short one, by which a server shows that it lives."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sao-client", daemon=True)
        self._thread.start()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=config.max_concurrency)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(config.timeout, connect=CONNECT_SECONDS), limits=limits
        )

    def stream(self, pull: Callable[[], Call[R] | None]) -> Iterator[R]:
        """Results in order of finishing. `pull` gives the next call, None where there is none for now: it is
        asked again after each result, until none is in flight. Where the server fails for good, what had come
        by then is given out first."""
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        tasks: set[asyncio.Task[None]] = set()
        ahead, pending = 2 * self.config.max_concurrency, 0
        rate = Rate(self.config.min_rows_per_minute, self.notify)
        self._answered = time.monotonic()
        self._window.begin()

        def start(call: Call[R]) -> None:
            task = self._loop.create_task(self._put(call, results))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        try:
            while True:
                while pending < ahead and (call := pull()) is not None:
                    self._loop.call_soon_threadsafe(start, call)
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
                    yield from _rest(results)
                    raise result
                rate.row()
                rate.check()
                yield result
        finally:
            if (
                pending and self._loop.is_running()
            ):  # else the client was closed before, with all that was in flight
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

    def get(self, url: str) -> dict[str, Any] | None:
        """The JSON object at `url`, None where the server knows no such address. Waits for a server that is
        not up yet."""
        return self._once("GET", url, None)

    def post(self, url: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The same by POST; None too where the server refuses it, or answers with something else (a web page,
        say)."""
        return self._once("POST", url, body)

    def close(self) -> None:
        """End the thread and the connections."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._http.aclose()

        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(timeout=30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=30)
            self._loop.close()

    def _once(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        async def ask() -> dict[str, Any] | None:
            failures = 0
            while True:
                try:
                    answer = await self._try(method, url, body, optional=True)
                except RefusedError:
                    return None
                except (_FailedError, BadAnswerError) as fault:
                    failures += 1
                    if body is not None and isinstance(fault, BadAnswerError) and failures == OPTIONAL_TRIES:
                        return None
                    await self._after(fault, failures)
                else:
                    self._answered = time.monotonic()
                    return answer

        self._answered = time.monotonic()
        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()

    async def _put(self, call: Call[R], results: queue.SimpleQueue[Any]) -> None:
        """One call to its end, whatever that is."""
        try:
            results.put(await self._finish(call))
        except Exception as error:
            results.put(error)  # raised again where the stream is read

    async def _finish(self, call: Call[R]) -> R:
        """Send until there is a good answer, a refusal, or no more patience."""
        begun, failures = time.monotonic(), 0
        while True:
            try:
                return await self._send(call, again=failures > 0)
            except RefusedError as error:
                instead = call.refused(error)
                if not isinstance(instead, Call):
                    return instead
                call = instead
            except (_FailedError, BadAnswerError) as fault:
                failures += 1
                enough = failures > (self.config.retries if call.retries is None else call.retries)
                if enough and (self._answered > begun or await self._lives()):
                    # Others are answered, this one never: it is dropped, so that the run comes to its end.
                    return call.given_up(str(fault))
                await self._after(fault, failures)

    async def _send(self, call: Call[R], again: bool) -> R:
        """One try, within the window and the rates."""
        await self._window.enter(again)
        try:
            await self._requests.take(1)
            await self._tokens.take(call.tokens)
            answer = await self._try("POST", self.url + call.path, call.body)
            result = _read(call, answer)
            self._count(call, answer)
            self._answered, self._told = time.monotonic(), False
            self._proof = self._proof or call
            self._window.answered()
            return result
        except _FailedError as fault:
            if fault.overload:
                self._window.refused()
            raise
        finally:
            self._window.leave()

    def _count(self, call: Call[R], answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        used = usage if isinstance(usage, dict) else {}
        prompt, completion = (
            n if isinstance(n := used.get(key), int) and 0 <= n < 2**31 else 0
            for key in ("prompt_tokens", "completion_tokens")
        )
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += completion
        if prompt:
            self._tokens.correct(prompt + completion - call.tokens)

    async def _after(self, fault: Exception, failures: int) -> None:
        """Pause before the next try. Raises EngineError where the server has not answered for too long."""
        self.usage.retries += 1
        silent = time.monotonic() - self._answered
        wait = fault.wait if isinstance(fault, _FailedError) else 0.0
        if silent > self.config.patience >= wait and await self._lives():
            silent = 0.0
        if max(silent, wait) > self.config.patience:
            why = (
                f"it asks to wait {wait:.0f} s"
                if wait > self.config.patience
                else f"no good answer for {silent:.0f} s"
            )
            raise EngineError(
                f"{self.url}: {why} (last: {fault}), longer than engine.openai.patience = "
                f"{self.config.patience:g} s. All that "
                "was finished is kept: see to the server and run the same command again"
            )
        if max(silent, wait) > OUTAGE_SECONDS and not self._told:
            self._told = True
            self.notify(
                f"{self.url}: no good answer for {silent:.0f} s ({fault}); trying on for "
                f"{self.config.patience:g} s"
            )
        if wait:
            self._window.closed_until = max(self._window.closed_until, time.monotonic() + wait)
        longest = min(LONGEST_PAUSE, self.config.patience / 4)
        pause = min(longest, FIRST_PAUSE * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)
        await asyncio.sleep(max(pause, wait))

    async def _lives(self) -> bool:
        """Whether a short request is answered: then those that fail are odd ones out, or the others just take
        long."""
        if self._proof is None:
            return False
        call = self._proof
        try:
            async with asyncio.timeout(self.config.patience):
                _read(call, await self._try("POST", self.url + call.path, call.body))
        except (TimeoutError, _FailedError, BadAnswerError, RefusedError):
            return False
        self._answered = time.monotonic()
        return True

    async def _try(
        self, method: str, url: str, body: dict[str, Any] | None, optional: bool = False
    ) -> dict[str, Any]:
        """The JSON object of one answer. Raises RefusedError, EngineError (nothing will help) or _FailedError
        (try again).

        With `optional` an unknown address is a refusal.
        """
        self.usage.requests += 1
        try:
            content = None if body is None else json.dumps(body).encode("utf-8", "surrogatepass")
            async with asyncio.timeout(self.config.timeout):
                response = await self._http.request(method, url, content=content, headers=self._headers)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _FailedError(
                f"no answer in engine.openai.timeout = {self.config.timeout:g} s", overload=True
            ) from error
        except httpx.RequestError as error:
            gone = isinstance(error, httpx.ConnectError)
            raise _FailedError(
                f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, gone
            ) from error
        except httpx.InvalidURL as error:
            raise EngineError(f"{url}: not a URL ({error}). Set engine.openai.base_url") from error
        status = response.status_code
        if status == 200:
            answer = _object(response.content)
            if answer.get("error") and not answer.get("choices"):
                raise BadAnswerError(f"an error under HTTP 200: {self._hide(str(answer))[:200]}")
            return answer
        message = self._hide(_message(response))[:300]
        if optional and (status in (404, 405, 501) or (body is not None and status in FATAL)):
            raise RefusedError(status, message)
        if status in FATAL:
            raise EngineError(f"{url}: HTTP {status}: {message}. {_advice(status, self.config)}")
        if status >= 500 or status in TOO_MUCH or status in (409, 425):
            raise _FailedError(f"HTTP {status}: {message}", status in TOO_MUCH, _retry_after(response))
        raise RefusedError(status, message)

    def _hide(self, text: str) -> str:
        """A server's words without our key, which some repeat; what is shorter than 8 is no secret
        ("EMPTY")."""
        return text.replace(self._key, "…") if len(self._key) >= 8 else text


def _read(call: Call[R], answer: dict[str, Any]) -> R:
    """The call's result; an answer of another shape than the call expects is a bad one."""
    try:
        return call.read(answer)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BadAnswerError(f"an answer of another shape: {type(error).__name__}: {error}") from error


def _rest(results: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """The good results that are waiting already."""
    while not results.empty():
        if not isinstance(result := results.get(), Exception):
            yield result


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError("an answer that is no JSON") from error
    if not isinstance(answer, dict):
        raise BadAnswerError("an answer that is no JSON object")
    return answer


def _message(response: httpx.Response) -> str:
    """What an error's body says: {"error": {"message": …}}, or its words."""
    try:
        error = json.loads(response.content)
        error = error.get("error", error)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        text = response.content[:10_000].decode("utf-8", "replace")
    return " ".join(text.split()) or response.reason_phrase


def _retry_after(response: httpx.Response) -> float:
    """The seconds of a Retry-After header, which holds a number or a date; 0 where there is none."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError):
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0


def _advice(status: int, config: OpenAIConfig) -> str:
    if status in (401, 403):
        return f"Put the key into the environment variable {config.api_key_env}"
    if status == 402:
        return "The account has no credit left; what is finished is kept"
    return "Check engine.openai.base_url (it ends in /v1 for most servers) and engine.openai.model"
