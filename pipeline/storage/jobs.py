"""What is done on a schedule: a row a job, with its last run, its next one, and what a person asks of it.

Whoever wants a job to run now, or not at all, writes it here; the scheduler looks and obeys. Knows neither a scheduler nor
what a job does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from sqlalchemy import Row, delete, insert, select, update

from pipeline.errors import JobNotFound
from pipeline.storage import signals
from pipeline.storage.database import StateDatabase
from pipeline.storage.tables import jobs

CHANNEL = "jobs"  # signalled when somebody asks something of a job
CANARY, PRUNE, RECONCILE = "canary", "prune", "reconcile"
_OF_SOURCE = "source:"
_INTERRUPTED = "the process ended while it ran"

Outcome = Literal["never", "running", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands. `outcome`, `counts` and `error` are of the run that began at `started_at`; `requested_at`: it was
    asked to run now and has not begun since; `next_at`: when it runs by itself (None: never, it is paused)."""

    name: str
    paused: bool
    requested_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    next_at: datetime | None
    outcome: Outcome
    counts: Mapping[str, Any]
    error: str | None


def of_source(name: str) -> str:
    """The name of the job that reads the source `name`."""
    return _OF_SOURCE + name


# --- for everybody --------------------------------------------------------------------------------------------------


def listed(database: StateDatabase) -> list[Job]:
    """All jobs, by name."""
    with database.read() as connection:
        return [_job(row) for row in connection.execute(select(jobs).order_by(jobs.c.name))]


def find(database: StateDatabase, name: str) -> Job:
    """Raises JobNotFound."""
    with database.read() as connection:
        row = connection.execute(select(jobs).where(jobs.c.name == name)).one_or_none()
    if row is None:
        raise JobNotFound(name)
    return _job(row)


def request(database: StateDatabase, name: str) -> None:
    """Asks for a run now, though it be paused; one that runs already runs once more after that. Raises JobNotFound."""
    _set(database, name, signal=True, requested_at=datetime.now(UTC))


def pause(database: StateDatabase, name: str, paused: bool) -> None:
    """It runs by itself no more, or again; a run under way goes on. Raises JobNotFound."""
    _set(database, name, signal=True, paused=paused)


# --- for the scheduler ----------------------------------------------------------------------------------------------


def ensure(database: StateDatabase, names: Collection[str]) -> None:
    """Makes the rows that are missing, and deletes those of jobs that there are no more."""
    with database.write() as connection:
        there = set(connection.execute(select(jobs.c.name)).scalars())
        for name in sorted(there.difference(names)):
            connection.execute(delete(jobs).where(jobs.c.name == name))
        for name in sorted(set(names) - there):
            connection.execute(insert(jobs).values(name=name, paused=False, outcome="never", counts="{}"))


def requests(database: StateDatabase) -> list[str]:
    """The jobs that should run now and have not begun since they were asked."""
    query = select(jobs.c.name).where(jobs.c.requested_at.is_not(None)).order_by(jobs.c.requested_at, jobs.c.name)
    with database.read() as connection:
        return list(connection.execute(query).scalars())


def started(database: StateDatabase, name: str) -> None:
    """A run began: what was asked for is done with it. Raises JobNotFound."""
    now = datetime.now(UTC)
    _set(database, name, requested_at=None, started_at=now, outcome="running", counts="{}", error=None)


def finished(database: StateDatabase, name: str, counts: Mapping[str, Any], error: str | None) -> None:
    """The run ended; with an `error` it failed. Nothing happens where the job is no more: its source was removed."""
    outcome = "done" if error is None else "failed"
    values = {"outcome": outcome, "counts": orjson.dumps(counts).decode(), "error": error}
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.name == name).values(finished_at=datetime.now(UTC), **values))


def noted(
    database: StateDatabase, name: str, started_at: datetime, counts: Mapping[str, Any], error: str | None
) -> None:
    """A run that no scheduler began has ended, also of a job that no scheduler has seen yet."""
    with database.write() as connection:
        if not connection.execute(update(jobs).where(jobs.c.name == name).values(started_at=started_at)).rowcount:
            row = {"name": name, "paused": False, "outcome": "never", "counts": "{}", "started_at": started_at}
            connection.execute(insert(jobs).values(**row))
    finished(database, name, counts, error)


def interrupted(database: StateDatabase, name: str) -> None:
    """Whoever ran it ended before the run did; nothing happens where it does not run."""
    values = {"outcome": "failed", "error": _INTERRUPTED, "finished_at": datetime.now(UTC)}
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.name == name, jobs.c.outcome == "running").values(**values))


def planned(database: StateDatabase, times: Mapping[str, datetime | None]) -> None:
    """Notes when each runs next; None: not by itself."""
    with database.write() as connection:
        for name, next_at in times.items():
            connection.execute(update(jobs).where(jobs.c.name == name).values(next_at=next_at))


def _set(database: StateDatabase, name: str, *, signal: bool = False, **values: object) -> None:
    with database.write() as connection:
        if not connection.execute(update(jobs).where(jobs.c.name == name).values(**values)).rowcount:
            raise JobNotFound(name)
        if signal:
            signals.send(connection, CHANNEL)


def _job(row: Row[Any]) -> Job:
    return Job(
        name=row.name,
        paused=row.paused,
        requested_at=row.requested_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        next_at=row.next_at,
        outcome=row.outcome,
        counts=orjson.loads(row.counts),
        error=row.error,
    )
