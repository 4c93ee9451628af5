"""Leases: one holder of a duty at a time, with an epoch that a commit checks.

A holder that was stopped for longer than its lease may wake up and try to write: its epoch is no longer the newest, and
the commit is refused. After Burrows, "The Chubby lock service" (2006): sequencers. How long a lease has to run is told by
one clock: PostgreSQL's, or this machine's for SQLite, which no other machine shares.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite

from pipeline.errors import Unavailable, YeoulError
from pipeline.storage.database import StateDatabase, seconds_now
from pipeline.storage.tables import leases

log = logging.getLogger(__name__)

# PostgreSQL and SQLite share "on conflict do nothing", each with an insert of its own.
_INSERT: dict[str, Callable[[Table], postgresql.Insert | sqlite.Insert]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}
SECONDS = 15.0  # without a sign of life, which comes three times as often: then another process takes over
_LOOK_SECONDS = 0.1  # between two tries to get a turn
_FREE = {"holder": "", "epoch": 0, "expires_at": 0.0}  # a lease that nobody ever had


class LeaseLost(YeoulError):
    """Another process took over the duty; the work under way is dropped, nothing is lost: the inbox still has it."""

    code = "lease_lost"

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(f"the lease {name!r} of {holder} was taken over", "nothing to do: the other worker goes on")


@dataclass(frozen=True, slots=True)
class Lease:
    """Proof of holding `name`: valid while no other epoch was given out."""

    name: str
    holder: str
    epoch: int


def new_holder() -> str:
    """A name for a holder, which no other one has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def acquire(database: StateDatabase, name: str, holder: str, seconds: float, *, alone: bool = False) -> Lease | None:
    """The lease on `name` for `seconds`, or None while another holder's has not run out.

    `alone` says that no other holder can be alive (the caller has the data folder's lock): what a killed one left is
    taken over at once. Were it wrong, the other's commits would be refused by their epoch.
    """
    with database.write() as connection:
        # Without a row there would be nothing to lock, and of two that ask at once both would get it or one an error.
        connection.execute(_INSERT[connection.dialect.name](leases).values(name=name, **_FREE).on_conflict_do_nothing())
        row = connection.execute(select(leases).where(leases.c.name == name).with_for_update()).one()
        now = seconds_now(connection)
        if row.holder != holder and row.expires_at > now and not alone:
            return None
        epoch = row.epoch + 1
        connection.execute(
            update(leases).where(leases.c.name == name).values(holder=holder, epoch=epoch, expires_at=now + seconds)
        )
        return Lease(name, holder, epoch)


def renew(database: StateDatabase, lease: Lease, seconds: float) -> None:
    """Prolongs `lease`. Raises LeaseLost."""
    with database.write() as connection:
        check_lease(connection, lease)
        until = seconds_now(connection) + seconds
        connection.execute(update(leases).where(leases.c.name == lease.name).values(expires_at=until))


def holder(database: StateDatabase, name: str) -> str | None:
    """Who holds the lease on `name`; None where nobody does."""
    with database.read() as connection:
        row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
        return row.holder if row is not None and row.expires_at > seconds_now(connection) else None


def release(database: StateDatabase, lease: Lease) -> None:
    """Gives `lease` back, so that the next holder need not wait; nothing happens if it was lost."""
    with database.write() as connection:
        connection.execute(
            update(leases).where(leases.c.name == lease.name, leases.c.epoch == lease.epoch).values(expires_at=0.0)
        )


@contextmanager
def kept(database: StateDatabase, lease: Lease, seconds: float) -> Iterator[None]:
    """Prolongs `lease` for as long as the block takes, however slow what happens there is, and gives it back."""
    done = threading.Event()

    def prolong() -> None:
        while not done.wait(seconds / 3):
            try:
                renew(database, lease, seconds)
            except LeaseLost:
                return  # the commit under way will be refused
            except Unavailable as error:
                log.warning("the lease %r cannot be prolonged: %s", lease.name, error)

    keeper = threading.Thread(target=prolong, name=f"lease {lease.name}", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        try:
            release(database, lease)
        except Unavailable as error:  # what the block did is done
            log.warning("the lease %r runs out by itself: %s", lease.name, error)


@contextmanager
def turn(database: StateDatabase, name: str) -> Iterator[None]:
    """Waits until nobody else has the lease on `name`, and keeps it for as long as the block takes."""
    holder = new_holder()
    while (lease := acquire(database, name, holder, SECONDS)) is None:
        time.sleep(_LOOK_SECONDS)
    with kept(database, lease, SECONDS):
        yield


def check_lease(connection: Connection, lease: Lease) -> None:
    """Raises LeaseLost unless `lease` is the newest, and keeps it so until the transaction ends."""
    row = connection.execute(select(leases.c.epoch).where(leases.c.name == lease.name).with_for_update()).scalar_one()
    if row != lease.epoch:
        raise LeaseLost(lease.name, lease.holder)


def check(database: StateDatabase, lease: Lease) -> None:
    """Raises LeaseLost unless `lease` is the newest at this moment."""
    with database.read() as connection:
        epoch = connection.execute(select(leases.c.epoch).where(leases.c.name == lease.name)).scalar_one()
    if epoch != lease.epoch:
        raise LeaseLost(lease.name, lease.holder)
