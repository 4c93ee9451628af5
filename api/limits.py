"""How much may be written: by a caller in a minute, into an inbox that is not drained as fast, and in one bulk call.

The rate counts writes: a PUT or DELETE is one, and so is each article of a bulk call, or a bulk would go around it. A
bulk larger than the rate is taken up to it; the lines beyond are refused one by one and can be sent again, a minute's
worth at a time. Kept in memory: each process counts for itself, and a restart forgets. Knows no keys and no routes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from fastapi import Request
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from api.errors import TooManyRequests
from pipeline.errors import QueueFull, TooLarge

_MINUTE = 60  # seconds
_MAX_AGE_SECONDS = 0.5  # of the counted length: counting 100,000 waiting changes takes milliseconds


class WriteRate:
    """At most `limit` writes of a caller in any `seconds`; 0: any number. Thread-safe."""

    def __init__(self, limit: int, seconds: int = _MINUTE) -> None:
        self._limit = limit
        self._seconds = seconds
        self._item = RateLimitItemPerSecond(limit, seconds)
        # A moving window: a fixed one would let through twice the number around its border.
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._lock = threading.Lock()

    def take(self, caller: str, wanted: int = 1) -> int:
        """How many of `wanted` writes `caller` may do now, 0..wanted; they count from now on."""
        if not self._limit or not wanted:
            return wanted
        with self._lock:  # nobody else takes what is seen to remain
            granted = min(wanted, self._window.get_window_stats(self._item, caller).remaining)
            return granted if granted and self._window.hit(self._item, caller, cost=granted) else 0

    def check(self, caller: str) -> None:
        """Takes one write of `caller`. Raises TooManyRequests."""
        if not self.take(caller):
            raise self.refusal(caller)

    def refusal(self, caller: str) -> TooManyRequests:
        """The error of a write beyond the limit: it says when the oldest one that counts is forgotten."""
        resets = self._window.get_window_stats(self._item, caller).reset_time
        return TooManyRequests(self._limit, self._seconds, resets - time.time())


class QueueGauge:
    """How many changes wait: counted at most every half second, plus what was accepted here since. Thread-safe.

    It is a gauge, not a lock: the batch of a bulk call that is let through is taken whole, so the queue may grow over
    `limit` by a batch of each call under way. 0: any number.
    """

    def __init__(self, count: Callable[[], int], limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting = 0
        self._counted_at = -float("inf")

    def check(self) -> None:
        """Raises QueueFull where as many changes wait as may. May block while they are counted."""
        if not self._limit:
            return
        with self._lock:
            now = self._clock()
            if now - self._counted_at > _MAX_AGE_SECONDS:
                self._waiting, self._counted_at = self._count(), now
            waiting = self._waiting
        if waiting >= self._limit:
            raise QueueFull(waiting, self._limit)

    def add(self, accepted: int) -> None:
        """So many changes came in since the last count."""
        with self._lock:
            self._waiting += accepted


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one app. Changes that are pushed are indexed before all others, so they wait, and count, by themselves:
    a bulk load that fills the inbox stops no correction and no withdrawal."""

    rate: WriteRate
    pushes: QueueGauge
    queue: QueueGauge  # of all changes

    def pushed(self, changes: int) -> None:
        """So many were pushed since the last count."""
        self.pushes.add(changes)
        self.queue.add(changes)


def limits_of(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


class BoundedRequest(Request):
    """A request whose body may have `limit` bytes.

    Raises TooLarge at once where more are announced, and in `stream` after the last byte within the limit.
    """

    def __init__(self, request: Request, limit: int) -> None:
        super().__init__(request.scope, request.receive)
        self._limit = limit
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit():
            self._check(int(announced))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        seen = 0
        async for chunk in super().stream():
            yield chunk[: self._limit - seen]
            seen += len(chunk)
            self._check(seen)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise TooLarge("the request", size, self._limit, "bytes")
