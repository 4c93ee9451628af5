"""`POST /v1/embeddings`: the running encoder's own vectors, in OpenAI's shape."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from api.schemas import MAX_TEXT_CHARS, MAX_TEXTS
from tests.api_server import ApiServer

TEXTS = ["전세대출 금리", "보이스피싱 신고 방법", "!!!"]


@pytest.fixture(scope="module")
def client(api_server: ApiServer) -> Iterator[httpx2.Client]:
    with api_server.client(key=None) as client:
        yield client


def _embedded(client: httpx2.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_embeddings_are_the_encoders_own(api_server: ApiServer, client: httpx2.Client) -> None:
    encoder = api_server.assembly.parts.encoder
    for kind, encode in (("query", encoder.encode_queries), ("passage", encoder.encode_passages)):
        content = _embedded(client, input=TEXTS, input_type=kind, model="anything")
        vectors = np.array([entry["embedding"] for entry in content["data"]], dtype=np.float32)
        np.testing.assert_allclose(vectors, encode(TEXTS), atol=1e-7)
        assert [entry["index"] for entry in content["data"]] == [0, 1, 2]
        assert content["model"] == encoder.id
        assert content["usage"]["total_tokens"] == sum(encoder.count_tokens(TEXTS))


def test_base64_is_the_same_vectors_as_little_endian_float32(client: httpx2.Client) -> None:
    plain = _embedded(client, input=TEXTS[0])["data"][0]["embedding"]
    packed = _embedded(client, input=TEXTS[0], encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), dtype="<f4"), plain, atol=1e-7)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": [1, 2]},
        {"input": {"text": "x"}},
        {"input": ["x"] * (MAX_TEXTS + 1)},
        {"input": "x", "encoding_format": "hex"},
        {"input": "x", "input_type": "document"},
        {"input": "x", "dimensions": 7},
        {"input": "x", "model": 3},
    ],
    ids=lambda body: str(body)[:40],
)
def test_a_bad_field_is_422_and_named(client: httpx2.Client, body: dict[str, Any]) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 422
    assert repr(list(body)[-1] if body else "input") in answer.json()["error"]["message"]


def test_too_much_text_is_413(client: httpx2.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["가" * MAX_TEXT_CHARS, "가"]})
    assert answer.status_code == 413


def test_what_is_no_json_is_400(client: httpx2.Client) -> None:
    assert client.post("/v1/embeddings", content=b"input=x").status_code == 400
