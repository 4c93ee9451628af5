"""The registry of articles, the inbox of accepted changes, and the log of what became visible.

`accept` and `accept_delete` are how a change enters; the worker reads `queued`, and `commit` makes a batch visible in one
transaction. Readers follow `log_since` and trust `visible`. Knows nothing of passages, vectors and collections.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from pipeline.documents import Article, Change
from pipeline.errors import ArticleNotFound, OlderRevision, YeoulError
from pipeline.storage import statements
from pipeline.storage.database import StateDatabase, articles, changes, inbox, leftovers
from pipeline.storage.leases import Lease, check_lease

Status = Literal["queued", "indexed", "failed", "deleted"]
_MAX_CLOCK_SKEW = timedelta(minutes=5)  # an updated_at further ahead would lock the article against later edits
_SQL_VARIABLES = 500  # ids in one IN (...): SQLite takes 32,766, old builds 999


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a change: `seq` to wait for; `unchanged` where the same content is already accepted."""

    article_id: str
    seq: int
    revision: int | None
    status: Status
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class ArticleState:
    """What is known of one article; `article` is the newest accepted version, None after a delete."""

    article_id: str
    article: Article | None
    seq: int
    revision: int | None
    status: Status
    error: str | None
    passages: int
    updated_at: datetime
    accepted_at: datetime
    indexed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Indexed:
    """What the worker made of a change: its rows are in the collection (or, for a delete, there is nothing to show)."""

    change: Change
    passages: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the change log: from `position` on, `revision` is visible (None: the article is gone)."""

    position: int
    article_id: str
    revision: int | None
    seq: int


class ArticleStore:
    """Articles and their changes in the state database. Thread-safe."""

    def __init__(self, database: StateDatabase) -> None:
        self.database = database

    # ---- acceptance

    def accept(self, article: Article, *, source: str = "push") -> Accepted:
        """Writes a publish or an edit into the inbox, durably.

        Raises OlderRevision where a newer `updated_at` is already accepted. Content that is already accepted is one
        change: the answer is `unchanged` and carries its number.
        """
        with self.database.write() as connection:
            return _accept(connection, article.id, article, source)

    def accept_many(self, batch: Sequence[Article], *, source: str) -> list[Accepted | YeoulError]:
        """Like `accept` for each article in order, in one transaction; what is refused comes back as its error."""
        answers: list[Accepted | YeoulError] = []
        with self.database.write() as connection:
            for article in batch:
                try:
                    answers.append(_accept(connection, article.id, article, source))
                except OlderRevision as error:
                    answers.append(error)
        return answers

    def accept_delete(self, article_id: str, *, source: str = "push") -> Accepted:
        """Writes a delete into the inbox. Raises ArticleNotFound for an id that was never accepted."""
        with self.database.write() as connection:
            return _accept(connection, article_id, None, source)

    # ---- reading

    def state(self, article_id: str) -> ArticleState:
        """Raises ArticleNotFound."""
        with self.database.read() as connection:
            row = connection.execute(select(articles).where(articles.c.id == article_id)).one_or_none()
        if row is None:
            raise ArticleNotFound(article_id)
        return ArticleState(
            article_id=row.id,
            article=_article(row.payload),
            seq=row.accepted_seq,
            revision=row.revision,
            status=row.status,
            error=row.error,
            passages=row.passages,
            updated_at=row.updated_at,
            accepted_at=row.accepted_at,
            indexed_at=row.indexed_at,
        )

    def queued(self, limit: int, *, after: int = 0) -> list[Change]:
        """The oldest changes above `after` that wait, at most one an article: an older one is superseded by it."""
        newer = inbox.alias()  # waits too, or this would be settled; its state is not asked, so that the index serves
        superseded = exists().where(newer.c.article_id == inbox.c.article_id, newer.c.seq > inbox.c.seq)
        waits = (inbox.c.state == "queued", inbox.c.seq > after, ~superseded)
        query = select(inbox).where(*waits).order_by(inbox.c.seq).limit(limit)
        with self.database.read() as connection:
            return [_change(row) for row in connection.execute(query)]

    def queue_length(self) -> int:
        with self.database.read() as connection:
            query = select(func.count()).select_from(inbox).where(inbox.c.state == "queued")
            return int(connection.execute(query).scalar_one())

    def counts(self) -> dict[str, int]:
        """Articles by status."""
        with self.database.read() as connection:
            rows = connection.execute(select(articles.c.status, func.count()).group_by(articles.c.status))
            return {status: int(count) for status, count in rows}

    def settled(self, seq: int) -> bool:
        """True when the change accepted as `seq` is in a final state (indexed, superseded, failed, deleted)."""
        with self.database.read() as connection:
            state = connection.execute(select(inbox.c.state).where(inbox.c.seq == seq)).scalar_one_or_none()
        return state is not None and state != "queued"

    def known(self, seq: int) -> bool:
        """True when a change was accepted as `seq`."""
        with self.database.read() as connection:
            return connection.execute(select(inbox.c.seq).where(inbox.c.seq == seq)).scalar_one_or_none() is not None

    def settled_up_to(self) -> int:
        """The largest S such that every change accepted as S or before is in a final state; 0 at the beginning."""
        with self.database.read() as connection:
            return _settled_up_to(connection)

    def failures(self, first: int, last: int) -> dict[str, str]:
        """Article id → error of the changes accepted as `first` .. `last` that could not be indexed."""
        query = select(inbox.c.article_id, inbox.c.error).where(
            inbox.c.seq.between(first, last), inbox.c.state == "failed"
        )
        with self.database.read() as connection:
            return {article_id: error or "" for article_id, error in connection.execute(query.order_by(inbox.c.seq))}

    def visible(self) -> tuple[int, int, dict[str, int]]:
        """(position of the log, settled seq, article id → visible revision), all of one moment."""
        with self.database.read() as connection:
            position = connection.execute(select(func.max(changes.c.position))).scalar() or 0
            rows = connection.execute(
                select(articles.c.id, articles.c.revision).where(articles.c.revision.is_not(None))
            )
            return int(position), _settled_up_to(connection), {row.id: row.revision for row in rows}

    def visible_passages(self, article_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
        """(visible revision, number of its passages) of those of `article_ids` that have one."""
        found: dict[str, tuple[int, int]] = {}
        wanted = list(article_ids)
        columns = (articles.c.id, articles.c.revision, articles.c.passages)
        with self.database.read() as connection:
            for start in range(0, len(wanted), _SQL_VARIABLES):
                part = wanted[start : start + _SQL_VARIABLES]
                query = select(*columns).where(articles.c.id.in_(part), articles.c.revision.is_not(None))
                found |= {row.id: (row.revision, row.passages) for row in connection.execute(query)}
        return found

    def log_mark(self, position: int) -> str:
        """What identifies the log's line at `position` ("" where there is none): another history has another one."""
        with self.database.read() as connection:
            row = connection.execute(select(changes).where(changes.c.position == position)).one_or_none()
        return "" if row is None else f"{row.article_id} {row.revision} {row.seq} {row.created_at.isoformat()}"

    def log_since(self, position: int, limit: int = 1000) -> tuple[list[LogEntry], int]:
        """The log after `position`, oldest first, and the settled seq of the same moment."""
        query = select(changes).where(changes.c.position > position).order_by(changes.c.position).limit(limit)
        with self.database.read() as connection:
            entries = [LogEntry(r.position, r.article_id, r.revision, r.seq) for r in connection.execute(query)]
            return entries, _settled_up_to(connection)

    def bodies(self, batch: int = 200) -> Iterable[list[Article]]:
        """Every accepted article that is not deleted, in order of id, `batch` at a time."""
        last = ""
        while True:
            query = (
                select(articles.c.id, articles.c.payload)
                .where(articles.c.id > last, articles.c.payload.is_not(None))
                .order_by(articles.c.id)
                .limit(batch)
            )
            with self.database.read() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            yield [article for row in rows if (article := _article(row.payload)) is not None]
            last = rows[-1].id

    # ---- the worker's side

    def commit(self, done: Sequence[Indexed], lease: Lease, *, grace_seconds: float) -> None:
        """Makes `done`, at most one change an article, visible: registry, change log and inbox in one transaction, if
        `lease` still holds.

        Articles that may have rows of an earlier change are noted as leftovers, due after `grace_seconds`.
        """
        now = datetime.now(UTC)
        due = now + timedelta(seconds=grace_seconds)
        with self.database.write() as connection:
            check_lease(connection, lease)
            for start in range(0, len(done), _SQL_VARIABLES):
                for article_id in _commit(connection, done[start : start + _SQL_VARIABLES], now):
                    note_leftovers(connection, article_id, due)

    def fail(self, change: Change, error: str, lease: Lease) -> None:
        """Settles a change that cannot be indexed; what was visible stays visible, the error stands in the registry."""
        now = datetime.now(UTC)
        with self.database.write() as connection:
            check_lease(connection, lease)
            _settle(connection, change, "failed", now, error=error)
            row = {"of": change.article_id, "number": change.seq, "new_state": "failed", "new_error": error}
            connection.execute(statements.SET_STATUS, [row])
            note_leftovers(connection, change.article_id, now)

    def due_leftovers(self, limit: int = 500) -> list[tuple[str, int | None]]:
        """Articles whose old rows may go now, each with its visible revision (the one to keep)."""
        query = (
            select(leftovers.c.article_id, articles.c.revision)
            .join(articles, articles.c.id == leftovers.c.article_id)
            .where(leftovers.c.due_at <= datetime.now(UTC))
            .limit(limit)
        )
        with self.database.read() as connection:
            return [(row.article_id, row.revision) for row in connection.execute(query)]

    def forget_leftovers(self, article_ids: Sequence[str], before: datetime) -> None:
        """Their old rows are gone; an entry that became due after `before` stays."""
        with self.database.write() as connection:
            where = leftovers.c.article_id.in_(article_ids) & (leftovers.c.due_at <= before)
            connection.execute(delete(leftovers).where(where))


def note_leftovers(connection: Connection, article_id: str, due: datetime) -> None:
    """Old rows of the article may be deleted at `due`, or at a later time that was noted before."""
    noted = connection.execute(select(leftovers.c.due_at).where(leftovers.c.article_id == article_id)).scalar()
    if noted is None:
        connection.execute(insert(leftovers).values(article_id=article_id, due_at=due))
    elif noted < due:
        connection.execute(update(leftovers).where(leftovers.c.article_id == article_id).values(due_at=due))


def _accept(connection: Connection, article_id: str, article: Article | None, source: str) -> Accepted:
    now = datetime.now(UTC)
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
            return Accepted(article_id, known.accepted_seq, known.revision, known.status, unchanged=True)
    payload = orjson.dumps(article.to_mapping()).decode() if article is not None else None
    result = connection.execute(
        statements.QUEUE,
        {
            "article_id": article_id,
            "payload": payload,
            "updated_at": updated_at,
            "accepted_at": now,
            "source": source,
            "state": "queued",
            "attempts": 0,
        },
    )
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
    else:
        connection.execute(statements.CHANGE, {"of": article_id, **values})
    return Accepted(article_id, seq, known.revision if known is not None else None, "queued")


def _effective_time(article: Article | None, known: Row[Any] | None, now: datetime) -> datetime:
    """`updated_at`, or the time of acceptance where it is missing or ahead of the clock; never before what is known.

    An article without `updated_at` means "now", so it follows what is known even if that was dated ahead.
    """
    given = article.updated_at if article is not None else None
    if given is not None and given <= now + _MAX_CLOCK_SKEW:
        return given
    return max(now, known.updated_at) if known is not None else now


def _commit(connection: Connection, done: Sequence[Indexed], now: datetime) -> list[str]:
    """Gives the articles that may have rows of another revision: of the one before, or of one whose writing was cut short."""
    ids = [item.change.article_id for item in done]
    known = select(articles.c.id, articles.c.revision).where(articles.c.id.in_(ids))
    before = {row.id: row.revision for row in connection.execute(known)}
    firsts = select(inbox.c.article_id, func.min(inbox.c.seq)).where(inbox.c.article_id.in_(ids))
    first_seq = {row[0]: row[1] for row in connection.execute(firsts.group_by(inbox.c.article_id))}
    rows: list[dict[str, Any]] = []
    for item in done:
        gone = item.change.article is None or not item.change.article.visible
        rows.append(
            {
                "of": item.change.article_id,
                "number": item.change.seq,
                "at": now,
                "new_error": None,
                "new_state": "deleted" if item.change.article is None else "indexed",
                "new_revision": None if gone else item.change.seq,
                "new_passages": item.passages,
            }
        )
    connection.execute(statements.SUPERSEDE, rows)
    connection.execute(statements.SETTLE, rows)
    connection.execute(statements.SHOW, rows)
    connection.execute(statements.SET_STATUS, rows)
    logged = [row for row in rows if row["new_revision"] is not None or before[row["of"]] is not None]
    if logged:
        connection.execute(statements.LOG, logged)
    return [row["of"] for row in rows if first_seq[row["of"]] < row["number"]]


def _settle(connection: Connection, change: Change, state: str, now: datetime, error: str | None = None) -> None:
    row = {"of": change.article_id, "number": change.seq, "at": now, "new_state": state, "new_error": error}
    connection.execute(statements.SUPERSEDE, [row])
    connection.execute(statements.SETTLE, [row])


def _settled_up_to(connection: Connection) -> int:
    first = connection.execute(select(func.min(inbox.c.seq)).where(inbox.c.state == "queued")).scalar()
    if first is not None:
        return int(first) - 1
    return int(connection.execute(select(func.max(inbox.c.seq))).scalar() or 0)


def _article(payload: str | None) -> Article | None:
    return Article.from_mapping(orjson.loads(payload)) if payload is not None else None


def _change(row: Row[Any]) -> Change:
    return Change(seq=row.seq, article_id=row.article_id, article=_article(row.payload), updated_at=row.updated_at)
