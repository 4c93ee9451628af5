"""How a change becomes visible: registry, change log and inbox in one transaction. Functions over an open connection.

Readers trust `articles.revision` alone, so a change is visible, whole, from the moment the transaction ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, delete, func, insert, select, update

from pipeline.documents import Change
from pipeline.storage import statements
from pipeline.storage.rows import Indexed
from pipeline.storage.tables import articles, changes, inbox, leftovers, pruned


def commit(connection: Connection, done: Sequence[Indexed], *, now: datetime, due: datetime) -> set[int]:
    """Shows those of `done` that still wait, at most one change an article, and gives their numbers.

    What was superseded since it was read stays hidden. Revisions that are replaced are noted as leftovers, due at `due`.
    """
    numbers = [item.change.seq for item in done]
    query = select(inbox.c.seq).where(inbox.c.seq.in_(numbers), inbox.c.state == "queued")
    waiting = set(connection.execute(query).scalars())
    shown = [item for item in done if item.change.seq in waiting]
    late = [item.change.article_id for item in done if item.change.seq not in waiting]
    replaced, unsure = _show(connection, shown, now)
    if replaced:  # each once and for all: no revision comes back
        connection.execute(statements.REPLACED, [row | {"due": due} for row in replaced])
    for article_id in [*unsure, *late]:
        note_leftovers(connection, article_id, due)
    return waiting


def settle(connection: Connection, change: Change, state: str, now: datetime, error: str | None = None) -> None:
    """Puts the change, and what waits before it of the same article, into a final state."""
    row = {"of": change.article_id, "number": change.seq, "at": now, "new_state": state, "new_error": error}
    connection.execute(statements.SUPERSEDE, [row])
    connection.execute(statements.SETTLE, [row])


def postpone(connection: Connection, change: Change, error: str, due: datetime) -> None:
    """Notes a failed attempt, the next one not before `due`."""
    values = {"attempts": change.attempts + 1, "error": error, "due_at": due}
    connection.execute(update(inbox).where(inbox.c.seq == change.seq, inbox.c.state == "queued").values(**values))
    told = update(articles).where(articles.c.id == change.article_id, articles.c.accepted_seq == change.seq)
    connection.execute(told.values(error=error))


def note_leftovers(connection: Connection, article_id: str, due: datetime) -> None:
    """Rows of the article that are not visible, whichever they are, may be deleted at `due`, or at a later time that was
    noted before."""
    same = (leftovers.c.article_id == article_id) & (leftovers.c.revision == 0)
    noted = connection.execute(select(leftovers.c.due_at).where(same)).scalar()
    if noted is None:
        connection.execute(insert(leftovers).values(article_id=article_id, due_at=due))
    elif noted < due:
        connection.execute(update(leftovers).where(same).values(due_at=due))


def prune(connection: Connection, before: datetime, *, limit: int) -> tuple[int, int]:
    """Deletes settled changes and lines of the log that are older than `before`, the first `limit` of each; gives how many."""
    settled = (inbox.c.state != "queued", inbox.c.settled_at < before)
    old = (changes.c.created_at < before,)
    counts = []
    for name, table, number, conditions in (
        ("inbox", inbox, inbox.c.seq, settled),
        ("changes", changes, changes.c.position, old),
    ):
        first = select(number).where(*conditions).order_by(number).limit(limit).subquery()
        last = connection.execute(select(func.max(first.c[0]))).scalar()
        if last is not None:
            _note_pruned(connection, name, last)
        counts.append(connection.execute(delete(table).where(number <= (last or 0), *conditions)).rowcount)
    return counts[0], counts[1]


def _note_pruned(connection: Connection, name: str, last: int) -> None:
    """Rows up to `last` may be missing; changes are not settled in the order of their numbers, so it may be less than before."""
    noted = connection.execute(select(pruned.c.value).where(pruned.c.name == name)).scalar()
    if noted is None:
        connection.execute(insert(pruned).values(name=name, value=last))
    elif noted < last:
        connection.execute(update(pruned).where(pruned.c.name == name).values(value=last))


def _show(connection: Connection, done: Sequence[Indexed], now: datetime) -> tuple[list[dict[str, Any]], list[str]]:
    """Gives what is replaced, and the articles of which an older change waited too: its writing may have been cut short."""
    ids = [item.change.article_id for item in done]
    columns = (articles.c.id, articles.c.revision, articles.c.passages, articles.c.accepted_seq)
    before = {row.id: row for row in connection.execute(select(*columns).where(articles.c.id.in_(ids)))}
    waited = select(inbox.c.article_id, func.min(inbox.c.seq)).where(
        inbox.c.article_id.in_(ids), inbox.c.state == "queued"
    )
    oldest = {row[0]: row[1] for row in connection.execute(waited.group_by(inbox.c.article_id))}
    rows = [_row(item, now) for item in done]
    if not rows:
        return [], []
    connection.execute(statements.SUPERSEDE, rows)
    connection.execute(statements.SETTLE, rows)
    connection.execute(statements.SHOW, rows)
    connection.execute(statements.SET_STATUS, rows)
    for item, row in zip(done, rows, strict=True):
        if row["new_revision"] is not None and before[row["of"]].accepted_seq != row["number"]:
            assert item.change.article is not None  # it has a revision
            payload = orjson.dumps(item.change.article.to_mapping()).decode()
            connection.execute(statements.CHANGE, {"of": row["of"], "shown_payload": payload})
    logged = [row for row in rows if row["new_revision"] is not None or before[row["of"]].revision is not None]
    if logged:
        connection.execute(statements.LOG, logged)
    shown = [before[row["of"]] for row in rows]
    replaced = [
        {"of": was.id, "number": was.revision, "number_of_passages": was.passages}
        for was in shown
        if was.revision is not None
    ]
    return replaced, [row["of"] for row in rows if oldest[row["of"]] < row["number"]]


def _row(item: Indexed, now: datetime) -> dict[str, Any]:
    change = item.change
    gone = change.article is None or not change.article.visible
    return {
        "of": change.article_id,
        "number": change.seq,
        "at": now,
        "accepted": change.accepted_at,
        "in_lane": change.lane,
        "new_error": None,
        "new_state": "deleted" if change.article is None else "indexed",
        "new_revision": None if gone else change.seq,
        "new_passages": item.passages,
    }
