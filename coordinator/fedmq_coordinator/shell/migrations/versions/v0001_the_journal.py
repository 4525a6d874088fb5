"""The journal: facts, their bulk, and what retention dropped."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of version 1."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "meta",
        sa.Column("journal_version", sa.Integer, nullable=False),
        sa.Column("federation", sa.String, nullable=False),
    )
    op.create_table(
        "facts",
        sa.Column("seq", number, primary_key=True, autoincrement=False),
        sa.Column("run", sa.String, nullable=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("beside", sa.LargeBinary, nullable=True),
        sa.Column("checksum", sa.BigInteger, nullable=False),
    )
    op.create_index("facts_by_run", "facts", ["run", "kind", "seq"])
    op.create_table(
        "bulk",
        sa.Column("seq", number, primary_key=True, autoincrement=False),
        sa.Column("field", sa.String, primary_key=True),
        sa.Column("piece", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "pruned",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("field", sa.String, primary_key=True),
        sa.Column("before_seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sources",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("task", sa.Text, nullable=False),
    )
