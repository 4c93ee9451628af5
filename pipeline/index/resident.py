"""The resident engine: vectors, postings, filter columns and passages of one process in memory, exact on both legs.

Every search scores every passage: one product with the matrix, one pass over the postings. Exact scoring of some hundred
thousand passages takes milliseconds, needs no approximate index, and a passage added is searchable at once.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline.documents import Passage, passage_parts
from pipeline.encoding.encoder import FloatArray
from pipeline.index.engine import DENSE_DECIMALS, LEXICAL_DECIMALS, Candidates, EngineQuery, Revisions, inner_products
from pipeline.index.fields import LexicalFields, LexicalParameters, LexicalQuery, PassageScorer
from pipeline.index.filters import Filter
from pipeline.index.lexical import part_of
from pipeline.index.packing import PackedPassages, packed, unpacked
from pipeline.index.vectors import vectors_on

_FIRST_CAPACITY = 1024  # rows; doubled whenever they run out
_NO_TIME = np.iinfo(np.int64).min  # published_at of a passage that has none: fails every condition on time
_NO_VALUE = -1  # code of a missing category, series or source
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CODED = ("category", "series", "source")

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]


class ResidentEngine:
    """All visible passages, by row. Rows of removed passages are used again."""

    def __init__(self, dim: int, parameters: LexicalParameters, *, device: str = "cpu") -> None:
        self._device = device
        self._vectors = vectors_on(device, dim)
        self._lexical = LexicalFields(parameters)
        self._columns = _FilterColumns()
        self._ids: list[str | None] = []
        self._articles: list[str] = []
        self._packed: list[bytes] = []  # passages as compressed bytes: a third of their size as objects
        self._row_of: dict[str, int] = {}
        self._rows_of_article: dict[str, list[int]] = defaultdict(list)
        self._free: list[int] = []
        self._lock = threading.RLock()

    @property
    def count(self) -> int:
        return len(self._row_of)

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors, postings and stored passages."""
        with self._lock:
            return self._vectors.nbytes + self._lexical.memory_bytes + sum(map(len, self._packed))

    def add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        with self._lock:
            self._add(passages, vectors)

    def apply(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        with self._lock:
            self._remove([row for article_id in revisions for row in self._rows_of_article.pop(article_id, [])])
            self._add(passages, vectors)

    def revisions(self) -> dict[str, int]:
        with self._lock:
            firsts = [self._ids[rows[0]] or "" for rows in self._rows_of_article.values() if rows]
        return {article_id: revision for article_id, revision, _ in map(passage_parts, firsts)}

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        with self._lock:
            found = {i: self._packed[self._row_of[i]] for i in ids if i in self._row_of}
        return {i: unpacked(data) for i, data in found.items()}

    def read(self, ids: Sequence[str]) -> tuple[list[Passage], FloatArray]:
        """Those of `ids` that are here, in that order, and their vectors, float32 (n, dim)."""
        with self._lock:
            rows = [self._row_of[i] for i in ids if i in self._row_of]
            found = [self._packed[row] for row in rows]
            vectors = self._vectors.at(np.array(rows, dtype=np.intp))
        return list(map(unpacked, found)), vectors

    def scorer(self, query: LexicalQuery) -> PassageScorer:
        """Scores any passage as if it stood here now: for those who find passages elsewhere (`milvus_search.py`)."""
        with self._lock:
            return self._lexical.scorer(query)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, by name, for a snapshot; `restore` makes an equal engine of it."""
        with self._lock:
            end = len(self._ids)
            packed = np.frombuffer(b"".join(self._packed), dtype=np.uint8)
            arrays: dict[str, NDArray[Any]] = {
                "vectors": self._vectors.first(end),
                "ids": _bytes_of([i or "" for i in self._ids]),
                "packed": packed,
                "packed_ends": np.cumsum([len(data) for data in self._packed], dtype=np.int64),
            }
            arrays |= {f"lexical.{name}": array for name, array in self._lexical.state().items()}
            arrays |= {f"columns.{name}": array for name, array in self._columns.state().items()}
            # Copies: the engine goes on while they are written to disk.
            return {name: array.copy() for name, array in arrays.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what is here; the arrays become this object's own. Nothing is done where it raises."""
        ids = [i or None for i in _texts_of(state["ids"])]
        articles = [passage_parts(i)[0] if i else "" for i in ids]
        data, ends = state["packed"].tobytes(), state["packed_ends"].tolist()
        row_of = {i: row for row, i in enumerate(ids) if i}
        rows_of_article: dict[str, list[int]] = defaultdict(list)
        for row in row_of.values():
            rows_of_article[articles[row]].append(row)
        lexical, columns = LexicalFields(self._lexical.parameters), _FilterColumns()
        lexical.restore(part_of(state, "lexical."))
        columns.restore(part_of(state, "columns."))
        vectors = vectors_on(self._device, self._vectors.dim)
        vectors.reserve(lexical.morphemes.capacity)
        vectors.put(np.arange(len(state["vectors"]), dtype=np.intp), state["vectors"])
        with self._lock:
            self._ids, self._articles, self._row_of, self._rows_of_article = ids, articles, row_of, rows_of_article
            self._packed = [data[start:end] for start, end in pairwise([0, *ends])]
            self._free = [row for row, i in enumerate(ids) if not i]
            self._lexical, self._columns, self._vectors = lexical, columns, vectors

    def search(self, query: EngineQuery) -> Candidates:
        with self._lock:
            alive = self._columns.mask(query.filter)
            dense, lexical = self._dense(query), self._lexical_scores(query)
            proposed: set[int] = set()
            if dense is not None:
                proposed.update(self._top(dense, alive, query.candidates))
            if lexical is not None:
                proposed.update(self._top(lexical, alive & (lexical > 0), query.candidates))
            rows = np.array(sorted(proposed), dtype=np.intp)
            nothing = np.full(len(rows), np.nan)
            exact = self._dense_at(query.vector, rows) if query.vector is not None else nothing
            return Candidates(
                passage_ids=[self._ids[row] or "" for row in rows],
                article_ids=[self._articles[row] for row in rows],
                dense=exact,
                lexical=lexical[rows] if lexical is not None else nothing,
                dense_best=float(exact.max()) if dense is not None and len(rows) else 0.0,
                lexical_best=float(lexical[alive].max()) if lexical is not None and alive.any() else 0.0,
                lexical_attainable=self._lexical.scorer(query.terms).attainable if query.terms is not None else 0.0,
                lexical_rarest=self._rarest(query.terms, lexical, rows),
                passages=PackedPassages({self._ids[row] or "": self._packed[row] for row in rows.tolist()}),
            )

    def _rarest(self, terms: LexicalQuery | None, lexical: NDArray[np.float64] | None, rows: Rows) -> float:
        if terms is None or lexical is None or not len(rows):
            return 1.0
        scores = lexical[rows]
        best: list[int] = rows[scores == scores.max()].tolist()
        return terms.rarest(self._lexical.held(terms, min(best, key=lambda row: self._ids[row] or "")))

    def _dense(self, query: EngineQuery) -> NDArray[np.float64] | None:
        if query.vector is None:
            return None
        products: NDArray[np.float64] = self._vectors.products(query.vector, len(self._ids)).astype(np.float64)
        return np.round(products, DENSE_DECIMALS)

    def _dense_at(self, vector: FloatArray, rows: Rows) -> NDArray[np.float64]:
        """The scores of a few rows, without the error of float32 that depends on a row's place and neighbours."""
        return inner_products(self._vectors.at(rows), vector)

    def _lexical_scores(self, query: EngineQuery) -> NDArray[np.float64] | None:
        if query.terms is None:
            return None
        return np.round(self._lexical.scores(query.terms)[: len(self._ids)], LEXICAL_DECIMALS)

    def _top(self, scores: NDArray[np.float64], allowed: Mask, k: int) -> Iterable[int]:
        """The `k` best allowed rows; of those that tie at the end, the first by id."""
        rows = np.flatnonzero(allowed)
        if len(rows) <= k:
            return rows.tolist()
        found = scores[rows] if len(rows) < len(scores) else scores
        threshold = np.partition(found, len(found) - k)[len(found) - k]
        above: list[int] = rows[found > threshold].tolist()
        tied = rows[found == threshold].tolist()
        return above + sorted(tied, key=lambda row: self._ids[row] or "")[: k - len(above)]

    def _add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        if not passages:
            return
        rows = self._take_rows(len(passages))
        for row, passage in zip(rows, passages, strict=True):
            self._ids[row] = passage.id
            self._articles[row] = passage.article_id
            self._packed[row] = packed(passage)
            self._row_of[passage.id] = row
            self._rows_of_article[passage.article_id].append(row)
        at = np.array(rows, dtype=np.intp)
        self._vectors.put(at, vectors)
        self._lexical.add(at, passages)
        self._columns.add(at, passages)

    def _remove(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        for row in rows:
            del self._row_of[self._ids[row] or ""]
            self._ids[row], self._articles[row], self._packed[row] = None, "", b""
        at = np.array(rows, dtype=np.intp)
        self._vectors.put(at, np.zeros((len(at), self._vectors.dim), dtype=np.float32))
        self._lexical.remove(at)
        self._columns.remove(at)
        self._free += rows

    def _take_rows(self, n: int) -> list[int]:
        reused = [self._free.pop() for _ in range(min(n, len(self._free)))]
        fresh = list(range(len(self._ids), len(self._ids) + n - len(reused)))
        self._ids += [None] * len(fresh)
        self._articles += [""] * len(fresh)
        self._packed += [b""] * len(fresh)
        if len(self._ids) > self._vectors.capacity:
            self._grow(max(len(self._ids), 2 * self._vectors.capacity, _FIRST_CAPACITY))
        return reused + fresh

    def _grow(self, capacity: int) -> None:
        self._vectors.reserve(capacity)
        self._lexical.reserve(capacity)
        self._columns.reserve(capacity)


class _FilterColumns:
    """The filter fields as arrays by row: a filter is a handful of vectorised comparisons."""

    def __init__(self) -> None:
        self._used = np.zeros(0, dtype=bool)
        self._published = np.zeros(0, dtype=np.int64)
        self._codes = {name: np.zeros(0, dtype=np.int32) for name in _CODED}
        self._code_of: dict[str, dict[str, int]] = {name: {} for name in _CODED}
        self._rows_of_tag: dict[str, set[int]] = defaultdict(set)
        self._tags: dict[int, tuple[str, ...]] = {}
        self._length = 0

    def reserve(self, capacity: int) -> None:
        more = capacity - len(self._used)
        self._used = np.concatenate([self._used, np.zeros(more, dtype=bool)])
        self._published = np.concatenate([self._published, np.full(more, _NO_TIME, dtype=np.int64)])
        for name in _CODED:
            self._codes[name] = np.concatenate([self._codes[name], np.full(more, _NO_VALUE, dtype=np.int32)])

    def add(self, rows: Rows, passages: Sequence[Passage]) -> None:
        self._length = max(self._length, int(rows.max()) + 1)
        self._used[rows] = True
        self._published[rows] = [_microseconds(p.published_at) for p in passages]
        for name in _CODED:
            self._codes[name][rows] = [self._code(name, getattr(p, name)) for p in passages]
        for row, passage in zip(rows.tolist(), passages, strict=True):
            self._tags[row] = passage.tags
            for tag in passage.tags:
                self._rows_of_tag[tag].add(row)

    def remove(self, rows: Rows) -> None:
        self._used[rows] = False
        for row in rows.tolist():
            for tag in self._tags.pop(row):
                self._rows_of_tag[tag].discard(row)

    def state(self) -> dict[str, NDArray[Any]]:
        """Every column; names of codes and tags as JSON in bytes."""
        named = {"code_of": self._code_of, "tags": [[row, *tags] for row, tags in self._tags.items()]}
        return {
            "used": self._used,
            "published": self._published,
            "length": np.array([self._length]),
            "named": np.frombuffer(orjson.dumps(named), dtype=np.uint8),
            **{f"codes.{name}": codes for name, codes in self._codes.items()},
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        named = orjson.loads(state["named"].tobytes())
        self._used, self._published = state["used"], state["published"]
        self._length = int(state["length"][0])
        self._codes = part_of(state, "codes.")
        self._code_of = named["code_of"]
        self._tags = {row: tuple(tags) for row, *tags in named["tags"]}
        self._rows_of_tag = defaultdict(set)
        for row, tags in self._tags.items():
            for tag in tags:
                self._rows_of_tag[tag].add(row)

    def mask(self, filter_: Filter) -> Mask:
        """bool (rows in use,): which rows hold a visible passage that passes."""
        end = self._length
        mask = self._used[:end].copy()
        for name in _CODED:
            value = getattr(filter_, name)
            if value is not None:
                mask &= self._codes[name][:end] == self._code_of[name].get(value, _NO_VALUE - 1)
        if filter_.tag is not None:
            tagged = np.zeros(end, dtype=bool)
            tagged[list(self._rows_of_tag.get(filter_.tag, ()))] = True
            mask &= tagged
        if filter_.since is not None:
            mask &= self._published[:end] >= _microseconds(filter_.since)
        if filter_.until is not None:
            published = self._published[:end]
            mask &= (published < _microseconds(filter_.until)) & (published != _NO_TIME)
        return mask

    def _code(self, name: str, value: str | None) -> int:
        return _NO_VALUE if value is None else self._code_of[name].setdefault(value, len(self._code_of[name]))


def _bytes_of(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts without control characters as one array."""
    return np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)


def _texts_of(data: NDArray[np.uint8]) -> list[str]:
    return data.tobytes().decode().split("\0") if len(data) else []


def _microseconds(moment: datetime | None) -> int:
    return _NO_TIME if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)
