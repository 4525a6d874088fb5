"""A history before it happens: a federation, its runs, and the faults that strike it. Plain data, named by a seed.

A fault says when it strikes by counting what it strikes at (the third receipt for dev-1; the coordinator's ninth batch;
the 120th event of all), never by a clock, so that a plan with some faults taken out still means the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, cast, get_args

Kind = Literal[
    "lose",
    "lose-ack",
    "false-ack",
    "duplicate",
    "overtake",
    "delay",
    "cut",
    "stall",
    "disconnect",
    "broker-restarts",
    "broker-forgets",
    "device-dies",
    "device-stops",
    "device-power-cut",
    "trainer-dies",
    "device-wiped",
    "device-restored",
    "coordinator-dies-before-commit",
    "coordinator-dies-after-commit",
    "coordinator-dies-between-sends",
    "coordinator-stops",
    "clock-jumps",
    "disk-full",
    "file-rots",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

COORDINATOR: Final = "coordinator"
ON_MESSAGES: Final[frozenset[Kind]] = frozenset(
    {"lose", "lose-ack", "false-ack", "duplicate", "overtake", "delay", "cut"}
)
ENDS_CONNECTION: Final[frozenset[Kind]] = frozenset(
    {
        "cut",
        "disconnect",
        "device-dies",
        "device-power-cut",
        "device-wiped",
        "device-restored",
        "coordinator-dies-before-commit",
        "coordinator-dies-after-commit",
        "coordinator-dies-between-sends",
    }
)

Way = Literal["up", "down"]
WillTiming = Literal["", "late", "never"]


@dataclass(frozen=True)
class Fault:
    """One bad thing.

    Attributes:
        kind: what.
        who: a device's name, or the coordinator.
        at: when: the count-th message of `what` on its `way` between `who` and the broker; or the count-th effect of a
            device (of those kinds that `what` names, if it does), receipt or training of a device, batch of the
            coordinator, or event of all.
        what: the last level of the message's topic, the name of an effect, "receipt" or "training"; "": any.
        way: of the message, from its client or to it.
        seconds: how long it is late, away, or wrong by.
        extra: copies more, or messages of a batch that still leave.
        will: what becomes of the last will, where a connection ends.
        cuts: the connection ends with the message.
    """

    kind: Kind
    who: str
    at: int
    what: str = ""
    way: Way = "up"
    seconds: float = 0.0
    extra: int = 0
    will: WillTiming = ""
    cuts: bool = False

    def __str__(self) -> str:
        where = f"{self.what or 'message'} {self.at} {self.way} of {self.who}"
        rest = [f"{self.seconds:g} s"] if self.seconds else []
        rest += [f"+{self.extra}"] if self.extra else []
        rest += [f"will {self.will}"] if self.will else []
        rest += ["and cuts"] if self.cuts else []
        if self.kind not in ON_MESSAGES:
            where = f"{self.who} at {self.what or 'count'} {self.at}"
        return f"{self.kind}: {where}" + (f" ({', '.join(rest)})" if rest else "")


@dataclass(frozen=True)
class DevicePlan:
    """One device.

    Attributes:
        name: its id.
        train_s: how long it trains.
        outbox_limit: as for the agent.
        packet_bytes: the largest packet that it and its broker take.
        ahead_s: by how much its clock is wrong.
        rate: its seconds in a true one.
        joins_at_s: when it is first switched on.
    """

    name: str
    train_s: float
    outbox_limit: int
    packet_bytes: int
    ahead_s: float
    rate: float
    joins_at_s: float


@dataclass(frozen=True)
class Plan:
    """A whole history.

    Attributes:
        seed: what it was drawn from; chance inside the history comes from it, too.
        devices: the fleet.
        parameters: of the model.
        runs: their settings, one run after the other.
        asked_at_once: so many of them are asked for at the beginning, each other one when those before are over.
        packet_bytes: the largest packet of the coordinator's.
        inflight: messages under way to a client, for the broker.
        queued: messages that wait behind those.
        latency_s: of a packet.
        stops_at: events after which the operator stops what still runs; None: every run takes its course.
        faults: in no order.
    """

    seed: int
    devices: tuple[DevicePlan, ...]
    parameters: int
    runs: tuple[dict[str, Any], ...]
    asked_at_once: int
    packet_bytes: int
    inflight: int
    queued: int
    latency_s: float
    stops_at: int | None
    faults: tuple[Fault, ...] = field(default=())

    def but(self, **changes: Any) -> Plan:  # noqa: ANN401 - a field each
        """The same with changes."""
        return replace(self, **changes)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def load(text: str) -> Plan:
        """Out of `dump`'s JSON."""
        plain = json.loads(text)
        devices = tuple(DevicePlan(**device) for device in plain.pop("devices"))
        faults = tuple(Fault(**fault) for fault in plain.pop("faults"))
        return Plan(**plain | {"devices": devices, "faults": faults, "runs": tuple(plain["runs"])})


def as_kind(name: str) -> Kind:
    """The kind of that name."""
    return cast("Kind", name)
