"""Wake-ups between processes: they come with a commit, soon, and again after the server was away."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from pipeline.storage import postgres, signals
from pipeline.storage.database import StateDatabase
from pipeline.storage.signals import Listener
from tests.postgres_server import Server, frozen, kill, restart, stop

_QUIET = 0.5  # seconds in which nothing may come
_WAIT = 120.0  # seconds: for what a busy machine does late, and a broken one never
_MANY = 50


class Calls:
    """What was called back, in order."""

    def __init__(self) -> None:
        self.seen: queue.Queue[str] = queue.Queue()

    def of(self, channel: str) -> Callable[[], None]:
        return lambda: self.seen.put(channel)

    def next(self, seconds: float = _WAIT) -> str:
        return self.seen.get(timeout=seconds)


@pytest.fixture
def database(postgres_url: str) -> Iterator[StateDatabase]:
    opened = StateDatabase.open(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def listener(database: StateDatabase, calls: Calls) -> Iterator[Listener]:
    """Listens to `inbox` and `changes`, and has begun to."""
    made = Listener(database, {"inbox": calls.of("inbox"), "changes": calls.of("changes")})
    made.start()
    assert {calls.next(), calls.next()} == {"inbox", "changes"}  # whatever was missed before it began
    yield made
    made.stop()


def send(database: StateDatabase, channel: str) -> None:
    with database.write() as connection:
        signals.send(connection, channel)


@pytest.mark.postgres
@pytest.mark.usefixtures("listener")
def test_a_commit_wakes_the_listener_of_its_channel(database: StateDatabase, calls: Calls) -> None:
    for channel in ("inbox", "changes", "inbox"):
        send(database, channel)
        assert calls.next() == channel  # nobody looks without one


@pytest.mark.postgres
@pytest.mark.usefixtures("listener")
def test_nobody_is_woken_before_the_commit_or_by_a_rollback(database: StateDatabase, calls: Calls) -> None:
    with contextlib.suppress(ZeroDivisionError), database.write(serial=None) as connection:
        signals.send(connection, "inbox")
        raise ZeroDivisionError
    with database.write(serial=None) as connection:
        signals.send(connection, "inbox")
        send(database, "changes")
        assert calls.next() == "changes"  # signals come in the order of their commits
    assert calls.next() == "inbox"
    assert calls.seen.empty()


@pytest.mark.postgres
def test_signals_that_come_while_a_callback_runs_are_one_call(database: StateDatabase) -> None:
    called: queue.Queue[str] = queue.Queue()
    go_on = threading.Semaphore(0)

    def slow(channel: str) -> None:
        called.put(channel)
        assert go_on.acquire(timeout=_WAIT)

    listener = Listener(database, {"inbox": lambda: slow("inbox"), "last": lambda: slow("last")})
    listener.start()
    called.get(timeout=_WAIT)  # for what was missed before listening began: it holds the thread
    for channel in ["inbox"] * _MANY + ["last"]:
        send(database, channel)
    go_on.release(4)
    assert [called.get(timeout=_WAIT) for _ in range(3)] == ["last", "inbox", "last"]
    send(database, "last")
    assert called.get(timeout=_WAIT) == "last"  # of the others none is left
    go_on.release()
    listener.stop()


@pytest.mark.postgres
@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("end", [stop, kill])
def test_a_listener_survives_a_restart_and_looks_for_what_it_missed(
    postgres_server: Server,
    database: StateDatabase,
    calls: Calls,
    end: Callable[[Server], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, signals.__name__):
        end(postgres_server)
        restart(postgres_server)
        assert {calls.next(), calls.next()} == {"inbox", "changes"}
    assert "no signals from the state database" in caplog.text
    send(database, "inbox")
    assert calls.next() == "inbox"


@pytest.mark.postgres
def test_a_listener_waits_for_a_server_that_is_away_when_it_starts(
    postgres_server: Server, database: StateDatabase, calls: Calls
) -> None:
    listener = Listener(database, {"inbox": calls.of("inbox")})
    stop(postgres_server)
    try:
        listener.start()
        with pytest.raises(queue.Empty):
            calls.next(_QUIET)
    finally:
        restart(postgres_server)
    assert calls.next() == "inbox"
    listener.stop()


@pytest.mark.postgres
def test_a_stopped_listener_is_gone_and_calls_nobody(database: StateDatabase, listener: Listener, calls: Calls) -> None:
    thread = listener._thread
    assert thread is not None
    listener.stop()
    thread.join(_WAIT)
    assert not thread.is_alive()
    send(database, "inbox")
    later = Listener(database, {"inbox": calls.of("later")})
    later.start()
    assert calls.next() == "later"
    send(database, "inbox")
    assert calls.next() == "later"
    later.stop()
    assert calls.seen.empty()


@pytest.mark.postgres
def test_stopping_does_not_wait_for_a_server_that_hangs(
    postgres_server: Server, postgres_url: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, own_connection = threading.Event(), postgres.own_connection

    def watched(engine: Engine) -> postgres.Connection:
        connecting.set()
        return own_connection(engine)

    monkeypatch.setattr(postgres, "own_connection", watched)
    monkeypatch.setattr(postgres, "_PING_S", _WAIT)
    monkeypatch.setattr(postgres, "_CONNECT_S", round(_WAIT))
    database = StateDatabase.open(postgres_url)
    listener = Listener(database, {"inbox": calls.of("inbox")})
    with frozen(postgres_server):
        listener.start()
        assert connecting.wait(_WAIT)
        thread = listener._thread
        assert thread is not None
        listener.stop()
        assert thread.is_alive()  # it still waits for the server
    thread.join(_WAIT)
    assert not thread.is_alive()
    assert calls.seen.empty()
    database.close()


@pytest.mark.postgres
def test_a_listener_can_be_started_again(database: StateDatabase, listener: Listener, calls: Calls) -> None:
    listener.start()  # once more is no second thread
    listener.stop()
    listener.start()
    assert {calls.next(), calls.next()} == {"inbox", "changes"}
    send(database, "changes")
    assert calls.next() == "changes"
    assert calls.seen.empty()


def test_on_sqlite_nothing_is_sent_and_nobody_listens(tmp_path: Path, calls: Calls) -> None:
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    statements: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    threads = threading.active_count()
    listener = Listener(database, {"inbox": calls.of("inbox")})
    listener.start()
    send(database, "inbox")
    assert threading.active_count() == threads
    listener.stop()
    database.close()
    assert statements == ["BEGIN IMMEDIATE"]
