"""The three lexical fields of a passage, each with its own BM25, and their weighted sum: the lexical score.

    lexical = BM25(morphemes) + bigram_weight · BM25(bigrams) + title_weight · BM25(title)

`morphemes` holds the title's terms and the text's, `bigrams` the characters of both, `title` the title's terms alone. The
weights were measured (README, "Decisions"). Rows are those of the owner, who also locks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage
from pipeline.index import lexical_kernels
from pipeline.index.bm25 import Scores, Variant
from pipeline.index.lexical import LexicalIndex, Prepared, Rows, part_of
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.statistics import DocumentScorer
from pipeline.korean.bigrams import bigrams, bigrams_of_all

Document = Sequence[str]  # terms, with repetitions

_PASSAGES_AT_ONCE = 2_000  # in a bulk load: the bigrams of more take no less time each, and more memory


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalParameters:
    """What the lexical score depends on beside the passages: a change needs no other index, only a new start."""

    variant: Variant = "lucene"
    k1: float = 0.9
    b: float = 0.4
    bigram_weight: float = 0.4
    title_weight: float = 0.2


_NOTHING = LexicalQuery()


def documents_of(passages: Sequence[Passage]) -> tuple[list[Document], list[Document], list[Document]]:
    """What each field reads of `passages`: morphemes, bigrams, title."""
    return (
        [_morphemes_of(p) for p in passages],
        [bigrams(_text_of(p)) for p in passages],
        [p.title_terms for p in passages],
    )


def _morphemes_of(passage: Passage) -> Document:
    return (*passage.title_terms, *passage.terms)


def _text_of(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassageScorer:
    """A lexical query with the statistics of one moment; scores any passage. Safe to use from any thread."""

    parameters: LexicalParameters
    asked: DocumentScorer
    morphemes: DocumentScorer
    bigrams: DocumentScorer
    title: DocumentScorer

    @property
    def attainable(self) -> float:
        """What `LexicalFields.prepared` finds attainable for the query."""
        return self.asked.attainable + self.bigrams.attainable * self.parameters.bigram_weight

    def scores(self, passages: Sequence[Passage]) -> Scores:
        """float64 (len(passages),): the lexical score of each, as `LexicalFields.scores` gives it for its rows."""
        morphemes, bigrams_, title = documents_of(passages)
        total = self.morphemes.scores(morphemes)
        total += self.bigrams.scores(bigrams_) * self.parameters.bigram_weight
        total += self.title.scores(title) * self.parameters.title_weight
        return total


class PreparedQueries(NamedTuple):
    """Some queries: `fields`, `bases` and `shape` as `lexical_kernels.candidates` takes them; and `attainable`, float64 (queries,):
    the lexical score of a text that says every morpheme and bigram of the query over and over, title and synonyms aside."""

    fields: tuple[Prepared, ...]
    bases: Scores
    shape: Scores
    attainable: Scores


class LexicalFields:
    """A live BM25 index for each field, over shared rows."""

    def __init__(self, parameters: LexicalParameters) -> None:
        self.parameters = parameters

        def index() -> LexicalIndex:
            return LexicalIndex(variant=parameters.variant, k1=parameters.k1, b=parameters.b)

        self.morphemes, self.bigrams, self.title = index(), index(), index()

    @property
    def memory_bytes(self) -> int:
        return sum(part.memory_bytes for part in (self.morphemes, self.bigrams, self.title))

    def reserve(self, capacity: int) -> None:
        for part in (self.morphemes, self.bigrams, self.title):
            part.reserve(capacity)

    def add(self, rows: Rows, passages: Sequence[Passage]) -> None:
        """Puts `passages[i]` at `rows[i]`, which must be free."""
        placed = np.asarray(rows, dtype=np.intp)
        for start in range(0, len(passages), _PASSAGES_AT_ONCE):
            at, some = placed[start : start + _PASSAGES_AT_ONCE], passages[start : start + _PASSAGES_AT_ONCE]
            self.morphemes.add(at, [_morphemes_of(p) for p in some])
            self.bigrams.add_spelled(at, *bigrams_of_all([_text_of(p) for p in some]))
            self.title.add(at, [p.title_terms for p in some])

    def remove(self, rows: Rows) -> None:
        for part in (self.morphemes, self.bigrams, self.title):
            part.remove(rows)

    def state(self) -> dict[str, NDArray[Any]]:
        """Every array, by name; `restore` makes equal fields of it. Read them only."""
        parts = {"morphemes": self.morphemes, "bigrams": self.bigrams, "title": self.title}
        return {f"{field}.{name}": array for field, part in parts.items() for name, array in part.state().items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what is here; the arrays become this object's own."""
        self.morphemes.restore(part_of(state, "morphemes."))
        self.bigrams.restore(part_of(state, "bigrams."))
        self.title.restore(part_of(state, "title."))

    def scorer(self, query: LexicalQuery) -> PassageScorer:
        """Scores passages, here or not, for `query` by what is here now."""
        return PassageScorer(
            parameters=self.parameters,
            asked=self.morphemes.scorer(query.asked),
            morphemes=self.morphemes.scorer(query.terms),
            bigrams=self.bigrams.scorer(query.bigrams),
            title=self.title.scorer(query.terms),
        )

    def prepared(self, queries: Sequence[LexicalQuery | None]) -> PreparedQueries:
        """The queries for `lexical_kernels.candidates`, valid until the next change."""
        given = [query if query is not None else _NOTHING for query in queries]
        terms = [query.terms for query in given]
        weights = self.parameters
        morphemes, base, attainable = self.morphemes.prepared(terms, 1.0)
        bigram, base_of_bigrams, of_bigrams = self.bigrams.prepared([q.bigrams for q in given], weights.bigram_weight)
        title, base_of_title, _ = self.title.prepared(terms, weights.title_weight)
        asked = np.array([term not in query.synonyms for query in given for term in query.terms], dtype=bool)
        return PreparedQueries(
            (morphemes, bigram, title),
            base + base_of_bigrams + base_of_title,
            self.morphemes.shape,
            _sums(attainable * asked, morphemes[-1]) + _sums(of_bigrams, bigram[-1]) * weights.bigram_weight,
        )

    def scores(self, query: LexicalQuery) -> Scores:
        """float64 (capacity,): the lexical score of every row, >= 0, 0 for rows not in use or without any match."""
        total = np.zeros(self.morphemes.capacity)
        self.morphemes.add_scores(total, query.terms)
        self.bigrams.add_scores(total, query.bigrams, self.parameters.bigram_weight)
        self.title.add_scores(total, query.terms, self.parameters.title_weight)
        return total

    def rarest(self, query: LexicalQuery, prepared: PreparedQueries, number: int, row: int) -> float:
        """The rarity of the rarest term of `query`, the one with this number in `prepared`, that the passage at `row` holds in text
        or title."""
        segments, *_, numbers, _, ends = prepared.fields[0]
        holds = lexical_kernels.holds(segments, numbers[ends[number] : ends[number + 1]], row)
        return query.rarest(compress(query.terms, holds.tolist()))


def _sums(parts: Scores, ends: NDArray[np.int64]) -> Scores:
    """float64 (queries,): the sum of each query's `parts`. No sum depends on what else is asked."""
    sums, some = np.zeros(len(ends) - 1), np.diff(ends) > 0
    if some.any():
        sums[some] = np.add.reduceat(parts, ends[:-1][some])
    return sums
