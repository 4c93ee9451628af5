"""The query path: text → vector and terms → candidates → fused ranking → a page with snippets and explanations.

Knows nothing of HTTP; the same object serves the command line, the API, evaluation and notebooks.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

import numpy as np

from pipeline.documents import Passage, Span
from pipeline.encoding.encoder import Encoder, FloatArray, TermEncoder
from pipeline.errors import InvalidQuery, NotReady, Unavailable
from pipeline.index.engine import Candidates, Engine, EngineQuery
from pipeline.index.lexical_query import LexicalQuery
from pipeline.retrieval.fusion import Fused, Method, fuse
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.ranking import RankedArticle, Ranking, ScoredPassage, page
from pipeline.retrieval.snippets import matched_terms, shown_whole, snippet
from pipeline.retrieval.understanding import ENCODER_ERRORS, Reader, Understood

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionParameters:
    """How the legs are merged: see `fusion`. `candidates` is how many passages each leg proposes, >= 200."""

    method: Method = "tm2c2"
    alpha: float = 0.1
    rrf_k: int = 60
    candidates: int = 200
    adaptive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An article in a result. `weights` are the query's terms; `alpha` is the weight of the dense leg in this answer, `evidence`
    what it was adapted to; `boosts` are factors by name."""

    article_id: str
    passage: Passage
    scored: ScoredPassage
    others: tuple[ScoredPassage, ...]
    snippet: str
    weights: Mapping[str, float] = field(repr=False)
    alpha: float
    evidence: float
    boosts: Mapping[str, float] = field(default_factory=dict)

    @property
    def matched_terms(self) -> list[str]:
        """The query's terms that stand in the passage's text or title, in the order of the query."""
        return matched_terms(self.passage, self.weights)

    @property
    def score(self) -> float:
        return self.scored.score


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """A page of hits. `total`: articles that can be paged; `seq`: all changes accepted up to it are in this answer.

    `degraded` maps what did not work to the reason; `timings` are milliseconds a stage.
    """

    request: SearchRequest
    hits: tuple[Hit, ...]
    total: int
    next_cursor: str | None
    seq: int
    degraded: Mapping[str, str]
    timings: Mapping[str, float]
    took_ms: float


class Searcher:
    """Answers searches. Thread-safe; made of ready parts.

    `reader` reads the queries, `encoder` the sentences of hits that share no word with them. `engine` is asked for at each
    search, so that it can change under a running service; it comes with what is degraded about it (empty when all is well).
    `seq` says up to which change that engine is.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        encoder: Encoder,
        engine: Callable[[], tuple[Engine, Mapping[str, str]]],
        fusion: FusionParameters,
        seq: Callable[[], int] = lambda: 0,
    ) -> None:
        self._reader = reader
        self._encoder = encoder
        self._of_terms = encoder if isinstance(encoder, TermEncoder) else None  # asked once: it takes 50 µs
        self._engine = engine
        self._fusion = fusion
        self._settings = astuple(fusion)
        self._seq = seq

    @property
    def fusion(self) -> FusionParameters:
        return self._fusion

    def search(self, request: SearchRequest) -> SearchResult:
        """Raises InvalidQuery for a cursor of another question, NotReady where neither leg can answer."""
        (result,) = self.search_many([request])
        if isinstance(result, Exception):
            raise result
        return result

    def search_many(self, requests: Sequence[SearchRequest]) -> list[SearchResult | Exception]:
        """What `search` gives for each, or the exception that it raises: answered together, from one moment, in less time than
        one after the other. Their timings are those of all."""
        return self.answer(self.questions(requests))

    def questions(self, requests: Sequence[SearchRequest]) -> list[Question]:
        """The first step of `search_many`, which needs no index: others may be answered meanwhile."""
        began = time.perf_counter()
        understood = self.understand(requests)
        read = time.perf_counter()
        return [Question(*each, began, read) for each in zip(requests, understood, strict=True)]

    def answer(self, questions: Sequence[Question]) -> list[SearchResult | Exception]:
        """The second step: of questions that may have been read at different times."""
        watch = _Watch()
        seq = self._seq()  # before the search: what it sees is this or newer
        engine, degraded = self._engine()
        requests = [question.request for question in questions]
        understood = [question.understood for question in questions]
        found = self.candidates(engine, requests, understood)
        watch.lap("legs")
        pages = [self._page(*each) for each in zip(requests, understood, found, strict=True)]
        watch.lap("rank")
        hits = iter(self._hits([each for each in pages if isinstance(each, _Page)]))
        watch.lap("show")
        return [
            SearchResult(
                request=page.request,
                hits=next(hits),
                total=page.total,
                next_cursor=page.next_cursor,
                seq=seq,
                degraded={**degraded, **page.question.failed, **page.candidates.failed},
                timings=question.timings(watch.begun) | watch.laps,
                took_ms=(watch.last - question.began) * 1000,
            )
            if isinstance(page, _Page)
            else page
            for question, page in zip(questions, pages, strict=True)
        ]

    def warm_up(self) -> None:
        """Pays now what the first search would pay: models and tables that are made when they are first used."""
        self.understand([SearchRequest.checked("여울")])
        if self._of_terms is not None:
            self._of_terms.encode_terms([["여울"]])

    def understand(self, requests: Sequence[SearchRequest]) -> list[Understood]:
        """The queries as the legs read them."""
        return self._reader.read(requests)

    def candidates(
        self, engine: Engine, requests: Sequence[SearchRequest], questions: Sequence[Understood]
    ) -> list[Candidates | NotReady]:
        """What the legs propose for each request; NotReady in the place of one that no leg can answer."""
        queries = [self._query(request, question) for request, question in zip(requests, questions, strict=True)]
        asked = [query for query in queries if query is not None]
        try:
            found = iter(engine.search_many(asked))
        except Unavailable as error:
            return [NotReady(f"the index does not answer: {error.message}", error.hint) for _ in requests]
        return [
            next(found)
            if query is not None
            else NotReady(f"no leg can answer ({question.failed})", "see the server's log; try again")
            for query, question in zip(queries, questions, strict=True)
        ]

    def fused(self, candidates: Candidates) -> Fused:
        chosen = self._fusion
        return fuse(candidates, method=chosen.method, alpha=chosen.alpha, rrf_k=chosen.rrf_k, adaptive=chosen.adaptive)

    def with_fusion(self, **changes: object) -> Searcher:
        """The same searcher with other fusion parameters, for comparing them."""
        return Searcher(
            reader=self._reader,
            encoder=self._encoder,
            engine=self._engine,
            fusion=replace(self._fusion, **changes),  # type: ignore[arg-type]  # checked by the dataclass's fields
            seq=self._seq,
        )

    def _query(self, request: SearchRequest, question: Understood) -> EngineQuery | None:
        vector, terms = question.vector, question.terms
        if vector is None and terms is None:
            return None
        if vector is not None and not vector.any():
            # Nothing to say about meaning: the words decide alone, and without words nothing is found.
            vector, terms = None, terms or LexicalQuery()
        return EngineQuery(vector=vector, terms=terms, filter=request.filter, candidates=self._fusion.candidates)

    def _page(
        self, request: SearchRequest, question: Understood, candidates: Candidates | NotReady
    ) -> _Page | InvalidQuery | NotReady:
        if isinstance(candidates, NotReady):
            return candidates
        fused = self.fused(candidates)
        ranking = Ranking(candidates, fused)
        try:
            shown, cursor = page(
                ranking, limit=request.limit, cursor=request.cursor, question=request.question(*self._settings)
            )
        except InvalidQuery as error:
            return error
        passages = {article.best.passage_id: candidates.passages[article.place] for article in shown}
        return _Page(request, question, candidates, fused, shown, passages, len(ranking), cursor)

    def _hits(self, pages: Sequence[_Page]) -> list[tuple[Hit, ...]]:
        """The hits of each page. The sentences that are looked for by their meaning are encoded for all together."""
        unmatched = [
            (number, p)
            for number, one in enumerate(pages)
            for p in one.passages.values()
            if not shown_whole(p) and one.weights.keys().isdisjoint(p.terms)
        ]
        likely = self._likely_sentences(unmatched, [one.question.vector for one in pages])
        return [
            tuple(_hit(article, one, likely.get((number, article.best.passage_id))) for article in one.shown)
            for number, one in enumerate(pages)
        ]

    def _likely_sentences(
        self, unmatched: Sequence[tuple[int, Passage]], vectors: Sequence[FloatArray | None]
    ) -> dict[tuple[int, str], Span]:
        """Of each passage found by its meaning alone, the sentence nearest to the query; by the query's number in `vectors`
        and the passage's id."""
        asked = [(number, p) for number, p in unmatched if (vector := vectors[number]) is not None and vector.any()]
        spans = [(number, vectors[number], p, span) for number, p in asked for span in p.sentence_spans]
        if not spans:
            return {}
        try:
            if self._of_terms is not None:
                sentences = self._of_terms.encode_terms([terms for _, p in asked for terms in _terms_of_sentences(p)])
            else:
                sentences = self._encoder.encode_passages([p.text[start:end] for _, _, p, (start, end) in spans])
        except ENCODER_ERRORS:
            log.exception("the sentences of the hits could not be encoded: snippets show their beginnings")
            return {}
        nearness = np.einsum(
            "ij,ij->i", sentences, np.stack([vector for _, vector, _, _ in spans if vector is not None])
        ).tolist()
        likely: dict[tuple[int, str], tuple[float, Span]] = {}
        for (number, _, passage, span), near in zip(spans, nearness, strict=True):
            if (number, passage.id) not in likely or near > likely[number, passage.id][0]:
                likely[number, passage.id] = (near, span)
        return {found: span for found, (_, span) in likely.items()}


@dataclass(frozen=True, slots=True)
class Question:
    """A request and how the legs read it; when reading it began and when it was `read`, both seconds of `time.perf_counter`."""

    request: SearchRequest
    understood: Understood
    began: float
    read: float

    def timings(self, answered_from: float) -> dict[str, float]:
        """Milliseconds of its reading, and of its waiting until it is its turn to be answered."""
        return {"understand": (self.read - self.began) * 1000, "turn": (answered_from - self.read) * 1000}


@dataclass(frozen=True, slots=True)
class _Page:
    """A request's answer before its hits are written out; `passages` are those that are shown, by id."""

    request: SearchRequest
    question: Understood
    candidates: Candidates
    fused: Fused
    shown: Sequence[RankedArticle]
    passages: Mapping[str, Passage]
    total: int
    next_cursor: str | None

    @property
    def weights(self) -> Mapping[str, float]:
        """The terms that are marked."""
        return self.question.terms.terms if self.question.terms is not None else {}


def _hit(article: RankedArticle, of: _Page, likely: Span | None) -> Hit:
    passage = of.passages[article.best.passage_id]
    return Hit(
        article_id=article.article_id,
        passage=passage,
        scored=article.best,
        others=article.others,
        snippet=snippet(passage, of.weights, likely=likely),
        weights=of.weights,
        alpha=of.fused.alpha,
        evidence=of.fused.evidence,
    )


def _terms_of_sentences(passage: Passage) -> list[list[str]]:
    """The terms within each sentence."""
    terms: list[list[str]] = [[] for _ in passage.sentence_spans]
    starts = [start for start, _ in passage.sentence_spans]
    for term, (start, end) in zip(passage.terms, passage.term_spans, strict=True):
        number = bisect_right(starts, start) - 1
        if number >= 0 and end <= passage.sentence_spans[number][1]:
            terms[number].append(term)
    return terms


class _Watch:
    """Milliseconds a stage, one after the other. `begun` and `last` are seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.begun = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = (now - self.last) * 1000
        self.last = now
