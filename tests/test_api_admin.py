"""Administration over HTTP and on its page: what it tells, what it asks of others, and for whom."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import orjson
import pytest
from pydantic import BaseModel
from sqlalchemy import update
from starlette.testclient import TestClient

from api import audit
from api.app import create_app
from api.schemas import FailedAnswer, JobAnswer, JobsAnswer, RetryAnswer, StateAnswer
from api.security import new_key
from pipeline.assembly import Assembly
from pipeline.documents import CANARY, Article
from pipeline.encoding.encoder import Encoder
from pipeline.korean.morphemes import Analyser
from pipeline.storage import jobs, leases, tables
from pipeline.storage.articles import ArticleStore
from tests.api_server import KEY, READ_KEY, ApiServer, assembly_of, settings_in

NEWS, BLOG = "source:news", "source:블로그"
HOSTILE = "<script>document.title='당함'</script> & \"끝\""
SCOPES = ("read", "write", "admin")
KEYS = [{"key": f"key-that-may-{scope}", "scopes": [scope], "name": f"who-may-{scope}"} for scope in SCOPES]
LOOKS = ["/v1/admin/jobs", "/v1/admin/failed", "/v1/admin/state"]
ASKS = [*(f"/v1/admin/jobs/{NEWS}/{action}" for action in ("run", "pause", "resume")), "/v1/admin/failed/retry"]
FORMS = [f"/operations/jobs/{NEWS}/run", f"/operations/jobs/{NEWS}/pause", "/operations/failed/retry"]
LOCAL = "http://localhost"


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory, analyser: Analyser, encoder: Encoder) -> Iterator[Assembly]:
    """Open parts without a worker: what fails stays failed, what is queued stays queued."""
    opened = assembly_of(settings_in(tmp_path_factory.mktemp("admin")), analyser, encoder)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _as_at_the_start(request: pytest.FixtureRequest) -> None:
    """Two jobs that never ran, and nothing that failed."""
    for name in {"assembly", "api_server"} & set(request.fixturenames):
        given: Assembly | ApiServer = request.getfixturevalue(name)
        database = (given.assembly if isinstance(given, ApiServer) else given).database
        jobs.ensure(database, [])
        jobs.ensure(database, [NEWS, BLOG])
        with database.write() as connection:
            connection.execute(
                update(tables.articles).where(tables.articles.c.status == "failed").values(status="indexed", error=None)
            )


def _client(
    assembly: Assembly,
    scope: str | None = None,
    *,
    keys: list[dict[str, Any]] | None = None,
    peer: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> TestClient:
    """A client that sends the key of `scope`; redirects are not followed."""
    settings = settings_in(assembly.settings.data_dir, api={"keys": KEYS if keys is None else keys})
    bearer = {"Authorization": f"Bearer key-that-may-{scope}"} if scope else {}
    return TestClient(
        create_app(settings, assembly=assembly),
        client=(peer, 40000),
        base_url=LOCAL,
        headers=bearer | (headers or {}),
        follow_redirects=False,
    )


def _browser(assembly: Assembly, password: str = "key-that-may-admin", **options: Any) -> TestClient:
    """A client that sends `password` as a browser does."""
    return _client(assembly, headers={"Authorization": f"Basic {_basic(password)}"}, **options)


def _basic(password: str) -> str:
    return b64encode(f"anyone:{password}".encode()).decode()


def _token(client: TestClient) -> str:
    """What the page's forms carry."""
    tokens = set(re.findall(r'name="token" value="(\w*)"', client.get("/operations").text))
    assert len(tokens) == 1
    return str(tokens.pop())


def _fail(store: ArticleStore, article_id: str, error: str) -> int:
    """Publishes an article that cannot be indexed; its seq."""
    accepted = store.accept(Article(id=article_id, title="제목", body=f"본문 {datetime.now(UTC)}"))
    lease = leases.acquire(store.database, "worker", "a test", 60)
    assert lease is not None
    (change,) = [change for change in store.queued(1000) if change.seq == accepted.seq]
    store.fail(change, error, lease)
    return accepted.seq


def _audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines = [orjson.loads(record.getMessage()) for record in caplog.records if record.name == audit.LOGGER]
    caplog.clear()
    return lines


def _checked(answer: httpx2.Response, shape: type[BaseModel], status: int = 200) -> dict[str, Any]:
    """The content of an answer that is as the schema says."""
    assert answer.status_code == status, answer.text
    shape.model_validate_json(answer.content)
    content: dict[str, Any] = answer.json()
    return content


# ---- jobs


def test_a_job_tells_how_its_last_run_ended(api_server: ApiServer) -> None:
    database = api_server.assembly.database
    jobs.started(database, NEWS)
    jobs.finished(database, NEWS, {"accepted": 3}, HOSTILE)
    with api_server.client() as client:
        found = {job["name"]: job for job in _checked(client.get("/v1/admin/jobs"), JobsAnswer)["jobs"]}
    assert set(found) == {NEWS, BLOG}
    assert (found[NEWS]["outcome"], found[NEWS]["counts"], found[NEWS]["error"]) == ("failed", {"accepted": 3}, HOSTILE)
    assert datetime.fromisoformat(found[NEWS]["finished_at"]) == jobs.find(database, NEWS).finished_at
    assert (found[BLOG]["outcome"], found[BLOG]["started_at"]) == ("never", None)


def test_what_is_asked_of_a_job_stands_where_the_scheduler_looks(api_server: ApiServer) -> None:
    database = api_server.assembly.database
    with api_server.client() as client:
        for name in (NEWS, BLOG):
            asked = _checked(client.post(f"/v1/admin/jobs/{name}/run"), JobAnswer, 202)
            assert asked["requested_at"] is not None
            assert name in jobs.requests(database)
            assert _checked(client.post(f"/v1/admin/jobs/{name}/pause"), JobAnswer, 202)["paused"]
            assert jobs.find(database, name).paused
            assert not _checked(client.post(f"/v1/admin/jobs/{name}/resume"), JobAnswer, 202)["paused"]
            assert not jobs.find(database, name).paused


@pytest.mark.parametrize("action", ["run", "pause", "resume"])
def test_a_job_that_is_not_there_is_not_found(api_server: ApiServer, action: str) -> None:
    with api_server.client() as client:
        answer = client.post(f"/v1/admin/jobs/source:gone/{action}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
        assert client.post(f"/v1/admin/jobs/%00/{action}").status_code == 422
        assert client.post(f"/v1/admin/jobs/{NEWS}/remove").status_code == 404


# ---- what failed


def test_what_failed_is_told_oldest_first_with_its_error(assembly: Assembly) -> None:
    seqs = [_fail(assembly.store, f"broken-{n}", HOSTILE) for n in range(3)]
    _fail(assembly.store, CANARY, "the canary is not somebody's article")
    client = _client(assembly, "admin")
    told = _checked(client.get("/v1/admin/failed"), FailedAnswer)
    assert [(one["id"], one["seq"], one["error"]) for one in told["articles"]] == [
        (f"broken-{n}", seq, HOSTILE) for n, seq in enumerate(seqs)
    ]
    assert told["total"] == 3
    first = _checked(client.get("/v1/admin/failed?limit=1"), FailedAnswer)
    assert ([one["id"] for one in first["articles"]], first["total"]) == (["broken-0"], 3)
    assert client.get("/v1/admin/failed?limit=0").status_code == 422


def test_a_retry_queues_the_named_ones_alone_and_then_all(assembly: Assembly) -> None:
    for n in range(3):
        _fail(assembly.store, f"again-{n}", "no reason")
    client = _client(assembly, "admin")
    named = {"ids": ["again-1", "never-seen", "again-1"]}
    one = _checked(client.post("/v1/admin/failed/retry", json=named), RetryAnswer, 202)["queued"]
    assert [(item["id"], item["seq"]) for item in one] == [("again-1", assembly.store.state("again-1").seq)]
    assert _checked(client.post("/v1/admin/failed/retry", json={"ids": []}), RetryAnswer, 202) == {"queued": []}
    rest = _checked(client.post("/v1/admin/failed/retry", json={}), RetryAnswer, 202)["queued"]
    assert [item["id"] for item in rest] == ["again-0", "again-2"]
    assert {assembly.store.state(f"again-{n}").status for n in range(3)} == {"queued"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"ids": "a"}', 422),
        (b'{"ids": [1]}', 422),
        (b'{"ids": ["a#b"]}', 422),
        (b'{"id": "a"}', 422),
        (orjson.dumps({"ids": ["a"] * 1001}), 422),
    ],
)
def test_a_retry_that_cannot_be_understood_queues_nothing(assembly: Assembly, body: bytes, status: int) -> None:
    _fail(assembly.store, "still-broken", "no reason")
    assert _client(assembly, "admin").post("/v1/admin/failed/retry", content=body).status_code == status
    assert assembly.store.state("still-broken").status == "failed"


def test_what_is_retried_is_indexed_by_the_worker(api_server: ApiServer) -> None:
    api_server.publish([{"id": "retried", "title": "다시 해 보는 글", "body": "고친 뒤에 다시 찾아지는 본문입니다."}])
    with api_server.assembly.database.write() as connection:
        mine = tables.articles.c.id == "retried"
        connection.execute(update(tables.articles).where(mine).values(status="failed", error="the encoder was away"))
    with api_server.client() as client:
        (queued,) = _checked(client.post("/v1/admin/failed/retry", json={}), RetryAnswer, 202)["queued"]
        client.get("/v1/search", params={"q": "다시", "min_seq": queued["seq"]}).raise_for_status()
        answer = client.get("/v1/articles/retried").json()
    assert (answer["status"], answer["error"], answer["revision"]) == ("indexed", None, queued["seq"])


# ---- where everything stands


def test_the_state_tells_queue_freshness_processes_and_collections_and_no_secret(api_server: ApiServer) -> None:
    with api_server.client() as client:
        api_server.publish([{"id": "stated", "title": "상태", "body": "상태를 보는 글"}])
        content = _checked(client.get("/v1/admin/state"), StateAnswer)
    store = api_server.assembly.store
    assert content["queued"] == 0
    assert content["seq"] == store.settled_up_to() > 20
    assert content["articles"] == store.counts()
    assert content["freshness"]["objective_seconds"] == 2.0
    (reader,) = content["readers"]
    (collection,) = content["collections"]
    assert reader["collection"] == collection["name"]
    assert (collection["state"], collection["position"]) == ("active", None)
    assert set(collection) == {"name", "state", "position", "created_at"}


def test_the_state_is_told_while_the_index_is_not_open(assembly: Assembly) -> None:
    client = _client(assembly, "admin")
    assert client.get("/readyz").status_code == 503
    assert _checked(client.get("/v1/admin/state"), StateAnswer)["readers"] == []
    assert "아직 준비되지 않았습니다" in _browser(assembly).get("/operations").text


# ---- who may


@pytest.mark.parametrize(("scope", "status"), [(None, 401), ("read", 403), ("write", 403)])
def test_nobody_without_the_scope_admin_sees_or_asks(assembly: Assembly, scope: str | None, status: int) -> None:
    client = _client(assembly, scope)
    for path in LOOKS:
        assert client.get(path).status_code == status, path
    for path in ASKS:
        assert client.post(path, json={}).status_code == status, path
    assert jobs.requests(assembly.database) == []
    assert not jobs.find(assembly.database, NEWS).paused


def test_without_keys_this_machine_alone_administers(assembly: Assembly) -> None:
    here, elsewhere = _client(assembly, keys=[]), _client(assembly, keys=[], peer="203.0.113.9")
    for path in [*LOOKS, "/operations"]:
        assert here.get(path).status_code == 200, path
        assert elsewhere.get(path).status_code == 403, path
    for path in ASKS:
        assert elsewhere.post(path, json={}).status_code == 403, path
        assert here.post(path, json={}).status_code == 202, path


def test_asking_is_audited_and_looking_is_not(assembly: Assembly, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(2):
        _fail(assembly.store, f"audited-{n}", "no reason")
    client = _client(assembly, "admin")
    for path in LOOKS:
        client.get(path)
    assert _audited(caplog) == []
    _client(assembly, "write").post(ASKS[0])
    client.post(ASKS[0])
    queued = client.post("/v1/admin/failed/retry", json={}).json()["queued"]
    refused, asked, retried = _audited(caplog)
    assert (refused["key"], refused["status"]) == ("who-may-write", 403)
    assert (asked["key"], asked["route"], asked["status"]) == ("who-may-admin", "/v1/admin/jobs/{name}/run", 202)
    assert ASKS[0] == f"/v1/admin/jobs/{asked['job']}/run"
    assert (retried["first_seq"], retried["last_seq"]) == (queued[0]["seq"], queued[1]["seq"])


# ---- the page


def test_the_page_asks_a_browser_for_a_key_that_may_administer(assembly: Assembly) -> None:
    passwords = ["", "key-of-nobody", "key-that-may-read", "key-that-may-write"]
    refused = [_client(assembly), _client(assembly, "admin"), *(_browser(assembly, one) for one in passwords)]
    for client in refused:
        answer = client.get("/operations")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
        assert "범위 admin" in answer.text
        assert NEWS not in answer.text
    answer = _browser(assembly).get("/operations")
    assert answer.status_code == 200
    assert NEWS in answer.text
    assert answer.headers["cache-control"] == "no-store"


def test_a_form_of_the_page_does_what_it_says_and_comes_back(assembly: Assembly) -> None:
    _fail(assembly.store, "by-form", "no reason")
    _fail(assembly.store, "not-yet", "no reason")
    client = _browser(assembly)
    fields = {"token": _token(client)}
    for name in (NEWS, BLOG):
        for action in ("run", "pause"):
            answer = client.post(f"/operations/jobs/{name}/{action}", data=fields)
            assert (answer.status_code, answer.headers["location"]) == (303, "/operations")
        assert jobs.find(assembly.database, name).paused
    assert set(jobs.requests(assembly.database)) == {NEWS, BLOG}
    client.post(f"/operations/jobs/{NEWS}/resume", data=fields)
    assert not jobs.find(assembly.database, NEWS).paused
    assert client.post("/operations/failed/retry", data=fields | {"id": "by-form"}).status_code == 303
    assert [assembly.store.state(one).status for one in ("by-form", "not-yet")] == ["queued", "failed"]
    assert client.post("/operations/failed/retry", data=fields).status_code == 303
    assert assembly.store.state("not-yet").status == "queued"


def test_a_form_of_another_page_does_nothing_though_the_browser_sends_the_key(
    assembly: Assembly, caplog: pytest.LogCaptureFixture
) -> None:
    _fail(assembly.store, "left-alone", "no reason")
    keys = [*KEYS, new_key("another", ["admin"])[1]]
    client = _browser(assembly, keys=keys)
    other_secret, other_entry = new_key("other", ["admin"])
    of_another_key = _token(_browser(assembly, other_secret, keys=[*keys, other_entry]))
    _audited(caplog)
    for path in FORMS:
        for token in ("", "x", "토큰", of_another_key):
            answer = client.post(path, data={"token": token})
            assert answer.status_code == 403
            assert "이 쪽의 단추로 보낸 것이 아니라서" in answer.text
    assert jobs.requests(assembly.database) == []
    assert not jobs.find(assembly.database, NEWS).paused
    assert assembly.store.state("left-alone").status == "failed"
    assert {(line["key"], line["status"]) for line in _audited(caplog)} == {("who-may-admin", 403)}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        (None, False),
        ("null", False),
        ("http://localhost:3000", False),
        ("http://127.0.0.1", False),
        ("http://[bad", False),
        ("https://evil.example.com", False),
    ],
)
def test_without_keys_a_form_is_taken_from_the_pages_own_origin_alone(
    assembly: Assembly, origin: str | None, allowed: bool
) -> None:
    client = _client(assembly, keys=[], headers={"Origin": origin} if origin is not None else {})
    for path in FORMS:
        assert client.post(path, data={"token": ""}).status_code == (303 if allowed else 403)
    assert (NEWS in jobs.requests(assembly.database)) is allowed
    forged = {"Authorization": f"Basic {_basic('a-password-that-the-other-page-chose')}"}
    known = _token(_browser(assembly, "a-password-that-the-other-page-chose", keys=[]))
    assert client.post(FORMS[0], data={"token": known}, headers=forged).status_code == (303 if allowed else 403)


def test_a_form_needs_the_key_with_every_call(assembly: Assembly) -> None:
    token = _token(_browser(assembly))
    for client in (_client(assembly), _browser(assembly, "key-that-may-write"), _browser(assembly, "키")):
        assert client.post(FORMS[0], data={"token": token}).status_code == 401
    assert jobs.requests(assembly.database) == []


def test_what_a_form_asks_in_vain_is_told_on_the_page(assembly: Assembly) -> None:
    client = _browser(assembly)
    token = _token(client)
    for path, fields, status, told in [
        ("jobs/source:gone/run", {}, 404, "그런 작업이 없습니다"),
        ("failed/retry", {"id": "a#b"}, 422, "하지 못했습니다"),
        ("failed/retry", {"id": "x" * 20_000}, 413, "하지 못했습니다"),
    ]:
        answer = client.post(f"/operations/{path}", data={"token": token, **fields})
        assert answer.status_code == status
        assert told in answer.text
        assert NEWS in answer.text


def test_an_error_of_others_stays_text_on_the_page(assembly: Assembly) -> None:
    _fail(assembly.store, "<b>id</b>", HOSTILE)
    jobs.started(assembly.database, NEWS)
    jobs.finished(assembly.database, NEWS, {"<i>": 1}, HOSTILE)
    text = _browser(assembly).get("/operations").text
    assert text.count("&lt;script&gt;document.title") == 2
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_the_page_shows_the_first_twenty_that_failed_and_how_many_there_are(assembly: Assembly) -> None:
    for n in range(22):
        _fail(assembly.store, f"many-{n:02}", "no reason")
    text = _browser(assembly).get("/operations").text
    assert "many-19" in text
    assert "many-20" not in text
    assert "22건" in text


@pytest.mark.parametrize(
    ("ahead", "told"), [(0, "방금"), (-59, "59초 전"), (-61, "1분 전"), (7300, "2시간 뒤"), (-200_000, "2일 전")]
)
def test_a_time_is_told_by_its_distance(assembly: Assembly, ahead: int, told: str) -> None:
    from api.routes.operations import _since  # noqa: PLC0415 - a part of the page that has no address of its own

    now = datetime.fromisoformat("2026-03-01T00:00:00+00:00")
    assert _since(now + timedelta(seconds=ahead), now) == told


def test_the_keys_of_the_running_service_are_in_no_answer(api_server: ApiServer) -> None:
    with api_server.client() as client:
        answers = [client.get(path).text for path in LOOKS]
        answers.append(client.get("/operations", auth=("anyone", KEY)).text)
    for text in answers:
        assert KEY not in text
        assert READ_KEY not in text
