"""PostgreSQL behind the state database: a pool that recovers, of connections none of which waits for ever.

The only file that imports psycopg, which takes a sixth of a second: it is imported where a PostgreSQL is asked for, and
nowhere else. Knows no tables and no transactions.
"""

from __future__ import annotations

import time
from typing import Any, cast

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.rows import TupleRow
from sqlalchemy import URL, Engine, NullPool, create_engine, event

_CONNECT_S = 5  # for each address of the host
_PING_S = 5.0  # for the question whether a pooled connection still lives
_LOCK_MS = 10_000  # for another transaction: the longest holds its locks for about a second
_STATEMENT_MS = 30_000  # for one statement, told by a server that still works
_SILENCE_S = 45.0  # for an answer at all: longer than the server's own limits, which say more
_KEEPALIVE = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}  # seconds
_UNSENT_MS = 10_000  # until a network that takes no more of our bytes counts as gone
# 40 threads of the API and five that work beside them; ten stay open. Who waits 10 s for one is told.
_POOL = {"pool_size": 10, "max_overflow": 35, "pool_timeout": 10}
_WAKE_S = 0.1  # between two looks for Ctrl-C during a wait, as psycopg's own

Lost = psycopg.Error  # what a connection raises that is gone, or cannot be made


class Connection(psycopg.Connection[TupleRow]):
    """A connection that is closed when the server leaves it without an answer for `patience` seconds (None: never).

    The limits that the server keeps are no help where the server itself hangs, and TCP sees nothing wrong with that.
    """

    patience: float | None = _PING_S

    def wait(self, gen: PQGen[RV], interval: float = _WAKE_S, timeout: float | None = None) -> RV:
        if timeout is not None or self.patience is None:
            return super().wait(gen, interval, timeout)
        until = time.monotonic() + self.patience
        try:
            return super().wait(gen, interval, self.patience)
        except psycopg.OperationalError as error:
            if time.monotonic() < until:
                raise
            self.pgconn.finish()  # an answer that still came would be taken for that of the next statement
            raise psycopg.OperationalError(f"no answer within {self.patience:g} s") from error


def engine(url: URL, *, patient: bool = False) -> Engine:
    """A pool for `url`; what its query says comes before what is set here.

    `patient` is for migrations: no pool, and a statement may take as long as it takes.
    """
    silence = None if patient else _SILENCE_S
    limits = "" if patient else f"-c lock_timeout={_LOCK_MS} -c statement_timeout={_STATEMENT_MS}"
    wanted: dict[str, Any] = {
        "application_name": "yeoul",
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": _UNSENT_MS,
        "options": limits,
        **_KEEPALIVE,
    }
    made = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={name: value for name, value in wanted.items() if name not in url.query},
        isolation_level="READ COMMITTED",
        **({"poolclass": NullPool} if patient else {"pool_pre_ping": True, **_POOL}),
    )

    def connect(_dialect: object, _record: object, arguments: list[Any], parameters: dict[str, Any]) -> Connection:
        return Connection.connect(*arguments, **parameters)

    def lend(connection: Connection, _record: object, _borrower: object) -> None:
        connection.patience = silence

    def take_back(connection: Connection | None, _record: object) -> None:
        if connection is not None:
            connection.patience = _PING_S  # what comes next is the pool's question whether it lives

    event.listen(made, "do_connect", connect)
    event.listen(made, "checkout", lend)
    event.listen(made, "checkin", take_back)
    return made


def own_connection(made: Engine) -> Connection:
    """A connection in autocommit that is no longer the pool's. Raises Lost."""
    lent = made.raw_connection()
    lent.detach()
    connection = cast("Connection", lent.dbapi_connection)
    connection.autocommit = True
    return connection
