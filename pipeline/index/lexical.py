"""A live BM25 index: documents of terms come and go by row, and scores are those of a fresh index over what is there.

Rows are numbers the caller chooses, so that vectors, postings and filter columns share them. Statistics (documents,
lengths, document frequencies) are exact after every call; no call rebuilds the corpus. The vocabulary only grows: a term
that no document holds any more keeps its number and counts for nothing.

    variant   idf(t)                                    part of a document that holds t (tf times, length dl)
    lucene    ln(1 + (N - df + .5) / (df + .5))         tf / (tf + K)
    okapi     ln((N - df + .5) / (df + .5)), floored    (k1 + 1) tf / (tf + K)
    l         ln((N + 1) / (df + .5))                   tf (k1 + 1) (c + delta) / (k1 + c + delta), c = k1 tf / K
    plus      ln((N + 1) / df)                          delta + (k1 + 1) tf / (tf + K); delta without the term

    K = k1 (1 - b + b dl / avgdl); a score is the sum of weight(t) idf(t) part(t, document) over the query's terms.

`lucene` is Kamphuis, de Vries, Boytsov, Lin: "Which BM25 do you mean? A large-scale reproducibility study of scoring
variants", ECIR 2020, with exact lengths; it has no factor (k1 + 1), as Lucene since 8.0: ranks are the same, scores lower.
`okapi`, `l` and `plus` are rank_bm25's, from its code, not from the papers: a negative Okapi idf becomes epsilon
times the average idf of the vocabulary (before flooring), and `l` is multiplied by tf, so that only `plus` scores
documents without a term.
Where rank_bm25 divides by zero (no document, or no term in any) every score is 0 here.

Knows nothing about tokenisation, articles or fusion. Not thread-safe: its owner locks.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rank_bm25 import BM25L, BM25Okapi, BM25Plus

from pipeline.errors import InvalidInput, shown
from pipeline.index.postings import SEGMENT_POSTINGS, Counts, Integers, Postings, TermNumbers

Variant = Literal["lucene", "okapi", "l", "plus"]
Scores = NDArray[np.float64]
Rows = Sequence[int] | NDArray[np.integer]
Terms = Mapping[str, float] | Sequence[str]  # weighted terms, or terms of weight 1 that add up where they repeat

_LUCENE = {"k1": 1.2, "b": 0.75}  # Lucene's BM25Similarity
_RANK_BM25 = {"okapi": BM25Okapi, "l": BM25L, "plus": BM25Plus}
_MAX_ROWS = 1 << 31  # postings hold rows as int32
_TINY = np.finfo(np.float64).tiny  # keeps 0 / (0 + K) at 0 where K is 0: erased postings, k1 = 0, b = 1


class LexicalIndex:
    """BM25 over rows of terms.

    `k1` >= 0, `b` in 0..1; `epsilon` is for okapi alone, `delta` for l and plus. What is None takes the variant's own
    default: Lucene's, or the one in the signature of rank_bm25's class. Raises InvalidInput for anything else.
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
        self._variant = variant
        self._parameters = _checked_parameters(variant, {"k1": k1, "b": b, "epsilon": epsilon, "delta": delta})
        self._postings = Postings(segment_postings)
        self._batch_terms = segment_postings
        # Looking an unknown term up gives it the next number, without a step in Python.
        self._vocabulary: defaultdict[str, int] = defaultdict(count().__next__)
        self._df: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # by term number
        self._lengths: NDArray[np.int32] = np.zeros(0, dtype=np.int32)  # by row, in terms
        self._documents = 0
        self._total_length = 0
        self._forget_derived()

    @property
    def variant(self) -> Variant:
        return self._variant

    @property
    def parameters(self) -> Mapping[str, float]:
        """`k1`, `b` and, where the variant has them, `epsilon` or `delta`, as they are in force."""
        return dict(self._parameters)

    @property
    def capacity(self) -> int:
        """Rows there is room for, used or not: the length of `scores`."""
        return self._postings.capacity

    @property
    def documents(self) -> int:
        """Rows in use: N of the formulas."""
        return self._documents

    @property
    def average_length(self) -> float:
        """Mean length of the documents, in terms; 0.0 without documents."""
        return self._total_length / self._documents if self._documents else 0.0

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arrays and of the vocabulary; walks the vocabulary, so not for every request."""
        words = sys.getsizeof(self._vocabulary) + sum(sys.getsizeof(term) + 28 for term in self._vocabulary)
        return self._postings.nbytes + self._df.nbytes + self._lengths.nbytes + words

    def document_frequency(self, term: str) -> int:
        """Documents that hold `term`."""
        number = self._vocabulary.get(term)
        return 0 if number is None or number >= len(self._df) else int(self._df[number])

    def reserve(self, capacity: int) -> None:
        """Makes room for rows below `capacity`, exactly; never shrinks. `add` doubles by itself when a row needs it."""
        if capacity > self.capacity:
            self._postings.reserve(capacity)
            self._lengths = np.concatenate([self._lengths, np.zeros(capacity - len(self._lengths), dtype=np.int32)])
            self._forget_derived()

    def add(self, rows: Rows, documents: Sequence[Sequence[str]]) -> None:
        """Puts `documents[i]`, its terms with repetitions, at `rows[i]`.

        Raises InvalidInput, with nothing added, for a row that is negative, given twice or in use, and for lists of
        different lengths.
        """
        placed = _distinct_rows(rows)
        if len(placed) != len(documents):
            raise InvalidInput(f"{len(placed)} rows were given for {len(documents)} documents", "give a row for each")
        _refuse(placed[self._postings.in_use(placed)], "is in use", "remove it first")
        if not len(placed):
            return
        needed = int(placed.max()) + 1
        if needed > self.capacity:
            self.reserve(max(needed, 2 * self.capacity))
        for start, end in _batches(documents, self._batch_terms):
            self._add_batch(placed[start:end], documents[start:end])
        self._forget_derived()

    def remove(self, rows: Rows) -> None:
        """Takes the documents at `rows` out. Raises InvalidInput, with nothing removed, for one that is not in use."""
        gone = _distinct_rows(rows)
        _refuse(gone[~self._postings.in_use(gone)], "is not in use", "remove what was added, once")
        np.subtract.at(self._df, self._postings.remove(gone), 1)
        self._documents -= len(gone)
        self._total_length -= int(self._lengths[gone].sum(dtype=np.int64))
        self._forget_derived()

    def scores(self, terms: Terms) -> Scores:
        """float64 (capacity,): every document's score, higher is better; 0 for rows that are not in use.

        Raises InvalidInput for a weight that is negative or not finite.
        """
        return self._scores(terms)[0]

    def scores_at(self, terms: Terms, rows: Rows) -> Scores:
        """float64 (len(rows),): `scores(terms)[rows]`; 0 for rows not in use.

        Its cost grows with the rows and the segments, not with the documents: for hundreds of rows among fewer than some
        200,000 documents `scores` is the faster one.
        """
        at = np.asarray(rows, dtype=np.intp)
        numbers, weights, _ = self._query(terms)
        used = self._postings.in_use(at)
        if not len(numbers) or not used.any():
            return np.zeros(len(at))
        scores = np.where(used, self._base(numbers, weights), 0.0)
        norms = self._norms()[np.where(used, at, 0)]
        counts = self._postings.counts_at(numbers, at)
        for column, weight in enumerate(self._factors(numbers, weights).tolist()):
            scores += self._part(counts[:, column], norms.copy()) * weight
        return scores

    def top(self, terms: Terms, k: int, mask: NDArray[np.bool_] | None = None) -> tuple[Integers, Scores]:
        """The `k` best documents that hold a term of the query: rows intp and scores float64, best first.

        Equal scores are ordered by row. `mask`, bool (capacity,), says which rows may be given. For `plus` too, a document
        without any of the terms is not given: all such documents have one and the same lowest score. Raises InvalidInput
        for k < 1.
        """
        if k < 1:
            raise InvalidInput(f"k should be >= 1, is {k}", "ask for at least one")
        scores, matched = self._scores(terms)
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

    def matched(self, terms: Terms, rows: Rows) -> list[list[str]]:
        """For each row the query's terms that its document holds, in the order of the query."""
        numbers, _, known = self._query(terms)
        held = self._postings.counts_at(numbers, np.asarray(rows, dtype=np.intp)) > 0
        return [[known[column] for column in np.flatnonzero(line).tolist()] for line in held]

    def _add_batch(self, rows: Integers, documents: Sequence[Sequence[str]]) -> None:
        lengths = np.fromiter(map(len, documents), dtype=np.intp, count=len(documents))
        numbers = np.fromiter(
            map(self._vocabulary.__getitem__, chain.from_iterable(documents)), dtype=np.int32, count=int(lengths.sum())
        )
        if len(self._vocabulary) > len(self._df):
            grown = np.zeros(max(len(self._vocabulary), 2 * len(self._df)), dtype=np.int64)
            grown[: len(self._df)] = self._df
            self._df = grown
        np.add.at(self._df, self._postings.add(rows, numbers, lengths), 1)
        self._lengths[rows] = lengths
        self._documents += len(rows)
        self._total_length += int(lengths.sum())

    def _query(self, terms: Terms) -> tuple[TermNumbers, Scores, list[str]]:
        """Numbers, weights and spellings of the query's terms that some document holds, each once."""
        weights = dict(terms) if isinstance(terms, Mapping) else _counted(terms)
        for term, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise InvalidInput(f"the weight of {shown(term)} should be finite and >= 0, is {weight}", "correct it")
        known = [term for term, weight in weights.items() if weight and self.document_frequency(term)]
        numbers = np.array([self._vocabulary[term] for term in known], dtype=np.int32)
        return numbers, np.array([weights[term] for term in known], dtype=np.float64), known

    def _scores(self, terms: Terms) -> tuple[Scores, NDArray[np.bool_]]:
        """The scores, and which rows hold a term of the query."""
        numbers, weights, _ = self._query(terms)
        scores = np.zeros(self.capacity)
        if not len(numbers):
            return scores, np.zeros(self.capacity, dtype=bool)
        factors = self._factors(numbers, weights)
        # Where every factor is positive, so is every part: the score itself tells who matched.
        telling = bool((factors > 0).all())
        matched = np.zeros(self.capacity, dtype=bool)
        norms = self._norms()
        for index, rows, tf in self._postings.gather(numbers):
            if not telling:
                matched[rows[tf > 0]] = True
            part = self._part(tf, norms.take(rows))
            part *= factors[index]
            np.add.at(scores, rows, part)  # numpy >= 1.25: faster than scores[rows] += part
        if telling:
            matched = scores > 0
        base = self._base(numbers, weights)
        if base:
            scores[self._postings.alive()] += base
        return scores, matched

    def _forget_derived(self) -> None:
        """Drops what follows from the statistics, to be computed anew by the next query that needs it."""
        self._cached_norms: Scores | None = None
        self._cached_average_idf: float | None = None

    def _norms(self) -> Scores:
        """float64 (capacity,): K of the formulas by row (K / k1 for `l`), at least the smallest positive number."""
        if self._cached_norms is None:
            k1, b = self._parameters["k1"], self._parameters["b"]
            scale = 1.0 if self._variant == "l" else k1
            norms = self._lengths * (scale * b / (self.average_length or 1.0))
            norms += scale * (1.0 - b)
            self._cached_norms = np.maximum(norms, _TINY, out=norms)
        return self._cached_norms

    def _part(self, tf: Counts, norms: Scores) -> Scores:
        """What a term adds to documents that hold it `tf` times, 0 for tf 0, before `_factors`; uses `norms` up."""
        if self._variant != "l":
            norms += tf
            return np.divide(tf, norms, out=norms)
        k1, delta = self._parameters["k1"], self._parameters["delta"]
        c = np.divide(tf, norms, out=norms)
        return tf * (c + delta) / np.maximum(k1 + c + delta, _TINY)

    def _factors(self, numbers: TermNumbers, weights: Scores) -> Scores:
        """float64 (t,): weight times idf, times (k1 + 1) but for `lucene`."""
        factor = 1.0 if self._variant == "lucene" else self._parameters["k1"] + 1.0
        return weights * self._idf(self._df[numbers]) * factor

    def _base(self, numbers: TermNumbers, weights: Scores) -> float:
        """What every document in use scores whether it holds the terms or not: 0 but for `plus`."""
        if self._variant != "plus":
            return 0.0
        return float((weights * self._idf(self._df[numbers])).sum() * self._parameters["delta"])

    def _idf(self, df: NDArray[np.int64]) -> Scores:
        """float64, like `df` (all > 0)."""
        n = self._documents
        match self._variant:
            case "lucene":
                return np.log1p((n - df + 0.5) / (df + 0.5))
            case "l":
                return np.log((n + 1) / (df + 0.5))
            case "plus":
                return np.log((n + 1) / df)
            case "okapi":
                raw = self._raw_okapi_idf(df)
                return np.where(raw < 0, self._parameters["epsilon"] * self._average_idf(), raw)

    def _raw_okapi_idf(self, df: NDArray[np.int64]) -> Scores:
        # A difference of logarithms, as rank_bm25 has it: exactly 0, not a hair below, where half the documents hold the term.
        idf: Scores = np.log(self._documents - df + 0.5) - np.log(df + 0.5)
        return idf

    def _average_idf(self) -> float:
        """Mean Okapi idf, before flooring, of the terms that some document holds."""
        if self._cached_average_idf is None:
            # Frequencies are few beside terms: one logarithm a frequency, not a term.
            terms = np.bincount(self._df)
            terms[:1] = 0
            df = np.flatnonzero(terms)
            self._cached_average_idf = float(np.average(self._raw_okapi_idf(df), weights=terms[df]))
        return self._cached_average_idf


def _checked_parameters(variant: str, given: Mapping[str, float | None]) -> dict[str, float]:
    if variant not in get_args(Variant):
        raise InvalidInput(
            f"variant should be one of {', '.join(get_args(Variant))}, is {shown(variant)}", "choose one"
        )
    parameters = dict(_LUCENE) if variant == "lucene" else _rank_bm25_defaults(variant)
    for name, value in given.items():
        if value is None:
            continue
        if name not in parameters:
            raise InvalidInput(f"BM25 variant {variant!r} has no parameter {name!r}, {value} was given", "leave it out")
        if not 0 <= value < math.inf or (name == "b" and value > 1):
            rule = "in 0..1" if name == "b" else "finite and >= 0"
            raise InvalidInput(f"BM25 parameter {name!r} should be {rule}, is {value}", "correct it")
        parameters[name] = float(value)
    return parameters


def _rank_bm25_defaults(variant: str) -> dict[str, float]:
    """The numeric defaults of rank_bm25's class, read from its signature so that the two cannot drift apart."""
    signature = inspect.signature(_RANK_BM25[variant].__init__)
    return {
        name: float(parameter.default)
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.default, int | float)
    }


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


def _counted(terms: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for term in terms:
        weights[term] = weights.get(term, 0.0) + 1.0
    return weights


def _batches(documents: Sequence[Sequence[str]], most: int) -> Iterator[tuple[int, int]]:
    """[start, end) of runs of documents with at most `most` terms, or of one document: a bulk load in little memory."""
    start, size = 0, 0
    for index, document in enumerate(documents):
        if size and size + len(document) > most:
            yield start, index
            start, size = index, 0
        size += len(document)
    yield start, len(documents)
