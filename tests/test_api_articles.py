"""`/v1/articles` over HTTP: publishing, replacing, taking back, in bulk, and every way to be refused."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import orjson
import pytest

from pipeline.documents import MAX_BODY_BYTES
from tests.api_server import KEY, ApiServer
from tests.faults import until

FULL = {
    "title": "모든 칸을 채운 글",
    "body": "# 머리\n\n본문입니다.",
    "format": "markdown",
    "url": "https://example.com/full",
    "category": "시험",
    "series": "연재",
    "tags": ["하나", "둘"],
    "source": "편집부",
    "published_at": "2026-03-02T00:00:00+00:00",
    "quality": 0.5,
    "visible": True,
}


@pytest.fixture(scope="module")
def client(api_server: ApiServer) -> Iterator[httpx2.Client]:
    with api_server.client() as client:
        yield client


def _found(client: httpx2.Client, q: str) -> list[str]:
    items = client.get("/v1/search", params={"q": q, "mode": "lexical", "limit": 100}).json()["items"]
    return [item["article_id"] for item in items if item["score"] > 0]


def test_put_answers_202_with_the_number_of_the_change(client: httpx2.Client) -> None:
    answer = client.put("/v1/articles/put-202", json={"title": "글", "body": "본문"})
    assert answer.status_code == 202
    assert set(answer.json()) == {"id", "revision", "seq", "status"}
    assert answer.json()["revision"] is None
    assert answer.json()["status"] == "queued"


def test_put_with_wait_answers_once_it_is_found(client: httpx2.Client) -> None:
    answer = client.put("/v1/articles/put-wait?wait=true", json={"title": "두루미", "body": "두루미가 날아간다"})
    assert answer.status_code == 200
    assert answer.json()["status"] == "indexed"
    assert answer.json()["revision"] == answer.json()["seq"]
    assert "put-wait" in _found(client, "두루미")


def test_a_replaced_article_is_found_by_its_new_text_alone(client: httpx2.Client) -> None:
    client.put("/v1/articles/replaced?wait=true", json={"title": "글", "body": "해오라기가 섰다"})
    client.put("/v1/articles/replaced?wait=true", json={"title": "글", "body": "왜가리가 섰다"})
    assert "replaced" in _found(client, "왜가리")
    assert "replaced" not in _found(client, "해오라기")


def test_get_gives_back_what_was_put(client: httpx2.Client) -> None:
    accepted = client.put("/v1/articles/full?wait=true", json=FULL).json()
    state = client.get("/v1/articles/full").json()
    assert {name: state[name] for name in FULL} == FULL
    assert state["id"] == "full"
    assert (state["status"], state["error"], state["passages"]) == ("indexed", None, 1)
    assert state["seq"] == state["revision"] == accepted["seq"]
    assert state["accepted_at"] <= state["indexed_at"]


def test_unchanged_content_is_the_change_that_is_known(client: httpx2.Client) -> None:
    first = client.put("/v1/articles/same?wait=true", json=FULL).json()
    again = client.put("/v1/articles/same", json=FULL)
    assert again.status_code == 202
    assert again.json() == first
    assert client.put("/v1/articles/same?wait=true", json=FULL).status_code == 200


def test_a_deleted_article_is_gone_from_results_and_told_as_deleted(client: httpx2.Client) -> None:
    client.put("/v1/articles/gone?wait=true", json={"title": "따오기", "body": "따오기가 운다"})
    answer = client.delete("/v1/articles/gone?wait=true")
    assert answer.status_code == 200
    assert answer.json()["status"] == "deleted"
    assert "gone" not in _found(client, "따오기")
    state = client.get("/v1/articles/gone")
    assert state.status_code == 200
    assert (state.json()["status"], state.json()["body"], state.json()["revision"]) == ("deleted", None, None)


def test_delete_without_wait_is_202(client: httpx2.Client) -> None:
    client.put("/v1/articles/gone-soon", json={"title": "글", "body": "본문"})
    assert client.delete("/v1/articles/gone-soon").status_code == 202


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_article_is_404(client: httpx2.Client, method: str) -> None:
    answer = client.request(method, "/v1/articles/never-published")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "article_not_found"


def test_an_older_revision_is_409_and_the_newer_stays(client: httpx2.Client) -> None:
    newer = {"title": "새것", "body": "본문", "updated_at": "2026-02-02T00:00:00+09:00"}
    assert client.put("/v1/articles/dated", json=newer).status_code == 202
    answer = client.put(
        "/v1/articles/dated", json={**newer, "title": "옛것", "updated_at": "2026-01-01T00:00:00+09:00"}
    )
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "older_revision"
    assert client.get("/v1/articles/dated").json()["title"] == "새것"


@pytest.mark.parametrize(
    ("address", "article_id"),
    [
        ("%ED%95%9C%EA%B8%80%20%EC%9D%B4%EB%A6%84", "한글 이름"),
        ("%E1%84%92%E1%85%A1%E1%86%AB", "한"),
        ("%D0%96%F0%9F%98%80%E6%BC%A2", "Ж😀漢"),
        ("it's%22quoted%22", 'it\'s"quoted"'),
        ("a%3Fb%26c%25d", "a?b&c%d"),
        ("x:bulk", "x:bulk"),
        ("..%2e", "..."),
    ],
)
def test_ids_of_any_script_come_percent_encoded(api_server: ApiServer, address: str, article_id: str) -> None:
    status, body = _raw(
        api_server, "PUT", f"/v1/articles/{address}", json.dumps({"title": "글", "body": "본문"}).encode()
    )
    assert (status, body["id"]) == (202, article_id)
    status, body = _raw(api_server, "GET", f"/v1/articles/{address}")
    assert (status, body["id"]) == (200, article_id)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("a%2Fb", 422),
        ("a/b", 422),
        ("a%23b", 422),
        ("a%00b", 422),
        ("a%07b", 422),
        ("%20", 422),
        ("", 422),
        ("%EC%9D%B4" * 201, 422),
        ("%FF", 400),
        ("%ED%A0%80", 400),
    ],
)
def test_ids_that_break_the_rule_are_refused_with_the_reason(api_server: ApiServer, address: str, status: int) -> None:
    for method in ("PUT", "GET", "DELETE"):
        seen, body = _raw(api_server, method, f"/v1/articles/{address}", b'{"title": "t", "body": "b"}')
        assert seen == status
        assert "id" in body["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b"[]", 400, "malformed"),
        (b'"text"', 400, "malformed"),
        (b'{"title": NaN, "body": "x"}', 400, "malformed"),
        (b'{"title": "\\ud800", "body": "x"}', 400, "malformed"),
        ("{'title': '글'}".encode("cp949"), 400, "malformed"),
        (b"[" * 100_000, 400, "malformed"),
        (b"{}", 422, "invalid_article"),
        (b'{"title": "", "body": " \\n"}', 422, "invalid_article"),
        (b'{"title": 3, "body": "x"}', 422, "invalid_article"),
        (b'{"title": "t", "body": null}', 422, "invalid_article"),
        (b'{"title": "t", "body": "b", "format": "pdf"}', 422, "invalid_article"),
        (b'{"title": "t", "body": "b", "tags": "one"}', 422, "invalid_article"),
        (b'{"title": "t", "body": "b", "quality": 1.5}', 422, "invalid_article"),
        (b'{"title": "t", "body": "b", "published_at": "2026-03-02"}', 422, "invalid_article"),
        (b'{"title": "t", "body": "b", "unknown": 1}', 422, "invalid_article"),
        (b'{"id": "other", "title": "t", "body": "b"}', 422, "invalid_article"),
        (b'{"id": 7, "title": "t", "body": "b"}', 422, "invalid_article"),
    ],
)
def test_a_bad_body_is_refused_and_nothing_is_accepted(
    client: httpx2.Client, body: bytes, status: int, code: str
) -> None:
    answer = client.put("/v1/articles/bad-body", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert client.get("/v1/articles/bad-body").status_code == 404


def test_an_id_in_the_body_may_be_the_same_in_another_form(client: httpx2.Client) -> None:
    decomposed = "\u1112\u1161\u11ab-nfd"
    answer = client.put("/v1/articles/한-nfd", json={"id": decomposed, "title": "글", "body": "본문"})
    assert answer.status_code == 202


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "utf-8"])
def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_413(client: httpx2.Client, escaped: bool) -> None:
    largest = "\n".join(["가나다라 마바사"] * (MAX_BODY_BYTES // 23))
    largest += "x" * (MAX_BODY_BYTES - len(largest.encode()))
    for body, status in ((largest, 202), (largest + "x", 413)):
        content = json.dumps({"title": "큰 글", "body": body, "visible": False}, ensure_ascii=escaped).encode()
        assert client.put("/v1/articles/large", content=content).status_code == status


def test_a_request_that_is_too_large_is_413_announced_or_not(client: httpx2.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 1_000_000

    for content in (b"x" * 20_000_000, chunks()):
        answer = client.put("/v1/articles/too-large", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_large"


def test_an_endless_announcement_is_refused_before_it_is_sent(api_server: ApiServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api_server.port, timeout=60)
    connection.putrequest("PUT", "/v1/articles/endless")
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_hidden_article_is_shown_to_writers_alone(api_server: ApiServer, client: httpx2.Client) -> None:
    article = {"title": "비공개", "body": "아직 알리지 않은 노랑부리저어새", "visible": False}
    assert client.put("/v1/articles/hidden?wait=true", json=article).status_code == 200
    assert client.get("/v1/articles/hidden").json()["body"] == article["body"]
    with api_server.client(key=None) as stranger:
        assert stranger.get("/v1/articles/hidden").status_code == 404
        assert "hidden" not in _found(stranger, "노랑부리저어새")


def test_bulk_answers_a_line_a_line_and_a_bad_one_fails_alone(client: httpx2.Client) -> None:
    good = [{"id": f"bulk-{n}", "title": f"글 {n}", "body": "저어새"} for n in range(450)]
    bad = [b"{broken", b'{"id": "", "title": "t", "body": "b"}', b'{"title": "no id", "body": "b"}', b"\xff\xfe", b"7"]
    lines = [orjson.dumps(article) for article in good]
    lines[100:100] = bad
    answer = client.post("/v1/articles:bulk", content=b"\n".join(lines) + b"\n\n")
    assert answer.status_code == 200
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [result["line"] for result in results] == list(range(1, len(lines) + 1))
    assert [n for n, result in enumerate(results) if "error" in result] == [100, 101, 102, 103, 104]
    assert [r["id"] for r in results if "seq" in r] == [article["id"] for article in good]
    assert _indexed(client, results[-1]["seq"]) == 15


def test_bulk_refuses_an_older_revision_alone(client: httpx2.Client) -> None:
    newer = {"id": "bulk-dated", "title": "새것", "body": "본문", "updated_at": "2026-02-02T00:00:00Z"}
    older = {**newer, "title": "옛것", "updated_at": "2026-01-01T00:00:00Z"}
    answer = client.post("/v1/articles:bulk", content=b"\n".join(map(orjson.dumps, [newer, older])))
    first, second = map(json.loads, answer.text.splitlines())
    assert first["status"] == "queued"
    assert (second["id"], second["error"]["code"]) == ("bulk-dated", "older_revision")


def _indexed(client: httpx2.Client, seq: int) -> int:
    """How many of every thirtieth of the bulk's articles are indexed once `seq` is applied."""
    answer = client.get("/v1/search", params={"q": "저어새", "mode": "lexical", "min_seq": seq, "limit": 1})
    state = client.get("/v1/articles/bulk-449").json()["status"]
    assert (answer.status_code, state) == (200, "indexed")
    return sum(client.get(f"/v1/articles/bulk-{n}").json()["status"] == "indexed" for n in range(0, 450, 30))


def _raw(api_server: ApiServer, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """A request whose address is sent as it is written here."""
    connection = http.client.HTTPConnection("127.0.0.1", api_server.port, timeout=60)
    connection.request(method, path, body=body, headers={"Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


def test_a_client_that_goes_away_is_no_error_and_leaves_nothing(
    api_server: ApiServer, client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api_server.port, timeout=60)
    connection.putrequest("PUT", "/v1/articles/half")
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b'{"title": "t", ')

    def audited() -> list[str]:
        return [text for text in caplog.messages if '"article_id":"half"' in text]

    with caplog.at_level("INFO", logger="api.errors"):
        connection.close()
        until(audited, 60, "the call is not told of to its end")
    assert [record.levelname for record in caplog.records if record.name != "yeoul.audit"] == ["INFO"]
    assert ['"status":499' in line for line in audited()] == [True]
    assert client.get("/v1/articles/half").status_code == 404
