"""How much may be written: a caller's rate, a full inbox, a bulk's size, and what a refusal leaves of a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from api.app import create_app
from api.errors import TooManyRequests
from api.limits import QueueGauge, WriteRate
from pipeline.assembly import Assembly
from pipeline.encoding.encoder import Encoder
from pipeline.errors import QueueFull
from pipeline.korean.morphemes import Analyser
from pipeline.storage.acceptance import PUSH
from tests.api_server import KEY, assembly_of, settings_in

OTHER_KEY = "key-of-another-writer"
KEYS = [{"key": KEY, "scopes": ["write"]}, {"key": OTHER_KEY, "scopes": ["write"]}]
ARTICLE = {"title": "t", "body": "b"}


# ---- a caller's rate


def test_a_caller_may_write_up_to_the_limit_and_another_is_not_touched_by_it() -> None:
    rate = WriteRate(3)
    assert [rate.take("one") for _ in range(5)] == [1, 1, 1, 0, 0]
    assert rate.take("two") == 1


def test_of_many_writes_those_within_the_limit_are_granted() -> None:
    rate = WriteRate(5)
    assert [rate.take("one", 3), rate.take("one", 3), rate.take("one", 3)] == [3, 2, 0]
    assert rate.take("one", 0) == 0


def test_a_limit_of_0_grants_everything() -> None:
    rate = WriteRate(0)
    assert rate.take("one", 10**9) == 10**9
    rate.check("one")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says: it goes on by hand."""
    said = [float(int(time.time()))]
    monkeypatch.setattr(time, "time", lambda: said[0])
    return said


def test_who_waits_as_told_may_write_again(now: list[float]) -> None:
    rate = WriteRate(2, seconds=1)
    assert rate.take("one", 2) == 2
    with pytest.raises(TooManyRequests, match="at most 2 articles") as caught:
        rate.check("one")
    assert caught.value.retry_after == 1
    now[0] += caught.value.retry_after + 0.001  # a clock does not stand still
    rate.check("one")


@pytest.mark.usefixtures("now")
def test_the_time_to_wait_is_whole_seconds_up_to_the_window() -> None:
    rate = WriteRate(1)
    rate.check("one")
    assert rate.refusal("one").retry_after == 60
    assert TooManyRequests(1, 60, -3.0).retry_after == 1
    assert TooManyRequests(1, 60, 2.1).retry_after == 3


def test_threads_together_get_no_more_than_the_limit() -> None:
    rate = WriteRate(100)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: rate.take("one", 7), range(50))) == 100


# ---- a full inbox


class _Inbox:
    """A length that can be set, how often it was asked for, and a clock."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked = 0
        self.now = 100.0

    def count(self) -> int:
        self.asked += 1
        return self.length

    def gauge(self, limit: int) -> QueueGauge:
        return QueueGauge(self.count, limit, lambda: self.now)


def test_the_inbox_is_counted_once_in_half_a_second() -> None:
    inbox = _Inbox(0)
    gauge = inbox.gauge(10)
    for _ in range(100):
        gauge.check()
    assert inbox.asked == 1
    inbox.now += 0.6
    gauge.check()
    assert inbox.asked == 2


def test_what_was_accepted_since_the_count_counts_too() -> None:
    inbox = _Inbox(8)
    gauge = inbox.gauge(10)
    gauge.check()
    gauge.add(1)
    gauge.check()
    gauge.add(1)
    with pytest.raises(QueueFull, match="10 changes wait"):
        gauge.check()
    assert inbox.asked == 1


def test_a_drained_inbox_takes_changes_again() -> None:
    inbox = _Inbox(10)
    gauge = inbox.gauge(10)
    with pytest.raises(QueueFull):
        gauge.check()
    inbox.length, inbox.now = 9, inbox.now + 0.6
    gauge.check()


def test_without_a_limit_nothing_is_counted() -> None:
    inbox = _Inbox(10**9)
    inbox.gauge(0).check()
    assert inbox.asked == 0


def test_a_count_that_fails_is_told_and_tried_again() -> None:
    answers: Iterator[OSError | int] = iter([OSError("away"), 0])

    def count() -> int:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    gauge = QueueGauge(count, 1)
    with pytest.raises(OSError, match="away"):
        gauge.check()
    gauge.check()


def test_many_callers_at_once_count_once() -> None:
    inbox = _Inbox(0)
    gauge = inbox.gauge(10**6)
    began = threading.Barrier(8)

    def ask(_: int) -> None:
        began.wait()
        gauge.check()
        gauge.add(1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert inbox.asked == 1


# ---- over HTTP, where nobody drains the inbox


@pytest.fixture
def assembly(tmp_path: Path, analyser: Analyser, encoder: Encoder) -> Iterator[Assembly]:
    opened = assembly_of(settings_in(tmp_path), analyser, encoder)
    yield opened
    opened.close()


def _client(assembly: Assembly, *, queue_limit: int = 0, keys: bool = True, **api: Any) -> TestClient:
    settings = settings_in(
        assembly.settings.data_dir,
        api={"keys": KEYS if keys else [], **api},
        indexers={"queue_limit": queue_limit},
    )
    headers = {"Authorization": f"Bearer {KEY}"} if keys else {}
    client = ("127.0.0.1", 40000)
    return TestClient(
        create_app(settings, assembly=assembly), client=client, base_url="http://localhost", headers=headers
    )


def _ndjson(count: int, prefix: str = "bulk") -> bytes:
    return b"\n".join(orjson.dumps({"id": f"{prefix}-{n}", **ARTICLE}) for n in range(count))


def _lines(answer: Response) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in answer.text.splitlines()]


def _refused(answer: Response, code: str) -> int:
    """The Retry-After of a whole call refused as `code`."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)
    return int(answer.headers["retry-after"])


def test_a_write_beyond_the_rate_is_429_and_a_search_is_not(assembly: Assembly) -> None:
    client = _client(assembly, writes_per_minute=2)
    assert client.put("/v1/articles/a", json=ARTICLE).status_code == 202
    assert client.delete("/v1/articles/a").status_code == 202
    for answer in (client.put("/v1/articles/b", json=ARTICLE), client.delete("/v1/articles/a")):
        assert 1 <= _refused(answer, "too_many_requests") <= 60
    assert client.get("/v1/articles/b").status_code == 404
    assert client.get("/v1/articles/a").status_code == 200
    other = {"Authorization": f"Bearer {OTHER_KEY}"}
    assert client.put("/v1/articles/b", json=ARTICLE, headers=other).status_code == 202


def test_without_keys_the_rate_is_that_of_the_address(assembly: Assembly) -> None:
    client = _client(assembly, keys=False, writes_per_minute=1)
    assert client.put("/v1/articles/a", json=ARTICLE).status_code == 202
    _refused(client.put("/v1/articles/a", json=ARTICLE), "too_many_requests")


def test_who_may_not_write_uses_up_nobodys_rate(assembly: Assembly) -> None:
    client = _client(assembly, writes_per_minute=1)
    for _ in range(3):
        assert client.put("/v1/articles/a", headers={"Authorization": "Bearer unknown-key"}).status_code == 401
    assert client.put("/v1/articles/a", json=ARTICLE).status_code == 202


def test_a_bulk_larger_than_the_rate_is_taken_up_to_it(assembly: Assembly) -> None:
    client = _client(assembly, writes_per_minute=250)
    answer = client.post("/v1/articles:bulk", content=b"{bad}\n" + _ndjson(300))
    lines = _lines(answer)
    assert (answer.status_code, len(lines)) == (200, 301)
    assert [line["line"] for line in lines if "seq" in line] == list(range(2, 252))
    assert {line["error"]["code"] for line in lines[251:]} == {"too_many_requests"}
    assert [line["id"] for line in lines[251:]] == [f"bulk-{n}" for n in range(250, 300)]
    assert assembly.store.queue_length() == 250
    _refused(client.post("/v1/articles:bulk", content=_ndjson(1)), "too_many_requests")
    _refused(client.put("/v1/articles/a", json=ARTICLE), "too_many_requests")


def test_a_full_inbox_takes_no_single_change(assembly: Assembly) -> None:
    client = _client(assembly, queue_limit=2)
    for name in ("a", "b"):
        assert client.put(f"/v1/articles/{name}", json=ARTICLE).status_code == 202
    for answer in (client.put("/v1/articles/c", json=ARTICLE), client.delete("/v1/articles/a")):
        assert _refused(answer, "queue_full") == 5
    assert client.get("/v1/articles/c").status_code == 404
    assert client.get("/v1/articles/a").json()["status"] == "queued"
    assert assembly.store.queue_length() == 2


def test_a_bulk_load_that_fills_the_inbox_stops_no_push_and_no_withdrawal(assembly: Assembly) -> None:
    client = _client(assembly, queue_limit=2)
    assert client.post("/v1/articles:bulk", content=_ndjson(10)).status_code == 200
    assert _refused(client.post("/v1/articles:bulk", content=_ndjson(1)), "queue_full") == 5
    assert client.put("/v1/articles/a", json=ARTICLE).status_code == 202
    assert client.delete("/v1/articles/bulk-3").status_code == 202
    assert assembly.store.queue_length(PUSH) == 2
    assert [change.article_id for change in assembly.store.queued(3)] == ["a", "bulk-3", "bulk-0"]
    assert _refused(client.put("/v1/articles/b", json=ARTICLE), "queue_full") == 5


def test_a_change_that_changes_nothing_does_not_fill_the_inbox(assembly: Assembly) -> None:
    client = _client(assembly, queue_limit=2)
    for _ in range(5):
        assert client.put("/v1/articles/a", json=ARTICLE).status_code == 202
    assert client.put("/v1/articles/b", json=ARTICLE).status_code == 202


def test_a_bulk_into_an_inbox_that_fills_up_is_taken_by_batches_until_then(assembly: Assembly) -> None:
    answer = _client(assembly, queue_limit=300).post("/v1/articles:bulk", content=_ndjson(450))
    lines = _lines(answer)
    assert answer.status_code == 200
    assert [line["line"] for line in lines] == list(range(1, 451))
    assert all("seq" in line for line in lines[:400])
    assert [(line["id"], line["error"]["code"]) for line in lines[400:]] == [
        (f"bulk-{n}", "queue_full") for n in range(400, 450)
    ]
    assert assembly.store.queue_length() == 400


def test_a_bulk_into_a_full_inbox_is_429_and_uses_up_no_rate(assembly: Assembly) -> None:
    client = _client(assembly, queue_limit=1, writes_per_minute=11)
    assert client.put("/v1/articles/a", json=ARTICLE).status_code == 202
    assert _refused(client.post("/v1/articles:bulk", content=b"{bad}\n" + _ndjson(10)), "queue_full") == 5
    assert assembly.store.queue_length() == 1
    roomy = _client(assembly, queue_limit=0, writes_per_minute=11)
    assert roomy.post("/v1/articles:bulk", content=_ndjson(10)).status_code == 200


def test_a_bulk_without_a_good_line_is_refused_by_no_limit(assembly: Assembly) -> None:
    client = _client(assembly, queue_limit=1, writes_per_minute=1)
    assert client.put("/v1/articles/a", json=ARTICLE).status_code == 202
    answer = client.post("/v1/articles:bulk", content=b"{bad}\n{}\n")
    assert answer.status_code == 200
    assert ["error" in line for line in _lines(answer)] == [True, True]
    assert client.post("/v1/articles:bulk", content=b"").status_code == 200


def test_a_bulk_that_announces_too_much_is_413_and_nothing_is_taken(assembly: Assembly) -> None:
    client = _client(assembly, max_bulk_bytes=1000)
    answer = client.post("/v1/articles:bulk", content=_ndjson(100))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert assembly.store.queue_length() == 0


def test_a_bulk_that_grows_too_large_keeps_what_was_taken_and_says_where_it_ended(assembly: Assembly) -> None:
    content = _ndjson(300) + b"\n"
    client = _client(assembly, max_bulk_bytes=len(content))
    lines = _lines(client.post("/v1/articles:bulk", content=iter([content, _ndjson(1, "beyond")])))
    assert [line["line"] for line in lines] == list(range(1, 302))
    assert all("seq" in line for line in lines[:300])
    assert lines[300]["error"]["code"] == "too_large"
    assert assembly.store.queue_length() == 300


def test_a_bulk_whose_first_line_is_too_large_for_it_is_413(assembly: Assembly) -> None:
    client = _client(assembly, max_bulk_bytes=10)
    answer = client.post("/v1/articles:bulk", content=iter([_ndjson(1)]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_an_answer_too_long_for_memory_comes_whole(assembly: Assembly) -> None:
    count = 30_000
    answer = _client(assembly).post("/v1/articles:bulk", content=b"7\n" * count)
    assert int(answer.headers["content-length"]) == len(answer.content) > 4_000_000
    assert [line["line"] for line in _lines(answer)] == list(range(1, count + 1))
