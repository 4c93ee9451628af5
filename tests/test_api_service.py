"""Waiting for a change: until it is applied, until it fails, and no longer than the limit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from indexers import operations
from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.control import Call
from pipeline.encoding.encoder import Encoder
from pipeline.errors import NotReady, StoreUnavailable
from pipeline.follower import Follower
from pipeline.korean.morphemes import Analyser
from pipeline.retrieval.searcher import Searcher
from pipeline.settings import Settings
from pipeline.storage import leases, readers
from tests.api_server import KEY, assembly_of, settings_in
from tests.faults import until
from tests.stores import EMBEDDED_ALONE

_PATIENCE = 60.0  # seconds until a test gives up waiting
ARTICLE = {"title": "물떼새", "body": "물떼새가 알을 품는다"}


@pytest.fixture
def assembly(
    tmp_path: Path, analyser: Analyser, encoder: Encoder, stores_of: Callable[[int], dict[str, Any]]
) -> Iterator[Assembly]:
    opened = assembly_of(settings_in(tmp_path, **stores_of(encoder.dim)), analyser, encoder)
    opened.connect()
    yield opened
    opened.close()


def _client(assembly: Assembly, wake: Callable[[], None], **api: float) -> TestClient:
    opened: Settings = assembly.settings
    settings = settings_in(
        opened.data_dir,
        milvus=opened.milvus,
        database_url=opened.database_url,
        api={"keys": [{"key": KEY}], **api},
    )
    app = create_app(settings, assembly=assembly, wake=wake)
    return TestClient(app, headers={"Authorization": f"Bearer {KEY}"})


@EMBEDDED_ALONE  # a clock, and no store does anything
def test_a_wait_without_a_worker_ends_at_the_limit_and_the_change_is_kept(assembly: Assembly) -> None:
    with _client(assembly, lambda: None, wait_seconds=0.3) as client:
        began = time.monotonic()
        answer = client.put("/v1/articles/a?wait=true", json=ARTICLE)
        assert 0.3 <= time.monotonic() - began < 30
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert "retry-after" in answer.headers
        assert client.get("/v1/articles/a").json()["status"] == "queued"
        assert client.get("/v1/search", params={"q": "x", "min_seq": 1}).status_code == 503


def test_a_change_that_fails_answers_its_error_to_who_waits(assembly: Assembly) -> None:
    def fail() -> None:
        lease = leases.acquire(assembly.database, "worker", "a test", 60)
        assert lease is not None
        for change in assembly.store.queued(10):
            assembly.store.fail(change, "no words for it", lease)
        leases.release(assembly.database, lease)

    with _client(assembly, fail) as client:
        answer = client.put("/v1/articles/a?wait=true", json=ARTICLE)
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "indexing_failed"
        assert "no words for it" in answer.json()["error"]["message"]
        state = client.get("/v1/articles/a").json()
        assert (state["status"], state["error"]) == ("failed", "no words for it")


def test_commits_of_another_process_are_seen_by_polling(assembly: Assembly) -> None:
    worker = Worker(assembly.store, assembly.ingest)  # nobody notifies the app of its commits
    with _client(assembly, lambda: threading.Thread(target=worker.drain).start()) as client:
        assert client.put("/v1/articles/a?wait=true", json=ARTICLE).status_code == 200
        found = client.get("/v1/search", params={"q": "물떼새"}).json()["items"]
        assert [item["article_id"] for item in found] == ["a"]


def test_many_wait_at_once_for_changes_in_any_order(assembly: Assembly) -> None:
    worker = Worker(assembly.store, assembly.ingest)
    with _client(assembly, lambda: None) as client:
        answers: list[tuple[int, list[str]]] = []
        seqs = [client.put(f"/v1/articles/a{n}", json=ARTICLE | {"body": f"본문{n}"}).json()["seq"] for n in range(8)]

        def search(seq: int) -> None:
            answer = client.get("/v1/search", params={"q": "물떼새", "min_seq": seq, "limit": 100})
            answers.append((answer.status_code, [item["article_id"] for item in answer.json().get("items", [])]))

        threads = [threading.Thread(target=search, args=(seq,)) for seq in reversed(seqs)]
        for thread in threads:
            thread.start()
        worker.drain()
        for thread in threads:
            thread.join()
    assert len(answers) == 8
    assert {status for status, _ in answers} == {200}
    assert {len(found) for _, found in answers} == {8}


def test_a_superseded_change_counts_as_applied(assembly: Assembly) -> None:
    worker = Worker(assembly.store, assembly.ingest)
    with _client(assembly, lambda: None) as client:
        first = client.put("/v1/articles/a", json=ARTICLE).json()["seq"]
        client.put("/v1/articles/a", json=ARTICLE | {"title": "새 제목"})
        worker.drain()
        found = client.get("/v1/search", params={"q": "물떼새", "min_seq": first}).json()["items"]
    assert [item["title"] for item in found] == ["새 제목"]


def test_who_waits_for_a_push_waits_for_no_change_before_it(assembly: Assembly) -> None:
    """A bulk of a million rows, or an article that is tried again in a minute, may be on its way."""
    with _client(assembly, lambda: None) as client:
        assert client.post("/v1/articles:bulk", content=json.dumps({"id": "b"} | ARTICLE)).status_code == 200
        lease = leases.acquire(assembly.database, "worker", "a test", 60)
        assert lease is not None
        assembly.store.postpone(assembly.store.queued(1)[0], "try again", lease, seconds=60)
        leases.release(assembly.database, lease)
        seq = client.put("/v1/articles/a", json=ARTICLE).json()["seq"]
        Worker(assembly.store, assembly.ingest).drain()
        found = client.get("/v1/search", params={"q": "물떼새", "min_seq": seq}).json()
        assert [item["article_id"] for item in found["items"]] == ["a"]
        assert found["seq"] < seq  # which says that all up to it are applied


@EMBEDDED_ALONE  # nothing is stored
def test_a_number_that_no_change_was_given_is_told(assembly: Assembly) -> None:
    with _client(assembly, lambda: None) as client:
        answer = client.get("/v1/search", params={"q": "물떼새", "min_seq": 99})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_query")


@EMBEDDED_ALONE  # the failure is made here
def test_a_database_that_takes_no_reports_stops_no_search_and_no_wait(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = threading.Event()

    def report(*_: object, **__: object) -> None:
        refused.set()
        raise StoreUnavailable("state database", "test", "No space left on device", "make room")

    monkeypatch.setattr(readers, "report", report)
    with _client(
        assembly, lambda: threading.Thread(target=Worker(assembly.store, assembly.ingest).drain).start()
    ) as client:
        assert refused.wait(_PATIENCE)
        assert client.put("/v1/articles/a?wait=true", json=ARTICLE).status_code == 200
        assert client.get("/readyz").status_code == 200
        until(lambda: "No space left on device" in caplog.text, _PATIENCE, "it is not told")  # while loading it is not


@EMBEDDED_ALONE  # what is wrong is in memory
def test_what_is_wrong_in_memory_is_mended_now_and_then(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "lock", None)  # as on a server: nobody else sees what is in memory here
    with _client(assembly, lambda: None) as client:
        client.put("/v1/articles/a", json=ARTICLE)
        Worker(assembly.store, assembly.ingest).drain()
        service = client.app.state.service  # type: ignore[attr-defined]
        engine = assembly.connected.engine()[0]
        while engine.revisions() != {"a": 1}:
            time.sleep(0.01)
        engine.apply({"a": None}, [], np.zeros((0, 0), dtype=np.float32))
        service._verify_due = 0.0
        while engine.revisions() != {"a": 1}:
            time.sleep(0.01)
        until(lambda: "yeoul_index_mended_total 1.0" in client.get("/metrics").text, _PATIENCE, "it is not counted")


def test_a_process_that_is_asked_compares_what_it_has_in_memory_and_mends_it_only_if_that_is_asked(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "REPORT_SECONDS", 0.02)
    database = assembly.database

    def differing(what: readers.Asked) -> int:
        readers.ask(database, what)
        while (comparison := readers.comparisons(database)[0]).differing is None:
            time.sleep(0.01)
        return comparison.differing

    with _client(assembly, lambda: None) as client:
        client.put("/v1/articles/a", json=ARTICLE)
        Worker(assembly.store, assembly.ingest).drain()
        engine = assembly.connected.engine()[0]
        while engine.revisions() != {"a": 1} or not readers.comparisons(database):
            time.sleep(0.01)
        assert differing("compare") == 0
        engine.apply({"a": None}, [], np.zeros((0, 0), dtype=np.float32))
        assert (differing("compare"), engine.revisions()) == (1, {})
        told: list[Any] = []
        assert operations._compared_by_readers(assembly, Call(told.append), repair=True) == 0
        assert [line["out"].partition(": ")[2] for line in told] == [
            "1 articles in memory are not as the registry says, mended"
        ]
        assert (differing("compare"), engine.revisions()) == (0, {"a": 1})


@EMBEDDED_ALONE  # the load never asks a store
def test_a_load_under_way_does_not_hold_up_the_end(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = threading.Event()

    def endless(_follower: Follower, on_progress: Callable[[int], None]) -> None:
        while True:
            on_progress(1)
            loading.set()
            time.sleep(0.01)

    monkeypatch.setattr(Follower, "load", endless)
    with _client(assembly, lambda: None):
        assert loading.wait(_PATIENCE)


@EMBEDDED_ALONE
def test_a_process_reports_how_many_searches_stand_in_line(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object, **__: object) -> None:
        begun.release()
        assert go_on.wait(_PATIENCE)
        raise NotReady("it was slow", "no harm")

    with _client(assembly, lambda: None) as client:
        until(lambda: client.get("/readyz").status_code == 200, _PATIENCE, "not ready")
        monkeypatch.setattr(Searcher, "questions", slow)
        asked = [threading.Thread(target=client.get, args=("/v1/search?q=물떼새",)) for _ in range(4)]
        asked[0].start()
        assert begun.acquire(timeout=_PATIENCE)
        for one in asked[1:]:
            one.start()
        try:
            until(
                lambda: [r.waiting for r in readers.alive(assembly.database)] == [3],
                _PATIENCE,
                "three should stand in line",
            )
        finally:
            go_on.set()
            for one in asked:
                one.join()
        until(lambda: [r.waiting for r in readers.alive(assembly.database)] == [0], _PATIENCE, "nobody waits any more")
