"""The resident engine: vectors, postings, filter columns and passages of one process in memory, exact on both legs.

Every search scores every passage: one product with the matrix, one pass over the postings. Exact scoring of some hundred
thousand passages takes milliseconds, needs no approximate index, and a passage added is searchable at once.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage, passage_parts
from pipeline.encoding.encoder import FloatArray
from pipeline.index import kernels
from pipeline.index.engine import DENSE_DECIMALS, LEXICAL_DECIMALS, Candidates, EngineQuery, Revisions
from pipeline.index.fields import LexicalFields, LexicalParameters, LexicalQuery, PassageScorer
from pipeline.index.filter_columns import FilterColumns
from pipeline.index.filters import Filter
from pipeline.index.lexical import part_of
from pipeline.index.packing import packed, unpacked
from pipeline.index.vectors import vectors_on

_FIRST_CAPACITY = 1024  # rows; doubled whenever they run out

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]
_NO_ROWS: Rows = np.zeros(0, dtype=np.intp)
_TINY = np.finfo(np.float64).tiny


class _Text(NamedTuple):
    """A passage as it is kept: compressed, a third of its size as objects."""

    id: str
    article_id: str
    packed: bytes


_NO_TEXT = _Text("", "", b"")  # of a row that is not in use
_id_of, _article_of = attrgetter("id"), attrgetter("article_id")


def _passage_of(text: _Text) -> Passage:
    return unpacked(text.packed)


class _Each(Sequence[Any]):
    """What `of` makes of each text, made when it is looked at: of hundreds of candidates ten are."""

    def __init__(self, texts: Sequence[_Text], of: Callable[[_Text], Any]) -> None:
        self._texts = texts
        self._of = of

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._of(text) for text in self._texts[index]]
        return self._of(self._texts[index])


class ResidentEngine:
    """All visible passages, by row. Rows of removed passages are used again."""

    def __init__(self, dim: int, parameters: LexicalParameters, *, device: str = "cpu") -> None:
        self._device = device
        self._vectors = vectors_on(device, dim)
        self._lexical = LexicalFields(parameters)
        self._columns = FilterColumns()
        self._texts: list[_Text] = []
        self._articles = np.zeros(0, dtype=np.int32)  # by row: a number that no other article has, one of its rows
        self._row_of: dict[str, int] = {}
        self._rows_of_article: dict[str, list[int]] = defaultdict(list)
        self._free: list[int] = []
        self._scores = np.zeros(0)  # by row: where a search adds up its lexical scores
        self._lock = threading.RLock()

    @property
    def count(self) -> int:
        return len(self._row_of)

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors, postings and stored passages."""
        with self._lock:
            return self._vectors.nbytes + self._lexical.memory_bytes + sum(len(text.packed) for text in self._texts)

    def add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        with self._lock:
            self._add(passages, vectors)

    def apply(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        with self._lock:
            self._remove([row for article_id in revisions for row in self._rows_of_article.pop(article_id, [])])
            self._add(passages, vectors)

    def revisions(self) -> dict[str, int]:
        with self._lock:
            firsts = [self._texts[rows[0]].id for rows in self._rows_of_article.values() if rows]
        return {article_id: revision for article_id, revision, _ in map(passage_parts, firsts)}

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        with self._lock:
            found = {i: self._texts[self._row_of[i]].packed for i in ids if i in self._row_of}
        return {i: unpacked(data) for i, data in found.items()}

    def read(self, ids: Sequence[str]) -> tuple[list[Passage], FloatArray]:
        """Those of `ids` that are here, in that order, and their vectors, float32 (n, dim)."""
        with self._lock:
            rows = [self._row_of[i] for i in ids if i in self._row_of]
            found = [self._texts[row].packed for row in rows]
            vectors = self._vectors.at(np.array(rows, dtype=np.intp))
        return list(map(unpacked, found)), vectors

    def scorer(self, query: LexicalQuery) -> PassageScorer:
        """Scores any passage as if it stood here now: for those who find passages elsewhere (`milvus_search.py`)."""
        with self._lock:
            return self._lexical.scorer(query)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, by name, for a snapshot; `restore` makes an equal engine of it."""
        with self._lock:
            end = len(self._texts)
            data = [text.packed for text in self._texts]
            arrays: dict[str, NDArray[Any]] = {
                "vectors": self._vectors.first(end),
                "ids": _bytes_of([text.id for text in self._texts]),
                "packed": np.frombuffer(b"".join(data), dtype=np.uint8),
                "packed_ends": np.cumsum([len(each) for each in data], dtype=np.int64),
            }
            arrays |= {f"lexical.{name}": array for name, array in self._lexical.state().items()}
            arrays |= {f"columns.{name}": array for name, array in self._columns.state().items()}
            # Copies: the engine goes on while they are written to disk.
            return {name: array.copy() for name, array in arrays.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what is here; the arrays become this object's own. Nothing is done where it raises."""
        data, ends = state["packed"].tobytes(), state["packed_ends"].tolist()
        texts = [
            _Text(i, passage_parts(i)[0], data[start:end]) if i else _NO_TEXT
            for i, (start, end) in zip(_texts_of(state["ids"]), pairwise([0, *ends]), strict=True)
        ]
        row_of = {text.id: row for row, text in enumerate(texts) if text.id}
        rows_of_article: dict[str, list[int]] = defaultdict(list)
        for row in row_of.values():
            rows_of_article[texts[row].article_id].append(row)
        articles = np.zeros(len(state["columns.used"]), dtype=np.int32)
        for rows in rows_of_article.values():
            articles[rows] = rows[0]
        lexical, columns = LexicalFields(self._lexical.parameters), FilterColumns()
        lexical.restore(part_of(state, "lexical."))
        columns.restore(part_of(state, "columns."))
        vectors = vectors_on(self._device, self._vectors.dim)
        vectors.reserve(len(state["vectors"]))
        vectors.put(np.arange(len(state["vectors"]), dtype=np.intp), state["vectors"])
        with self._lock:
            self._texts, self._articles, self._row_of, self._rows_of_article = texts, articles, row_of, rows_of_article
            self._free = [row for row, text in enumerate(texts) if not text.id]
            self._lexical, self._columns, self._vectors = lexical, columns, vectors
            self._scores = np.zeros(lexical.morphemes.capacity)

    def search(self, query: EngineQuery) -> Candidates:
        return self.search_many([query])[0]

    def search_many(self, queries: Sequence[EngineQuery]) -> list[Candidates]:
        """What `search` gives for each, all of the same moment: the vectors of all are multiplied at once."""
        with self._lock:
            masks = {query.filter: self._columns.mask(query.filter) for query in queries}
            near = self._nearest([query for query in queries if query.vector is not None], masks)
            return [
                self._candidates(query, masks[query.filter], next(near) if query.vector is not None else _NO_ROWS)
                for query in queries
            ]

    def _nearest(self, queries: Sequence[EngineQuery], masks: Mapping[Filter, Mask]) -> Iterator[Rows]:
        if not queries:
            return iter(())
        vectors = np.stack([query.vector for query in queries if query.vector is not None])
        most = max(query.candidates for query in queries)
        return iter(self._vectors.nearest(vectors, [masks[query.filter] for query in queries], most))

    def _candidates(self, query: EngineQuery, alive: Mask, near: Rows) -> Candidates:
        best_dense, lexical_scores, best_lexical = _NO_ROWS, None, _NO_ROWS
        lexical_best = 0.0
        if query.vector is not None:
            best_dense = self._best(near, self._dense_at(query.vector, near), query.candidates)
        if query.terms is not None:
            lexical_scores = self._lexical.scores(query.terms, self._scores)[: len(alive)]
            found = self._with_words(lexical_scores, alive, query.candidates)
            rounded = np.round(lexical_scores[found], LEXICAL_DECIMALS)
            best_lexical = self._best(found[rounded > 0], rounded[rounded > 0], query.candidates)
            lexical_best = float(rounded.max(initial=0.0))
        rows = np.union1d(best_dense, best_lexical)
        nothing = np.full(len(rows), np.nan)
        dense = self._dense_at(query.vector, rows) if query.vector is not None else nothing
        lexical = np.round(lexical_scores[rows], LEXICAL_DECIMALS) if lexical_scores is not None else nothing
        texts = [
            self._texts[row] for row in rows.tolist()
        ]  # they do not change, the rows may as soon as the lock is free
        return Candidates(
            passage_ids=_Each(texts, _id_of),
            article_ids=_Each(texts, _article_of),
            dense=dense,
            lexical=lexical,
            dense_best=float(dense.max()) if query.vector is not None and len(rows) else 0.0,
            lexical_best=lexical_best,
            lexical_attainable=self._lexical.attainable(query.terms) if query.terms is not None else 0.0,
            lexical_rarest=self._rarest(query.terms, rows, lexical),
            passages=_Each(texts, _passage_of),
            articles=self._articles[rows].tolist(),
        )

    def _with_words(self, scores: NDArray[np.float64], alive: Mask, k: int) -> Rows:
        """The rows with the `k` best positive scores, and those that may tie with the last of them once rounded."""
        least = kernels.threshold(scores, alive, k, 0.0) - 10.0**-LEXICAL_DECIMALS
        rows: Rows = kernels.at_least(scores, alive, max(least, _TINY))
        return rows

    def _rarest(self, terms: LexicalQuery | None, rows: Rows, scores: NDArray[np.float64]) -> float:
        if terms is None or not len(rows):
            return 1.0
        best: list[int] = rows[scores == scores.max()].tolist()
        return terms.rarest(self._lexical.held(terms, min(best, key=lambda row: self._texts[row].id)))

    def _dense_at(self, vector: FloatArray, rows: Rows) -> NDArray[np.float64]:
        """The dense scores of a few rows, which depend on nothing but the two vectors."""
        return np.round(self._vectors.products(rows, vector), DENSE_DECIMALS)

    def _best(self, rows: Rows, scores: NDArray[np.float64], k: int) -> Rows:
        """The `k` of `rows` with the best `scores`; of those that tie at the end, the first by id."""
        if len(rows) <= k:
            return rows
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = rows[scores > threshold]
        tied = rows[scores == threshold]
        if len(above) + len(tied) > k:
            first = sorted(tied.tolist(), key=lambda row: self._texts[row].id)[: k - len(above)]
            tied = np.array(first, dtype=np.intp)
        return np.concatenate([above, tied])

    def _add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        if not passages:
            return
        rows = self._take_rows(len(passages))
        for row, passage in zip(rows, passages, strict=True):
            self._texts[row] = _Text(passage.id, passage.article_id, packed(passage))
            self._row_of[passage.id] = row
            self._rows_of_article[passage.article_id].append(row)
            self._articles[row] = self._rows_of_article[passage.article_id][0]
        at = np.array(rows, dtype=np.intp)
        self._vectors.put(at, vectors)
        self._lexical.add(at, passages)
        self._columns.add(at, passages)

    def _remove(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        for row in rows:
            del self._row_of[self._texts[row].id]
            self._texts[row] = _NO_TEXT
        at = np.array(rows, dtype=np.intp)
        self._vectors.put(at, np.zeros((len(at), self._vectors.dim), dtype=np.float32))
        self._lexical.remove(at)
        self._columns.remove(at)
        self._free += rows

    def _take_rows(self, n: int) -> list[int]:
        reused = [self._free.pop() for _ in range(min(n, len(self._free)))]
        fresh = list(range(len(self._texts), len(self._texts) + n - len(reused)))
        self._texts += [_NO_TEXT] * len(fresh)
        self._vectors.reserve(len(self._texts))
        if len(self._texts) > self._lexical.morphemes.capacity:
            self._grow(max(len(self._texts), 2 * self._lexical.morphemes.capacity, _FIRST_CAPACITY))
        return reused + fresh

    def _grow(self, capacity: int) -> None:
        self._lexical.reserve(capacity)
        self._columns.reserve(capacity)
        self._scores = np.zeros(capacity)
        self._articles = np.concatenate([self._articles, np.zeros(capacity - len(self._articles), dtype=np.int32)])


def _bytes_of(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts without control characters as one array."""
    return np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)


def _texts_of(data: NDArray[np.uint8]) -> list[str]:
    return data.tobytes().decode().split("\0") if len(data) else []
