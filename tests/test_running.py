"""A run of a source: into the inbox batch by batch, at the inbox's pace, and on from where the last one ended."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from indexers import running as module
from indexers.running import reading, run_source
from indexers.sources.kinds import source_of
from indexers.sources.source import Batch, Cursor, Found, Known, Source
from pipeline.documents import Article
from pipeline.errors import NotReady, SourceNotFound, SourceUnavailable
from pipeline.storage import jobs, leases, sources
from pipeline.storage.acceptance import BULK, SOURCE
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.sources import KnownSource

_PATIENCE = 120.0  # seconds until a test gives up waiting
_PAST = 1_700_000_000  # seconds since 1970: a file that nobody is writing


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArticleStore]:
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    yield ArticleStore(database)
    database.close()


@pytest.fixture
def database(state_url: str) -> Iterator[StateDatabase]:
    opened = StateDatabase.open(state_url)
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "notices"
    path.mkdir()
    return path


def write(folder: Path, name: str, ids: Sequence[str], *, body: str = "본문입니다.") -> None:
    lines = [orjson.dumps({"id": article_id, "title": "제목", "body": body}) for article_id in ids]
    (folder / name).write_bytes(b"\n".join(lines))
    os.utime(folder / name, (_PAST + len(body), _PAST + len(body)))


def run(store: ArticleStore, name: str, source: Source | None = None, **wanted: Any) -> dict[str, Any]:
    known = sources.find(store.database, name)
    chosen = source or source_of(known.name, known.kind, known.options)
    return run_source(store, known, chosen, **{"queue_limit": 0, "stop": threading.Event(), **wanted})


def numbers(counts: dict[str, Any]) -> tuple[int, ...]:
    return tuple(counts[name] for name in ("accepted", "unchanged", "older", "deleted", "problems"))


class Batches:
    """A source of given batches; an error among them is raised where it stands. `closed` tells that its end was run."""

    def __init__(self, *batches: Batch | Exception) -> None:
        self.batches = batches
        self.closed = threading.Event()
        self.read_with: tuple[Cursor, Known] | None = None

    def read(self, cursor: Cursor, known: Known) -> Iterator[Batch]:
        self.read_with = (cursor, known)
        try:
            for batch in self.batches:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            self.closed.set()


def batch(*ids: str, number: int) -> Batch:
    found = [Found(article=Article(id=i, title="제목", body="본문"), key=i) for i in ids]
    return Batch(found=found, cursor={"n": number})


@pytest.fixture
def plain(store: ArticleStore) -> KnownSource:
    """A source whose reader a test gives by hand."""
    return sources.add(store.database, "plain", "folder", {"path": "/srv/plain"}, "5m")


def test_a_folder_is_read_once_then_only_what_changed(store: ArticleStore, folder: Path) -> None:
    sources.add(store.database, "notices", "folder", {"path": str(folder)}, "5m")
    write(folder, "a.jsonl", ["가", "나"])
    write(folder, "b.jsonl", ["다"])
    assert numbers(run(store, "notices")) == (3, 0, 0, 0, 0)
    assert numbers(run(store, "notices")) == (0, 0, 0, 0, 0)
    write(folder, "a.jsonl", ["가"], body="고친 본문입니다.")
    (folder / "b.jsonl").unlink()
    assert numbers(run(store, "notices")) == (1, 0, 0, 2, 0)
    waiting = {change.article_id: change.article is None for change in store.queued(9)}
    assert waiting == {"가": False, "나": True, "다": True}
    assert sources.articles_of(store.database, "notices") == {"가": "a.jsonl"}


def test_the_source_is_given_its_cursor_and_what_it_delivered(store: ArticleStore, plain: KnownSource) -> None:
    run(store, "plain", first := Batches(batch("가", "나", number=1), Batch(removed=["나"], cursor={"n": 2})))
    run(store, "plain", second := Batches())
    assert first.read_with == ({}, {})
    assert second.read_with == ({"n": 2}, {"가": "가"})


def test_problems_are_logged_counted_and_the_first_are_kept(
    store: ArticleStore, plain: KnownSource, caplog: pytest.LogCaptureFixture
) -> None:
    problems = [f"{n}번째 줄을 읽지 못했습니다" for n in range(30)]
    with caplog.at_level(logging.WARNING, module.__name__):
        counts = run(
            store, "plain", Batches(Batch(problems=problems[:15]), Batch(problems=problems[15:]), batch("가", number=1))
        )
    assert (counts["problems"], counts["accepted"], counts["told"]) == (30, 1, problems[:20])
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == problems


def test_what_was_kept_before_a_place_went_away_stays_and_the_next_run_goes_on(
    store: ArticleStore, plain: KnownSource
) -> None:
    gone = SourceUnavailable("the board", "connection refused")
    with pytest.raises(SourceUnavailable, match="connection refused"):
        run(store, "plain", Batches(batch("가", number=1), gone, batch("나", number=2)))
    assert [change.article_id for change in store.queued(9)] == ["가"]
    run(store, "plain", again := Batches())
    assert again.read_with == ({"n": 1}, {"가": "가"})


def test_the_first_changes_of_a_run_go_before_bulk_loads_and_the_rest_with_them(
    store: ArticleStore, plain: KnownSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SOON", 3)
    run(store, "plain", Batches(batch("가", number=1), batch("나", "다", number=2), batch("라", number=3)))
    assert {change.article_id: change.lane for change in store.queued(9)} == {
        "가": SOURCE,
        "나": SOURCE,
        "다": SOURCE,
        "라": BULK,
    }


def test_what_had_not_changed_does_not_use_up_the_fast_lane(
    store: ArticleStore, plain: KnownSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SOON", 2)
    same = batch("가", "나", "다", number=1)
    run(store, "plain", Batches(same))
    run(store, "plain", Batches(same, batch("라", number=2)))
    assert {change.article_id: change.lane for change in store.queued(9)}["라"] == SOURCE


def test_a_source_is_read_by_one_at_a_time(database: StateDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would each put the cursor, and what the other one kept, back."""
    monkeypatch.setattr(leases, "SECONDS", 3.0)
    name = "n" * 100  # the longest there is
    sources.add(database, name, "folder", {"path": "/srv/notices"}, "5m")
    never, stopped = threading.Event(), threading.Event()
    stopped.set()
    with reading(database, name, never) as known:
        assert known.name == name
        with pytest.raises(NotReady, match="another process is reading"), reading(database, name, stopped):
            pass
        with pytest.raises(NotReady, match="another process is reading"), reading(database, name, never):
            pass
    with pytest.raises(SourceNotFound), reading(database, "nowhere", never):
        pass
    killed = leases.acquire(database, jobs.of_source(name), "killed", 0.5)
    assert killed is not None
    with reading(database, name, never):
        assert leases.holder(database, jobs.of_source(name)) != "killed"


def test_a_full_inbox_holds_the_source_up_until_it_was_emptied(
    store: ArticleStore, plain: KnownSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    looked = threading.Semaphore(0)
    length = store.queue_length

    def watched() -> int:
        looked.release()
        return length()

    monkeypatch.setattr(store, "queue_length", watched)
    ended = threading.Event()
    source = Batches(batch("가", number=1), batch("나", number=2))

    def read() -> None:
        run(store, "plain", source, queue_limit=1)
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(5):  # once for the first batch; then it waits, and looks again and again
        assert looked.acquire(timeout=_PATIENCE)
    assert [change.article_id for change in store.queued(9)] == ["가"]
    assert not ended.is_set()
    lease = leases.acquire(store.database, "worker", "test", 60)
    assert lease is not None
    store.fail(store.queued(1)[0], "made to settle", lease)
    assert ended.wait(_PATIENCE)
    thread.join()
    assert [change.article_id for change in store.queued(9)] == ["나"]


def test_a_run_that_waits_can_be_stopped_and_leaves_the_cursor_at_what_was_kept(
    store: ArticleStore, plain: KnownSource
) -> None:
    stop = threading.Event()
    source = Batches(batch("가", number=1), batch("나", number=2))
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(run(store, "plain", source, queue_limit=1, stop=stop)))
    thread.start()
    while not store.queue_length():
        assert thread.is_alive()
    stop.set()
    thread.join(_PATIENCE)
    assert source.closed.is_set()
    assert numbers(answers[0]) == (1, 0, 0, 0, 0)
    assert answers[0]["stopped"] is True
    assert sources.find(store.database, "plain").cursor == {"n": 1}
