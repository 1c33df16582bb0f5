"""How many requests may be in flight, how many sent in a minute, and when a server has become too slow."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from sao.errors import EngineError

FIRST_WINDOW = 64
"""Requests in flight at first; the window doubles with each round of answers until the first refusal."""
SHRINK, TOLERATED = 0.7, 0.2
"""The window's factor after a round with too many refusals, and the share of refusals that is tolerated."""
RATE_SECONDS = 60.0


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
        """Start again: a stage's requests may be longer than those before."""
        self.size = float(min(self.most, FIRST_WINDOW))
        self._slow_start_threshold = float(self.most)
        self._answers = self._refusals = 0  # of this round

    async def enter(self, again: bool = False) -> None:
        """Wait until one more request may be sent; a request that is sent `again` goes first."""
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
        """Wait until `leave` lets this request in."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave()  # it was let in just before
            raise

    def leave(self) -> None:
        """A request is over: let the next ones in."""
        self.running -= 1
        while self._waiting and self.running < int(self.size):
            if not (waiter := self._waiting.popleft()).done():
                self.running += 1
                waiter.set_result(None)

    def answered(self) -> None:
        """The server kept up; grow where the window was the limit."""
        if self.running >= int(self.size):
            growth = 1.0 if self.size < self._slow_start_threshold else 1 / self.size
            self.size = min(self.most, self.size + growth)
        self._count(0)

    def refused(self) -> None:
        """The server said that it was too much."""
        self._count(1)

    def _count(self, refusals: int) -> None:
        self._answers += 1
        self._refusals += refusals
        if self._answers >= self.size:
            if self._refusals > TOLERATED * self._answers:
                self.size = self._slow_start_threshold = max(1.0, self.size * SHRINK)
            self._answers = self._refusals = 0


class Pace:
    """Spreads an amount evenly over each minute."""

    def __init__(self, per_minute: float | None) -> None:
        self.seconds = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def take(self, amount: float) -> None:
        """Wait until `amount` more may be used."""
        now = time.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + amount * self.seconds
        if start > now:
            await asyncio.sleep(start - now)

    def correct(self, amount: float) -> None:
        """Add what was used beyond the amount taken (negative: less)."""
        self._free_at += amount * self.seconds


class Rate:
    """Answers in a minute. Says so once where they fall to a tenth of the best minute, raises EngineError
    below `least`."""

    def __init__(self, least: float, notify: Callable[[str], None]) -> None:
        self.least, self.notify = least, notify
        self._minute_began, self._count = time.monotonic(), 0
        self._best = 0
        self._low_minutes = 0
        """Minutes below `least` without one above it."""
        self._warned = False

    def row(self) -> None:
        """One more answer."""
        self._count += 1

    def check(self) -> None:
        """To be called every second or so."""
        now = time.monotonic()
        if now - self._minute_began < RATE_SECONDS:
            return
        count, self._count, self._minute_began = self._count, 0, now
        self._low_minutes = self._low_minutes + 1 if count < self.least else 0
        if self._low_minutes >= 2:
            raise EngineError(
                f"fewer than engine.openai.min_rows_per_minute = {self.least:g} answers in each of the last "
                f"two minutes (the last: {count}). All that was finished is kept: see to the server and run "
                "the same command again",
                key="engine.openai.min_rows_per_minute",
            )
        if count < self._best / 10 and not self._warned:
            self._warned = True
            self.notify(f"the server gave {count} answers in the last minute, after {self._best} in its best")
        self._best = max(self._best, count)
