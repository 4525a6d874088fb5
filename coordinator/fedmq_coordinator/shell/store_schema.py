"""The tables of the journal, in SQLAlchemy Core, of types that SQLite and PostgreSQL both have.

meta     one row: which version of the journal this is, whose, and which fedmq wrote it last
fence    one row: the newest epoch that has begun, and who began it; every write holds it (`store_fence`)
facts    append-only; never changed, never deleted
bulk     large bytes of facts, in pieces; the only thing that retention deletes. `seq` is the fact's, or a negative
         number that the fact's `beside` says, for bytes that were written ahead of their fact
checkpoints, checkpoint_pieces
         the fold of all facts up to number `seq`, in pieces; a cache (`store_checkpoints`)
pruned   before which fact of a run retention has deleted a field's bulk
dropped  from which fact of a run to which it has deleted versions' snapshots and deltas
notes    what the shell remembers for its next start; nothing that a replay needs
sources  where the task of a run lies on this machine; nothing that a replay needs

Whoever changes a table here adds a revision to `migrations`, and raises `JOURNAL_VERSION`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
)

METADATA: Final = MetaData()

_NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")

META: Final = Table(
    "meta",
    METADATA,
    Column("journal_version", Integer, nullable=False),
    Column("federation", String, nullable=False),
    Column("written_by", String, nullable=False, server_default=""),
)

FENCE: Final = Table(
    "fence",
    METADATA,
    Column("epoch", BigInteger, nullable=False),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("since", Float, nullable=False),
)

FACTS: Final = Table(
    "facts",
    METADATA,
    # Given by the store, 1, 2, 3, ...: a missing number is damage.
    Column("seq", _NUMBER, primary_key=True, autoincrement=False),
    Column("run", String, nullable=True),
    Column("kind", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
    # msgpack {field: [size, SHA-256]} of what lies in `bulk`; a third value is the `seq` of what was written ahead
    Column("beside", LargeBinary, nullable=True),
    # CRC-32 over kind, body and beside: SQLite does not check its pages
    Column("checksum", BigInteger, nullable=False),
    Index("facts_by_run", "run", "kind", "seq"),
)

BULK: Final = Table(
    "bulk",
    METADATA,
    Column("seq", _NUMBER, primary_key=True, autoincrement=False),
    Column("field", String, primary_key=True),
    Column("piece", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
# Updates and models are compressed already.
_UNPACKED: Final = DDL("ALTER TABLE bulk ALTER COLUMN data SET STORAGE EXTERNAL")  # type: ignore[no-untyped-call]
event.listen(BULK, "after_create", _UNPACKED.execute_if(dialect="postgresql"))

CHECKPOINTS: Final = Table(
    "checkpoints",
    METADATA,
    # The newest fact's, as its time and its checksum are.
    Column("seq", _NUMBER, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("fact_checksum", BigInteger, nullable=False),
    # Of all pieces together.
    Column("sha256", LargeBinary, nullable=False),
)

CHECKPOINT_PIECES: Final = Table(
    "checkpoint_pieces",
    METADATA,
    Column("seq", _NUMBER, primary_key=True, autoincrement=False),
    Column("piece", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

PRUNED: Final = Table(
    "pruned",
    METADATA,
    Column("run", String, primary_key=True),
    Column("field", String, primary_key=True),
    Column("before_seq", BigInteger, nullable=False),
)

DROPPED: Final = Table(
    "dropped",
    METADATA,
    Column("run", String, primary_key=True),
    Column("first_seq", _NUMBER, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
)

NOTES: Final = Table(
    "notes",
    METADATA,
    Column("name", String, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

SOURCES: Final = Table(
    "sources",
    METADATA,
    Column("run", String, primary_key=True),
    Column("task", Text, nullable=False),
)
