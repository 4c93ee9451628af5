"""The running parts behind the HTTP API: a thread that connects, loads and follows, and callers who wait for it.

The process is up before its stores are: the thread tries again until they answer, and says meanwhile why not. Knows no
routes and no JSON; who drains the inbox is somebody else's business (`wake` tells them that something came in).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Annotated
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.freshness import FreshnessWatch
from api.telemetry import Gauges, Metrics
from pipeline.assembly import Assembly
from pipeline.connected import Connected
from pipeline.errors import InvalidQuery, NotReady, Unavailable, YeoulError
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import SearchResult
from pipeline.settings import Settings
from pipeline.storage import readers
from pipeline.storage.articles import CHANGES, ArticleStore
from pipeline.storage.rows import LogEntry
from pipeline.storage.signals import Listener

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 15.0  # a store that was away is used at most so long after it is back
_SEARCHES_IN_MEMORY = 1  # at once: beside 20 pushes a second a search takes 21 ms so, and 630 ms with two at once
_SEARCHES_BY_MILVUS = 16  # at once
# Most changes show in the log. After so long a wait the state database is asked what became of it, then less and less often.
_FIRST_QUESTION_SECONDS = 0.3
_LAST_QUESTION_SECONDS = 1.0
_NOT_OPEN_HINT = "wait until /readyz answers 200; yeoul doctor says what is amiss"


class Service:
    """What the routes talk to. Thread-safe; `start` and `stop` belong to the app's lifespan.

    Without an `assembly` it opens its own at the start and closes it at the stop.
    """

    def __init__(self, settings: Settings, assembly: Assembly | None, wake: Callable[[], None]) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.wake = wake
        self._assembly = assembly
        self._owns_assembly = assembly is None
        self._stop = threading.Event()
        self._look = threading.Event()
        self._thread: threading.Thread | None = None
        self._waiting = _Waiting()
        self._trouble: YeoulError | None = None
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[CapacityLimiter, CapacityLimiter]] = (
            WeakKeyDictionary()
        )
        self._rounds_begun = self._rounds_done = 0  # looks at the change log, by the one thread that follows it
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._report_due = 0.0  # monotonic
        self._verify_due = time.monotonic() + settings.indexers.reconcile_hours * 3600
        self._listener: Listener | None = None
        self.freshness = FreshnessWatch(
            self.metrics,
            lambda: self.connected.shadow,
            objective_seconds=settings.api.freshness_seconds,
            period_seconds=settings.indexers.canary_seconds,
        )

    # ---- life

    def start(self) -> None:
        """Opens the parts that need no collection (seconds) and starts the thread for the others."""
        if self._assembly is None:
            self._assembly = Assembly.open(self.settings, command="yeoul api")
        self._assembly.on_applied = self._applied_now
        self._listener = Listener(self._assembly.database, {CHANGES: self.notify})
        self._listener.start()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._look.set()
        if self._thread is not None:
            self._thread.join()
        if self._listener is not None:
            self._listener.stop()
        with suppress(YeoulError):
            readers.leave(self.store.database, self._name)
        if self._owns_assembly and self._assembly is not None:
            self._assembly.close()
            self._assembly = None

    def notify(self) -> None:
        """Something was committed: apply it now instead of at the next look."""
        self._look.set()

    # ---- parts

    @property
    def assembly(self) -> Assembly:
        """Raises NotReady before `start`, where this service opens its own."""
        if self._assembly is None:
            raise NotReady("the service has not started", _NOT_OPEN_HINT)
        return self._assembly

    @property
    def store(self) -> ArticleStore:
        return self.assembly.store

    @property
    def connected(self) -> Connected:
        """Raises NotReady, with the reason, until the collection is open."""
        try:
            return self.assembly.connected
        except NotReady as error:
            trouble = self._trouble
            if trouble is None:
                raise
            raise NotReady(f"the index is not open: {trouble.message}", trouble.hint) from error

    # ---- what callers do

    async def search(self, request: SearchRequest, *, min_seq: int = 0) -> SearchResult:
        """Answers from a state in which the change accepted as `min_seq` is applied; 0 waits for nothing.

        Raises InvalidQuery for a `min_seq` that was never given, NotReady where it is not applied in time.
        """
        if min_seq:
            await self.applied(min_seq)
        result = await anyio.to_thread.run_sync(self.connected.searcher.search, request, limiter=self._searching())
        self.metrics.search(result.timings, result.degraded)
        return result

    def _searching(self) -> CapacityLimiter:
        """Lets searches in memory work one after the other: two threads of one interpreter wait for each other at every step,
        and both take longer than one after the other would. Those that ask Milvus mostly wait for it."""
        loop = asyncio.get_running_loop()
        limiters = self._limiters.get(loop)
        if limiters is None:
            limiters = CapacityLimiter(_SEARCHES_IN_MEMORY), CapacityLimiter(_SEARCHES_BY_MILVUS)
            self._limiters[loop] = limiters
        return limiters[0 if self.connected.answers_from_memory else 1]

    def _has_applied(self, seq: int) -> bool:
        try:
            follower = self.connected.follower
        except NotReady:
            return False
        return follower.has_applied(seq)

    async def applied(self, seq: int) -> None:
        """Waits until the change accepted as `seq` is in a final state and applied here.

        Raises NotReady after `api.wait_seconds`, InvalidQuery for a number that no change was given.
        """
        if self._has_applied(seq):
            return
        try:
            with anyio.fail_after(self.settings.api.wait_seconds), self._waiting.ticket() as ticket:
                round_of_settling: int | None = None
                pause = _FIRST_QUESTION_SECONDS
                next_question = time.monotonic() + pause
                while not self._has_applied(seq):
                    ticket.clear()
                    # What is settled stands in the log: a look that begins after that has applied it at its end.
                    if round_of_settling is not None and self._rounds_done > round_of_settling:
                        return
                    if round_of_settling is None and time.monotonic() >= next_question:
                        if await run_in_threadpool(self._is_settled, seq):
                            round_of_settling = self._rounds_begun
                            self._look.set()
                        pause = min(2 * pause, _LAST_QUESTION_SECONDS)
                        next_question = time.monotonic() + pause
                    with anyio.move_on_after(pause):
                        await ticket.wait()
        except TimeoutError as error:
            raise NotReady(
                f"change {seq} is accepted and not applied after {self.settings.api.wait_seconds:g} s",
                "it stays in the inbox: ask again later, or look at the article's status",
            ) from error

    def reasons(self) -> list[YeoulError]:
        """Why this process is not ready to answer; empty when it is."""
        found: list[YeoulError] = []
        try:
            self.assembly.database.ping()
            connected = self.connected
            connected.collection.ping()
            if not connected.follower.loaded:
                why = next(iter(connected.engine()[1].values()), "the index is loading")
                found.append(NotReady(why, "wait until it is loaded: searches are answered meanwhile"))
        except Unavailable as error:
            found.append(error)
        if not found and self._trouble is not None:
            found.append(self._trouble)
        return found

    def gauges(self) -> Gauges:
        """Where this process stands; what cannot be read is 0."""
        queued = settled = seq = passages = failed = 0
        with suppress(YeoulError, SQLAlchemyError):
            queued, settled = self.store.queue_length(), self.store.settled_up_to()
            failed = self.store.counts().get("failed", 0)
        with suppress(YeoulError):
            seq, passages = self.connected.follower.seq, self.connected.engine()[0].count
        return Gauges(
            ready=not self.reasons(),
            passages=passages,
            queued=queued,
            lag=max(0, settled - seq),
            failed=failed,
            late=bool(self.freshness.state().late),
        )

    # ---- the thread

    def _run(self) -> None:
        if self._until_done(self._connect) and self._until_done(self._load):
            self._until_done(self._follow)

    def _connect(self) -> None:
        self.assembly.connect()

    def _load(self) -> None:
        self.connected.searcher.warm_up()
        self.connected.load(self._check_stop)
        if self.assembly.lock is not None:  # what is written is written here
            self.connected.told_by_ingest()
        self._waiting.announce()

    def _check_stop(self, _rows: int = 0) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._look.wait(self.settings.indexers.poll_seconds)
            self._look.clear()
            self._rounds_begun += 1
            try:
                self.assembly.catch_up()
            except YeoulError as error:
                self._trouble = error
                log.warning("cannot follow the changes, trying again in %.1f s: %s", _FIRST_RETRY_SECONDS, error)
                self._stop.wait(_FIRST_RETRY_SECONDS)
                continue
            if not self.connected.follower.behind:
                self._rounds_done = self._rounds_begun
            self._trouble = None
            self._waiting.announce()
            try:
                self._report()
                self._verify()
            except YeoulError as error:  # a database that takes no writes stops no search
                log.warning("not reported: %s", error)

    def _applied_now(self, entries: Sequence[LogEntry], now: datetime) -> None:
        self.freshness.applied(entries, now)
        self._waiting.announce()

    def _report(self) -> None:
        """Says every few seconds that this process is alive and where it stands."""
        if time.monotonic() < self._report_due:
            return
        self._report_due = time.monotonic() + readers.REPORT_SECONDS
        assembly = self.assembly
        readers.report(assembly.database, self._name, assembly.newest, assembly.connected.follower.position)

    def _verify(self) -> None:
        """Now and then compares what is in memory with the registry, and mends it: on a server nobody else can."""
        hours = self.settings.indexers.reconcile_hours
        if self.assembly.lock is not None or not hours or time.monotonic() < self._verify_due:
            return
        self._verify_due = time.monotonic() + hours * 3600
        differing = self.connected.follower.compare(repair=True)
        self.metrics.mended(len(differing))
        if differing:
            log.error("%d articles in memory were not as the registry says, and are now", len(differing))

    def _until_done(self, step: Callable[[], None]) -> bool:
        """Tries `step` until it succeeds, waiting longer each time; False where the service was stopped before."""
        delay = _FIRST_RETRY_SECONDS
        while not self._stop.is_set():
            try:
                step()
            except _Stopped:
                return False
            except YeoulError as error:
                self._trouble = error
                log.warning("not ready, trying again in %.1f s: %s", delay, error)
            except Exception as error:
                self._trouble = NotReady(
                    f"an unexpected error happened ({type(error).__name__})", "see the server's log"
                )
                log.exception("not ready, trying again in %.1f s", delay)
            else:
                self._trouble = None
                return True
            self._stop.wait(delay)
            delay = min(2 * delay, _LAST_RETRY_SECONDS)
        return False

    def _is_settled(self, seq: int) -> bool:
        """Whether the change is in a final state, though it has no line in the log or one before it is not, and this process
        is able to apply it. Raises InvalidQuery."""
        progress = self.store.progress(seq)
        if progress == "unknown":
            raise InvalidQuery("min_seq", seq, "a seq that was given to a change")
        try:
            return self.connected.follower.loaded and progress == "settled"
        except NotReady:
            return False


class _Stopped(Exception):
    """Ends a load that takes longer than anybody wants to wait for the process to end."""


class _Waiting:
    """Coroutines, of whatever event loop, that wait for a thread to announce something."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @contextmanager
    def ticket(self) -> Iterator[asyncio.Event]:
        """An event that every announcement sets, within the block."""
        ticket = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._tickets.add(ticket)
        try:
            yield ticket[1]
        finally:
            with self._lock:
                self._tickets.discard(ticket)

    def announce(self) -> None:
        with self._lock:
            for loop, event in self._tickets:
                with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                    loop.call_soon_threadsafe(event.set)


async def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(service_of)]
