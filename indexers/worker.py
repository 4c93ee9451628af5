"""The worker: drains the inbox into the index, one batch after the other, under a lease.

While one batch is encoded and written, Kiwi analyses the next ones on its own threads. A change that cannot be indexed is
settled as failed and stops no other; where a store does not answer, the inbox keeps everything until it does.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.documents import Change
from pipeline.errors import Unavailable, YeoulError
from pipeline.ingest import AnalysedPassage, Ingest, Written
from pipeline.storage import leases
from pipeline.storage.articles import ArticleStore
from pipeline.storage.leases import Lease, LeaseLost

log = logging.getLogger(__name__)

_Begun = tuple[list[Change], Future[list[list[AnalysedPassage]]]]  # a batch and its passages to be

LEASE = "worker"
_BATCH_ARTICLES = 64  # enough to fill Kiwi's and the encoder's batches
_BATCHES_AHEAD = 6  # analysed while one is written: Kiwi's threads do not wait for a slow write
_BATCH_CHARS = 400_000  # about 2 s of Kiwi; a push behind a bulk load waits for the batches ahead of it
_BULK_PASSAGES = 1000  # from here on the collection is told to put its memory in order: unflushed rows search slowly
_LEASE_SECONDS = 60.0  # after this long without a sign of life another worker takes over
_RETRY_SECONDS = 2.0  # between attempts while a store is away


@dataclass(slots=True)
class Totals:
    """What a drain came to."""

    articles: int = 0
    deleted: int = 0
    failed: int = 0
    passages: int = 0
    encoded: int = 0

    def add(self, written: Written) -> None:
        self.articles += written.articles
        self.deleted += written.deleted
        self.passages += written.passages
        self.encoded += written.encoded


class Worker:
    """Drains the inbox. `on_commit` is called after each commit, `on_progress` with the number of settled changes.

    `alone`: no other worker can be alive, so that a lease which a killed one left is not waited for.
    """

    def __init__(
        self,
        store: ArticleStore,
        ingest: Ingest,
        *,
        alone: bool = False,
        poll_seconds: float = 0.5,
        on_commit: Callable[[], None] = lambda: None,
        on_progress: Callable[[int], None] = lambda _settled: None,
    ) -> None:
        self._store = store
        self._ingest = ingest
        self._alone = alone
        self._poll_seconds = poll_seconds
        self._on_commit = on_commit
        self._on_progress = on_progress
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._awake = threading.Event()

    def wake(self) -> None:
        """Something was put into the inbox: look at once."""
        self._awake.set()

    def run(self, stop: threading.Event) -> None:
        """Drains until `stop`; errors of a store are logged and tried again, nothing else ends the loop."""
        while not stop.is_set():
            try:
                self.drain(stop)
                self.sweep()
                self._awake.wait(self._poll_seconds)
            except LeaseLost as error:
                log.warning("%s", error)
            except Unavailable as error:
                log.warning("the inbox waits: %s", error)
                stop.wait(_RETRY_SECONDS)
            except Exception:
                log.exception("the worker goes on after an unexpected error")
                stop.wait(_RETRY_SECONDS)
            self._awake.clear()

    def drain(self, stop: threading.Event | None = None) -> Totals:
        """Indexes everything in the inbox. Raises Unavailable where a store is away, LeaseLost where another took over."""
        totals = Totals()
        if not self._store.queued(1):
            return totals
        lease = self._lease(stop)
        if lease is None:
            return totals
        with self._held(lease):
            self._drain(lease, totals, stop)
            if totals.passages >= _BULK_PASSAGES:
                self._ingest.flush()
        return totals

    def sweep(self) -> None:
        """Deletes rows of replaced revisions whose grace is over, unless another worker is at it."""
        if not self._store.due_leftovers(1):
            return
        lease = self._acquired()
        if lease is not None:
            with self._held(lease):
                while self._ingest.sweep():
                    pass

    @contextmanager
    def _held(self, lease: Lease) -> Iterator[None]:
        """Prolongs `lease` for as long as the block takes, a slow encoder's batch too, and gives it back."""
        done = threading.Event()

        def prolong() -> None:
            while not done.wait(_LEASE_SECONDS / 3):
                try:
                    leases.renew(self._store.database, lease, _LEASE_SECONDS)
                except LeaseLost:
                    return  # the commit under way will be refused
                except Unavailable as error:
                    log.warning("the lease cannot be prolonged: %s", error)

        keeper = threading.Thread(target=prolong, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            leases.release(self._store.database, lease)

    def _lease(self, stop: threading.Event | None) -> Lease | None:
        while stop is None or not stop.is_set():
            lease = self._acquired()
            if lease is not None:
                return lease
            time.sleep(self._poll_seconds)
        return None

    def _acquired(self) -> Lease | None:
        return leases.acquire(self._store.database, LEASE, self._holder, _LEASE_SECONDS, alone=self._alone)

    def _drain(self, lease: Lease, totals: Totals, stop: threading.Event | None) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="analyse") as pool:
            under_way: deque[_Begun] = deque()
            try:
                while not (stop is not None and stop.is_set()):
                    while len(under_way) <= _BATCHES_AHEAD and (begun := self._begin(pool, under_way)):
                        under_way.append(begun)
                    if not under_way:
                        return
                    batch, analysed = under_way.popleft()
                    self._finish(batch, analysed, lease, totals)
                    self._on_progress(len(batch))
                    self._on_commit()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)  # what was only queued is not analysed for nothing

    def _begin(self, pool: ThreadPoolExecutor, under_way: Sequence[_Begun]) -> _Begun | None:
        """Has the batch behind those `under_way` analysed; None where there is none.

        With nothing under way it is the first of all that waits, whatever was added in the meantime.
        """
        after = under_way[-1][0][-1].seq if under_way else 0
        batch = _limited(self._store.queued(_BATCH_ARTICLES, after=after))
        return (batch, pool.submit(self._ingest.analyse, batch)) if batch else None

    def _finish(
        self, batch: Sequence[Change], analysed: Future[list[list[AnalysedPassage]]], lease: Lease, totals: Totals
    ) -> None:
        try:
            totals.add(self._ingest.write(batch, analysed.result(), lease))
        except (Unavailable, LeaseLost):
            raise
        except Exception as error:  # noqa: BLE001 - whatever an article provokes, it fails alone
            if len(batch) > 1:
                log.warning("a batch failed (%s): its changes are tried one by one", error)
                for change in batch:
                    self._finish_one(change, lease, totals)
            else:
                self._give_up(batch[0], error, lease, totals)

    def _finish_one(self, change: Change, lease: Lease, totals: Totals) -> None:
        try:
            totals.add(self._ingest.write([change], self._ingest.analyse([change]), lease))
        except (Unavailable, LeaseLost):
            raise
        except Exception as error:  # noqa: BLE001 - whatever an article provokes, it fails alone
            self._give_up(change, error, lease, totals)

    def _give_up(self, change: Change, error: Exception, lease: Lease, totals: Totals) -> None:
        told = str(error) if isinstance(error, YeoulError) else f"{type(error).__name__}: {error}"
        log.error("article %r cannot be indexed: %s", change.article_id, told)
        log.debug("the error in full", exc_info=error)
        self._store.fail(change, told, lease)
        totals.failed += 1


def _limited(batch: list[Change]) -> list[Change]:
    """The first of `batch` that together stay within the character limit; at least one."""
    taken: list[Change] = []
    chars = 0
    for change in batch:
        chars += len(change.article.body) if change.article is not None else 0
        if taken and chars > _BATCH_CHARS:
            break
        taken.append(change)
    return taken
