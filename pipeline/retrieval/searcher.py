"""The query path: text → vector and terms → candidates → fused ranking → a page with snippets and explanations.

Knows nothing of HTTP; the same object serves the command line, the API, evaluation and notebooks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

from pipeline.documents import Passage, Span
from pipeline.encoding.encoder import Encoder, FloatArray, MorphemeEncoder, TermEncoder
from pipeline.encoding.word_probabilities import form_probabilities
from pipeline.errors import NotReady, Unavailable, YeoulError
from pipeline.index.engine import Candidates, Engine, EngineQuery
from pipeline.index.fields import LexicalQuery
from pipeline.korean.bigrams import bigrams
from pipeline.korean.morphemes import Analyser, QueryTerms
from pipeline.retrieval.evidence import rarities
from pipeline.retrieval.fusion import Fused, Method, fuse
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.ranking import RankedArticle, Ranking, ScoredPassage, page
from pipeline.retrieval.snippets import matched_terms, snippet

log = logging.getLogger(__name__)

_ENCODER_ERRORS = (YeoulError, RuntimeError, MemoryError)  # RuntimeError: what torch raises, out of memory too


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
    """An article in a result. `alpha` is the weight of the dense leg in this answer, `evidence` what it was adapted to; `boosts` are factors by name."""

    article_id: str
    passage: Passage
    scored: ScoredPassage
    others: tuple[ScoredPassage, ...]
    snippet: str
    matched_terms: tuple[str, ...]
    alpha: float
    evidence: float
    boosts: Mapping[str, float] = field(default_factory=dict)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """A query as both legs read it; a leg that could not be prepared is None and named in `failed`."""

    vector: FloatArray | None
    terms: LexicalQuery | None
    failed: Mapping[str, str]


class Searcher:
    """Answers searches. Thread-safe; made of ready parts.

    `engine` is asked for at each search, so that it can change under a running service; it comes with what is degraded
    about it (empty when all is well). `seq` says up to which change that engine is.
    """

    def __init__(
        self,
        *,
        analyser: Analyser,
        encoder: Encoder,
        engine: Callable[[], tuple[Engine, Mapping[str, str]]],
        fusion: FusionParameters,
        seq: Callable[[], int] = lambda: 0,
    ) -> None:
        self._analyser = analyser
        self._encoder = encoder
        self._engine = engine
        self._fusion = fusion
        self._seq = seq

    @property
    def fusion(self) -> FusionParameters:
        return self._fusion

    def search(self, request: SearchRequest) -> SearchResult:
        """Raises InvalidQuery for a cursor of another question, NotReady where neither leg can answer."""
        watch = _Watch()
        understood = self.understand(request)
        watch.lap("understand")
        seq = self._seq()  # before the search: what it sees is this or newer
        engine, degraded = self._engine()
        candidates, failed = self.candidates(engine, request, understood)
        watch.lap("legs")
        fused = self.fused(candidates)
        ranking = Ranking(candidates, fused)
        question = request.question(*astuple(self._fusion))
        shown, cursor = page(ranking, limit=request.limit, cursor=request.cursor, question=question)
        watch.lap("rank")
        passages = {article.best.passage_id: candidates.passages[article.place] for article in shown}
        hits = self._hits(shown, passages, understood, fused)
        watch.lap("show")
        return SearchResult(
            request=request,
            hits=hits,
            total=len(ranking),
            next_cursor=cursor,
            seq=seq,
            degraded={**degraded, **failed},
            timings=watch.laps,
            took_ms=watch.total,
        )

    def warm_up(self) -> None:
        """Pays now what the first search would pay: models and tables that are made when they are first used."""
        self.understand(SearchRequest.checked("여울"))
        if isinstance(self._encoder, TermEncoder):
            self._encoder.encode_terms([["여울"]])

    def understand(self, request: SearchRequest) -> Understood:
        """The query as each leg that `request.mode` asks for reads it. A leg that fails is left out and named."""
        found, vector, failed = None, None, {}
        if request.mode != "dense":
            try:
                found = self._analyser.query_terms(request.text)
            except (RuntimeError, MemoryError) as error:
                log.exception("the query could not be analysed")
                failed["lexical"] = str(error)
        if request.mode != "lexical":
            try:
                vector = self._vector(request.text, found)
            except _ENCODER_ERRORS as error:
                log.exception("the query could not be encoded")
                failed["dense"] = str(error)
        terms = self._lexical_query(request.text, found) if found is not None else None
        return Understood(vector=vector, terms=terms, failed=failed)

    def terms(self, text: str) -> LexicalQuery:
        """The lexical query of a text."""
        return self._lexical_query(text, self._analyser.query_terms(text))

    def _vector(self, text: str, found: QueryTerms | None) -> FloatArray:
        """The query's vector; what Kiwi found already is not looked for again."""
        if found is not None and isinstance(self._encoder, MorphemeEncoder):
            vectors = self._encoder.encode_morphemes([found.morphemes])
        else:
            vectors = self._encoder.encode_queries([text])
        vector: FloatArray = vectors[0]
        return vector

    def _lexical_query(self, text: str, found: QueryTerms) -> LexicalQuery:
        terms = found.weights | found.synonyms
        return LexicalQuery(
            terms=terms,
            bigrams=tuple(bigrams(text)),
            synonyms=frozenset(found.synonyms),
            rarities=rarities(terms, form_probabilities(self._analyser.kiwi)),
        )

    def candidates(
        self, engine: Engine, request: SearchRequest, understood: Understood
    ) -> tuple[Candidates, dict[str, str]]:
        """What the legs propose, and the legs that failed with their reasons. Raises NotReady where none is left."""
        vector, terms = understood.vector, understood.terms
        if vector is not None and not vector.any():
            # Nothing to say about meaning: the words decide alone, and without words nothing is found.
            vector, terms = None, terms or LexicalQuery()
        query = EngineQuery(
            vector=vector,
            terms=terms,
            filter=request.filter,
            candidates=self._fusion.candidates,
        )
        failed = dict(understood.failed)
        if query.vector is None and query.terms is None:
            raise NotReady(f"no leg can answer ({failed})", "see the server's log; try again")
        try:
            found = engine.search(query)
        except Unavailable as error:
            raise NotReady(f"the index does not answer: {error.message}", error.hint) from error
        return found, failed | dict(found.failed)

    def fused(self, candidates: Candidates) -> Fused:
        chosen = self._fusion
        return fuse(candidates, method=chosen.method, alpha=chosen.alpha, rrf_k=chosen.rrf_k, adaptive=chosen.adaptive)

    def with_fusion(self, **changes: object) -> Searcher:
        """The same searcher with other fusion parameters, for comparing them."""
        return Searcher(
            analyser=self._analyser,
            encoder=self._encoder,
            engine=self._engine,
            fusion=replace(self._fusion, **changes),  # type: ignore[arg-type]  # checked by the dataclass's fields
            seq=self._seq,
        )

    def _hits(
        self,
        shown: Sequence[RankedArticle],
        passages: Mapping[str, Passage],
        understood: Understood,
        fused: Fused,
    ) -> tuple[Hit, ...]:
        weights = understood.terms.terms if understood.terms is not None else {}
        matched = {i: matched_terms(p, weights) for i, p in passages.items()}
        unmatched = [p for i, p in passages.items() if not set(matched[i]) & set(p.terms)]
        likely = self._likely_sentences(unmatched, understood.vector)
        return tuple(
            Hit(
                article_id=article.article_id,
                passage=passages[article.best.passage_id],
                scored=article.best,
                others=article.others,
                snippet=snippet(passages[article.best.passage_id], weights, likely=likely.get(article.best.passage_id)),
                matched_terms=tuple(matched[article.best.passage_id]),
                alpha=fused.alpha,
                evidence=fused.evidence,
            )
            for article in shown
        )

    def _likely_sentences(self, passages: Sequence[Passage], vector: FloatArray | None) -> dict[str, Span]:
        """Of each passage found by its meaning alone, the sentence nearest to the query."""
        if vector is None or not passages or not vector.any():
            return {}
        spans = [(p, span) for p in passages for span in p.sentence_spans]
        try:
            if isinstance(self._encoder, TermEncoder):
                vectors = self._encoder.encode_terms([_terms_within(p, span) for p, span in spans])
            else:
                vectors = self._encoder.encode_passages([p.text[start:end] for p, (start, end) in spans])
        except _ENCODER_ERRORS:
            log.exception("the sentences of the hits could not be encoded: snippets show their beginnings")
            return {}
        likely: dict[str, tuple[float, Span]] = {}
        for (passage, span), nearness in zip(spans, (vectors @ vector).tolist(), strict=True):
            if passage.id not in likely or nearness > likely[passage.id][0]:
                likely[passage.id] = (nearness, span)
        return {passage_id: span for passage_id, (_, span) in likely.items()}


def _terms_within(passage: Passage, span: Span) -> list[str]:
    start, end = span
    return [term for term, at in zip(passage.terms, passage.term_spans, strict=True) if start <= at[0] and at[1] <= end]


class _Watch:
    """Milliseconds a stage; a stage that runs again adds up."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + (now - self._last) * 1000
        self._last = now

    @property
    def total(self) -> float:
        return (time.perf_counter() - self._start) * 1000
