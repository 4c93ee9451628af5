"""The worker on real stores: it drains, waits for what is away, fails one article alone, and stops when told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, update

from indexers import worker as module
from indexers.worker import LEASE, Worker
from pipeline.documents import Article, Change
from pipeline.errors import NotReady, StoreUnavailable
from pipeline.index.manifest import Manifest
from pipeline.ingest import Ingest, Written
from pipeline.passages import AnalysedPassage
from pipeline.storage import leases, manifests, tables
from pipeline.storage.acceptance import BULK, PUSH
from pipeline.storage.leases import Lease, LeaseLost
from pipeline.storage.tables import inbox
from tests.stores import EMBEDDED_ALONE
from tests.write_path import DIM, Stage, running

_PATIENCE = 120.0  # seconds until a test gives up waiting


def article(article_id: str, body: str = "본문입니다.") -> Article:
    return Article(id=article_id, title="제목", body=body)


def worker_of(stage: Stage, ingest: Ingest | None = None, *, attempts: int = 1, **callbacks: Any) -> Worker:
    chosen = ingest or stage.ingest()
    return Worker(stage.store, lambda: chosen, attempts=attempts, poll_seconds=0.02, sweep_seconds=0.02, **callbacks)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_drain_indexes_everything_in_several_batches(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ARTICLES", 3)
    settled: list[int] = []
    commits: list[int] = []
    stage.store.accept_many([article(f"글{n}") for n in range(8)], source="test")
    stage.store.accept(article("글0", "고친 본문입니다."))
    stage.store.accept_delete("글1")
    totals = worker_of(stage, on_progress=settled.append, on_commit=lambda: commits.append(1)).drain()
    assert (totals.articles, totals.deleted, totals.failed) == (7, 1, 0)
    assert totals.encoded == totals.passages == 7
    assert (sum(settled), len(settled), len(commits)) == (8, 3, 3)
    assert stage.store.queue_length() == 0
    assert stage.store.settled_up_to() == 10
    assert set(stage.store.visible()[2]) == {f"글{n}" for n in (0, 2, 3, 4, 5, 6, 7)}
    assert stage.shown("글0") == ["고친 본문입니다."]


def test_draining_twice_does_nothing_the_second_time(stage: Stage) -> None:
    stage.store.accept(article("가"))
    worker = worker_of(stage)
    worker.drain()
    stage.encoder.encoded.clear()
    again = worker.drain()
    assert (again.articles, again.passages, stage.encoder.encoded) == (0, 0, [])


@EMBEDDED_ALONE  # arithmetic
def test_a_batch_is_limited_by_its_characters_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_CHARS", 25)
    sizes: list[int] = []
    stage.store.accept_many([article(f"글{n}", "가" * length) for n, length in enumerate([10, 10, 10, 99])], source="t")
    worker_of(stage, on_progress=sizes.append).drain()
    assert sizes == [2, 1, 1]


def test_an_article_that_cannot_be_encoded_fails_alone_and_a_later_edit_recovers_it(stage: Stage) -> None:
    stage.publish(article("나", "맑은 물"))
    stage.encoder.poison = "독"
    stage.store.accept_many([article("가"), article("나", "독이 든 사과"), article("다")], source="test")
    totals = worker_of(stage).drain()
    assert (totals.articles, totals.failed) == (2, 1)
    state = stage.store.state("나")
    assert state.status == "failed"
    assert "no vector for a text with '독'" in (state.error or "")
    assert stage.shown("나") == ["맑은 물"]  # what was visible stays
    assert stage.shown("가") == stage.shown("다") == ["본문입니다."]
    assert stage.store.settled_up_to() == 4
    stage.store.accept(article("나", "씻은 사과"))
    assert worker_of(stage).drain().failed == 0
    state = stage.store.state("나")
    assert (state.status, state.error) == ("indexed", None)
    assert stage.shown("나") == ["씻은 사과"]


def test_a_failed_article_that_is_sent_again_is_tried_again(stage: Stage) -> None:
    stage.encoder.poison = "독"
    stage.store.accept(article("가", "독이 든 사과"))
    worker = worker_of(stage)
    assert worker.drain().failed == 1
    stage.encoder.poison = None
    assert not stage.store.accept(article("가", "독이 든 사과")).unchanged
    assert worker.drain().articles == 1
    assert stage.store.state("가").status == "indexed"


def test_while_the_collection_is_away_the_inbox_keeps_everything_and_goes_on_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    caplog.set_level(logging.WARNING)
    stage.collection.away = True
    with running(worker_of(stage)):
        stage.store.accept_many([article("가"), article("나")], source="test")
        eventually(lambda: "the inbox waits" in caplog.text)
        assert stage.store.counts() == {"queued": 2}  # not failed: nothing is wrong with them
        stage.store.accept(article("다"))
        stage.collection.away = False
        eventually(lambda: stage.store.queue_length() == 0)
    assert stage.store.counts() == {"indexed": 3}


def test_a_drain_tells_that_a_store_is_away(stage: Stage) -> None:
    stage.store.accept(article("가"))
    stage.collection.away = True
    with pytest.raises(StoreUnavailable):
        worker_of(stage).drain()
    assert stage.store.queue_length() == 1
    assert leases.acquire(stage.store.database, LEASE, "next", 60) is not None  # given back


def test_a_running_worker_takes_what_comes_sweeps_what_is_over_and_stops(stage: Stage) -> None:
    with running(worker_of(stage)):
        for body in ("하나", "둘", "셋"):
            accepted = stage.store.accept(article("가", body))
            eventually(lambda seq=accepted.seq: stage.store.settled(seq))  # type: ignore[misc]
        eventually(lambda: set(stage.rows()) == {("가", 3)})
    stage.store.accept(article("나"))
    time.sleep(0.1)
    assert stage.store.queue_length() == 1


def test_a_wake_is_quicker_than_the_poll(stage: Stage) -> None:
    worker = Worker(stage.store, stage.ingest, poll_seconds=60)
    with running(worker):
        time.sleep(0.2)
        stage.store.accept(article("가"))
        worker.wake()
        eventually(lambda: stage.store.queue_length() == 0)


def test_a_stop_ends_a_drain_after_the_batch_under_way(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ARTICLES", 2)
    stop = threading.Event()
    stage.store.accept_many([article(f"글{n}") for n in range(6)], source="test")
    worker_of(stage, on_commit=stop.set).drain(stop)
    assert stage.store.queue_length() == 4


def test_two_workers_share_an_inbox_without_doing_anything_twice(stage: Stage) -> None:
    stage.store.accept_many([article(f"글{n}") for n in range(30)], source="test")
    with ThreadPoolExecutor(2) as pool:
        totals = [future.result() for future in [pool.submit(worker_of(stage).drain) for _ in range(2)]]
    assert sum(t.articles for t in totals) == 30
    assert stage.store.counts() == {"indexed": 30}


def test_a_worker_that_lost_its_lease_commits_nothing_and_goes_on_when_it_has_it_again(stage: Stage) -> None:
    class Usurped(Ingest):
        times = 0

        def write(self, batch: list[Change], analysed: list[list[AnalysedPassage]], lease: Lease) -> Written:  # type: ignore[override]
            self.times += 1
            if self.times > 1:
                return super().write(batch, analysed, lease)
            leases.release(stage.store.database, lease)
            usurper = leases.acquire(stage.store.database, LEASE, "usurper", 60)
            assert usurper is not None
            try:
                return super().write(batch, analysed, lease)
            except LeaseLost:
                assert stage.store.visible()[2] == {}
                assert stage.store.counts() == {"queued": 1}
                leases.release(stage.store.database, usurper)
                raise

    ordinary = stage.ingest()
    usurped = Usurped(
        passages=ordinary._passages, encoder=stage.encoder, collection=stage.collection, store=stage.store
    )
    stage.store.accept(article("가"))
    assert worker_of(stage, usurped).drain().articles == 1
    assert usurped.times == 2
    assert stage.shown("가") == ["본문입니다."]


def test_a_slow_batch_keeps_its_lease(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SECONDS", 3.0)
    encode = stage.encoder.encode_passages
    others: list[Lease | None] = []

    def expires_at() -> float:
        with stage.store.database.read() as connection:
            return float(connection.execute(select(tables.leases.c.expires_at).filter_by(name=LEASE)).scalar_one())

    def slowly(texts: list[str]) -> object:
        first = expires_at()
        eventually(lambda: expires_at() > first)
        others.append(leases.acquire(stage.store.database, LEASE, "impatient", 60))
        return encode(texts)

    monkeypatch.setattr(stage.encoder, "encode_passages", slowly)
    stage.store.accept(article("가"))
    assert worker_of(stage).drain().articles == 1
    assert others == [None]


def test_a_sweep_spares_rows_that_wait_for_their_commit(stage: Stage) -> None:
    """Another worker may have written them: they are of no visible revision yet."""
    stage.publish(article("가", "하나"))
    stage.publish(article("가", "둘"))
    stage.store.accept(article("가", "셋"))
    waiting = stage.store.queued(9)
    ingest = stage.ingest()
    passages = [p.passage for parts in ingest.analyse(waiting) for p in parts]
    stage.collection.upsert(passages, stage.encoder.encode_passages([p.text for p in passages]))
    worker_of(stage).sweep()
    assert set(stage.rows()) == {("가", 2), ("가", 3)}
    worker_of(stage).drain()
    worker_of(stage).sweep()
    assert set(stage.rows()) == {("가", 3)}


def test_a_sweep_that_hangs_holds_no_push_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = threading.Event(), threading.Event()

    def hanging(_ingest: Ingest, _lease: Lease | None = None) -> int:
        begun.set()
        assert over.wait(_PATIENCE)
        return 0

    monkeypatch.setattr(Ingest, "sweep", hanging)
    try:
        with running(worker_of(stage)):
            assert begun.wait(_PATIENCE)
            stage.store.accept(article("가"))
            eventually(lambda: stage.store.queue_length() == 0)
            over.set()
    finally:
        over.set()


@EMBEDDED_ALONE  # the sweep never asks a store
def test_a_stop_does_not_wait_for_everything_that_is_to_be_swept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(_ingest: Ingest, _lease: Lease | None = None) -> int:
        begun.set()
        time.sleep(0.01)
        return 500

    monkeypatch.setattr(Ingest, "sweep", endless)
    with running(worker_of(stage)):
        assert begun.wait(_PATIENCE)


def test_a_sweep_that_breaks_off_is_told_and_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, times = Ingest.sweep, iter([StoreUnavailable("collection", "test", "cut off", "plug it in"), OSError("odd")])

    def failing(ingest: Ingest, lease: Lease | None = None) -> int:
        error = next(times, None)
        if error is not None:
            raise error
        return sweep(ingest, lease)

    monkeypatch.setattr(Ingest, "sweep", failing)
    with caplog.at_level(logging.WARNING), running(worker_of(stage)):
        for body in ("하나", "둘"):
            stage.store.accept(article("가", body))
            eventually(lambda: stage.store.queue_length() == 0)
        eventually(lambda: set(stage.rows()) == {("가", 2)})
    told = [record.getMessage() for record in caplog.records if record.name == "indexers.sweeping"]
    assert [line.split(":")[0] for line in told] == ["a sweep broke off"] * 2


def written_in(monkeypatch: pytest.MonkeyPatch, at_first: Callable[[], object] = lambda: None) -> list[list[str]]:
    """The articles of each batch that is written, in order; `at_first` is called in the first."""
    order: list[list[str]] = []
    write = Ingest.write

    def watched(ingest: Ingest, batch: list[Change], *rest: Any) -> Written:
        order.append([change.article_id for change in batch])
        if len(order) == 1:
            at_first()
        return write(ingest, batch, *rest)

    monkeypatch.setattr(Ingest, "write", watched)
    return order


def test_a_push_goes_before_a_bulk_that_came_earlier(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ARTICLES", 2)
    order = written_in(monkeypatch, lambda: stage.store.accept(article("급한글")))
    stage.store.accept_many([article(f"글{n}") for n in range(8)], source="bulk")
    worker_of(stage).drain()
    assert order == [["글0", "글1"], ["급한글"], ["글2", "글3"], ["글4", "글5"], ["글6", "글7"]]


def test_a_push_does_not_wait_for_the_bulks_next_batch_to_be_analysed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch may be seconds of Kiwi."""
    analyse = Ingest.analyse
    pushed = threading.Event()

    def slow(ingest: Ingest, batch: list[Change]) -> list[list[AnalysedPassage]]:
        if batch[0].lane == BULK:
            stage.store.accept(article("급한글"))
            assert pushed.wait(_PATIENCE)
        return analyse(ingest, batch)

    monkeypatch.setattr(Ingest, "analyse", slow)
    stage.store.accept_many([article("글")], source="bulk")
    worker = worker_of(stage, on_commit=lambda: pushed.set() if stage.store.state("급한글").revision else None)
    assert worker.drain().articles == 2


def test_a_push_of_what_waits_in_a_bulk_brings_it_forward(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ARTICLES", 2)
    order = written_in(monkeypatch)
    stage.store.accept_many([article(f"글{n}") for n in range(6)], source="bulk")
    again = stage.store.accept(article("글5"))
    assert (again.seq, again.unchanged) == (6, True)
    assert worker_of(stage).drain().articles == 6
    assert order == [["글5"], ["글0", "글1"], ["글2", "글3"], ["글4"]]
    assert stage.store.log_since(0)[0][0].lane == PUSH


def test_a_thousand_articles_that_come_again_in_another_category_are_not_encoded_again(stage: Stage) -> None:
    many = [article(f"글{n}", f"{n}번째 본문입니다.") for n in range(1000)]
    stage.store.accept_many(many, source="test")
    assert worker_of(stage).drain().encoded == 1000
    stage.store.accept_many([replace(one, category="옮김") for one in many], source="test")
    totals = worker_of(stage).drain()
    assert (totals.articles, totals.encoded) == (1000, 0)


def test_what_was_indexed_cannot_fail_afterwards(stage: Stage) -> None:
    stage.store.accept(article("가"))
    [change] = stage.store.queued(1)
    worker_of(stage).drain()
    lease = leases.acquire(stage.store.database, LEASE, "late", 60)
    assert lease is not None
    stage.store.fail(change, "told too late", lease)
    assert (stage.store.state("가").status, stage.store.failed(9)) == ("indexed", [])


def test_a_drain_does_not_wait_for_what_came_after_it_began(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a worker that is at work all the time, it would not end."""
    looked, waits = threading.Event(), stage.store.waits

    def watched(**conditions: Any) -> int | None:
        found = waits(**conditions)
        looked.set()
        return found

    monkeypatch.setattr(stage.store, "waits", watched)
    stage.store.accept(article("가"))
    held = leases.acquire(stage.store.database, LEASE, "another", 60)
    assert held is not None
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(worker_of(stage).drain)
        assert looked.wait(_PATIENCE)
        with pytest.raises(TimeoutError):
            draining.result(0.2)
        stage.store.accept(article("나"))
        stage.store.fail(stage.store.queued(1)[0], "made to settle", held)
        assert draining.result(_PATIENCE).articles == 0
    assert [change.article_id for change in stage.store.queued(9)] == ["나"]


def test_a_push_wins_over_the_same_articles_bulk_change_that_is_under_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bulk's older change is analysed already when the newer one is committed: it is never shown."""
    monkeypatch.setattr(module, "_BATCH_ARTICLES", 1)
    write = Ingest.write
    shown: list[list[str]] = []

    def watched(ingest: Ingest, batch: list[Change], *rest: Any) -> Written:
        if not shown:
            stage.store.accept(article("나", "새것"))
        written = write(ingest, batch, *rest)
        shown.append(stage.shown("나"))
        return written

    monkeypatch.setattr(Ingest, "write", watched)
    stage.store.accept_many([article("가"), article("나", "옛것"), article("다")], source="bulk")
    worker = worker_of(stage)
    worker.drain()
    assert shown[0] == []
    assert all(texts == ["새것"] for texts in shown[1:])
    assert stage.store.counts() == {"indexed": 3}
    worker.sweep()
    assert stage.rows() == {("가", 1): 1, ("나", 4): 1, ("다", 3): 1}


def test_a_failed_attempt_is_repeated_later_and_the_last_one_is_a_dead_letter(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKOFF_SECONDS", _PATIENCE)
    stage.encoder.poison = "독"
    stage.store.accept_many([article("가", "독이 든 사과"), article("나")], source="test")
    worker = worker_of(stage, attempts=2)
    assert worker.drain().failed == 0
    state = stage.store.state("가")
    assert (state.status, stage.store.queue_length()) == ("queued", 1)
    assert "no vector" in (state.error or "")
    assert worker.drain().articles == 0  # not due yet
    assert stage.store.waits() is None
    with stage.store.database.write() as connection:  # as if its time had come
        connection.execute(update(inbox).values(due_at=datetime.now(UTC)))
    assert worker.drain().failed == 1
    [dead] = stage.store.failed(9)
    assert (dead.article_id, dead.seq) == ("가", 1)
    assert "no vector" in dead.error
    stage.encoder.poison = None
    assert [a.article_id for a in stage.store.retry()] == ["가"]
    assert worker.drain().articles == 1
    assert stage.shown("가") == ["독이 든 사과"]
    assert stage.store.failed(9) == []


def test_an_attempt_that_succeeds_later_leaves_no_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(module, "_BACKOFF_FACTOR", 1)
    stage.encoder.poison = "독"
    with running(worker_of(stage, attempts=10_000)):
        stage.store.accept(article("가", "독이 든 사과"))
        eventually(lambda: stage.store.state("가").error is not None)
        stage.encoder.poison = None
        eventually(lambda: stage.store.state("가").status == "indexed")
    assert stage.store.state("가").error is None


def test_what_takes_the_lease_over_stops_a_worker_that_runs_and_it_goes_on_with_a_new_ingest(stage: Stage) -> None:
    """So a rebuild can switch the collection under a running worker."""
    asked: list[Ingest] = []

    def ingest() -> Ingest:
        asked.append(stage.ingest())
        return asked[-1]

    worker = Worker(stage.store, ingest, alone=True, poll_seconds=0.02, sweep_seconds=0)
    with running(worker):
        stage.store.accept(article("가"))
        eventually(lambda: stage.store.queue_length() == 0)
        held = leases.acquire(stage.store.database, LEASE, "a rebuild", 60, alone=True)
        assert held is not None
        stage.store.accept(article("나"))
        time.sleep(0.2)
        assert stage.store.queue_length() == 1
        leases.release(stage.store.database, held)
        eventually(lambda: stage.store.queue_length() == 0)
    assert len(asked) == 2


def test_a_collection_that_is_not_in_use_any_more_takes_no_commit_and_the_worker_asks_for_the_one_that_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start of a process with other settings, while nothing is indexed yet, puts another collection in use."""
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    manifest = Manifest(encoder="fake", dim=DIM, tokenizer="", max_tokens=16, overlap_sentences=0, alpha=0.5)
    manifests.activate(stage.store.database, "the other one", manifest, {})
    with pytest.raises(NotReady, match="'the other one' is in use"):
        stage.publish(article("가"))
    assert (stage.store.state("가").status, stage.store.position()) == ("queued", 0)
    asked: list[Ingest] = []

    def ingest() -> Ingest:
        asked.append(stage.ingest())
        if len(asked) == 2:
            manifests.activate(stage.store.database, stage.collection.name, manifest, {})
        return asked[-1]

    with running(Worker(stage.store, ingest, alone=True, poll_seconds=0.02, sweep_seconds=0)):
        eventually(lambda: stage.store.state("가").status == "indexed")
    assert len(asked) == 2


def test_an_unexpected_error_does_not_end_the_worker(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    queued = stage.store.queued
    failures = [ZeroDivisionError("once")]

    def failing(limit: int, **conditions: Any) -> list[Change]:
        if failures:
            raise failures.pop()
        return queued(limit, **conditions)

    monkeypatch.setattr(stage.store, "queued", failing)
    stage.store.accept(article("가"))
    with running(worker_of(stage)):
        eventually(lambda: stage.store.queue_length() == 0)
    assert "unexpected" in caplog.text
