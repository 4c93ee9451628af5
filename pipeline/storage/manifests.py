"""Which collections exist, what each was built with, how far each is, and which one is in use.

    building ── rows are being written ──► ready ── it answers as well ──► active ── another one is ──► kept ──► dropped

The one that is active is the only truth about where readers read and the worker writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, Row, delete, func, insert, literal, select, update

from pipeline.errors import YeoulError
from pipeline.index.manifest import Manifest
from pipeline.storage import acceptance, signals
from pipeline.storage.database import StateDatabase
from pipeline.storage.leases import Lease, check_lease
from pipeline.storage.tables import articles, collections, passage_counts

State = Literal["building", "ready", "active", "kept", "dropped"]
Recipe = Mapping[str, Any]  # the settings that rows depend on, as JSON: see `parts.recipe_of`
COLLECTIONS = "changes"  # the channel on which other processes hear of a switch: they look at both at once


@dataclass(frozen=True, slots=True)
class KnownCollection:
    """A collection and what it was built with. Unless it is active, its rows are complete up to line `position` of the change
    log; while it is filled, with the articles up to `last_article` by id (None: all)."""

    name: str
    manifest: Manifest
    recipe: Recipe
    state: State
    position: int | None
    last_article: str | None
    created_at: datetime
    left_at: datetime | None = None  # when another one took its place; None where it was never in use, or is


class Incomplete(YeoulError):
    """A collection lacks articles that are visible: it cannot be put in use."""

    code = "incomplete"

    def __init__(self, name: str, lacking: Sequence[str]) -> None:
        some = ", ".join(lacking[:3])
        super().__init__(
            f"the collection {name!r} lacks {len(lacking):,} visible articles ({some})", "run the rebuild again"
        )


class InUse(YeoulError):
    """Another rebuild was quicker: its collection, which this one was writing too, is in use."""

    code = "in_use"

    def __init__(self, name: str) -> None:
        super().__init__(f"the collection {name!r} is in use already", "another rebuild was quicker; nothing to do")


def active(database: StateDatabase) -> KnownCollection | None:
    """The collection in use; None before the first one is made."""
    return next(iter(known(database, "active")), None)


def known(database: StateDatabase, *states: State) -> list[KnownCollection]:
    """The collections in one of `states`: those that were in use last come first, then the newest."""
    last = (collections.c.left_at.desc().nulls_last(), collections.c.created_at.desc())
    query = select(collections).where(collections.c.state.in_(states)).order_by(*last)
    with database.read() as connection:
        return [_known(row) for row in connection.execute(query)]


def bound(database: StateDatabase, name: str) -> int | None:
    """The line of the change log up to which the collection's rows are complete; None for the one in use: all of them."""
    query = select(collections.c.state, collections.c.position).where(collections.c.name == name)
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None or row.state == "active" else int(row.position or 0)


def counted(database: StateDatabase, name: str, article_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(revision, passages) that were written last of those of `article_ids`, into a collection that is not in use."""
    found: dict[str, tuple[int, int]] = {}
    query = select(passage_counts.c.article_id, passage_counts.c.revision, passage_counts.c.passages)
    with database.read() as connection:
        for start in range(0, len(article_ids), 500):  # SQLite's variables
            some = passage_counts.c.article_id.in_(article_ids[start : start + 500])
            rows = connection.execute(query.where(passage_counts.c.collection == name, some))
            found |= {row[0]: (row[1], row[2]) for row in rows}
    return found


def fresh_name(database: StateDatabase, prefix: str) -> str:
    """A name that no collection had yet: `prefix`_1, `prefix`_2, …"""
    with database.read() as connection:
        return f"{prefix}_{int(connection.execute(select(func.count()).select_from(collections)).scalar_one()) + 1}"


def activate(database: StateDatabase, name: str, manifest: Manifest, recipe: Recipe) -> KnownCollection:
    """Puts the first collection, or an empty one in the place of another empty one, in use."""
    now = datetime.now(UTC)
    with database.write() as connection:
        connection.execute(update(collections).where(collections.c.active).values(active=False, state="dropped"))
        connection.execute(delete(collections).where(collections.c.name == name))
        values = _values(manifest, recipe, "active", None, now)
        connection.execute(insert(collections).values(name=name, **values))
    return KnownCollection(name, manifest, recipe, "active", None, None, now)


def begin(database: StateDatabase, name: str, manifest: Manifest, recipe: Recipe) -> KnownCollection:
    """Notes a collection that is to be built, from the end of the change log as it is now."""
    now = datetime.now(UTC)
    with database.write() as connection:
        position = acceptance.log_end(connection)
        values = _values(manifest, recipe, "building", position, now) | {"last_article": ""}
        connection.execute(insert(collections).values(name=name, **values))
    return KnownCollection(name, manifest, recipe, "building", position, "", now)


def advance(
    database: StateDatabase,
    name: str,
    counts: Mapping[str, tuple[int, int]],
    *,
    position: int | None = None,
    last_article: str | None = None,
    filled: bool = False,
) -> None:
    """Notes what was written into a collection that is not in use: article → (revision, passages), and how far it is.

    `filled`: every article is in, so readers may load it. For the one rebuild that is at work: it gives out no numbers, so
    writers need not wait for it, which runs at a low priority. Raises InUse.
    """
    with database.write(serial=None) as connection:
        if connection.execute(select(collections.c.active).where(collections.c.name == name)).scalar():
            raise InUse(name)
        _count(connection, name, counts)
        values: dict[str, Any] = {}
        if position is not None:
            values["position"] = position
        if last_article is not None:
            values["last_article"] = last_article
        if filled:
            values |= {"last_article": None, "state": "ready"}
        if values:
            changed = update(collections).where(collections.c.name == name, ~collections.c.active)
            connection.execute(changed.values(**values))
        if filled:
            signals.send(connection, COLLECTIONS)


def set_state(database: StateDatabase, name: str, state: State, **values: Any) -> None:
    """For a collection that is not in use."""
    with database.write() as connection:
        changed = update(collections).where(collections.c.name == name, ~collections.c.active)
        connection.execute(changed.values(state=state, **values))
        if state == "dropped":
            connection.execute(delete(passage_counts).where(passage_counts.c.collection == name))


def switch(database: StateDatabase, name: str, lease: Lease) -> int:
    """Puts `name` in use and keeps the one before, in one step; gives the line of the change log at which it happened.

    The holder of the worker's `lease` calls it, with all rows of `name` written. Raises LeaseLost, Incomplete.
    """
    with database.write() as connection:
        check_lease(connection, lease)
        position = acceptance.log_end(connection)
        before = connection.execute(select(collections.c.name).where(collections.c.active)).scalar_one()
        mine = (passage_counts.c.article_id == articles.c.id) & (passage_counts.c.collection == name)
        same = mine & (passage_counts.c.revision == articles.c.revision)
        visible = articles.c.revision.is_not(None)
        lacking = select(articles.c.id).where(visible, ~select(passage_counts).where(same).exists())
        missing = list(connection.execute(lacking).scalars())
        if missing:
            raise Incomplete(name, missing)
        connection.execute(delete(passage_counts).where(passage_counts.c.collection == before))
        columns = ["collection", "article_id", "revision", "passages"]
        of_before = select(literal(before), articles.c.id, articles.c.revision, articles.c.passages).where(visible)
        connection.execute(insert(passage_counts).from_select(columns, of_before))
        count = select(passage_counts.c.passages).where(same).scalar_subquery()
        connection.execute(update(articles).where(visible).values(passages=count))
        connection.execute(delete(passage_counts).where(passage_counts.c.collection == name))
        old = {"active": False, "state": "kept", "position": position, "left_at": datetime.now(UTC)}
        connection.execute(update(collections).where(collections.c.active).values(**old))
        new = {"active": True, "state": "active", "position": None, "last_article": None, "left_at": None}
        connection.execute(update(collections).where(collections.c.name == name).values(**new))
        signals.send(connection, COLLECTIONS)
        return position


def _known(row: Row[Any]) -> KnownCollection:
    return KnownCollection(
        name=row.name,
        manifest=Manifest.from_json(row.manifest),
        recipe=orjson.loads(row.recipe) if row.recipe else {},
        state=row.state,
        position=row.position,
        last_article=row.last_article,
        created_at=row.created_at,
        left_at=row.left_at,
    )


def _values(manifest: Manifest, recipe: Recipe, state: State, position: int | None, now: datetime) -> dict[str, Any]:
    return {
        "manifest": manifest.to_json(),
        "recipe": orjson.dumps(recipe).decode(),
        "active": state == "active",
        "state": state,
        "position": position,
        "created_at": now,
    }


def _count(connection: Connection, name: str, counts: Mapping[str, tuple[int, int]]) -> None:
    if not counts:
        return
    rows = [
        {"collection": name, "article_id": article_id, "revision": revision, "passages": passages}
        for article_id, (revision, passages) in counts.items()
    ]
    ids = [row["article_id"] for row in rows]
    mine = passage_counts.c.collection == name
    for start in range(0, len(ids), 500):  # SQLite's variables
        some = passage_counts.c.article_id.in_(ids[start : start + 500])
        connection.execute(delete(passage_counts).where(mine, some))
    connection.execute(insert(passage_counts), rows)
