"""Rebuilds, rollbacks and drops beside a storm, one at a time on a thread of its own, by whoever can.

What a check or a stop refuses is counted; every other error is trouble. Knows nothing of articles.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from indexers.rebuild import Conditions, Rebuild, RebuildRefused
from pipeline.assembly import Assembly
from pipeline.korean.morphemes import Analyser
from pipeline.parts import recipe_of
from pipeline.settings import Settings
from pipeline.storage.leases import LeaseLost
from tests.live_processes import Record, opened

RECIPES = ((16, 0), (24, 1), (40, 0))  # tokens of a passage, sentences that two share
_NAME = re.compile(r"storm_\d+_\d+")
_PATIENCE = 60.0  # seconds until every reader has loaded the new collection
_CONDITIONS = Conditions(min_overlap=0, wait_seconds=_PATIENCE)

Builder = Callable[[], AbstractContextManager[Assembly]]
Task = Callable[[Rebuild, Assembly], None]


@contextmanager
def builder(settings: Settings, analyser: Analyser) -> Iterator[Assembly]:
    """The parts of a process of its own, as `yeoul rebuild` is."""
    assembly = opened(settings, analyser, alone=False)
    try:
        assembly.connect().load()
        yield assembly
    finally:
        assembly.close()


def to_chunking(max_tokens: int, overlap: int, work: Rebuild, assembly: Assembly) -> None:
    chunking = {"max_tokens": max_tokens, "overlap_sentences": overlap}
    work.to_recipe(dict(recipe_of(assembly.settings)) | {"chunking": chunking}, _CONDITIONS)


def back(work: Rebuild, _assembly: Assembly) -> None:
    work.back(_CONDITIONS)


def _drop(work: Rebuild, _assembly: Assembly) -> None:
    work.prune()


class Rebuilds:
    """At most one at a time: another one that is begun meanwhile is not."""

    def __init__(self, builder: Builder, record: Record) -> None:
        self.outcomes: Counter[str] = Counter()
        self._builder = builder
        self._record = record
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(self, task: Task) -> None:
        if self.running:
            self.outcomes["another one was at work"] += 1
            return
        self._end.clear()
        self._thread = threading.Thread(target=self._carry, args=(task,), name="rebuild", daemon=True)
        self._thread.start()

    def drop_kept(self) -> None:
        if not self.running:
            self.begin(_drop)
            self.join()

    def stop(self) -> None:
        """Breaks off what runs: the next one for the same recipe goes on with it."""
        self._end.set()
        self.join()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(6 * _PATIENCE)
            assert not self.running, "the rebuild does not end"

    def _carry(self, task: Task) -> None:
        try:
            with self._builder() as assembly:
                task(Rebuild(assembly, tell=lambda _: None, stopped=self._end.is_set), assembly)
                self.outcomes["done"] += 1
        except RebuildRefused as error:  # stopped, nothing kept, the log pruned
            self.outcomes[f"refused: {_NAME.sub('a collection', error.message.split(' (')[0])}"] += 1
        except LeaseLost:  # a worker that took over from a dead one, in the very moment of the switch
            self.outcomes["refused: a new worker took over"] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the test should say it
            self._record.troubles.append(f"rebuild: {error!r}")
