"""What no replay needs any more: which bulk it is, and where it lies.

What a replay starts from is the newest version of a run whose `private` weights are in the journal. Older private
weights are dropped, and with them the payloads of updates that a step before that version folded in; both read back as
None. What remains is enough to replay the run (payloads still in the accumulator stay), to report on it, and to rebuild
every version that was published, for as long as the journal lives.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, insert, select

from fedmq_coordinator.shell.store_bulk import AHEAD
from fedmq_coordinator.shell.store_rows import DROPPABLE, WRITTEN_AHEAD, ahead
from fedmq_coordinator.shell.store_schema import BULK, FACTS, PRUNED


def drop(connection: Connection, run: str, anchor: int) -> list[tuple[int, str]]:
    """Say what of a run is not needed now that fact number `anchor` is there, a version with its private weights.

    Returns:
        Number and field of what may be removed from `bulk`.
    """
    steps = select(func.max(FACTS.c.seq)).where(FACTS.c.run == run, FACTS.c.kind == "StepTaken")
    # What came between the last step and the version is in the accumulator, not in the version's weights.
    last_step = connection.execute(steps.where(FACTS.c.seq < anchor)).scalar() or 0
    return [
        each
        for kind, before in (("VersionPublished", anchor), ("UpdateAccepted", last_step))
        for each in _drop(connection, run, kind, before)
    ]


def is_dropped(connection: Connection, run: str | None, kind: str, field: str, seq: int) -> bool:
    """Whether retention has dropped a field of fact number `seq`, or has begun to."""
    if DROPPABLE.get(kind) != field:
        return False
    known = select(PRUNED.c.before_seq).where(PRUNED.c.run == run, PRUNED.c.field == field)
    before = connection.execute(known).scalar()
    return before is not None and seq < before


def _drop(connection: Connection, run: str, kind: str, before_seq: int) -> list[tuple[int, str]]:
    """Say that the droppable bulk of a run's facts of one kind is not needed; return where it lies."""
    field = DROPPABLE[kind]
    of_kind = (FACTS.c.run == run, FACTS.c.kind == kind, FACTS.c.seq < before_seq)
    which = (BULK.c.field == field, BULK.c.seq.in_(select(FACTS.c.seq).where(*of_kind)))
    places = [
        (seq, field) for seq in connection.execute(select(BULK.c.seq).distinct().where(*which)).scalars()
    ]
    if kind in WRITTEN_AHEAD:
        rows = connection.execute(select(FACTS.c.beside).where(*of_kind, FACTS.c.beside.is_not(None)))
        before = (BULK.c.field == AHEAD, BULK.c.seq.in_(list(ahead(rows.scalars(), field))))
        found = connection.execute(select(BULK.c.seq).distinct().where(*before)).scalars()
        places += [(seq, AHEAD) for seq in found]
    connection.execute(delete(PRUNED).where(PRUNED.c.run == run, PRUNED.c.field == field))
    connection.execute(insert(PRUNED).values(run=run, field=field, before_seq=before_seq))
    return places
