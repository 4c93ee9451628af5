"""A live BM25 index: documents of terms come and go by row, and scores are those of a fresh index over what is there.

Rows are numbers the caller chooses, so that vectors, postings and filter columns share them. Statistics (documents,
lengths, document frequencies) are exact after every call; no call rebuilds the corpus. The vocabulary only grows: a term
that no document holds any more keeps its number and counts for nothing.

The formulas are those of `bm25.py`. Where rank_bm25 divides by zero (no document, or no term in any) every score is 0 here.

Knows nothing about tokenisation, articles or fusion. Not thread-safe: its owner locks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidInput
from pipeline.index import lexical_kernels
from pipeline.index.bm25 import Formula, Scores, Variant
from pipeline.index.postings import SEGMENT_POSTINGS, Integers, Postings, TermNumbers
from pipeline.index.statistics import DocumentScorer, Terms, TermStatistics

Rows = Sequence[int] | NDArray[np.integer]
# Segments' addresses, lengths, the line of the norms; numbers and factors of the terms, and where those of each query end.
Prepared = tuple[NDArray[np.int64], NDArray[np.int32], Scores, NDArray[np.int32], Scores, NDArray[np.int64]]

_MAX_ROWS = 1 << 31  # postings hold rows as int32
_NOTHING = np.zeros(0, dtype=bool)


class LexicalIndex:
    """BM25 over rows of terms.

    The parameters are those of `bm25.Formula`, which raises InvalidInput for unusable ones.
    `segment_postings` bounds a merge: a smaller one makes the longest pause shorter and every query a little slower.
    """

    def __init__(
        self,
        *,
        variant: Variant = "lucene",
        k1: float | None = None,
        b: float | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
        segment_postings: int = SEGMENT_POSTINGS,
    ) -> None:
        self._statistics = TermStatistics(Formula(variant, k1=k1, b=b, epsilon=epsilon, delta=delta))
        self._formula = self._statistics.formula
        self._postings = Postings(segment_postings)
        self._batch_terms = segment_postings
        self._lengths: NDArray[np.int32] = np.zeros(0, dtype=np.int32)  # by row, in terms

    @property
    def variant(self) -> Variant:
        return self._formula.variant

    @property
    def parameters(self) -> Mapping[str, float]:
        """`k1`, `b` and, where the variant has them, `epsilon` or `delta`, as they are in force."""
        return self._formula.parameters

    @property
    def capacity(self) -> int:
        """Rows there is room for, used or not: the length of `scores`."""
        return self._postings.capacity

    @property
    def documents(self) -> int:
        """Rows in use: N of the formulas."""
        return self._statistics.documents

    @property
    def average_length(self) -> float:
        """Mean length of the documents, in terms; 0.0 without documents."""
        return self._statistics.average_length

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arrays and of the vocabulary; walks the vocabulary, so not for every request."""
        return self._postings.nbytes + self._lengths.nbytes + self._statistics.memory_bytes

    def document_frequency(self, term: str) -> int:
        """Documents that hold `term`."""
        return self._statistics.document_frequency(term)

    def reserve(self, capacity: int) -> None:
        """Makes room for rows below `capacity`, exactly; never shrinks. `add` doubles by itself when a row needs it."""
        if capacity > self.capacity:
            self._postings.reserve(capacity)
            self._lengths = np.concatenate([self._lengths, np.zeros(capacity - len(self._lengths), dtype=np.int32)])

    def add(self, rows: Rows, documents: Sequence[Sequence[str]]) -> None:
        """Puts `documents[i]`, its terms with repetitions, at `rows[i]`.

        Raises InvalidInput, with nothing added, for a row that is negative, given twice or in use, and for lists of
        different lengths.
        """
        placed = self._places(rows, len(documents))
        for start, end in _batches(documents, self._batch_terms) if len(placed) else ():
            numbers, lengths = self._statistics.numbers_of(documents[start:end])
            self._add_numbers(placed[start:end], numbers, lengths)

    def add_spelled(self, rows: Rows, spelled: Sequence[str], which: Integers, lengths: Integers) -> None:
        """`add` of documents given as their distinct terms, which of these stand in them, one document after the other, and the
        number of terms of each. Raises as `add` does."""
        placed = self._places(rows, len(lengths))
        if len(placed):
            self._add_numbers(placed, self._statistics.numbers_of_terms(spelled)[which], lengths)

    def remove(self, rows: Rows) -> None:
        """Takes the documents at `rows` out. Raises InvalidInput, with nothing removed, for one that is not in use."""
        gone = _distinct_rows(rows)
        _refuse(gone[~self._postings.in_use(gone)], "is not in use", "remove what was added, once")
        length = int(self._lengths[gone].sum(dtype=np.int64))
        self._statistics.remove(self._postings.remove(gone), documents=len(gone), length=length)

    def scorer(self, terms: Terms) -> DocumentScorer:
        """Gives any document, here or not, the score for `terms` that it would have here and now."""
        return self._statistics.scorer(terms)

    def scores(self, terms: Terms) -> Scores:
        """float64 (capacity,): every document's score, higher is better; 0 for rows that are not in use.

        Raises InvalidInput for a weight that is negative or not finite.
        """
        total = np.zeros(self.capacity)
        self.add_scores(total, terms)
        return total

    def add_scores(self, total: Scores, terms: Terms, weight: float = 1.0) -> None:
        """Adds `weight` (>= 0) times every document's score to `total`, float64 (capacity,). Raises InvalidInput as `scores`."""
        self._add_scores(total, terms, weight, _NOTHING)

    def top(self, terms: Terms, k: int, mask: NDArray[np.bool_] | None = None) -> tuple[Integers, Scores]:
        """The `k` best documents that hold a term of the query: rows intp and scores float64, best first.

        Equal scores are ordered by row. `mask`, bool (capacity,), says which rows may be given. For `plus` too, a document
        without any of the terms is not given: all such documents have one and the same lowest score. Raises InvalidInput
        for k < 1.
        """
        if k < 1:
            raise InvalidInput(f"k should be >= 1, is {k}", "ask for at least one")
        scores, matched = np.zeros(self.capacity), np.zeros(self.capacity, dtype=bool)
        self._add_scores(scores, terms, 1.0, matched)
        rows = np.flatnonzero(matched if mask is None else matched & mask)
        found = scores[rows]
        if len(rows) > k:
            threshold = np.partition(found, len(found) - k)[len(found) - k]
            above = found > threshold
            # Of the documents at the threshold the first rows fill the places that are left.
            above[np.flatnonzero(found == threshold)[: k - int(above.sum())]] = True
            rows, found = rows[above], found[above]
        order = np.lexsort((rows, -found))
        return rows[order], found[order]

    def held(self, terms: Terms, row: int) -> list[str]:
        """The query's terms that the document at `row` holds, in the order of the query."""
        holds = lexical_kernels.holds(self._postings.addresses(), self._statistics.weighed([terms]).numbers, row)
        return list(compress(dict.fromkeys(terms), holds.tolist()))

    @property
    def shape(self) -> Scores:
        """As `lexical_kernels.candidates` takes it."""
        return self._formula.shape

    def state(self) -> dict[str, NDArray[Any]]:
        """Every array, by name; `restore` makes an equal index of it. Read them only."""
        arrays = {f"postings.{name}": array for name, array in self._postings.state().items()}
        arrays |= {f"statistics.{name}": array for name, array in self._statistics.state().items()}
        return arrays | {"lengths": self._lengths}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what is here; the arrays become this object's own."""
        self._postings.restore(part_of(state, "postings."))
        self._statistics.restore(part_of(state, "statistics."))
        self._lengths = state["lengths"]

    def _places(self, rows: Rows, documents: int) -> Integers:
        """`rows`, checked for so many documents, with room made for them."""
        placed = _distinct_rows(rows)
        if len(placed) != documents:
            raise InvalidInput(f"{len(placed)} rows were given for {documents} documents", "give a row for each")
        _refuse(placed[self._postings.in_use(placed)], "is in use", "remove it first")
        needed = int(placed.max(initial=-1)) + 1
        if needed > self.capacity:
            self.reserve(max(needed, 2 * self.capacity))
        return placed

    def _add_numbers(self, rows: Integers, numbers: TermNumbers, lengths: Integers) -> None:
        held = self._postings.add(rows, numbers, lengths)
        self._statistics.add(held, documents=len(rows), length=int(lengths.sum()))
        self._lengths[rows] = lengths

    def prepared(self, queries: Sequence[Terms], weight: float) -> tuple[Prepared, Scores, Scores]:
        """What `lexical_kernels.candidates` takes for `weight` times the scores of each query, valid until the next change; what
        every document scores beside, float64 (len(queries),); and what is attainable by each term, without `weight`."""
        numbers, weights, idf, attainable, ends = self._statistics.weighed(queries)
        weights *= weight
        bases = np.array([self._formula.base(weights[a:b], idf[a:b]) for a, b in pairwise(ends.tolist())])
        line = np.array(self._formula.norm_line(self.average_length))
        factors = self._formula.factors(weights, idf)
        return (self._postings.addresses(), self._lengths, line, numbers, factors, ends), bases, attainable

    def _add_scores(self, total: Scores, terms: Terms, weight: float, matched: NDArray[np.bool_]) -> None:
        (segments, lengths, line, numbers, factors, _), bases, _ = self.prepared([terms], weight)
        lexical_kernels.add_scores(total, matched, segments, numbers, factors, lengths, line, self._formula.shape)
        if bases[0]:
            total[self._postings.alive()] += bases[0]


def part_of(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays of `state` whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def _distinct_rows(rows: Rows) -> Integers:
    given = np.asarray(rows, dtype=np.intp)
    _refuse(given[(given < 0) | (given >= _MAX_ROWS)], "is not a row", "rows are 0..2**31 - 1")
    distinct, times = np.unique(given, return_counts=True)
    _refuse(distinct[times > 1], "is given twice", "give each row once")
    return given


def _refuse(rows: Integers, complaint: str, hint: str) -> None:
    if len(rows):
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise InvalidInput(f"row {int(rows[0])}{more} {complaint}", hint)


def _batches(documents: Sequence[Sequence[str]], most: int) -> Iterator[tuple[int, int]]:
    """[start, end) of runs of documents with at most `most` terms, or of one document: a bulk load in little memory."""
    start, size = 0, 0
    for index, document in enumerate(documents):
        if size and size + len(document) > most:
            yield start, index
            start, size = index, 0
        size += len(document)
    yield start, len(documents)
