"""Which processes answer searches, and how far each is: each reports itself, a rebuild and the console look."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, insert, select, update

from pipeline.storage.database import StateDatabase, seconds_now
from pipeline.storage.tables import readers

REPORT_SECONDS = 2.0
_SILENT_SECONDS = 15.0  # a process that reported nothing for so long is gone
_FORGOTTEN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Reader:
    """A process that answers. `collection` is the newest one that is loaded there, `position` its line of the change log."""

    name: str
    collection: str
    position: int
    seen_at: datetime


def report(database: StateDatabase, name: str, collection: str, position: int) -> None:
    """Says that the process `name` is alive and where it stands."""
    with database.write(serial=None) as connection:
        now = _now(connection)
        values = {"collection": collection, "position": position, "seen_at": now}
        if not connection.execute(update(readers).where(readers.c.name == name).values(**values)).rowcount:
            connection.execute(insert(readers).values(name=name, **values))
            connection.execute(delete(readers).where(readers.c.seen_at < now - timedelta(seconds=_FORGOTTEN_SECONDS)))


def leave(database: StateDatabase, name: str) -> None:
    """Says that the process `name` ends."""
    with database.write(serial=None) as connection:
        connection.execute(delete(readers).where(readers.c.name == name))


def alive(database: StateDatabase) -> list[Reader]:
    """The processes that reported themselves within the last seconds."""
    with database.read() as connection:
        since = _now(connection) - timedelta(seconds=_SILENT_SECONDS)
        query = select(readers).where(readers.c.seen_at >= since).order_by(readers.c.name)
        return [Reader(r.name, r.collection, r.position, r.seen_at) for r in connection.execute(query)]


def _now(connection: Connection) -> datetime:
    return datetime.fromtimestamp(seconds_now(connection), UTC)
