"""Faults from outside, end to end: what was acknowledged holds, what goes wrong is told in one place, the rest goes on.

Here are processes that are killed, a full disk, a locked or restarted database, a Milvus server that dies, and articles that
cannot be indexed. The long form of the kills is `python -m tests.benchmarks.kills`. Elsewhere: crashes at chosen places of a
write (test_crash), a collection that is away and errors of the worker (test_worker), bad bodies and lines of a bulk
(test_api_articles), PostgreSQL that hangs (test_postgres, test_database), feeds (test_feeds, test_fetching), SQL sources
(test_sql_source), jobs that fail beside others (test_indexer_service).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from indexers import worker as worker_module
from indexers.benchmarks.deployment import Running
from indexers.reconcile import verify
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.korean.morphemes import Analyser
from pipeline.storage import database as database_module
from tests import milvus_server
from tests.api_server import ApiServer, running, settings_in
from tests.benchmarks import kills
from tests.benchmarks.kills import MilvusServer, Storm
from tests.command_line import Shell
from tests.fakes import FakeEncoder
from tests.faults import Audit, Ledger, Version, await_seq, until, writing
from tests.postgres_server import Server, kill, restart, stop

_PATIENCE = 240.0  # seconds until a test gives up waiting
_STORM_SECONDS = 1_800  # 90 s with two cores to itself: every kill costs a start
_SEED = 20_261_121
_DISK = 48 * 2**20  # bytes: an index of a few articles takes about 5 MB
_BUSY_SECONDS = 0.3  # instead of half a minute
_HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def _table(pytestconfig: pytest.Config) -> Iterator[None]:
    """Processes of these tests take kiwi-static's table from where the other tests have it."""
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.cache is not None:
            patch.setenv("YEOUL_ENCODER__CACHE_DIR", str(pytestconfig.cache.mkdir("kiwi-static")))
        yield


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MilvusServer, str]]:
    """A Milvus server to kill: the one of the session is for those who need it alive."""
    if milvus_server.server_python() is None:
        pytest.skip(milvus_server.CURE)
    folder = tmp_path_factory.mktemp("milvus-to-kill")
    uri, process = milvus_server.start(folder, session_seconds=kills.SESSION_SECONDS)
    server = MilvusServer(folder, process)
    yield server, uri
    milvus_server.stop(server.process)


def put(client: httpx2.Client, article_id: str, body: str = "본문입니다.", **fields: Any) -> httpx2.Response:
    return client.put(f"/v1/articles/{article_id}", json={"title": "제목", "body": body, **fields})


def found(client: httpx2.Client, q: str) -> list[str]:
    """The articles that a search for `q` gives, degraded in nothing."""
    answer = client.get("/v1/search", params={"q": q, "mode": "lexical", "limit": 100})
    answer.raise_for_status()
    assert answer.json()["degraded"] == []
    return [item["article_id"] for item in answer.json()["items"] if item["score"] > 0]


def status(client: httpx2.Client, article_id: str) -> str:
    return str(client.get(f"/v1/articles/{article_id}").json()["status"])


def holds(server: ApiServer, ledger: Ledger) -> None:
    """Everything is indexed at last, and every promise is kept."""
    store = server.assembly.store
    until(lambda: not store.queue_length(), _PATIENCE, "the inbox is not empty")
    with server.client() as client:
        await_seq(client, ledger.last_seq, _PATIENCE)
        headers = dict(client.headers)
    audit = Audit()
    audit.of(server.url, headers, ledger)
    audit.log(server.assembly.database)
    assert (ledger.wrong, audit.lost, audit.doubled) == ([], [], [])
    assert audit.articles >= 10


@contextmanager
def under_load(server: ApiServer) -> Iterator[Ledger]:
    """A load within the block; some changes are acknowledged when it begins, and some more before it ends."""
    ledger = Ledger()
    with server.client() as client:
        headers = dict(client.headers)
    with writing([server.url], headers, ledger, seed=_SEED):
        assert ledger.await_more(20, _PATIENCE)
        yield ledger
        assert ledger.await_more(20, _PATIENCE), "nothing is acknowledged any more"


# ---- processes that are killed


@pytest.mark.timeout(_STORM_SECONDS)
def test_an_embedded_installation_that_is_killed_again_and_again_keeps_its_promises(tmp_path: Path) -> None:
    moments = ("in a bulk", "after a 202", "in a rebuild")
    with kills.embedded(tmp_path) as (deployment, [serve, milvus_lite, kiwi], database):

        def strikes(storm: Storm) -> None:
            for moment in moments:
                storm.strike(serve, moment)
            storm.strike(milvus_lite, "in a bulk")
            storm.strike(kiwi, "in a bulk")

        report = kills.storm(deployment, [serve, milvus_lite, kiwi], database, seed=_SEED, strikes=strikes)
    assert report.kills.total() > len(moments)
    assert report.all_well, f"{report}\n{report.table()}"


@pytest.mark.server
@pytest.mark.postgres
@pytest.mark.timeout(_STORM_SECONDS)
def test_the_indexers_and_an_api_process_may_die_under_a_load(
    tmp_path: Path, milvus: tuple[MilvusServer, str], postgres_server: Server
) -> None:
    moments = {
        "indexers": "after a 202",
        "API process 1": "in a bulk",
    }
    with kills.pair(tmp_path, postgres_server, *milvus) as (deployment, targets, database):
        named = {target.name: target for target in targets}
        indexing = deployment.indexers
        assert indexing is not None
        until(lambda: _niceness(indexing) == _niceness(deployment.servers[0]) + 5, _PATIENCE, "who answers goes first")

        def strikes(storm: Storm) -> None:
            for name, moment in moments.items():
                storm.strike(named[name], moment)

        report = kills.storm(deployment, targets, database, seed=_SEED, strikes=strikes)
    assert {name for name, _ in report.kills} == set(moments)
    assert report.all_well, f"{report}\n{report.table()}"


def _niceness(running: Running) -> int:
    assert running.process is not None
    return os.getpriority(os.PRIO_PROCESS, running.process.pid)


# ---- stores that fail


@pytest.mark.server
def test_a_milvus_server_that_dies_stops_no_search_and_the_inbox_waits_for_it(
    tmp_path: Path, milvus: tuple[MilvusServer, str], analyser: Analyser, encoder: KiwiStaticEncoder
) -> None:
    process, uri = milvus
    chosen = {"uri": uri, "token": milvus_server.TOKEN, "collection": f"faults_{time.time_ns()}"}
    with running(settings_in(tmp_path, milvus=chosen), analyser, encoder) as server, server.client() as client:
        server.publish([{"id": "두루미", "title": "두루미", "body": "두루미가 날아간다"}])
        with under_load(server) as ledger:
            process.kill()
            assert put(client, "느시", "느시가 걷는다").status_code == 202
            until(lambda: client.get("/readyz").status_code == 503, _PATIENCE, "nobody noticed")
            assert found(client, "두루미") == ["두루미"]
            assert (found(client, "느시"), status(client, "느시")) == ([], "queued")
            process.start()
        until(lambda: found(client, "느시") == ["느시"], _PATIENCE, "the inbox is not drained")
        holds(server, ledger)
        until(lambda: client.get("/readyz").status_code == 200, _PATIENCE, "not ready again")


@pytest.mark.postgres
@pytest.mark.parametrize("end", [stop, kill])
def test_a_postgresql_that_restarts_under_a_load_costs_no_acknowledged_change(
    tmp_path: Path,
    analyser: Analyser,
    encoder: KiwiStaticEncoder,
    postgres_server: Server,
    postgres_url: str,
    end: Callable[[Server], None],
) -> None:
    settings = settings_in(tmp_path, database_url=postgres_url)
    with running(settings, analyser, encoder) as server, server.client() as client:
        server.publish([{"id": "두루미", "title": "두루미", "body": "두루미가 날아간다"}])
        with under_load(server) as ledger:
            end(postgres_server)
            try:
                answer = put(client, "느시")
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
                assert found(client, "두루미") == ["두루미"]
            finally:
                restart(postgres_server)
        holds(server, ledger)
        until(lambda: client.get("/readyz").status_code == 200, _PATIENCE, "not ready again")


def test_a_state_database_that_another_process_locks_refuses_writes_alone_and_goes_on_after_it(
    tmp_path: Path, analyser: Analyser, encoder: KiwiStaticEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT_S", _BUSY_SECONDS)
    monkeypatch.setattr(worker_module, "_RETRY_SECONDS", 0.05)

    def taken(article_id: str, body: str) -> bool:
        """Whether a write is: on a busy machine another one may take longer than `_BUSY_SECONDS`."""
        answer = put(client, article_id, body)
        assert answer.status_code == 202 or "database is locked" in answer.text, answer.text
        return answer.status_code == 202

    with running(settings_in(tmp_path), analyser, encoder) as server, server.client() as client:
        until(lambda: taken("두루미", "두루미가 날아간다"), _PATIENCE, "nothing is taken")
        until(lambda: found(client, "두루미") == ["두루미"], _PATIENCE, "the worker does not begin")
        with locked(tmp_path / "state.db"):
            for answer in (put(client, "느시"), client.delete("/v1/articles/두루미"), bulk(client, "느시", "따오기")):
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (503, "store_unavailable")
                assert "database is locked" in error["message"]
                assert answer.headers["Retry-After"]
            assert found(client, "두루미") == ["두루미"]
            assert client.get("/v1/articles/느시").status_code == 404
        until(lambda: taken("느시", "느시가 걷는다"), _PATIENCE, "writes are still refused")
        until(lambda: found(client, "느시") == ["느시"], _PATIENCE, "the worker does not go on")
        assert found(client, "두루미") == ["두루미"]


def test_a_disk_that_is_full_refuses_writes_alone_and_what_was_accepted_is_indexed_once_there_is_space(
    disk: Path, analyser: Analyser, encoder: KiwiStaticEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_RETRY_SECONDS", 0.05)
    with running(settings_in(disk / "data"), analyser, encoder) as server, server.client() as client:
        server.publish([{"id": "두루미", "title": "두루미", "body": "두루미가 날아간다"}])
        with under_load(server) as ledger:
            ballast = filled(disk)
            until(lambda: ledger.answers["503"] >= 3, _PATIENCE, "no write was refused")
            answer = put(client, "느시", "느시가 걷는다. " * 5_000)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert "full" in answer.json()["error"]["message"]
            assert found(client, "두루미") == ["두루미"]
            ballast.unlink()
        holds(server, ledger)
        assert found(client, "두루미") == ["두루미"]
        assert server.assembly.store.counts().get("failed", 0) == 0


def test_a_full_disk_of_the_collection_alone_lets_changes_wait_and_fails_none_of_them(
    tmp_path: Path,
    disk: Path,
    analyser: Analyser,
    encoder: KiwiStaticEncoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker_module, "_RETRY_SECONDS", 0.05)
    settings = settings_in(tmp_path, milvus={"uri": str(disk / "milvus.db")})
    with running(settings, analyser, encoder) as server, server.client() as client:
        server.publish([{"id": "두루미", "title": "두루미", "body": "두루미가 날아간다"}])
        ballast = filled(disk)
        articles = [{"id": f"느시{n}", "title": "글", "body": "느시가 걷는다"} for n in range(20)]
        answer = client.post("/v1/articles:bulk", content=b"\n".join(map(orjson.dumps, articles)))
        assert {orjson.loads(line)["status"] for line in answer.text.splitlines()} == {"queued"}
        until(lambda: caplog.text.count("the inbox waits: the collection at") >= 3, _PATIENCE, "nobody is told")
        assert server.assembly.store.counts() == {"indexed": 1, "queued": 20}
        assert found(client, "두루미") == ["두루미"]
        ballast.unlink()
        until(lambda: len(found(client, "느시")) == 20, _PATIENCE, "the inbox is not drained")
        assert server.assembly.store.counts() == {"indexed": 21}
        assert verify(server.assembly.store, server.assembly.connected, repair=False) == []


# ---- articles that are odd


def test_of_two_articles_with_one_id_in_a_bulk_the_later_wins_and_both_are_answered(
    api_server: ApiServer,
) -> None:
    first = {"id": "쌍둥이", "title": "글", "body": "해오라기가 섰다"}
    second = {"id": "쌍둥이", "title": "글", "body": "왜가리가 섰다"}
    with api_server.client() as client:
        answer = client.post("/v1/articles:bulk", content=b"\n".join(map(orjson.dumps, [first, second])))
        one, two = map(orjson.loads, answer.text.splitlines())
        assert (one["id"], two["id"], one["status"], two["status"]) == ("쌍둥이", "쌍둥이", "queued", "queued")
        assert one["seq"] < two["seq"]
        client.get("/v1/search", params={"q": "x", "min_seq": two["seq"]}).raise_for_status()
        assert client.get("/v1/articles/쌍둥이").json()["body"] == second["body"]
        assert "쌍둥이" in found(client, "왜가리")
        assert "쌍둥이" not in found(client, "해오라기")


def test_dates_in_the_future_are_kept_and_lock_no_article(api_server: ApiServer) -> None:
    """A clock that is ahead: what it dates counts as now, so that a right clock can still edit it."""
    ahead = (datetime.now(UTC) + timedelta(days=365)).isoformat()
    with api_server.client() as client:
        for words in ("뜸부기가 운다", "물총새가 운다"):
            answer = client.put(
                "/v1/articles/내일?wait=true",
                json={"title": "글", "body": words, "published_at": ahead, "updated_at": ahead},
            )
            assert answer.status_code == 200, answer.text
        state = client.get("/v1/articles/내일").json()
        assert datetime.fromisoformat(state["published_at"]) == datetime.fromisoformat(ahead)
        assert datetime.fromisoformat(state["updated_at"]) <= datetime.now(UTC)
        now = datetime.now(UTC).isoformat()
        assert put(client, "내일", "호반새가 운다", published_at=ahead, updated_at=now).status_code == 202
        until(lambda: "내일" in found(client, "호반새"), _PATIENCE, "the edit is not shown")
        later = client.get("/v1/search", params={"q": "호반새", "mode": "lexical", "since": ahead}).json()
        assert [item["article_id"] for item in later["items"] if item["score"] > 0] == ["내일"]
        client.delete("/v1/articles/내일?wait=true").raise_for_status()  # other files search here too


def test_an_article_that_makes_the_encoder_raise_fails_alone_is_told_and_can_be_tried_again(
    tmp_path: Path, analyser: Analyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_BACKOFF_SECONDS", 0.1)
    encoder = FakeEncoder(poison="독버섯")
    shell = Shell(tmp_path, {"YEOUL_DATA_DIR": str(tmp_path)})
    articles = [{"id": f"글{n}", "title": "글", "body": f"송이버섯 {n}"} for n in range(20)]
    articles[7]["body"] = "독버섯"
    with running(settings_in(tmp_path), analyser, encoder) as server, server.client() as client:
        server.worker._attempts = 3
        lines = client.post("/v1/articles:bulk", content=b"\n".join(map(orjson.dumps, articles))).text.splitlines()
        assert [orjson.loads(line)["status"] for line in lines] == ["queued"] * 20
        until(lambda: status(client, "글7") == "failed", _PATIENCE, "the article does not fail")
        assert sorted(found(client, "송이버섯")) == sorted(f"글{n}" for n in range(20) if n != 7)
        state = client.get("/v1/articles/글7").json()
        assert "no vector for a text with '독버섯'" in state["error"]
        told = shell.run("articles", "failed").done().out.splitlines()
        assert told[0].split("\t")[0] == "글7"
        assert "독버섯" in told[0]
        assert told[1:] == ["1 failed"]
        encoder.poison = None
        assert shell.run("articles", "retry", "글7").done().out.startswith("글7\t")
        until(lambda: "글7" in found(client, "독버섯"), _PATIENCE, "it is not tried again")
        assert (status(client, "글7"), client.get("/v1/articles/글7").json()["error"]) == ("indexed", None)


# ---- what the tests stand on


def test_the_audit_tells_a_change_that_is_lost_and_an_article_that_came_back(api_server: ApiServer) -> None:
    shown, another = Version(9_000_001), Version(9_000_002)
    with api_server.client() as client:
        headers = dict(client.headers)
        client.put("/v1/articles/감사?wait=true", json=shown.fields()).raise_for_status()
    for promised, lost in ((shown, 0), (another, 1), (None, 1)):
        ledger, audit = Ledger(), Audit()
        ledger.keep("감사", promised, 1)
        audit.of(api_server.url, headers, ledger)
        assert (len(audit.lost), audit.doubled) == (lost, []), audit


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk of its own: a tmpfs, which only root may mount."""
    with tempfile.TemporaryDirectory(prefix="yeoul-disk-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"a small disk cannot be mounted (run as root on Linux): {mounted.stderr.decode().strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def filled(disk: Path) -> Path:
    """A file that leaves no byte on `disk`."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError as error:
            assert "No space left" in str(error)  # noqa: PT017 - the block has to end the loop
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds SQLite's write lock within the block."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        yield
        holder.stdin.close()


def bulk(client: httpx2.Client, *ids: str) -> httpx2.Response:
    lines = [orjson.dumps({"id": article_id, "title": "글", "body": "본문"}) for article_id in ids]
    return client.post("/v1/articles:bulk", content=b"\n".join(lines))
