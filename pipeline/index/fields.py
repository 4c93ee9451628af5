"""The three lexical fields of a passage, each with its own BM25, and their weighted sum: the lexical score.

    lexical = BM25(morphemes) + bigram_weight · BM25(bigrams) + title_weight · BM25(title)

`morphemes` holds the title's terms and the text's, `bigrams` the characters of both, `title` the title's terms alone. The
weights were measured (README, "Decisions"). Rows are those of the owner, who also locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage
from pipeline.index.bm25 import Scores, Variant
from pipeline.index.lexical import LexicalIndex, Rows
from pipeline.korean.bigrams import bigrams


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalParameters:
    """What the lexical score depends on; part of the manifest."""

    variant: Variant = "lucene"
    k1: float = 0.9
    b: float = 0.4
    bigram_weight: float = 0.4
    title_weight: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalQuery:
    """A query as the fields read it: weighted Kiwi terms and the bigrams of its text. Falsy where it has neither."""

    terms: dict[str, float] = field(default_factory=dict)
    bigrams: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.terms or self.bigrams)


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
        self.morphemes.add(rows, [(*p.title_terms, *p.terms) for p in passages])
        self.bigrams.add(rows, [bigrams(f"{p.title}\n{p.text}") for p in passages])
        self.title.add(rows, [p.title_terms for p in passages])

    def remove(self, rows: Rows) -> None:
        for part in (self.morphemes, self.bigrams, self.title):
            part.remove(rows)

    def scores(self, query: LexicalQuery) -> Scores:
        """float64 (capacity,): the lexical score of every row, >= 0, 0 for rows not in use or without any match."""
        total = self.morphemes.scores(query.terms)
        total += self.bigrams.scores(query.bigrams) * self.parameters.bigram_weight
        total += self.title.scores(query.terms) * self.parameters.title_weight
        return total

    def scores_at(self, query: LexicalQuery, rows: NDArray[np.intp]) -> Scores:
        """float64 (len(rows),): `scores(query)[rows]` at the cost of these rows."""
        total = self.morphemes.scores_at(query.terms, rows)
        total += self.bigrams.scores_at(query.bigrams, rows) * self.parameters.bigram_weight
        total += self.title.scores_at(query.terms, rows) * self.parameters.title_weight
        return total
