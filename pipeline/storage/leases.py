"""Leases: one holder of a duty at a time, with an epoch that a commit checks.

A holder that was stopped for longer than its lease may wake up and try to write: its epoch is no longer the newest, and
the commit is refused. After Burrows, "The Chubby lock service" (2006): sequencers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from pipeline.errors import YeoulError
from pipeline.storage.database import StateDatabase, leases


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


def acquire(database: StateDatabase, name: str, holder: str, seconds: float, *, alone: bool = False) -> Lease | None:
    """The lease on `name` for `seconds`, or None while another holder's has not run out.

    `alone` says that no other holder can be alive (the caller has the data folder's lock): what a killed one left is
    taken over at once. Were it wrong, the other's commits would be refused by their epoch.
    """
    now = time.time()
    with database.write() as connection:
        row = connection.execute(select(leases).where(leases.c.name == name).with_for_update()).one_or_none()
        if row is None:
            connection.execute(insert(leases).values(name=name, holder=holder, epoch=1, expires_at=now + seconds))
            return Lease(name, holder, 1)
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
        connection.execute(update(leases).where(leases.c.name == lease.name).values(expires_at=time.time() + seconds))


def release(database: StateDatabase, lease: Lease) -> None:
    """Gives `lease` back, so that the next holder need not wait; nothing happens if it was lost."""
    with database.write() as connection:
        connection.execute(
            update(leases).where(leases.c.name == lease.name, leases.c.epoch == lease.epoch).values(expires_at=0.0)
        )


def check_lease(connection: Connection, lease: Lease) -> None:
    """Raises LeaseLost unless `lease` is the newest, and keeps it so until the transaction ends."""
    row = connection.execute(select(leases.c.epoch).where(leases.c.name == lease.name).with_for_update()).scalar_one()
    if row != lease.epoch:
        raise LeaseLost(lease.name, lease.holder)
