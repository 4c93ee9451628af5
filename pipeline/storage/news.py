"""What is new to an engine that follows the change log: one transaction, so that all of it is of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select

from pipeline.errors import LogPruned
from pipeline.storage import acceptance, carried, manifests
from pipeline.storage.articles import counted_in
from pipeline.storage.database import StateDatabase
from pipeline.storage.rows import LogEntry
from pipeline.storage.tables import articles, changes


@dataclass(frozen=True, slots=True)
class News:
    """The log after a position, as far as the collection has rows for it.

    `seq`: all changes up to it are in a final state. `behind`: the log goes on beyond what the collection has; `seq` says
    nothing then. `shown`: of each article in `entries` that is visible, (revision, passages in the collection). `carried`:
    of some of them (revision, rows as text), which need not be read from the collection.
    """

    entries: tuple[LogEntry, ...]
    seq: int
    behind: bool
    shown: Mapping[str, tuple[int, int]]
    carried: Mapping[str, tuple[int, str]]


def since(database: StateDatabase, position: int, limit: int, *, collection: str, with_rows: bool) -> News:
    """At most `limit` lines of the log after `position`. Raises LogPruned where some of those that the collection has rows
    for are gone."""
    query = select(changes).where(changes.c.position > position).order_by(changes.c.position).limit(limit)
    with database.read() as connection:
        bound = manifests.bound_in(connection, collection)
        if position < acceptance.pruned_to(connection, "changes"):
            if bound is None or position < bound:
                raise LogPruned(position)
            return News((), 0, True, {}, {})
        lines = [LogEntry.of(row) for row in connection.execute(query)]
        entries = tuple(line for line in lines if bound is None or line.position <= bound)
        shown: dict[str, tuple[int, int]] = {}
        rows: dict[str, tuple[int, str]] = {}
        ids = {entry.article_id for entry in entries if entry.revision is not None}
        if ids:
            counts = counted_in(connection, collection).where(articles.c.id.in_(ids))
            shown = {row[0]: (row[1], row[2]) for row in connection.execute(counts)}
            rows = carried.of(connection, collection, ids) if with_rows else {}
        return News(entries, acceptance.settled_up_to(connection), len(entries) < len(lines), shown, rows)
