"""`POST /v1/embeddings` of a SentenceTransformer under load, through HTTP: together, refused in a crowd, nothing for who left."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import orjson
import pytest

from api.schemas import MAX_TEXTS
from pipeline.encoding.line import Line, LinedEncoder
from pipeline.encoding.sentence import SentenceEncoder
from pipeline.korean.morphemes import Analyser
from tests.api_server import ApiServer, running, settings_in
from tests.faults import until
from tests.sentence_models import TEXTS, save_tiny_bert
from tests.test_line import Gate

_PATIENCE = 60.0  # seconds; only a test that fails waits for so long
_WAITING = 2


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentenceEncoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceEncoder, "workers", 1)  # one batch after the other
        tiny = str(save_tiny_bert(tmp_path_factory.mktemp("tiny")))
        yield SentenceEncoder.open(tiny, device="cpu", query_prompt="q: ", passage_prompt="")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, analyser: Analyser, encoder: SentenceEncoder
) -> Iterator[ApiServer]:
    settings = settings_in(tmp_path_factory.mktemp("service"), indexers={"poll_seconds": 0.2, "canary_seconds": 0})
    with running(settings, analyser, LinedEncoder(Line(encoder, waiting=_WAITING))) as served:
        yield served


@pytest.fixture
def client(server: ApiServer) -> Iterator[httpx2.Client]:
    with server.client(key=None) as client:
        yield client


@pytest.fixture
def gate(encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setattr(encoder, "rows", encoder.rows)  # put back afterwards
    gate = Gate(encoder)
    yield gate
    gate.open.set()


def _posted(client: httpx2.Client, given: str | Sequence[str]) -> httpx2.Response:
    return client.post("/v1/embeddings", json={"input": given})


def _waiting(server: ApiServer) -> int:
    encoder = server.assembly.parts.encoder
    assert isinstance(encoder, LinedEncoder)
    return encoder._line.batcher.waiting


def test_vectors_and_counts_are_the_encoders_own(client: httpx2.Client, encoder: SentenceEncoder) -> None:
    texts = [*TEXTS, " ", TEXTS[0] * 900]  # the last makes it long: tokenised beside the event loop
    for kind, encode in (("query", encoder.encode_queries), ("passage", encoder.encode_passages)):
        answer = client.post("/v1/embeddings", json={"input": texts, "input_type": kind, "encoding_format": "base64"})
        rows = [np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in answer.json()["data"]]
        np.testing.assert_allclose(rows, encode(texts), atol=1e-5)
        assert answer.json()["usage"]["total_tokens"] == sum(encoder.count_tokens(texts))
    assert not any(_posted(client, "").json()["data"][0]["embedding"])
    assert _posted(client, ["x"] * MAX_TEXTS).status_code == 200


def test_those_who_come_together_are_encoded_together_and_a_crowd_is_refused(
    server: ApiServer, client: httpx2.Client, gate: Gate
) -> None:
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(_posted, client, "첫째")
        assert gate.begun.acquire(timeout=_PATIENCE)
        others = [pool.submit(_posted, client, text) for text in ("둘", "셋")]
        until(lambda: _waiting(server) == 2, _PATIENCE, "two should wait")
        for given in ("넷", ["넷", "다섯"]):
            refused = _posted(client, given)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
        gate.open.set()
        assert [one.result(_PATIENCE).status_code for one in (first, *others)] == [200] * 3
    assert [sorted(batch) for batch in gate.batches] == [["첫째"], ["둘", "셋"]]
    text = client.get("/metrics").text
    assert 'yeoul_encoder_wait_seconds_count{urgency="embedding"}' in text
    assert 'yeoul_encoder_batch_size_bucket{le="2.0",urgency="embedding"}' in text
    assert 'yeoul_encoder_batch_seconds_count{urgency="embedding"}' in text


def test_for_who_goes_away_while_he_waits_nothing_is_encoded(
    server: ApiServer, client: httpx2.Client, gate: Gate
) -> None:
    body = orjson.dumps({"input": ["떠난", "사람"]})
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_posted, client, "첫째")
        assert gate.begun.acquire(timeout=_PATIENCE)
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: _waiting(server) == 2, _PATIENCE, "his texts should wait")
        ended = 'yeoul_http_request_seconds_count{method="POST",route="/v1/embeddings",status="499"} 1.0'
        until(lambda: ended in client.get("/metrics").text, _PATIENCE, "nobody noticed that he went away")
        last = pool.submit(_posted, client, "끝")
        gate.open.set()
        assert first.result(_PATIENCE).status_code == 200
        assert last.result(_PATIENCE).status_code == 200
    assert gate.batches == [["첫째"], ["끝"]]
