"""The fence, at the newest epoch in the facts; who wrote a journal; notes, which had come without a number."""

from __future__ import annotations

import msgpack
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what version 3 brought."""
    connection = op.get_bind()
    if not sa.inspect(connection).has_table("notes"):
        op.create_table(
            "notes",
            sa.Column("name", sa.String, primary_key=True),
            sa.Column("data", sa.LargeBinary, nullable=False),
        )
    op.add_column("meta", sa.Column("written_by", sa.String, nullable=False, server_default=""))
    fence = op.create_table(
        "fence",
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
    )
    bodies = connection.execute(sa.text("SELECT body FROM facts WHERE kind = 'EpochBegun'")).scalars()
    newest = max((msgpack.unpackb(body)["epoch"] for body in bodies), default=0)
    op.bulk_insert(fence, [{"epoch": newest, "host": "", "pid": 0, "since": 0.0}])
    if connection.dialect.name == "postgresql":
        op.execute("ALTER TABLE bulk ALTER COLUMN data SET STORAGE EXTERNAL")
