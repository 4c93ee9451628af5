"""Beside the worker, on a thread of its own: what must be done now and then, and should hold no change up.

Rows of replaced revisions go once their grace is over, rows kept beside commits are forgotten, and Milvus Lite, which has
one writer at a time, is told to seal what was written. All of it may break off anywhere, and only who has the worker's lease
does it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import Unavailable
from pipeline.ingest import Ingest
from pipeline.storage import leases
from pipeline.storage.database import StateDatabase
from pipeline.storage.leases import Lease, LeaseLost

log = logging.getLogger(__name__)

_FEW_PASSAGES = 100  # written one by one, from here on they are sealed: each read looks through those that are not


class Sweeper:
    """What a worker with `lease` tells of its writes."""

    def __init__(self, database: StateDatabase, ingest: Ingest, lease: Lease) -> None:
        self._database = database
        self._ingest = ingest
        self._lease = lease
        self._unsealed = 0

    def wrote(self, passages: int) -> None:
        """So many passages were written, one push after the other."""
        self._unsealed += passages

    def sweep(self, ended: threading.Event) -> None:
        """Leaves off between two steps when it is `ended`. Raises LeaseLost, and what the stores raise."""
        leases.check(self._database, self._lease)
        self._ingest.drop_carried()
        while not ended.is_set() and self._ingest.sweep(self._lease):
            pass
        if self._unsealed >= _FEW_PASSAGES and not ended.is_set():
            self._unsealed = 0
            self._ingest.flush()

    def run(self, ended: threading.Event, seconds: float) -> None:
        while not ended.wait(seconds):
            try:
                self.sweep(ended)
            except (LeaseLost, Unavailable) as error:  # the worker finds out too, or the next sweep goes well
                log.warning("a sweep broke off: %s", error)
            except Exception:
                log.exception("a sweep broke off")


@contextmanager
def sweeping(database: StateDatabase, ingest: Ingest, lease: Lease, *, seconds: float) -> Iterator[Sweeper]:
    """Sweeps every `seconds` for as long as the block takes; waits at its end for the sweep under way."""
    sweeper = Sweeper(database, ingest, lease)
    ended = threading.Event()
    thread = threading.Thread(target=sweeper.run, args=(ended, seconds), name="sweeper", daemon=True)
    thread.start()
    try:
        yield sweeper
    finally:
        ended.set()
        thread.join()
