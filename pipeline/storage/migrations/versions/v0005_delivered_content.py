"""Sources remember what they delivered, so that delivering it again does not undo what others changed since; readers can be
asked to compare what they have in memory, and say how many searches wait there; a lease may have the name of a source"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("source_articles", sa.Column("delivered_hash", sa.String(length=64)))
    op.add_column("readers", sa.Column("asked", sa.String(length=10)))
    op.add_column("readers", sa.Column("differing", sa.Integer()))
    op.add_column("readers", sa.Column("waiting", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("leases") as leases:
        leases.alter_column("name", existing_type=sa.String(length=50), type_=sa.String(length=120))
