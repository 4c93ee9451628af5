"""Which processes answer searches, and how far each is: each reports itself, a rebuild and the console look.

Nobody else sees what a process has in memory, so each is asked here to compare it with the registry, and answers here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Select, delete, insert, select, update

from pipeline.storage.database import StateDatabase, seconds_now
from pipeline.storage.tables import readers

Asked = Literal["compare", "repair"]
REPORT_SECONDS = 2.0
_SILENT_SECONDS = 15.0  # a process that reported nothing for so long is gone
_FORGOTTEN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Reader:
    """A process that answers. `collection` is the newest one that is loaded there, `position` its line of the change log;
    `waiting` searches stood in line there when it looked."""

    name: str
    collection: str
    position: int
    seen_at: datetime
    waiting: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a process was asked to compare: `differing` articles were not as the registry says; None: it has not answered."""

    name: str
    differing: int | None


def report(database: StateDatabase, name: str, collection: str, position: int, *, waiting: int = 0) -> Asked | None:
    """Says that the process `name` is alive, where it stands and how many searches wait there; gives what it is asked to do
    with its index."""
    with database.write(serial=None) as connection:
        now = _now(connection)
        values = {"collection": collection, "position": position, "seen_at": now, "waiting": waiting}
        if not connection.execute(update(readers).where(readers.c.name == name).values(**values)).rowcount:
            connection.execute(insert(readers).values(name=name, **values))
            connection.execute(delete(readers).where(readers.c.seen_at < now - timedelta(seconds=_FORGOTTEN_SECONDS)))
        return connection.execute(select(readers.c.asked).where(readers.c.name == name)).scalar()


def ask(database: StateDatabase, what: Asked) -> None:
    """Asks every process that answers to compare its index with the registry, and to mend it where that is asked."""
    with database.write(serial=None) as connection:
        connection.execute(update(readers).values(asked=what, differing=None))


def answer(database: StateDatabase, name: str, differing: int) -> None:
    """The process `name` has done what it was asked: so many articles were not as the registry says."""
    with database.write(serial=None) as connection:
        connection.execute(update(readers).where(readers.c.name == name).values(asked=None, differing=differing))


def comparisons(database: StateDatabase) -> list[Comparison]:
    """The answers of the processes that are alive to what was asked last."""
    with database.read() as connection:
        return [
            Comparison(row.name, None if row.asked is not None else row.differing)
            for row in connection.execute(_alive(connection))
        ]


def leave(database: StateDatabase, name: str) -> None:
    """Says that the process `name` ends."""
    with database.write(serial=None) as connection:
        connection.execute(delete(readers).where(readers.c.name == name))


def alive(database: StateDatabase) -> list[Reader]:
    """The processes that reported themselves within the last seconds."""
    with database.read() as connection:
        found = connection.execute(_alive(connection))
        return [Reader(r.name, r.collection, r.position, r.seen_at, r.waiting) for r in found]


def _alive(connection: Connection) -> Select[Any]:
    since = _now(connection) - timedelta(seconds=_SILENT_SECONDS)
    return select(readers).where(readers.c.seen_at >= since).order_by(readers.c.name)


def _now(connection: Connection) -> datetime:
    return datetime.fromtimestamp(seconds_now(connection), UTC)
