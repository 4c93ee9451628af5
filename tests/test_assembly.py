"""Settings → parts: what is checked when a collection is opened, and the snapshot of the resident engine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.documents import Article
from pipeline.errors import ManifestMismatch, NotReady
from pipeline.index.resident import ResidentEngine
from pipeline.retrieval.query import SearchRequest
from pipeline.settings import Settings, load

ARTICLES = [
    Article(
        id="limit",
        title="이체 한도를 올리는 방법",
        body="영상 통화로 본인을 확인하면 일일 이체 한도를 높일 수 있습니다.",
        category="송금",
    ),
    Article(
        id="rent",
        title="월세 세액공제 받기",
        body="낸 월세의 일부를 세금에서 돌려받습니다. 임대차계약서를 준비하세요.",
        tags=("연말정산",),
    ),
]
QUERY = SearchRequest(text="월세 세금 돌려받기")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load(data_dir=tmp_path / "data")


@pytest.fixture
def indexed(settings: Settings) -> Settings:
    """A folder that a process like `yeoul index` wrote and left."""
    for assembly in opened(settings):
        connected = assembly.connect()
        connected.keep_up()
        assembly.store.accept_many(ARTICLES, source="test")
        assert Worker(assembly.store, connected.ingest).drain().articles == len(ARTICLES)
    return settings


def opened(settings: Settings) -> Iterator[Assembly]:
    assembly = Assembly.open(settings, command="test")
    try:
        yield assembly
    finally:
        assembly.close()


def snapshot_of(settings: Settings) -> Path:
    return settings.data_dir / "resident.safetensors"


def answers(settings: Settings) -> tuple[list[tuple[str, float]], int]:
    for assembly in opened(settings):
        connected = assembly.connect()
        connected.load()
        result = connected.searcher.search(QUERY)
        return [(hit.article_id, hit.score) for hit in result.hits], connected.engine()[0].count
    raise AssertionError


def test_a_writer_leaves_a_snapshot_that_answers_as_the_collection_does(indexed: Settings) -> None:
    assert snapshot_of(indexed).exists()
    by_snapshot = answers(indexed)
    snapshot_of(indexed).unlink()
    assert answers(indexed) == by_snapshot
    assert by_snapshot[0][0][0] == "rent"
    assert snapshot_of(indexed).exists(), "a whole load leaves a new one"


def test_a_snapshot_is_brought_up_to_date_by_the_change_log(indexed: Settings) -> None:
    kept = snapshot_of(indexed).read_bytes()
    for assembly in opened(indexed):
        connected = assembly.connect()
        assembly.store.accept_delete("rent")
        Worker(assembly.store, connected.ingest).drain()
    snapshot_of(indexed).write_bytes(kept)
    found, count = answers(indexed)
    assert count == 1
    assert "rent" not in dict(found)


@pytest.mark.parametrize("damage", ["cut", "garbage", "of another collection"])
def test_a_bad_snapshot_costs_time_and_nothing_else(indexed: Settings, damage: str) -> None:
    wanted = answers(indexed)
    content = snapshot_of(indexed).read_bytes()
    bad = {
        "cut": content[: len(content) // 2],
        "garbage": b"\x10" + b"\0" * 7 + b"not a header at all",
        "of another collection": content.replace(b"yeoul_1", b"yeoul_9"),
    }[damage]
    snapshot_of(indexed).write_bytes(bad)
    assert answers(indexed) == wanted


def test_a_restored_engine_is_equal_and_goes_on(indexed: Settings) -> None:
    for assembly in opened(indexed):
        connected = assembly.connect()
        connected.load()
        engine = connected.engine()[0]
        assert isinstance(engine, ResidentEngine)
        assembly.store.accept(
            Article(id="rent", title="월세 공제", body="달라진 본문입니다. 공제 요건을 다시 적었습니다.")
        )
        Worker(assembly.store, connected.ingest).drain()
        connected.follower.catch_up()
        assert engine.count == len(ARTICLES)
        again = engine.state()
        copy = ResidentEngine(connected.collection.dim, engine._lexical.parameters)
        copy.restore(again)
        for name, array in copy.state().items():
            np.testing.assert_array_equal(array, engine.state()[name], err_msg=name)


def test_another_chunking_is_refused_by_name_and_nothing_is_lost(indexed: Settings) -> None:
    other = indexed.model_copy(update={"chunking": indexed.chunking.model_copy(update={"max_tokens": 100})})
    for assembly in opened(other):
        with pytest.raises(ManifestMismatch, match="max_tokens: index 256, running 100"):
            assembly.connect()
    assert answers(indexed)[1] == len(ARTICLES)


def test_a_collection_that_vanished_is_told_and_not_made_anew(indexed: Settings) -> None:
    shutil.rmtree(indexed.milvus_uri)
    for assembly in opened(indexed):
        with pytest.raises(NotReady, match=r"says that articles stand in the collection 'yeoul_1'.*restore its data"):
            assembly.connect()


def test_a_folder_without_articles_takes_other_settings(settings: Settings) -> None:
    for assembly in opened(settings):
        assembly.connect()
    other = settings.model_copy(update={"chunking": settings.chunking.model_copy(update={"max_tokens": 100})})
    for assembly in opened(other):
        assert assembly.connect().manifest.max_tokens == 100
