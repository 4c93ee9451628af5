"""Rows of the articles that were committed last, beside the commit"""

import sqlalchemy as sa
from alembic import op

from pipeline.storage.tables import Moment, Number

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "carried",
        sa.Column("collection", sa.String(length=200), nullable=False),
        sa.Column("article_id", sa.String(length=800), nullable=False),
        sa.Column("revision", Number, nullable=False),
        sa.Column("rows", sa.Text(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("collection", "article_id"),
    )
