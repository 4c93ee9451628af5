"""Alive, ready, and the figures: what a process says of itself while its store is away, loading and there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.app import create_app
from api.service import Service
from pipeline.assembly import Assembly
from pipeline.connected import Connected
from pipeline.encoding.encoder import Encoder
from pipeline.errors import ManifestMismatch, NotReady, StoreUnavailable, YeoulError
from pipeline.korean.morphemes import Analyser
from pipeline.settings import Settings
from tests.api_server import KEY, ApiServer, assembly_of, settings_in

_AUTHORISED = {"Authorization": f"Bearer {KEY}"}


class Late(Assembly):
    """An assembly whose store answers `error` until `back`."""

    error: YeoulError | None = None

    def connect(self, *, remake: bool = False, replaced: bool = False) -> Connected:
        if self.error is not None:
            raise self.error
        return super().connect()


@pytest.fixture
def late(tmp_path: Path, analyser: Analyser, encoder: Encoder) -> Iterator[Late]:
    opened = assembly_of(settings_in(tmp_path), analyser, encoder)
    assembly = Late(opened.settings, opened.database, opened.parts, opened.lock)
    yield assembly
    assembly.close()


def _samples(text: str) -> dict[str, float]:
    """The samples without labels."""
    families = text_string_to_metric_families(text)
    return {s.name: s.value for family in families for s in family.samples if not s.labels}


def test_a_ready_service_tells_engine_passages_seq_and_manifest(api_server: ApiServer) -> None:
    with api_server.client() as client:
        answer = client.get("/readyz")
    assert answer.status_code == 200
    content = answer.json()
    assert content["engine"] == "resident"
    assert content["passages"] > 20
    assert content["seq"] > 20
    assert content["manifest"]["encoder"] == api_server.assembly.parts.encoder.id


def test_metrics_count_requests_by_route_and_know_the_index(api_server: ApiServer) -> None:
    with api_server.client() as client:
        client.get("/v1/search", params={"q": "적금"})
        client.get("/v1/articles/some-id-that-is-no-label")
        client.get("/some-path-that-is-no-label")
        text = client.get("/metrics").text
        passages = client.get("/readyz").json()["passages"]
    assert 'route="/v1/search",status="200"' in text
    assert 'yeoul_search_stage_seconds_count{stage="legs"}' in text
    assert "no-label" not in text
    samples = _samples(text)
    assert samples["yeoul_ready"] == 1
    assert samples["yeoul_passages"] == passages
    assert samples["yeoul_follower_lag"] >= 0


def test_two_apps_have_figures_of_their_own(api_server: ApiServer, tmp_path: Path) -> None:
    other = TestClient(create_app(settings_in(tmp_path)))
    assert 'route="/v1/search"' not in other.get("/metrics").text


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("collection", "http://127.0.0.1:1", "connection refused", "start it"),
        ManifestMismatch({"encoder": ("a", "b")}),
    ],
    ids=lambda error: error.code,
)
def test_without_its_store_the_process_is_up_takes_changes_and_says_why(late: Late, error: YeoulError) -> None:
    late.error = error
    with TestClient(create_app(late.settings, assembly=late)) as client:
        _until(lambda: error.message in client.get("/readyz").text)
        assert client.get("/healthz").status_code == 200
        for path in ("/readyz", "/v1/search?q=x"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert error.message in answer.json()["error"]["message"]
            assert int(answer.headers["retry-after"]) > 0
        page = client.get("/?q=x")
        assert page.status_code == 503
        assert "색인을 준비하고 있습니다" in page.text
        accepted = client.put("/v1/articles/a", json={"title": "t", "body": "b"}, headers=_AUTHORISED)
        assert accepted.status_code == 202
        assert client.get("/v1/articles/a").json()["status"] == "queued"
        samples = _samples(client.get("/metrics").text)
        assert (samples["yeoul_ready"], samples["yeoul_inbox_queued"]) == (0, 1)


def test_a_store_that_comes_back_is_used(late: Late) -> None:
    late.error = StoreUnavailable("collection", "http://127.0.0.1:1", "connection refused", "start it")
    with TestClient(create_app(late.settings, assembly=late)) as client:
        _until(lambda: "refused" in client.get("/readyz").text)
        late.error = None
        _until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/v1/search?q=x").status_code == 200


def test_a_real_store_that_does_not_listen_is_told(tmp_path: Path, analyser: Analyser, encoder: Encoder) -> None:
    settings = settings_in(tmp_path, milvus={"uri": "http://127.0.0.1:1"})
    assembly = assembly_of(settings, analyser, encoder)
    with TestClient(create_app(settings, assembly=assembly)) as client:
        _until(lambda: "127.0.0.1:1" in client.get("/readyz").text)
    assembly.close()


def test_an_app_without_an_assembly_opens_its_own(
    tmp_path: Path, analyser: Analyser, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(settings: Settings, *, command: str) -> Assembly:  # Kiwi is shared: opening another takes 4 s
        return assembly_of(settings, analyser, encoder)

    monkeypatch.setattr(Assembly, "open", opened)
    with TestClient(create_app(settings_in(tmp_path))) as client:
        _until(lambda: client.get("/readyz").status_code == 200)
    again = assembly_of(settings_in(tmp_path), analyser, encoder)  # the folder was given back
    again.close()


def test_while_the_index_loads_searches_are_answered_and_say_so(late: Late) -> None:
    late.connect()
    service = Service(late.settings, late, lambda: None)
    assert [type(reason) for reason in service.reasons()] == [NotReady]
    client = TestClient(create_app(late.settings, assembly=late))  # without its lifespan: nothing loads
    answer = client.get("/v1/search?q=x&explain=true")
    assert answer.status_code == 200
    assert answer.json()["degraded"] == ["resident"]
    assert "저장소에서 바로 찾았습니다" in client.get("/?q=x").text
    late.connected.load()
    assert service.reasons() == []
    assert client.get("/v1/search?q=x").json()["degraded"] == []


def _until(condition: object, seconds: float = 120.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_health_needs_no_key_even_where_searching_does(late: Late) -> None:
    settings = settings_in(late.settings.data_dir, api={"keys": [{"key": KEY}], "search_requires_key": True})
    client: httpx2.Client = TestClient(create_app(settings, assembly=late))
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/search?q=x").status_code == 401
