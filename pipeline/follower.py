"""Keeps an engine in step with the change log: loads what is visible, then applies one article after the other.

Whoever owns it decides when to look (`catch_up`); two calls at a time wait for each other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.documents import Passage, passage_id
from pipeline.encoding.encoder import FloatArray
from pipeline.index.collection import Collection
from pipeline.index.engine import Engine, Revisions
from pipeline.storage.articles import ArticleStore, LogEntry

log = logging.getLogger(__name__)

_LOAD_BATCH = 2000  # rows; about 4 MB of vectors and text
_LOG_BATCH = 200
_NOT_TOLD = -1  # no revision: they count from 1
_NO_VECTORS: FloatArray = np.zeros((0, 0), dtype=np.float32)


class Follower:
    """The position of one engine in the change log. `seq`: all changes accepted up to it are applied here."""

    def __init__(self, store: ArticleStore, collection: Collection, engine: Engine) -> None:
        self._store = store
        self._collection = collection
        self._engine = engine
        self._position = 0
        self._lock = threading.Lock()
        self._filled = False  # every visible passage of some moment is in the engine
        self._told: dict[str, int | None] = {}  # what this process wrote itself: article → revision in the engine
        self.seq = 0
        self.loaded = False
        self.whole = True  # False: applying an article broke off, the engine may hold half of it

    def load(self, on_progress: Callable[[int], None] = lambda _rows: None) -> None:
        """Fills the empty engine with every visible passage, and catches up with what changed meanwhile.

        After a failure the engine is empty again, so that loading can be tried anew.
        """
        with self._lock:
            if not self._filled:
                self._fill(on_progress)
        self.catch_up()
        self.loaded = True

    def _fill(self, on_progress: Callable[[int], None]) -> None:
        position, seq, visible = self._store.visible()
        added: set[str] = set()
        try:
            for passages, vectors in self._collection.iterate(_LOAD_BATCH):
                kept = [i for i, p in enumerate(passages) if visible.get(p.article_id) == p.revision]
                added.update(passages[i].article_id for i in kept)
                self._engine.add([passages[i] for i in kept], vectors[kept])
                on_progress(len(passages))
        except BaseException:
            self._engine.apply(dict.fromkeys(added), [], _NO_VECTORS)
            raise
        self._position, self.seq = position, seq
        self._filled = True

    def resume(self, position: int, seq: int) -> int:
        """Goes on from an engine that already holds what was visible at `position`; gives the entries applied since."""
        with self._lock:
            self._position, self.seq, self._filled = position, seq, True
        applied = self.catch_up()
        self.loaded = True
        return applied

    @property
    def position(self) -> int:
        """The last line of the change log that this engine has applied."""
        return self._position

    def catch_up(self) -> int:
        """Applies the log from where this engine stands to its end; gives the number of entries applied."""
        applied = 0
        with self._lock:
            while True:
                entries, seq = self._store.log_since(self._position, _LOG_BATCH)
                newest = {entry.article_id: entry for entry in entries}
                replaced = [self._apply(entry) for entry in newest.values()].count(False)
                if entries:
                    self._position = entries[-1].position
                    applied += len(entries)
                # What was replaced while this looked stands further on in the log: `seq` is not reached before that.
                if len(entries) < _LOG_BATCH and not replaced:
                    self.seq = max(self.seq, seq)
                    return applied

    def tell(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        """What this process committed itself, so that `catch_up` need not read it back from the collection."""
        with self._lock:
            self.whole = False
            self._engine.apply(revisions, passages, vectors)
            self._told |= revisions
            self.whole = True

    def _apply(self, entry: LogEntry) -> bool:
        """False where the article was replaced since: a later entry says by what."""
        if self._told.pop(entry.article_id, _NOT_TOLD) == entry.revision:
            return True
        if entry.revision is None:
            self._engine.apply({entry.article_id: None}, [], _NO_VECTORS)
            return True
        visible = self._visible(entry.article_id)
        if visible is None or visible[0] != entry.revision:
            return False  # until then the engine shows what it has
        ids = [passage_id(entry.article_id, entry.revision, n) for n in range(visible[1])]
        passages = self._collection.get(ids)
        found = self._collection.get_vectors(ids)
        passages = [p for p in passages if p.id in found]
        if len(passages) < len(ids):
            if self._visible(entry.article_id) != visible:
                return False  # replaced, and its rows swept, while this read them
            log.error(
                "article %r lacks %d of %d passages in the collection: index it again",
                entry.article_id,
                len(ids) - len(passages),
                len(ids),
            )
        vectors: FloatArray = np.array([found[p.id] for p in passages], dtype=np.float32)
        self._engine.apply({entry.article_id: entry.revision}, passages, vectors)
        return True

    def _visible(self, article_id: str) -> tuple[int, int] | None:
        return self._store.visible_passages([article_id]).get(article_id)
