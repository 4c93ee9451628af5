"""Keeps an engine in step with the change log: loads what is visible, then applies one article after the other.

Whoever owns it decides when to look (`catch_up`); two calls at a time wait for each other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

from pipeline.documents import passage_id
from pipeline.encoding.encoder import FloatArray
from pipeline.index.collection import Collection
from pipeline.index.engine import Engine
from pipeline.storage.articles import ArticleStore, LogEntry

log = logging.getLogger(__name__)

_LOAD_BATCH = 2000  # rows; about 4 MB of vectors and text
_LOG_BATCH = 200
_NO_VECTORS: FloatArray = np.zeros((0, 0), dtype=np.float32)


class Follower:
    """The position of one engine in the change log. `seq`: all changes accepted up to it are applied here."""

    def __init__(self, store: ArticleStore, collection: Collection, engine: Engine) -> None:
        self._store = store
        self._collection = collection
        self._engine = engine
        self._position = 0
        self._lock = threading.Lock()
        self.seq = 0
        self.loaded = False

    def load(self, on_progress: Callable[[int], None] = lambda _rows: None) -> None:
        """Fills the empty engine with every visible passage, and catches up with what changed meanwhile.

        After a failure the engine is empty again, so that loading can be tried anew.
        """
        with self._lock:
            position, seq, visible = self._store.visible()
            added: set[str] = set()
            try:
                for passages, vectors in self._collection.iterate(_LOAD_BATCH):
                    kept = [i for i, p in enumerate(passages) if visible.get(p.article_id) == p.revision]
                    added.update(passages[i].article_id for i in kept)
                    self._engine.add([passages[i] for i in kept], vectors[kept])
                    on_progress(len(passages))
            except BaseException:
                for article_id in added:
                    self._engine.apply(article_id, None, [], _NO_VECTORS)
                raise
            self._position, self.seq = position, seq
        self.catch_up()
        self.loaded = True

    def resume(self, position: int, seq: int) -> int:
        """Goes on from an engine that already holds what was visible at `position`; gives the entries applied since."""
        with self._lock:
            self._position, self.seq = position, seq
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
                for entry in newest.values():
                    self._apply(entry)
                if entries:
                    self._position = entries[-1].position
                    applied += len(entries)
                if len(entries) < _LOG_BATCH:
                    self.seq = max(self.seq, seq)
                    return applied

    def _apply(self, entry: LogEntry) -> None:
        if entry.revision is None:
            self._engine.apply(entry.article_id, None, [], _NO_VECTORS)
            return
        visible = self._visible(entry.article_id)
        if visible is None or visible[0] != entry.revision:
            return  # replaced since: a later entry says by what, and until then the engine shows what it has
        ids = [passage_id(entry.article_id, entry.revision, n) for n in range(visible[1])]
        passages = self._collection.get(ids)
        found = self._collection.get_vectors(ids)
        passages = [p for p in passages if p.id in found]
        if len(passages) < len(ids):
            if self._visible(entry.article_id) != visible:
                return  # replaced, and its rows swept, while this read them
            log.error(
                "article %r lacks %d of %d passages in the collection: index it again",
                entry.article_id,
                len(ids) - len(passages),
                len(ids),
            )
        vectors: FloatArray = np.array([found[p.id] for p in passages], dtype=np.float32)
        self._engine.apply(entry.article_id, entry.revision, passages, vectors)

    def _visible(self, article_id: str) -> tuple[int, int] | None:
        return self._store.visible_passages([article_id]).get(article_id)
