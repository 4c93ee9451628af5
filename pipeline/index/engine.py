"""What a search engine answers: candidates of both legs, each with both of its exact scores.

`resident.py` (everything in memory) and `milvus_engine.py` (Milvus proposes, the same formulas score) promise the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.index.filters import Filter
from pipeline.index.lexical_query import LexicalQuery

DENSE_DECIMALS = 6  # float32 products differ in the 7th digit with a row's place in the matrix: equal vectors must tie
LEXICAL_DECIMALS = 9  # float64 sums differ in the 15th digit with the order of the terms


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineQuery:
    """One search. `vector` is a unit row float32 (dim,), None where the dense leg is off; `terms` likewise.

    `candidates` is how many passages each leg proposes.
    """

    vector: FloatArray | None
    terms: LexicalQuery | None
    filter: Filter = field(default_factory=Filter)
    candidates: int = 200


def _no_numbers() -> NDArray[np.integer]:
    return np.zeros(0, dtype=np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The union of what the legs proposed, without order. Columns are aligned, n long.

    `dense`: inner products in [-1, 1]; `lexical`: weighted BM25, >= 0; both float64, higher is better, NaN where the leg is
    off. `dense_best` and `lexical_best` are the maxima over *all* passages that pass the filter, not over the candidates
    alone, so that no normalised score depends on how many were fetched. `lexical_attainable` is what a text that says every
    word of the query over and over would come to (0 where it is not known): how good `lexical_best` is. `lexical_rarest` is
    the rarity (0..1, see LexicalQuery) of the query's rarest term, synonyms included, in the passage that has `lexical_best`, the first by id where
    several have it. `passages` are as they were when they were scored, so that what is shown is what was found; one is made when
    it is looked at. `articles`, where there are any, are numbers that are equal where `article_ids` are. `failed` names the legs that could not answer, each with the reason.
    """

    passage_ids: Sequence[str]
    article_ids: Sequence[str]
    dense: NDArray[np.float64]
    lexical: NDArray[np.float64]
    dense_best: float
    lexical_best: float
    lexical_attainable: float = 0.0
    lexical_rarest: float = 1.0
    passages: Sequence[Passage] = field(default=(), repr=False)
    articles: NDArray[np.integer] = field(default_factory=_no_numbers, repr=False)
    failed: Mapping[str, str] = field(default_factory=dict)


Revisions = Mapping[str, int | None]  # article id → the revision to show


class Engine(Protocol):
    """A searchable set of articles. Thread-safe: an article is replaced in one step between two searches."""

    def search(self, query: EngineQuery) -> Candidates:
        """The candidates of both legs, both scores exact."""

    def search_many(self, queries: Sequence[EngineQuery]) -> list[Candidates]:
        """What `search` gives for each."""

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """The passages with these ids; one that was replaced since is missing."""

    def revisions(self) -> dict[str, int]:
        """Article id → the revision that is visible here."""

    def apply(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        """Makes these revisions the visible ones, in one step: of each article its `passages` and no others. A revision of
        None: the article is gone."""

    def add(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        """Takes in passages while loading, many at a time; none of them is there already."""

    @property
    def count(self) -> int:
        """Visible passages."""


def inner_products(vectors: FloatArray, vector: FloatArray) -> NDArray[np.float64]:
    """float64 (n,): the dense scores of `vectors` float32 (n, dim), added up in float64 so that both engines agree."""
    return np.round(vectors.astype(np.float64) @ vector.astype(np.float64), DENSE_DECIMALS)


def best_first(scores: NDArray[np.float64], ids: Sequence[str]) -> list[int]:
    """Places of `scores` from the best to the worst; equal scores in the order of `ids`, so on every machine the same."""
    return sorted(range(len(ids)), key=lambda place: (-scores[place], ids[place]))
