"""What is new to an engine that follows the change log: one transaction, so that all of it is of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Integer, bindparam, select

from pipeline.errors import LogPruned
from pipeline.storage import acceptance, carried
from pipeline.storage.articles import counted
from pipeline.storage.database import StateDatabase
from pipeline.storage.rows import LogEntry
from pipeline.storage.tables import articles, changes, collections


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


_MINE = collections.c.name == bindparam("collection")
_HEAD = select(
    select(collections.c.state).where(_MINE).scalar_subquery().label("state"),
    select(collections.c.position).where(_MINE).scalar_subquery().label("bound"),
    acceptance.PRUNED["changes"].label("pruned_to"),
    acceptance.SETTLED.label("settled_up_to"),
)
_LINES = (
    select(changes)
    .where(changes.c.position > bindparam("position"))
    .order_by(changes.c.position)
    .limit(bindparam("limit", type_=Integer))
)


def since(database: StateDatabase, position: int, limit: int, *, collection: str, with_rows: bool) -> News:
    """At most `limit` lines of the log after `position`. Raises LogPruned where some of those that the collection has rows
    for are gone."""
    with database.read() as connection:  # few statements: on PostgreSQL each is a way there and back
        head = connection.execute(_HEAD, {"collection": collection}).one()
        in_use = head.state in {None, "active"}
        bound = None if in_use else head.bound or 0
        if position < head.pruned_to:
            if bound is None or position < bound:
                raise LogPruned(position)
            return News((), 0, True, {}, {})
        lines = [LogEntry.of(row) for row in connection.execute(_LINES, {"position": position, "limit": limit})]
        entries = tuple(line for line in lines if bound is None or line.position <= bound)
        shown: dict[str, tuple[int, int]] = {}
        rows: dict[str, tuple[int, str]] = {}
        ids = {entry.article_id for entry in entries}  # of a deleted one too: a later line may show it again
        if ids:
            query = counted(collection, in_use=in_use)
            if with_rows:
                query = carried.beside(query, collection)
            for article_id, revision, passages, *text in connection.execute(query.where(articles.c.id.in_(ids))):
                shown[article_id] = revision, passages
                if text and text[0] is not None:
                    rows[article_id] = revision, text[0]
        return News(entries, head.settled_up_to, len(entries) < len(lines), shown, rows)
