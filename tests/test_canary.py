"""The canary goes the way of every article, and whoever holds it up is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from indexers.canary import Canary, CanaryFailed, CanaryLate
from indexers.worker import Worker
from pipeline.documents import CANARY, Article
from pipeline.storage import leases
from pipeline.storage.articles import ArticleStore
from tests.fakes import FakeEncoder
from tests.write_path import DIM, Stage, running

_PATIENCE = 120.0  # seconds until a test gives up waiting
_NEVER = 600.0  # seconds: the worker looks only when it is woken


@contextmanager
def working(stage: Stage, *, poll_seconds: float = 0.02, encoder: FakeEncoder | None = None) -> Iterator[Worker]:
    ingest = stage.ingest(encoder)
    worker = Worker(stage.store, lambda: ingest, attempts=1, poll_seconds=poll_seconds)
    with running(worker):
        yield worker


def test_it_is_published_changed_and_deleted_through_the_real_path(stage: Stage) -> None:
    with working(stage):
        counts = Canary(stage.store).run(threading.Event())
    assert set(counts) == {"publish_ms", "change_ms", "delete_ms"}
    assert all(0 <= milliseconds < 1000 * _PATIENCE for milliseconds in counts.values())
    assert [(entry.article_id, entry.revision is None) for entry in stage.store.log_since(0, 9)[0]] == [
        (CANARY, False),
        (CANARY, False),
        (CANARY, True),
    ]
    texts = stage.encoder.encoded
    assert len(set(texts)) == 2
    assert all("카나리아" in text for text in texts)


def test_the_same_canary_comes_again_and_again_and_is_no_article(stage: Stage) -> None:
    with working(stage):
        canary = Canary(stage.store)
        first, second = canary.run(threading.Event()), canary.run(threading.Event())
    assert set(first) == set(second)
    assert len(stage.store.log_since(0, 9)[0]) == 6
    assert stage.store.counts() == {}


def test_it_is_indexed_again_after_a_process_died_between_its_steps(stage: Stage) -> None:
    stage.publish(Article(id=CANARY, title="여울 카나리아", body="먼저 나온 카나리아"))
    with working(stage):
        assert len(Canary(stage.store).run(threading.Event())) == 3
    assert stage.store.state(CANARY).revision is None


def test_it_wakes_the_worker_as_a_push_does(stage: Stage) -> None:
    with working(stage, poll_seconds=_NEVER) as worker:
        assert len(Canary(stage.store, worker.wake, patience_seconds=_PATIENCE).run(threading.Event())) == 3


def test_without_a_worker_it_is_late_and_says_so(stage: Stage) -> None:
    with pytest.raises(CanaryLate, match=r"publish \(change 1\) is not indexed after 0\.1 s"):
        Canary(stage.store, patience_seconds=0.1).run(threading.Event())


def test_a_late_canary_tells_why_its_attempts_failed(stage: Stage) -> None:
    lease = leases.acquire(stage.store.database, "worker", "test", 60)
    assert lease is not None

    def postpone() -> None:
        stage.store.postpone(stage.store.queued(1)[0], "the collection is away", lease, seconds=60)

    with pytest.raises(CanaryLate, match="after 0 s: the collection is away"):
        Canary(stage.store, postpone, patience_seconds=0).run(threading.Event())


def test_a_canary_that_cannot_be_indexed_fails_with_the_reason(stage: Stage) -> None:
    with (
        working(stage, encoder=FakeEncoder(DIM, poison="카나리아")),
        pytest.raises(CanaryFailed, match="publish cannot be indexed: no vector for a text with '카나리아'"),
    ):
        Canary(stage.store).run(threading.Event())


def test_another_canary_at_the_same_time_is_noticed(stage: Stage) -> None:
    """Two schedulers on one database: the lease forbids it."""

    def other() -> None:
        stage.store.accept(Article(id=CANARY, title="여울 카나리아", body="다른 카나리아"))
        stage.drain()

    with pytest.raises(CanaryFailed, match=r"publish \(change 1\) was superseded by change 2"):
        Canary(stage.store, other).run(threading.Event())


def test_a_stop_ends_the_wait_with_what_is_known(stage: Stage) -> None:
    accepted, stop = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(Canary(stage.store, accepted.set).run, stop)
        assert accepted.wait(_PATIENCE)
        stop.set()
        assert running.result(_PATIENCE) == {}
    assert ArticleStore(stage.store.database).state(CANARY).status == "queued"
