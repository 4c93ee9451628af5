"""The processes of a production installation together: PostgreSQL, a Milvus server, two that answer and one that writes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from indexers.benchmarks.deployment import Deployment, deployed
from tests.benchmarks.kills import command
from tests.faults import until

_PATIENCE = 180.0
_PAUSE = 0.6  # seconds between two pushes
_PUSHED = 50  # articles, again and again: a search gives no more than a hundred
_WORD = "두루미"
_JOB = "/v1/admin/jobs/source:news/run"

Processes = tuple[httpx2.Client, httpx2.Client]

pytestmark = [pytest.mark.server, pytest.mark.postgres, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, stores_of_processes: Mapping[str, Any]
) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("pair"), servers=2, **stores_of_processes) as running:
        yield running


@pytest.fixture(scope="module")
def processes(deployment: Deployment) -> Iterator[Processes]:
    with ExitStack() as opened:
        clients = [
            opened.enter_context(httpx2.Client(base_url=server.url, headers=deployment.headers, timeout=_PATIENCE))
            for server in deployment.servers
        ]
        yield clients[0], clients[1]


def found(client: httpx2.Client, word: str = _WORD, **asked: int) -> list[str]:
    answer = client.get("/v1/search", params={"q": word, "mode": "lexical", "limit": 100, **asked})
    assert answer.status_code == 200, answer.text
    assert answer.json()["degraded"] == []
    return sorted(item["article_id"] for item in answer.json()["items"])


def shows(client: httpx2.Client, seq: int) -> bool:
    """Whether the process shows the change `seq` before the end of its own patience."""
    return client.get("/v1/search", params={"q": _WORD, "limit": 1, "min_seq": seq}).status_code == 200


def written(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    os.utime(
        path, (time.time() - 5,) * 2
    )  # what was written within two seconds may not be whole: nothing is removed for it


def carried_out(deployment: Deployment, *arguments: str) -> str:
    process = command(deployment, *arguments)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, f"{arguments}: {out} {err}"
    return str(out)


@contextmanager
def pushing(*clients: httpx2.Client) -> Iterator[list[tuple[str, int]]]:
    """Publishes the same few articles anew, in turn at each of `clients`; gives the ids and numbers of the changes so far."""
    pushed: list[tuple[str, int]] = []
    ended = threading.Event()

    def push() -> None:
        while not ended.wait(_PAUSE):
            name = f"push-{len(pushed) % _PUSHED}"
            body = {"title": _WORD, "body": f"두루미 소식 {len(pushed)}"}
            answer = clients[len(pushed) % len(clients)].put(f"/v1/articles/{name}", json=body)
            assert answer.status_code == 202
            pushed.append((name, answer.json()["seq"]))

    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(push)
        try:
            until(lambda: pushed or under_way.done(), _PATIENCE, "nothing is pushed")
            yield pushed
        finally:
            ended.set()
    under_way.result()


def test_what_one_process_accepts_the_other_shows_and_shows_no_more(processes: Processes) -> None:
    one, other = processes
    body = {"title": _WORD, "body": "두루미가 강가에 내렸다."}
    for first, second in ((one, other), (other, one)):
        put = first.put("/v1/articles/pushed?wait=true", json=body)
        assert put.status_code == 200
        assert found(second, min_seq=put.json()["seq"]) == found(first) == ["pushed"]
        gone = second.delete("/v1/articles/pushed?wait=true")
        assert gone.status_code == 200
        assert found(first, min_seq=gone.json()["seq"]) == found(second) == []


def test_order_identity_and_bad_lines_are_told_as_they_are_with_one_process(
    deployment: Deployment, processes: Processes
) -> None:
    one, other = processes
    body = {"title": _WORD, "body": "느시가 들판을 걷는다.", "updated_at": "2026-01-02T00:00:00Z"}
    put = one.put("/v1/articles/walked?wait=true", json=body)
    again = other.put("/v1/articles/walked?wait=true", json=body)
    assert (again.status_code, again.json()["seq"]) == (200, put.json()["seq"])
    older = other.put("/v1/articles/walked", json=body | {"updated_at": "2026-01-01T00:00:00Z"})
    assert (older.status_code, older.json()["error"]["code"]) == (409, "older_revision")
    moved = other.put("/v1/articles/walked?wait=true", json=body | {"category": "새", "updated_at": None})
    assert found(one, "느시", min_seq=moved.json()["seq"]) == ["walked"]

    lines = (
        '{"id": "twice", "title": "느시", "body": "하나"}',
        "{malformed",
        '{"id": "twice", "title": "느시", "body": "둘"}',
        '{"id": "walked", "title": "느시", "body": "옛것", "updated_at": "2026-01-01T00:00:00Z"}',
    )
    answer = one.post("/v1/articles:bulk", content="\n".join(lines).encode())
    first, malformed, second, late = [json.loads(line) for line in answer.text.splitlines()]
    assert malformed["error"]["code"]
    assert late["error"]["code"] == "older_revision"
    assert second["seq"] > first["seq"]
    assert found(other, "느시", min_seq=second["seq"]) == ["twice", "walked"]
    assert "둘" in other.get("/v1/articles/twice").json()["body"]
    gone = [other.delete(f"/v1/articles/{article_id}?wait=true") for article_id in ("twice", "walked")]
    assert [answer.status_code for answer in gone] == [200, 200]
    assert one.get("/v1/articles/walked").json()["status"] == "deleted"
    for client in processes:  # the call waited for one of them
        assert found(client, "느시", min_seq=gone[-1].json()["seq"]) == []
    assert "agree" in carried_out(deployment, "verify")


def test_a_source_is_read_by_the_process_that_writes_and_seen_by_both_that_answer(
    deployment: Deployment, processes: Processes, tmp_path: Path
) -> None:
    one, other = processes
    news = tmp_path / "news"
    news.mkdir()
    rows = [{"id": f"news-{n}", "title": _WORD, "body": f"두루미 소식 {n}"} for n in range(5)]
    written(news / "rows.jsonl", rows)
    carried_out(deployment, "sources", "add", "news", "folder", "--every", "1h", "--set", f"path={news}")
    for client in processes:
        until(lambda: len(found(client)) == 5, _PATIENCE, "the source's articles are not seen")  # noqa: B023 - at once
    written(news / "rows.jsonl", rows[:2])
    assert one.post(_JOB).status_code == 202
    for client in processes:
        until(lambda: len(found(client)) == 2, _PATIENCE, "what the source removed is still seen")  # noqa: B023
    carried_out(deployment, "sources", "remove", "news", "--delete-articles")
    for client in (one, other):
        until(lambda: found(client) == [], _PATIENCE, "articles of a removed source are still seen")  # noqa: B023


def test_the_canary_is_seen_by_each_process_that_answers(processes: Processes) -> None:
    for client in processes:
        until(
            lambda: client.get("/v1/admin/state").json()["freshness"]["canary_at"],  # noqa: B023 - called at once
            _PATIENCE,
            "no canary was seen",
        )
        until(lambda: client.get("/readyz").status_code == 200, _PATIENCE, "not ready")  # noqa: B023


def test_a_rebuild_and_a_rollback_reach_both_processes_while_they_are_written_to(
    deployment: Deployment, processes: Processes
) -> None:
    def in_use() -> list[str]:
        states = [client.get("/v1/admin/state").json() for client in processes]
        return [reader["collection"] for reader in states[0]["readers"]]

    before = set(in_use())
    with pushing(*processes) as pushed:
        told = carried_out(deployment, "rebuild", "--min-overlap", "0")
        until(lambda: len(set(in_use())) == 1 and set(in_use()) != before, _PATIENCE, "the rebuild is not seen")
        assert f"{in_use()[0]} is in use" in told
        newest, seq = pushed[-1]
        for client in processes:
            until(lambda: shows(client, seq), _PATIENCE, "what was pushed meanwhile is not seen")  # noqa: B023
            assert newest in found(client)
        carried_out(deployment, "rollback")
    until(lambda: set(in_use()) == before, _PATIENCE, "the rollback is not seen")
    expected, (_, last) = sorted({name for name, _ in pushed}), pushed[-1]
    for client in processes:
        until(lambda: shows(client, last), _PATIENCE, "what was pushed last is not seen")  # noqa: B023
        until(lambda: found(client) == expected, _PATIENCE, "some of what was pushed is not seen")  # noqa: B023
    verified = carried_out(deployment, "verify")
    assert verified.count(": its index in memory agrees\n") == len(processes)
    assert "registry, collection, change log and index agree" in verified
