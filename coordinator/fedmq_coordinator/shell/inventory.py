"""What a journal holds, and how much room it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Integer, case, column, func, select, table, text

from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_bulk import AHEAD
from fedmq_coordinator.shell.store_rows import entries
from fedmq_coordinator.shell.store_schema import BULK, CHECKPOINT_PIECES, FACTS, METADATA


@dataclass
class RunInventory:
    """One run: its last state in the journal, and what it takes."""

    run: str
    state: str = "queued"
    version: int = -1
    facts: int = 0
    size: int = 0


@dataclass
class Inventory:
    """What is there.

    Attributes:
        facts: for each kind how many, and the bytes of their rows.
        beside: for each field how many have bytes beside their facts, and the bytes.
        runs: each run.
        checkpoints: bytes of all of them.
        database: bytes of the whole database on disk.
        unused: bytes of it that hold nothing; what comes next uses them, or `vacuum` gives them back.
    """

    facts: dict[str, tuple[int, int]] = field(default_factory=dict)
    beside: dict[str, tuple[int, int]] = field(default_factory=dict)
    runs: dict[str, RunInventory] = field(default_factory=dict)
    checkpoints: int = 0
    database: int = 0
    unused: int = 0


def take_inventory(journal: Journal) -> Inventory:
    """Add up what is there.

    Raises:
        StoreError: the database cannot be read.
    """
    return journal.database.read(_add_up)


def _add_up(connection: Connection) -> Inventory:
    found = Inventory()
    row_size = func.length(FACTS.c.body) + func.coalesce(func.length(FACTS.c.beside), 0)
    by_kind = select(FACTS.c.run, FACTS.c.kind, func.count(), func.sum(row_size)).group_by(
        FACTS.c.run, FACTS.c.kind
    )
    for run, kind, count, size in connection.execute(by_kind).all():
        _add(found.facts, kind, count, size)
        if run is not None:
            known = found.runs.setdefault(run, RunInventory(run))
            known.facts += count
            known.size += int(size)
    whose = _ahead(connection)
    is_first = case((BULK.c.piece == 0, 1), else_=0)
    lying = select(BULK.c.seq, BULK.c.field, func.sum(is_first), func.sum(func.length(BULK.c.data)))
    with_beside = select(FACTS.c.seq, FACTS.c.run).where(FACTS.c.beside.is_not(None))
    runs: dict[int, str] = {row.seq: row.run for row in connection.execute(with_beside)}
    for seq, name, count, size in connection.execute(lying.group_by(BULK.c.seq, BULK.c.field)).all():
        fact, of = whose.get(seq, (0, "not named yet")) if name == AHEAD else (seq, name)
        _add(found.beside, of, count, size)
        if runs.get(fact) in found.runs:
            found.runs[runs[fact]].size += int(size)
    _states(connection, found)
    pieces = select(func.coalesce(func.sum(func.length(CHECKPOINT_PIECES.c.data)), 0))
    found.checkpoints = int(connection.execute(pieces).scalar_one())
    found.database, found.unused = _sizes(connection)
    return found


def _ahead(connection: Connection) -> dict[int, tuple[int, str]]:
    """For each number of bytes written ahead, the fact that names it and the field."""
    rows: Any = connection.execute(select(FACTS.c.seq, FACTS.c.beside).where(FACTS.c.beside.is_not(None)))
    return {
        number: (row.seq, name)
        for row in rows
        for name, _, _, (number, where) in entries(row, ())
        if where == AHEAD
    }


def _states(connection: Connection, found: Inventory) -> None:
    counted = select(FACTS.c.run, FACTS.c.kind, func.count()).group_by(FACTS.c.run, FACTS.c.kind)
    of_kinds = FACTS.c.kind.in_(["RunActivated", "VersionPublished", "RunEnded"])
    for run, kind, count in connection.execute(counted.where(of_kinds)).all():
        known = found.runs[run]
        if kind == "VersionPublished":
            known.version = count - 1
        elif kind == "RunEnded" or known.state == "queued":
            known.state = "over" if kind == "RunEnded" else "active"


def _sizes(connection: Connection) -> tuple[int, int]:
    """Bytes on disk, and those of them that hold nothing."""
    if connection.dialect.name == "sqlite":
        pages, free, size = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0)
            for name in ("page_count", "freelist_count", "page_size")
        )
        return pages * size, free * size
    names = [each.name for each in METADATA.sorted_tables]
    which = (column("relname").in_(names), column("relnamespace") == text("current_schema()::regnamespace"))
    here = select(column("oid", Integer)).select_from(table("pg_class")).where(*which).subquery()
    total = select(func.coalesce(func.sum(func.pg_total_relation_size(here.c.oid)), 0))
    return int(connection.execute(total).scalar_one()), 0


def _add(sums: dict[str, tuple[int, int]], name: str, count: int, size: int) -> None:
    before = sums.get(name, (0, 0))
    sums[name] = before[0] + int(count), before[1] + int(size)
