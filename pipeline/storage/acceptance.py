"""How a change enters: the rules of order and identity, and the inbox as a queue.

Functions over an open connection; `ArticleStore` gives them their transactions. Knows nothing of what indexing a change means.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import orjson
from sqlalchemy import ColumnElement, Connection, Row, case, exists, func, or_, select

from pipeline.documents import Article, Change, stored_article
from pipeline.errors import ArticleNotFound, OlderRevision
from pipeline.storage import statements
from pipeline.storage.rows import Accepted
from pipeline.storage.tables import changes, inbox, pruned

PUSH, SOURCE, BULK = 0, 1, 2  # lanes: what waits in a lower one is indexed first
Progress = Literal["unknown", "queued", "settled"]  # of a change; what was pruned was settled
# Numbers as SQL, so that who needs several of them asks once: what `pruned_to` and `settled_up_to` give.
PRUNED = {
    name: func.coalesce(select(pruned.c.value).where(pruned.c.name == name).scalar_subquery(), 0)
    for name in ("inbox", "changes")
}
_LAST = func.coalesce(select(func.max(inbox.c.seq)).scalar_subquery(), 0)
SETTLED = func.coalesce(
    select(func.min(inbox.c.seq) - 1).where(inbox.c.state == "queued").scalar_subquery(),
    case((PRUNED["inbox"] < _LAST, _LAST), else_=PRUNED["inbox"]),
)
_MAX_CLOCK_SKEW = timedelta(minutes=5)  # an updated_at further ahead would lock the article against later edits


def accept(
    connection: Connection, article_id: str, article: Article | None, *, source: str, lane: int, now: datetime
) -> Accepted:
    """Puts a change of `article_id` (None: its delete) into the inbox, unless it changes nothing.

    Raises OlderRevision where a newer `updated_at` is accepted, ArticleNotFound for the delete of an unknown id.
    """
    known = connection.execute(statements.KNOWN, {"of": article_id}).one_or_none()
    if article is None and known is None:
        raise ArticleNotFound(article_id)
    updated_at = _effective_time(article, known, now)
    digest = article.content_hash if article is not None else None
    if known is not None:
        if updated_at < known.updated_at and article is not None:
            raise OlderRevision(article_id, updated_at.isoformat(), known.updated_at.isoformat())
        if known.accepted_hash == digest and known.status != "failed":
            connection.execute(statements.CHANGE, {"of": article_id, "updated_at": updated_at})
            if known.status == "queued":  # behind a bulk load, or behind an attempt that failed
                connection.execute(statements.HURRY, {"number": known.accepted_seq, "in_lane": lane, "at": now})
            return Accepted(article_id, known.accepted_seq, known.revision, known.status, unchanged=True)
    payload = orjson.dumps(article.to_mapping()).decode() if article is not None else None
    return queue(connection, article_id, payload, digest, updated_at, known, source=source, lane=lane, now=now)


def queue(
    connection: Connection,
    article_id: str,
    payload: str | None,
    digest: str | None,
    updated_at: datetime,
    known: Row[Any] | None,
    *,
    source: str,
    lane: int,
    now: datetime,
) -> Accepted:
    """Gives the change its number and notes it in the registry; `known` is the article's row there."""
    waiting = {
        "article_id": article_id,
        "payload": payload,
        "updated_at": updated_at,
        "accepted_at": now,
        "source": source,
        "lane": lane,
        "state": "queued",
        "attempts": 0,
    }
    result = connection.execute(statements.QUEUE, waiting)
    seq = int(result.inserted_primary_key[0])  # type: ignore[index]  # an INSERT of one row always has a key
    values: dict[str, Any] = {
        "payload": payload,
        "accepted_seq": seq,
        "accepted_hash": digest,
        "updated_at": updated_at,
        "accepted_at": now,
        "status": "queued",
        "error": None,
    }
    if known is None:
        connection.execute(statements.REGISTER, {"id": article_id, "passages": 0, **values})
        return Accepted(article_id, seq, None, "queued")
    if known.revision is not None and known.revision == known.accepted_seq:
        values["shown_payload"] = known.payload  # what readers see until this change is indexed, and if it never is
    connection.execute(statements.CHANGE, {"of": article_id, **values})
    return Accepted(article_id, seq, known.revision, "queued")


def waiting(connection: Connection, limit: int, *, lanes: tuple[int, int], after: int, now: datetime) -> list[Change]:
    """Changes of the lanes from .. to that may be tried now, above `after`, by lane and number; at most one an article:
    a newer one supersedes it, whatever its lane."""
    newer = inbox.alias()  # waits too, or this would be settled; its state is not asked, so that the index serves
    superseded = exists().where(newer.c.article_id == inbox.c.article_id, newer.c.seq > inbox.c.seq)
    query = (
        select(inbox)
        .where(*_due(now), inbox.c.lane.between(*lanes), inbox.c.seq > after, ~superseded)
        .order_by(inbox.c.lane, inbox.c.seq)
        .limit(limit)
    )
    return [_change(row) for row in connection.execute(query)]


def last_waiting(connection: Connection, up_to: int | None, *, now: datetime) -> int | None:
    """The largest number of a change, up to `up_to`, that may be tried now; None where there is none."""
    query = select(func.max(inbox.c.seq)).where(*_due(now))
    return connection.execute(query if up_to is None else query.where(inbox.c.seq <= up_to)).scalar()


def _due(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return inbox.c.state == "queued", or_(inbox.c.due_at.is_(None), inbox.c.due_at <= now)


def progress(connection: Connection, seqs: Sequence[int]) -> dict[int, Progress]:
    """Where the changes accepted as `seqs` stand; one that was pruned was settled."""
    query = select(inbox.c.seq, inbox.c.state).where(inbox.c.seq.in_(seqs))
    found: dict[int, Progress] = {
        seq: "queued" if state == "queued" else "settled" for seq, state in connection.execute(query)
    }
    gone = pruned_to(connection, "inbox") if len(found) < len(seqs) else 0
    return {seq: found.get(seq, "settled" if 0 < seq <= gone else "unknown") for seq in seqs}


def settled_up_to(connection: Connection) -> int:
    """The largest S such that every change accepted as S or before is in a final state; 0 at the beginning."""
    return int(connection.execute(select(SETTLED)).scalar_one())


def pruned_to(connection: Connection, name: Literal["inbox", "changes"]) -> int:
    """Up to which number rows of the inbox, of the change log, may be missing; 0 where none are."""
    return int(connection.execute(select(PRUNED[name])).scalar_one())


def log_end(connection: Connection) -> int:
    """The newest line of the change log, also of one that was pruned empty; 0 at the beginning."""
    last = connection.execute(select(func.max(changes.c.position))).scalar()
    return int(last) if last is not None else pruned_to(connection, "changes")


def article_of(payload: str | None) -> Article | None:
    """The article that was accepted as `payload`."""
    return stored_article(orjson.loads(payload)) if payload is not None else None


def _effective_time(article: Article | None, known: Row[Any] | None, now: datetime) -> datetime:
    """`updated_at`, or the time of acceptance where it is missing or ahead of the clock; never before what is known.

    An article without `updated_at` means "now", so it follows what is known even if that was dated ahead.
    """
    given = article.updated_at if article is not None else None
    if given is not None and given <= now + _MAX_CLOCK_SKEW:
        return given
    return max(now, known.updated_at) if known is not None else now


def _change(row: Row[Any]) -> Change:
    return Change(
        seq=row.seq,
        article_id=row.article_id,
        article=article_of(row.payload),
        updated_at=row.updated_at,
        accepted_at=row.accepted_at,
        lane=row.lane,
        attempts=row.attempts,
    )
