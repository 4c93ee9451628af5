"""The state database: its tables, how it is opened, and its transactions.

SQLite (the embedded default) runs in WAL mode with synchronous FULL, so that what was acknowledged survives a power cut;
every write transaction begins IMMEDIATE, so that two writers queue up instead of failing half-way. PostgreSQL needs nothing.
No encoding and no collection call belongs inside a transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipeline.errors import InvalidSetting, StoreUnavailable

_BUSY_TIMEOUT_S = 30.0  # a bulk acceptance holds the write lock for well under a second
_PASSWORD = re.compile(r":[^:/]*@")
_EXAMPLE_URL = "sqlite:///state.db"
_MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0001"  # the newest migration: compared at start, so that a database up to date never imports Alembic

metadata = MetaData()


class Moment(TypeDecorator[datetime]):
    """An aware UTC time; SQLite forgets offsets, so it is stored as naive UTC and given back aware."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None else None


# One row an accepted change; `seq` is its number, given at acceptance.
inbox = Table(
    "inbox",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("article_id", String(800), nullable=False),
    Column("payload", Text),  # the article as JSON; NULL is a delete
    Column("updated_at", Moment, nullable=False),
    Column("accepted_at", Moment, nullable=False),
    Column("source", String(200), nullable=False),
    Column("state", String(12), nullable=False),  # queued | indexed | deleted | superseded | failed
    Column("attempts", Integer, nullable=False, default=0),
    Column("error", Text),
    Column("settled_at", Moment),
    sqlite_autoincrement=True,  # a number is never given twice
)
Index("inbox_state_seq", inbox.c.state, inbox.c.seq)
Index("inbox_article", inbox.c.article_id, inbox.c.seq)

# The registry: one row an article. `revision` (a seq) is the visible one: the only truth about what readers may see.
articles = Table(
    "articles",
    metadata,
    Column("id", String(800), primary_key=True),
    Column("revision", Integer),  # NULL: nothing of this article is visible
    Column("payload", Text),  # the newest accepted article, NULL after a delete
    Column("accepted_seq", Integer, nullable=False),
    Column("accepted_hash", String(64)),  # content hash of the newest accepted version, NULL for a delete
    Column("updated_at", Moment, nullable=False),
    Column("status", String(12), nullable=False),  # queued | indexed | failed | deleted
    Column("error", Text),
    Column("passages", Integer, nullable=False, default=0),
    Column("accepted_at", Moment, nullable=False),
    Column("indexed_at", Moment),
)

# What became visible or vanished, in order; every API process follows it.
changes = Table(
    "changes",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("article_id", String(800), nullable=False),
    Column("revision", Integer),  # NULL: the article is gone
    Column("seq", Integer, nullable=False),
    Column("created_at", Moment, nullable=False),
    sqlite_autoincrement=True,
)

# Articles of which rows of other revisions than the visible one may stand in the collection, deleted after a grace.
leftovers = Table(
    "leftovers",
    metadata,
    Column("article_id", String(800), primary_key=True),
    Column("due_at", Moment, nullable=False),
)

collections = Table(
    "collections",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("manifest", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),  # seconds since 1970
)


class StateDatabase:
    """The database behind `url`, migrated to this version's schema. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str) -> StateDatabase:
        """Connects and migrates.

        Raises InvalidSetting for a URL that is none, StoreUnavailable where nothing answers or a newer Yeoul wrote it.
        """
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = _engine(url)
            database = cls(engine)
            database._migrate()
        except (ArgumentError, ModuleNotFoundError) as error:
            hidden = _PASSWORD.sub(":***@", url)
            raise InvalidSetting("database_url", hidden, f"an SQLAlchemy URL such as {_EXAMPLE_URL}") from error
        except (DBAPIError, OSError) as error:
            raise _unavailable(make_url(url), error) from error
        return database

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; committed at the end of the block, rolled back by an exception.

        Raises StoreUnavailable where the database does not answer.
        """
        with self._answering(), self.engine.connect() as connection:
            connection.execution_options(yeoul_write=True)
            with connection.begin():
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that reads one consistent state. Raises StoreUnavailable where the database does not answer."""
        with self._answering(), self.engine.connect() as connection, connection.begin():
            yield connection

    def ping(self) -> str:
        """The dialect's name, or StoreUnavailable."""
        with self.read() as connection:
            connection.execute(select(1))
        return self.engine.dialect.name

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turns a failure of the database itself into StoreUnavailable; a statement that it refuses stays what it is."""
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise _unavailable(self.engine.url, error) from error
        except DatabaseError as error:
            if type(error) is not DatabaseError:
                raise
            raise _unavailable(self.engine.url, error) from error  # "disk image is malformed" and the like

    def _migrate(self) -> None:
        with self.engine.connect() as connection:
            if inspect(connection).has_table("alembic_version"):
                version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
                if version == HEAD:
                    return
        # Alembic takes a third of a second to import: only a database that is behind pays for it.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["engine"] = self.engine
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            address = self.engine.url.render_as_string(hide_password=True)
            why = f"a newer Yeoul made it ({error})"
            raise StoreUnavailable("state database", address, why, "update Yeoul, or set another data_dir") from error


def _unavailable(url: URL, error: Exception) -> StoreUnavailable:
    why = str(getattr(error, "orig", None) or error)
    address = url.render_as_string(hide_password=True)
    cure = (
        "check data_dir and database_url: a database that runs, a folder that can be written, a disk that is not full"
    )
    return StoreUnavailable("state database", address, why, cure)


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})

    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # pysqlite would begin transactions by its own rules
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("yeoul_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    return engine
