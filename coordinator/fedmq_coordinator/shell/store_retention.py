"""What large bytes go by the rule of `fedmq_coordinator.core.retention`: which rows of `bulk`, and their removal.

A plan is made first and can be looked at; carrying it out writes down what is gone, in one transaction, and then
removes the bytes a little at a time, while others write. A kill in between leaves some of them there, which is no harm:
the next plan that is thorough finds them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
from sqlalchemy import Connection, Select, delete, func, insert, select

from fedmq_coordinator.core import retention
from fedmq_coordinator.core.retention import Publication, RetentionSettings, Stretch
from fedmq_coordinator.shell.store_bulk import AHEAD, BulkTable
from fedmq_coordinator.shell.store_database import Database
from fedmq_coordinator.shell.store_rows import WRITTEN_AHEAD, entries
from fedmq_coordinator.shell.store_schema import BULK, DROPPED, FACTS, PRUNED

_NAMES: Final = {
    "payload": "updates' payloads",
    "private": "full-precision weights",
    "initial": "first weights",
    "snapshot": "snapshots",
    "delta": "deltas",
}
"""What goes, and what it is called."""
_BELOW: Final = {"initial": "RunCreated", "payload": "UpdateAccepted", "private": "VersionPublished"}
"""What goes below a line, and the facts that have it."""
_PUBLISHED: Final = ("snapshot", "delta")
_NUMBERS_A_QUERY: Final = 500
_ROWS_A_READ: Final = 512


@dataclass(frozen=True)
class Going:
    """One fact's bytes that go.

    Attributes:
        run: of which run.
        field: of the fact.
        fact: its number.
        place: the number under which the bytes lie, and the name of their field there.
        size: how many there are.
    """

    run: str
    field: str
    fact: int
    place: tuple[int, str]
    size: int


@dataclass
class Plan:
    """What goes, in the order of the facts within each run.

    Attributes:
        going: the bytes.
        lines: (run, field) -> the number of the first fact that keeps its bytes.
        stretches: run -> what is gone of its versions from now on.
    """

    going: list[Going] = field(default_factory=list)
    lines: dict[tuple[str, str], int] = field(default_factory=dict)
    stretches: list[tuple[str, Stretch]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(each.size for each in self.going)

    def summary(self) -> list[tuple[str, str, int, int]]:
        """For each run and kind of bytes that go: the two, how many facts lose them, and bytes."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for each in self.going:
            count, size = found.get((each.run, each.field), (0, 0))
            found[each.run, each.field] = count + 1, size + each.size
        return [(run, _NAMES[name], count, size) for (run, name), (count, size) in sorted(found.items())]


def make_plan(
    database: Database,
    settings: RetentionSettings,
    *,
    best: Mapping[str, int | None],
    now: float,
    run: str | None = None,
) -> Plan:
    """Decide what goes.

    Args:
        database: the journal's.
        settings: for how long things are kept.
        best: each run's best version; a run that is not in it keeps everything.
        now: seconds since the epoch.
        run: only this one, and nothing that an earlier plan left half done; None: all runs, thoroughly.

    Raises:
        StoreError: the database fails.
    """
    chosen = select(FACTS.c.run, FACTS.c.seq).where(FACTS.c.kind == "RunCreated").order_by(FACTS.c.seq)
    if run is not None:
        chosen = chosen.where(FACTS.c.run == run)

    def work(connection: Connection) -> Plan:
        plan = Plan()
        for name, created in connection.execute(chosen).all():
            if name in best:
                planner = _Planner(connection, name, created, thorough=run is None)
                planner.add_to(plan, settings, best=best[name], now=now)
        return plan

    return database.read(work)


def carry_out(database: Database, bulk: BulkTable, plan: Plan) -> None:
    """Make a plan so. It takes a while, in which others write.

    Raises:
        StoreError: the database fails; what is gone by then is gone.
    """

    def work(connection: Connection) -> None:
        for (run, name), before in plan.lines.items():
            connection.execute(delete(PRUNED).where(PRUNED.c.run == run, PRUNED.c.field == name))
            connection.execute(insert(PRUNED).values(run=run, field=name, before_seq=before))
        for run, stretch in plan.stretches:
            connection.execute(
                delete(DROPPED).where(DROPPED.c.run == run, DROPPED.c.first_seq == stretch.first)
            )
            connection.execute(
                insert(DROPPED).values(run=run, first_seq=stretch.first, last_seq=stretch.last)
            )

    if plan.lines or plan.stretches:
        database.write(work)
    bulk.remove([each.place for each in plan.going])


@dataclass(frozen=True)
class Dropped:
    """What retention has dropped, or has begun to.

    Attributes:
        lines: (run, field) -> the number of the first fact that keeps its bytes.
        stretches: run -> first and last number of facts whose versions are gone.
    """

    lines: Mapping[tuple[str, str], int]
    stretches: Mapping[str, Sequence[tuple[int, int]]]

    @classmethod
    def read(cls, connection: Connection) -> Dropped:
        """As it is now."""
        lines = {(row.run, row.field): row.before_seq for row in connection.execute(select(PRUNED))}
        stretches: dict[str, list[tuple[int, int]]] = {}
        for row in connection.execute(select(DROPPED)):
            stretches.setdefault(row.run, []).append((row.first_seq, row.last_seq))
        return cls(lines, stretches)

    def covers(self, run: str | None, kind: str, field: str, seq: int) -> bool:
        """Whether a field of fact number `seq` is gone."""
        if run is None:
            return False
        if kind == "VersionPublished" and field in _PUBLISHED:
            return any(first <= seq <= last for first, last in self.stretches.get(run, ()))
        return seq < self.lines.get((run, field), 0)


class _Planner:
    """One run."""

    def __init__(self, connection: Connection, run: str, created: int, *, thorough: bool) -> None:
        self._connection = connection
        self._run = run
        self._created = created
        self._thorough = thorough
        line = select(PRUNED.c.field, PRUNED.c.before_seq).where(PRUNED.c.run == run)
        self._lines = {row.field: row.before_seq for row in connection.execute(line)}
        gone = select(DROPPED.c.first_seq, DROPPED.c.last_seq).where(DROPPED.c.run == run)
        self._gone = {Stretch(row.first_seq, row.last_seq) for row in connection.execute(gone)}

    def add_to(self, plan: Plan, settings: RetentionSettings, *, best: int | None, now: float) -> None:
        published = list(self._published())
        floor = retention.floor(published, settings, now=now)
        lines = dict(self._lines)
        fresh: list[Stretch] = []
        if floor is not None:
            steps = select(func.max(FACTS.c.seq)).where(FACTS.c.run == self._run, FACTS.c.kind == "StepTaken")
            last_step = self._connection.execute(steps.where(FACTS.c.seq < floor.seq)).scalar() or 0
            for name, before in retention.lines(floor, created=self._created, last_step=last_step).items():
                if before > lines.get(name, 0):
                    plan.lines[self._run, name] = lines[name] = before
            over = retention.needless(published, settings, floor=floor, best=best, now=now)
            fresh = [stretch for stretch in over if stretch not in self._gone]
        going: list[Going] = []
        for name, before in lines.items():
            since = 0 if self._thorough else self._lines.get(name, 0)
            going += self._stored(_BELOW[name], (name,), since, before - 1)
        if self._thorough:
            for stretch in self._gone:
                going += self._stored("VersionPublished", _PUBLISHED, stretch.first, stretch.last)
        for stretch in fresh:
            found = self._stored("VersionPublished", _PUBLISHED, stretch.first, stretch.last)
            if found:  # else all of it is small and stays in its facts
                plan.stretches.append((self._run, stretch))
                going += found
        plan.going += sorted(going, key=lambda each: (each.fact, each.field))

    def _published(self) -> Iterator[Publication]:
        chosen = select(FACTS.c.seq, FACTS.c.at, FACTS.c.body, FACTS.c.beside)
        of_run = (FACTS.c.run == self._run, FACTS.c.kind == "VersionPublished")
        anchors_from = self._lines.get("private", 0)
        inner = {"yield_per": _ROWS_A_READ}  # small deltas are in them: a server would send all at once
        ordered = chosen.where(*of_run).order_by(FACTS.c.seq)
        rows: Iterable[Any] = self._connection.execute(ordered, execution_options=inner)
        for row in rows:
            fact: dict[str, Any] = msgpack.unpackb(row.body)
            beside = {name for name, *_ in entries(row, ())}
            yield Publication(
                seq=row.seq,
                version=fact["version"],
                at=row.at,
                is_base=fact["snapshot"] is not None or "snapshot" in beside,
                is_anchor="private" in beside and row.seq >= anchors_from,
            )

    def _stored(self, kind: str, fields: Collection[str], first: int, last: int) -> list[Going]:
        """What lies in `bulk` of some fields of facts of one kind, from one number to another."""
        which = (FACTS.c.run == self._run, FACTS.c.kind == kind, FACTS.c.seq >= first, FACTS.c.seq <= last)
        lying = (
            select(BULK.c.seq, BULK.c.field, func.sum(func.length(BULK.c.data)))
            .where(BULK.c.field.in_(fields), BULK.c.seq.in_(select(FACTS.c.seq).where(*which)))
            .group_by(BULK.c.seq, BULK.c.field)
        )
        found = [
            Going(self._run, name, seq, (seq, name), int(size))
            for seq, name, size in self._connection.execute(lying).all()
        ]
        if kind not in WRITTEN_AHEAD:
            return found
        besides = select(FACTS.c.seq, FACTS.c.beside).where(*which, FACTS.c.beside.is_not(None))
        rows: Iterable[Any] = self._connection.execute(besides)
        named: dict[int, tuple[int, str]] = {}
        for row in rows:
            for name, _, _, (number, where) in entries(row, ()):
                if where == AHEAD and name in fields:
                    named[number] = row.seq, name
        for numbers in _some(sorted(named)):
            for number, size in self._connection.execute(_sizes_ahead(numbers)).all():
                seq, name = named[number]
                found.append(Going(self._run, name, seq, (number, AHEAD), int(size)))
        return found


def _sizes_ahead(numbers: Collection[int]) -> Select[int, int]:
    chosen = select(BULK.c.seq, func.sum(func.length(BULK.c.data)))
    return chosen.where(BULK.c.field == AHEAD, BULK.c.seq.in_(numbers)).group_by(BULK.c.seq)


def _some(numbers: list[int]) -> Iterable[list[int]]:
    for start in range(0, len(numbers), _NUMBERS_A_QUERY):
        yield numbers[start : start + _NUMBERS_A_QUERY]
