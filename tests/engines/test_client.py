"""How many requests are sent at once, how long the client waits, and how it ends: the pieces of
sao.engines.client, .flow_control and .json_http alone, and the engine on servers that a test twists."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from types import SimpleNamespace

import httpx2 as httpx
import pytest

from sao.config import OpenAIConfig
from sao.engines import Completion, Request, flow_control, json_http
from sao.engines.flow_control import Pace, Rate, Window
from sao.engines.json_http import connections, retry_after
from sao.errors import EngineError
from support.errors import raises
from support.misbehaving_server import RefusalError, Server
from support.odd_servers import Body, Odd, answers, asked, last, opened

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's time, in a list of one number that a test sets."""
    now = [1000.0]
    for module in (flow_control, json_http):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    return now


# The window


def fill_and_answer(window: Window, answered: int, refused: int = 0) -> None:
    """So many answers, each while the window is full."""
    for i in range(answered + refused):
        window.running = int(window.size)
        window.refused() if i < refused else window.answered()


def test_the_window_doubles_until_it_was_too_much_then_creeps() -> None:
    window = Window(1000)
    assert window.size == 64
    fill_and_answer(window, 64)
    assert window.size == 128
    fill_and_answer(window, 0, refused=64)  # with the 64 answers before a round of 128, half of it refused
    assert window.size == pytest.approx(128 * 0.7)
    fill_and_answer(window, 89)  # a round
    assert window.size == pytest.approx(128 * 0.7 + 1, abs=0.02)


def test_the_window_bears_some_refusals_and_stays_within_its_bounds() -> None:
    window = Window(100)
    for i in range(64):
        window.refused() if i % 6 == 0 else window.answered()
    assert window.size == 64  # nor does it grow while fewer are in flight than fit
    fill_and_answer(window, 0, refused=300)
    assert window.size == 1
    fill_and_answer(window, 10)
    assert 3 < window.size < 6
    window.begin()
    assert window.size == 64
    fill_and_answer(window, 36)
    assert window.size == 100
    fill_and_answer(window, 500)
    assert window.size == 100
    assert Window(10).size == 10


def test_places_go_to_retries_first_then_by_turn_and_a_cancelled_wait_takes_none() -> None:
    async def play() -> None:
        window, order = Window(2), list[str]()

        async def work(name: str, again: bool = False) -> None:
            await window.enter(again)
            order.append(name)

        await work("a")
        await work("b")
        tasks = {
            name: asyncio.create_task(work(name, name == "retry")) for name in ("gone", "given", "c", "retry")
        }
        await asyncio.sleep(0)
        assert order == ["a", "b"]
        tasks["gone"].cancel()
        window.leave()
        await asyncio.sleep(0)
        assert order == ["a", "b", "retry"]
        window.leave()
        tasks["given"].cancel()  # the place was given to it just now: the next has it
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert order == ["a", "b", "retry", "c"]
        assert window.running == 2

    asyncio.run(asyncio.wait_for(play(), 10))


def test_a_request_may_find_the_window_closed_any_number_of_times(clock: list[float]) -> None:
    async def play() -> None:
        window = Window(1)
        await window.enter()
        waiting = asyncio.create_task(window.enter())
        for _ in range(1500):
            while not window._waiting:
                await asyncio.sleep(0)
            window.closed_until = clock[0] + 1e-5
            window.leave()  # gives it a place behind a closed door
            await asyncio.sleep(0)
            assert window.running == 0
            window.running += 1  # another was there first
            clock[0] += 1
        assert not waiting.done()
        while not window._waiting:
            await asyncio.sleep(0)
        window.leave()
        await waiting
        assert window.running == 1

    asyncio.run(asyncio.wait_for(play(), 30))


def test_the_window_follows_what_the_server_bears() -> None:
    """A server that refuses more than 8 at once: everything is answered, and few are sent at once in the
    end."""

    def twist(body: Body, answer: Body) -> Body:
        if server.in_flight > 8:
            raise RefusalError(429, "too many at once")
        return answer

    server = Odd(twist=twist, delay=0.02)
    with server, opened(server) as engine:
        done = answers(engine, asked(*(f"question {i}" for i in range(300))))
        assert engine._client._window.size < 30
    assert sum(isinstance(c, Completion) for c in done.values()) == 300
    assert server.counts["429"] > 50


def test_more_are_sent_to_a_server_that_keeps_up() -> None:
    with Server(delay=0.2) as server, opened(server, max_concurrency=150) as engine:
        assert len(answers(engine, asked(*(f"question {i}" for i in range(300))))) == 300
        assert engine._client._window.size == 150
    assert 64 < server.peak_in_flight <= 150


def test_fewer_are_sent_to_a_server_that_answers_too_late() -> None:
    with Server(slots=4, delay=0.04) as server, opened(server, timeout=0.35, patience=30) as engine:
        done = answers(engine, asked(*(f"question {i}" for i in range(100))))
        assert engine._client._window.size < 60
    assert sum(isinstance(c, Completion) for c in done.values()) == 100


# Waiting


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("Mon, 99 Foo 12", 0.0),
        (formatdate(1000 + 90, usegmt=True), 90.0),
        (formatdate(10, usegmt=True), 0.0),
        ("Thu, 01 Jan 1970 00:16:45 +0000", 5.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str, seconds: float, clock: list[float]) -> None:
    assert retry_after(httpx.Response(429, headers={"retry-after": header})) == seconds


def test_without_the_header_there_is_nothing_to_wait_for() -> None:
    assert retry_after(httpx.Response(503)) == 0.0


@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
def test_all_wait_as_long_as_the_server_asks(as_date: bool) -> None:
    free: list[float] = []

    def twist(body: Body, answer: Body) -> Body:
        if last(body) == "first" and not free:
            now = time.time()
            free.append(math.floor(now + 2) if as_date else now + 1)
            server.retry_after = formatdate(free[0], usegmt=True) if as_date else "1"
            raise RefusalError(429, "slow down")
        return answer

    server = Odd(twist=twist)
    with server, opened(server, max_concurrency=1) as engine:
        probes = len(server.times)
        done = answers(engine, asked("first", "second", "third"))
    assert all(isinstance(c, Completion) for c in done.values())
    later = server.times[probes + 1 :]
    assert len(later) == 3
    assert free[0] - 0.05 <= min(later) < free[0] + 2


def test_a_wait_beyond_all_patience_ends_the_run_once_all_that_came_is_given_out() -> None:
    def twist(body: Body, answer: Body) -> Body:
        if last(body) == "2 much":
            raise RefusalError(429, "come back tomorrow")
        return answer

    came: list[str] = []
    with (
        Odd(twist=twist, retry_after="86400", slow_every=10, slow_delay=0.2) as server,
        opened(server) as engine,
    ):
        begun = time.monotonic()
        with raises(
            EngineError,
            key="engine.openai.patience",
            match="86400 s .*come back tomorrow",
        ):
            for completion in engine.generate(asked("1 quick", "2 much", "10 slow", "20 slow")):
                came.append(completion.id)
                time.sleep(0.5)  # meanwhile the refusal comes, and after it the slow ones
    assert came[0] == "1 quick#0"
    assert sorted(came[1:]) == ["10 slow#0", "20 slow#0"]
    assert time.monotonic() - begun < 5


def test_a_pace_spreads_what_is_taken_and_learns_what_was_used(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def play() -> None:
        pace = Pace(60)  # one a second
        for amount in (1, 3, 1):
            await pace.take(amount)
        pace.correct(2)
        await pace.take(1)
        pace.correct(-20)
        await pace.take(1)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(play())
    assert waited == [1, 4, 7]
    asyncio.run(Pace(None).take(10**9))
    assert waited == [1, 4, 7]


def test_requests_and_tokens_a_minute_hold() -> None:
    with Server() as server, opened(server, requests_per_minute=1200) as engine:
        server.reset()
        begun = time.monotonic()
        assert len(answers(engine, asked(*(f"question {i}" for i in range(31))))) == 31
        assert time.monotonic() - begun > 0.9 * 30 / 20
    with Server() as server, opened(server, tokens_per_minute=120_000, max_concurrency=4) as engine:
        texts = ["a " * 200 + str(i) for i in range(20)]  # twice the tokens that their length lets expect
        begun = time.monotonic()
        assert len(answers(engine, asked(*texts, tokens=1))) == 20
        assert time.monotonic() - begun > 0.85 * (20 - 4) * 202 / 2000


def test_too_few_answers_for_two_minutes_end_the_run_and_a_slow_minute_is_told_once(
    clock: list[float],
) -> None:
    said: list[str] = []
    rate = Rate(10, said.append)

    def minute(rows: int) -> None:
        for _ in range(rows):
            rate.row()
        rate.check()  # before the minute is over nothing is said
        clock[0] += 60
        rate.check()

    for rows in (200, 5, 15, 5, 100):
        minute(rows)
    assert said == ["the server gave 5 answers in the last minute, after 200 in its best"]
    minute(9)
    with raises(
        EngineError,
        key="engine.openai.min_rows_per_minute",
        match="10 answers.*last: 0",
    ):
        minute(0)


def test_a_stream_without_answers_is_ended_by_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as server, opened(server, min_rows_per_minute=1.0) as engine:
        server.delay = 30.0
        monkeypatch.setattr(flow_control, "RATE_SECONDS", 0.2)
        begun = time.monotonic()
        with raises(EngineError, key="engine.openai.min_rows_per_minute"):
            answers(engine, asked("a", "b"))
    assert time.monotonic() - begun < 10


# Connections


def connected(config: OpenAIConfig) -> socket.socket:
    """The socket of a connection that is open."""

    async def play() -> socket.socket:
        async with (
            connections(config, None) as http,
            http.stream("GET", f"{config.base_url}/models") as response,
        ):
            connection: socket.socket = response.extensions["network_stream"].get_extra_info("socket")
            return connection.dup()

    return asyncio.run(play())


def test_the_kernel_watches_a_silent_connection() -> None:
    with Server() as server, connected(OpenAIConfig(base_url=server.url)) as connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        seconds = {
            name: connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in json_http.KEEP_ALIVE
            if hasattr(socket, name)
        }
        assert seconds == {name: json_http.KEEP_ALIVE[name] for name in seconds}


# Ends


def test_a_stream_closed_early_leaves_the_engine_usable() -> None:
    with Server(delay=0.5) as server, opened(server, max_concurrency=4) as engine:
        server.reset()
        stream = engine.generate(iter(asked(*(f"question {i}" for i in range(500)))))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        time.sleep(0.1)
        assert engine._client._window.running == 0  # what was on its way is called off
        assert server.requests <= 8
        assert len(answers(engine, asked("a", "b"))) == 2


def test_an_error_among_the_requests_is_raised_and_the_engine_goes_on() -> None:
    def requests() -> Iterator[Request]:
        yield from asked("a", "b")
        raise LookupError("persona 3")

    with Server() as server, opened(server) as engine:
        with pytest.raises(LookupError, match="persona 3"):
            list(engine.generate(requests()))
        assert len(answers(engine, asked("c"))) == 1


def test_no_thread_outlives_its_engine() -> None:
    def threads() -> int:
        return sum(thread.name == "sao-client" for thread in threading.enumerate())

    before = threads()
    with Server(delay=0.2) as server:
        with opened(server) as engine:
            stream = engine.generate(iter(asked("a", "b", "c")))
            next(stream)
            assert threads() == before + 1
        assert threads() == before
        engine.close()  # a second time does nothing
        server.key = "sk-none"
        with raises(EngineError, key="server"), opened(server):
            pass
        assert threads() == before
