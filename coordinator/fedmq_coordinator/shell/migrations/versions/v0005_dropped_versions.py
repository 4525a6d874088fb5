"""Which versions' snapshots and deltas retention has dropped; before, it dropped none."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add what version 5 brought."""
    op.create_table(
        "dropped",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column(
            "first_seq",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
    )
