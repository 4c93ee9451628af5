"""The lexical statistics of a set of articles, without postings: what the milvus engine keeps in memory to score alone.

Of each article the terms it counts for are kept, as compressed differences of their numbers, so that the statistics are
exact when it is replaced, whatever has become of its old rows. Thread-safe. Knows nothing of vectors and candidates.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage
from pipeline.index.bm25 import Formula
from pipeline.index.fields import Document, LexicalParameters, PassageScorer, documents_of
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.postings import Integers
from pipeline.index.statistics import TermStatistics


@dataclass(frozen=True, slots=True)
class _Part:
    """What some passages of an article add to one field: `held` is an entry for each term that each of them holds."""

    documents: int
    length: int
    held: bytes


class ArticleStatistics:
    """Document frequencies and lengths of the three fields over the articles that were put in."""

    def __init__(self, parameters: LexicalParameters) -> None:
        self._parameters = parameters
        formula = Formula(parameters.variant, k1=parameters.k1, b=parameters.b)
        self._fields = TermStatistics(formula), TermStatistics(formula), TermStatistics(formula)
        self._parts: dict[str, list[tuple[_Part, ...]]] = {}  # by article: an entry a call of `add`, a part a field
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Passages that are counted."""
        return self._fields[0].documents

    @property
    def memory_bytes(self) -> int:
        """Bytes of the frequencies, the vocabularies and what is kept of each article; walks them all."""
        with self._lock:
            kept = sum(len(part.held) for calls in self._parts.values() for parts in calls for part in parts)
            return kept + sum(field.memory_bytes for field in self._fields)

    def add(self, passages: Sequence[Passage]) -> None:
        """Counts `passages`, none of which is counted yet; they may be some of their articles' only."""
        of_article: dict[str, list[Passage]] = {}
        for passage in passages:
            of_article.setdefault(passage.article_id, []).append(passage)
        with self._lock:
            for article_id, some in of_article.items():
                parts = tuple(map(_added, self._fields, documents_of(some)))
                self._parts.setdefault(article_id, []).append(parts)

    def replace(self, article_id: str, passages: Sequence[Passage]) -> None:
        """From now on the article counts for `passages` and nothing else; none: it is gone."""
        documents = documents_of(passages)
        with self._lock:
            for parts in self._parts.pop(article_id, []):
                for field, part in zip(self._fields, parts, strict=True):
                    field.remove(_unpacked(part.held), documents=part.documents, length=part.length)
            if passages:
                self._parts[article_id] = [tuple(map(_added, self._fields, documents))]

    def scorer(self, query: LexicalQuery) -> PassageScorer:
        """Scores any passage for `query` by the statistics of this moment."""
        morphemes, bigrams, title = self._fields
        with self._lock:
            return PassageScorer(
                parameters=self._parameters,
                asked=morphemes.scorer(query.asked),
                morphemes=morphemes.scorer(query.terms),
                bigrams=bigrams.scorer(query.bigrams),
                title=title.scorer(query.terms),
            )


def _added(field: TermStatistics, documents: Sequence[Document]) -> _Part:
    numbers, lengths = field.numbers_of(documents)
    ends = np.cumsum(lengths)
    held = np.concatenate([np.unique(numbers[end - n : end]) for n, end in zip(lengths, ends, strict=True)])
    length = int(lengths.sum())
    field.add(held.astype(np.intp), documents=len(documents), length=length)
    return _Part(len(documents), length, _packed(held))


def _packed(held: NDArray[np.int32]) -> bytes:
    """Differences of sorted numbers are small and repeat, which is what zlib shrinks."""
    return zlib.compress(np.diff(np.sort(held), prepend=np.int32(0)).tobytes(), level=1)


def _unpacked(data: bytes) -> Integers:
    return np.cumsum(np.frombuffer(zlib.decompress(data), dtype=np.int32), dtype=np.intp)
