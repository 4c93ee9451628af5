"""The registry of articles, the inbox of accepted changes, and the log of what became visible.

`accept` and `accept_delete` are how a change enters; the worker reads `queued`, and `commit` makes a batch visible in one
transaction. Readers follow the log (`news.py`) and trust `visible`. Knows nothing of passages and vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, delete, func, or_, select, tuple_

from pipeline.documents import CANARY, Article, Change
from pipeline.errors import ArticleNotFound, LogPruned, NotReady, OlderRevision, YeoulError
from pipeline.storage import acceptance, carried, commits, signals, statements
from pipeline.storage.acceptance import BULK, PUSH, Progress, article_of
from pipeline.storage.database import StateDatabase
from pipeline.storage.leases import Lease, check_lease
from pipeline.storage.rows import Accepted, ArticleState, Failed, Indexed, Leftover, LogEntry
from pipeline.storage.tables import articles, changes, collections, inbox, leftovers, passage_counts

_SQL_VARIABLES = 500  # ids in one IN (...): SQLite takes 32,766, old builds 999
_PRUNED_TOGETHER = 5_000  # rows in one transaction: some tenths of a second
_LANES = (PUSH, BULK)
INBOX, CHANGES = "inbox", "changes"  # what other processes are woken for
_FAILED = (
    select(articles).where(articles.c.status == "failed", articles.c.id != CANARY).order_by(articles.c.accepted_seq)
)


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
        return self._accept(article.id, article, source)

    def accept_delete(self, article_id: str, *, source: str = "push") -> Accepted:
        """Writes a delete into the inbox. Raises ArticleNotFound for an id that was never accepted."""
        return self._accept(article_id, None, source)

    def accept_many(self, batch: Sequence[Article], *, source: str, lane: int = BULK) -> list[Accepted | YeoulError]:
        """Like `accept` for each article in order, in one transaction; what is refused comes back as its error."""
        with self.database.write() as connection:
            return accept_in(connection, [(article.id, article) for article in batch], source=source, lane=lane)

    def retry(self, article_ids: Sequence[str] | None = None) -> list[Accepted]:
        """Puts what failed into the inbox again, as it was accepted: of these articles, or of all (None)."""
        return self._queue_again(_FAILED if article_ids is None else _FAILED.where(articles.c.id.in_(article_ids)))

    def requeue(self, article_id: str) -> None:
        """Puts what was accepted of the article last into the inbox again, whatever became of it."""
        self._queue_again(select(articles).where(articles.c.id == article_id))

    # ---- reading

    def state(self, article_id: str) -> ArticleState:
        """Raises ArticleNotFound."""
        with self.database.read() as connection:
            row = connection.execute(select(articles).where(articles.c.id == article_id)).one_or_none()
        if row is None:
            raise ArticleNotFound(article_id)
        return ArticleState(
            article_id=row.id,
            article=article_of(row.payload),
            seq=row.accepted_seq,
            revision=row.revision,
            status=row.status,
            error=row.error,
            passages=row.passages,
            updated_at=row.updated_at,
            accepted_at=row.accepted_at,
            indexed_at=row.indexed_at,
        )

    def queued(self, limit: int, *, after: int = 0, lanes: tuple[int, int] = _LANES) -> list[Change]:
        """The changes of the lanes from .. to, above number `after`, that may be tried now: by lane, then by number; at
        most one an article, because an older one is superseded by it."""
        with self.database.read() as connection:
            return acceptance.waiting(connection, limit, lanes=lanes, after=after, now=datetime.now(UTC))

    def waits(self, up_to: int | None = None) -> int | None:
        """The largest number of a change, up to `up_to`, that may be tried now; None where there is none."""
        with self.database.read() as connection:
            return acceptance.last_waiting(connection, up_to, now=datetime.now(UTC))

    def queue_length(self, lane: int | None = None) -> int:
        """How many changes wait; in that lane, or in all."""
        query = select(func.count()).select_from(inbox).where(inbox.c.state == "queued")
        with self.database.read() as connection:
            return int(connection.execute(query if lane is None else query.where(inbox.c.lane == lane)).scalar_one())

    def counts(self) -> dict[str, int]:
        """Articles by status; the canary is none."""
        query = select(articles.c.status, func.count()).where(articles.c.id != CANARY).group_by(articles.c.status)
        with self.database.read() as connection:
            rows = connection.execute(query)
            return {status: int(count) for status, count in rows}

    def failed(self, limit: int) -> list[Failed]:
        """The articles whose newest change could not be indexed, oldest first. The canary is none: freshness tells of it."""
        with self.database.read() as connection:
            found = connection.execute(_FAILED.limit(limit))
            return [Failed(r.id, r.accepted_seq, r.error or "", r.accepted_at) for r in found]

    def settled(self, seq: int) -> bool:
        """True when the change accepted as `seq` is in a final state (indexed, superseded, failed, deleted)."""
        return self.progress(seq) == "settled"

    def progress(self, seq: int) -> Progress:
        """Where the change accepted as `seq` stands; "unknown": no change was."""
        return self.progress_of([seq])[seq]

    def progress_of(self, seqs: Sequence[int]) -> dict[int, Progress]:
        """Where each of the changes accepted as `seqs` (at most 500 are looked up) stands; of none nothing is asked."""
        if not seqs:
            return {}
        with self.database.read() as connection:
            return acceptance.progress(connection, seqs[:_SQL_VARIABLES])

    def settled_up_to(self) -> int:
        """The largest S such that every change accepted as S or before is in a final state; 0 at the beginning."""
        with self.database.read() as connection:
            return acceptance.settled_up_to(connection)

    def failures(self, first: int, last: int) -> dict[str, str]:
        """Article id → error of the changes accepted as `first` .. `last` that could not be indexed."""
        query = select(inbox.c.article_id, inbox.c.error).where(
            inbox.c.seq.between(first, last), inbox.c.state == "failed"
        )
        with self.database.read() as connection:
            return {article_id: error or "" for article_id, error in connection.execute(query.order_by(inbox.c.seq))}

    def position(self) -> int:
        """The newest line of the change log; 0 at the beginning."""
        with self.database.read() as connection:
            return acceptance.log_end(connection)

    def visible(self) -> tuple[int, int, dict[str, int]]:
        """(position of the log, settled seq, article id → visible revision), all of one moment."""
        with self.database.read() as connection:
            position = acceptance.log_end(connection)
            rows = connection.execute(
                select(articles.c.id, articles.c.revision).where(articles.c.revision.is_not(None))
            )
            return position, acceptance.settled_up_to(connection), {row.id: row.revision for row in rows}

    def visible_passages(
        self, article_ids: Iterable[str], *, collection: str | None = None
    ) -> dict[str, tuple[int, int]]:
        """(visible revision, number of its passages) of those of `article_ids` that have one: in the collection in use, or
        in `collection`, where it has rows of that revision."""
        wanted = list(article_ids)
        found: dict[str, tuple[int, int]] = {}
        with self.database.read() as connection:
            query = _counted_in(connection, collection)
            for start in range(0, len(wanted), _SQL_VARIABLES):
                part = wanted[start : start + _SQL_VARIABLES]
                found |= {row[0]: (row[1], row[2]) for row in connection.execute(query.where(articles.c.id.in_(part)))}
        return found

    def log_mark(self, position: int) -> str:
        """What identifies the log's line at `position` ("" where there is none): another history has another one."""
        with self.database.read() as connection:
            row = connection.execute(select(changes).where(changes.c.position == position)).one_or_none()
        return "" if row is None else f"{row.article_id} {row.revision} {row.seq} {row.created_at.isoformat()}"

    def log_since(self, position: int, limit: int = 1000) -> tuple[list[LogEntry], int]:
        """The log after `position`, oldest first, and the settled seq of the same moment.

        Numbers are a safe place to go on from: one writer at a time commits, on PostgreSQL too (`StateDatabase.write`).
        Raises LogPruned where lines after `position` are gone.
        """
        query = select(changes).where(changes.c.position > position).order_by(changes.c.position).limit(limit)
        with self.database.read() as connection:
            if position < acceptance.pruned_to(connection, "changes"):
                raise LogPruned(position)
            rows = connection.execute(query)
            return [LogEntry.of(row) for row in rows], acceptance.settled_up_to(connection)

    def oldest_position(self) -> int:
        """The line of the change log from which on it is complete."""
        with self.database.read() as connection:
            return acceptance.pruned_to(connection, "changes")

    def shown(self, *, after: str = "", up_to: str | None = None, limit: int = 200) -> list[Change]:
        """The visible articles with ids above `after` (and none above `up_to`), in order of id: each as the change (its
        revision) that shows it."""
        query = select(articles).where(articles.c.id > after, articles.c.revision.is_not(None)).order_by(articles.c.id)
        return self._shown((query if up_to is None else query.where(articles.c.id <= up_to)).limit(limit))

    def shown_end(self) -> tuple[int, str]:
        """How many articles are visible, and the last id in their order ("" where none is)."""
        query = select(func.count(), func.max(articles.c.id)).where(articles.c.revision.is_not(None))
        with self.database.read() as connection:
            number, last = connection.execute(query).one()
        return int(number), last or ""

    def shown_of(self, article_ids: Sequence[str]) -> list[Change]:
        """Likewise for those of `article_ids` that are visible, in no order."""
        found: list[Change] = []
        for start in range(0, len(article_ids), _SQL_VARIABLES):
            wanted = articles.c.id.in_(article_ids[start : start + _SQL_VARIABLES])
            found += self._shown(select(articles).where(wanted, articles.c.revision.is_not(None)))
        return found

    # ---- the worker's side

    def commit(self, done: Sequence[Indexed], lease: Lease, *, grace_seconds: float, collection: str = "") -> set[int]:
        """Makes `done`, at most one change an article, visible: registry, change log and inbox in one transaction, if
        `lease` still holds. Gives the numbers of those that were shown: what was superseded meanwhile is not.

        What is replaced is noted as leftovers, due after `grace_seconds`. Rows that are given are of `collection` and kept for
        those who follow the log. Raises LeaseLost, NotReady where another collection is in use.
        """
        shown: set[int] = set()
        with self.database.write() as connection:
            check_lease(connection, lease)
            in_use = connection.execute(select(collections.c.name).where(collections.c.active)).scalar()
            if in_use not in {None, collection}:
                raise NotReady(f"{in_use!r} is in use, not {collection!r}", "what was written is written again, there")
            now = datetime.now(UTC)  # after whatever was waited for: the grace begins when readers can see it
            due = now + timedelta(seconds=grace_seconds)
            for start in range(0, len(done), _SQL_VARIABLES):
                shown |= commits.commit(connection, done[start : start + _SQL_VARIABLES], now=now, due=due)
            rows = {d.change.article_id: (d.change.seq, d.rows) for d in done if d.rows and d.change.seq in shown}
            carried.put(connection, collection, rows, now)
            signals.send(connection, CHANGES)
        return shown

    def fail(self, change: Change, error: str, lease: Lease) -> None:
        """Settles a change that cannot be indexed; what was visible stays visible, the error stands in the registry.
        Nothing happens to one that is settled."""
        now = datetime.now(UTC)
        with self.database.write() as connection:
            check_lease(connection, lease)
            if acceptance.progress(connection, [change.seq])[change.seq] != "queued":
                return
            commits.settle(connection, change, "failed", now, error=error)
            row = {"of": change.article_id, "number": change.seq, "new_state": "failed", "new_error": error}
            connection.execute(statements.SET_STATUS, [row])
            commits.note_leftovers(connection, change.article_id, now)
            signals.send(connection, CHANGES)

    def postpone(self, change: Change, error: str, lease: Lease, *, seconds: float) -> None:
        """Notes that an attempt failed; the next one is not before `seconds` from now."""
        with self.database.write() as connection:
            check_lease(connection, lease)
            commits.postpone(connection, change, error, datetime.now(UTC) + timedelta(seconds=seconds))

    def prune(self, older_than_seconds: float) -> tuple[int, int]:
        """Forgets settled changes and lines of the change log of that age: how many of each. What is known of the articles
        stays; a reader that still stood before them loads anew."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        changes_gone = lines_gone = 0
        while True:
            with self.database.write() as connection:  # writers take turns: none should wait for all of it
                settled, lines = commits.prune(connection, before, limit=_PRUNED_TOGETHER)
            changes_gone, lines_gone = changes_gone + settled, lines_gone + lines
            if max(settled, lines) < _PRUNED_TOGETHER:
                return changes_gone, lines_gone

    def due_leftovers(self, limit: int = 500) -> list[Leftover]:
        """Rows that may go now. Of those that have to be looked for, `before` is the article's oldest change that still waits,
        or the next after its newest: rows from there on may be of a change that is accepted, written and committed while the
        sweep goes on."""
        with self.database.read() as connection:
            return _leftovers(connection, _sweepable(datetime.now(UTC)).limit(limit))

    def drop_carried(self, older_than_seconds: float) -> int:
        """Forgets rows that were kept beside commits of that age: of how many articles."""
        with self.database.write() as connection:
            return carried.drop(connection, datetime.now(UTC) - timedelta(seconds=older_than_seconds))

    def leave(self, article_ids: Sequence[str], *, grace_seconds: float) -> None:
        """Notes that these articles have rows of replaced revisions, due after `grace_seconds`."""
        due = datetime.now(UTC) + timedelta(seconds=grace_seconds)
        for start in range(0, len(article_ids), _SQL_VARIABLES):  # writers take turns: none should wait for all of it
            with self.database.write() as connection:
                for article_id in article_ids[start : start + _SQL_VARIABLES]:
                    commits.note_leftovers(connection, article_id, due)

    def forget_leftovers(self, swept: Sequence[Leftover], before: datetime, lease: Lease | None = None) -> None:
        """What `due_leftovers` gave is gone. An entry stays that became due after `before`, and one without a revision whose
        article has another one to keep, or another change that waits, since: nobody looked for the rows of what that settled.

        Raises LeaseLost.
        """
        with self.database.write() as connection:
            if lease is not None:
                check_lease(connection, lease)
            of_these = leftovers.c.article_id.in_({leftover.article_id for leftover in swept})
            still = {
                (now.article_id, now.revision): now
                for now in _leftovers(connection, _sweepable(before).where(of_these))
            }
            gone = [
                key
                for one in swept
                if (key := (one.article_id, one.revision)) in still and (one.revision or still[key] == one)
            ]
            connection.execute(delete(leftovers).where(tuple_(leftovers.c.article_id, leftovers.c.revision).in_(gone)))

    def _accept(self, article_id: str, article: Article | None, source: str) -> Accepted:
        with self.database.write() as connection:
            now = datetime.now(UTC)
            answer = acceptance.accept(connection, article_id, article, source=source, lane=PUSH, now=now)
            signals.send(connection, INBOX)
            return answer

    def _queue_again(self, query: Select[Any]) -> list[Accepted]:
        now = datetime.now(UTC)
        with self.database.write() as connection:
            signals.send(connection, INBOX)
            return [
                acceptance.queue(
                    connection, r.id, r.payload, r.accepted_hash, r.updated_at, r, source="retry", lane=PUSH, now=now
                )
                for r in connection.execute(query).all()
            ]

    def _shown(self, query: Select[Any]) -> list[Change]:
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Change(
                seq=row.revision,
                article_id=row.id,
                article=article_of(row.shown_payload or row.payload),
                updated_at=row.updated_at,
            )
            for row in rows
        ]


def _leftovers(connection: Connection, query: Select[Any]) -> list[Leftover]:
    return [Leftover(*row) for row in connection.execute(query)]


def _sweepable(now: datetime) -> Select[Any]:
    """The columns of Leftover. What has to be looked for waits for the grace of what is known."""
    waits, others = inbox.alias(), leftovers.alias()
    later = select(others.c.revision).where(others.c.article_id == leftovers.c.article_id, others.c.due_at > now)
    oldest = (
        select(func.min(waits.c.seq))
        .where(waits.c.article_id == leftovers.c.article_id, waits.c.state == "queued")
        .scalar_subquery()
    )
    before = func.coalesce(oldest, articles.c.accepted_seq + 1)
    return (
        select(leftovers.c.article_id, leftovers.c.revision, leftovers.c.passages, articles.c.revision, before)
        .join(articles, articles.c.id == leftovers.c.article_id)
        .where(leftovers.c.due_at <= now, or_(leftovers.c.revision > 0, ~later.exists()))
    )


def accept_in(
    connection: Connection, batch: Sequence[tuple[str, Article | None]], *, source: str, lane: int
) -> list[Accepted | YeoulError]:
    """Accepts each (id, article; None: its delete) within a transaction of the caller; refusals come back as errors."""
    now = datetime.now(UTC)
    answers: list[Accepted | YeoulError] = []
    for article_id, article in batch:
        try:
            answers.append(acceptance.accept(connection, article_id, article, source=source, lane=lane, now=now))
        except (OlderRevision, ArticleNotFound) as error:
            answers.append(error)
    signals.send(connection, INBOX)
    return answers


def _counted_in(connection: Connection, collection: str | None) -> Select[Any]:
    """`counted` of `collection`, None: of the one in use."""
    state = select(collections.c.state).where(collections.c.name == collection)
    return counted(collection, in_use=collection is None or connection.execute(state).scalar() in {None, "active"})


def counted(collection: str | None, *, in_use: bool) -> Select[Any]:
    """Article, visible revision and number of passages: of `collection`, unless it is the one in use."""
    if in_use:
        return select(articles.c.id, articles.c.revision, articles.c.passages).where(articles.c.revision.is_not(None))
    mine = (passage_counts.c.article_id == articles.c.id) & (passage_counts.c.revision == articles.c.revision)
    return (
        select(articles.c.id, articles.c.revision, passage_counts.c.passages)
        .join(passage_counts, mine)
        .where(passage_counts.c.collection == collection)
    )
