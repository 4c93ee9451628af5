"""Lanes, retries, sources, jobs, readers, rebuilds"""

import sqlalchemy as sa
from alembic import op

from pipeline.storage.tables import Moment, Number

revision = "0002"
down_revision = "0001"

# What counted in 32 bits on PostgreSQL; SQLite's integers have 64 anyway.
_NUMBERS = {
    "articles": (("revision", True), ("accepted_seq", False)),
    "changes": (("position", False), ("revision", True), ("seq", False)),
    "inbox": (("seq", False),),
}
_NEW_TABLES = ("passage_counts", "readers", "jobs", "source_articles", "sources", "pruned")


def upgrade() -> None:
    _widen()
    op.add_column("inbox", sa.Column("lane", sa.Integer(), server_default="0", nullable=False))
    op.add_column("inbox", sa.Column("due_at", Moment(), nullable=True))
    op.create_index("inbox_lane", "inbox", ["state", "lane", "seq"], unique=False)
    op.add_column("articles", sa.Column("shown_payload", sa.Text(), nullable=True))
    op.create_index("articles_status", "articles", ["status"], unique=False)
    op.add_column("changes", sa.Column("lane", sa.Integer(), nullable=True))
    op.add_column("changes", sa.Column("accepted_at", Moment(), nullable=True))
    op.add_column("collections", sa.Column("recipe", sa.Text(), nullable=True))
    state = sa.Column("state", sa.String(length=12), server_default="active", nullable=False)
    op.add_column("collections", state)
    op.add_column("collections", sa.Column("left_at", Moment(), nullable=True))
    op.add_column("collections", sa.Column("position", Number, nullable=True))
    op.add_column("collections", sa.Column("last_article", sa.String(length=800), nullable=True))
    op.execute("UPDATE collections SET state = 'dropped' WHERE NOT active")
    op.create_table(
        "passage_counts",
        sa.Column("collection", sa.String(length=200), nullable=False),
        sa.Column("article_id", sa.String(length=800), nullable=False),
        sa.Column("revision", Number, nullable=False),
        sa.Column("passages", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("collection", "article_id"),
    )
    _create_bookkeeping()
    _create_sources()


def _widen() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, columns in _NUMBERS.items():
        for column, nullable in columns:
            op.alter_column(
                table, column, existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=nullable
            )


def _create_bookkeeping() -> None:
    op.create_table(
        "pruned",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("value", Number, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "jobs",
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("requested_at", Moment(), nullable=True),
        sa.Column("started_at", Moment(), nullable=True),
        sa.Column("finished_at", Moment(), nullable=True),
        sa.Column("next_at", Moment(), nullable=True),
        sa.Column("outcome", sa.String(length=12), nullable=False),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "readers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("collection", sa.String(length=200), nullable=False),
        sa.Column("position", Number, nullable=False),
        sa.Column("seen_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _create_sources() -> None:
    op.create_table(
        "sources",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("schedule", sa.String(length=100), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "source_articles",
        sa.Column("source", sa.String(length=100), nullable=False),
        sa.Column("article_id", sa.String(length=800), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("source", "article_id"),
    )


def downgrade() -> None:
    for table in _NEW_TABLES:
        op.drop_table(table)
    op.drop_index("inbox_lane", "inbox")
    op.drop_index("articles_status", "articles")
    for table, columns in {
        "inbox": ("lane", "due_at"),
        "articles": ("shown_payload",),
        "changes": ("lane", "accepted_at"),
        "collections": ("recipe", "state", "left_at", "position", "last_article"),
    }.items():
        for column in columns:
            op.drop_column(table, column)
