"""The worker: drains the inbox into the index, one batch after the other, under a lease.

While one batch of a bulk load is encoded and written, Kiwi analyses the next ones on its own threads; what is pushed
meanwhile goes between two of them. A change that cannot be indexed is tried again after a while, in the end settled as
failed, and stops no other; where a store does not answer, the inbox keeps everything until it does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from indexers.sweeping import sweeping
from pipeline.documents import Change
from pipeline.errors import InvalidInput, TooLarge, Unavailable, YeoulError
from pipeline.ingest import Ingest, Written
from pipeline.passages import AnalysedPassage
from pipeline.storage import leases
from pipeline.storage.acceptance import BULK
from pipeline.storage.articles import ArticleStore
from pipeline.storage.leases import Lease, LeaseLost

log = logging.getLogger(__name__)

_Begun = tuple[list[Change], Future[list[list[AnalysedPassage]]]]  # a batch and its passages to be

LEASE = "worker"
_BATCH_ARTICLES = 64  # enough to fill Kiwi's and the encoder's batches
_BATCHES_AHEAD = 6  # analysed while one is written: Kiwi's threads do not wait for a slow write
_BATCH_CHARS = 400_000  # about 2 s of Kiwi
_BULK_PASSAGES = 1000  # from here on the collection is told to put its memory in order: unflushed rows search slowly
# From one round to the next, or a rest as long as the round took: a batch costs nearly the same for one change and for ten, and
# on a busy machine larger ones cost less. A push after a pause waits for none.
_PACE_SECONDS = 0.08
_LOOK_SECONDS = 0.1  # whether something urgent came while the bulk's next batch is analysed
_LONGEST_REST_SECONDS = 0.15  # a round that took long is no reason to let what came meanwhile wait as long again
_RETRY_SECONDS = 2.0  # between attempts while a store is away
_BACKOFF_SECONDS = 1.0  # before an article's second attempt; then four times as long each time: 1, 4, 16, 64 s
_BACKOFF_FACTOR = 4
_PERMANENT = (InvalidInput, TooLarge)  # the article itself is at fault: no other attempt would do better
_BULK_LANES = (BULK, BULK)  # from .. to


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


@dataclass(frozen=True, slots=True)
class _Drain:
    """What one drain works with."""

    ingest: Ingest
    lease: Lease
    totals: Totals
    stop: threading.Event | None

    @property
    def stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()


class Worker:
    """Drains the inbox. `on_commit` is called after each commit, `on_progress` with the number of settled changes.

    `ingest` is asked for whenever the lease is taken: a rebuild that switched to another collection has taken it away
    before. `sweep_seconds` are between two looks for rows that may go: each scans the collection on Milvus Lite. `alone`: no
    other worker can be alive, so that a lease which a killed one left is not waited for. A change that cannot be indexed is
    tried `attempts` times, each time after a longer wait.
    """

    def __init__(
        self,
        store: ArticleStore,
        ingest: Callable[[], Ingest],
        *,
        alone: bool = False,
        attempts: int = 5,
        poll_seconds: float = 0.5,
        sweep_seconds: float = 5.0,
        on_commit: Callable[[], None] = lambda: None,
        on_progress: Callable[[int], None] = lambda _settled: None,
    ) -> None:
        self._store = store
        self._ingest = ingest
        self._alone = alone
        self._attempts = attempts
        self._poll_seconds = poll_seconds
        self._sweep_seconds = sweep_seconds
        self._on_commit = on_commit
        self._on_progress = on_progress
        self._holder = leases.new_holder()
        self._awake = threading.Event()

    def wake(self) -> None:
        """Something was put into the inbox: look at once."""
        self._awake.set()

    def run(self, stop: threading.Event) -> None:
        """Drains until `stop`; errors of a store are logged and tried again, nothing else ends the loop."""
        while not stop.is_set():
            try:
                lease = self._acquired()
                if lease is None:
                    self._rest(self._poll_seconds)
                    continue
                with leases.kept(self._store.database, lease, leases.SECONDS):
                    self._serve(lease, stop)
            except LeaseLost as error:
                log.warning("%s", error)
            except Unavailable as error:
                log.warning("the inbox waits: %s", error)
                stop.wait(_RETRY_SECONDS)
            except Exception:
                log.exception("the worker goes on after an unexpected error")
                stop.wait(_RETRY_SECONDS)

    def drain(self, stop: threading.Event | None = None) -> Totals:
        """Indexes what is in the inbox, or waits until another worker has. Raises Unavailable where a store is away."""
        totals = Totals()
        last = self._store.waits()  # what comes later is not waited for: it may come without end
        while last is not None and self._store.waits(up_to=last) and not (stop is not None and stop.is_set()):
            lease = self._acquired()
            if lease is None:
                time.sleep(self._poll_seconds)
                continue
            try:
                with leases.kept(self._store.database, lease, leases.SECONDS):
                    self._drain(_Drain(self._ingest(), lease, totals, stop))
                break
            except LeaseLost as error:  # to a rebuild, for a moment, or to another worker that goes on with it
                log.warning("%s", error)
        return totals

    def sweep(self) -> None:
        """Deletes rows of replaced revisions whose grace is over."""
        if self._store.due_leftovers(1):
            ingest = self._ingest()
            while ingest.sweep():
                pass

    def _serve(self, lease: Lease, stop: threading.Event) -> None:
        """Drains and sweeps, again and again, as long as the lease holds."""
        ingest = self._ingest()
        with sweeping(self._store.database, ingest, lease, seconds=self._sweep_seconds) as sweeper:
            next_check = 0.0
            while not stop.is_set():
                begun = time.monotonic()
                if begun >= next_check:  # a commit would find out that the lease is lost, but none may come for long
                    leases.check(self._store.database, lease)
                    next_check = begun + self._sweep_seconds
                drain = _Drain(ingest, lease, Totals(), stop)
                self._drain(drain)
                sweeper.wrote(drain.totals.passages)
                took = time.monotonic() - begun
                self._rest(self._poll_seconds)
                rest = min(took, _LONGEST_REST_SECONDS)
                stop.wait(begun + max(_PACE_SECONDS, took + rest) - time.monotonic())  # what comes then is one batch

    def _rest(self, seconds: float) -> None:
        self._awake.wait(seconds)
        self._awake.clear()

    def _acquired(self) -> Lease | None:
        lease = leases.acquire(self._store.database, LEASE, self._holder, leases.SECONDS, alone=self._alone)
        if lease is not None:
            self._alone = False  # whoever takes it over from now on is alive
        return lease

    def _drain(self, drain: _Drain) -> None:
        """What is urgent first; in between, one batch after the other of the bulk, which is analysed ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="analyse") as pool:
            under_way: deque[_Begun] = deque()
            try:
                while not drain.stopped:
                    first = self._store.queued(_BATCH_ARTICLES)  # by lane
                    urgent = _limited([change for change in first if change.lane < BULK])
                    if urgent:
                        self._done(urgent, drain, partial(drain.ingest.analyse, urgent))
                    if len(urgent) == len(first) < _BATCH_ARTICLES and not under_way:
                        if not urgent:
                            break
                        continue  # no bulk waits
                    while len(under_way) <= _BATCHES_AHEAD and (begun := self._begin(pool, drain.ingest, under_way)):
                        under_way.append(begun)
                    if under_way and wait([under_way[0][1]], _LOOK_SECONDS).done:  # or else urgent ones first
                        batch, analysed = under_way.popleft()
                        self._done(batch, drain, analysed.result)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)  # what was only queued is not analysed for nothing
        if drain.totals.passages >= _BULK_PASSAGES:
            drain.ingest.flush()

    def _begin(self, pool: ThreadPoolExecutor, ingest: Ingest, under_way: Sequence[_Begun]) -> _Begun | None:
        """Has the bulk's batch behind those `under_way` analysed; None where there is none.

        With nothing under way it is the first of all that waits, whatever was added in the meantime.
        """
        after = under_way[-1][0][-1].seq if under_way else 0
        batch = _limited(self._store.queued(_BATCH_ARTICLES, after=after, lanes=_BULK_LANES))
        return (batch, pool.submit(ingest.analyse, batch)) if batch else None

    def _done(
        self, batch: Sequence[Change], drain: _Drain, analysed: Callable[[], list[list[AnalysedPassage]]]
    ) -> None:
        try:
            drain.totals.add(drain.ingest.write(batch, analysed(), drain.lease))
        except (Unavailable, LeaseLost):
            raise
        except Exception as error:  # noqa: BLE001 - whatever an article provokes, it fails alone
            if len(batch) > 1:
                log.warning("a batch failed (%s): its changes are tried one by one", error)
                for change in batch:
                    self._done([change], drain, partial(drain.ingest.analyse, [change]))
                return
            self._failed(batch[0], error, drain)
        self._on_progress(len(batch))
        self._on_commit()

    def _failed(self, change: Change, error: Exception, drain: _Drain) -> None:
        """Has the change tried again later, or settles it as failed: a dead letter."""
        told = str(error) if isinstance(error, YeoulError) else f"{type(error).__name__}: {error}"
        log.debug("the error in full", exc_info=error)
        attempt = change.attempts + 1
        if attempt < self._attempts and not isinstance(error, _PERMANENT):
            seconds = _BACKOFF_SECONDS * _BACKOFF_FACTOR**change.attempts
            log.warning(
                "article %r: attempt %d failed (%s), the next in %g s", change.article_id, attempt, told, seconds
            )
            self._store.postpone(change, told, drain.lease, seconds=seconds)
            return
        log.error("article %r cannot be indexed: %s", change.article_id, told)
        self._store.fail(change, told, drain.lease)
        drain.totals.failed += 1


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
