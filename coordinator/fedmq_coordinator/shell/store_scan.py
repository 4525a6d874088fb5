"""Every row of a journal, held against what was written: for `verify`, and for a look at what takes how much room."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Select, func, select

from fedmq_coordinator.core.facts import RunFact
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_retention import Dropped
from fedmq_coordinator.shell.store_rows import entries, from_row, is_sound
from fedmq_coordinator.shell.store_schema import BULK, FACTS, PRUNED
from fedmq_protocol.errors import StoreError

_ROWS_A_READ: Final = 512
_MAX_FINDINGS: Final = 100


@dataclass
class Scan:
    """What was seen.

    Attributes:
        findings: what is not as it was written, a line each.
        pieces: how many fields have bytes beside their facts, and these are as they were written.
        size: how many bytes.
        dropped: of how many fields retention has dropped the bytes.
    """

    findings: list[str] = field(default_factory=list)
    pieces: int = 0
    size: int = 0
    dropped: int = 0
    _known: Dropped = field(default_factory=lambda: Dropped({}, {}))

    def is_dropped(self, journal: Journal, row: Any, name: str) -> bool:  # noqa: ANN401  # a row of `facts`
        """Whether retention has dropped a field, by now."""
        if not self._known.covers(row.run, row.kind, name, row.seq):
            self._known = journal.database.read(Dropped.read)
        return self._known.covers(row.run, row.kind, name, row.seq)


def scan(journal: Journal, found: Scan) -> Iterator[int]:
    """Look at every fact, and everything that lies beside one.

    Args:
        journal: as `Journal.look` opens it.
        found: what was seen so far, changed while it goes on.

    Yields:
        How many facts have been looked at.

    Raises:
        StoreError: the database cannot be read at all.
    """
    database = journal.database
    if database.engine.dialect.name == "sqlite":
        check = "PRAGMA integrity_check(20)"  # which also sees indices that do not fit their tables
        said = database.read(lambda connection: connection.exec_driver_sql(check).scalars().all())
        found.findings += [f"SQLite: {' '.join(line.split())}" for line in said if line != "ok"]
    done = 0
    while done < journal.num_facts and len(found.findings) < _MAX_FINDINGS:
        page = select(FACTS).order_by(FACTS.c.seq).limit(_ROWS_A_READ)
        page = page.where(FACTS.c.seq > done, FACTS.c.seq <= journal.num_facts)
        rows = database.read(lambda connection, page=page: connection.execute(page).all())  # type: ignore[misc]
        if not rows:
            found.findings.append(f"facts are missing after number {done}")
            return
        for row in rows:
            if row.seq != done + 1:
                found.findings.append(f"facts are missing between number {done} and {row.seq}")
            _look_at(journal, row, found)
            done = row.seq
        yield done
    found.findings += database.read(_wrong_lines)


def _look_at(journal: Journal, row: Any, found: Scan) -> None:  # noqa: ANN401  # a row of `facts`
    if not is_sound(row):
        found.findings.append(f"fact number {row.seq} ({row.kind}) is not what was written")
        return
    try:
        fact = from_row(row)
    except StoreError as error:
        found.findings.append(f"fact number {row.seq}: {error}")
        return
    run = fact.run if isinstance(fact, RunFact) else None
    if row.at != fact.at or row.run != run:
        found.findings.append(f"fact number {row.seq} ({row.kind}) stands in the wrong place of its table")
    for name, size, sha256, where in entries(row, ()):
        if _is_whole(journal, where, size, sha256):
            found.pieces += 1
            found.size += size
        elif found.is_dropped(journal, row, name):
            found.dropped += 1
        else:
            found.findings.append(f"the {name} of fact number {row.seq} ({row.kind}) is not what was written")


def _is_whole(journal: Journal, where: tuple[int, str], size: int, sha256: bytes) -> bool:
    """Whether the bytes are there; read piece by piece."""
    numbers = (
        select(BULK.c.piece).where(BULK.c.seq == where[0], BULK.c.field == where[1]).order_by(BULK.c.piece)
    )
    digest, length = hashlib.sha256(), 0
    pieces = journal.database.read(lambda connection: connection.execute(numbers).scalars().all())
    for number in pieces:
        chosen = _piece(where, number)
        data = journal.database.read(lambda connection, c=chosen: connection.execute(c).scalar())  # type: ignore[misc]
        digest.update(data or b"")
        length += len(data or b"")
    return list(pieces) == list(range(max(1, len(pieces)))) and length == size and digest.digest() == sha256


def _piece(where: tuple[int, str], number: int) -> Select[bytes]:
    return select(BULK.c.data).where(BULK.c.seq == where[0], BULK.c.field == where[1], BULK.c.piece == number)


def _wrong_lines(connection: Connection) -> list[str]:
    """Retention's own record: it must not say that what a replay needs may be gone."""
    wrong = []
    for run, name, before in connection.execute(
        select(PRUNED.c.run, PRUNED.c.field, PRUNED.c.before_seq)
    ).all():
        anchors = select(FACTS.c.seq, FACTS.c.run, FACTS.c.kind, FACTS.c.beside)
        of_run = (FACTS.c.run == run, FACTS.c.kind == "VersionPublished", FACTS.c.beside.is_not(None))
        rows: Any = connection.execute(anchors.where(*of_run).order_by(FACTS.c.seq))
        seqs = [row.seq for row in rows if any(field == "private" for field, *_ in entries(row, ()))]
        line = select(PRUNED.c.before_seq).where(PRUNED.c.run == run, PRUNED.c.field == "private")
        private = connection.execute(line).scalar() or 0
        floor = next((seq for seq in seqs if seq >= private), None)
        if floor is None:
            wrong.append(f"the table pruned says that nothing is left to replay {run} from")
            continue
        steps = select(func.max(FACTS.c.seq)).where(FACTS.c.run == run, FACTS.c.kind == "StepTaken")
        last_step = connection.execute(steps.where(FACTS.c.seq < floor)).scalar() or 0
        if name == "payload" and before > last_step:
            wrong.append(
                f"the table pruned says that updates of {run} before fact number {before} may be gone, and a replay "
                f"needs those from {last_step} on"
            )
    return wrong
