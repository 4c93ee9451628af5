"""A PostgreSQL that hangs, is busy or is asked by many at once: every wait ends, and whoever asks is told."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine, make_url, select, text
from sqlalchemy.exc import OperationalError

from pipeline.errors import StoreUnavailable
from pipeline.storage import postgres
from pipeline.storage.database import StateDatabase
from pipeline.storage.tables import leftovers
from tests.faults import until
from tests.postgres_server import Server, frozen

pytestmark = pytest.mark.postgres

_SHORT_S = 0.5
_CONNECT_S = 2  # psycopg takes no less
_WAIT = 120.0  # seconds until a test gives up waiting
_AT_ONCE = 45  # the API's 40 threads and what works beside them


@pytest.fixture
def database(postgres_url: str) -> Iterator[StateDatabase]:
    opened = StateDatabase.open(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def impatient(database: StateDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateDatabase]:
    """The same one, of which a pooled connection and a new one are given up soon."""
    monkeypatch.setattr(postgres, "_PING_S", _SHORT_S)
    monkeypatch.setattr(postgres, "_CONNECT_S", _CONNECT_S)
    opened = StateDatabase(postgres.engine(database.engine.url))
    yield opened
    opened.close()


def serves(database: StateDatabase) -> bool:
    try:
        return database.ping() == "postgresql"
    except StoreUnavailable:  # a busy machine may take longer than the patience of `impatient`
        return False


def shown(engine: Engine, name: str) -> str:
    with engine.connect() as connection:
        return str(connection.execute(text(f"SHOW {name}")).scalar_one())


def test_a_server_that_hangs_is_unavailable_within_seconds_and_serves_again(
    postgres_server: Server, impatient: StateDatabase
) -> None:
    until(lambda: serves(impatient), _WAIT, "it does not serve")
    with frozen(postgres_server), pytest.raises(StoreUnavailable, match="timeout expired"):
        impatient.ping()
    until(lambda: serves(impatient), _WAIT, "it does not serve again")


def test_a_server_that_hangs_in_a_transaction_is_unavailable_and_leaves_nothing(
    postgres_server: Server, database: StateDatabase
) -> None:
    def write() -> None:
        with database.write() as connection:
            connection.execute(text("INSERT INTO leftovers VALUES ('a', now())"))
            driver = connection.connection.driver_connection
            assert isinstance(driver, postgres.Connection)
            assert driver.patience == postgres._SILENCE_S
            driver.patience = _SHORT_S
            with frozen(postgres_server):
                connection.execute(select(1))

    with pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s"):
        write()
    with database.read() as connection:
        assert connection.execute(select(leftovers)).all() == []


def test_who_waits_too_long_for_a_lock_is_told(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_LOCK_MS", 100)
    database = StateDatabase.open(postgres_url)
    with (
        database.write(serial="accept"),
        pytest.raises(StoreUnavailable, match="lock timeout"),
        database.write(serial="accept"),
    ):
        pass
    database.close()


def test_a_statement_that_takes_too_long_is_told(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_STATEMENT_MS", 2_000)
    database = StateDatabase.open(postgres_url)
    with pytest.raises(StoreUnavailable, match="statement timeout"), database.read() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))
    database.close()


def test_every_thread_of_the_api_has_a_connection(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_CONNECT_S", round(_WAIT))  # all connect at once
    database = StateDatabase.open(postgres_url)
    together = Barrier(_AT_ONCE)

    def read() -> None:
        with database.read() as connection:
            connection.execute(select(1))
            together.wait(timeout=_WAIT)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for each in [pool.submit(read) for _ in range(_AT_ONCE)]:
            each.result()
    database.close()


def test_what_the_url_says_comes_before_the_defaults(postgres_url: str) -> None:
    plain = postgres.engine(make_url(postgres_url))
    told = postgres.engine(make_url(f"{postgres_url}?application_name=other&options=-c%20lock_timeout%3D7s"))
    assert (shown(plain, "application_name"), shown(plain, "lock_timeout")) == ("yeoul", "10s")
    assert (shown(told, "application_name"), shown(told, "lock_timeout")) == ("other", "7s")
    plain.dispose()
    told.dispose()


def test_only_migrations_may_take_as_long_as_they_take(postgres_url: str) -> None:
    for patient, limit in ((False, "30s"), (True, "0")):
        engine = postgres.engine(make_url(postgres_url), patient=patient)
        assert shown(engine, "statement_timeout") == limit
        engine.dispose()


def test_a_connection_of_ones_own_does_not_go_back_to_the_pool(postgres_url: str) -> None:
    engine = postgres.engine(make_url(postgres_url))
    with postgres.own_connection(engine) as own:
        assert own.autocommit
        engine.dispose()
        assert own.execute("SELECT 1").fetchone() == (1,)
    assert own.closed


def test_a_connection_that_lost_patience_is_closed_for_good(postgres_server: Server, postgres_url: str) -> None:
    engine = postgres.engine(make_url(postgres_url))
    with postgres.own_connection(engine) as own:
        own.patience = _SHORT_S
        with frozen(postgres_server), pytest.raises(postgres.Lost, match="no answer"):
            own.execute("SELECT 1")
        with pytest.raises(postgres.Lost, match="closed"):
            own.execute("SELECT 2")
    engine.dispose()


def test_an_error_of_the_statement_itself_costs_no_connection(postgres_url: str) -> None:
    engine = postgres.engine(make_url(postgres_url))
    with engine.connect() as connection:
        mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with pytest.raises(OperationalError, match="lock"):
            connection.execute(text("DO $$ BEGIN RAISE lock_not_available USING MESSAGE = 'lock'; END $$"))
        connection.rollback()
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == mine
    engine.dispose()
