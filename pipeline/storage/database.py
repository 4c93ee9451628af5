"""The state database: how it is opened, and its transactions. Its tables are in `tables.py`.

SQLite (the embedded default) runs in WAL mode with synchronous FULL, so that what was acknowledged survives a power cut;
every write transaction begins IMMEDIATE, so that two writers queue up instead of failing half-way. PostgreSQL's writers take
turns in the same way, by an advisory lock; its connections are made in `postgres.py`.
No encoding and no collection call belongs inside a transaction.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Float,
    cast,
    create_engine,
    event,
    extract,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipeline.errors import InvalidSetting, StoreUnavailable
from pipeline.storage.tables import HEAD

_BUSY_LOOK_S = 0.02
_BUSY_TIMEOUT_S = 30.0  # a bulk acceptance holds the write lock for well under a second
_PASSWORD = re.compile(r":[^:/]*@")
_EXAMPLE_URLS = "sqlite:///state.db or postgresql://yeoul@host/yeoul"
_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg")
# Several statements of one read see one state, as on SQLite; PostgreSQL would show each of them the newest.
_READING = {"postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}}
# SQLSTATEs by which a PostgreSQL that answers says that it cannot serve now, and that psycopg counts as bugs of ours.
_UNUSABLE = ("25006", "25P03")  # it is a standby since a failover; the transaction lay idle for too long
_MIGRATIONS = Path(__file__).parent / "migrations"

_ALL_WRITES = "writes"


class StateDatabase:
    """The database behind `url`, migrated to this version's schema. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = threading.RLock() if engine.dialect.name == "sqlite" else None

    @classmethod
    def open(cls, url: str) -> StateDatabase:
        """Connects and migrates.

        Raises InvalidSetting for a URL that is none, StoreUnavailable where nothing answers or a newer Yeoul wrote it.
        """
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            database = cls(_engine(parsed))
            try:
                database._migrate()
            except BaseException:
                database.close()
                raise
        except (ArgumentError, ModuleNotFoundError) as error:
            hidden = _PASSWORD.sub(":***@", url)
            raise InvalidSetting("database_url", hidden, f"an SQLAlchemy URL such as {_EXAMPLE_URLS}") from error
        except (DBAPIError, OSError) as error:
            raise _unavailable(make_url(url), error) from error
        return database

    @contextmanager
    def write(self, *, serial: str | None = _ALL_WRITES) -> Iterator[Connection]:
        """A transaction that may write; committed at the end of the block, rolled back by an exception.

        Transactions with the same `serial` (by default all) run one after the other, so that the numbers which they give
        out become visible in order, and no two wait for each other's rows. Raises StoreUnavailable where the database does not answer: whether a transaction that broke
        off while it was committed is in force is not known then.
        """
        with self._answering(), self._alone(), self.engine.connect() as connection:
            connection.execution_options(yeoul_write=True)
            with connection.begin():
                if serial is not None:
                    _take_turns(connection, serial)
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that reads one consistent state. Raises StoreUnavailable where the database does not answer."""
        with self._answering(), self.engine.connect() as connection:
            connection.execution_options(**_READING.get(self.engine.dialect.name, {}))
            with connection.begin():
                yield connection

    def ping(self) -> str:
        """The dialect's name, or StoreUnavailable."""
        with self.read() as connection:
            connection.execute(select(1))
        return self.engine.dialect.name

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """On SQLite the threads of this process write one after the other: its own way to wait is to look again and again, which
        took an eighth of the processor under a load of writes."""
        if self._writing is None:
            yield
            return
        if not self._writing.acquire(timeout=_BUSY_TIMEOUT_S):
            raise _unavailable(self.engine.url, TimeoutError("database is locked"))
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turns a failure of the database itself into StoreUnavailable; a statement that it refuses stays what it is."""
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise _unavailable(self.engine.url, error) from error
        except DatabaseError as error:
            # SQLite's "disk image is malformed" and the like are of no narrower class.
            if type(error) is not DatabaseError and getattr(error.orig, "sqlstate", None) not in _UNUSABLE:
                raise
            raise _unavailable(self.engine.url, error) from error

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
        try:
            with self._migrating() as engine:
                config.attributes["engine"] = engine
                command.upgrade(config, "head")
        except CommandError as error:
            address = self.engine.url.render_as_string(hide_password=True)
            why = f"a newer Yeoul made it ({error})"
            raise StoreUnavailable("state database", address, why, "update Yeoul, or set another data_dir") from error

    @contextmanager
    def _migrating(self) -> Iterator[Engine]:
        """The engine to migrate with, while no other process migrates. SQLite's migrations begin IMMEDIATE."""
        if self.engine.dialect.name != "postgresql":
            yield self.engine
            return
        engine = _engine(self.engine.url, patient=True)
        try:
            with engine.begin() as connection:
                _take_turns(connection, "migrate")
                yield engine
        finally:
            engine.dispose()


def seconds_now(connection: Connection) -> float:
    """Seconds since 1970 by the clock of the database's machine, after whatever the transaction has waited for."""
    if connection.dialect.name != "postgresql":
        return time.time()
    return float(connection.execute(select(cast(extract("epoch", func.clock_timestamp()), Float))).scalar_one())


def _unavailable(url: URL, error: Exception) -> StoreUnavailable:
    why = " ".join(str(getattr(error, "orig", None) or error).split())  # PostgreSQL tells it in several lines
    address = url.render_as_string(hide_password=True)
    cure = (
        "check data_dir and database_url: a database that runs, a folder that can be written, a disk that is not full"
    )
    return StoreUnavailable("state database", address, why, cure)


def _take_turns(connection: Connection, duty: str) -> None:
    """Waits until no other transaction does `duty`, and keeps them waiting until this one ends."""
    if connection.dialect.name == "postgresql":
        digest = hashlib.blake2b(duty.encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "big", signed=True)
        connection.execute(select(func.pg_advisory_xact_lock(key)))


def _engine(url: URL, *, patient: bool = False) -> Engine:
    """`patient` is for migrations, whose statements may take long; only PostgreSQL has limits to lift."""
    if url.drivername in _POSTGRESQL:
        from pipeline.storage import postgres  # noqa: PLC0415 - see there

        return postgres.engine(url, patient=patient)
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    return _sqlite(url)


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """SQLite does not wait by itself where several processes make a new database at once: only one can change its mode."""
    end = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(_BUSY_LOOK_S)
        else:
            return


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})

    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # pysqlite would begin transactions by its own rules
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("yeoul_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    return engine
