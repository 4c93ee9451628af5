"""Who may do what: keys and scopes, and this machine alone where there are no keys."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, Request
from starlette.testclient import TestClient

from api.app import create_app
from api.security import Access, administrator, caller_of, new_key
from pipeline.assembly import Assembly
from pipeline.encoding.encoder import Encoder
from pipeline.errors import InvalidInput
from pipeline.korean.morphemes import Analyser
from pipeline.settings import ApiKey, ApiSettings
from tests.api_server import KEY, READ_KEY, assembly_of, settings_in

ARTICLE = {"title": "t", "body": "b"}
LOCAL = ("127.0.0.1", 40000)


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory, analyser: Analyser, encoder: Encoder) -> Iterator[Assembly]:
    opened = assembly_of(settings_in(tmp_path_factory.mktemp("security")), analyser, encoder)
    opened.connect().load()
    yield opened
    opened.close()


def _client(
    assembly: Assembly,
    *,
    peer: tuple[str, int] = LOCAL,
    host: str = "http://localhost:8200",
    headers: dict[str, str] | None = None,
    **api: Any,
) -> TestClient:
    app = create_app(settings_in(assembly.settings.data_dir, api=api), assembly=assembly)
    return TestClient(app, client=peer, base_url=host, headers=headers or {})


KEYS = [{"key": KEY, "scopes": ["write", "admin"]}, {"key": READ_KEY, "scopes": ["read"]}]


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        (None, 401, "key_required"),
        ("", 401, "key_required"),
        ("Bearer", 401, "key_required"),
        (f"Basic {KEY}", 401, "key_required"),
        (KEY, 401, "key_required"),
        ("Bearer not-a-key-of-ours", 401, "key_required"),
        (f"Bearer {KEY}x", 401, "key_required"),
        (f"Bearer {KEY.upper()}", 401, "key_required"),
        ("Bearer \xe9\xff", 401, "key_required"),
        (f"Bearer {READ_KEY}", 403, "not_allowed"),
        (f"Bearer {KEY}", None, None),
        (f"bearer {KEY}", None, None),
    ],
)
def test_a_write_needs_a_key_with_the_scope(
    assembly: Assembly, authorization: str | None, status: int | None, code: str | None
) -> None:
    client = _client(assembly, keys=KEYS)
    headers = [(b"authorization", authorization.encode("latin-1"))] if authorization is not None else []
    calls = [
        ("PUT", "/v1/articles/x", b'{"title": "t", "body": "b"}', 202),
        ("POST", "/v1/articles:bulk", b"", 200),
        ("DELETE", "/v1/articles/x", None, 202),
    ]
    for method, path, content, allowed in calls:
        answer = client.request(method, path, content=content, headers=headers)
        assert answer.status_code == (status or allowed)
        if status is not None:
            assert answer.json()["error"]["code"] == code
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_refused_write_leaves_nothing_behind(assembly: Assembly) -> None:
    client = _client(assembly, keys=KEYS)
    assert client.put("/v1/articles/refused", json=ARTICLE).status_code == 401
    assert client.get("/v1/articles/refused").status_code == 404


def test_searching_is_open_unless_it_requires_a_key(assembly: Assembly) -> None:
    paths = ("/v1/search?q=x", "/v1/articles/never", "/?q=x")
    opened, closed = _client(assembly, keys=KEYS), _client(assembly, keys=KEYS, search_requires_key=True)
    for path in paths:
        assert opened.get(path).status_code != 401
        assert opened.get(path, headers={"Authorization": "Bearer unknown-key"}).status_code != 401
        assert closed.get(path).status_code == 401
        for key in (KEY, READ_KEY):
            assert closed.get(path, headers={"Authorization": f"Bearer {key}"}).status_code != 401
    assert opened.post("/v1/embeddings", json={"input": "x"}).status_code == 200
    assert closed.post("/v1/embeddings", json={"input": "x"}).status_code == 401


@pytest.mark.parametrize(
    ("peer", "host", "headers", "allowed"),
    [
        ("127.0.0.1", "http://127.0.0.1:8200", {}, True),
        ("127.8.8.8", "http://localhost", {}, True),
        ("::1", "http://[::1]:8200", {}, True),
        ("::ffff:127.0.0.1", "http://localhost:8200", {}, True),
        ("127.0.0.1", "http://localhost:8200", {"Origin": "http://localhost:8200"}, True),
        ("192.168.0.7", "http://localhost:8200", {}, False),
        ("203.0.113.9", "http://203.0.113.1", {"X-Forwarded-For": "127.0.0.1"}, False),
        ("::ffff:203.0.113.9", "http://localhost:8200", {}, False),
        ("testclient", "http://localhost:8200", {}, False),
        ("127.0.0.1", "http://localhost:8200", {"X-Forwarded-For": "127.0.0.1"}, False),
        ("127.0.0.1", "http://localhost:8200", {"Forwarded": "for=203.0.113.9"}, False),
        ("127.0.0.1", "http://rebound.example.com:8200", {}, False),
        ("127.0.0.1", "http://localhost:8200", {"Origin": "https://evil.example.com"}, False),
        ("127.0.0.1", "http://localhost:8200", {"Origin": "null"}, False),
        ("127.0.0.1", "http://localhost:8200", {"Origin": "http://[bad"}, False),
        ("127.0.0.1", "http://localhost.example.com", {}, False),
    ],
)
def test_without_keys_writes_are_taken_from_this_machine_alone(
    assembly: Assembly, peer: str, host: str, headers: dict[str, str], allowed: bool
) -> None:
    client = _client(assembly, peer=(peer, 40000), host=host, headers=headers)
    answer = client.put("/v1/articles/local", json=ARTICLE)
    assert answer.status_code == (202 if allowed else 403)
    if not allowed:
        assert "api.keys" in answer.json()["error"]["hint"]
    assert client.get("/v1/search?q=x").status_code == 200


def test_every_answer_carries_the_headers_that_keep_a_page_to_itself(assembly: Assembly) -> None:
    client = _client(assembly, keys=KEYS)
    for path in ("/", "/?q=x", "/v1/search?q=x", "/static/console.css", "/nope"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_keys_stand_in_no_answer_and_no_schema(assembly: Assembly, tmp_path: Path) -> None:
    client = _client(assembly, keys=KEYS)
    for path in ("/openapi.json", "/metrics", "/readyz"):
        assert KEY not in client.get(path, headers={"Authorization": f"Bearer {KEY}"}).text


def test_a_key_given_by_its_digest_opens_what_the_key_itself_would(assembly: Assembly) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for written in (digest, digest.upper()):
        client = _client(assembly, keys=[{"sha256": written, "scopes": ["write"]}])
        answers = [
            client.put("/v1/articles/hashed", json=ARTICLE, headers={"Authorization": f"Bearer {key}"}).status_code
            for key in (KEY, digest, digest.upper(), f"{KEY}x")
        ]
        assert answers == [202, 401, 401, 401], "the digest is no key"


def test_a_new_key_opens_what_its_entry_says_and_its_entry_does_not_hold_it(assembly: Assembly) -> None:
    secret, entry = new_key("cms", ["write", "admin"])
    assert (entry["name"], entry["scopes"], set(entry)) == ("cms", ["write", "admin"], {"name", "scopes", "sha256"})
    assert len(secret) >= 43
    assert secret not in str(entry)
    client = _client(assembly, keys=[entry], headers={"Authorization": f"Bearer {secret}"})
    assert client.put("/v1/articles/new-key", json=ARTICLE).status_code == 202
    assert new_key("cms")[0] != new_key("cms")[0]
    assert new_key()[1].keys() == {"sha256", "scopes"}


@pytest.mark.parametrize(
    ("name", "scopes", "told"), [("", ["write"], "name"), ("x" * 101, [], "name"), ("x", ["root"], "scopes")]
)
def test_a_key_that_settings_would_refuse_is_not_made(name: str, scopes: list[Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{told} of a key cannot be"):
        new_key(name, scopes)


def test_the_keys_in_force_are_not_in_memory_as_they_were_given() -> None:
    secret = "a-secret-that-nothing-else-holds"
    access = Access(ApiSettings(keys=(ApiKey(key=secret),)))
    held = repr([(digest, caller) for digest, caller in access._keys])
    assert secret not in held
    assert not any(secret == found for found in gc.get_referents(access.__dict__))


def _administered(assembly: Assembly, **options: Any) -> TestClient:
    """A client of an app with a route for administrators."""
    client = _client(assembly, **options)
    router = APIRouter()

    @router.post("/v1/admin/named", dependencies=[Depends(administrator)])
    def named(request: Request) -> str:
        return caller_of(request).name

    client.app.include_router(router)  # type: ignore[attr-defined]  # a FastAPI, typed as any ASGI app
    return client


def test_administration_needs_the_scope_admin(assembly: Assembly) -> None:
    secrets = {scope: new_key(f"for-{scope}", [scope]) for scope in ("read", "write", "admin")}
    client = _administered(assembly, keys=[entry for _, entry in secrets.values()])
    for scope, (secret, _) in secrets.items():
        bearer = {"Authorization": f"Bearer {secret}"}
        allowed = scope == "admin"
        answer = client.post("/v1/admin/named", headers=bearer)
        assert answer.status_code == (200 if allowed else 403)
        if allowed:
            assert answer.json() == "for-admin"
            assert client.put("/v1/articles/x", json=ARTICLE, headers=bearer).status_code == 403, "admin is not write"
    assert client.post("/v1/admin/named").status_code == 401


def test_without_keys_this_machine_alone_administers(assembly: Assembly) -> None:
    assert _administered(assembly, host="http://localhost:8200").post("/v1/admin/named").json() == "local"
    assert _administered(assembly, peer=("203.0.113.9", 1)).post("/v1/admin/named").status_code == 403
