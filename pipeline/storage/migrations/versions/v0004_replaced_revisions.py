"""Leftovers name the revision that was replaced, so that its rows need not be looked for"""

import sqlalchemy as sa
from alembic import op

from pipeline.storage.tables import Moment, Number

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.rename_table("leftovers", "leftovers_before")
    op.create_table(
        "leftovers",
        sa.Column("article_id", sa.String(length=800), nullable=False),
        sa.Column("due_at", Moment(), nullable=False),
        sa.Column("revision", Number, autoincrement=False, server_default="0", nullable=False),
        sa.Column("passages", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("article_id", "revision"),
    )
    op.execute("INSERT INTO leftovers (article_id, due_at) SELECT article_id, due_at FROM leftovers_before")
    op.drop_table("leftovers_before")
