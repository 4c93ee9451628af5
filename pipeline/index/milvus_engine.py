"""The milvus engine: the passages stay in Milvus, memory holds what scoring needs, so a corpus may outgrow the process.

In memory: which revision of each article is visible, and the term statistics (`ArticleStatistics`), or, on a server without
sparse vectors, the whole lexical leg as a resident engine without vectors. `StandIn` answers through Milvus while an
engine loads. How both search is in `milvus_search.py`.

A replaced article never blinks out as long as a search takes less than half of the time for which its old rows are kept
(`indexers.grace_seconds`): before it, a process that has slept for the other half catches up (`connected.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Collection as Bag
from collections.abc import Sequence

import numpy as np

from pipeline.documents import Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.index.article_statistics import ArticleStatistics
from pipeline.index.collection import Collection
from pipeline.index.engine import Candidates, EngineQuery, Revisions
from pipeline.index.fields import LexicalParameters
from pipeline.index.milvus_search import MilvusSearch, Visibility
from pipeline.index.resident import ResidentEngine


class MilvusEngine:
    """All visible passages of a collection, scored as the resident engine scores them. Thread-safe.

    What is added or applied must be in the collection already; vectors that are given are not kept.
    """

    def __init__(self, collection: Collection, parameters: LexicalParameters) -> None:
        self.words: ArticleStatistics | ResidentEngine = (
            ArticleStatistics(parameters) if collection.supports_lexical else ResidentEngine(0, parameters)
        )
        self._visible: dict[str, tuple[int, int]] = {}  # article → visible revision, number of its passages
        self._lock = threading.Lock()
        self._search = MilvusSearch(collection, self.words, self._visible_of, _resident(self.words))

    @property
    def count(self) -> int:
        return self.words.count

    @property
    def memory_bytes(self) -> int:
        """Bytes of the statistics, or of the resident lexical leg."""
        return self.words.memory_bytes

    def search(self, query: EngineQuery) -> Candidates:
        """Raises StoreUnavailable where no leg can answer; see `MilvusSearch.search`."""
        return self._search.search(query)

    def revisions(self) -> dict[str, int]:
        with self._lock:
            return {article_id: revision for article_id, (revision, _) in self._visible.items()}

    def search_many(self, queries: Sequence[EngineQuery]) -> list[Candidates]:
        """One after the other: Milvus works on each by itself. Raises as `search`."""
        return [self.search(query) for query in queries]

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Raises StoreUnavailable where the texts are in Milvus alone and it does not answer."""
        return self._search.passages(ids)

    def add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        if isinstance(self.words, ResidentEngine):
            self.words.add(passages, _without_vectors(passages))
        else:
            self.words.add(passages)
        with self._lock:
            for passage in passages:
                _, known = self._visible.get(passage.article_id, (0, 0))
                self._visible[passage.article_id] = passage.revision, max(known, passage.ordinal + 1)

    def apply(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        of_article: dict[str, list[Passage]] = {article_id: [] for article_id in revisions}
        for passage in passages:
            of_article[passage.article_id].append(passage)
        if isinstance(self.words, ResidentEngine):
            self.words.apply(revisions, passages, _without_vectors(passages))
        else:
            for article_id, some in of_article.items():
                self.words.replace(article_id, some)
        with self._lock:
            for article_id, revision in revisions.items():
                if revision is None:
                    self._visible.pop(article_id, None)
                else:
                    self._visible[article_id] = (
                        revision,
                        max((p.ordinal + 1 for p in of_article[article_id]), default=0),
                    )

    def _visible_of(self, article_ids: Bag[str]) -> dict[str, tuple[int, int]]:
        with self._lock:
            return {a: self._visible[a] for a in article_ids if a in self._visible}


class StandIn:
    """Answers through Milvus in place of an `engine` that is loading; what it is given goes to that engine.

    Which revision is visible is looked up in the registry for each search (`ArticleStore.visible_passages`), so no stale one
    is shown, however far the loading is. Scores rest on the statistics loaded so far, and for terms not met yet on the
    candidates themselves. On a server without sparse vectors the lexical leg finds what is loaded so far.
    """

    def __init__(self, engine: MilvusEngine | ResidentEngine, collection: Collection, visible: Visibility) -> None:
        self._engine = engine
        words = engine.words if isinstance(engine, MilvusEngine) else engine
        self._search = MilvusSearch(collection, words, visible, _resident(words))

    @property
    def count(self) -> int:
        return self._engine.count

    def revisions(self) -> dict[str, int]:
        return self._engine.revisions()

    def search(self, query: EngineQuery) -> Candidates:
        """Raises StoreUnavailable where no leg can answer; see `MilvusSearch.search`."""
        return self._search.search(query)

    def search_many(self, queries: Sequence[EngineQuery]) -> list[Candidates]:
        """One after the other: Milvus works on each by itself. Raises as `search`."""
        return [self.search(query) for query in queries]

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Raises StoreUnavailable where a passage is in Milvus alone and it does not answer."""
        return self._search.passages(ids)

    def add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        self._engine.add(passages, vectors)

    def apply(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        self._engine.apply(revisions, passages, vectors)


def _without_vectors(passages: Sequence[Passage]) -> FloatArray:
    return np.zeros((len(passages), 0), dtype=np.float32)


def _resident(words: ArticleStatistics | ResidentEngine) -> ResidentEngine | None:
    return words if isinstance(words, ResidentEngine) else None
