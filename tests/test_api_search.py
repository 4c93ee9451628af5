"""`GET /v1/search` over HTTP: the contract's shape, its parameters, and what is refused."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import hypothesis
import pytest
from hypothesis import strategies as st
from starlette.requests import Request

from api.routes.search import parameters
from tests.api_server import ApiServer


@pytest.fixture(scope="module")
def client(api_server: ApiServer) -> Iterator[httpx2.Client]:
    api_server.settle()
    with api_server.client(key=None) as client:
        yield client


def _search(client: httpx2.Client, **parameters: Any) -> dict[str, Any]:
    answer = client.get("/v1/search", params={"q": "보이스피싱 신고", **parameters})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_search_answers_without_a_key_in_the_contracts_shape(client: httpx2.Client) -> None:
    result = _search(client, explain=True)
    assert set(result) >= {
        "query",
        "understood",
        "took_ms",
        "seq",
        "degraded",
        "services",
        "total",
        "next_cursor",
        "items",
    }
    assert result["services"] == []
    assert result["understood"]["corrections"] == []
    assert result["degraded"] == []
    assert result["items"][0]["article_id"] == "phishing"


def test_explained_parts_add_up_to_the_score(client: httpx2.Client) -> None:
    for item in _search(client, explain=True, limit=100)["items"]:
        why = item["explain"]
        total = why["alpha"] * why["dense_normalised"] + (1 - why["alpha"]) * why["lexical_normalised"]
        for factor in why["boosts"].values():
            total *= factor
        assert item["score"] == pytest.approx(total, abs=1e-5)


def test_hits_are_explained_only_when_asked(client: httpx2.Client) -> None:
    assert "explain" not in _search(client)["items"][0]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_pages_of_any_size_join_to_the_one_shot_list(client: httpx2.Client, size: int) -> None:
    parameters = {"q": "적금 금리", "category": "적금"}
    whole = [item["article_id"] for item in _search(client, **parameters, limit=100)["items"]]
    paged: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = _search(client, **parameters, limit=size, **cursor)
        assert page["total"] == len(whole)
        paged += [item["article_id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert paged == whole


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"category": "안전"}, {"phishing"}),
        ({"tag": "신고"}, {"phishing"}),
        ({"since": "2026-05-20T00:00:00Z"}, {"phishing"}),
        ({"since": "2026-05-20T09:00:00+09:00", "until": "2026-05-21T00:00:00+09:00"}, {"phishing"}),
        ({"since": "2026-05-20T09:00:01+09:00"}, set()),
        ({"series": "없음"}, set()),
        ({"category": '안전" or category != "'}, set()),
        ({"category": "%"}, set()),
    ],
)
def test_filters_are_conditions_on_data(client: httpx2.Client, given: dict[str, str], expected: set[str]) -> None:
    assert {item["article_id"] for item in _search(client, **given, limit=100)["items"]} == expected


_STANDING = [*"&=+%;?/'", "q=", "limit=", "%EC%97%B0", "%ED%A0%80", "%00", "%zz"]


@hypothesis.given(
    st.lists(st.sampled_from(_STANDING) | st.characters(min_codepoint=0x24, max_codepoint=0x7E), max_size=30)
)
def test_parameters_are_what_starlette_reads(parts: list[str]) -> None:
    request = Request({"type": "http", "headers": [], "query_string": "".join(parts).encode()})
    assert parameters(request) == dict(request.query_params)


def test_series_and_source_are_conditions_too(api_server: ApiServer, client: httpx2.Client) -> None:
    article = {"title": "가마우지", "body": "가마우지가 잠수한다", "series": "바닷새", "source": "바다부"}
    with api_server.client() as writer:
        writer.put("/v1/articles/cormorant?wait=true", json=article)
    for given in ({"series": "바닷새"}, {"source": "바다부"}, {"series": "바닷새", "source": "바다부"}):
        assert {item["article_id"] for item in _search(client, q="가마우지", **given)["items"]} == {"cormorant"}
    for given in ({"series": "바다부"}, {"source": "바닷새"}, {"series": "바닷새", "source": "독자"}):
        assert _search(client, q="가마우지", **given)["items"] == []


def test_an_area_leaves_the_articles_as_they_are(client: httpx2.Client) -> None:
    assert _search(client, area="RECO")["items"] == _search(client)["items"]


def test_min_seq_sees_the_change_without_waiting_for_the_write(api_server: ApiServer) -> None:
    with api_server.client() as client:
        for n in range(5):
            word = f"물수제비{n}호"
            accepted = client.put("/v1/articles/min-seq", json={"title": word, "body": f"{word} 던지기"}).json()
            found = _search(client, q=word, min_seq=accepted["seq"], limit=1)
            assert found["items"][0]["title"] == word
            assert found["seq"] >= accepted["seq"]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"q": ""},
        {"q": " \u200b\x00 "},
        {"q": "가" * 501},
        {"q": "x" * 10_000},
        {"q": "x", "limit": "0"},
        {"q": "x", "limit": "-1"},
        {"q": "x", "limit": "101"},
        {"q": "x", "limit": "100000"},
        {"q": "x", "limit": "9" * 400},
        {"q": "x", "limit": "ten"},
        {"q": "x", "mode": "nonsense"},
        {"q": "x", "cursor": "zzz"},
        {"q": "x", "cursor": "\ud7a3"},
        {"q": "x", "cursor": "WzEsMiwzXQ"},
        {"q": "x", "since": "2026-01-01"},
        {"q": "x", "since": "2026-01-01T00:00:00"},
        {"q": "x", "until": "0001-01-01T00:00:00+23:59"},
        {"q": "x", "min_seq": "-1"},
        {"q": "x", "min_seq": "2147483647"},
        {"q": "x", "min_seq": "9" * 30},
        {"q": "x", "explain": "perhaps"},
        {"q": "x", "category": "x" * 501},
    ],
    ids=lambda parameters: ",".join(f"{k}={v[:12]!r}" for k, v in parameters.items()) or "none",
)
def test_a_bad_parameter_is_422_and_named(client: httpx2.Client, parameters: dict[str, str]) -> None:
    answer = client.get("/v1/search", params=parameters)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert repr(list(parameters)[-1] if parameters else "q") in error["message"]
    assert error["hint"]


@pytest.mark.parametrize("q", ["은는이가", "!!!", "ㅅㄱ", "😀" * 50, "a'\"<>&", "%ED%A0%80", "a\r\nb"])
def test_odd_questions_are_answered(client: httpx2.Client, q: str) -> None:
    result = _search(client, q=q)
    assert result["query"] == q
    assert result["total"] >= len(result["items"]) >= 0


def test_lone_surrogates_in_an_address_are_no_500(api_server: ApiServer) -> None:
    with urllib.request.urlopen(f"{api_server.url}/v1/search?q=%ED%A0%80x") as answer:
        assert answer.status == 200


def test_an_address_beyond_what_http_takes_is_refused(api_server: ApiServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{api_server.url}/v1/search?q={quote('가' * 10_000)}")
    assert refused.value.code == 400
    refused.value.close()


def test_a_cursor_belongs_to_its_question(client: httpx2.Client) -> None:
    cursor = _search(client, q="적금", limit=1)["next_cursor"]
    assert client.get("/v1/search", params={"q": "대출", "cursor": cursor}).status_code == 422
    assert client.get("/v1/search", params={"q": "적금", "mode": "lexical", "cursor": cursor}).status_code == 422
    assert client.get("/v1/search", params={"q": "적금", "limit": 100, "cursor": cursor}).status_code == 200
