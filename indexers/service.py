"""The indexer as it runs: the worker, what wakes it, and the scheduler with its jobs, as threads of one process.

It begins when somebody has connected the assembly. Knows what the jobs are, and nothing of how they are run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from indexers import reconcile
from indexers.canary import Canary
from indexers.running import reading, run_source
from indexers.scheduler import Plan, Scheduler
from indexers.sources import kinds
from indexers.sources.kinds import Every, Schedule
from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.errors import InvalidInput, NotReady
from pipeline.storage import jobs, signals, sources
from pipeline.storage.articles import INBOX

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # between two looks whether the collection is open
_HOUR_SECONDS = 3600.0
_PRUNE_SECONDS = _HOUR_SECONDS
_TOLD_DIFFERENCES = 20  # kept with the run; the log has them all


def _nothing() -> None:
    pass


class IndexerService:
    """Everything that indexes, around `assembly`. `on_commit` is called after each commit of the worker."""

    def __init__(self, assembly: Assembly, *, on_commit: Callable[[], None] = _nothing) -> None:
        self._assembly = assembly
        self._chosen = assembly.settings.indexers
        self._worker = Worker(
            assembly.store,
            assembly.ingest,
            alone=assembly.lock is not None,
            attempts=self._chosen.attempts,
            poll_seconds=self._chosen.poll_seconds,
            on_commit=on_commit,
        )
        self._canary = Canary(assembly.store, self._worker.wake)
        self._scheduler = Scheduler(assembly.database, self.plans, alone=assembly.lock is not None)
        self._listener = signals.Listener(
            assembly.database,
            {INBOX: self._worker.wake, jobs.CHANNEL: self._scheduler.wake, sources.CHANNEL: self._scheduler.wake},
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Puts the sources of the settings into the registry, and begins. Raises InvalidInput for a source that is none."""
        self._put_sources()
        self._thread.start()

    def wake(self) -> None:
        """Something came into the inbox."""
        self._worker.wake()

    def stop(self) -> None:
        """Ends after the batch under way; jobs are told to end. Does nothing where it never began."""
        self._stopping.set()
        self._worker.wake()
        self._scheduler.stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.stop()

    def plans(self) -> dict[str, Plan]:
        """The jobs by name, as the registry of sources and the settings have it now."""
        plans = {
            jobs.of_source(known.name): Plan(_schedule_of(known), partial(self._read, known.name))
            for known in sources.listed(self._assembly.database)
        }
        plans[jobs.PRUNE] = Plan(Every(_PRUNE_SECONDS), self._prune)
        if self._chosen.canary_seconds:
            plans[jobs.CANARY] = Plan(Every(self._chosen.canary_seconds), self._canary.run)
        if self._chosen.reconcile_hours:
            every = Every(self._chosen.reconcile_hours * _HOUR_SECONDS)
            plans[jobs.RECONCILE] = Plan(every, self._reconcile, at_once=False)
        return plans

    # ---- what the jobs do

    def _read(self, name: str, stop: threading.Event) -> dict[str, Any]:
        with reading(self._assembly.database, name, stop) as known:
            kinds.parsed_schedule(known.schedule)
            source = kinds.source_of(known.name, known.kind, known.options)
            return run_source(self._assembly.store, known, source, queue_limit=self._chosen.queue_limit, stop=stop)

    def _prune(self, _stop: threading.Event) -> dict[str, Any]:
        settled, logged = self._assembly.store.prune(self._chosen.retention_hours * _HOUR_SECONDS)
        return {"changes": settled, "log_lines": logged}

    def _reconcile(self, stop: threading.Event) -> dict[str, Any]:
        def go_on(_rows: int) -> None:
            if stop.is_set():
                raise NotReady("the comparison was broken off", "it is begun anew the next time")

        self._assembly.ingest()  # a process that only writes changes over to another collection here
        found = reconcile.verify(self._assembly.store, self._assembly.connected, repair=True, on_progress=go_on)
        for difference in found:
            log.warning("the stores did not agree: %s", difference)
        counts: dict[str, Any] = {"differences": len(found), "mended": sum(one.mended for one in found)}
        return counts | ({"told": [str(one) for one in found[:_TOLD_DIFFERENCES]]} if found else {})

    # ---- how it begins and ends

    def _put_sources(self) -> None:
        given = self._assembly.settings.sources
        for source in given:
            try:
                kinds.source_of(source.name, source.kind, source.options)
                kinds.parsed_schedule(source.schedule)
                sources.put(self._assembly.database, source.name, source.kind, source.options, source.schedule)
            except InvalidInput as error:
                raise InvalidInput(f"the setting 'sources', {source.name!r}: {error.message}", error.hint) from error

    def _run(self) -> None:
        while not self._is_connected():
            if self._stopping.wait(_LOOK_SECONDS):
                return
        self._listener.start()
        self._scheduler.start()
        self._worker.run(self._stopping)

    def _is_connected(self) -> bool:
        try:
            self._assembly.connected  # noqa: B018 - it raises
        except NotReady:
            return False
        return True


def _schedule_of(known: sources.KnownSource) -> Schedule:
    """What cannot be used is no reason to stop the other jobs: the run tells what is wrong with it."""
    try:
        return kinds.parsed_schedule(known.schedule)
    except InvalidInput:
        return Every(_HOUR_SECONDS)
