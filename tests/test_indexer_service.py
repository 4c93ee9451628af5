"""The indexer as a whole: sources, canary, pruning and reconciling run on real stores, from connected to stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from indexers.service import IndexerService
from pipeline.assembly import Assembly
from pipeline.documents import Article
from pipeline.errors import InvalidInput
from pipeline.folder import FolderLock
from pipeline.korean.morphemes import Analyser
from pipeline.parts import PartsHere
from pipeline.settings import Settings
from pipeline.storage import jobs, sources
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from tests.fakes import FakeEncoder

_PATIENCE = 50.0  # seconds until a test gives up waiting
_UNWOKEN = 60.0  # seconds until a worker that nobody wakes looks: longer than a test waits
_QUIET: dict[str, Any] = {"canary_seconds": 0, "reconcile_hours": 0, "poll_seconds": 0.02}


@pytest.fixture
def notices(tmp_path: Path) -> Path:
    folder = tmp_path / "notices"
    folder.mkdir()
    lines = [orjson.dumps({"id": f"글{n}", "title": "제목", "body": f"본문 {n}"}) for n in range(3)]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    return folder


class Place:
    """A data folder in which services are opened."""

    def __init__(self, data_dir: Path, analyser: Analyser) -> None:
        self.data_dir = data_dir
        self.analyser = analyser

    @contextmanager
    def open(self, *, indexers: dict[str, Any] | None = None, **settings: Any) -> Iterator[Assembly]:
        chosen = {"data_dir": self.data_dir, "indexers": {**_QUIET, **(indexers or {})}, **settings}
        parsed = Settings.model_validate(chosen)
        lock = FolderLock.take(self.data_dir, "a test")
        assembly = Assembly(
            parsed, StateDatabase.open(parsed.state_url), PartsHere(parsed, self.analyser, FakeEncoder()), lock
        )
        try:
            yield assembly
        finally:
            assembly.close()


@pytest.fixture
def place(tmp_path: Path, analyser: Analyser) -> Place:
    return Place(tmp_path / "data", analyser)


@contextmanager
def serving(assembly: Assembly, *, connect: bool = True, **callbacks: Callable[[], None]) -> Iterator[IndexerService]:
    if connect:
        assembly.connect()
    service = IndexerService(assembly, **callbacks)
    try:
        service.start()
        yield service
    finally:
        service.stop()


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def ended(assembly: Assembly, *names: str) -> Callable[[], bool]:
    def all_ended() -> bool:
        outcomes = {job.name: job.outcome for job in jobs.listed(assembly.database)}
        return all(outcomes.get(name) in ("done", "failed") for name in names)

    return all_ended


def threads() -> set[str]:
    mine = ("worker", "scheduler", "listener", "APScheduler", "lease ", "source:", "canary", "prune", "analyse")
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(mine)}


def test_a_source_of_the_settings_is_read_and_indexed_and_the_jobs_tell_it(place: Place, notices: Path) -> None:
    given = [{"name": "notices", "kind": "folder", "schedule": "5m", "options": {"path": str(notices)}}]
    commits: list[int] = []
    before = threads()
    with place.open(sources=given, indexers={"canary_seconds": 3600, "reconcile_hours": 1}) as assembly:
        with serving(assembly, on_commit=lambda: commits.append(1)):
            eventually(ended(assembly, "source:notices", "canary", "prune"))
            eventually(lambda: assembly.store.counts() == {"indexed": 3})
        found = {job.name: job for job in jobs.listed(assembly.database)}
    assert {name: job.outcome for name, job in found.items()} == {
        "canary": "done",
        "prune": "done",
        "reconcile": "never",
        "source:notices": "done",
    }
    assert found["source:notices"].counts["accepted"] == 3
    assert set(found["canary"].counts) == {"publish_ms", "change_ms", "delete_ms"}
    assert found["prune"].counts == {"changes": 0, "log_lines": 0}
    assert commits
    assert threads() <= before


def test_nothing_runs_until_the_collection_is_open_and_then_everything(place: Place) -> None:
    with place.open() as assembly, serving(assembly, connect=False):
        assembly.store.accept(Article(id="가", title="제목", body="본문"))
        assert jobs.listed(assembly.database) == []
        assert assembly.store.counts() == {"queued": 1}
        assembly.connect()
        eventually(lambda: assembly.store.counts() == {"indexed": 1})
        eventually(ended(assembly, "prune"))


def test_a_service_that_is_stopped_before_anything_was_open_ends(place: Place) -> None:
    before = threads()
    with place.open() as assembly:
        with serving(assembly, connect=False):
            assert "worker" in threads()
        assert threads() <= before
        IndexerService(assembly).stop()


def test_a_wake_has_the_inbox_looked_at_at_once(place: Place) -> None:
    with place.open(indexers={"poll_seconds": _UNWOKEN}) as assembly, serving(assembly) as service:
        eventually(ended(assembly, "prune"))  # the worker is at work, and has found nothing
        assembly.store.accept(Article(id="가", title="제목", body="본문"))
        service.wake()
        eventually(lambda: assembly.store.counts() == {"indexed": 1})


@pytest.mark.postgres
def test_on_postgresql_what_another_process_accepts_wakes_the_worker(place: Place, postgres_url: str) -> None:
    with place.open(indexers={"poll_seconds": _UNWOKEN}, database_url=postgres_url) as assembly, serving(assembly):
        eventually(ended(assembly, "prune"))
        other = StateDatabase.open(postgres_url)
        ArticleStore(other).accept(Article(id="가", title="제목", body="본문"))
        eventually(lambda: assembly.store.counts() == {"indexed": 1})
        other.close()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"name": "a", "kind": "folder", "options": {"path": "relative"}}, "'a': option 'path'"),
        ({"name": "b", "kind": "folder", "schedule": "often", "options": {"path": "/b"}}, "'b': the schedule"),
        ({"name": "c/d", "kind": "folder", "options": {"path": "/c"}}, "'c/d': the name"),
    ],
)
def test_a_source_of_the_settings_that_cannot_work_is_refused_by_name(
    place: Place, source: dict[str, Any], told: str
) -> None:
    with place.open(sources=[source]) as assembly:
        with pytest.raises(InvalidInput, match=told):
            IndexerService(assembly).start()
        assert sources.listed(assembly.database) == []


def test_a_source_of_the_settings_keeps_its_cursor_over_a_restart(place: Place, notices: Path) -> None:
    given = [{"name": "notices", "kind": "folder", "schedule": "5m", "options": {"path": str(notices)}}]
    for _ in range(2):
        with place.open(sources=given) as assembly:
            with serving(assembly):
                jobs_of = "source:notices"
                eventually(ended(assembly, jobs_of))
                jobs.request(assembly.database, jobs_of)
                eventually(lambda: not jobs.requests(assembly.database))
                eventually(ended(assembly, jobs_of))
            assert sources.articles_of(assembly.database, "notices") == dict.fromkeys(("글0", "글1", "글2"), "a.jsonl")
            assert assembly.store.progress(3) != "unknown"
            assert assembly.store.progress(4) == "unknown"  # no change was accepted twice


def test_sources_that_cannot_be_read_stop_none_of_the_others(place: Place, notices: Path) -> None:
    with place.open() as assembly:
        sources.add(assembly.database, "a", "folder", {"path": "/no/such/folder"}, "5m")
        sources.add(assembly.database, "b", "ftp", {}, "5m")  # of a newer Yeoul, perhaps
        sources.add(assembly.database, "c", "folder", {"path": str(notices)}, "now and then")
        sources.add(assembly.database, "d", "folder", {"path": str(notices)}, "5m")
        with serving(assembly):
            eventually(ended(assembly, "source:a", "source:b", "source:c", "source:d"))
            eventually(lambda: assembly.store.counts() == {"indexed": 3})
        found = {job.name: job for job in jobs.listed(assembly.database)}
    assert [found[f"source:{name}"].outcome for name in "abcd"] == ["failed", "failed", "failed", "done"]
    assert "/no/such/folder" in (found["source:a"].error or "")
    assert "'ftp'" in (found["source:b"].error or "")
    assert "'now and then'" in (found["source:c"].error or "")


def test_a_source_that_is_added_while_it_runs_is_read_without_a_restart(place: Place, notices: Path) -> None:
    with place.open() as assembly, serving(assembly):
        eventually(ended(assembly, "prune"))
        sources.add(assembly.database, "notices", "folder", {"path": str(notices)}, "5m")
        eventually(lambda: assembly.store.counts() == {"indexed": 3})
        sources.remove(assembly.database, "notices")
        eventually(lambda: [job.name for job in jobs.listed(assembly.database)] == ["prune"])


def test_reconciling_mends_what_is_missing_and_counts_it(place: Place) -> None:
    with place.open(indexers={"reconcile_hours": 1}) as assembly, serving(assembly):
        assembly.store.accept(Article(id="가", title="제목", body="본문"))
        eventually(lambda: assembly.store.counts() == {"indexed": 1})
        assembly.connected.collection.delete(["가#1#0"])
        jobs.request(assembly.database, "reconcile")
        eventually(ended(assembly, "reconcile"))
        counts = jobs.find(assembly.database, "reconcile").counts
        assert (counts["differences"], counts["mended"]) == (1, 1)
        assert "가" in counts["told"][0]
        assert assembly.connected.collection.get(["가#1#0"])


def test_what_is_switched_off_is_no_job(place: Place) -> None:
    with place.open() as assembly:
        assert set(IndexerService(assembly).plans()) == {"prune"}
