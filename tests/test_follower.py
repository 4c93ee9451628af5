"""The follower: whatever happens, an engine that follows the log equals one that was loaded anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import follower as module
from pipeline import ingest as ingest_module
from pipeline.documents import Article, Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.errors import LogPruned, StoreUnavailable
from pipeline.follower import Follower
from pipeline.index.collection import Collection
from pipeline.index.engine import EngineQuery, Revisions
from pipeline.index.fields import LexicalParameters
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.manifest import Manifest
from pipeline.index.resident import ResidentEngine
from pipeline.ingest import Ingest
from pipeline.korean.bigrams import bigrams
from pipeline.storage import leases, manifests, news
from pipeline.storage.articles import ArticleStore
from pipeline.storage.news import News
from tests.stores import EMBEDDED_ALONE, SERVERS_ALONE
from tests.write_path import DIM, Stage

_BODIES = [
    "전세 대출 금리가 내렸다.",
    "연말정산과 월세 공제.\n\n보이스피싱 신고는 112로 한다.",
    "펀드와 예금을 비교한다.",
]
_QUERIES = ["전세 금리", "월세 공제 신고", "예금"]
_IDS = ["가", "나", "다", "라"]

Shown = dict[str, tuple[Passage, list[float]]]


class Recording(ResidentEngine):
    """A real engine that keeps which revision it was given of each article, in order."""

    def __init__(self) -> None:
        super().__init__(DIM, LexicalParameters())
        self.applied: list[tuple[str, int | None]] = []

    def apply(self, revisions: Revisions, passages: Any, vectors: FloatArray) -> None:
        self.applied += revisions.items()
        super().apply(revisions, passages, vectors)


def engine() -> ResidentEngine:
    return ResidentEngine(DIM, LexicalParameters())


def fresh(stage: Stage) -> Follower:
    follower = Follower(stage.store, stage.collection, engine())
    follower.load()
    return follower


def contents(stage: Stage, follower: Follower) -> Shown:
    """Everything that searching can show: for each passage itself and its scores for some queries."""
    shown: Shown = {}
    for text in _QUERIES:
        terms = dict.fromkeys(text.split(), 1.0)
        query = EngineQuery(
            vector=stage.encoder.encode_queries([text])[0],
            terms=LexicalQuery(terms=terms, bigrams=tuple(bigrams(text))),
            candidates=1000,
        )
        found = follower._engine.search(query)
        passages = follower._engine.passages(found.passage_ids)
        for place, passage_id in enumerate(found.passage_ids):
            _, scores = shown.setdefault(passage_id, (passages[passage_id], []))
            scores += [float(found.dense[place]), float(found.lexical[place])]
        assert len(found.passage_ids) == follower._engine.count
    return shown


def assert_equal(stage: Stage, follower: Follower) -> None:
    expected, found = contents(stage, fresh(stage)), contents(stage, follower)
    assert {i: passage for i, (passage, _) in found.items()} == {i: passage for i, (passage, _) in expected.items()}
    for passage_id, (_, scores) in found.items():
        np.testing.assert_allclose(scores, expected[passage_id][1], atol=1e-6)
    visible = stage.store.visible()[2]
    assert {(p.article_id, p.revision) for p, _ in found.values()} == set(visible.items())


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(_IDS), st.sampled_from(_BODIES)),
        st.tuples(st.just("hide"), st.sampled_from(_IDS), st.just("")),
        st.tuples(st.just("delete"), st.sampled_from(_IDS), st.just("")),
        st.tuples(st.just("catch up"), st.just(""), st.just("")),
        st.tuples(st.just("sweep"), st.just(""), st.just("")),
    ),
    min_size=1,
    max_size=14,
)


_UNHURRIED: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@EMBEDDED_ALONE
@given(before=_STEPS, after=_STEPS)
@settings(max_examples=25, **_UNHURRIED)
def test_following_the_log_equals_loading_anew(stage: Stage, before: list[Any], after: list[Any]) -> None:
    follows(stage, before, after)


@SERVERS_ALONE  # fewer: a comparison takes several Strong reads there, a quarter of a second each
@given(before=_STEPS, after=_STEPS)
@settings(max_examples=2, **_UNHURRIED)
def test_so_it_does_on_a_milvus_server_and_postgresql(stage: Stage, before: list[Any], after: list[Any]) -> None:
    follows(stage, before, after)


def follows(stage: Stage, before: list[Any], after: list[Any]) -> None:
    for article_id in stage.store.visible()[2]:
        stage.delete(article_id)  # of the example before
    follower: Follower | None = None
    for steps in (before, after):
        for step, article_id, body in steps:
            _do(stage, follower, step, article_id, body)
        follower = follower or fresh(stage)
    assert follower is not None
    follower.catch_up()
    assert_equal(stage, follower)
    assert follower.seq == stage.store.settled_up_to()
    assert follower.position == stage.store.visible()[0]


def _do(stage: Stage, follower: Follower | None, step: str, article_id: str, body: str) -> None:
    if step == "publish":  # pushed, its rows with the commit or without, or loaded
        ingest = stage.ingest(carries=body != _BODIES[1])
        if body == _BODIES[2]:
            stage.publish(Article(id=article_id, title="제목", body=body), ingest=ingest)
        else:
            published(stage, article_id, body, ingest)
    elif step == "hide":
        stage.publish(Article(id=article_id, title="제목", body=_BODIES[0], visible=False))
    elif step == "delete" and article_id in stage.store.visible()[2]:
        stage.delete(article_id)
    elif step == "catch up" and follower is not None:
        follower.catch_up()
        assert_equal(stage, follower)
    elif step == "sweep":
        stage.ingest().sweep()


def published(stage: Stage, article_id: str, body: str, ingest: Ingest | None = None) -> int:
    answer = stage.store.accept(Article(id=article_id, title="제목", body=body))
    stage.drain(ingest)
    return answer.seq


def test_only_the_newest_revision_is_applied_and_never_a_stale_one(stage: Stage) -> None:
    recording = Recording()
    follower = Follower(stage.store, stage.collection, recording)
    follower.load()
    for body in _BODIES:
        last = published(stage, "가", body)
    stage.ingest().sweep()
    assert follower.catch_up() == 3
    assert recording.applied == [("가", last)]
    assert follower.catch_up() == 0


def test_what_comes_with_the_commit_is_not_read_from_the_collection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, ingest = fresh(stage), stage.ingest(carries=True)
    for body in _BODIES:
        published(stage, "가", body, ingest)
    published(stage, "나", _BODIES[0], ingest)
    stage.delete("나")
    read: list[str] = []
    real = Collection.read

    def watched(collection: Collection, ids: list[str], **options: bool) -> tuple[list[Passage], FloatArray]:
        read.extend(ids)
        return real(collection, ids, **options)

    monkeypatch.setattr(Collection, "read", watched)
    assert follower.catch_up() == 5
    assert read == []
    assert_equal(stage, follower)

    newest = published(stage, "가", _BODIES[0], ingest)
    seen = len(read)  # the writer looks for vectors it may copy
    stage.store.drop_carried(0)
    assert follower.catch_up() == 1
    assert read[seen:] == [f"가#{newest}#0"]
    assert_equal(stage, follower)


def test_a_push_is_told_of_before_a_bulk_beside_it_is_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    follower = Follower(
        stage.store,
        stage.collection,
        engine(),
        on_applied=lambda entries, _now: told.append(tuple(entry.article_id for entry in entries)),
    )
    follower.load()
    stage.publish(*(Article(id=f"글{n}", title="제목", body=_BODIES[1]) for n in range(3)))
    pushed = published(stage, "가", _BODIES[0], stage.ingest(carries=True))
    real, seen = Collection.read, []

    def watched(collection: Collection, ids: list[str], **options: bool) -> tuple[list[Passage], FloatArray]:
        seen.append((tuple(told), follower.has_applied(pushed), follower.has_applied(1)))
        return real(collection, ids, **options)

    monkeypatch.setattr(Collection, "read", watched)
    assert follower.catch_up() == 4
    assert seen == [((("가",),), True, False)]
    assert told == [("가",), ("글0", "글1", "글2")]


@EMBEDDED_ALONE  # arithmetic
def test_what_came_with_commits_is_put_in_some_articles_at_a_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PUT_TOGETHER", 3)
    follower = fresh(stage)
    ingest = stage.ingest(carries=True)
    for article_id in _IDS:
        published(stage, article_id, _BODIES[1], ingest)
    put: list[int] = []
    real = ResidentEngine.apply

    def watched(self: ResidentEngine, revisions: Revisions, passages: Any, vectors: FloatArray) -> None:
        put.append(len(passages))
        real(self, revisions, passages, vectors)

    monkeypatch.setattr(ResidentEngine, "apply", watched)
    follower.catch_up()
    monkeypatch.undo()
    assert put == [3, 1]
    assert_equal(stage, follower)


def test_of_a_bulk_and_of_long_articles_nothing_is_carried(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_CARRIED_PASSAGES", 1)
    ingest = stage.ingest(carries=True)
    stage.publish(Article(id="가", title="제목", body=_BODIES[0]), ingest=ingest)
    published(stage, "나", " ".join(["하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열."] * 4), ingest)
    published(stage, "다", _BODIES[0], ingest)
    new = news.since(stage.store.database, 0, 9, collection=stage.collection.name, with_rows=True)
    assert {article_id: count > 1 for article_id, (_, count) in new.shown.items()} == {
        "가": False,
        "나": True,
        "다": False,
    }
    assert list(new.carried) == ["다"]
    other = news.since(stage.store.database, 0, 9, collection="another", with_rows=True)
    assert not other.carried


@EMBEDDED_ALONE  # the order of what is told and what the log says
def test_an_old_delete_in_the_log_does_not_take_away_what_was_told_meanwhile(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOG_BATCH", 1)
    published(stage, "가", _BODIES[0])
    recording = Recording()
    follower = Follower(stage.store, stage.collection, recording)
    follower.load()
    stage.delete("가")
    ingest = stage.ingest()
    ingest.observer = follower.tell
    published(stage, "가", _BODIES[1], ingest)
    recording.applied.clear()
    follower.catch_up()
    assert ("가", None) not in recording.applied
    assert_equal(stage, follower)
    assert follower.seq == 3


def test_a_change_is_applied_though_one_before_it_still_waits(stage: Stage) -> None:
    follower = fresh(stage)
    stage.store.accept_many([Article(id=i, title="제목", body="하나") for i in ("가", "나")], source="bulk")
    pushed = stage.store.accept(Article(id="다", title="제목", body="둘"))
    batch = stage.store.queued(1)
    assert [change.seq for change in batch] == [pushed.seq]
    lease = leases.acquire(stage.store.database, "worker", "test", 60)
    assert lease is not None
    ingest = stage.ingest()
    assert not follower.has_applied(pushed.seq)
    ingest.write(batch, ingest.analyse(batch), lease)
    assert not follower.has_applied(pushed.seq)
    follower.catch_up()
    assert (follower.seq, follower.has_applied(pushed.seq), follower.has_applied(1)) == (0, True, False)
    leases.release(stage.store.database, lease)
    stage.drain()
    follower.catch_up()
    assert all(map(follower.has_applied, (1, 2, 3)))
    assert not follower.has_applied(4)


@EMBEDDED_ALONE  # they are remembered in memory
def test_only_so_many_changes_are_remembered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    follower = fresh(stage)
    for body in (*_BODIES, *_BODIES):
        published(stage, "가", body)
        follower.catch_up()
    assert list(follower._recent) == [5, 6]
    assert all(map(follower.has_applied, range(1, 7)))  # by `seq`


@EMBEDDED_ALONE  # arithmetic
def test_a_log_longer_than_a_batch_is_followed_to_its_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOG_BATCH", 2)
    follower = fresh(stage)
    for number in range(5):
        published(stage, f"글{number % 3}", _BODIES[number % 2])
    stage.delete("글0")
    assert follower.catch_up() == 6
    assert_equal(stage, follower)


def test_seq_is_what_is_settled_and_applied_here(stage: Stage) -> None:
    follower = fresh(stage)
    assert follower.seq == 0
    stage.store.accept(Article(id="가", title="제목", body="하나"))
    follower.catch_up()
    assert follower.seq == 0  # accepted, not settled
    stage.store.accept(Article(id="가", title="제목", body="둘"))
    stage.drain()
    assert follower.seq == 0  # settled, not applied here
    follower.catch_up()
    assert follower.seq == 2  # the superseded one too
    stage.store.accept(Article(id="나", title="제목", body="하나"))
    stage.store.accept(Article(id="다", title="제목", body="하나"))
    lower, higher = stage.store.queued(2)
    stage.encoder.poison = "하나"
    with pytest.raises(Exception, match="하나"):
        stage.drain()
    stage.encoder.poison = None
    assert (lower.seq, higher.seq) == (3, 4)
    follower.catch_up()
    assert follower.seq == 2
    stage.drain()
    follower.catch_up()
    assert follower.seq == 4


def test_changes_while_loading_are_caught_up_with(stage: Stage) -> None:
    for number in range(3):
        published(stage, f"글{number}", _BODIES[number])

    class Busy(ResidentEngine):
        def add(self, passages: Any, vectors: FloatArray) -> None:
            super().add(passages, vectors)
            published(stage, "글1", _BODIES[0])
            stage.delete("글2")
            stage.ingest().sweep()

    follower = Follower(stage.store, stage.collection, Busy(DIM, LexicalParameters()))
    follower.load()
    assert_equal(stage, follower)
    assert follower.seq == 5


@EMBEDDED_ALONE  # the failure is made here
def test_a_load_that_broke_off_can_be_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        published(stage, f"글{number}", _BODIES[number % 3])
    follower = Follower(stage.store, stage.collection, engine())
    with _cut_off(monkeypatch), pytest.raises(StoreUnavailable):
        follower.load(batch=1)
    assert follower._engine.count == 0
    follower.load()
    assert follower.loaded
    assert_equal(stage, follower)


@contextmanager
def _cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store goes away after the first rows."""
    read = Collection.read
    seen: list[int] = []

    def broken(collection: Collection, ids: list[str], **options: bool) -> tuple[list[Passage], FloatArray]:
        if seen:
            raise StoreUnavailable("collection", "test", "cut off", "plug it in")
        seen.append(len(ids))
        return read(collection, ids, **options)

    with monkeypatch.context() as context:
        context.setattr(Collection, "read", broken)
        yield


def test_an_article_replaced_and_swept_while_it_is_read_does_not_blink_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(stage, "가", _BODIES[0])
    follower = fresh(stage)
    published(stage, "가", _BODIES[1])
    read = Collection.read
    counts: list[int] = []

    def slow_read(collection: Collection, ids: list[str], **options: bool) -> tuple[list[Passage], FloatArray]:
        counts.append(follower._engine.count)
        if len(counts) == 1:  # the revision goes away just before it is read
            published(stage, "가", _BODIES[2])
            stage.ingest().sweep()
            assert set(stage.rows()) == {("가", 3)}
            passages, vectors = read(collection, ids, **options)
            assert not passages
            return passages, vectors
        return read(collection, ids, **options)

    monkeypatch.setattr(Collection, "read", slow_read)
    assert follower.catch_up() == 2
    assert len(counts) == 3  # the writer too reads: what it may copy
    assert all(counts)
    monkeypatch.undo()
    follower.catch_up()
    assert_equal(stage, follower)


def test_resuming_from_a_position_equals_loading(stage: Stage) -> None:
    published(stage, "가", _BODIES[0])
    published(stage, "나", _BODIES[1])
    first = fresh(stage)
    published(stage, "가", _BODIES[2])
    stage.delete("나")
    resumed = Follower(stage.store, stage.collection, first._engine)
    assert resumed.resume(first.position, first.seq) == 2
    assert resumed.loaded
    assert_equal(stage, resumed)


def test_a_change_of_fields_alone_reaches_the_engine(stage: Stage) -> None:
    follower = fresh(stage)
    article = Article(id="가", title="제목", body=_BODIES[0], category="금융")
    stage.publish(article)
    follower.catch_up()
    stage.publish(replace(article, category="생활"))
    follower.catch_up()
    shown = contents(stage, follower)
    assert {passage.category for passage, _ in shown.values()} == {"생활"}


def test_a_pruned_log_is_made_good_by_reading_what_differs(stage: Stage) -> None:
    published(stage, "가", _BODIES[0])
    published(stage, "나", _BODIES[1])
    published(stage, "라", _BODIES[2])
    empty, partly = fresh(stage), fresh(stage)
    published(stage, "가", _BODIES[2])
    stage.delete("나")
    published(stage, "다", _BODIES[0])
    stage.store.prune(0)
    for follower in (empty, partly):
        with pytest.raises(LogPruned):
            stage.store.log_since(follower.position)
    assert stage.store.log_since(stage.store.position()) == ([], stage.store.settled_up_to())
    assert empty.catch_up() == 3  # 라 did not change
    published(stage, "다", _BODIES[1])
    assert partly.catch_up() == 3
    assert empty.catch_up() == 1
    for follower in (empty, partly):
        assert_equal(stage, follower)
        assert (follower.seq, follower.behind) == (stage.store.settled_up_to(), False)
        assert follower.position == stage.store.position()
        assert follower.catch_up() == 0


def test_what_is_replaced_while_all_is_compared_is_not_claimed_to_be_applied(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the registry and that at the passages another change of 가 is committed: the engine goes on to show
    the first one, and may not say that it has the second."""
    published(stage, "가", _BODIES[0])
    published(stage, "나", _BODIES[1])
    follower = fresh(stage)
    published(stage, "가", _BODIES[1])
    stage.store.prune(0)
    visible, claimed = ArticleStore.visible, []

    def replaced_after(store: ArticleStore) -> tuple[int, int, dict[str, int]]:
        found = visible(store)
        monkeypatch.undo()
        published(stage, "가", _BODIES[2])
        return found

    def looked(self: Follower, batch: int) -> News:
        if self is follower:  # others follow logs of their own in this process
            claimed.append((follower._engine.revisions()["가"], follower.seq))
        return look(self, batch)

    assert follower.seq == 2
    look = Follower._news
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(Follower, "_news", looked)
        monkeypatch.setattr(ArticleStore, "visible", replaced_after)
        follower.catch_up()
    assert claimed == [(1, 2), (1, 2)]  # before the registry is compared, and after
    assert (follower._engine.revisions()["가"], follower.seq) == (4, 4)
    assert_equal(stage, follower)


def test_a_follower_of_a_collection_out_of_use_claims_no_later_change(stage: Stage) -> None:
    """The collection has rows up to the second line of the log; what comes later stands in another one."""
    store, collection = stage.store, stage.collection
    for number, article_id in enumerate(("가", "나")):
        published(stage, article_id, _BODIES[number])
    manifest = Manifest(encoder="fake", dim=DIM, tokenizer="", max_tokens=16, overlap_sentences=0, alpha=0.5)
    manifests.begin(store.database, collection.name, manifest, {})
    manifests.advance(store.database, collection.name, store.visible_passages(["가", "나"]))

    def followed(position: int | None) -> Follower:
        follower = Follower(store, collection, engine())
        follower.load() if position is None else follower.resume(position, position)
        return follower

    follower = followed(None)
    assert (follower.position, follower.seq, follower.behind) == (2, 2, False)
    before = contents(stage, follower)
    published(stage, "가", _BODIES[2])
    stage.delete("나")
    published(stage, "다", _BODIES[0])
    collection.delete([i for i, _, revision in list(collection.iterate_ids()) if revision > 2])
    assert follower.catch_up() == 0
    assert (follower.position, follower.seq, follower.behind) == (2, 2, True)
    assert contents(stage, follower) == before

    store.prune(0)  # beyond what the collection has
    slow, late = followed(1), followed(None)
    for one in (follower, slow, late):
        one.catch_up()
        assert (one.position, one.behind, one.seq <= 2) == (2, True, True)
    assert contents(stage, follower) == before

    ingest, shown = stage.ingest(), store.shown_of(["가", "다"])
    ingest.put(ingest.analyse(shown), {})
    counts = store.visible_passages(["가", "다"])
    manifests.advance(store.database, collection.name, counts, position=store.position())
    for one in (follower, slow, late):
        one.catch_up()
        assert (one.position, one.seq, one.behind) == (5, 5, False)
        assert_equal(stage, one)
