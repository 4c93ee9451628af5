"""What BM25 must know of a whole corpus to score one document: how many documents, how long, how many hold each term.

Exact after any adds and removals. The vocabulary only grows: a term that no document holds any more keeps its number and
counts for nothing. Knows neither which document holds what nor where a query comes from. Not thread-safe: its owner locks.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidInput, shown
from pipeline.index.bm25 import Counts, Formula, Frequencies, Scores
from pipeline.index.postings import MAX_TF, Integers, TermNumbers

Terms = Mapping[str, float] | Sequence[str]  # weighted terms, or terms of weight 1 that add up where they repeat


class Weighed(NamedTuple):
    """The terms of one query after the other, columns aligned.

    `numbers` int32: -1 for a term that scores nothing, as no document holds it or its weight is 0; `weights` float64: 0 there;
    `idf` float64: that of the rarest there; `attainable` float64: what the term gives a document that says it over and over, one
    that no document holds as the rarest. `ends` int64 (queries + 1,): where each query's end.
    """

    numbers: TermNumbers
    weights: Scores
    idf: Scores
    attainable: Scores
    ends: NDArray[np.int64]


class TermStatistics:
    """Number of documents, total length and document frequencies of a corpus, and the numbers of its terms."""

    def __init__(self, formula: Formula) -> None:
        self.formula = formula
        # Looking an unknown term up gives it the next number, without a step in Python.
        self._vocabulary: defaultdict[str, int] = defaultdict(count().__next__)
        self._df: Frequencies = np.zeros(0, dtype=np.int64)  # by term number
        self._documents = 0
        self._total_length = 0
        self._cached_average_idf: float | None = None

    @property
    def documents(self) -> int:
        """N of the formulas."""
        return self._documents

    @property
    def average_length(self) -> float:
        """Mean length of the documents, in terms; 0.0 without documents."""
        return self._total_length / self._documents if self._documents else 0.0

    @property
    def memory_bytes(self) -> int:
        """Bytes of the frequencies and of the vocabulary; walks the vocabulary, so not for every request."""
        return (
            self._df.nbytes
            + sys.getsizeof(self._vocabulary)
            + sum(sys.getsizeof(term) + 28 for term in self._vocabulary)
        )

    def document_frequency(self, term: str) -> int:
        """Documents that hold `term`."""
        number = self._vocabulary.get(term)
        return 0 if number is None or number >= len(self._df) else int(self._df[number])

    def numbers_of(self, documents: Sequence[Sequence[str]]) -> tuple[TermNumbers, Integers]:
        """The terms of `documents` as numbers, one after the other, and the length of each; new terms get numbers."""
        lengths = np.fromiter(map(len, documents), dtype=np.intp, count=len(documents))
        numbers = np.fromiter(
            map(self._vocabulary.__getitem__, chain.from_iterable(documents)), dtype=np.int32, count=int(lengths.sum())
        )
        self._grow()
        return numbers, lengths

    def numbers_of_terms(self, terms: Sequence[str]) -> TermNumbers:
        """The number of each term, int32 (len(terms),); new terms get numbers."""
        numbers = np.fromiter(map(self._vocabulary.__getitem__, terms), dtype=np.int32, count=len(terms))
        self._grow()
        return numbers

    def _grow(self) -> None:
        if len(self._vocabulary) > len(self._df):
            grown = np.zeros(max(len(self._vocabulary), 2 * len(self._df)), dtype=np.int64)
            grown[: len(self._df)] = self._df
            self._df = grown

    def add(self, held: Integers, *, documents: int, length: int) -> None:
        """Counts `documents` more, of `length` terms together; `held` is an entry for each term that each one holds."""
        np.add.at(self._df, held, 1)
        self._documents += documents
        self._total_length += length
        self._cached_average_idf = None

    def remove(self, held: Integers, *, documents: int, length: int) -> None:
        """Takes back an `add` with these arguments."""
        np.subtract.at(self._df, held, 1)
        self._documents -= documents
        self._total_length -= length
        self._cached_average_idf = None

    def weighed(self, queries: Sequence[Terms]) -> Weighed:
        """The terms of the queries, each once a query. Raises InvalidInput for a weight that is negative or not finite."""
        weighted = [terms if isinstance(terms, Mapping) else _counted(terms) for terms in queries]
        ends = np.array([0, *accumulate(map(len, weighted))], dtype=np.int64)
        spelled = list(chain.from_iterable(weighted))
        weights = np.fromiter(
            chain.from_iterable(each.values() for each in weighted), dtype=np.float64, count=len(spelled)
        )
        if not (weights.min(initial=0.0) >= 0.0 and weights.max(initial=0.0) < np.inf):
            for each in weighted:
                _check_weights(each)
        numbers = np.fromiter(map(self._vocabulary.get, spelled, repeat(-1)), dtype=np.int32, count=len(spelled))
        df = self._df.take(numbers, mode="clip") if len(self._df) else np.zeros(len(numbers), dtype=np.int64)
        held = (numbers >= 0) & (df > 0) & (weights > 0)
        df = np.where(held, df, 1)
        idf = self.formula.idf(df, max(self._documents, 1), self._average_idf())
        return Weighed(
            numbers=np.where(held, numbers, np.int32(-1)),
            weights=np.where(held, weights, 0.0),
            idf=idf,
            attainable=self.formula.attainable(weights, idf),
            ends=ends,
        )

    def scorer(self, terms: Terms) -> DocumentScorer:
        """Scores documents for `terms` by the statistics of this moment. Raises InvalidInput as `query` does."""
        given = terms if isinstance(terms, Mapping) else _counted(terms)
        _check_weights(given)
        weights = {term: weight for term, weight in given.items() if weight}
        return DocumentScorer(
            formula=self.formula,
            columns={term: column for column, term in enumerate(weights)},
            weights=np.array(list(weights.values()), dtype=np.float64),
            df=np.array([self.document_frequency(term) for term in weights], dtype=np.int64),
            documents=self._documents,
            average_length=self.average_length,
            average_idf=self._average_idf(),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """The vocabulary in the order of its numbers, frequencies and totals; `restore` takes them back."""
        words = "\0".join(self._vocabulary).encode()  # a term holds no control character
        totals = np.array([self._documents, self._total_length], dtype=np.int64)
        return {"words": np.frombuffer(words, dtype=np.uint8), "df": self._df, "totals": totals}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what is here; the arrays become this object's own."""
        text = state["words"].tobytes().decode()
        words = text.split("\0") if text else []
        self._vocabulary = defaultdict(count(len(words)).__next__, zip(words, range(len(words)), strict=True))
        self._df = state["df"]
        self._documents, self._total_length = (int(total) for total in state["totals"])
        self._cached_average_idf = None

    def _average_idf(self) -> float:
        if self._cached_average_idf is None:
            self._cached_average_idf = self.formula.average_idf(self._df, self._documents)
        return self._cached_average_idf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentScorer:
    """A query with the statistics it is weighed by, as they were at one moment; safe to use from any thread.

    `columns` gives each term its place in `weights` float64 (terms,) and `df` int64 (terms,).
    """

    formula: Formula
    columns: Mapping[str, int]
    weights: Scores
    df: Frequencies
    documents: int
    average_length: float
    average_idf: float

    @property
    def attainable(self) -> float:
        """What a document would come to that says every term over and over; one that no document holds counts as the rarest."""
        df = np.maximum(self.df, 1)
        idf = self.formula.idf(df, max(self.documents, int(df.max(initial=1))), self.average_idf)
        return float(self.formula.attainable(self.weights, idf).sum())

    def scores(self, documents: Sequence[Sequence[str]]) -> Scores:
        """float64 (len(documents),): the score of each list of terms, as an index with these statistics gives it.

        Statistics that know less than `documents` show (they are still being loaded) count what is seen here instead, so
        a term that was not met yet scores too; those of a whole corpus never do.
        """
        tf = self._counts(documents)
        df = np.maximum(self.df, np.count_nonzero(tf, axis=0))
        known = np.flatnonzero(df)
        scores = np.zeros(len(documents))
        if not len(known) or not len(documents):
            return scores
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        idf = self.formula.idf(df[known], max(self.documents, len(documents)), self.average_idf)
        norms = self.formula.norms(lengths, self.average_length or float(lengths.mean()))
        scores += self.formula.base(self.weights[known], idf)
        for column, factor in zip(known, self.formula.factors(self.weights[known], idf).tolist(), strict=True):
            scores += self.formula.part(tf[:, column], norms) * factor
        return scores

    def _counts(self, documents: Sequence[Sequence[str]]) -> Counts:
        """float64 (documents, terms): how often each document holds each term."""
        counts = np.zeros((len(documents), len(self.columns)))
        for line, document in enumerate(documents):
            held = [self.columns[term] for term in document if term in self.columns]
            if held:
                counts[line] = np.bincount(held, minlength=len(self.columns))
        return np.minimum(counts, MAX_TF)


def _check_weights(weights: Mapping[str, float]) -> None:
    for term, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InvalidInput(f"the weight of {shown(term)} should be finite and >= 0, is {weight}", "correct it")


def _counted(terms: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for term in terms:
        weights[term] = weights.get(term, 0.0) + 1.0
    return weights
