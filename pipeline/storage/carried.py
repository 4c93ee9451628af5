"""Rows of the articles that were committed in the last minute, beside the commit itself.

The processes that follow the change log would else read them from the vector store, which shows a server's readers nothing
newer than its last time tick: a quarter of a second, on every process, for each change. Knows the rows as text alone.
Functions over an open connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, insert

from pipeline.storage.tables import articles, carried


def put(connection: Connection, collection: str, rows: Mapping[str, tuple[int, str]], now: datetime) -> None:
    """Keeps these rows (article → revision, all its rows as text) of `collection`, in place of those kept before."""
    if not rows:
        return
    connection.execute(delete(carried).where(carried.c.collection == collection, carried.c.article_id.in_(list(rows))))
    connection.execute(
        insert(carried),
        [
            {"collection": collection, "article_id": article_id, "revision": revision, "rows": text, "created_at": now}
            for article_id, (revision, text) in rows.items()
        ],
    )


def beside(query: Select[Any], collection: str) -> Select[Any]:
    """A query over the registry, with what is kept of the visible revision of each article beside it: text or NULL."""
    same = (carried.c.article_id == articles.c.id) & (carried.c.revision == articles.c.revision)
    return query.add_columns(carried.c.rows).outerjoin(carried, same & (carried.c.collection == collection))


def drop(connection: Connection, before: datetime) -> int:
    """Forgets what was kept before that time: how many articles."""
    return connection.execute(delete(carried).where(carried.c.created_at < before)).rowcount
