"""The three lexical fields of a passage, each with its own BM25, and their weighted sum: the lexical score.

    lexical = BM25(morphemes) + bigram_weight · BM25(bigrams) + title_weight · BM25(title)

`morphemes` holds the title's terms and the text's, `bigrams` the characters of both, `title` the title's terms alone. The
weights were measured (README, "Decisions"). Rows are those of the owner, who also locks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage
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
        """What `LexicalFields.attainable` gives for the query."""
        return self.asked.attainable + self.bigrams.attainable * self.parameters.bigram_weight

    def scores(self, passages: Sequence[Passage]) -> Scores:
        """float64 (len(passages),): the lexical score of each, as `LexicalFields.scores` gives it for its rows."""
        morphemes, bigrams_, title = documents_of(passages)
        total = self.morphemes.scores(morphemes)
        total += self.bigrams.scores(bigrams_) * self.parameters.bigram_weight
        total += self.title.scores(title) * self.parameters.title_weight
        return total


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

    def attainable(self, queries: Sequence[LexicalQuery]) -> Scores:
        """float64 (len(queries),): the lexical score of a text that says every morpheme and bigram of the query over and over,
        title and synonyms aside."""
        bigrams_ = self.bigrams.attainable([query.bigrams for query in queries])
        return self.morphemes.attainable([query.asked for query in queries]) + bigrams_ * self.parameters.bigram_weight

    def prepared(self, queries: Sequence[LexicalQuery | None]) -> tuple[tuple[Prepared, ...], Scores, Scores]:
        """What `lexical_kernels.candidates` takes as `fields`, `bases` and `shape` for the queries, valid until the next change."""
        terms = [query.terms if query is not None else {} for query in queries]
        bigrams_ = [query.bigrams if query is not None else () for query in queries]
        morphemes, base = self.morphemes.prepared(terms, 1.0)
        bigram, base_of_bigrams = self.bigrams.prepared(bigrams_, self.parameters.bigram_weight)
        title, base_of_title = self.title.prepared(terms, self.parameters.title_weight)
        return (morphemes, bigram, title), base + base_of_bigrams + base_of_title, self.morphemes.shape

    def scores(self, query: LexicalQuery) -> Scores:
        """float64 (capacity,): the lexical score of every row, >= 0, 0 for rows not in use or without any match."""
        total = np.zeros(self.morphemes.capacity)
        self.morphemes.add_scores(total, query.terms)
        self.bigrams.add_scores(total, query.bigrams, self.parameters.bigram_weight)
        self.title.add_scores(total, query.terms, self.parameters.title_weight)
        return total

    def held(self, query: LexicalQuery, row: int) -> list[str]:
        """The terms of `query` that the passage at `row` holds, in text or title."""
        return self.morphemes.held(query.terms, row)
