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

import httpx2
import pytest

from indexers.benchmarks.deployment import Deployment, deployed
from tests import milvus_server
from tests.benchmarks.kills import command
from tests.faults import until

_PATIENCE = 60.0
_PAUSE = 0.6  # seconds between two pushes
_WORD = "두루미"
_JOB = "/v1/admin/jobs/source:news/run"

Processes = tuple[httpx2.Client, httpx2.Client]

pytestmark = [pytest.mark.server, pytest.mark.postgres, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    environment: dict[str, str],
) -> Iterator[Deployment]:
    stores = {
        "database_url": request.getfixturevalue("module_postgres_url"),
        "milvus_uri": request.getfixturevalue("milvus_uri"),
        "milvus_token": milvus_server.TOKEN,
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        with deployed(tmp_path_factory.mktemp("pair"), servers=2, **stores) as running:
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


def written(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    os.utime(
        path, (time.time() - 5,) * 2
    )  # what was written within two seconds may not be whole: nothing is removed for it


def carried_out(deployment: Deployment, *arguments: str) -> str:
    process = command(deployment, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{arguments}: {out} {err}"
    return str(out)


@contextmanager
def pushing(*clients: httpx2.Client) -> Iterator[list[str]]:
    """Publishes articles in turn, fewer than a hundred a minute, at each of `clients`; gives the ids so far."""
    pushed: list[str] = []
    ended = threading.Event()

    def push() -> None:
        while not ended.wait(_PAUSE):
            name = f"push-{len(pushed)}"
            body = {"title": _WORD, "body": f"두루미 소식 {len(pushed)}"}
            assert clients[len(pushed) % len(clients)].put(f"/v1/articles/{name}", json=body).status_code == 202
            pushed.append(name)

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
        assert client.get("/readyz").status_code == 200


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
        newest = pushed[-1]
        for client in processes:
            until(lambda: newest in found(client), _PATIENCE, "what was pushed meanwhile is not seen")  # noqa: B023
        carried_out(deployment, "rollback")
    until(lambda: set(in_use()) == before, _PATIENCE, "the rollback is not seen")
    for client in processes:
        until(lambda: found(client) == sorted(pushed), _PATIENCE, "some of what was pushed is not seen")  # noqa: B023
    verified = carried_out(deployment, "verify")
    assert verified.count(": its index in memory agrees\n") == len(processes)
    assert "registry, collection, change log and index agree" in verified
