"""The audit: which calls have a line, what it says, what it never says, and the file it stands in."""

from __future__ import annotations

import hashlib
import logging
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient

from api import audit
from api.app import create_app
from api.audit import AuditLog, handler_to
from pipeline.assembly import Assembly
from pipeline.documents import MAX_BODY_BYTES
from pipeline.encoding.encoder import Encoder
from pipeline.errors import InvalidSetting
from pipeline.korean.morphemes import Analyser
from tests.api_server import KEY, READ_KEY, assembly_of, settings_in

SECRET_BODY = "글의 속은 적지 않는다"
ARTICLE = {"title": "t", "body": SECRET_BODY}
KEYS = [{"key": KEY, "scopes": ["write"], "name": "cms"}, {"key": READ_KEY, "scopes": ["read"]}]
_PATIENCE = 120.0  # seconds; a writer takes one or two
READER = hashlib.sha256(READ_KEY.encode()).hexdigest()[:8]


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory, analyser: Analyser, encoder: Encoder) -> Iterator[Assembly]:
    opened = assembly_of(settings_in(tmp_path_factory.mktemp("audit")), analyser, encoder)
    yield opened
    opened.close()


def _client(assembly: Assembly, *, key: str | None = KEY, queue_limit: int = 0, **api: Any) -> TestClient:
    settings = settings_in(assembly.settings.data_dir, api={"keys": KEYS, **api}, indexers={"queue_limit": queue_limit})
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return TestClient(
        create_app(settings, assembly=assembly),
        client=("127.0.0.1", 40000),
        base_url="http://localhost",
        headers=headers,
    )


def _audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines since the last look."""
    lines = [orjson.loads(record.getMessage()) for record in caplog.records if record.name == audit.LOGGER]
    caplog.clear()
    return lines


def test_a_write_has_a_line_with_who_what_and_how_it_ended(
    assembly: Assembly, caplog: pytest.LogCaptureFixture
) -> None:
    client = _client(assembly)
    answer = client.put("/v1/articles/%E1%84%92%E1%85%A1%E1%86%AB", json=ARTICLE, headers={"X-Request-ID": "r-1"})
    (line,) = _audited(caplog)
    at = datetime.fromisoformat(line.pop("time"))
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert line == {
        "key": "cms",
        "peer": "127.0.0.1",
        "method": "PUT",
        "route": "/v1/articles/{article_id:path}",
        "status": 202,
        "article_id": "한",
        "seq": answer.json()["seq"],
        "request_id": "r-1",
    }


def test_a_bulk_has_one_line_with_its_numbers(assembly: Assembly, caplog: pytest.LogCaptureFixture) -> None:
    content = b"\n".join(orjson.dumps({"id": f"bulk-{n}", **ARTICLE}) for n in range(250)) + b"\n{bad}\n{}\n"
    client = _client(assembly)
    seqs = [orjson.loads(line).get("seq") for line in client.post("/v1/articles:bulk", content=content).iter_lines()]
    (line,) = _audited(caplog)
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/articles:bulk", 200)
    assert (line["lines_taken"], line["lines_refused"]) == (250, 2)
    assert (line["first_seq"], line["last_seq"]) == (seqs[0], seqs[249])
    client.post("/v1/articles:bulk", content=content)
    (again,) = _audited(caplog)
    assert again["lines_taken"] == 250
    assert "first_seq" not in again, "nothing is new"


def test_a_refused_write_has_a_line_too(assembly: Assembly, caplog: pytest.LogCaptureFixture) -> None:
    dated = {**ARTICLE, "updated_at": "2026-02-02T00:00:00Z"}
    assert _client(assembly).put("/v1/articles/dated", json=dated).status_code == 202
    _audited(caplog)
    older, large = {**dated, "updated_at": "2026-01-01T00:00:00Z"}, {**ARTICLE, "body": "x" * (MAX_BODY_BYTES + 1)}
    client, full = _client(assembly), _client(assembly, queue_limit=1)
    slow = _client(assembly, writes_per_minute=1)
    slow.put("/v1/articles/slow", json=ARTICLE)
    _audited(caplog)
    refused: list[tuple[TestClient, str, dict[str, Any], int, str | None]] = [
        (client, "a", {"content": b"{bad"}, 400, "cms"),
        (_client(assembly, key=None), "a", {"json": ARTICLE}, 401, None),
        (_client(assembly, key="unknown-key"), "a", {"json": ARTICLE}, 401, None),
        (_client(assembly, key=READ_KEY), "a", {"json": ARTICLE}, 403, READER),
        (client, "dated", {"json": older}, 409, "cms"),
        (client, "a", {"json": large}, 413, "cms"),
        (client, "a", {"json": {"title": 7}}, 422, "cms"),
        (client, "a%23b", {"json": ARTICLE}, 422, "cms"),
        (client, "a?wait=perhaps", {"json": ARTICLE}, 422, "cms"),
        (slow, "a", {"json": ARTICLE}, 429, "cms"),
        (full, "a", {"json": ARTICLE}, 429, "cms"),
    ]
    for sender, article_id, content, status, key in refused:
        assert sender.put(f"/v1/articles/{article_id}", **content).status_code == status
        (line,) = _audited(caplog)
        assert (line["status"], line["key"], line["method"]) == (status, key, "PUT")
        assert "seq" not in line


def test_who_writes_without_keys_is_called_local(assembly: Assembly, caplog: pytest.LogCaptureFixture) -> None:
    client = _client(assembly, key=None, keys=[])
    assert client.delete("/v1/articles/never").status_code == 404
    assert client.put("/v1/articles/a", json=ARTICLE, headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 403
    assert [(line["key"], line["status"]) for line in _audited(caplog)] == [("local", 404), (None, 403)]


def test_readings_have_no_line(assembly: Assembly, caplog: pytest.LogCaptureFixture) -> None:
    client = _client(assembly)
    for path in ("/v1/articles/never", "/healthz", "/metrics", "/nope", "/v1/search?q=x"):
        client.get(path)
    client.patch("/v1/articles/never")
    assert _audited(caplog) == []


def test_neither_key_nor_body_stands_in_a_line(assembly: Assembly, caplog: pytest.LogCaptureFixture) -> None:
    bodies = (orjson.dumps(ARTICLE), SECRET_BODY.encode(), orjson.dumps({"id": SECRET_BODY, **ARTICLE}))
    for key in (KEY, READ_KEY, "unknown-key"):
        client = _client(assembly, key=key)
        for body in bodies:
            client.put("/v1/articles/silent", content=body)
            client.post("/v1/articles:bulk", content=body)
    told = [record.getMessage() for record in caplog.records if record.name == audit.LOGGER]
    assert len(told) == 18
    for secret in (KEY, READ_KEY, "unknown-key", SECRET_BODY):
        assert secret not in "".join(told)


def test_what_callers_send_cannot_break_a_line(assembly: Assembly, caplog: pytest.LogCaptureFixture) -> None:
    client = _client(assembly)
    client.put("/v1/articles/a%09%22b" + "c" * 5000, json=ARTICLE, headers={"X-Request-ID": "x" * 5000})
    record = next(record for record in caplog.records if record.name == audit.LOGGER)
    assert "\n" not in record.getMessage()
    line = orjson.loads(record.getMessage())
    assert line["article_id"].startswith('a\t"bccc')
    assert (len(line["article_id"]), len(line["request_id"])) == (200, 200)


# ---- the file


def test_the_app_writes_into_its_file_while_it_runs_and_closes_it(
    tmp_path: Path, analyser: Analyser, encoder: Encoder
) -> None:
    assembly = assembly_of(settings_in(tmp_path / "data"), analyser, encoder)
    try:
        for number in (1, 2):
            with _client(assembly) as client:
                client.put("/v1/articles/a", json=ARTICLE)
            assert len((tmp_path / "data" / "audit.log").read_bytes().splitlines()) == number
        chosen = tmp_path / "chosen.log"
        with _client(assembly, audit_log=str(chosen)) as client:
            client.delete("/v1/articles/a")
        (line,) = chosen.read_bytes().splitlines()
        assert orjson.loads(line)["method"] == "DELETE"
    finally:
        assembly.close()


def test_two_apps_of_a_process_do_not_write_into_each_others_file(tmp_path: Path) -> None:
    one, two = AuditLog(), AuditLog()
    with one.kept_in(tmp_path / "one"), two.kept_in(tmp_path / "two"):
        one.write({"app": 1})
        two.write({"app": 2})
    one.write({"app": "after the end"})
    assert (tmp_path / "one").read_text() == '{"app":1}\n'
    assert (tmp_path / "two").read_text() == '{"app":2}\n'


def test_the_file_is_for_its_owner_alone_also_after_it_was_turned_over(tmp_path: Path) -> None:
    handler = handler_to(tmp_path / "audit.log")
    assert isinstance(handler, RotatingFileHandler)
    assert (handler.maxBytes, handler.backupCount) == (10_000_000, 5)
    handler.maxBytes = 100
    for _ in range(20):
        handler.emit(logging.makeLogRecord({"msg": "x" * 60}))
    handler.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["audit.log", *(f"audit.log.{n}" for n in range(1, 6))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


_WRITES = """
import sys
from pathlib import Path
from api import audit
audit._MAX_FILE_BYTES, audit._OLD_FILES = 2000, 100
log = audit.AuditLog()
with log.kept_in(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()  # until all are there
    for n in range(150):
        log.write({"process": sys.argv[2], "n": n})
"""


def test_processes_that_write_into_one_file_lose_no_line_and_turn_it_over_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "audit.log"
    with ExitStack() as ended:
        command = [sys.executable, "-c", _WRITES, str(path)]
        writers = [
            ended.enter_context(subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for name in ("one", "two")
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"open\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        assert [writer.wait(_PATIENCE) for writer in writers] == [0, 0]
    files = sorted(tmp_path.iterdir(), key=lambda file: int(file.suffix[1:]) if file.suffix != ".log" else 0)
    lines = [orjson.loads(line) for file in reversed(files) for line in file.read_bytes().splitlines()]
    for name in ("one", "two"):
        assert [line["n"] for line in lines if line["process"] == name] == list(range(150))
    sizes = [file.stat().st_size for file in files[1:]]
    assert sizes
    assert min(sizes) > 1900  # none was turned over before it was full


def test_a_file_that_is_there_is_continued_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text("before\n")
    path.chmod(0o640)
    log = AuditLog()
    with log.kept_in(path):
        log.write({"n": 1})
    assert path.read_text() == 'before\n{"n":1}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_cannot_be_opened_is_refused_by_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    missing = tmp_path / "file" / "audit.log"
    opened = pytest.raises(InvalidSetting, match=r"setting 'api\.audit_log' should be a file that can be written")
    with opened as caught, AuditLog().kept_in(missing):
        pass
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.filename == str(missing.parent)
