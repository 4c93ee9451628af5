"""The query path over a real resident engine, kiwi-static and Kiwi: complete scores, one leg less, odd questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from types import MappingProxyType

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import Article, Passage
from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.errors import EncoderFailed, InvalidQuery, NotReady, StoreUnavailable
from pipeline.index.engine import Candidates, Engine, EngineQuery
from pipeline.index.fields import LexicalParameters
from pipeline.index.filters import Filter
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser, QueryTerms
from pipeline.passages import AnalysedPassage, ChunkingParameters, Passages, encode
from pipeline.retrieval.fusion import METHODS, Method
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import FusionParameters, Searcher, SearchResult
from pipeline.retrieval.understanding import QueryReader
from pipeline.retrieval.unified import unified

_NO_DEGRADATION: Mapping[str, str] = MappingProxyType({})
_QUERIES = [
    "전세대출 갈아타기",
    "돈 부치는 한도",
    "월세 돌려받기",
    "보이스피싱 당했을 때",
    "ISA",
    "카드를 잃어버렸어요",
    "은행",
]


@pytest.fixture(scope="module")
def engine(analyser: Analyser, encoder: KiwiStaticEncoder) -> ResidentEngine:
    """The shipped samples, and an article with nothing but a title."""
    lines = resources.files("pipeline.samples").joinpath("articles.jsonl").read_bytes().splitlines()
    articles = [Article.from_mapping(orjson.loads(line)) for line in lines]
    articles.append(Article.from_mapping({"id": "title-only", "title": "무지개 적금 출시", "body": ""}))
    engine = ResidentEngine(encoder.dim, LexicalParameters())
    made = Passages(analyser, encoder, ChunkingParameters()).of(list(enumerate(articles, start=1)))
    parts: list[AnalysedPassage] = [part for passages in made for part in passages]
    engine.add([part.passage for part in parts], encode(encoder, parts))
    return engine


class DeafEncoder:
    """kiwi-static, until it is to encode a question or a sentence."""

    def __init__(self, encoder: KiwiStaticEncoder, error: Exception, *, sentences_only: bool = False) -> None:
        self.id, self.dim, self.max_tokens = encoder.id, encoder.dim, encoder.max_tokens
        self.count_tokens = encoder.count_tokens
        self._encoder = encoder
        self._error = error
        self._sentences_only = sentences_only

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        if self._sentences_only:
            return self._encoder.encode_queries(texts)
        raise self._error

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        raise self._error


class ListeningEncoder(DeafEncoder):
    """kiwi-static, which remembers the sentences that it encoded."""

    def __init__(self, encoder: KiwiStaticEncoder) -> None:
        super().__init__(encoder, EncoderFailed("never"), sentences_only=True)
        self.texts: list[str] = []

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        self.texts += [text.strip() for text in texts]
        return self._encoder.encode_passages(texts)


class DeafAnalyser(Analyser):
    def terms_of_queries(self, texts: Sequence[str]) -> list[QueryTerms]:
        raise RuntimeError(f"Kiwi cannot read {', '.join(map(repr, texts))}")


def _searcher(
    analyser: Analyser,
    encoder: Encoder,
    engine: Engine,
    *,
    fusion: FusionParameters | None = None,
    degraded: Mapping[str, str] = _NO_DEGRADATION,
    seq: int = 0,
) -> Searcher:
    return Searcher(
        reader=QueryReader(analyser, encoder),
        encoder=encoder,
        engine=lambda: (engine, degraded),
        fusion=fusion or FusionParameters(),
        seq=lambda: seq,
    )


@pytest.fixture(scope="module")
def searcher(analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine) -> Searcher:
    return _searcher(analyser, encoder, engine)


def _ids(result: SearchResult) -> list[str]:
    return [hit.article_id for hit in result.hits]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("query", _QUERIES)
def test_every_hit_has_both_scores_and_they_add_up(searcher: Searcher, query: str, method: Method) -> None:
    result = searcher.with_fusion(method=method).search(SearchRequest.checked(query, limit=100))
    assert len(result.hits) == min(100, result.total)
    for hit in result.hits:
        scored = hit.scored
        assert None not in (scored.dense, scored.lexical)
        assert scored.dense_normalised is not None
        assert scored.lexical_normalised is not None
        parts = hit.alpha * scored.dense_normalised + (1 - hit.alpha) * scored.lexical_normalised
        assert hit.score == pytest.approx(parts, abs=1e-6)
        if method == "tm2c2":
            assert 0 <= hit.score <= 1
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    assert result.degraded == {}


@pytest.mark.parametrize(("mode", "on", "off"), [("lexical", "lexical", "dense"), ("dense", "dense", "lexical")])
def test_a_mode_of_one_leg_ranks_by_it_alone(searcher: Searcher, mode: str, on: str, off: str) -> None:
    result = searcher.search(SearchRequest.checked("전세대출 갈아타기", mode=mode, limit=50))
    assert result.hits
    assert result.degraded == {}
    for hit in result.hits:
        assert getattr(hit.scored, off) is None
        assert hit.score == pytest.approx(getattr(hit.scored, f"{on}_normalised"), abs=1e-6)
        assert hit.alpha == (1.0 if on == "dense" else 0.0)
    raw = [getattr(hit.scored, on) for hit in result.hits]
    assert raw == sorted(raw, reverse=True)


@settings(max_examples=8, deadline=None)
@given(query=st.sampled_from(_QUERIES), sizes=st.lists(st.integers(6, 40), min_size=1, max_size=3))
def test_pages_of_any_sizes_give_the_one_shot_list(searcher: Searcher, query: str, sizes: list[int]) -> None:
    request = SearchRequest.checked(query, limit=100)
    whole = searcher.search(request)
    seen, cursor, turn = [], None, 0
    while True:
        result = searcher.search(SearchRequest.checked(query, limit=sizes[turn % len(sizes)], cursor=cursor))
        assert result.total == whole.total
        seen += [(hit.article_id, hit.score, hit.snippet) for hit in result.hits]
        cursor, turn = result.next_cursor, turn + 1
        if cursor is None:
            break
    assert len(seen) == len({article for article, _, _ in seen}) == whole.total
    assert seen[:100] == [(hit.article_id, hit.score, hit.snippet) for hit in whole.hits]


def test_a_cursor_of_another_question_mode_filter_or_fusion_is_refused(searcher: Searcher) -> None:
    cursor = searcher.search(SearchRequest.checked("대출", limit=1)).next_cursor
    for other in (
        SearchRequest.checked("대출 금리", cursor=cursor),
        SearchRequest.checked("대출", mode="dense", cursor=cursor),
        SearchRequest.checked("대출", filter_=Filter(category="대출"), cursor=cursor),
    ):
        with pytest.raises(InvalidQuery, match="same question"):
            searcher.search(other)
    with pytest.raises(InvalidQuery, match="same question"):
        searcher.with_fusion(rrf_k=5).search(SearchRequest.checked("대출", cursor=cursor))


@pytest.mark.parametrize("error", [EncoderFailed("no memory"), RuntimeError("CUDA error"), MemoryError("full")])
def test_without_the_encoder_the_words_answer_and_the_reason_is_told(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine, searcher: Searcher, error: Exception
) -> None:
    broken = _searcher(analyser, DeafEncoder(encoder, error), engine)
    result = broken.search(SearchRequest.checked("전세대출 갈아타기"))
    assert result.degraded == {"dense": str(error)}
    assert _ids(result) == _ids(searcher.search(SearchRequest.checked("전세대출 갈아타기", mode="lexical")))
    with pytest.raises(NotReady, match="no leg can answer"):
        broken.search(SearchRequest.checked("전세대출", mode="dense"))


def test_without_kiwi_the_meaning_answers_and_the_reason_is_told(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine, searcher: Searcher
) -> None:
    broken = _searcher(DeafAnalyser(analyser.kiwi), encoder, engine)
    result = broken.search(SearchRequest.checked("전세대출 갈아타기"))
    assert result.degraded == {"lexical": "Kiwi cannot read '전세대출 갈아타기'"}
    assert _ids(result) == _ids(searcher.search(SearchRequest.checked("전세대출 갈아타기", mode="dense")))


def test_without_both_the_search_is_not_ready(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine
) -> None:
    broken = _searcher(DeafAnalyser(analyser.kiwi), DeafEncoder(encoder, RuntimeError("CUDA error")), engine)
    with pytest.raises(NotReady, match=r"Kiwi cannot read.*CUDA error"):
        broken.search(SearchRequest.checked("전세대출"))


def test_an_encoder_that_fails_on_the_sentences_alone_costs_only_the_snippets_place(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine, searcher: Searcher
) -> None:
    broken = _searcher(analyser, DeafEncoder(encoder, EncoderFailed("gone"), sentences_only=True), engine)
    request = SearchRequest.checked("전세대출", mode="dense")
    assert _ids(broken.search(request)) == _ids(searcher.search(request))


@pytest.mark.parametrize(
    "query",
    [
        "은는이가",
        "!!!",
        "ㅅㄱ",
        "ㅋㅋㅋ",
        "😀" * 50,
        "\ud7a4\u0000x",
        "a\ud83db",
        "가\x00나",
        "무엇",
        "왜?",
        "<b>",
        "%",
        "'\"\\",
        "category == '대출'",
        "0" * 500,
        "가" * 500,
        "가 " * 250,
        "を",
        "🇰🇷",
        "\u200b가",
    ],
)
@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_odd_queries_are_answered(searcher: Searcher, query: str, mode: str) -> None:
    result = searcher.search(SearchRequest.checked(query, mode=mode))
    assert len(result.hits) == min(10, result.total)
    assert all(hit.score == hit.score for hit in result.hits), "no NaN"
    orjson.dumps(unified(result, query=result.request.text, explain=True))


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_a_query_without_any_content_finds_nothing(searcher: Searcher, mode: str) -> None:
    result = searcher.search(SearchRequest.checked("!!!", mode=mode))
    assert (result.hits, result.total, result.next_cursor, result.degraded) == ((), 0, None, {})


@settings(max_examples=60, deadline=None)
@given(query=st.text(max_size=80))
def test_any_text_is_answered_or_refused_as_a_bad_query(searcher: Searcher, query: str) -> None:
    try:
        request = SearchRequest.checked(query)
    except InvalidQuery:
        return
    result = searcher.search(request)
    assert result.total >= len(result.hits)


def test_a_filter_holds_for_every_hit_of_both_legs(searcher: Searcher) -> None:
    everything = searcher.search(SearchRequest.checked("은행", limit=100))
    since = datetime(2025, 6, 1, tzinfo=UTC)
    category = everything.hits[0].passage.category
    for filter_ in (Filter(category=category), Filter(since=since), Filter(category=category, until=since)):
        result = searcher.search(SearchRequest.checked("은행", limit=100, filter_=filter_))
        assert 0 < result.total < everything.total
        for hit in result.hits:
            assert filter_.category in (None, hit.passage.category)
            published = hit.passage.published_at
            assert filter_.since is None or (published is not None and published >= filter_.since)
            assert filter_.until is None or (published is not None and published < filter_.until)
            assert None not in (hit.scored.dense, hit.scored.lexical)
    expression = Filter(category=f'{category}" or "" == "')
    assert searcher.search(SearchRequest.checked("은행", filter_=expression)).total == 0


def test_an_article_of_a_title_alone_is_found(searcher: Searcher) -> None:
    hit = searcher.search(SearchRequest.checked("무지개 적금")).hits[0]
    assert (hit.article_id, hit.snippet) == ("title-only", "")
    assert set(hit.matched_terms) >= {"무지개", "적금"}


def test_a_hit_by_meaning_alone_shows_its_nearest_sentence(searcher: Searcher, encoder: KiwiStaticEncoder) -> None:
    request = SearchRequest.checked("돈 부치기", mode="dense", limit=100)
    checked = 0
    for hit in searcher.search(request).hits:
        sentences = [hit.passage.text[start:end] for start, end in hit.passage.sentence_spans]
        nearness = encoder.encode_passages(sentences) @ encoder.encode_queries([request.text])[0]
        best = sentences[int(np.argmax(nearness))].replace("\n", " ")
        assert "<mark>" not in hit.snippet
        checked += best[:20] in hit.snippet.replace("&#x27;", "'").replace("&quot;", '"')
    # 82 here: sentences are encoded from their terms, which are blind to homographs; a random sentence is right one time in six.
    assert checked >= 75


def test_no_sentence_is_encoded_of_a_passage_that_its_snippet_shows_whole(
    analyser: Analyser, encoder: KiwiStaticEncoder
) -> None:
    listening, engine = ListeningEncoder(encoder), ResidentEngine(encoder.dim, LexicalParameters())
    short, long = "돈을 부친다. 값은 없다.", "돈을 보내는 길은 많다. " * 12
    articles = [Article(id=i, title="", body=body) for i, body in (("short", short), ("long", long))]
    made = Passages(analyser, encoder, ChunkingParameters()).of(list(enumerate(articles, start=1)))
    parts = [part for passages in made for part in passages]
    engine.add([part.passage for part in parts], encode(encoder, parts))
    result = _searcher(analyser, listening, engine).search(SearchRequest.checked("송금 수수료", mode="dense"))
    assert sorted(_ids(result)) == ["long", "short"]
    assert set(listening.texts) == {"돈을 보내는 길은 많다."}


def test_seq_degradation_of_the_engine_and_timings_pass_through(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine
) -> None:
    degraded = {"engine": "the resident index is loading"}
    result = _searcher(analyser, encoder, engine, degraded=degraded, seq=1812).search(SearchRequest.checked("대출"))
    assert (result.seq, result.degraded) == (1812, degraded)
    assert list(result.timings) == ["understand", "turn", "legs", "rank", "show"]
    assert sum(result.timings.values()) <= result.took_ms


class _Moving:
    """An engine in which every hit is replaced between scoring and showing; or that does not answer."""

    def __init__(self, engine: Engine, fails: StoreUnavailable | None = None) -> None:
        self._engine = engine
        self._fails = fails
        self.add, self.apply, self.count, self.revisions = engine.add, engine.apply, engine.count, engine.revisions

    def search(self, query: EngineQuery) -> Candidates:
        if self._fails is not None:
            raise self._fails
        return self._engine.search(query)

    def search_many(self, queries: Sequence[EngineQuery]) -> list[Candidates]:
        return [self.search(query) for query in queries]

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        return {}


def test_an_article_replaced_during_the_search_is_shown_as_it_was_scored(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine, searcher: Searcher
) -> None:
    expected = searcher.search(SearchRequest.checked("대출"))
    result = _searcher(analyser, encoder, _Moving(engine)).search(SearchRequest.checked("대출"))
    assert [(hit.passage.id, hit.snippet) for hit in result.hits] == [(h.passage.id, h.snippet) for h in expected.hits]
    assert _ids(result)


def test_an_engine_that_does_not_answer_is_not_ready(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine
) -> None:
    down = StoreUnavailable("collection", "http://milvus:19530", "connection refused", "start Milvus")
    with pytest.raises(NotReady, match=r"connection refused.*start Milvus"):
        _searcher(analyser, encoder, _Moving(engine, down)).search(SearchRequest.checked("대출"))


def test_the_unified_result_says_what_the_contract_says(searcher: Searcher) -> None:
    result = searcher.search(SearchRequest.checked("  전세대출\u200b 금리 ", limit=3))
    plain = unified(result, query="  전세대출\u200b 금리 ", explain=False)
    explained = unified(result, query="  전세대출\u200b 금리 ", explain=True)
    assert plain["query"] == "  전세대출\u200b 금리 "
    assert plain["understood"] == {"text": "전세대출 금리", "corrections": []}
    assert (plain["services"], plain["degraded"], plain["total"]) == ([], [], result.total)
    assert len(plain["items"]) == 3
    assert all("explain" not in item for item in plain["items"])
    for item in explained["items"]:
        why = item["explain"]
        assert why.keys() >= {
            "dense",
            "lexical",
            "dense_normalised",
            "lexical_normalised",
            "alpha",
            "boosts",
            "matched_terms",
        }
        parts = why["alpha"] * why["dense_normalised"] + (1 - why["alpha"]) * why["lexical_normalised"]
        assert item["score"] == pytest.approx(parts, abs=1e-6)
        assert [item["passage_id"], *(p["passage_id"] for p in item["passages"])][0].startswith(
            item["article_id"] + "#"
        )
    orjson.dumps(explained)


def test_an_empty_index_answers_with_nothing(analyser: Analyser, encoder: KiwiStaticEncoder) -> None:
    empty = _searcher(analyser, encoder, ResidentEngine(encoder.dim, LexicalParameters()))
    for method in METHODS:
        result = empty.with_fusion(method=method).search(SearchRequest.checked("대출"))
        assert (result.hits, result.total, result.next_cursor) == ((), 0, None)
