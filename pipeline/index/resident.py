"""The resident engine: vectors, postings, filter columns and passages of one process in memory, exact on both legs.

Every search scores every passage: one product with the matrix, one pass over the postings. Exact scoring of some hundred
thousand passages takes milliseconds, needs no approximate index, and a passage added is searchable at once.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from operator import itemgetter
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage, passage_parts
from pipeline.encoding.encoder import FloatArray
from pipeline.index import dense_kernels, int8_kernels, lexical_kernels
from pipeline.index.engine import DENSE_DECIMALS, LEXICAL_DECIMALS, Candidates, EngineQuery, Revisions
from pipeline.index.fields import LexicalFields, LexicalParameters, PassageScorer, PreparedQueries
from pipeline.index.filter_columns import FilterColumns
from pipeline.index.lexical import part_of
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.packing import packed, unpacked
from pipeline.index.vectors import Nearest, vectors_on

_PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_QUERIES_A_THREAD = 3  # of a batch at least: with fewer, reading the matrix once more costs what the thread saves
_ROWS_FOR_A_THREAD = 20_000  # with fewer, waking one takes what it saves
_FIRST_CAPACITY = 1024  # rows; doubled whenever they run out

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]
_NO_ROWS: Rows = np.zeros(0, dtype=np.intp)
Column = NDArray[np.float64]


class _Proposed(NamedTuple):
    """Rows that a leg proposes, ascending, with both scores, and which leg it was."""

    rows: Rows
    dense: Column
    lexical: Column
    by_dense: Mask
    by_words: Mask


# A passage as it is kept: id, article id, and itself compressed, a third of its size as objects. A plain tuple: Python's
# collector looks once at one of strings and bytes, and never again.
_Text = tuple[str, str, bytes]

_NO_TEXT: _Text = ("", "", b"")  # of a row that is not in use
_id_of, _article_of = itemgetter(0), itemgetter(1)


def _passage_of(text: _Text) -> Passage:
    return unpacked(text[2])


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
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.RLock()

    @property
    def count(self) -> int:
        return len(self._row_of)

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors, postings and stored passages."""
        with self._lock:
            return self._vectors.nbytes + self._lexical.memory_bytes + sum(len(packed) for _, _, packed in self._texts)

    def add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        with self._lock:
            self._add(passages, vectors)

    def apply(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        with self._lock:
            self._remove([row for article_id in revisions for row in self._rows_of_article.pop(article_id, [])])
            self._add(passages, vectors)

    def revisions(self) -> dict[str, int]:
        with self._lock:
            firsts = [self._texts[rows[0]][0] for rows in self._rows_of_article.values() if rows]
        return {article_id: revision for article_id, revision, _ in map(passage_parts, firsts)}

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        with self._lock:
            found = {i: self._texts[self._row_of[i]][2] for i in ids if i in self._row_of}
        return {i: unpacked(data) for i, data in found.items()}

    def read(self, ids: Sequence[str]) -> tuple[list[Passage], FloatArray]:
        """Those of `ids` that are here, in that order, and their vectors, float32 (n, dim)."""
        with self._lock:
            rows = [self._row_of[i] for i in ids if i in self._row_of]
            found = [self._texts[row][2] for row in rows]
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
            data = [text[2] for text in self._texts]
            arrays: dict[str, NDArray[Any]] = {
                "vectors": self._vectors.first(end),
                "ids": _bytes_of([text[0] for text in self._texts]),
                "packed": np.frombuffer(b"".join(data), dtype=np.uint8),
                "packed_ends": np.cumsum([len(each) for each in data], dtype=np.int64),
            }
            # Copies, as the others are: the engine goes on while they are written to disk.
            arrays |= {f"lexical.{name}": array.copy() for name, array in self._lexical.state().items()}
            arrays |= {f"columns.{name}": array.copy() for name, array in self._columns.state().items()}
            return arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what is here; the arrays become this object's own. Nothing is done where it raises."""
        data, ends = state["packed"].tobytes(), state["packed_ends"].tolist()
        texts = [
            (i, i.rsplit("#", 2)[0], data[start:end]) if i else _NO_TEXT
            for i, (start, end) in zip(_texts_of(state["ids"]), pairwise([0, *ends]), strict=True)
        ]
        row_of = {text[0]: row for row, text in enumerate(texts) if text[0]}
        rows_of_article: dict[str, list[int]] = defaultdict(list)
        for row in row_of.values():
            rows_of_article[texts[row][1]].append(row)
        articles = np.zeros(len(state["columns.used"]), dtype=np.int32)
        articles[: len(texts)] = [rows_of_article[article_id][0] if i else 0 for i, article_id, _ in texts]
        lexical, columns = LexicalFields(self._lexical.parameters), FilterColumns()
        lexical.restore(part_of(state, "lexical."))
        columns.restore(part_of(state, "columns."))
        vectors = vectors_on(self._device, self._vectors.dim)
        vectors.reserve(len(state["vectors"]))
        vectors.put(np.arange(len(state["vectors"]), dtype=np.intp), state["vectors"])
        with self._lock:
            self._texts, self._articles, self._row_of, self._rows_of_article = texts, articles, row_of, rows_of_article
            self._free = [row for row, text in enumerate(texts) if not text[0]]
            self._lexical, self._columns, self._vectors = lexical, columns, vectors

    def search(self, query: EngineQuery) -> Candidates:
        return self.search_many([query])[0]

    def search_many(self, queries: Sequence[EngineQuery]) -> list[Candidates]:
        """What `search` gives for each, all of the same moment and in less time than one after the other."""
        with self._lock:
            found: dict[int, Candidates] = {}
            for most in {query.candidates for query in queries}:
                places = [place for place, query in enumerate(queries) if query.candidates == most]
                found |= zip(places, self._found_by_threads([queries[place] for place in places], most), strict=True)
            return [found[place] for place in range(len(queries))]

    def _found_by_threads(self, queries: Sequence[EngineQuery], k: int) -> list[Candidates]:
        """What `_found` gives, by as many threads as there are processors and work for them; the lock is held for all."""
        parts = min(_PROCESSORS, len(queries) // _QUERIES_A_THREAD)
        if parts < 2:
            return self._found(queries, k)
        ends = [len(queries) * part // parts for part in range(parts + 1)]
        found = self._threads().map(lambda part: self._found(queries[part[0] : part[1]], k), pairwise(ends))
        return list(chain.from_iterable(found))

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_PROCESSORS, "resident engine")
        return self._pool

    def _found(self, queries: Sequence[EngineQuery], k: int) -> list[Candidates]:
        """The candidates of queries that all want `k` a leg: a few calls of compiled code for all of them."""
        filters = list(dict.fromkeys(query.filter for query in queries))
        masks = np.stack([self._columns.mask(filter_) for filter_ in filters])
        mask_of = np.array([filters.index(query.filter) for query in queries], dtype=np.intp)
        scores = np.empty(self._lexical.morphemes.capacity)
        prepared, near, scored = self._both_legs(queries, masks, mask_of, k, scores)
        rows, lexical, places, by_words, ends = lexical_kernels.candidates(
            prepared.fields, prepared.bases, prepared.shape, self._columns.used, masks, mask_of, k,
            10.0**LEXICAL_DECIMALS, near.rows, near.ends, scores, scored,
        )  # fmt: skip
        dense = self._dense(queries, rows, places, ends, near.products)
        found: list[Candidates] = []
        for number, (start, end) in enumerate(pairwise(ends.tolist())):
            proposed = _Proposed(
                rows[start:end], dense[start:end], lexical[start:end], places[start:end] >= 0, by_words[start:end]
            )
            found.append(self._candidates(queries[number], self._without_surplus(proposed, k), prepared, number))
        return found

    def _both_legs(
        self, queries: Sequence[EngineQuery], masks: Mask, mask_of: Rows, k: int, scores: Column
    ) -> tuple[PreparedQueries, Nearest, bool]:
        """The words of the queries, what is near their vectors, and whether `scores` is what all rows score: for a query alone
        another thread does that meanwhile."""
        words = [query.terms for query in queries]
        both = len(queries) == 1 and queries[0].vector is not None and queries[0].terms is not None
        if not both or len(self._texts) < _ROWS_FOR_A_THREAD or _PROCESSORS == 1:
            return self._lexical.prepared(words), self._nearest(queries, masks, mask_of, k), False

        def scored() -> PreparedQueries:
            prepared = self._lexical.prepared(words)
            lexical_kernels.write_scores(prepared.fields, prepared.bases, prepared.shape, self._columns.used, 0, scores)
            return prepared

        beside = self._threads().submit(scored)
        try:
            near = self._nearest(queries, masks, mask_of, k)
        finally:  # whatever happens, the other thread reads nothing any more when the lock is given away
            prepared = scored() if beside.cancel() else beside.result()
        return prepared, near, True

    def _dense(
        self,
        queries: Sequence[EngineQuery],
        rows: Rows,
        places: NDArray[np.int64],
        ends: NDArray[np.int64],
        near: Column,
    ) -> Column:
        """float64 like `rows`: inner products, those of `near` by their `places` there (-1: none); NaN where a query has no vector."""
        dense = np.full(len(rows), np.nan)
        known = places >= 0
        dense[known] = near[places[known]]
        vectors = {number: query.vector for number, query in enumerate(queries) if query.vector is not None}
        place_of = np.full(len(queries), -1, dtype=np.intp)  # in `vectors`
        place_of[list(vectors)] = np.arange(len(vectors))
        owners = np.repeat(place_of, np.diff(ends))
        missing = ~known & (owners >= 0)
        if missing.any():
            products = self._vectors.products(rows[missing], np.stack(list(vectors.values())), owners[missing])
            dense[missing] = np.round(products, DENSE_DECIMALS)
        return dense

    def _nearest(self, queries: Sequence[EngineQuery], masks: Mask, mask_of: Rows, k: int) -> Nearest:
        """Of a query without a vector no row is near."""
        asking = [number for number, query in enumerate(queries) if query.vector is not None]
        if not asking or not masks.shape[1]:
            return Nearest(_NO_ROWS, np.zeros(0), np.zeros(len(queries) + 1, dtype=np.int64))
        vectors = np.stack([query.vector for query in queries if query.vector is not None])
        found = self._vectors.nearest(vectors, masks, mask_of[asking], k, 10.0**DENSE_DECIMALS)
        sizes = np.zeros(len(queries) + 1, dtype=np.int64)
        sizes[np.array(asking) + 1] = np.diff(found.ends)
        return Nearest(found.rows, found.products, np.cumsum(sizes))

    def _candidates(
        self, query: EngineQuery, proposed: _Proposed, prepared: PreparedQueries, number: int
    ) -> Candidates:
        """What is proposed for `query`, the one with this number in `prepared`."""
        rows, dense = proposed.rows, proposed.dense
        lexical = proposed.lexical if query.terms is not None else np.full(len(rows), np.nan)
        lexical_best, rarest = 0.0, 1.0
        if query.terms is not None and len(rows):
            lexical_best = float(lexical.max())
            best: list[int] = rows[lexical == lexical_best].tolist()
            first = min(best, key=lambda row: self._texts[row][0])
            rarest = self._lexical.rarest(query.terms, prepared, number, first)
        # They do not change; what stands in a row may as soon as the lock is free.
        texts = list(map(self._texts.__getitem__, rows.tolist()))
        return Candidates(
            passage_ids=_Each(texts, _id_of),
            article_ids=_Each(texts, _article_of),
            dense=dense,
            lexical=lexical,
            dense_best=float(dense.max()) if query.vector is not None and len(rows) else 0.0,
            lexical_best=lexical_best,
            lexical_attainable=float(prepared.attainable[number]),
            lexical_rarest=rarest,
            passages=_Each(texts, _passage_of),
            articles=self._articles[rows],
        )

    def _without_surplus(self, proposed: _Proposed, k: int) -> _Proposed:
        """Of the rows that tie at the end of a leg's `k` best, the first by id; seldom are there any more."""
        if np.count_nonzero(proposed.by_dense) <= k and np.count_nonzero(proposed.by_words) <= k:
            return proposed
        kept = self._first(proposed.rows, proposed.by_dense, proposed.dense, k) | self._first(
            proposed.rows, proposed.by_words, proposed.lexical, k
        )
        rows, dense, lexical, by_dense, by_words = proposed
        return _Proposed(rows[kept], dense[kept], lexical[kept], by_dense[kept], by_words[kept])

    def _first(self, rows: Rows, of_leg: Mask, scores: Column, k: int) -> Mask:
        """Which of the leg's rows are its `k` best, by score and id."""
        places = np.flatnonzero(of_leg).tolist()
        places.sort(key=lambda place: (-scores[place], self._texts[rows[place]][0]))
        kept = np.zeros(len(rows), dtype=bool)
        kept[places[:k]] = True
        return kept

    def _add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        if not passages:
            return
        rows = self._take_rows(len(passages))
        for row, passage in zip(rows, passages, strict=True):
            self._texts[row] = (passage.id, passage.article_id, packed(passage))
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
            del self._row_of[self._texts[row][0]]
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
        self._articles = np.concatenate([self._articles, np.zeros(capacity - len(self._articles), dtype=np.int32)])


def _bytes_of(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts without control characters as one array."""
    return np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)


def _texts_of(data: NDArray[np.uint8]) -> list[str]:
    return data.tobytes().decode().split("\0") if len(data) else []


def compile_all() -> None:
    """Compiles what searches need, or reads it from disk (half a second, seconds for the first time on a machine), so that the
    first search need not."""
    ones, floats, ends = np.ones(1), np.ones(1, np.float32), np.zeros(2, np.int64)
    masks, mask_of, numbers = np.ones((1, 1), np.bool_), np.zeros(1, np.intp), np.zeros(0, np.int32)
    address = np.array([floats.__array_interface__["data"][0]])
    for products in (np.zeros((1, 1, 1), np.int32), np.zeros((1, 1, 1), np.float32)):
        dense_kernels.nearest(
            products, floats, floats, floats, floats, address, np.ones((1, 1)), masks, mask_of, 1, 1.0
        )
    dense_kernels.exact_products(address, 1, np.ones((1, 1)), mask_of, mask_of)
    if int8_kernels.available():
        coarse, _, _ = int8_kernels.coarsened(np.ones((1, 1), np.float32))
        int8_kernels.multiply(coarse, np.zeros(0, np.int64), np.zeros((0, 1, 64), np.int32))
    segments = np.zeros((0, 5), np.int64)
    field = (segments, np.zeros(1, np.int32), np.ones(2), numbers, np.zeros(0), ends)
    words = ((field,) * 3, ones, np.ones(3), masks[0])
    lexical_kernels.write_scores(*words, 0, ones)
    lexical_kernels.candidates(*words, masks, mask_of, 1, 1.0, mask_of, ends, ones, True)
    lexical_kernels.holds(segments, numbers, 0)
