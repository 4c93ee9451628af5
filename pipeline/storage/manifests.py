"""Which collections exist, what each was built with, and which one is in use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, insert, select, update

from pipeline.index.manifest import Manifest
from pipeline.storage.database import StateDatabase
from pipeline.storage.tables import collections


@dataclass(frozen=True, slots=True)
class ActiveCollection:
    """The collection in use, what it was built with, and when it was put in use."""

    name: str
    manifest: Manifest
    created_at: datetime


def active(database: StateDatabase) -> ActiveCollection | None:
    """The collection in use; None before the first one is made."""
    with database.read() as connection:
        row = connection.execute(select(collections).where(collections.c.active)).one_or_none()
    return ActiveCollection(row.name, Manifest.from_json(row.manifest), row.created_at) if row is not None else None


def fresh_name(database: StateDatabase, prefix: str) -> str:
    """A name that no collection had yet: `prefix`_1, `prefix`_2, …"""
    with database.read() as connection:
        return f"{prefix}_{int(connection.execute(select(func.count()).select_from(collections)).scalar_one()) + 1}"


def activate(database: StateDatabase, name: str, manifest: Manifest) -> ActiveCollection:
    """Puts `name` in use, and the one before it out of use, in one step."""
    now = datetime.now(UTC)
    with database.write() as connection:
        connection.execute(update(collections).values(active=False))
        values = {"manifest": manifest.to_json(), "active": True, "created_at": now}
        changed = connection.execute(update(collections).where(collections.c.name == name).values(**values))
        if not changed.rowcount:
            connection.execute(insert(collections).values(name=name, **values))
    return ActiveCollection(name, manifest, now)
