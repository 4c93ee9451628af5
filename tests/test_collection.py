"""The collection keeps one promise on Milvus Lite, here and in a process of its own, and on a real server: one suite over all."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from milvus_lite.engine.collection import Collection as Engine
from numpy.typing import NDArray
from pymilvus import MilvusClient

from pipeline.documents import Passage
from pipeline.errors import (
    FolderInUse,
    InvalidInput,
    InvalidSetting,
    ManifestMismatch,
    NotReady,
    StoreUnavailable,
    TooLarge,
    Unavailable,
)
from pipeline.index import collection as collection_module
from pipeline.index import lite
from pipeline.index.collection import Collection
from pipeline.index.filters import Filter
from tests import milvus_server

DIM = 16
NASTY = (
    '"', "'", "\\", "\\\\", '\\"', '" or 1==1', "' or '1'=='1", '" or id != "', "\n", "\r\n", "\t", "\0", "%", "%22", "%25",
    "\\u0022", "\\u005c", "a_b", "a%b", "{x}", "$meta", "", " ", "대출", "대출 ", "貸出", "😀", "\u2028", "\x85", "é", "é", "A", "a",
)  # fmt: skip

Opener = Callable[..., Collection]


@pytest.fixture(
    params=["lite", "lite apart", pytest.param("server", marks=pytest.mark.server)],
    scope="module",
)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and token of each store in turn: Milvus Lite here, in a process of its own, and a server."""
    if request.param == "server":
        yield str(request.getfixturevalue("milvus_uri")), milvus_server.TOKEN
        return
    folder = tmp_path_factory.mktemp("lite") / "store.db"
    with lite.apart(folder) if request.param == "lite apart" else nullcontext():
        yield str(folder), ""


@pytest.fixture
def opened(store: tuple[str, str]) -> Iterator[Opener]:
    """Opens collections of the store; afterwards they are dropped and closed."""
    uri, token = store
    made: list[Collection] = []

    def open_collection(name: str | None = None, *, dim: int = DIM, index: str = "flat") -> Collection:
        name = name or f"t{uuid4().hex}"
        made.append(Collection.open(uri=uri, token=token, name=name, dim=dim, index=index))  # type: ignore[arg-type]
        return made[-1]

    yield open_collection
    for name, last in {collection.name: collection for collection in made}.items():
        if name in last.list_collections():
            last.drop()
    for collection in made:
        collection.close()


@pytest.fixture
def collection(opened: Opener) -> Collection:
    return opened()


@pytest.fixture(scope="module")
def nasty(store: tuple[str, str]) -> Iterator[tuple[Collection, list[Passage]]]:
    """A collection in which every nasty value is a category, a series, a source, a tag and an article id."""
    uri, token = store
    passages = [
        passage(
            f"글{value}" if value.strip() else f"글{number}",
            category=value,
            series=value,
            source=value,
            tags=(value, "모두"),
            published_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number),
        )
        for number, value in enumerate(NASTY)
    ] + [passage("빈 글")]
    with milvus_server.patiently():
        collection = Collection.open(uri=uri, token=token, name=f"t{uuid4().hex}", dim=DIM)
    collection.upsert(passages, vectors_for(len(passages)))
    yield collection, passages
    collection.drop()
    collection.close()


def passage(article_id: str, revision: int = 1, ordinal: int = 0, **fields: object) -> Passage:
    text = str(fields.pop("text", f"{article_id} 본문입니다"))
    plain = Passage(
        article_id=article_id,
        revision=revision,
        ordinal=ordinal,
        title="제목",
        text=text,
        terms=("본문",),
        term_spans=((0, len(text)),),
        title_terms=("제목",),
        sentence_spans=((0, len(text)),),
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def vectors_for(count: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def test_one_that_was_left_without_its_indexes_gets_them(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it was killed in between."""
    name = f"t{uuid4().hex}"
    with monkeypatch.context() as patch:
        patch.setattr(MilvusClient, "create_index", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(name)
    collection = opened(name)
    collection.upsert([passage("두루미")], vectors_for(1))
    assert collection.search_dense(vectors_for(1)[0], 1)[0] == [passage("두루미").id]


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_was_put_is_got_in_the_order_asked(collection: Collection) -> None:
    passages = [
        passage("가", tags=("세금", "대출"), url="https://e.kr/?a=1%20'\"", quality=0.25, category="금융"),
        passage("나", text="가" * 20_000, published_at=datetime(2026, 3, 2, 9, 30, 15, 123456, tzinfo=UTC)),
        passage("인용\"'\\%22", 2**62, 7, terms=("a", "나", "💰"), term_spans=((0, 5), (0, 2), (2, 5)), title_terms=()),
    ]
    vectors = vectors_for(3)
    collection.upsert(passages, vectors)
    asked = [passages[2].id, "없다#1#0", passages[0].id, passages[1].id]
    assert collection.get(asked) == [passages[2], passages[0], passages[1]]
    found = collection.get_vectors(asked)
    assert found.keys() == {p.id for p in passages}
    for each, vector in zip(passages, vectors, strict=True):
        assert found[each.id].dtype == np.float32
        np.testing.assert_array_equal(found[each.id], vector)


def test_an_upsert_repeated_changes_nothing(collection: Collection) -> None:
    passages = [passage(f"글{n}") for n in range(5)]
    for _ in range(2):
        collection.upsert(passages, vectors_for(5))
    assert collection.count() == 5
    assert collection.get([p.id for p in passages]) == passages


def test_an_empty_upsert_an_empty_get_and_an_empty_delete_do_nothing(collection: Collection) -> None:
    collection.upsert([], np.zeros((0, DIM), dtype=np.float32))
    collection.delete([])
    assert collection.count() == 0
    assert collection.get([]) == []
    assert list(collection.iterate_ids()) == []
    assert collection.read([])[0] == []


def test_deleted_rows_are_gone_for_every_reading_method(collection: Collection) -> None:
    passages = [passage(f"글{n}") for n in range(6)]
    vectors = vectors_for(6)
    collection.upsert(passages, vectors)
    collection.delete([passages[0].id, passages[3].id, "없다#1#0"])
    left = [p for n, p in enumerate(passages) if n not in (0, 3)]
    assert collection.get([p.id for p in passages]) == left
    assert set(collection.search_dense(vectors[0], 10)[0]) == {p.id for p in left}
    assert {id_ for id_, _, _ in collection.iterate_ids()} == {p.id for p in left}
    assert collection.count() == 4


@pytest.mark.parametrize("keep", [None, 2])
def test_only_the_kept_revision_of_only_that_article_survives(collection: Collection, keep: int | None) -> None:
    target = '글" or 1==1'
    passages = [passage(a, r, o) for a in (target, "글") for r in (1, 2, 3) for o in (0, 1)]
    collection.upsert(passages, vectors_for(len(passages)))
    collection.delete_replaced({target: (keep, 1_000_000)})
    assert {id_ for id_, _, _ in collection.iterate_ids()} == {
        p.id for p in passages if p.article_id != target or p.revision == keep
    }


def test_every_row_is_listed_once_and_read_as_it_was_written(collection: Collection) -> None:
    passages = [passage(f"글{n // 3}", 1 + n % 3, n) for n in range(1_200)]
    vectors = vectors_for(len(passages))
    collection.upsert(passages[:1_000], vectors[:1_000])
    collection.flush()
    collection.upsert(passages[900:], vectors[900:])  # some in a sealed segment, some in memory, some in both
    listed = list(collection.iterate_ids())
    assert sorted(listed) == sorted((p.id, p.article_id, p.revision) for p in passages)
    found, their = collection.read([p.id for p in passages])
    assert found == passages
    np.testing.assert_array_equal(their, vectors)


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_dense_scores_are_the_inner_products(opened: Opener, index: str) -> None:
    collection = opened(index=index)
    passages = [passage(f"글{n}") for n in range(300)]
    vectors = vectors_for(300)
    collection.upsert(passages, vectors)
    for query in vectors_for(5, seed=1):
        ids, scores = collection.search_dense(query, 20)
        products = vectors @ query
        best = np.argsort(-products)[:20]
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, [products[int(i.split("#")[0][1:])] for i in ids], atol=1e-5)
        if index == "flat":
            assert ids == [passages[n].id for n in best]
        else:
            assert len(set(ids) & {passages[n].id for n in best}) >= 18  # HNSW is approximate


def test_pymilvus_gives_vectors_as_arrays(collection: Collection) -> None:
    """It took an argument of its own for that, which it would leave unread without a word if it went away."""
    vectors = vectors_for(3)
    collection.upsert([passage(f"p{n}") for n in range(3)], vectors)
    rows = collection._rows([f"p{n}#1#0" for n in range(3)], ["id", "dense"])
    for row in rows:
        assert isinstance(row["dense"], np.ndarray)
        assert row["dense"].dtype == np.float32
        np.testing.assert_array_equal(row["dense"], vectors[int(row["id"][1])])


def test_a_search_returns_no_more_than_there_is(collection: Collection) -> None:
    collection.upsert([passage("하나")], vectors_for(1))
    assert collection.search_dense(vectors_for(1)[0], 100)[0] == ["하나#1#0"]


def test_lexical_search_finds_the_passages_with_the_terms(collection: Collection) -> None:
    passages = [
        passage("대출", terms=("주택", "담보", "대출"), term_spans=((0, 1),) * 3),
        passage("세금", terms=("소득", "세금", "신고"), term_spans=((0, 1),) * 3, category="세금"),
        passage("둘", terms=("주택", "세금"), term_spans=((0, 1),) * 2),
        passage("없음", terms=(), term_spans=()),
    ]
    collection.upsert(passages, vectors_for(4))
    if not collection.supports_lexical:
        with pytest.raises(Unavailable, match=r"2\.5"):
            collection.search_lexical(["대출"], 10)
        return
    assert collection.search_lexical(["담보", "대출"], 10) == ["대출#1#0"]
    assert set(collection.search_lexical(["세금"], 10)) == {"세금#1#0", "둘#1#0"}
    assert collection.search_lexical(["세금"], 10, Filter(category="세금")) == ["세금#1#0"]
    assert collection.search_lexical(["없는말"], 10) == []
    assert collection.search_lexical([], 10) == []


@pytest.mark.parametrize("field", ["category", "series", "source", "tag"])
def test_a_filter_value_is_data_whatever_it_looks_like(nasty: tuple[Collection, list[Passage]], field: str) -> None:
    for value in (*NASTY, "없는 값"):
        conditions = Filter(**{field: value})  # type: ignore[arg-type]
        assert_filtered_as_in_python(nasty, conditions)


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_filter_gives_what_the_plain_predicate_gives(
    nasty: tuple[Collection, list[Passage]], data: st.DataObject
) -> None:
    text = (
        st.none() | st.none() | st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    )
    moments = (
        st.none()
        | st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))
        | st.integers(0, 40).map(lambda days: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=days))
    )
    drawn = {name: data.draw(text, name) for name in ("category", "series", "source", "tag")}
    drawn_moments = {name: data.draw(moments, name) for name in ("since", "until")}
    conditions = Filter(**drawn, **drawn_moments)  # type: ignore[arg-type]
    assert_filtered_as_in_python(nasty, conditions)


def assert_filtered_as_in_python(nasty: tuple[Collection, list[Passage]], conditions: Filter) -> None:
    collection, passages = nasty
    found, _ = collection.search_dense(vectors_for(1)[0], 100, conditions)
    assert set(found) == {p.id for p in passages if passes(p, conditions)}, conditions


def passes(passage: Passage, conditions: Filter) -> bool:
    """The filter, in plain Python."""
    for name in ("category", "series", "source"):
        wanted = getattr(conditions, name)
        if wanted is not None and getattr(passage, name) != wanted:
            return False
    if conditions.tag is not None and conditions.tag not in passage.tags:
        return False
    moment = passage.published_at
    if conditions.since is not None and (moment is None or moment < conditions.since):
        return False
    return not (conditions.until is not None and (moment is None or moment >= conditions.until))


def test_an_alias_moves_from_one_collection_to_another(opened: Opener) -> None:
    blue, green, alias = opened(), opened(), f"a{uuid4().hex}"
    assert blue.resolve_alias(alias) is None
    blue.switch_alias(alias)
    blue.switch_alias(alias)
    assert green.resolve_alias(alias) == blue.name
    green.switch_alias(alias)
    assert blue.resolve_alias(alias) == green.name
    assert {blue.name, green.name} <= set(blue.list_collections())
    assert alias not in blue.list_collections()
    green.drop()
    assert blue.resolve_alias(alias) is None
    assert green.name not in blue.list_collections()


def test_a_collection_opened_again_has_everything(store: tuple[str, str], opened: Opener) -> None:
    first = opened(index="hnsw")
    passages = [passage(f"글{n}") for n in range(30)]
    vectors = vectors_for(30)
    first.upsert(passages, vectors)
    first.close()
    first.close()
    again = opened(first.name)
    assert again.count() == 30
    assert again.get([p.id for p in passages]) == passages
    assert again.search_dense(vectors[3], 1)[0] == ["글3#1#0"]
    assert again.supports_lexical is first.supports_lexical


def test_another_dimension_is_refused_with_both_named(opened: Opener) -> None:
    name = opened().name
    with pytest.raises(ManifestMismatch, match=r"index 16, running 17"):
        opened(name, dim=17)


def test_vectors_of_another_shape_or_type_are_refused(collection: Collection) -> None:
    for wrong in (vectors_for(1, 17), vectors_for(2), vectors_for(1).astype(np.float64)):
        with pytest.raises(InvalidInput, match=r"should be float32 \(1, 16\)"):
            collection.upsert([passage("글")], wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"\(16,\)"):
        collection.search_dense(vectors_for(1, 17)[0], 1)
    assert collection.count() == 0


def test_a_text_that_no_row_holds_is_refused_by_name(collection: Collection) -> None:
    with pytest.raises(TooLarge, match=r"'text' of passage 글#1#0 is 65,538 bytes, at most 65,535"):
        collection.upsert([passage("글", text="가" * 21_846)], vectors_for(1))
    collection.upsert([passage("글", text="가" * 21_845)], vectors_for(1))
    assert len(collection.get(["글#1#0"])[0].text) == 21_845


def test_rows_at_every_limit_fit_and_come_back(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_module, "READ_SECONDS", 60.0)
    wide = "𠀀" * 500  # 4 bytes each
    passages = [
        passage(
            "𠀀" * 200, 2**62, n, text="가" * 21_000, title="𠀀" * 1_000, url="𠀀" * 2_000, category=wide, series=wide,
            source=wide, tags=tuple(f"{n:03}" + "𠀀" * 497 for n in range(50)),
        )
        for n in range(260)
    ]  # fmt: skip
    collection.upsert(passages, vectors_for(260))  # 50 MB: several messages
    assert collection.get([p.id for p in passages]) == passages


def test_a_missing_collection_is_not_made_unasked(store: tuple[str, str]) -> None:
    uri, token = store
    with pytest.raises(NotReady, match="no collection 'nowhere'"):
        Collection.open(uri=uri, token=token, name="nowhere", dim=DIM, create=False)


def test_ping_tells_the_version(collection: Collection) -> None:
    assert any(char.isdigit() for char in collection.ping())


def test_reading_while_another_thread_writes_loses_nothing(collection: Collection) -> None:
    passages = [passage(f"글{n}") for n in range(400)]
    vectors = vectors_for(400)
    collection.upsert(passages[:200], vectors[:200])
    stop = threading.Event()
    failures: list[Exception] = []

    def write() -> None:
        try:
            for start in range(200, 400, 10):
                collection.upsert(passages[start : start + 10], vectors[start : start + 10])
                collection.delete([p.id for p in passages[start : start + 5]])
        except Exception as error:  # noqa: BLE001 (shown by the assertion below)
            failures.append(error)
        finally:
            stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        assert {id_ for id_, _, _ in collection.iterate_ids()} >= {p.id for p in passages[:200]}
    writer.join()
    assert failures == []
    assert collection.count() == 300


def test_a_read_that_a_flush_of_milvus_lite_would_cross_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus Lite looks at what is sealed, then at what is in memory: a flush between the two moves rows past the reader."""
    passages, vectors = [passage(f"글{n}") for n in range(20)], vectors_for(20)
    collection = Collection.open(uri=str(tmp_path / "store.db"), name="t", dim=DIM)
    looked, flushing = threading.Event(), threading.Thread(target=collection.flush)
    ordinary = Engine._read_snapshot

    def dawdling(engine: Engine) -> object:
        found = ordinary(engine)
        looked.set()
        time.sleep(0.5)
        return found

    collection.upsert(passages, vectors)
    monkeypatch.setattr(Engine, "_read_snapshot", dawdling)
    reading = threading.Thread(target=lambda: found.extend(collection.search_dense(vectors[0], 100)[0]))
    found: list[str] = []
    reading.start()
    assert looked.wait(120)
    flushing.start()
    reading.join()
    flushing.join()
    monkeypatch.undo()
    assert sorted(found) == sorted(p.id for p in passages)
    collection.close()


def test_a_second_process_on_a_lite_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "store.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(FolderInUse, match=f"process {holder.pid}"):
            Collection.open(uri=str(tmp_path / "store.db"), name="passages", dim=DIM)
        holder.stdin.close()
    Collection.open(uri=str(tmp_path / "store.db"), name="passages", dim=DIM).close()


def test_a_killed_process_loses_no_row_it_has_upserted(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "store.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        writer.kill()
    collection = Collection.open(uri=str(tmp_path / "store.db"), name="passages", dim=DIM)
    assert [p.article_id for p in collection.get(["글#1#0"])] == ["글"]
    collection.close()


_HOLD = """
import sys
from tests.test_collection import DIM, passage, vectors_for
from pipeline.index.collection import Collection
collection = Collection.open(uri=sys.argv[1], name="passages", dim=DIM)
collection.upsert([passage("글")], vectors_for(1))
print("open", flush=True)
sys.stdin.read()
collection.close()
"""


def test_a_lite_folder_stays_open_for_the_others_of_its_process(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "folders" / "store.db")
    first = Collection.open(uri=uri, name="one", dim=DIM)
    second = Collection.open(uri=uri, name="two", dim=DIM)
    first.close()
    second.upsert([passage("글")], vectors_for(1))
    assert second.count() == 1
    assert second.list_collections() == ["one", "two"]
    second.close()


def test_a_folder_that_cannot_be_made_is_an_error_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("a file, not a folder")
    with pytest.raises(StoreUnavailable, match=r"store\.db"):
        Collection.open(uri=str(tmp_path / "store.db"), name="passages", dim=DIM)


def test_a_server_that_is_down_is_told_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:9 .*start the Milvus server"):
        Collection.open(uri="http://127.0.0.1:9", name="passages", dim=DIM)
    assert time.monotonic() - began < 60


def test_an_address_of_no_known_kind_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"milvus\.uri"):
        Collection.open(uri="localhost", name="passages", dim=DIM)


@pytest.mark.server
def test_a_wrong_token_is_told(milvus_uri: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"milvus\.token"):
        Collection.open(uri=milvus_uri, token="root:wrong", name="passages", dim=DIM)


@pytest.mark.server
def test_a_server_that_goes_away_fails_quickly_in_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if milvus_server.server_python() is None:
        pytest.skip(milvus_server.CURE)
    uri, process = milvus_server.start(tmp_path)
    try:
        collection = Collection.open(uri=uri, token=milvus_server.TOKEN, name="passages", dim=DIM)
        collection.upsert([passage("글")], vectors_for(1))
    finally:
        milvus_server.stop(process)
    monkeypatch.setattr(collection_module, "_CONNECT_SECONDS", 3.0)  # as it is where nobody is patient
    calls: list[Callable[[], object]] = [
        collection.ping,
        collection.count,
        lambda: collection.get(["글#1#0"]),
        lambda: collection.search_dense(vectors_for(1)[0], 1),
        lambda: collection.upsert([passage("글")], vectors_for(1)),
        lambda: list(collection.iterate_ids()),
    ]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="start the Milvus server"):
            call()
        assert time.monotonic() - began < 60
    collection.close()
