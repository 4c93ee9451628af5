"""The one write path: accepted changes → passages → vectors and terms → rows of the collection → one commit.

`analyse` needs the processor (Kiwi, on its own threads), `write` the encoder and the stores, so a worker overlaps them.
Rows of a new revision stand beside the old ones until the commit makes them visible; a crash anywhere leaves the inbox as
it was, and doing a change twice gives the same rows. Knows neither the clock nor where changes come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

import numpy as np

from pipeline.documents import Change, Passage, passage_id
from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.index import rows
from pipeline.index.collection import Collection
from pipeline.index.engine import Revisions
from pipeline.passages import AnalysedPassage, MakesPassages, encode
from pipeline.storage.acceptance import PUSH
from pipeline.storage.articles import ArticleStore
from pipeline.storage.leases import Lease
from pipeline.storage.rows import Indexed

log = logging.getLogger(__name__)

Read = Callable[[Sequence[str]], tuple[list[Passage], FloatArray]]  # ids → passages and their vectors, float32 (n, dim)
KnownVectors = Mapping[tuple[str, str], FloatArray]  # (article id, content hash) → vector, float32 (dim,)

_TOLD_TOGETHER = 100  # passages; taking them in stops searches for some 15 ms
_CARRIED_PASSAGES = 32  # an article of more is read from the collection: 32 are some 200 kB
_CARRIED_SECONDS = 60.0  # who follows the log is behind by less than a second, mostly


@dataclass(frozen=True, slots=True)
class Written:
    """What a batch came to: articles indexed and deleted, passages written and, of these, encoded."""

    articles: int
    deleted: int
    passages: int
    encoded: int


class Ingest:
    """Carries batches of accepted changes into the collection and the registry. For one worker at a time."""

    def __init__(
        self,
        *,
        passages: MakesPassages,
        encoder: Encoder,
        collection: Collection,
        store: ArticleStore,
        grace_seconds: float = 5.0,
        carries: bool = False,
    ) -> None:
        """`carries`: other processes follow the log, and small changes bring their rows with the commit."""
        self._passages = passages
        self._encoder = encoder
        self._collection = collection
        self._store = store
        self._grace_seconds = grace_seconds
        self._carries = carries
        # Told of the articles that became visible or vanished, after the commit: (id → revision, passages, vectors).
        self.observer: Callable[[Revisions, Sequence[Passage], FloatArray], None] | None = None
        self.memory: Read | None = None  # of the passages that this process holds itself

    def analyse(self, batch: Sequence[Change]) -> list[list[AnalysedPassage]]:
        """The passages of each change; none for a delete and for an article that is not to be shown."""
        shown = [(c.seq, c.article) for c in batch if c.article is not None and c.article.visible]
        made = iter(self._passages.of(shown))
        return [next(made) if c.article is not None and c.article.visible else [] for c in batch]

    def write(self, batch: Sequence[Change], analysed: Sequence[list[AnalysedPassage]], lease: Lease) -> Written:
        """Encodes what is new, writes the rows and commits. Raises what the encoder, the stores and the lease raise."""
        counts = self._store.visible_passages(
            change.article_id for change, parts in zip(batch, analysed, strict=True) if parts
        )
        vectors, encoded = self.put(analysed, known_vectors(self._read, counts))
        done = self._done(batch, analysed, vectors)
        name = self._collection.name
        shown = self._store.commit(done, lease, grace_seconds=self._grace_seconds, collection=name)
        self._tell(batch, analysed, vectors, shown)
        deleted = sum(1 for change in batch if change.article is None)
        return Written(len(batch) - deleted, deleted, len(vectors), encoded)

    def put(self, analysed: Sequence[list[AnalysedPassage]], known: KnownVectors) -> tuple[FloatArray, int]:
        """Writes the rows of these passages and commits nothing; gives all their vectors, float32 (n, dim), in order, and how
        many were encoded: those with content in `known` are copied."""
        passages = list(chain.from_iterable(analysed))
        vectors = np.zeros((len(passages), self._encoder.dim), dtype=np.float32)
        fresh = []
        for place, one in enumerate(passages):
            copy = known.get((one.passage.article_id, one.passage.content_hash)) if known else None
            if copy is None:
                fresh.append(place)
            else:
                vectors[place] = copy
        if fresh:
            vectors[fresh] = encode(self._encoder, [passages[place] for place in fresh])
        if passages:
            self._collection.upsert([one.passage for one in passages], vectors)
        return vectors, len(fresh)

    def _read(self, ids: Sequence[str]) -> tuple[list[Passage], FloatArray]:
        if self.memory is not None:
            passages, vectors = self.memory(ids)
            if len(passages) == len(ids):
                return passages, vectors
        return self._collection.read(ids)

    def flush(self) -> None:
        """Lets the collection write what it holds in memory into its searchable form; due after a bulk load."""
        self._collection.flush()

    def _done(
        self, batch: Sequence[Change], analysed: Sequence[list[AnalysedPassage]], vectors: FloatArray
    ) -> list[Indexed]:
        done = []
        end = 0
        for change, parts in zip(batch, analysed, strict=True):
            begin, end = end, end + len(parts)
            carried = self._carries and change.lane == PUSH and 0 < len(parts) <= _CARRIED_PASSAGES
            text = rows.to_text([one.passage for one in parts], vectors[begin:end]) if carried else ""
            done.append(Indexed(change, len(parts), text))
        return done

    def sweep(self, lease: Lease | None = None) -> int:
        """Deletes rows of replaced revisions whose grace is over; gives the number of revisions swept. With a `lease` that was
        lost meanwhile nothing is forgotten, and LeaseLost raised."""
        now = datetime.now(UTC)
        due = self._store.due_leftovers()
        if due:
            self._collection.delete(
                passage_id(one.article_id, one.revision, ordinal)
                for one in due
                if one.revision
                for ordinal in range(one.passages)
            )
            self._collection.delete_replaced({o.article_id: (o.keep, o.before) for o in due if not o.revision})
            self._store.forget_leftovers(due, before=now, lease=lease)
        return len(due)

    def drop_carried(self) -> None:
        """Forgets the rows that went with commits of a while ago: who has not read them yet reads the collection."""
        if self._carries:
            self._store.drop_carried(_CARRIED_SECONDS)

    def _tell(
        self,
        batch: Sequence[Change],
        analysed: Sequence[list[AnalysedPassage]],
        vectors: FloatArray,
        shown: AbstractSet[int],
    ) -> None:
        """A few articles at a time: together they are quicker, but no search should wait for all of a batch."""
        if self.observer is None:
            return
        revisions: dict[str, int | None] = {}
        passages: list[Passage] = []
        places: list[int] = []
        seen = 0
        for number, (change, parts) in enumerate(zip(batch, analysed, strict=True), start=1):
            if change.seq in shown:
                revisions[change.article_id] = change.seq if parts else None
                passages += [p.passage for p in parts]
                places += range(seen, seen + len(parts))
            seen += len(parts)
            if len(passages) >= _TOLD_TOGETHER or number == len(batch):
                self.observer(revisions, passages, vectors[places])
                revisions, passages, places = {}, [], []


def known_vectors(read: Read, counts: Mapping[str, tuple[int, int]]) -> KnownVectors:
    """The vectors that there are of these articles (id → revision, passages), by their content."""
    ids = [
        passage_id(article_id, revision, ordinal)
        for article_id, (revision, count) in counts.items()
        for ordinal in range(count)
    ]
    if not ids:
        return {}
    passages, vectors = read(ids)
    return {(p.article_id, p.content_hash): vector for p, vector in zip(passages, vectors, strict=True)}
