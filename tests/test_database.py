"""The state database: its transactions, its migrations, and what it says when it cannot be used."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError

from pipeline.errors import InvalidSetting, StoreUnavailable
from pipeline.storage import database as module
from pipeline.storage.database import StateDatabase, leftovers, metadata

_MIGRATIONS = Path(module.__file__).parent / "migrations"
_PROCESSES = 4
_ARTICLES = 40  # by each process

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


def test_a_connection_that_wrote_reads_without_the_write_lock(url: str) -> None:
    database = StateDatabase.open(url)
    with database.write() as connection:
        connection.execute(select(1))
    with database.read() as first, ThreadPoolExecutor(1) as pool:
        assert first.execute(select(leftovers)).all() == []

        def write() -> None:
            with database.write() as second:
                second.execute(leftovers.insert().values(article_id="a", due_at=datetime.now(UTC)))

        pool.submit(write).result(timeout=5)
        assert first.execute(select(leftovers)).all() == []  # one consistent state to the end
    database.close()


def test_a_write_that_raises_leaves_nothing(url: str) -> None:
    database = StateDatabase.open(url)
    row = {"article_id": "a", "due_at": datetime.now(UTC)}
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(leftovers.insert(), [row, row])
    with database.read() as connection:
        assert connection.execute(select(leftovers)).all() == []
    database.close()


def test_migrations_from_empty_give_exactly_the_metadata(url: str) -> None:
    database = StateDatabase.open(url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_the_head_is_the_newest_migration() -> None:
    script = ScriptDirectory(str(_MIGRATIONS))
    assert script.get_heads() == [module.HEAD]


def test_a_database_that_is_up_to_date_is_opened_without_alembic(url: str) -> None:
    StateDatabase.open(url).close()
    code = (
        "import sys; from pipeline.storage.database import StateDatabase; "
        f"StateDatabase.open({url!r}).close(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_processes_that_open_and_write_at_once_all_succeed(url: str, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, url, str(number), str(_ARTICLES)],
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
    complaints = [writer.communicate(timeout=120)[1] for writer in writers]
    assert complaints == [""] * _PROCESSES
    database = StateDatabase.open(url)
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


def test_a_database_of_a_newer_version_is_told_and_left_alone(url: str) -> None:
    database = StateDatabase.open(url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(StoreUnavailable, match=r"newer.*9999"):
        StateDatabase.open(url)


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


def test_times_come_back_as_the_same_moment_in_utc(url: str) -> None:
    database = StateDatabase.open(url)
    moment = datetime(2026, 3, 2, 9, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    with database.write() as connection:
        connection.execute(leftovers.insert().values(article_id="a", due_at=moment))
    with database.read() as connection:
        kept = connection.execute(select(leftovers.c.due_at)).scalar_one()
    database.close()
    assert kept == moment
    assert kept.tzinfo is UTC
