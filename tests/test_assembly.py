"""Settings → parts: what is checked when a collection is opened, and the snapshot of the resident engine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from indexers.worker import Worker
from pipeline import assembly as module
from pipeline.assembly import Assembly
from pipeline.documents import Article
from pipeline.encoding.encoder import Encoder
from pipeline.errors import ManifestMismatch, NotReady
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.retrieval.query import SearchRequest
from pipeline.settings import Settings, load
from pipeline.storage import manifests
from tests import milvus_server
from tests.api_server import assembly_of

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
_AT_ONCE = 4
QUERY = SearchRequest(text="월세 세금 돌려받기")


@dataclass(frozen=True)
class Folder:
    """A data folder and what opens it."""

    settings: Settings
    analyser: Analyser
    encoder: Encoder

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir

    @property
    def snapshot(self) -> Path:
        return self.data_dir / "resident.safetensors"

    def with_passages_of(self, max_tokens: int) -> Folder:
        chunking = self.settings.chunking.model_copy(update={"max_tokens": max_tokens})
        return replace(self, settings=self.settings.model_copy(update={"chunking": chunking}))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analyser: Analyser, encoder: Encoder) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(load(data_dir=tmp_path / "data"), analyser, encoder)


@pytest.fixture
def indexed(empty: Folder) -> Folder:
    """A folder that a process like `yeoul index` wrote and left."""
    for assembly in opened(empty):
        connected = assembly.connect()
        connected.keep_up()
        assembly.store.accept_many(ARTICLES, source="test")
        assert Worker(assembly.store, assembly.ingest).drain().articles == len(ARTICLES)
    return empty


def opened(folder: Folder) -> Iterator[Assembly]:
    """What a process of its own would open, around parts that take seconds to start."""
    assembly = assembly_of(folder.settings, folder.analyser, folder.encoder)
    try:
        yield assembly
    finally:
        assembly.close()


def answers(folder: Folder) -> tuple[list[tuple[str, float]], int]:
    for assembly in opened(folder):
        connected = assembly.connect()
        connected.load()
        result = connected.searcher.search(QUERY)
        return [(hit.article_id, hit.score) for hit in result.hits], connected.engine()[0].count
    raise AssertionError


def test_a_writer_leaves_a_snapshot_that_answers_as_the_collection_does(indexed: Folder) -> None:
    assert indexed.snapshot.exists()
    by_snapshot = answers(indexed)
    indexed.snapshot.unlink()
    assert answers(indexed) == by_snapshot
    assert by_snapshot[0][0][0] == "rent"
    assert indexed.snapshot.exists(), "a whole load leaves a new one"


def test_a_snapshot_is_brought_up_to_date_by_the_change_log(indexed: Folder) -> None:
    kept = indexed.snapshot.read_bytes()
    for assembly in opened(indexed):
        assembly.store.accept_delete("rent")
        assembly.connect()
        Worker(assembly.store, assembly.ingest).drain()
    indexed.snapshot.write_bytes(kept)
    found, count = answers(indexed)
    assert count == 1
    assert "rent" not in dict(found)


def test_a_process_that_slept_while_rows_were_swept_catches_up_before_it_searches_milvus(empty: Folder) -> None:
    """An article whose old rows are gone would be missing until the next look at the log."""
    indexers = empty.settings.indexers.model_copy(update={"grace_seconds": 0.2})
    folder = replace(empty, settings=empty.settings.model_copy(update={"engine": "milvus", "indexers": indexers}))
    for assembly in opened(folder):
        assembly.connect().load()
        worker = Worker(assembly.store, assembly.ingest)
        assembly.store.accept_many(ARTICLES, source="test")
        worker.drain()
        assembly.catch_up()
        before = [hit.article_id for hit in assembly.connected.searcher.search(QUERY).hits]
        assembly.store.accept_many([replace(one, body=f"{one.body} 고친 글.") for one in ARTICLES], source="test")
        worker.drain()
        time.sleep(0.3)
        worker.sweep()
        assert assembly.connected.follower.position < assembly.store.position()
        assert [hit.article_id for hit in assembly.connected.searcher.search(QUERY).hits] == before


@pytest.mark.parametrize("damage", ["cut", "garbage", "of another collection"])
def test_a_bad_snapshot_costs_time_and_nothing_else(indexed: Folder, damage: str) -> None:
    wanted = answers(indexed)
    content = indexed.snapshot.read_bytes()
    bad = {
        "cut": content[: len(content) // 2],
        "garbage": b"\x10" + b"\0" * 7 + b"not a header at all",
        "of another collection": content.replace(b"yeoul_1", b"yeoul_9"),
    }[damage]
    indexed.snapshot.write_bytes(bad)
    assert answers(indexed) == wanted


def test_a_restored_engine_is_equal_and_goes_on(indexed: Folder) -> None:
    for assembly in opened(indexed):
        connected = assembly.connect()
        connected.load()
        engine = connected.engine()[0]
        assert isinstance(engine, ResidentEngine)
        assembly.store.accept(
            Article(id="rent", title="월세 공제", body="달라진 본문입니다. 공제 요건을 다시 적었습니다.")
        )
        Worker(assembly.store, assembly.ingest).drain()
        connected.follower.catch_up()
        assert engine.count == len(ARTICLES)
        again = engine.state()
        copy = ResidentEngine(connected.collection.dim, engine._lexical.parameters)
        copy.restore(again)
        for name, array in copy.state().items():
            np.testing.assert_array_equal(array, engine.state()[name], err_msg=name)


def test_a_snapshot_of_another_history_is_not_used(indexed: Folder, tmp_path: Path) -> None:
    """A backup of the stores is put back, the snapshot of later days stays where it was."""
    backup = tmp_path / "backup"
    shutil.copytree(indexed.data_dir, backup)
    for assembly in opened(indexed):
        connected = assembly.connect()
        connected.keep_up()
        assembly.store.accept_delete("rent")
        Worker(assembly.store, assembly.ingest).drain()
    later = indexed.snapshot.read_bytes()
    shutil.rmtree(indexed.data_dir)
    shutil.copytree(backup, indexed.data_dir)
    indexed.snapshot.write_bytes(later)
    found, count = answers(indexed)
    assert count == len(ARTICLES)
    assert found[0][0] == "rent"


def test_what_a_writer_did_not_tell_is_read_before_the_snapshot_is_written(indexed: Folder) -> None:
    """As if the process was interrupted after a commit, or another worker had indexed a part."""
    for assembly in opened(indexed):
        connected = assembly.connect()
        connected.keep_up()
        tell, connected.ingest.observer = connected.ingest.observer, None
        assembly.store.accept(Article(id="card", title="카드 분실 신고", body="분실하면 바로 카드를 정지하세요."))
        Worker(assembly.store, assembly.ingest).drain()
        connected.ingest.observer = tell
        assembly.store.accept_delete("limit")
        Worker(assembly.store, assembly.ingest).drain()
    by_snapshot = answers(indexed)
    indexed.snapshot.unlink()
    assert answers(indexed) == by_snapshot
    assert by_snapshot[1] == len(ARTICLES)


def test_a_disk_that_refuses_the_snapshot_costs_the_next_start_alone(
    indexed: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    indexed.snapshot.unlink()
    indexed.snapshot.mkdir()  # a file cannot take its place
    assert answers(indexed)[1] == len(ARTICLES)
    assert "no snapshot for a faster start" in caplog.text


def test_another_chunking_is_refused_by_name_and_nothing_is_lost(indexed: Folder) -> None:
    for assembly in opened(indexed.with_passages_of(100)):
        with pytest.raises(ManifestMismatch, match="max_tokens: index 192, running 100"):
            assembly.connect()
    assert answers(indexed)[1] == len(ARTICLES)


def test_a_collection_that_vanished_is_told_and_not_made_anew(indexed: Folder) -> None:
    shutil.rmtree(indexed.settings.milvus_uri)
    for assembly in opened(indexed):
        with pytest.raises(NotReady, match=r"says that articles stand in the collection 'yeoul_1'.*restore its data"):
            assembly.connect()


def test_a_folder_without_articles_takes_other_settings(empty: Folder) -> None:
    for assembly in opened(empty):
        assembly.connect()
    for assembly in opened(empty.with_passages_of(100)):
        assert assembly.connect().manifest.max_tokens == 100


@pytest.mark.server
@pytest.mark.postgres
def test_processes_that_start_at_once_make_one_collection(
    tmp_path: Path, analyser: Analyser, encoder: Encoder, milvus_uri: str, postgres_url: str
) -> None:
    prefix = f"atonce_{time.time_ns()}"
    milvus = {"collection": prefix, "uri": milvus_uri, "token": milvus_server.TOKEN}
    settings = Settings.model_validate({"data_dir": tmp_path, "milvus": milvus, "database_url": postgres_url})
    with ExitStack() as closed, ThreadPoolExecutor(_AT_ONCE) as pool:
        assemblies = [assembly_of(settings, analyser, encoder) for _ in range(_AT_ONCE)]
        for assembly in assemblies:
            closed.callback(assembly.close)
        connected = list(pool.map(lambda assembly: assembly.connect(), assemblies))
        assert {each.name for each in connected} == {f"{prefix}_1"}
        assert [known.name for known in manifests.known(assemblies[0].database, "active", "dropped")] == [f"{prefix}_1"]
        made = [name for name in connected[0].collection.list_collections() if name.startswith(prefix)]
        assert made == [f"{prefix}_1"]


def test_it_is_busy_for_a_while_after_a_search(indexed: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 3600.0)
    for assembly in opened(indexed):
        connected = assembly.connect()
        connected.load()
        seen = [assembly.busy]
        connected.searcher.search(QUERY)
        seen.append(assembly.busy)
        monkeypatch.setattr(module, "_BUSY_SECONDS", 0.0)
        assert [*seen, assembly.busy] == [False, True, False]
