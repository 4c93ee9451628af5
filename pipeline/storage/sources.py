"""The registry of sources: what each is, how far it was read, and which articles it delivered.

A batch goes into the inbox and its cursor is moved in one transaction: whatever is cut short is read again, and nothing is
skipped. Knows nothing about how a source is read, and nothing of what its options mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Row, delete, insert, select, update

from pipeline.documents import Article
from pipeline.errors import InvalidInput, OlderRevision, SourceChanged, SourceNotFound, shown
from pipeline.storage import signals
from pipeline.storage.articles import accept_in
from pipeline.storage.database import StateDatabase
from pipeline.storage.rows import Accepted
from pipeline.storage.tables import articles, source_articles, sources

CHANNEL = "sources"  # signalled when one was added, changed or removed
_NAME = re.compile(r"[^\W_][\w.-]{0,99}")  # the column's width; it stands in addresses and before article ids
_SQL_VARIABLES = 500  # ids in one IN (...): SQLite takes 32,766, old builds 999


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSource:
    """A source as it was added. `options` may hold a password: they are in no repr. `cursor` is {} before the first run."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(repr=False)
    schedule: str
    cursor: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a batch: articles that are in the inbox now, had not changed, or were newer there already, and
    articles whose removal is in the inbox now."""

    accepted: int
    unchanged: int
    older: int
    deleted: int


# --- the registry ---------------------------------------------------------------------------------------------------


def listed(database: StateDatabase) -> list[KnownSource]:
    """All sources, by name."""
    with database.read() as connection:
        return [_known(row) for row in connection.execute(select(sources).order_by(sources.c.name))]


def find(database: StateDatabase, name: str) -> KnownSource:
    """Raises SourceNotFound."""
    with database.read() as connection:
        row = _row(connection, name)
    if row is None:
        raise SourceNotFound(name)
    return _known(row)


def add(database: StateDatabase, name: str, kind: str, options: Mapping[str, Any], schedule: str) -> KnownSource:
    """A new source, read from its beginning. Raises InvalidInput for a name that is none, or that another source has."""
    _check_name(name)
    with database.write() as connection:
        if _row(connection, name) is not None:
            raise InvalidInput(
                f"there is a source {shown(name)} already", "choose another name, or remove that one before"
            )
        _insert(connection, name, kind, options, schedule)
        signals.send(connection, CHANNEL)
    return find(database, name)


def put(database: StateDatabase, name: str, kind: str, options: Mapping[str, Any], schedule: str) -> KnownSource:
    """Adds the source, or changes the one of that name; one with another kind or other options is read from its beginning.

    Raises InvalidInput for a name that is none.
    """
    _check_name(name)
    with database.write() as connection:
        row = _row(connection, name)
        known = _known(row) if row is not None else None
        if known is None:
            _insert(connection, name, kind, options, schedule)
        elif (known.kind, known.options, known.schedule) != (kind, options, schedule):
            same = (known.kind, known.options) == (kind, options)
            values = {"kind": kind, "options": _json(options), "schedule": schedule}
            cursor = {} if same else {"cursor": _json({})}
            connection.execute(update(sources).where(sources.c.name == name).values(**values, **cursor))
        if known is None or (known.kind, known.options, known.schedule) != (kind, options, schedule):
            signals.send(connection, CHANNEL)
    return find(database, name)


def remove(database: StateDatabase, name: str) -> list[str]:
    """Forgets the source and gives the ids of its articles, which stay as they are. Raises SourceNotFound."""
    with database.write() as connection:
        if not connection.execute(delete(sources).where(sources.c.name == name)).rowcount:
            raise SourceNotFound(name)
        query = select(source_articles.c.article_id).where(source_articles.c.source == name)
        ids = list(connection.execute(query.order_by(source_articles.c.article_id)).scalars())
        connection.execute(delete(source_articles).where(source_articles.c.source == name))
        signals.send(connection, CHANNEL)
    return ids


def articles_of(database: StateDatabase, name: str) -> dict[str, str]:
    """What the source delivered and did not take back: article id → its key there."""
    query = select(source_articles.c.article_id, source_articles.c.key).where(source_articles.c.source == name)
    with database.read() as connection:
        return {row.article_id: row.key for row in connection.execute(query)}


# --- what it delivers -----------------------------------------------------------------------------------------------


def keep(
    database: StateDatabase,
    known: KnownSource,
    *,
    found: Sequence[tuple[Article, str]] = (),
    removed: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    cursor: Mapping[str, Any] | None = None,
    lane: int,
) -> Kept:
    """Puts a batch into the inbox and moves the cursor (None: it stays), all or nothing.

    `found`: (article, its key in the source); `removed`: ids; `renamed`: id → new key. An article that another source
    delivered is this one's from now on, and a removal of an article that is not this one's is ignored. Where a newer
    version is known already, nothing changes, not even whose it is. An article without `updated_at` is as new as its content:
    what this source delivered before undoes no change that came from elsewhere since.

    Raises SourceChanged where the source is not any more what it was when it was read as `known`.
    """
    with database.write() as connection:
        _check_same(connection, known)
        ids = [article.id for article, _ in found]
        owned = _owned(connection, {*ids, *removed, *(renamed or {})})
        mine = {article_id: (key, digest) for article_id, (owner, key, digest) in owned.items() if owner == known.name}
        stale = _stale(connection, [article for article, _ in found], mine)
        fresh = [(article, key) for article, key in found if article.id not in stale]
        answers = accept_in(connection, [(article.id, article) for article, _ in fresh], source=known.name, lane=lane)
        now = {i: (key, mine[i][1]) for i, key in (renamed or {}).items() if i in mine}
        now |= {article.id: (key, mine[article.id][1]) for article, key in found if article.id in stale}
        for (article, key), answer in zip(fresh, answers, strict=True):
            if isinstance(answer, Accepted) or article.id in mine:
                now[article.id] = key, article.content_hash
        gone = [article_id for article_id in removed if article_id in mine and article_id not in now]
        deletes = accept_in(connection, [(article_id, None) for article_id in gone], source=known.name, lane=lane)
        changed = {article_id: delivered for article_id, delivered in now.items() if mine.get(article_id) != delivered}
        _move(connection, known.name, changed, gone=gone)
        if cursor is not None:
            connection.execute(update(sources).where(sources.c.name == known.name).values(cursor=_json(cursor)))
    taken = [answer for answer in answers if isinstance(answer, Accepted)]
    unchanged = sum(answer.unchanged for answer in taken)
    return Kept(
        accepted=len(taken) - unchanged,
        unchanged=unchanged + len(stale),
        older=sum(isinstance(answer, OlderRevision) for answer in answers),
        deleted=sum(isinstance(answer, Accepted) and not answer.unchanged for answer in deletes),
    )


def _check_same(connection: Connection, known: KnownSource) -> None:
    row = _row(connection, known.name)
    now = _known(row) if row is not None else None
    if now is None or (now.kind, now.options) != (known.kind, known.options):
        raise SourceChanged(known.name)


def _stale(
    connection: Connection, found: Sequence[Article], mine: Mapping[str, tuple[str, str | None]]
) -> AbstractSet[str]:
    """Those of `found` that come as they came the last time, say nothing of when they were changed, and were changed or withdrawn
    elsewhere since."""
    again = {
        a.id: a.content_hash for a in found if a.updated_at is None and mine.get(a.id, ("", None))[1] == a.content_hash
    }
    stale: set[str] = set()
    for part in _parts(list(again)):
        query = select(articles.c.id, articles.c.accepted_hash).where(articles.c.id.in_(part))
        stale.update(row.id for row in connection.execute(query) if row.accepted_hash != again[row.id])
    return stale


def _owned(connection: Connection, ids: Iterable[str]) -> dict[str, tuple[str, str, str | None]]:
    """Article id → (the source that delivered it last, its key there, content hash of what it delivered)."""
    # The index begins with the source: without naming them all the whole table would be read.
    query = select(source_articles).where(source_articles.c.source.in_(select(sources.c.name)))
    found: dict[str, tuple[str, str, str | None]] = {}
    for part in _parts(list(ids)):
        rows = connection.execute(query.where(source_articles.c.article_id.in_(part)))
        found |= {row.article_id: (row.source, row.key, row.delivered_hash) for row in rows}
    return found


def _move(
    connection: Connection, name: str, delivered: Mapping[str, tuple[str, str | None]], *, gone: Sequence[str]
) -> None:
    """Makes the articles of `delivered` (id → (key, content hash)) those of the source `name`, and those of `gone` nobody's."""
    of_any = delete(source_articles).where(source_articles.c.source.in_(select(sources.c.name)))
    for part in _parts([*delivered, *gone]):
        connection.execute(of_any.where(source_articles.c.article_id.in_(part)))
    if delivered:
        rows = [
            {"source": name, "article_id": article_id, "key": key, "delivered_hash": digest}
            for article_id, (key, digest) in delivered.items()
        ]
        connection.execute(insert(source_articles), rows)


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _SQL_VARIABLES):
        yield ids[start : start + _SQL_VARIABLES]


# --- rows -----------------------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"the name of a source should be 1-100 letters, digits, '-', '_' and '.', the first a letter or digit, "
            f"is {shown(name)}",
            "choose another name",
        )


def _row(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(select(sources).where(sources.c.name == name)).one_or_none()


def _insert(connection: Connection, name: str, kind: str, options: Mapping[str, Any], schedule: str) -> None:
    values = {"kind": kind, "options": _json(options), "schedule": schedule, "cursor": _json({})}
    connection.execute(insert(sources).values(name=name, created_at=datetime.now(UTC), **values))


def _known(row: Row[Any]) -> KnownSource:
    return KnownSource(
        name=row.name,
        kind=row.kind,
        options=orjson.loads(row.options),
        schedule=row.schedule,
        cursor=orjson.loads(row.cursor),
    )


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()
