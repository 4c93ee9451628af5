"""An HTTP client that loads a server: so many requests a second whatever the answers (open loop), or so many at a time.

It shares the processors with what it measures, so it does next to nothing: uvloop, httptools, GETs over keep-alive connections,
bodies unread. In an open loop the clock of a request starts when it is due, also where it waits for a connection: a server that
stalls is charged with everything that piled up meanwhile ("coordinated omission", G. Tene). Knows nothing of searches.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop

WINDOW_SECONDS = 1.0  # of a closed loop after an overload
_MOST_CONNECTIONS = 512  # of an open loop: beyond them requests wait in this process
_PATIENCE = 30.0  # seconds after the last request is due; what is not answered by then is "unanswered"
_GLIMPSE = 0.02  # seconds between looks whether all is answered
_OK = 200
_REFUSED = 429

Paths = Callable[[], str]  # the next thing to ask for


@dataclass(slots=True)
class Asked:
    """A request. Seconds of `time.perf_counter`; `done` is None until it is answered, `status` 0 until then or where the
    connection broke."""

    path: str
    due: float
    done: float | None = None
    status: int = 0
    retry_after: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of a load that took `seconds`, up to its last answer."""

    asked: Sequence[Asked]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers with 200 a second."""
        return len(self.milliseconds()) / self.seconds

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Statuses and what else became of requests → how many."""
        return dict(Counter(_outcome(one) for one in self.asked))

    @property
    def refusals_without_retry_after(self) -> int:
        return sum(one.status == _REFUSED and not one.retry_after for one in self.asked)

    def milliseconds(self) -> list[float]:
        """From due to answered, of those answered with 200."""
        return [(one.done - one.due) * 1000 for one in self.asked if one.done is not None and one.status == _OK]


def _outcome(one: Asked) -> str:
    if one.done is None:
        return "unanswered"
    return str(one.status) if one.status else "connection lost"


def percentile(values: Sequence[float], percent: float) -> float:
    """NaN of nothing."""
    return float(np.percentile(values, percent)) if values else float("nan")


def open_loop(url: str, paths: Paths, *, rate: float, seconds: float, connections: int = _MOST_CONNECTIONS) -> Answers:
    """`rate` requests a second, evenly, for so many seconds, on as many connections as it takes but no more than these."""
    return uvloop.run(_Client(url, connections).at_rate(paths, rate, seconds))


def closed_loop(url: str, paths: Paths, *, connections: int, seconds: float) -> Answers:
    """So many connections, each of which asks again as soon as it is answered."""
    return uvloop.run(_Client(url, connections).one_after_the_other(paths, connections, seconds))


@dataclass(frozen=True, slots=True)
class Recovered:
    """An overload, and the seconds from its end until a closed loop had its rate again; None where it never did."""

    overload: Answers
    seconds: float | None


def overloaded(
    url: str, paths: Paths, *, rate: float, seconds: float, connections: int, full: float, patience: float
) -> Recovered:
    """An open loop, and then, beside what of it is not yet answered, a closed one in windows of `WINDOW_SECONDS` until one of
    them has `full` answers a second, or `patience` is over."""
    return uvloop.run(_overloaded(url, paths, rate, seconds, connections, full, patience))


async def _overloaded(
    url: str, paths: Paths, rate: float, seconds: float, connections: int, full: float, patience: float
) -> Recovered:
    loading = asyncio.create_task(_Client(url).at_rate(paths, rate, seconds))
    await asyncio.sleep(seconds)
    ended, recovered = time.perf_counter(), None
    while recovered is None and (begin := time.perf_counter()) < ended + patience:
        window = await _Client(url, connections).one_after_the_other(paths, connections, WINDOW_SECONDS)
        if window.rate >= full:
            recovered = begin - ended
    return Recovered(await loading, recovered)


class _Client:
    """Connections to one server. `most` of them; requests beyond wait in line."""

    def __init__(self, url: str, most: int = _MOST_CONNECTIONS) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._most = most
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._waiting: deque[Asked] = deque()
        self._on_answer: Callable[[], None] = lambda: None

    async def at_rate(self, paths: Paths, rate: float, seconds: float) -> Answers:
        asked: list[Asked] = []

        def ask(due: float) -> None:
            asked.append(Asked(paths(), due))
            self._send(asked[-1])

        begin = time.perf_counter()
        await asyncio.to_thread(_pace, asyncio.get_running_loop(), rate, seconds, ask)
        while len(self._waiting) > len(self._connecting):  # for these no connection is in sight
            self._waiting.pop()
        await self._all_answered(time.perf_counter() + _PATIENCE)
        self._close()
        last = max((one.done for one in asked if one.done is not None), default=begin)
        return Answers(asked, max(seconds, last - begin))

    async def one_after_the_other(self, paths: Paths, connections: int, seconds: float) -> Answers:
        asked: list[Asked] = []
        end = time.perf_counter() + seconds

        def again() -> None:
            if (now := time.perf_counter()) < end:
                asked.append(Asked(paths(), now))
                self._send(asked[-1])

        self._on_answer = again
        for _ in range(connections):
            again()
        await asyncio.sleep(seconds)
        ended = [one for one in asked if one.done is not None]  # what is under way when the time is over does not count
        self._close()
        return Answers(ended, seconds)

    def _send(self, asked: Asked) -> None:
        if self._idle:
            self._idle.pop().ask(asked)
            return
        self._waiting.append(asked)
        if len(self._open) + len(self._connecting) < self._most:
            task = asyncio.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except OSError:
            if self._waiting:
                self._waiting.popleft().done = time.perf_counter()
                loop.call_later(_GLIMPSE, self._on_answer)
            return
        self._open.add(connection)
        self._freed(connection)

    def _freed(self, connection: _Connection) -> None:
        if self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: _Connection, *, lives: bool) -> None:
        """The connection can ask again, where it `lives`."""
        if lives:
            self._freed(connection)
        self._on_answer()

    def lost(self, connection: _Connection, *, unanswered: bool) -> None:
        """It was closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if unanswered:
            self._on_answer()

    async def _all_answered(self, until: float) -> None:
        def under_way() -> bool:
            return bool(self._connecting) or any(connection.asked is not None for connection in self._open)

        while time.perf_counter() < until and under_way():
            await asyncio.sleep(_GLIMPSE)

    def _close(self) -> None:
        self._on_answer = lambda: None
        self._waiting.clear()
        for task in self._connecting:
            task.cancel()
        for connection in list(self._open):
            connection.close()


def _pace(loop: asyncio.AbstractEventLoop, rate: float, seconds: float, ask: Callable[[float], None]) -> None:
    """Has the loop `ask` when it is time. In a thread: an event loop's own timers count whole milliseconds."""
    begin = time.perf_counter()
    for number in range(round(rate * seconds)):
        due = begin + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        loop.call_soon_threadsafe(ask, due)
    time.sleep(max(0.0, begin + seconds - time.perf_counter()))


class _Connection(asyncio.Protocol):
    """One request at a time; httptools calls the methods that begin with `on_`."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.asked: Asked | None = None

    def ask(self, asked: Asked) -> None:
        self.asked = asked
        if self._transport is not None:
            self._transport.write(b"GET %s HTTP/1.1\r\nHost: benchmark\r\n\r\n" % asked.path.encode())

    def close(self) -> None:
        """Whatever it waits for stays unanswered."""
        self.asked = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        asked, self.asked = self.asked, None
        if asked is not None:
            asked.done = time.perf_counter()
        self._client.lost(self, unanswered=asked is not None)

    def on_header(self, name: bytes, _value: bytes) -> None:
        if self.asked is not None and name.lower() == b"retry-after":
            self.asked.retry_after = True

    def on_message_complete(self) -> None:
        asked, self.asked = self.asked, None
        if asked is None:
            return
        asked.done, asked.status = time.perf_counter(), self._parser.get_status_code()
        self._client.answered(self, lives=self._parser.should_keep_alive())
