"""Searches under load, through HTTP: answered together, refused in a crowd, and by whom nobody waits any more not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.searches import _answers
from pipeline.assembly import Assembly
from pipeline.encoding.encoder import Encoder
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import FusionParameters, Question, Searcher, SearchResult
from pipeline.retrieval.understanding import QueryReader
from tests.api_server import assembly_of, running, settings_in
from tests.faults import until

_PATIENCE = 60.0  # seconds; only a test that fails waits for so long


class Gate:
    """Holds every batch of searches up that has been read, and keeps what was asked in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.begun = threading.Event(), threading.Semaphore(0)
        self.batches: list[list[str]] = []
        answer = Searcher.answer

        def held(searcher: Searcher, questions: Sequence[Question]) -> list[SearchResult | Exception]:
            self.batches.append([question.request.text for question in questions])
            self.begun.release()
            assert self.open.wait(_PATIENCE)
            return answer(searcher, questions)

        monkeypatch.setattr(Searcher, "answer", held)


@pytest.fixture
def assembly(tmp_path: Path, analyser: Analyser, encoder: Encoder) -> Iterator[Assembly]:
    opened = assembly_of(settings_in(tmp_path), analyser, encoder)
    opened.connect()
    yield opened
    opened.close()


def _client(assembly: Assembly, **api: float) -> TestClient:
    return TestClient(create_app(settings_in(assembly.settings.data_dir, api=api), assembly=assembly))


def _wait_ready(client: TestClient) -> None:
    until(lambda: client.get("/readyz").status_code == 200, _PATIENCE, "not ready")


def _asked(client: TestClient, pool: ThreadPoolExecutor, texts: Sequence[str]) -> list[Any]:
    return [pool.submit(client.get, "/v1/search", params={"q": text}) for text in texts]


def _at_work(client: TestClient, pool: ThreadPoolExecutor, gate: Gate) -> list[Any]:
    """A search that is being scored, and one more: where they are answered one by one, no other is begun."""
    first = _asked(client, pool, ["전세"])
    assert gate.begun.acquire(timeout=_PATIENCE)
    first += _asked(client, pool, ["전세"])
    until(lambda: _read(client) == 1, _PATIENCE, "the second one should be read")
    return first


def _read(client: TestClient) -> int:
    """Searches that wait to be scored."""
    return int(client.app.state.service._searches._scoring.waiting)  # type: ignore[attr-defined]


def _waiting(client: TestClient) -> int:
    return int(client.app.state.service._searches.waiting)  # type: ignore[attr-defined]


def test_what_comes_while_a_batch_is_worked_on_is_the_next_batch(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _client(assembly) as client, ThreadPoolExecutor(8) as pool:
        _wait_ready(client)
        gate = Gate(monkeypatch)
        first = _at_work(client, pool, gate)
        others = []
        for number, text in enumerate(["월세", "대출", "금리"], start=2):
            others += _asked(client, pool, [text])
            until(lambda number=number: _read(client) == number, _PATIENCE, "all others should be read")  # type: ignore[misc]
        gate.open.set()
        answers = [future.result(_PATIENCE) for future in [*first, *others]]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert [answer.json()["query"] for answer in answers] == ["전세", "전세", "월세", "대출", "금리"]
    assert gate.batches == [["전세"], ["전세", "월세", "대출", "금리"]]


def test_a_question_goes_to_the_index_that_it_was_read_for(analyser: Analyser, encoder: Encoder) -> None:
    def searcher(seq: int) -> Searcher:
        engine = ResidentEngine(encoder.dim, LexicalParameters())
        reader = QueryReader(analyser, encoder)
        return Searcher(
            reader=reader,
            encoder=encoder,
            engine=lambda: (engine, {}),
            fusion=FusionParameters(),
            seq=lambda: seq,
        )

    before, after = searcher(1), searcher(2)
    read = [
        (one, question)
        for one, text in ((before, "전세"), (after, "월세"), (before, "대출"))
        for question in one.questions([SearchRequest.checked(text)])
    ]
    found = [result for result in _answers(read) if isinstance(result, SearchResult)]
    assert [(result.request.text, result.seq) for result in found] == [("전세", 1), ("월세", 2), ("대출", 1)]


def test_without_batching_each_search_is_answered_by_itself(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _client(assembly, search_batch=1) as client, ThreadPoolExecutor(8) as pool:
        _wait_ready(client)
        gate = Gate(monkeypatch)
        gate.open.set()
        for future in _asked(client, pool, ["전세", "월세", "대출"]):
            assert future.result(_PATIENCE).status_code == 200
    assert sorted(gate.batches) == [["대출"], ["월세"], ["전세"]]


def test_beyond_the_line_searches_get_429_with_a_time_and_those_in_it_are_answered(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _client(assembly, search_batch=1, search_queue=2) as client, ThreadPoolExecutor(8) as pool:
        _wait_ready(client)
        gate = Gate(monkeypatch)
        first = _at_work(client, pool, gate)
        waiting = _asked(client, pool, ["월세", "대출"])
        until(lambda: _waiting(client) == 2, _PATIENCE, "two should wait")
        refused = client.get("/v1/search", params={"q": "금리"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        page = client.get("/", params={"q": "금리"})
        assert page.status_code == 429  # the console too
        gate.open.set()
        assert [future.result(_PATIENCE).status_code for future in [*first, *waiting]] == [200] * 4
        text = client.get("/metrics").text
    assert 'yeoul_http_request_seconds_count{method="GET",route="/v1/search",status="429"} 1.0' in text
    assert "yeoul_search_batch_size_count 4.0" in text
    assert "yeoul_search_wait_seconds_count 4.0" in text
    assert "yeoul_event_loop_lag_seconds_count" in text


def test_where_milvus_answers_its_own_line_is_asked_at_the_door(
    tmp_path: Path, analyser: Analyser, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path, engine="milvus", api={"search_queue": 2})
    assembly = assembly_of(settings, analyser, encoder)
    at_once = 16  # searches that Milvus works on
    try:
        with TestClient(create_app(settings, assembly=assembly)) as client, ThreadPoolExecutor(32) as pool:
            _wait_ready(client)
            assert client.get("/v1/search").status_code == 422  # no question: what the route says
            gate = Gate(monkeypatch)
            first = []
            for _ in range(at_once):  # together they would be more than may wait
                first += _asked(client, pool, ["전세"])
                assert gate.begun.acquire(timeout=_PATIENCE)
            waiting = _asked(client, pool, ["월세", "대출"])
            until(lambda: _waiting(client) == 2, _PATIENCE, "two should wait")
            assert client.get("/v1/search").status_code == 429  # not looked at
            gate.open.set()
            assert [future.result(_PATIENCE).status_code for future in [*first, *waiting]] == [200] * (at_once + 2)
            assert client.get("/v1/search").status_code == 422
    finally:
        assembly.close()


@pytest.mark.parametrize("path", ["/v1/search", "/"])
def test_for_who_goes_away_while_he_waits_nothing_is_searched(
    tmp_path: Path, analyser: Analyser, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    settings = settings_in(tmp_path, api={"search_batch": 1})
    with running(settings, analyser, encoder) as server, server.client(key=None) as client:
        gate = Gate(monkeypatch)
        with ThreadPoolExecutor(3) as pool:
            first = [pool.submit(client.get, "/v1/search", params={"q": "전세"})]
            assert gate.begun.acquire(timeout=_PATIENCE)
            first.append(pool.submit(client.get, "/v1/search", params={"q": "전세"}))
            searches = server.app.state.service._searches
            until(lambda: searches._scoring.waiting == 1, _PATIENCE, "the second one should be read")
            with socket.create_connection(("127.0.0.1", server.port)) as leaving:
                leaving.sendall(f"GET {path}?q=gone HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                until(lambda: searches.waiting == 1, _PATIENCE, "his search should wait")
            ended = f'yeoul_http_request_seconds_count{{method="GET",route="{path}",status="499"}} 1.0'
            until(lambda: ended in client.get("/metrics").text, _PATIENCE, "nobody noticed that he went away")
            last = pool.submit(client.get, "/v1/search", params={"q": "월세"})
            until(lambda: searches.waiting == 2, _PATIENCE, "the last one should wait")
            gate.open.set()
            assert [one.result(_PATIENCE).status_code for one in (*first, last)] == [200] * 3
    assert gate.batches == [["전세"], ["전세"], ["월세"]]
