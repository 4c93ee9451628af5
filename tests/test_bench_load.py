"""The clients of `yeoul bench`: what they count, and from when, against servers of a few lines."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexers.benchmarks import load, wrk
from indexers.benchmarks.load import percentile
from indexers.benchmarks.queries import Walk

_NO_WRK = "the closed loop needs wrk: apt-get install wrk"
_GRACE = 1.0  # seconds by which a machine with other work may be late
_NOTHING = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n%s\r\n"

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason=_NO_WRK)
Answer = Callable[[str], Awaitable[bytes]]  # path → the bytes to send, none to hang up


@dataclass
class Server:
    """Counts what it was asked, and how much of it at once."""

    url: str
    seen: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server, started, ended = Server(""), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(server, answer, started, ended)))
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        ended.set()
        thread.join()


async def _serve(server: Server, answer: Answer, started: threading.Event, ended: threading.Event) -> None:
    """Hangs up on everybody when it is `ended`, and leaves when each of them has noticed."""
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
                server.seen[path] += 1
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
                found = await answer(path)
                server.at_once -= 1
                if not found:
                    break
                writer.write(found)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        writers.discard(writer)

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started.set()
        await asyncio.to_thread(ended.wait)
    while writers:
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.01)


def paths(n: int = 100_000) -> Walk:
    return Walk([f"/{number}" for number in range(n)])


def after(seconds: float) -> Answer:
    async def answer(_path: str) -> bytes:
        await asyncio.sleep(seconds)
        return _NOTHING

    return answer


def test_whatever_is_due_while_the_server_stalls_is_charged_with_the_stall() -> None:
    stalled: list[float] = []

    async def answer(_path: str) -> bytes:
        if not stalled:
            stalled.append(time.perf_counter() + 0.5)
        await asyncio.sleep(max(0.0, stalled[0] - time.perf_counter()))
        return _NOTHING

    with serving(answer) as server:
        answers = load.open_loop(server.url, paths().take, rate=100, seconds=1.0)
    due = [one.due for one in answers.asked]
    assert np.allclose(np.diff(due), 0.01)  # whatever the answers
    took = answers.milliseconds()
    assert len(took) == 100
    least = [max(0.0, stalled[0] - moment) * 1000 for moment in due]
    assert sum(shortest > 0 for shortest in least) >= 50
    # The server's clock of whole milliseconds may wake it a little early.
    assert all(milliseconds >= shortest - 2 for milliseconds, shortest in zip(took, least, strict=True))


def test_a_request_that_waits_for_a_connection_is_late_all_the_same() -> None:
    with serving(after(0.05)) as server:
        answers = load.open_loop(server.url, paths().take, rate=100, seconds=0.5, connections=1)
    assert server.most_at_once == 1
    took = answers.milliseconds()
    assert took[-1] >= 200  # the tenth was due after .09 s and is answered after .5 s; the server took .05 s for it
    assert answers.outcomes["unanswered"] == 50 - len(took)
    assert answers.seconds >= 0.5


def test_statuses_broken_connections_and_refusals_without_retry_after_are_counted() -> None:
    given_ = [_NOTHING, _REFUSED % b"Retry-After: 1\r\n", _REFUSED % b"", b""]

    async def answer(path: str) -> bytes:
        return given_[int(path[1:]) % 4]

    with serving(answer) as server:
        answers = load.open_loop(server.url, paths().take, rate=80, seconds=0.5)
    assert answers.outcomes == {"200": 10, "429": 20, "connection lost": 10}
    assert answers.refusals_without_retry_after == 10
    assert len(answers.milliseconds()) == 10
    assert len(server.seen) == 40


def test_a_server_that_is_not_there_is_told() -> None:
    with serving(after(0)) as server:
        url = server.url
    answers = load.open_loop(url, paths().take, rate=50, seconds=0.2)
    assert answers.outcomes == {"connection lost": 10}
    assert answers.rate == 0


def test_a_closed_loop_keeps_its_connections_busy_and_no_more() -> None:
    with serving(after(0.02)) as server:
        answers = load.closed_loop(server.url, paths().take, connections=5, seconds=1.0)
    assert server.most_at_once == 5
    assert set(answers.outcomes) == {"200"}
    assert 0 < answers.rate <= 5 / 0.02
    assert percentile(answers.milliseconds(), 50) >= 20


def test_the_time_to_recover_is_from_the_end_of_the_overload_on() -> None:
    ended = time.perf_counter() + 1.5  # half a second after the load

    async def answer(_path: str) -> bytes:
        await asyncio.sleep(0.01 if time.perf_counter() > ended else 0.2)
        return _NOTHING

    with serving(answer) as server:
        took = paths().take
        seen = load.overloaded(server.url, took, rate=50, seconds=1.0, connections=2, full=50.0, patience=20.0)
        never = load.overloaded(server.url, took, rate=50, seconds=0.2, connections=2, full=1e9, patience=1.0)
    assert seen.seconds is not None
    assert 0 < seen.seconds < 20
    assert seen.overload.outcomes == {"200": 50}
    assert never.seconds is None


@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(1, 99))
def test_a_percentile_is_numpys(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    if values:
        assert found == np.percentile(np.array(values), percent)
    else:
        assert np.isnan(found)


@needs_wrk
def test_wrks_threads_walk_through_the_paths_and_repeat_none() -> None:
    with serving(after(0.005)) as server:
        found = wrk.closed_loop(server.url, paths().texts, connections=4, seconds=1, first=500)
    asked = sorted(int(path[1:]) for path in server.seen)
    assert set(server.seen.values()) == {1}
    assert 500 <= asked[0] <= 510
    assert found.outcomes == {"200": found.requests}
    assert 0 <= len(asked) - found.requests <= 4  # under way when the time was over
    assert found.rate == pytest.approx(found.requests / found.seconds)


@needs_wrk
def test_wrks_percentiles_are_those_of_what_the_server_took() -> None:
    delays = [0.01 * (1 + number % 10) for number in range(1000)]

    async def answer(path: str) -> bytes:
        await asyncio.sleep(delays[int(path[1:])])
        return _NOTHING

    with serving(answer) as server:
        found = wrk.closed_loop(server.url, paths(1000).texts, connections=4, seconds=2)
    for percent in (50, 95):
        least = float(np.percentile(delays, percent)) * 1000
        assert least - 11 <= found.percentiles[percent - 1] <= least + _GRACE * 1000
    assert found.worst >= 100


@needs_wrk
def test_wrk_counts_statuses() -> None:
    async def answer(path: str) -> bytes:
        return _REFUSED % b"" if int(path[1:]) % 2 else _NOTHING

    with serving(answer) as server:
        found = wrk.closed_loop(server.url, paths().texts, connections=2, seconds=1)
    assert set(found.outcomes) == {"200", "429"}
    assert sum(found.outcomes.values()) == found.requests
    assert found.rate == pytest.approx(found.outcomes["200"] / found.seconds)


def test_without_wrk_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(wrk.NoWrk, match="apt-get install wrk"):
        wrk.closed_loop("http://127.0.0.1:1", ["/"], connections=1, seconds=1)
