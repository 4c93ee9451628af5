"""The running parts behind the HTTP API: a thread that connects, loads and follows, and callers who wait for it.

The process is up before its stores are: the thread tries again until they answer, and says meanwhile why not. Knows no
routes and no JSON; who drains the inbox is somebody else's business (`wake` tells them that something came in).
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Annotated

import anyio
from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError

from api.freshness import FreshnessWatch
from api.leaving import Gone
from api.searches import Searches
from api.telemetry import Gauges, Metrics
from pipeline.assembly import Assembly
from pipeline.connected import Connected
from pipeline.encoding.line import LinedEncoder
from pipeline.errors import InvalidQuery, NotReady, Overloaded, Unavailable, YeoulError
from pipeline.index.resident import compile_all
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import SearchResult
from pipeline.settings import Settings
from pipeline.storage import leases, readers
from pipeline.storage.acceptance import Progress
from pipeline.storage.articles import CHANGES, ArticleStore
from pipeline.storage.rows import LogEntry
from pipeline.storage.signals import Listener

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 15.0  # a store that was away is used at most so long after it is back
_LONG_WAIT_SECONDS = 0.3  # after which the state database is asked what became of a change
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
        self._searches = self._line()
        self._name = leases.new_holder()
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
        if isinstance(self._assembly.parts.encoder, LinedEncoder):
            self._assembly.parts.encoder.observe = self.metrics.encoded
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
        self._searches.close()
        self._searches = self._line()  # it may be started again
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

    async def search(self, request: SearchRequest, gone: Gone, *, min_seq: int = 0) -> SearchResult:
        """Answers from a state in which the change accepted as `min_seq` is applied; 0 waits for nothing. `gone` returns when
        nobody waits any more.

        Raises InvalidQuery for a `min_seq` that was never given, NotReady where it is not applied in time, ClientDisconnect.
        """
        if min_seq:
            await self.applied(min_seq)
        result = await self._searches.result(request, gone)
        self.metrics.search(result.timings, result.degraded)
        return result

    def refusal(self) -> Overloaded | None:
        """Why a search would be refused now."""
        return self._searches.refusal()

    def _line(self) -> Searches:
        return Searches(self.settings.api, lambda: self.connected, self.metrics)

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
            with anyio.fail_after(self.settings.api.wait_seconds), self._waiting.ticket(seq) as ticket:
                while not self._has_applied(seq) and ticket.progress is None:
                    await ticket.called()
        except TimeoutError as error:
            raise NotReady(
                f"change {seq} is accepted and not applied after {self.settings.api.wait_seconds:g} s",
                "it stays in the inbox: ask again later, or look at the article's status",
            ) from error
        if ticket.progress == "unknown":
            raise InvalidQuery("min_seq", seq, "a seq that was given to a change")

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
            elif not self.assembly.parts.ready:
                found.append(NotReady("Kiwi is starting", "wait some seconds: searches wait for it"))
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
        compile_all()  # while the store is starting
        self.assembly.connect()

    def _load(self) -> None:
        self.connected.load(self._check_stop)  # Kiwi may be starting meanwhile
        self._check_stop()
        self.assembly.parts.wait()
        self.connected.searcher.warm_up()
        if self.assembly.lock is not None:  # what is written is written here
            self.connected.told_by_ingest()
        self._waiting.call(self._has_applied)

    def _check_stop(self, _rows: int = 0) -> None:
        if self._stop.is_set():
            raise _Stopped
        with suppress(YeoulError):
            self._report()  # a rebuild waits for those who are loading too

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._look.wait(min(self.settings.indexers.poll_seconds, self._waiting.patience()))
            self._look.clear()
            try:
                # What is settled stands in the log, unless it has no line there: after the next look it is applied.
                found = self.store.progress_of(self._waiting.long())
                self.assembly.catch_up()
                self.assembly.parts.wait()
            except YeoulError as error:
                self._trouble = error
                log.warning("cannot follow the changes, trying again in %.1f s: %s", _FIRST_RETRY_SECONDS, error)
                self._stop.wait(_FIRST_RETRY_SECONDS)
                continue
            self._trouble = None
            ended = {"unknown"} if self.connected.follower.behind else {"unknown", "settled"}
            self._waiting.call(self._has_applied, {seq: p for seq, p in found.items() if p in ended})
            try:
                self._report()
                self._verify()
            except YeoulError as error:  # a database that takes no writes stops no search
                log.warning("not reported: %s", error)

    def _applied_now(self, entries: Sequence[LogEntry], now: datetime) -> None:
        self.freshness.applied(entries, now)
        self._waiting.call(self._has_applied)

    def _report(self) -> None:
        """Says every few seconds that this process is alive and where it stands."""
        if time.monotonic() < self._report_due:
            return
        self._report_due = time.monotonic() + readers.REPORT_SECONDS
        assembly = self.assembly
        position = assembly.connected.follower.position
        waiting = self._searches.waiting
        asked = readers.report(assembly.database, self._name, assembly.newest, position, waiting=waiting)
        if asked is not None and assembly.connected.follower.loaded:
            readers.answer(assembly.database, self._name, self._compare(repair=asked == "repair"))

    def _verify(self) -> None:
        """Now and then compares what is in memory with the registry, and mends it: on a server nobody else can."""
        hours = self.settings.indexers.reconcile_hours
        if self.assembly.lock is not None or not hours or time.monotonic() < self._verify_due:
            return
        self._verify_due = time.monotonic() + hours * 3600
        self._compare(repair=True)

    def _compare(self, *, repair: bool) -> int:
        """How many articles in memory were not as the registry says; with `repair` they are now."""
        differing = self.connected.follower.compare(repair=repair)
        if differing:
            self.metrics.mended(len(differing) if repair else 0)
            told = "and are now" if repair else "and are left so"
            log.error("%d articles in memory were not as the registry says, %s", len(differing), told)
        return len(differing)

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


class _Stopped(Exception):
    """Ends a load that takes longer than anybody wants to wait for the process to end."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """One coroutine that waits for the change `seq`. `progress` is what became of a change that has no line in the log."""

    seq: int
    since: float  # monotonic
    progress: Progress | None = None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    async def called(self) -> None:
        await self._event.wait()
        self._event.clear()

    def call(self) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            self._loop.call_soon_threadsafe(self._event.set)


class _Waiting:
    """Coroutines, of whatever event loop, that wait for the thread that follows the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets: set[_Ticket] = set()

    @contextmanager
    def ticket(self, seq: int) -> Iterator[_Ticket]:
        ticket = _Ticket(seq, time.monotonic())
        with self._lock:
            self._tickets.add(ticket)
        try:
            yield ticket
        finally:
            with self._lock:
                self._tickets.discard(ticket)

    def patience(self) -> float:
        """Seconds until somebody has waited for long, or may have."""
        return _LONG_WAIT_SECONDS if self._tickets else math.inf

    def long(self) -> list[int]:
        """What is waited for since long: most changes show in the log before that, the others have to be asked for."""
        since = time.monotonic() - _LONG_WAIT_SECONDS
        with self._lock:
            return sorted({ticket.seq for ticket in self._tickets if ticket.since < since})

    def call(self, applied: Callable[[int], bool], found: Mapping[int, Progress] = MappingProxyType({})) -> None:
        """Wakes those whose change is `applied`, or has made the progress `found`; nobody else, as there may be many."""
        with self._lock:
            for ticket in self._tickets:
                ticket.progress = found.get(ticket.seq, ticket.progress)
                if ticket.progress is not None or applied(ticket.seq):
                    ticket.call()


async def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(service_of)]
