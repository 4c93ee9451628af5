"""Which collections exist, what each was built with, and which one is in use."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import insert, select, update

from pipeline.index.manifest import Manifest
from pipeline.storage.database import StateDatabase, collections


def active(database: StateDatabase) -> tuple[str, Manifest] | None:
    """The collection in use and its manifest; None before the first one is made."""
    with database.read() as connection:
        row = connection.execute(select(collections).where(collections.c.active)).one_or_none()
    return (row.name, Manifest.from_json(row.manifest)) if row is not None else None


def activate(database: StateDatabase, name: str, manifest: Manifest) -> None:
    """Puts `name` in use, and the one before it out of use, in one step."""
    with database.write() as connection:
        connection.execute(update(collections).values(active=False))
        values = {"manifest": manifest.to_json(), "active": True, "created_at": datetime.now(UTC)}
        changed = connection.execute(update(collections).where(collections.c.name == name).values(**values))
        if not changed.rowcount:
            connection.execute(insert(collections).values(name=name, **values))
