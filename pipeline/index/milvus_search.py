"""Searching through the collection: Milvus proposes passages, our formulas score every one of them anew.

Each candidate's vector and terms are fetched, so both of its scores are exact, those of the resident engine to the last
decimal kept. What is proposed is Milvus's choice:

* dense leg: exact with a `flat` index. More than `candidates` are asked for, and more again while rows of replaced
  revisions crowd the answer or passages tie at its end (up to a few thousand ties), so the best by our score are among them.
* lexical leg: Milvus's own BM25 over the terms of the *text*; its order differs from ours (statistics of a segment on Milvus
  Lite; no weights, titles or bigrams), hence the surplus. `lexical_best` is the maximum over all that was fetched:
  exact wherever fewer passages match than are asked for or the best one is proposed by either leg. A passage that only
  its title or its bigrams would find is proposed by the dense leg or not at all; equal texts beyond the surplus are cut
  as Milvus has them.
* lexical leg of a server without sparse vectors: the exact one of a resident engine, which has no vectors.

Knows neither where term statistics come from nor who decides which revision is visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as Bag
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.documents import Passage, passage_id, passage_parts
from pipeline.encoding.encoder import FloatArray
from pipeline.errors import Unavailable
from pipeline.index.collection import Collection
from pipeline.index.engine import LEXICAL_DECIMALS, Candidates, EngineQuery, best_first, inner_products
from pipeline.index.fields import PassageScorer
from pipeline.index.filters import Filter
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.resident import ResidentEngine

Visibility = Callable[[Bag[str]], Mapping[str, tuple[int, int]]]  # article ids → visible revision, its passages

_SURPLUS = 50  # rows asked for beyond half as many again: room for replaced revisions and for another order
_MOST_ASKED = 16_384  # the most rows that a server returns for one search
_MOST_TIED = 4  # times the first request: more ties than that (a query without meaning) are cut as Milvus has them
_NEAR = 1e-5  # inner products that differ by less may be in another order here: Milvus adds up in float32
_ATTEMPTS = 3  # an article replaced between two reads is looked up again


class Scoring(Protocol):
    """Whoever knows the statistics of the whole corpus."""

    def scorer(self, query: LexicalQuery) -> PassageScorer:
        """Scores any passage for `query`."""


class MilvusSearch:
    """Searches of one collection. Thread-safe where its parts are.

    `visible` says at any moment which revision of an article is shown. `resident` is asked for passages before the
    collection is, and proposes the lexical candidates where the collection cannot.
    """

    def __init__(
        self, collection: Collection, scoring: Scoring, visible: Visibility, resident: ResidentEngine | None = None
    ) -> None:
        self._collection = collection
        self._scoring = scoring
        self._visible = visible
        self._resident = resident

    def search(self, query: EngineQuery) -> Candidates:
        """As `Engine.search`. A leg that Milvus cannot answer is named in `failed`; raises StoreUnavailable where none is
        left. Where the lexical leg is resident it answers alone, with the dense scores NaN, while Milvus is down."""
        asked: dict[str, Callable[[EngineQuery], Sequence[str]]] = {}
        if query.vector is not None:
            asked["dense"] = self._dense_leg
        if query.terms is not None:
            asked["lexical"] = self._lexical_leg
        proposed: dict[str, None] = {}
        failed: dict[str, Unavailable] = {}
        for name, leg in asked.items():
            try:
                proposed |= dict.fromkeys(leg(query))
            except Unavailable as error:
                failed[name] = error
        if failed and len(failed) == len(asked):
            raise next(iter(failed.values()))
        try:
            passages, vectors = self._fetched(proposed, query)
        except Unavailable as error:
            if self._resident is None or query.terms is None or "lexical" in failed:
                raise
            alone = self._resident.search(replace(query, vector=None))
            return replace(alone, failed={"dense": str(error)} if query.vector is not None else {})
        return self._scored(query, passages, vectors, {name: str(error) for name, error in failed.items()})

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """As `Engine.passages`. Raises StoreUnavailable where Milvus is down and no resident engine has them."""
        return self._texts([i for i, shown in zip(ids, self._shown(ids), strict=True) if shown])

    def _dense_leg(self, query: EngineQuery) -> list[str]:
        """The nearest passages, at least the `candidates` best visible ones and all that tie with the last of them."""
        assert query.vector is not None
        first = asked = _first_request(query)
        while True:
            ids, scores = self._collection.search_dense(query.vector, asked, query.filter)
            visible = scores[self._shown(ids)]
            enough = len(visible) >= query.candidates
            worst = visible[query.candidates - 1] - _NEAR if enough else -np.inf
            everything = len(ids) < asked or asked == _MOST_ASKED
            if everything or (enough and (scores[-1] < worst or asked >= _MOST_TIED * first)):
                return [i for i, score in zip(ids, scores.tolist(), strict=True) if score >= worst]
            asked = min(2 * asked, _MOST_ASKED)

    def _lexical_leg(self, query: EngineQuery) -> Sequence[str]:
        assert query.terms is not None
        if not self._collection.supports_lexical and self._resident is not None:
            return self._resident.search(replace(query, vector=None)).passage_ids
        asked = _first_request(query)
        while True:
            ids = self._collection.search_lexical(list(query.terms.terms), asked, query.filter)
            if len(ids) < asked or asked == _MOST_ASKED or self._shown(ids).sum() >= query.candidates:
                return ids
            asked = min(2 * asked, _MOST_ASKED)

    def _fetched(self, proposed: Iterable[str], query: EngineQuery) -> tuple[list[Passage], FloatArray]:
        """The visible ones of the `proposed` passages that pass the filter, with vectors float32 (n, dim) where asked."""
        wanted: list[str] = []
        for _ in range(_ATTEMPTS):
            before, wanted = wanted, self._shown_instead(proposed)
            texts = self._texts(wanted)
            vectors = self._collection.get_vectors(list(texts)) if query.vector is not None else {}
            if wanted == before or (len(texts) == len(wanted) and (query.vector is None or len(vectors) == len(texts))):
                break
        found = [p for i, p in texts.items() if (query.vector is None or i in vectors) and _passes(p, query.filter)]
        rows = [vectors[p.id] for p in found] if query.vector is not None else []
        return found, np.array(rows, dtype=np.float32).reshape(len(rows), self._collection.dim)

    def _scored(
        self, query: EngineQuery, passages: Sequence[Passage], vectors: FloatArray, failed: Mapping[str, str]
    ) -> Candidates:
        ids = [p.id for p in passages]
        dense = lexical = np.full(len(ids), np.nan)
        kept: set[int] = set()
        attainable, rarest = 0.0, 1.0
        if query.vector is not None:
            dense = inner_products(vectors, query.vector)
            kept.update(best_first(dense, ids)[: query.candidates])
        if query.terms is not None:
            scorer = self._scoring.scorer(query.terms)
            lexical, attainable = np.round(scorer.scores(passages), LEXICAL_DECIMALS), scorer.attainable
            ordered = best_first(lexical, ids)
            kept.update([place for place in ordered if lexical[place] > 0][: query.candidates])
            if ordered:
                best = passages[ordered[0]]
                rarest = query.terms.rarest(query.terms.terms.keys() & {*best.title_terms, *best.terms})
        places = sorted(kept)
        return Candidates(
            passage_ids=[ids[place] for place in places],
            article_ids=[passages[place].article_id for place in places],
            dense=dense[places],
            lexical=lexical[places],
            dense_best=float(dense.max()) if query.vector is not None and ids else 0.0,
            lexical_best=float(lexical.max()) if query.terms is not None and ids else 0.0,
            lexical_attainable=attainable,
            lexical_rarest=rarest,
            passages=[passages[place] for place in places],
            failed=failed,
        )

    def _texts(self, ids: Sequence[str]) -> dict[str, Passage]:
        """The passages of those of `ids` that are stored, in that order."""
        known = self._resident.passages(ids) if self._resident is not None else {}
        missing = [i for i in ids if i not in known]
        known |= {p.id: p for p in self._collection.get(missing)} if missing else {}
        return {i: known[i] for i in ids if i in known}

    def _shown(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """bool (len(ids),): which of these passages belong to the visible revision of their article."""
        parts = [passage_parts(i)[:2] for i in ids]
        visible = self._visible({article_id for article_id, _ in parts})
        return np.array([a in visible and visible[a][0] == revision for a, revision in parts], dtype=bool)

    def _shown_instead(self, ids: Iterable[str]) -> list[str]:
        """`ids` without replaced revisions, all decided at one moment.

        Of an article that is then left without any, because it was replaced after Milvus looked, every visible passage:
        it must not blink out. They are scored and filtered like all others.
        """
        parts = [(i, *passage_parts(i)[:2]) for i in ids]
        visible = self._visible({article_id for _, article_id, _ in parts})
        shown = {i: a for i, a, revision in parts if a in visible and visible[a][0] == revision}
        replaced = dict.fromkeys(a for _, a, _ in parts if a in visible)
        for article_id in shown.values():
            replaced.pop(article_id, None)
        return [*shown, *(passage_id(a, visible[a][0], n) for a in replaced for n in range(visible[a][1]))]


def _first_request(query: EngineQuery) -> int:
    return min(query.candidates + query.candidates // 2 + _SURPLUS, _MOST_ASKED)


def _passes(passage: Passage, conditions: Filter) -> bool:
    """The filter on a passage that Milvus has not filtered."""
    if any(
        wanted is not None and getattr(passage, name) != wanted
        for name, wanted in (
            ("category", conditions.category),
            ("series", conditions.series),
            ("source", conditions.source),
        )
    ):
        return False
    if conditions.tag is not None and conditions.tag not in passage.tags:
        return False
    if conditions.since is None and conditions.until is None:
        return True
    moment = passage.published_at
    return moment is not None and (
        (conditions.since is None or moment >= conditions.since)
        and (conditions.until is None or moment < conditions.until)
    )
