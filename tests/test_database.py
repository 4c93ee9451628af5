"""The state database: its transactions, its migrations, and what it says when it cannot be used."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, make_url, select, text
from sqlalchemy.exc import IntegrityError

from pipeline.errors import InvalidSetting, StoreUnavailable
from pipeline.storage import database as module
from pipeline.storage import postgres
from pipeline.storage.database import StateDatabase
from pipeline.storage.tables import HEAD, inbox, leftovers, metadata
from tests.postgres_server import Server, kill, restart, stop

_MIGRATIONS = Path(module.__file__).parent / "migrations"
_PROCESSES = 4
_ARTICLES = 40  # by each process
_ACCEPTORS = 4
_WAIT = 120.0  # seconds: for what a busy machine does late, and a broken one never

# A process that opens the database at the same moment as others and accepts articles one by one.
_WRITER = """
import sys
from pipeline.documents import Article
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
sys.stdin.readline()
database = StateDatabase.open(sys.argv[1])
store = ArticleStore(database)
for number in range(int(sys.argv[3])):
    store.accept(Article(id=f"{sys.argv[2]}-{number}", title="제목", body="본문"))
database.close()
"""


def add(connection: Connection) -> int:
    """A change in the inbox; gives its number."""
    now = datetime.now(UTC)
    row = {"article_id": "a", "updated_at": now, "accepted_at": now, "source": "test", "state": "queued"}
    return int(connection.execute(inbox.insert().returning(inbox.c.seq), row).scalar_one())


def queue(database: StateDatabase, duty: str | None) -> int:
    with database.write(serial=duty) as connection:
        return add(connection)


def numbers(connection: Connection) -> list[int]:
    return list(connection.execute(select(inbox.c.seq).order_by(inbox.c.seq)).scalars())


def until_one_waits(database: StateDatabase) -> None:
    """Until a transaction waits for its turn."""
    until = time.monotonic() + _WAIT
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    while time.monotonic() < until:
        with database.read() as connection:
            if connection.execute(waiting).scalar_one() == 1:
                return
    raise AssertionError("nobody waits for a turn")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


def test_sqlite_survives_power_cuts_and_waits_for_other_writers(url: str) -> None:
    database = StateDatabase.open(url)
    with database.read() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    database.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000, "foreign_keys": 1}


def test_writes_begin_immediate_and_reads_do_not(url: str) -> None:
    database = StateDatabase.open(url)
    begun: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: begun.append(statement) if "BEGIN" in statement else None,
    )
    with database.write() as connection:
        connection.execute(select(1))
    with database.read() as connection:
        connection.execute(select(1))
    database.close()
    assert begun == ["BEGIN IMMEDIATE", "BEGIN"]


def test_a_connection_that_wrote_reads_without_the_write_lock(state_url: str) -> None:
    database = StateDatabase.open(state_url)
    with database.write() as connection:
        connection.execute(select(1))
    with database.read() as first, ThreadPoolExecutor(1) as pool:
        assert first.execute(select(leftovers)).all() == []

        def write() -> None:
            with database.write() as second:
                second.execute(leftovers.insert().values(article_id="a", due_at=datetime.now(UTC)))

        pool.submit(write).result(timeout=_WAIT)
        assert first.execute(select(leftovers)).all() == []  # one consistent state to the end
    database.close()


@pytest.mark.parametrize("duty", [None, "commit"])
def test_one_read_sees_one_state_while_others_commit(state_url: str, duty: str | None) -> None:
    database = StateDatabase.open(state_url)
    with database.read() as connection, ThreadPoolExecutor(1) as pool:
        assert numbers(connection) == []
        assert pool.submit(queue, database, duty).result(timeout=_WAIT) == 1
        assert numbers(connection) == []
    with database.read() as connection:
        assert numbers(connection) == [1]
    database.close()


def test_numbers_of_one_duty_become_visible_in_order(state_url: str) -> None:
    """Whoever has read up to a number has missed none before it, however many give out numbers at once."""
    database = StateDatabase.open(state_url)
    seen: list[list[int]] = []
    with ThreadPoolExecutor(_ACCEPTORS) as pool:
        waiting = [pool.submit(queue, database, "accept") for _ in range(_ACCEPTORS * _ARTICLES)]
        while not all(each.done() for each in waiting):
            with database.read() as connection:
                seen.append(numbers(connection))
    given = sorted(each.result() for each in waiting)
    database.close()
    assert given == list(range(1, len(given) + 1))
    assert [found for found in seen if found != given[: len(found)]] == []


@pytest.mark.postgres
def test_on_postgresql_a_duty_is_done_by_one_at_a_time_and_others_do_not_wait(postgres_url: str) -> None:
    database = StateDatabase.open(postgres_url)
    with ThreadPoolExecutor(3) as pool:
        with database.write(serial="accept") as connection:
            first = add(connection)
            second = pool.submit(queue, database, "accept")
            until_one_waits(database)
            assert pool.submit(queue, database, "commit").result(timeout=_WAIT) == first + 1
            assert pool.submit(queue, database, None).result(timeout=_WAIT) == first + 2
            assert not second.done()
        assert second.result(timeout=_WAIT) == first + 3  # it took its number only after the first was in
    database.close()


@pytest.mark.postgres
def test_on_postgresql_a_read_cannot_write(postgres_url: str) -> None:
    database = StateDatabase.open(postgres_url)
    with pytest.raises(StoreUnavailable, match="read-only transaction"), database.read() as connection:
        add(connection)
    assert queue(database, None) == 1  # the connection is as good as before
    database.close()


@pytest.mark.postgres
@pytest.mark.parametrize("end", [stop, kill])
def test_a_server_that_restarts_costs_only_what_was_under_way(
    postgres_server: Server, postgres_url: str, end: Callable[[Server], None]
) -> None:
    database = StateDatabase.open(postgres_url)
    assert queue(database, "accept") == 1

    def broken_off() -> None:
        with database.write(serial="accept") as connection:
            add(connection)
            end(postgres_server)
            add(connection)

    try:
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
            broken_off()
        with pytest.raises(StoreUnavailable, match=r"refused|closed|connection failed"):
            database.ping()
    finally:
        restart(postgres_server)
    assert database.ping() == "postgresql"
    with database.read() as connection:
        assert numbers(connection) == [1]
    queue(database, "accept")
    database.close()


@pytest.mark.postgres
def test_a_server_that_restarts_between_two_transactions_is_not_noticed(
    postgres_server: Server, postgres_url: str
) -> None:
    database = StateDatabase.open(postgres_url)
    queue(database, None)
    restart(postgres_server)
    queue(database, None)
    database.close()


@pytest.mark.postgres
def test_two_that_wait_for_each_other_are_told_to_try_again(postgres_url: str) -> None:
    database = StateDatabase.open(postgres_url)
    with database.write(serial=None) as connection:
        connection.execute(leftovers.insert(), [{"article_id": name, "due_at": datetime.now(UTC)} for name in "ab"])
    together = Barrier(2)

    def cross(names: str) -> str:
        try:
            with database.write(serial=None) as connection:
                for name in names:
                    connection.execute(leftovers.update().where(leftovers.c.article_id == name).values(article_id=name))
                    if name == names[0]:
                        together.wait(timeout=_WAIT)
        except StoreUnavailable as error:
            return str(error)
        return "done"

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(cross, ["ab", "ba"]))
    database.close()
    assert answers[0] == "done"
    assert "deadlock" in answers[1]


@pytest.mark.postgres
@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_need_not_name_the_driver(postgres_url: str, scheme: str) -> None:
    database = StateDatabase.open(postgres_url.replace("postgresql+psycopg", scheme))
    assert database.ping() == "postgresql"
    database.close()


@pytest.mark.postgres
def test_a_database_that_is_not_there_is_told_by_its_name(postgres_server: Server) -> None:
    with pytest.raises(StoreUnavailable, match='"nowhere" does not exist'):
        StateDatabase.open(postgres_server.url.replace("/postgres", "/nowhere"))


@pytest.mark.postgres
def test_a_migration_may_take_longer_than_a_statement_and_the_next_waits(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_LOCK_MS", 1_000)
    monkeypatch.setattr(postgres, "_STATEMENT_MS", 1_000)
    bare = postgres.engine(make_url(postgres_url), patient=True)
    with ThreadPoolExecutor(1) as pool, bare.begin() as connection:
        module._take_turns(connection, "migrate")
        opening = pool.submit(StateDatabase.open, postgres_url)
        connection.execute(text("SELECT pg_sleep(2)"))
        assert not opening.done()
        connection.commit()
        opening.result(timeout=_WAIT).close()
    bare.dispose()


def test_a_write_that_raises_leaves_nothing(state_url: str) -> None:
    database = StateDatabase.open(state_url)
    row = {"article_id": "a", "due_at": datetime.now(UTC)}
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(leftovers.insert(), [row, row])
    with database.read() as connection:
        assert connection.execute(select(leftovers)).all() == []
    database.close()


def test_migrations_from_empty_give_exactly_the_metadata(empty_url: str) -> None:
    database = StateDatabase.open(empty_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_leftovers_of_a_database_from_before_are_still_to_be_swept(empty_url: str) -> None:
    database = StateDatabase.open(empty_url)
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE leftovers"))
        connection.execute(
            text("CREATE TABLE leftovers (article_id VARCHAR(800) PRIMARY KEY, due_at TIMESTAMP NOT NULL)")
        )
        connection.execute(text("INSERT INTO leftovers VALUES ('a', '2026-03-02 09:00:00.000000')"))
        connection.execute(text("ALTER TABLE source_articles DROP COLUMN delivered_hash"))
        for column in ("asked", "differing", "waiting"):
            connection.execute(text(f"ALTER TABLE readers DROP COLUMN {column}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    database.close()
    database = StateDatabase.open(empty_url)
    with database.read() as connection:
        assert connection.execute(select(leftovers)).all() == [("a", datetime(2026, 3, 2, 9, tzinfo=UTC), 0, 0)]
    database.close()


def test_the_head_is_the_newest_migration() -> None:
    script = ScriptDirectory(str(_MIGRATIONS))
    assert script.get_heads() == [HEAD]


def test_a_database_that_is_up_to_date_is_opened_without_alembic(state_url: str) -> None:
    StateDatabase.open(state_url).close()
    code = (
        "import sys; from pipeline.storage.database import StateDatabase; "
        f"StateDatabase.open({state_url!r}).close(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_processes_that_open_and_write_at_once_all_succeed(empty_url: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, empty_url, str(number), str(_ARTICLES)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(_PROCESSES)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    complaints = [writer.communicate(timeout=600)[1] for writer in writers]
    assert complaints == [""] * _PROCESSES
    database = StateDatabase.open(empty_url)
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM inbox")).scalar() == _PROCESSES * _ARTICLES
    database.close()


@pytest.mark.parametrize("url", ["", "state.db", "nonsense://x/y", "sqlite", "postgresql+nodriver://h/d"])
def test_a_url_that_is_none_is_an_invalid_setting(url: str) -> None:
    with pytest.raises(InvalidSetting, match=r"database_url.*sqlite:///state\.db"):
        StateDatabase.open(url)


def test_a_path_below_a_file_is_told_with_its_address(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"file/state\.db.*data_dir"):
        StateDatabase.open(f"sqlite:///{tmp_path / 'file' / 'state.db'}")


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is somebody's letter " * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    assert (tmp_path / "state.db").read_bytes() == b"this is somebody's letter " * 100


def test_a_database_of_a_newer_version_is_told_and_left_alone(state_url: str) -> None:
    database = StateDatabase.open(state_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(StoreUnavailable, match=r"newer.*9999"):
        StateDatabase.open(state_url)


def test_a_database_that_fails_while_open_is_unavailable(url: str, tmp_path: Path) -> None:
    database = StateDatabase.open(url)
    with pytest.raises(StoreUnavailable, match="no such table"), database.write() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (1)"))
    assert database.ping() == "sqlite"
    database.close()
    (tmp_path / "state.db").unlink()
    (tmp_path / "state.db").mkdir()
    with pytest.raises(StoreUnavailable, match=r"state\.db"):
        database.ping()


def test_the_password_of_a_url_is_never_told() -> None:
    with pytest.raises((StoreUnavailable, InvalidSetting)) as caught:
        StateDatabase.open("postgresql+psycopg://yeoul:secret@127.0.0.1:1/yeoul")
    assert "secret" not in str(caught.value)


def test_times_come_back_as_the_same_moment_in_utc(state_url: str) -> None:
    database = StateDatabase.open(state_url)
    moment = datetime(2026, 3, 2, 9, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    with database.write() as connection:
        connection.execute(leftovers.insert().values(article_id="a", due_at=moment))
    with database.read() as connection:
        kept = connection.execute(select(leftovers.c.due_at)).scalar_one()
    database.close()
    assert kept == moment
    assert kept.tzinfo is UTC


def test_threads_that_write_at_once_take_turns_and_one_that_waits_for_too_long_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_S", 0.1)

    def write() -> None:
        with database.write():
            pass

    with ThreadPoolExecutor(1) as pool:
        with database.write(), pytest.raises(StoreUnavailable, match="locked"):
            pool.submit(write).result()
        pool.submit(write).result()
    database.close()
