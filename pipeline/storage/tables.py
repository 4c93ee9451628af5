"""The tables of the state database. Knows SQL types, no statements and no transactions."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

HEAD = "0005"  # the newest migration: compared at start, so that a database up to date never imports Alembic

metadata = MetaData()


class Moment(TypeDecorator[datetime]):
    """An aware UTC time; SQLite forgets offsets, so it is stored as naive UTC and given back aware."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None else None


Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself only what is called INTEGER

# One row an accepted change; `seq` is its number, given at acceptance.
inbox = Table(
    "inbox",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=True),
    Column("article_id", String(800), nullable=False),
    Column("payload", Text),  # the article as JSON; NULL is a delete
    Column("updated_at", Moment, nullable=False),
    Column("accepted_at", Moment, nullable=False),
    Column("source", String(200), nullable=False),
    Column("lane", Integer, nullable=False, server_default="0"),  # 0 is drained before 1
    Column("state", String(12), nullable=False),  # queued | indexed | deleted | superseded | failed
    Column("attempts", Integer, nullable=False, default=0),
    Column("due_at", Moment),  # not to be tried before; NULL: now
    Column("error", Text),
    Column("settled_at", Moment),
    sqlite_autoincrement=True,  # a number is never given twice
)
Index("inbox_state_seq", inbox.c.state, inbox.c.seq)
Index("inbox_lane", inbox.c.state, inbox.c.lane, inbox.c.seq)
Index("inbox_article", inbox.c.article_id, inbox.c.seq)

# The registry: one row an article. `revision` (a seq) is the visible one: the only truth about what readers may see.
articles = Table(
    "articles",
    metadata,
    Column("id", String(800), primary_key=True),
    Column("revision", Number),  # NULL: nothing of this article is visible
    Column("payload", Text),  # the newest accepted article, NULL after a delete
    Column("shown_payload", Text),  # the visible article, where a newer one is accepted; else NULL
    Column("accepted_seq", Number, nullable=False),
    Column("accepted_hash", String(64)),  # content hash of the newest accepted version, NULL for a delete
    Column("updated_at", Moment, nullable=False),
    Column("status", String(12), nullable=False),  # queued | indexed | failed | deleted
    Column("error", Text),
    Column("passages", Integer, nullable=False, default=0),
    Column("accepted_at", Moment, nullable=False),
    Column("indexed_at", Moment),
)
Index("articles_status", articles.c.status)

# What became visible or vanished, in order; every API process follows it.
changes = Table(
    "changes",
    metadata,
    Column("position", Number, primary_key=True, autoincrement=True),
    Column("article_id", String(800), nullable=False),
    Column("revision", Number),  # NULL: the article is gone
    Column("seq", Number, nullable=False),
    Column("lane", Integer),
    Column("accepted_at", Moment),
    Column("created_at", Moment, nullable=False),
    sqlite_autoincrement=True,
)

# How far the inbox and the change log were pruned: what is numbered up to `value` may be missing there.
pruned = Table(
    "pruned",
    metadata,
    Column("name", String(20), primary_key=True),  # inbox | changes
    Column("value", Number, nullable=False),
)

# Revisions that were replaced, whose rows are deleted after a grace. Revision 0: rows of whichever are not visible may
# stand in the collection, and have to be looked for.
leftovers = Table(
    "leftovers",
    metadata,
    Column("article_id", String(800), primary_key=True),
    Column("due_at", Moment, nullable=False),
    Column("revision", Number, primary_key=True, autoincrement=False, server_default="0"),
    Column("passages", Integer, nullable=False, server_default="0"),
)

# Rows of the articles that were committed in the last minute, for the processes that follow the log.
carried = Table(
    "carried",
    metadata,
    Column("collection", String(200), primary_key=True),
    Column("article_id", String(800), primary_key=True),
    Column("revision", Number, nullable=False),
    Column("rows", Text, nullable=False),  # JSON
    Column("created_at", Moment, nullable=False),
)

collections = Table(
    "collections",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("manifest", Text, nullable=False),
    Column("recipe", Text),  # the settings it was built with, as JSON: what another process needs to ask it
    Column("active", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("state", String(12), nullable=False, server_default="active"),  # building | ready | active | kept | dropped
    Column("left_at", Moment),  # when another one took its place
    Column("position", Number),  # while building: rows are complete up to this place of the change log
    Column("last_article", String(800)),  # while building: articles are in up to this id
)

# How many passages the articles have in a collection that is not in use; of the one in use `articles.passages` says it.
passage_counts = Table(
    "passage_counts",
    metadata,
    Column("collection", String(200), primary_key=True),
    Column("article_id", String(800), primary_key=True),
    Column("revision", Number, nullable=False),
    Column("passages", Integer, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),  # seconds since 1970
)

# Where articles come from. `cursor` is what a source remembers of its last run.
sources = Table(
    "sources",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("options", Text, nullable=False),  # JSON
    Column("schedule", String(100), nullable=False),  # seconds, or five fields of cron
    Column("cursor", Text, nullable=False),  # JSON
    Column("created_at", Moment, nullable=False),
)

# What each source delivered and did not take back.
source_articles = Table(
    "source_articles",
    metadata,
    Column("source", String(100), primary_key=True),
    Column("article_id", String(800), primary_key=True),
    Column("key", Text, nullable=False),
    Column("delivered_hash", String(64)),  # content hash of what the source delivered last; NULL: from an older Yeoul
)

# What the scheduler does, and what it is asked to do: whoever asks writes here, the scheduler obeys.
jobs = Table(
    "jobs",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("paused", Boolean, nullable=False),
    Column("requested_at", Moment),  # run it now
    Column("started_at", Moment),
    Column("finished_at", Moment),  # NULL or before `started_at`: it runs, or its process died
    Column("next_at", Moment),
    Column("outcome", String(12), nullable=False),  # never | running | done | failed
    Column("counts", Text, nullable=False),  # JSON
    Column("error", Text),
)

# The processes that answer searches, each with where it stands.
readers = Table(
    "readers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("collection", String(200), nullable=False),  # the newest one that is loaded there
    Column("position", Number, nullable=False),
    Column("seen_at", Moment, nullable=False),
    Column("waiting", Integer, nullable=False, server_default="0"),  # searches, for those before them
    Column("asked", String(10)),  # compare | repair: what somebody wants of its index in memory; NULL: nothing
    Column("differing", Integer),  # articles that were not as the registry says, when it was asked last
)
