"""One shape for every error, one table for their status codes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from api import errors
from api.app import create_app
from pipeline.errors import YeoulError
from tests.api_server import ApiServer, settings_in

SECRET = "the-secret-of-the-inside"


def _family(kind: type[YeoulError]) -> Iterator[type[YeoulError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def test_every_error_of_the_project_has_a_status_of_its_own_or_of_a_parent() -> None:
    ours = [kind for kind in _family(YeoulError) if kind.__module__ in ("pipeline.errors", "api.errors")]
    unplaced = [kind for kind in ours if not set(kind.__mro__) & (set(errors.STATUS) - {YeoulError})]
    assert len(ours) > 15
    assert unplaced == [YeoulError]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1/suggest?q=x", 404),
        ("GET", "/v1/services", 404),
        ("POST", "/v1/events", 404),
        ("GET", "/v1/search/", 404),
        ("GET", "/static/nope.css", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%00", 404),
        ("GET", "/v1/articles/a%0Ab", 404),
        ("POST", "/v1/search?q=x", 405),
        ("PATCH", "/v1/articles/x", 405),
        ("GET", "/v1/articles:bulk", 405),
        ("PROPFIND", "/healthz", 405),
        ("GET", "/v1/search", 422),
        ("GET", "/v1/articles/never", 404),
    ],
)
def test_every_refusal_has_the_one_shape(api_server: ApiServer, method: str, path: str, status: int) -> None:
    with api_server.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "hint"}
    assert all(isinstance(text, str) for text in answer.json()["error"].values())


def test_a_refused_method_tells_which_are_allowed(api_server: ApiServer) -> None:
    with api_server.client() as client:
        assert client.post("/v1/search?q=x").headers["allow"] == "GET"


@pytest.fixture
def failing(tmp_path: Path) -> TestClient:
    """An app that was not started, with two routes that fail."""
    app = create_app(settings_in(tmp_path))
    router = APIRouter()

    @router.get("/unexpected")
    def unexpected() -> None:
        raise RuntimeError(SECRET)

    @router.get("/database")
    def database() -> None:
        raise OperationalError("SELECT 1", {}, Exception(SECRET))

    app.include_router(router)
    return TestClient(app)


def test_an_unexpected_error_is_logged_and_shows_nothing_of_the_inside(
    failing: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = failing.get("/unexpected")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert SECRET not in answer.text
    assert SECRET in caplog.text


def test_a_state_database_that_is_away_is_503_and_shows_nothing_of_the_inside(failing: TestClient) -> None:
    answer = failing.get("/database")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert SECRET not in answer.text


def test_before_the_start_everything_but_health_is_503(failing: TestClient) -> None:
    assert failing.get("/healthz").status_code == 200
    assert failing.get("/metrics").status_code == 200
    for path in ("/readyz", "/v1/search?q=x", "/v1/articles/x", "/?q=x"):
        answer = failing.get(path)
        assert answer.status_code == 503
