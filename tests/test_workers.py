"""Several workers on one port: what each of them shows, and what becomes of them when one or their parent is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from indexers.benchmarks.deployment import Deployment, Running, prepared, served
from tests.faults import until

_PATIENCE = 120.0
_SECONDS = 20.0  # for what takes a fraction of one
_STOPPED = "T"
_GONE = "Z"
_WORDS = "여울목\tNNP\n"
# That Milvus answers is what several workers are for.
_SET = {"YEOUL_API__WORKERS": "2", "YEOUL_ENGINE": "milvus"}

pytestmark = [pytest.mark.server, pytest.mark.postgres, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, stores_of_processes: Mapping[str, Any]) -> Deployment:
    """Its server and its indexers, nothing started. They have a user dictionary, so that a start can fail."""
    words = tmp_path_factory.mktemp("words") / "words.tsv"
    words.write_text(_WORDS, encoding="utf-8")
    made = prepared(tmp_path_factory.mktemp("workers"), **stores_of_processes)
    for each in (*made.servers, made.indexers):
        assert each is not None
        each.environment = {**each.environment, **_SET, "YEOUL_USER_WORDS": str(words)}
    return made


@pytest.fixture(scope="module")
def running(deployment: Deployment) -> Iterator[Running]:
    """Two workers, ready, and the indexers."""
    assert deployment.indexers is not None
    deployment.indexers.start()
    try:
        with served(deployment) as (server, _):
            _wait_for_both(server)
            yield server
    finally:
        deployment.indexers.stop()


def _pid(running: Running) -> int:
    assert running.process is not None
    return running.process.pid


def _state(pid: int) -> str:
    """The letter of the kernel's; Z, too, for one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return _GONE


def _workers(pid: int) -> list[int]:
    """Those that live, of the parent `pid`."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if _state(child) != _GONE and "spawn_main" in _command(child)]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _get(running: Running, path: str, **asked: Any) -> httpx2.Response:
    """The answer on a connection of its own."""
    return httpx2.get(f"{running.url}{path}", params=asked, headers=_headers(running), timeout=_PATIENCE)


def _headers(running: Running) -> dict[str, str]:
    (key,) = orjson.loads(running.environment["YEOUL_API__KEYS"])
    return {"Authorization": f"Bearer {key['key']}"}


def _wait_for_both(running: Running) -> None:
    """Until two workers live that report themselves, each by its own name, as processes that answer."""

    def both() -> bool:
        workers, readers = _workers(_pid(running)), _get(running, "/v1/admin/state").json()["readers"]
        return len(workers) == 2 and {*workers} <= {int(reader["name"].split(":")[1]) for reader in readers}

    until(both, _PATIENCE, "there are no two workers that answer")


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Within the block the process does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: _state(pid) == _STOPPED, _SECONDS, "it does not stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _by_each(running: Running, ask: Callable[[], httpx2.Response]) -> list[httpx2.Response]:
    """What each of two workers answers alone."""
    answers = []
    for other in _workers(_pid(running)):
        with _stopped(other):
            answers.append(ask())
    assert len(answers) == 2
    return answers


def _found(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["article_id"] for item in answer.json()["items"]]


def _figures(running: Running) -> dict[tuple[str, str], float]:
    """By name and route."""
    families = text_string_to_metric_families(_get(running, "/metrics").text)
    return {
        (sample.name, sample.labels.get("route", "")): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_what_one_worker_accepts_each_shows_to_who_asks_for_its_number(running: Running) -> None:
    url, headers = f"{running.url}/v1/articles/crane", _headers(running)
    one, other = _workers(_pid(running))
    with _stopped(other):
        put = httpx2.put(
            f"{url}?wait=true", json={"title": "두루미", "body": "강가"}, headers=headers, timeout=_PATIENCE
        )
    assert put.status_code == 200
    for answer in _by_each(running, lambda: _get(running, "/v1/search", q="두루미", min_seq=put.json()["seq"])):
        assert _found(answer) == ["crane"]
    with _stopped(one):
        gone = httpx2.delete(url, headers=headers, timeout=_PATIENCE)
    for answer in _by_each(running, lambda: _get(running, "/v1/search", q="두루미", min_seq=gone.json()["seq"])):
        assert _found(answer) == []


def test_figures_are_of_both_workers_whoever_is_scraped(running: Running) -> None:
    searched = ("yeoul_http_request_seconds_count", "/v1/search")
    before = _figures(running).get(searched, 0)
    for answer in _by_each(running, lambda: _get(running, "/v1/search", q="두루미")):
        assert answer.status_code == 200
    for text in _by_each(running, lambda: _get(running, "/metrics")):
        assert f'route="/v1/search",status="200"}} {before + 2}' in text.text
    assert _figures(running)["yeoul_ready", ""] == 1


def test_a_worker_that_is_killed_is_missed_by_nobody_and_comes_back(running: Running) -> None:
    before = _figures(running)["yeoul_http_request_seconds_count", "/v1/search"]
    killed, _ = _workers(_pid(running))
    os.kill(killed, signal.SIGKILL)
    until(lambda: _state(killed) == _GONE, _SECONDS, "it is not killed")
    for _ in range(10):
        assert _get(running, "/v1/search", q="두루미").status_code == 200
    _wait_for_both(running)
    assert killed not in _workers(_pid(running))
    assert _figures(running)["yeoul_http_request_seconds_count", "/v1/search"] == before + 10
    assert f"Child process [{killed}] died" in running.log()


def test_a_worker_that_cannot_start_again_is_tried_until_it_can(running: Running) -> None:
    words = Path(running.environment["YEOUL_USER_WORDS"])
    words.write_text("여울목\tNNG\n", encoding="utf-8")
    os.kill(_workers(_pid(running))[0], signal.SIGKILL)
    why = "yeoul: the index was made with other settings"
    until(lambda: why in running.log(), _PATIENCE, "the new one does not say why it cannot start")
    for _ in range(10):
        assert _get(running, "/v1/search", q="두루미").status_code == 200
    words.write_text(_WORDS, encoding="utf-8")
    _wait_for_both(running)


def test_told_to_end_the_parent_ends_with_all_workers(running: Running) -> None:
    assert running.process is not None
    workers = _workers(_pid(running))
    running.process.terminate()
    assert running.process.wait(_PATIENCE) == 0
    assert [_state(pid) for pid in workers] == [_GONE] * 2
    assert "Traceback" not in running.log()


def test_no_worker_outlives_its_parent(deployment: Deployment) -> None:
    with served(deployment) as (server, _):
        workers = _workers(_pid(server))
        server.kill()
        until(lambda: [_state(pid) for pid in workers] == [_GONE] * 2, _PATIENCE, "a worker goes on alone")
