"""Who is there: what presence says of each device, and what the coordinator knows of its key."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fedmq_coordinator.core.traffic import Meter
from fedmq_protocol.codecs import baseline, versioned
from fedmq_protocol.limits import MAX_COUNTER
from fedmq_protocol.messages import DIGEST, Presence, TaskRef
from fedmq_protocol.packing import NAME as PACKED
from fedmq_protocol.replays import FROM_DEVICE, ReplayGuard

GOODBYE: Final = "its goodbye"
LAST_WILL: Final = "its last will"
FLOOD: Final = "its flood"
"""How a device went."""

_TELL_EVERY_S: Final = 10.0
"""A device that goes on in a session of the past is told so no more often."""


@dataclass
class Device:
    """A device of the federation. Its key is journaled; its presence comes anew from the broker after a restart."""

    id: str
    public_key: bytes
    session: int = -1
    online: bool = False
    heard: bool = False
    """Whether it has said anything of its presence since the coordinator connected to the broker."""
    since: float = 0.0
    """When it came or went."""
    gone_by: str = ""
    presence: Presence | None = None
    problem: str = ""
    """Why it cannot take part, in its own words or the coordinator's."""
    flood: str = ""
    """How it floods the coordinator, which therefore reads nothing of it."""
    rejections: dict[str, int] = field(default_factory=dict)
    """Messages and updates refused, by reason."""
    sent: int = 0
    received: int = 0
    """Bytes on its socket, as its agent counted them over all its sessions."""
    behind: int | None = None
    """The session that it spoke in last, where that is over, or was never to be believed: see `overtaken`."""
    _told_at: float = -math.inf
    """When it was told so."""
    replays: ReplayGuard = field(default_factory=lambda: ReplayGuard(FROM_DEVICE))
    """Of what it sealed; the highest session of an accepted update is journaled, the rest comes anew."""
    _ended: int = -1
    """The newest session that is known to be over."""
    _born_at: tuple[int, int] = (-1, -1)
    """Session and sequence of the newest birth certificate."""
    _meter: Meter = field(default_factory=Meter)
    _told: tuple[int, tuple[int, int]] = (-1, (0, 0))
    """Session, and the highest counters that were heard of it."""

    @classmethod
    def remembered(
        cls,
        name: str,
        public_key: bytes,
        *,
        session: int,
        moved: tuple[int, int],
        counters: tuple[int, int] | None,
    ) -> Device:
        """A device as facts leave it, its presence aside.

        Args:
            name: its id.
            public_key: its key.
            session: the highest of an accepted update.
            moved: bytes sent and received in all.
            counters: its agent's, when it last told.
        """
        device = cls(name, public_key)
        device.replays.advance(session)
        device.sent, device.received = moved
        if counters is not None:
            device._meter.seen[name] = counters  # its own
        return device

    def is_echo(self, presence: Presence, sequence: int) -> bool:
        """Whether something newer was heard before: a later session, this one's end, or a later birth certificate."""
        if presence.session < max(self.session, self.replays.epoch):
            return True
        if not presence.online:
            return False
        return presence.session <= self._ended or (presence.session, sequence) < self._born_at

    def is_overtaken(self, presence: Presence, sequence: int) -> bool:
        """Whether an echo may be the birth certificate of a device that has lost count of its sessions."""
        return presence.online and (presence.session, sequence) != self._born_at

    def overtaken(self, session: int, *, now: float) -> int | None:
        """Note that the device speaks in a session that is not believed.

        So it does for ever where it has lost its disk, and its clock, which its sessions then begin with, is behind.

        Args:
            session: in which it spoke.
            now: the time.

        Returns:
            The lowest session that would be believed, if it is time to say so. A device that is there and well has it:
            what came was late.
        """
        self.behind = session
        if now < self._told_at + _TELL_EVERY_S:
            return None
        self._told_at = now
        known = max(self.session, self.replays.epoch)
        return min(known + 1, MAX_COUNTER) if known in {session, self._ended} else known

    @property
    def trouble(self) -> str:
        """Why it cannot take part, for the operator."""
        if self.flood:
            return self.flood
        if self.behind is None:
            return self.problem
        known = max(self.session, self.replays.epoch)
        return (
            f"speaks in session {self.behind}, and {known} has begun (a lost disk, and a clock that is behind?); "
            "it has been told to go on above that"
        )

    def arrived(self, presence: Presence, *, sequence: int, now: float) -> None:
        self.session, self.presence, self.problem = presence.session, presence, presence.problem
        self._born_at = presence.session, sequence
        self.behind = None
        self.online = self.heard = True
        self.since, self.gone_by = now, ""

    def left(self, presence: Presence, *, now: float) -> None:
        self.session = self._ended = presence.session
        self.online, self.heard, self.since = False, True, now
        self.gone_by = LAST_WILL if presence.traffic is None else GOODBYE

    def offers(self, task: TaskRef) -> bool:
        return self.presence is not None and task in self.presence.tasks

    def mismatch(self, task: TaskRef) -> TaskRef | None:
        """The task of the same name that the device has in another version or shape."""
        if self.presence is None or self.offers(task):
            return None
        return next((other for other in self.presence.tasks if other.name == task.name), None)

    @property
    def reads_packed(self) -> bool:
        """Whether the device says that it reads the shorter form of envelopes."""
        return self.presence is not None and PACKED in self.presence.codecs

    @property
    def reads_digests(self) -> bool:
        """Whether the device may be told by a hash which update a receipt is for; until it has said so, it is tried."""
        return self.presence is None or DIGEST in self.presence.codecs

    def lacks(self, codecs: Iterable[str]) -> list[str]:
        """Those of the codecs, with their versions, that the device does not speak; if it names none, the baseline."""
        spoken = set(baseline())
        if self.presence is not None and self.presence.codecs:
            spoken = set(map(versioned, self.presence.codecs))
        return [codec for codec in codecs if codec not in spoken]

    def refuse(self, reason: str) -> int:
        """Count a refused message; return how many for this reason."""
        self.rejections[reason] = self.rejections.get(reason, 0) + 1
        return self.rejections[reason]

    def newest_traffic(self, session: int, traffic: tuple[int, int]) -> tuple[int, int]:
        """What the agent counted, or has told since: the header of a long upload is older than what came meanwhile."""
        told_in, told = self._told
        if told_in == session:
            traffic = max(told[0], traffic[0]), max(told[1], traffic[1])
        self._told = session, traffic
        return traffic

    def count_traffic(self, traffic: tuple[int, int]) -> None:
        """Add what the agent counted since it last said so."""
        sent, received = self._meter.grown(self.id, *traffic)
        self.sent += sent
        self.received += received
