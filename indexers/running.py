"""One run of a source: batch after batch into the inbox, no faster than the inbox is emptied.

Knows neither what a source is nor when it runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from indexers.sources.source import Batch, Source
from pipeline.errors import NotReady
from pipeline.storage import jobs, leases, sources
from pipeline.storage.acceptance import BULK, SOURCE
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.sources import Kept, KnownSource

log = logging.getLogger(__name__)

_SOON = 500  # changes of a run that go before what is loaded in bulk: a first load must not hold up other sources' news
_TOLD_PROBLEMS = 20  # kept with the run; the log has them all
_LOOK_SECONDS = 0.2  # between two looks whether the inbox has room again


@dataclass(slots=True)
class _Tally:
    accepted: int = 0
    unchanged: int = 0
    older: int = 0
    deleted: int = 0
    problems: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def changes(self) -> int:
        return self.accepted + self.deleted

    def add(self, kept: Kept, batch: Batch) -> None:
        self.accepted += kept.accepted
        self.unchanged += kept.unchanged
        self.older += kept.older
        self.deleted += kept.deleted
        self.problems += len(batch.problems)
        self.told += batch.problems[: _TOLD_PROBLEMS - len(self.told)]

    def counts(self, *, stopped: bool) -> dict[str, Any]:
        counts: dict[str, Any] = {
            name: getattr(self, name) for name in ("accepted", "unchanged", "older", "deleted", "problems")
        }
        return counts | ({"told": self.told} if self.told else {}) | ({"stopped": True} if stopped else {})


@contextmanager
def reading(database: StateDatabase, name: str, stop: threading.Event) -> Iterator[KnownSource]:
    """The source `name`, which nobody else reads within the block: two at once would each put back what the other one kept.

    A reader that was killed is waited for, until its lease has run out. Raises SourceNotFound; NotReady while another one
    reads it, and after `stop`.
    """
    sources.find(database, name)
    holder, end = leases.new_holder(), time.monotonic() + leases.SECONDS + 1
    while (lease := leases.acquire(database, jobs.of_source(name), holder, leases.SECONDS)) is None:
        if time.monotonic() > end or stop.wait(_LOOK_SECONDS):
            raise NotReady(f"another process is reading {name}", "wait until it has, or stop it")
    with leases.kept(database, lease, leases.SECONDS):
        yield sources.find(database, name)


def run_source(
    store: ArticleStore, known: KnownSource, source: Source, *, queue_limit: int, stop: threading.Event
) -> dict[str, Any]:
    """Reads what changed since the cursor of `known`, and gives how many articles were accepted (new or changed),
    unchanged, older than what is known, deleted; how many problems there were, and `told`, the first of them.

    While more than `queue_limit` changes wait to be indexed (0: any number), it waits. After `stop` (then the counts say
    `stopped`) or an error the next run goes on where this one ended.

    Raises SourceUnavailable, UnreadableSource, SourceChanged, StoreUnavailable; what was kept before stays.
    """
    tally = _Tally()
    batches = source.read(known.cursor, sources.articles_of(store.database, known.name))
    try:
        for batch in batches:
            for problem in batch.problems:
                log.warning("source %s: %s", known.name, problem)
            if not _has_room(store, queue_limit, stop):
                break
            tally.add(_kept(store, known, batch, SOURCE if tally.changes < _SOON else BULK), batch)
    finally:
        if isinstance(batches, Generator):
            batches.close()  # now, and not when it is collected: it may hold a connection
    return tally.counts(stopped=stop.is_set())


def _kept(store: ArticleStore, known: KnownSource, batch: Batch, lane: int) -> Kept:
    return sources.keep(
        store.database,
        known,
        found=[(one.article, one.key) for one in batch.found],
        removed=batch.removed,
        renamed=batch.renamed,
        cursor=batch.cursor,
        lane=lane,
    )


def _has_room(store: ArticleStore, queue_limit: int, stop: threading.Event) -> bool:
    """Waits until the inbox has; False where `stop` came first."""
    while not stop.is_set():
        if not queue_limit or store.queue_length() < queue_limit:
            return True
        stop.wait(_LOOK_SECONDS)
    return False
