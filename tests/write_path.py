"""The write path with its real stores and a fake encoder, put together by hand for the tests of ingest, worker and follower."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from indexers.worker import Worker
from pipeline.documents import Article
from pipeline.encoding.encoder import Encoder
from pipeline.ingest import Ingest, Written
from pipeline.korean.morphemes import Analyser
from pipeline.passages import ChunkingParameters, Passages
from pipeline.storage import leases
from pipeline.storage.articles import ArticleStore
from tests.fakes import FakeEncoder, InterruptibleCollection

DIM = 32
_PATIENCE = 120.0  # seconds until a worker should have ended
_ONE_PARAGRAPH = 16  # tokens of FakeEncoder (words): two paragraphs of ten do not fit


@dataclass(frozen=True)
class Stage:
    """The write path with everything that a test looks at."""

    store: ArticleStore
    collection: InterruptibleCollection
    encoder: FakeEncoder
    analyser: Analyser
    uri: str

    def ingest(
        self,
        encoder: Encoder | None = None,
        *,
        grace: float = 0.0,
        max_tokens: int = _ONE_PARAGRAPH,
        carries: bool = False,
    ) -> Ingest:
        encoder = encoder or self.encoder
        return Ingest(
            passages=Passages(self.analyser, encoder, ChunkingParameters(max_tokens, overlap_sentences=0)),
            encoder=encoder,
            collection=self.collection,
            store=self.store,
            grace_seconds=grace,
            carries=carries,
        )

    def publish(self, *articles: Article, ingest: Ingest | None = None) -> Written:
        self.store.accept_many(articles, source="test")
        return self.drain(ingest)

    def delete(self, article_id: str) -> Written:
        self.store.accept_delete(article_id)
        return self.drain()

    def drain(self, ingest: Ingest | None = None) -> Written:
        batch = self.store.queued(100)
        lease = leases.acquire(self.store.database, "worker", "test", 60)
        assert lease is not None
        ingest = ingest or self.ingest()
        try:
            return ingest.write(batch, ingest.analyse(batch), lease)
        finally:
            leases.release(self.store.database, lease)

    def rows(self) -> Counter[tuple[str, int]]:
        """Rows of the collection by article and revision."""
        return Counter((article_id, revision) for _, article_id, revision in self.collection.iterate_ids())

    def shown(self, article_id: str) -> list[str]:
        """The texts of the visible passages, in order; what a reader gets who trusts the registry."""
        visible = self.store.visible_passages([article_id]).get(article_id)
        if visible is None:
            return []
        revision, count = visible
        passages = self.collection.get([f"{article_id}#{revision}#{n}" for n in range(count)])
        assert len(passages) == count
        return [p.text for p in passages]


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    """The worker at work on a thread of its own, which ends with the block."""
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        worker.wake()
        thread.join(_PATIENCE)
        assert not thread.is_alive()
