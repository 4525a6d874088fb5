"""Who can train now, who is at work, who is waited for: kept up to date, so that no event looks at every device.

All of it follows from devices' presence and the active run's state, and is forgotten with the process. Whatever changes
a device is noted here by `touch`; before an answer is given, what was touched is looked at anew. So an event costs
O(log n) comparisons for each device that it concerns, and a sorted list's move of memory.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.devices import Device
from fedmq_coordinator.core.run import HeldLease, Run
from fedmq_coordinator.core.selection import is_eligible

T = TypeVar("T", float, str, tuple[float, str])

_AVAILABLE: Final = 1
_FREE: Final = 2
_IDLE: Final = 4
_AT_WORK: Final = 8
_MEMBER: Final = 16
_ANSWERED: Final = 32
_EXPECTED: Final = 64
_MISSING: Final = 128
_FEW: Final = 16
_MANY: Final = 8
"""More than one device in so many was touched, and not just a few: looking at all of them is cheaper."""
_STALE: Final = 64
"""So many expiries of leases that are over may be kept, besides as many as there are leases."""


class Roster:
    """The devices, in the light of the active run.

    Args:
        devices: the federation's, by name.
    """

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self._run: Run | None = None
        self._version = -1
        self._members: set[str] = set()
        self._touched: set[str] = set()
        self._all = True
        self._presuming = False
        self._extended: Callable[[float, float], float] = lambda _granted_at, expires_at: expires_at
        self.online: set[str] = set()
        """Devices that are connected."""
        self._plain: set[str] = set()
        self.paused: dict[str, float] = {}
        """Devices that failed and are left in peace, until when."""
        self._pauses: list[tuple[float, str]] = []
        self._clear()

    def _clear(self) -> None:
        self._marks: dict[str, int] = {}
        self._times: dict[str, float] = {}
        self.available: list[str] = []
        """Devices that can train the run, by name; those at work among them."""
        self.free: list[str] = []
        """Those of them that have no lease."""
        self.idle: list[str] = []
        """Those of these that have not trained on the newest version."""
        self._spent: set[str] = set()
        self.num_at_work = 0
        """Devices that have a lease and are there."""
        self.num_answered = 0
        """Members of the round that have answered."""
        self.num_missing = 0
        """Those that have not, and could train; their leases may have run out."""
        self._expected: list[tuple[float, str]] = []
        self._task_times: list[float] = []
        self._member_times: list[float] = []
        self._expiries: list[tuple[float, int, str]] = []
        self._spread = {_AVAILABLE: self.available, _FREE: self.free, _IDLE: self.idle}

    # ------------------------------------------------------------------------------ what changes

    def touch(self, device: str) -> None:
        """Its presence, problem, lease or answers may have changed."""
        self._touched.add(device)
        self._see(device)

    def anew(self) -> None:
        """Everything may have changed."""
        self._all = True
        self.online.clear()
        self._plain.clear()
        for device in self._devices:
            self._see(device)

    def _see(self, name: str) -> None:
        device = self._devices.get(name)
        here = device is not None and device.online
        (self.online.add if here else self.online.discard)(name)
        plain = device is not None and here and not device.reads_packed
        (self._plain.add if plain else self._plain.discard)(name)

    def pause(self, device: str, *, until: float) -> None:
        """Leave a device in peace."""
        self.paused[device] = until
        heapq.heappush(self._pauses, (until, device))
        self._touched.add(device)

    def recorded(self, fact: f.Fact) -> None:
        """A fact was made so."""
        match fact:
            case f.UpdateAccepted() | f.UpdateRejected() | f.LeaseGranted() | f.LeaseReturned():
                self._touched.add(fact.device)
            case f.RoundOpened():
                self._touched.update(fact.devices)
            case f.RunActivated() | f.RunEnded():
                self._all = True
            case _:
                pass

    @property
    def all_read_packed(self) -> bool:
        """Whether somebody is connected, and all who are read the shorter form of envelopes."""
        return bool(self.online) and not self._plain

    # ------------------------------------------------------------------------------ looking anew

    def bring_up_to_date(
        self, run: Run, *, now: float, presuming: bool, extended: Callable[[float, float], float]
    ) -> Roster:
        """Look at what has changed since the last time; whatever is asked below is of then.

        Args:
            run: the active one.
            now: seconds since the epoch.
            presuming: devices that have not been heard of since connecting are taken to be there.
            extended: when a lease ends that was granted and expires at these times. Whoever changes its answers says
                `anew`.
        """
        while self._pauses and self._pauses[0][0] <= now:
            _, device = heapq.heappop(self._pauses)
            if self.paused.get(device, now + 1.0) <= now:
                del self.paused[device]
            self._touched.add(device)
        version = run.version
        known = (self._run, self._version, self._presuming)
        nothing_new = known == (run, version, presuming) and run.members is self._members
        if nothing_new and not (self._all or self._touched):
            return self
        if run is not self._run or presuming != self._presuming:
            self._all = True
        if version != self._version:
            self._touched |= self._spent
        if run.members is not self._members:
            self._touched |= self._members
        self._run, self._presuming, self._extended = run, presuming, extended
        self._version, self._members = version, run.members
        num_touched = len(self._touched)
        if self._all or (num_touched > _FEW and _MANY * num_touched > len(self._devices)):
            self._look_at_all(run)
        else:
            for name in self._touched:
                self._look(run, name)
        self._touched.clear()
        return self

    def _look_at_all(self, run: Run) -> None:
        self._all = False
        self._clear()
        for name, device in self._devices.items():
            marks, held = self._judge(run, name, device)
            time = run.task_time(name)
            self._marks[name] = marks
            self._count(marks, 1)
            for bit, names in self._spread.items():
                if marks & bit:
                    names.append(name)
            if marks & (_FREE | _IDLE) == _FREE:
                self._spent.add(name)
            if time is not None:
                self._times[name] = time
                self._task_times.append(time)
                if marks & _MEMBER:
                    self._member_times.append(time)
            if marks & _EXPECTED:
                self._expected.append((_rank(time), name))
            if held is not None:
                self._expiries.append(self._expiry(name, held))
        for names in self._spread.values():
            names.sort()
        self._expected.sort()
        self._task_times.sort()
        self._member_times.sort()
        heapq.heapify(self._expiries)

    def _look(self, run: Run, name: str) -> None:
        device = self._devices.get(name)
        if device is None:
            return
        marks, held = self._judge(run, name, device)
        before, time_before = self._marks.get(name, 0), self._times.get(name)
        time = run.task_time(name)
        self._marks[name] = marks
        self._count(before, -1)
        self._count(marks, 1)
        for bit, names in self._spread.items():
            if (marks ^ before) & bit:
                (insort if marks & bit else _remove)(names, name)
        (self._spent.add if marks & (_FREE | _IDLE) == _FREE else self._spent.discard)(name)
        if time is not None:
            self._times[name] = time
        _replace(self._task_times, time_before, time)
        _replace(
            self._member_times,
            time_before if before & _MEMBER else None,
            time if marks & _MEMBER else None,
        )
        _replace(
            self._expected,
            (_rank(time_before), name) if before & _EXPECTED else None,
            (_rank(time), name) if marks & _EXPECTED else None,
        )
        if held is not None:
            heapq.heappush(self._expiries, self._expiry(name, held))

    def _judge(self, run: Run, name: str, device: Device) -> tuple[int, HeldLease | None]:
        """What holds of a device, and its lease."""
        held = run.leases.get(name)
        there = self.is_there(name)
        marks = _AT_WORK if there and held is not None else 0
        if is_eligible(device, run) and name not in self.paused:
            marks |= _AVAILABLE
            if held is None:
                marks |= _FREE
                if run.last_lease_version.get(name, -1) < run.version:
                    marks |= _IDLE
        if name in run.members:
            marks |= _MEMBER
            if name in run.answered:
                marks |= _ANSWERED
            else:
                if marks & _AVAILABLE:
                    marks |= _MISSING
                if there and held is not None and held.granted_at >= run.opened_at:
                    marks |= _EXPECTED
        return marks, held

    def _count(self, marks: int, sign: int) -> None:
        if marks & _AT_WORK:
            self.num_at_work += sign
        if marks & _ANSWERED:
            self.num_answered += sign
        if marks & _MISSING:
            self.num_missing += sign

    def _expiry(self, name: str, held: HeldLease) -> tuple[float, int, str]:
        return self._extended(held.granted_at, held.expires_at), held.lease, name

    # ------------------------------------------------------------------------------ what is asked

    def is_there(self, device: str) -> bool:
        """Whether it is connected, or may be taken to be."""
        known = self._devices.get(device)
        return known is not None and (known.online or (self._presuming and not known.heard))

    def awaited(self, *, within_s: float) -> list[str]:
        """Members of the open round that have not answered, are there, and usually take no longer than that, by name.

        Those whose time is not known are among them.
        """
        end = bisect_left(self._expected, (within_s, _LAST))
        return sorted(name for _, name in self._expected[:end])

    def is_any_awaited(self, *, within_s: float) -> bool:
        """Whether `awaited` names anybody."""
        return bool(self._expected) and self._expected[0][0] <= within_s

    def member_times(self) -> list[float]:
        """What those members of the round usually take that have answered before, in seconds, sorted."""
        return self._member_times

    def usual_time(self) -> float | None:
        """The median of what devices usually take, in seconds."""
        return median_of_sorted(self._task_times) if self._task_times else None

    def next_expiry(self) -> float | None:
        """When the next lease runs out."""
        self._drop_stale()
        return self._expiries[0][0] if self._expiries else None

    def next_pause_end(self) -> float | None:
        """When the next device has been left in peace long enough."""
        return self._pauses[0][0] if self._pauses else None

    def expired(self, now: float) -> list[tuple[str, int]]:
        """Devices whose leases have run out, and the leases, in the order of their ends."""
        over: dict[tuple[str, int], None] = {}  # a lease may stand there more than once
        while (at := self.next_expiry()) is not None and at <= now:
            _, lease, device = heapq.heappop(self._expiries)
            over[device, lease] = None
        return list(over)

    def _drop_stale(self) -> None:
        """Forget the ends of leases that are over."""
        leases = {} if self._run is None else self._run.leases
        if len(self._expiries) > 2 * len(leases) + _STALE:
            self._expiries = [self._expiry(name, held) for name, held in leases.items()]
            heapq.heapify(self._expiries)
        while self._expiries:
            _, lease, device = self._expiries[0]
            held = leases.get(device)
            if held is not None and held.lease == lease:
                return
            heapq.heappop(self._expiries)


_LAST: Final = "\U0010ffff"
"""Behind every device's name."""


def median_of_sorted(values: list[float]) -> float:
    """The median of sorted values, of which there is at least one."""
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _rank(time: float | None) -> float:
    return 0.0 if time is None else time


def _remove(values: list[T], value: T) -> None:
    del values[bisect_left(values, value)]


def _replace(values: list[T], before: T | None, after: T | None) -> None:
    if before == after:
        return
    if before is not None:
        _remove(values, before)
    if after is not None:
        insort(values, after)
