"""Both engines keep one promise: one suite over the resident engine and the milvus engine on Lite and on a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.documents import CANARY, Article, Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.errors import StoreUnavailable
from pipeline.index.article_statistics import ArticleStatistics
from pipeline.index.collection import Collection
from pipeline.index.engine import Engine, EngineQuery
from pipeline.index.fields import LexicalParameters
from pipeline.index.filters import Filter
from pipeline.index.milvus_engine import MilvusEngine, StandIn
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.parts import PartsHere
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import SearchResult
from pipeline.settings import Settings
from pipeline.storage.database import StateDatabase
from tests import milvus_server
from tests import small_corpus as corpus
from tests.fakes import FakeEncoder
from tests.small_corpus import DIM, WORDS, assert_same, expected, passages, question, scores, vectors

PARAMETERS = LexicalParameters()
MODES = ("hybrid", "dense", "lexical")


@dataclass
class Shelf:
    """An engine and the collection under it, written to in the order of the write path; old rows stay until `sweep`."""

    collection: Collection
    engine: Engine
    visible: dict[str, list[Passage]] = field(default_factory=dict)
    revision: int = 0

    def put(self, article_id: str, texts: Sequence[Sequence[str]], **fields: object) -> list[Passage]:
        self.revision += 1
        new = passages(article_id, self.revision, texts, **fields)
        self.collection.upsert(new, vectors(new))
        self.engine.apply({article_id: self.revision}, new, vectors(new))
        self.visible[article_id] = new
        return new

    def withdraw(self, article_id: str) -> None:
        self.engine.apply({article_id: None}, [], np.zeros((0, 0), dtype=np.float32))
        self.visible.pop(article_id, None)

    def load(self, articles: Sequence[list[Passage]]) -> None:
        everything = list(chain.from_iterable(articles))
        self.collection.upsert(everything, vectors(everything))
        for start in range(0, len(everything), 7):  # so that articles are cut, as in a real load
            some = everything[start : start + 7]
            self.engine.add(some, vectors(some))
        self.visible |= {some[0].article_id: some for some in articles}

    def sweep(self) -> None:
        for article_id in {a for _, a, _ in self.collection.iterate_ids()}:
            kept = self.visible.get(article_id)
            self.collection.delete_replaced({article_id: (kept[0].revision if kept else None, 1_000_000)})

    @property
    def there(self) -> list[Passage]:
        return list(chain.from_iterable(self.visible.values()))


def engine_of(kind: str, collection: Collection) -> Engine:
    return ResidentEngine(DIM, PARAMETERS) if kind == "resident" else MilvusEngine(collection, PARAMETERS)


@pytest.fixture(
    params=["resident", "milvus on lite", pytest.param("milvus on a server", marks=pytest.mark.server)], scope="module"
)
def kind(request: pytest.FixtureRequest) -> str:
    """Each engine in turn, the milvus engine on each store."""
    return str(request.param)


ON_MILVUS = pytest.mark.parametrize(
    "kind",
    ["milvus on lite", pytest.param("milvus on a server", marks=pytest.mark.server)],
    indirect=True,
    scope="module",
)
ON_LITE = pytest.mark.parametrize("kind", ["milvus on lite"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def opener(kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Opens an empty collection at each call; the resident engine's is on Lite."""
    uri, token = str(tmp_path_factory.mktemp("lite") / "store.db"), ""
    if kind == "milvus on a server":
        uri, token = str(request.getfixturevalue("milvus_uri")), milvus_server.TOKEN
    opened: list[Collection] = []

    def open_collection() -> Collection:
        with milvus_server.patiently():
            opened.append(Collection.open(uri=uri, token=token, name=f"t{uuid4().hex}", dim=DIM))
        return opened[-1]

    yield open_collection
    for collection in opened:
        collection.close()


@pytest.fixture(scope="module")
def shared(opener: Any) -> Collection:
    """One collection for all tests that write: making one takes a server seconds."""
    collection: Collection = opener()
    return collection


@pytest.fixture
def shelf(kind: str, shared: Collection) -> Iterator[Shelf]:
    """An empty engine on an empty collection."""
    yield Shelf(shared, engine_of(kind, shared))
    shared.delete([i for i, _, _ in shared.iterate_ids()])


@pytest.fixture(scope="module")
def filled(kind: str, opener: Any) -> Shelf:
    """Sixty articles with all kinds of filter fields, loaded. Do not write to it."""
    collection = opener()
    shelf = Shelf(collection, engine_of(kind, collection))
    shelf.load(corpus.varied_articles())
    return shelf


# ---- scores


@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
def test_the_rarest_shared_word_is_that_of_the_passage_with_the_best_words(filled: Shelf, mode: str) -> None:
    """Written out over every passage; without a word in common it is 1, as it is with a word of which nothing is known."""
    for words, rarities in (
        (["대출"], {"대출": 0.2}),
        (["세금", "신고"], {"세금": 0.1, "신고": 0.7}),
        (["세금", "신고"], {"세금": 0.1}),
        (["없는말"], {"없는말": 0.3}),
    ):
        query = question(words, mode=mode)
        assert query.terms is not None
        query = replace(query, terms=replace(query.terms, rarities=rarities))
        wanted = expected(filled.there, query, PARAMETERS)
        best = min(wanted, key=lambda i: (-wanted[i][1], i), default=None)
        held = {t for p in filled.there if p.id == best for t in (*p.title_terms, *p.terms)} & set(words)
        rarest = max((rarities.get(term, 1.0) for term in held), default=1.0)
        assert filled.engine.search(query).lexical_rarest == rarest


@pytest.mark.parametrize("mode", ["hybrid", "dense"])
def test_candidates_scores_and_maxima_are_those_of_brute_force(filled: Shelf, mode: str) -> None:
    for words in (["대출"], ["세금", "신고"], ["환율", "ETF", "ETF"], ["없는말"], list(WORDS)):
        query = question(words, mode=mode)
        assert_same(filled.engine.search(query), expected(filled.there, query, PARAMETERS))


def test_lexical_candidates_hold_a_term_and_are_scored_exactly(filled: Shelf) -> None:
    for words in (["대출"], ["세금", "금리", "금리"]):
        query = question(words, mode="lexical")
        found, wanted = filled.engine.search(query), expected(filled.there, query, PARAMETERS)
        given_scores = scores(found)
        for passage_id, (_, lexical) in given_scores.items():
            assert lexical == pytest.approx(wanted[passage_id][1], abs=1e-6)
        # What only its title matches, Milvus does not propose (see milvus_search.py); what its text matches, every engine does.
        assert given_scores.keys() >= {p.id for p in filled.there if set(words) & set(p.terms)}
        assert found.lexical_best == pytest.approx(max(pair[1] for pair in wanted.values()), abs=1e-6)
        assert np.isnan(found.dense).all()
        assert found.dense_best == 0.0


@given(conditions=corpus.filters, words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_filter_gives_what_the_plain_predicate_gives(filled: Shelf, conditions: Filter, words: list[str]) -> None:
    query = question(words, conditions=conditions)
    assert_same(filled.engine.search(query), expected(filled.there, query, PARAMETERS))


@pytest.mark.parametrize(
    "conditions",
    [
        Filter(category="금융"),
        Filter(series="세금"),
        Filter(source='" or 1==1'),
        Filter(tag=""),
        Filter(since=corpus.NOON + timedelta(days=2)),
        Filter(until=corpus.NOON + timedelta(days=2)),
        Filter(category="금융", tag="세금", since=corpus.NOON),
    ],
)
def test_each_filter_passes_some_and_refuses_some(filled: Shelf, conditions: Filter) -> None:
    query = question(["대출"], conditions=conditions)
    found = filled.engine.search(query)
    assert 0 < len(found.passage_ids) < len(filled.there)
    assert_same(found, expected(filled.there, query, PARAMETERS))


@pytest.mark.parametrize("words", [["대출", "금리"], ["쀍뛟"]])
def test_each_leg_proposes_its_best_candidates_only(filled: Shelf, words: list[str]) -> None:
    query = question(words, candidates=10)
    wanted = expected(filled.there, question(words), PARAMETERS)
    dense = sorted(wanted, key=lambda i: (-wanted[i][0], i))[:10]
    lexical = sorted((i for i in wanted if wanted[i][1] > 0), key=lambda i: (-wanted[i][1], i))[:10]
    found = filled.engine.search(query)
    assert set(found.passage_ids) == {*dense, *lexical}
    assert found.dense_best == pytest.approx(max(pair[0] for pair in wanted.values()), abs=1e-6)
    assert found.lexical_best == pytest.approx(max(pair[1] for pair in wanted.values()), abs=1e-6)


@pytest.mark.parametrize(("tied", "modes"), [(60, MODES), (200, ("hybrid", "dense"))])
def test_ties_at_the_cut_go_by_id_on_every_engine(shelf: Shelf, tied: int, modes: Sequence[str]) -> None:
    """Of the lexical leg alone Milvus gives no scores: ties beyond the surplus are cut as Milvus has them."""
    names = [f"글{n:03}" for n in range(tied)]
    shelf.load([passages(name, 1, [["대출", "금리"]]) for name in reversed(names)])
    for mode in modes:
        found = shelf.engine.search(question(["대출"], mode=mode, candidates=10))
        assert sorted(found.article_ids) == names[:10], mode
        assert len(set(found.dense.tolist())) == 1 or mode == "lexical"
        assert len(set(found.lexical.tolist())) == 1 or mode == "dense"


def test_a_zero_vector_is_neither_near_nor_far(filled: Shelf) -> None:
    query = EngineQuery(vector=np.zeros(DIM, dtype=np.float32), terms=None, candidates=5)
    found = filled.engine.search(query)
    assert sorted(found.passage_ids) == sorted(p.id for p in filled.there)[:5]
    assert found.dense.tolist() == [0.0] * 5
    assert found.dense_best == 0.0


def test_unknown_terms_score_nothing(filled: Shelf) -> None:
    assert list(filled.engine.search(question(["쀍뛟"], mode="lexical")).passage_ids) == []
    found = filled.engine.search(question(["쀍뛟"]))
    assert len(found.passage_ids) == len(filled.there)
    assert not found.lexical.any()
    assert found.lexical_best == 0.0


def test_an_empty_engine_answers_with_nothing(shelf: Shelf) -> None:
    for mode in MODES:
        found = shelf.engine.search(question(["대출"], mode=mode))
        assert (list(found.passage_ids), found.dense_best, found.lexical_best) == ([], 0.0, 0.0)
    assert shelf.engine.passages(["글#1#0"]) == {}
    assert shelf.engine.count == 0


# ---- changes


@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_after_any_changes_an_engine_answers_as_a_fresh_one(kind: str, shelf: Shelf, data: st.DataObject) -> None:
    shelf = Shelf(shelf.collection, engine_of(kind, shelf.collection))  # rows of the examples before are never shown
    example = uuid4().hex
    for _ in range(data.draw(st.integers(1, 7), "steps")):
        article_id = example + data.draw(st.sampled_from("가나다"), "article")
        if data.draw(st.sampled_from([True, True, True, False]), "publish"):
            category = data.draw(st.sampled_from([None, "금융"]), "category")
            shelf.put(article_id, data.draw(corpus.documents, "texts"), category=category)
        else:
            shelf.withdraw(article_id)
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), "words")
    for query in (question(words), question(words, conditions=Filter(category="금융"))):
        assert_same(shelf.engine.search(query), expected(shelf.there, query, PARAMETERS))
    assert shelf.engine.count == len(shelf.there)
    stored = [f"{example}{name}#{revision}#0" for name in "가나다" for revision in range(shelf.revision + 1)]
    stored += [p.id for p in shelf.there]
    assert shelf.engine.passages(stored) == {p.id: p for p in shelf.there}


def test_several_articles_change_in_one_step(shelf: Shelf) -> None:
    """One replaced by more passages, one withdrawn, one new, one whose new revision has nothing to show."""
    for n in range(4):
        shelf.put(f"글{n}", [["대출", "금리"]])
    changed = [*passages("글0", 9, [["대출"], ["환율"]]), *passages("새", 9, [["금리", "대출"]])]
    shelf.collection.upsert(changed, vectors(changed))
    shelf.engine.apply({"글0": 9, "글1": None, "새": 9, "글3": 9}, changed, vectors(changed))
    shelf.visible = {"글0": changed[:2], "글2": shelf.visible["글2"], "새": changed[2:]}
    for mode in ("hybrid", "dense"):
        query = question(["대출"], mode=mode)
        assert_same(shelf.engine.search(query), expected(shelf.there, query, PARAMETERS))
    assert shelf.engine.count == 4


def test_rows_of_replaced_revisions_do_not_crowd_out_what_is_visible(shelf: Shelf) -> None:
    there = [passages(f"글{n}", 1, [["대출", "금리"]]) for n in range(6)]
    shelf.load(there)
    stale = [p for n in range(40) for p in passages("글0", 100 + n, [["대출"]] * 5)]
    shelf.collection.upsert(stale, vectors(stale))
    for mode in MODES:
        found = shelf.engine.search(question(["대출"], mode=mode, candidates=5))
        assert sorted(found.passage_ids) == [f"글{n}#1#0" for n in range(5)], mode


class Meanwhile:
    """A collection whose dense search is followed by something, once, before its answer is read."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self.then: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    def search_dense(self, *arguments: Any) -> Any:
        answer = self._collection.search_dense(*arguments)
        then, self.then = self.then, lambda: None
        then()
        return answer


@ON_MILVUS
@pytest.mark.parametrize("category", ["외환", "부동산"])
def test_an_article_replaced_after_milvus_looked_is_shown_as_it_is_now(shelf: Shelf, category: str) -> None:
    meanwhile = Meanwhile(shelf.collection)
    shelf.engine = MilvusEngine(meanwhile, PARAMETERS)  # type: ignore[arg-type]
    for n in range(3):
        shelf.put(f"글{n}", [["대출", "금리"]], category="외환")
    meanwhile.then = lambda: shelf.put("글1", [["금리", "환율"], ["쀍뛟"]], category=category)
    query = question(["대출"], mode="dense", conditions=Filter(category="외환"))
    assert_same(shelf.engine.search(query), expected(shelf.there, query, PARAMETERS))
    assert shelf.engine.count == 4
    meanwhile.then = lambda: shelf.withdraw("글1")
    assert_same(shelf.engine.search(query), expected(shelf.there, query, PARAMETERS))
    assert shelf.engine.count == 2


@ON_MILVUS
def test_an_article_loaded_after_milvus_looked_is_shown_whole(shelf: Shelf) -> None:
    meanwhile = Meanwhile(shelf.collection)
    shelf.engine = MilvusEngine(meanwhile, PARAMETERS)  # type: ignore[arg-type]
    stale = passages("글", 1, [["대출"]])
    shelf.collection.upsert(stale, vectors(stale))
    meanwhile.then = lambda: shelf.load([passages("글", 2, [["대출", word] for word in WORDS])])
    query = question(["대출"], mode="dense")
    assert_same(shelf.engine.search(query), expected(shelf.there, query, PARAMETERS))
    assert shelf.engine.count == len(WORDS)


@ON_MILVUS
def test_an_article_replaced_and_swept_while_it_is_fetched_is_looked_up_again(shelf: Shelf) -> None:
    class SweptMeanwhile(Meanwhile):
        def get_vectors(self, ids: Sequence[str]) -> dict[str, FloatArray]:
            then, self.then = self.then, lambda: None
            then()
            return self._collection.get_vectors(ids)

        def search_dense(self, *arguments: Any) -> Any:
            return self._collection.search_dense(*arguments)

    def replace_and_sweep() -> None:
        shelf.put("글1", [["금리", "환율"], ["쀍뛟"]])
        shelf.sweep()

    meanwhile = SweptMeanwhile(shelf.collection)
    shelf.engine = MilvusEngine(meanwhile, PARAMETERS)  # type: ignore[arg-type]
    for n in range(3):
        shelf.put(f"글{n}", [["대출", "금리"]])
    meanwhile.then = replace_and_sweep
    assert set(shelf.engine.search(question(["대출"])).passage_ids) == {"글0#1#0", "글1#4#0", "글1#4#1", "글2#3#0"}


def test_a_reader_sees_one_revision_of_an_article_while_it_is_replaced(shelf: Shelf) -> None:
    shelf.load([passages(f"글{n}", 1, [["금리", "세금"]]) for n in range(20)])
    shelf.revision = 1
    shelf.put("글", [["대출"], ["대출", "금리"]])
    failures: list[Exception] = []
    searches: list[int] = []
    done, ended = threading.Event(), threading.Event()

    def write() -> None:
        try:
            before: list[Passage] = []
            for step in range(15):
                replaced, before = before, shelf.visible["글"]
                shelf.put("글", [["대출", WORDS[step % 4]], ["대출", "금리"]])
                so_far = len(searches)
                while len(searches) == so_far and not ended.is_set():
                    time.sleep(0.001)
                shelf.collection.delete([p.id for p in replaced])  # the grace: a change and a search long
        except Exception as error:  # noqa: BLE001 (shown by the assertion below)
            failures.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        while not done.is_set():
            found = shelf.engine.search(question(["대출"]))
            searches.append(len(found.passage_ids))
            shown = {
                i for i, article_id in zip(found.passage_ids, found.article_ids, strict=True) if article_id == "글"
            }
            revisions = {int(i.split("#")[1]) for i in shown}
            assert len(revisions) == 1, shown
            assert len(shown) == 2, shown
            seen |= revisions
    finally:
        ended.set()
        writer.join()
    assert set(searches) == {22}
    assert failures == []
    shelf.withdraw("글")
    assert "글" not in shelf.engine.search(question(["대출"])).article_ids


def test_passages_come_back_equal_until_they_are_replaced(shelf: Shelf) -> None:
    old = shelf.put(
        "글", [["대출"], ["금리"]], category="금융", tags=("가", "나"), published_at=corpus.NOON, quality=0.5
    )
    assert shelf.engine.passages([old[1].id, old[0].id, "없다#1#0"]) == {p.id: p for p in old}
    new = shelf.put("글", [["세금"]])
    assert shelf.engine.passages([p.id for p in (*old, *new)]) == {new[0].id: new[0]}
    shelf.withdraw("글")
    assert shelf.engine.passages([p.id for p in (*old, *new)]) == {}


def test_swept_rows_change_no_answer(shelf: Shelf) -> None:
    for n in range(5):
        shelf.put(f"글{n}", [["대출", WORDS[n]]])
    for n in range(3):
        shelf.put(f"글{n}", [["금리", WORDS[n]], ["세금"]])
    shelf.withdraw("글4")
    query = question(["대출", "금리"])
    before = scores(shelf.engine.search(query))
    shelf.sweep()
    assert scores(shelf.engine.search(query)) == before
    assert shelf.collection.count() == len(shelf.there) == shelf.engine.count


# ---- a store that fails


class HalfDown:
    """A collection of which some searches fail, as they do where a query node is away."""

    def __init__(self, collection: Collection, *down: str) -> None:
        self._collection = collection
        self._down = down

    def __getattr__(self, name: str) -> Any:
        if name in self._down:
            raise StoreUnavailable("collection", "here", "no query node", "wait")
        return getattr(self._collection, name)


@ON_LITE
@pytest.mark.parametrize(("leg", "call"), [("dense", "search_dense"), ("lexical", "search_lexical")])
def test_a_leg_that_fails_is_named_and_the_other_answers(filled: Shelf, leg: str, call: str) -> None:
    engine = MilvusEngine(HalfDown(filled.collection, call), PARAMETERS)  # type: ignore[arg-type]
    engine.add(filled.there, vectors(filled.there))
    query = question(["대출"])
    found, wanted = engine.search(query), expected(filled.there, query, PARAMETERS)
    assert list(found.failed) == [leg]
    assert "no query node" in found.failed[leg]
    held = {p.id for p in filled.there if "대출" in p.terms}
    assert set(found.passage_ids) >= held
    for passage_id, pair in scores(found).items():
        np.testing.assert_allclose(pair, wanted[passage_id], rtol=0, atol=1e-6)
    with pytest.raises(StoreUnavailable, match="no query node"):
        engine.search(question(["대출"], mode=leg))


@ON_MILVUS
def test_where_milvus_is_down_only_a_resident_lexical_leg_answers(filled: Shelf) -> None:
    down = HalfDown(filled.collection, "search_dense", "search_lexical", "get", "get_vectors")
    engine = MilvusEngine(down, PARAMETERS)  # type: ignore[arg-type]
    engine.add(filled.there, vectors(filled.there))
    if filled.collection.supports_lexical:
        with pytest.raises(StoreUnavailable, match="no query node"):
            engine.search(question(["대출"]))
        return
    found = engine.search(question(["대출"]))
    assert list(found.failed) == ["dense"]
    assert np.isnan(found.dense).all()
    wanted = expected(filled.there, question(["대출"], mode="lexical"), PARAMETERS)
    assert {i: pair[1] for i, pair in scores(found).items()} == pytest.approx({i: w[1] for i, w in wanted.items()})
    assert found.lexical_best == pytest.approx(max(pair[1] for pair in wanted.values()))
    assert set(engine.passages(found.passage_ids)) == set(found.passage_ids)


# ---- while an engine loads


def test_a_stand_in_finds_what_is_not_loaded_yet_and_shows_no_stale_revision(shelf: Shelf) -> None:
    there = [passages(f"글{n}", 1, [["금리", WORDS[n % len(WORDS)]]]) for n in range(30)]
    everything = list(chain.from_iterable(there))
    stale = passages("글3", 0, [["대출", "대출", "대출"]]) + passages("지운 글", 0, [["대출"]])
    shelf.collection.upsert(everything + stale, vectors(everything + stale))
    registry = {p.article_id: (1, 1) for p in everything}
    assert isinstance(shelf.engine, MilvusEngine | ResidentEngine)
    stand_in = StandIn(shelf.engine, shelf.collection, lambda ids: {i: registry[i] for i in ids if i in registry})
    for loaded in (0, 10, 30):
        some = everything[shelf.engine.count : loaded]
        stand_in.add(some, vectors(some))
        assert stand_in.count == shelf.engine.count == loaded
        for mode in ("hybrid", "lexical") if shelf.collection.supports_lexical or loaded == 30 else ("hybrid",):
            query = question(["대출"], mode=mode)
            found = stand_in.search(query)
            assert {"글0#1#0", "글12#1#0", "글24#1#0"} <= set(found.passage_ids)
            assert set(found.passage_ids) <= {p.id for p in everything}
            best = {i for i, score in zip(found.passage_ids, found.lexical, strict=True) if score == found.lexical_best}
            assert best == {"글0#1#0", "글12#1#0", "글24#1#0"}
            assert stand_in.passages(found.passage_ids).keys() == set(found.passage_ids)
        assert stand_in.passages([p.id for p in stale]) == {}
    assert_same(stand_in.search(question(["대출"])), expected(everything, question(["대출"]), PARAMETERS))


@pytest.mark.parametrize("engine", ["resident", "milvus"])
def test_a_search_during_loading_says_so_and_finds_what_is_found_afterwards(
    engine: str, tmp_path: Path, analyser: Analyser
) -> None:
    settings_ = Settings.model_validate({"data_dir": tmp_path, "engine": engine, "indexers": {"grace_seconds": 0}})
    database = StateDatabase.open(settings_.state_url)
    with closing(Assembly(settings_, database, PartsHere(settings_, analyser, FakeEncoder()), None)) as assembly:
        connected = assembly.connect()
        worker = Worker(assembly.store, lambda: connected.ingest)

        def publish(*articles: Article) -> None:
            assembly.store.accept_many(articles, source="test")
            worker.drain()
            connected.ingest.sweep()

        def search(text: str) -> SearchResult:
            return connected.searcher.search(SearchRequest.checked(text))

        def topped(text: str) -> list[str]:
            return [hit.passage.id for hit in search(text).hits[:3]]

        publish(
            *(Article(id=f"글{n}", title=f"{word} 이야기", body=f"{word} 설명입니다.") for n, word in enumerate(WORDS))
        )
        publish(Article(id=CANARY, title="카나리아", body="카나리아가 전세 대출을 노래합니다."))
        during: list[list[str]] = []

        def while_loading(_rows: int) -> None:
            publish(Article(id="글0", title="대출 안내", body="전세 대출 한도를 새로 정했습니다."))
            assert list(search("전세 대출").degraded) == [engine]
            assert CANARY not in {hit.passage.article_id for hit in search("카나리아 전세 대출").hits}
            during.extend(topped(text) for text in ("전세 대출 한도", "환율"))

        before = topped("환율")
        connected.load(while_loading)
        assert search("전세 대출").degraded == {}
        after = [topped(text) for text in ("전세 대출 한도", "환율")]
        assert after == during
        assert [ids[0].split("#")[0] for ids in after] == ["글0", "글9"]
        assert before[0] == after[1][0]
        publish(Article(id="글0", title="대출 안내", body="한도를 다시 정했습니다."))
        connected.follower.catch_up()
        assert topped("대출 한도")[0] == f"글0#{connected.follower.seq}#0"


# ---- the statistics of the milvus engine


@given(
    first=corpus.documents,
    second=corpus.documents,
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_statistics_forget_a_replaced_article_completely(
    first: list[list[str]], second: list[list[str]], words: list[str]
) -> None:
    statistics = ArticleStatistics(PARAMETERS)
    other = passages("다른 글", 1, [["대출", "금리"], ["세금"]])
    old, new = passages("글", 1, first), passages("글", 2, second)
    statistics.add(other)
    for passage in old:  # a load may cut an article anywhere
        statistics.add([passage])
    statistics.replace("글", new)
    terms = question(words).terms
    assert terms is not None
    fresh = ArticleStatistics(PARAMETERS)
    fresh.add([*other, *new])
    assert statistics.count == fresh.count
    assert (
        statistics.scorer(terms).scores([*other, *new]).tolist() == fresh.scorer(terms).scores([*other, *new]).tolist()
    )
    statistics.replace("글", [])
    statistics.replace("다른 글", [])
    assert statistics.count == 0
