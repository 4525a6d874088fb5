"""What is heard, folded into one picture. Pure: `now` is an argument, in seconds of a clock that only goes forward."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedmq_broker.watching.figures import LOG_PREFIX, Figures
from fedmq_broker.watching.log_lines import TROUBLE, LogEvent, parse
from fedmq_broker.watching.picture import (
    BrokerPicture,
    ClientPicture,
    CoordinatorPicture,
    DevicePicture,
    Happening,
    Picture,
    by_trouble,
)
from fedmq_broker.watching.presence import Presences
from fedmq_protocol.access import ROLES
from fedmq_protocol.topics import Topics

_MAX_CLIENTS: Final = 4_096
_MAX_HAPPENINGS: Final = 64
_TROUBLED_FOR_S: Final = 900.0
_PROBE_LOST_S: Final = 10.0
PROBE_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_PROBES_KEPT: Final = 32


@dataclass
class _Client:
    connects: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    last_trouble: float | None = None


class Watch:
    """Folds what the shell hears.

    Args:
        topics: of the federation.
        address: of the broker, for people.
        limits: what the broker was configured to bear.
    """

    def __init__(
        self, topics: Topics, *, address: str = "", limits: Mapping[str, float] | None = None
    ) -> None:
        self.topics = topics
        self.limits = dict(limits or {})
        self.certificates: dict[str, float] = {}
        self.resident_bytes: int | None = None
        self.revoked: frozenset[str] = frozenset()
        """Devices that are members no more: nobody waits for them."""
        self._address = address
        self._figures = Figures()
        self._presences = Presences(topics)
        self._up, self._detail, self._since = False, "not connected yet", 0.0
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._events: Counter[str] = Counter()
        self._happenings: deque[tuple[float, LogEvent]] = deque(maxlen=_MAX_HAPPENINGS)
        self._probes: OrderedDict[bytes, float] = OrderedDict()
        self._probe_times: Counter[float] = Counter()
        self._num_probes = self._probes_lost = 0
        self._probe_s: float | None = None
        self._probe_sum_s = 0.0
        self._told: tuple[CoordinatorPicture, list[DevicePicture]] | None = None
        self._devices: frozenset[str] = frozenset()
        self._silence_of_coordinator = "not asked yet"
        self._coordinator_since = 0.0

    # ------------------------------------------------------------------------------ the broker

    def connected(self, *, now: float) -> None:
        """We are in; figures of another life of the broker are none of this one."""
        self._figures = Figures()
        self._probes.clear()
        self._up, self._detail, self._since = True, "", now

    def disconnected(self, reason: str, *, now: float) -> None:
        if self._up or not self._since:
            self._since = now
        self._up, self._detail = False, reason
        self._probes.clear()
        self._presences.disconnected()

    def heard(self, topic: str, payload: bytes, *, now: float, retained: bool = False) -> LogEvent | None:
        """A message of the broker, of the federation, or our own probe; returns trouble, where it tells of any."""
        if topic.startswith(LOG_PREFIX):
            return None if retained else self._log(payload, now=now)
        if topic.startswith("$SYS/"):
            self._figures.heard(topic, payload, now=now)
        elif topic == self.topics.monitor_probe:
            self._probe_back(payload, now=now)
        else:
            self._presences.heard(topic, payload, now=now)
        return None

    def probe_sent(self, payload: bytes, *, now: float) -> None:
        """A probe goes out; those that did not come back in time are lost."""
        self._probes[payload] = now
        while self._probes and (
            len(self._probes) > _PROBES_KEPT or next(iter(self._probes.values())) < now - _PROBE_LOST_S
        ):
            self._probes.popitem(last=False)
            self._probes_lost += 1

    def _probe_back(self, payload: bytes, *, now: float) -> None:
        sent = self._probes.pop(payload, None)
        if sent is None:  # somebody else's, or given up
            return
        self._probe_s = now - sent
        self._num_probes += 1
        self._probe_sum_s += self._probe_s
        for bound in PROBE_BUCKETS_S:
            if self._probe_s <= bound:
                self._probe_times[bound] += 1

    def _log(self, payload: bytes, *, now: float) -> LogEvent | None:
        event = parse(payload[:4096].decode("utf-8", errors="replace"))
        if event is None:
            return None
        self._events[event.kind] += 1
        if self._is_named(event):
            client = self._clients.setdefault(event.client, _Client())
            self._clients.move_to_end(event.client)
            if event.kind == "connected":
                client.connects += 1
            else:
                client.troubles[event.kind] += 1
                client.last_trouble = now
            while len(self._clients) > _MAX_CLIENTS:
                self._clients.popitem(last=False)
        if event.kind not in TROUBLE:
            return None
        self._happenings.appendleft((now, event))
        return event

    def _is_named(self, event: LogEvent) -> bool:
        """Whether it is told of whom it befell. Who is refused is only who it says: strangers make no new names."""
        if not event.client or (event.kind != "connected" and event.kind not in TROUBLE):
            return False
        known = event.client in self._clients or event.client in self._devices or event.client in ROLES
        return known or event.kind != "refused" or self._presences.knows(event.client)

    # ------------------------------------------------------------------------------ the federation

    def coordinator_told(
        self, coordinator: CoordinatorPicture, devices: list[DevicePicture], *, now: float
    ) -> None:
        """What the coordinator answered."""
        if self._told is None:
            self._coordinator_since = now
        self._told = coordinator, devices
        self._devices = frozenset(each.device for each in devices)

    def coordinator_silent(self, why: str, *, now: float) -> None:
        """It was asked and did not answer."""
        if self._told is not None or self._silence_of_coordinator == "not asked yet":
            self._coordinator_since = now
        self._told, self._silence_of_coordinator = None, why

    # ------------------------------------------------------------------------------ the picture

    def picture(self, *, now: float, wall: float) -> Picture:
        """The picture at `now`, which is `wall` seconds since the epoch."""
        if self._told is not None:
            coordinator, devices = self._told
        else:
            coordinator, devices = self._presences.picture(now=now)
            coordinator = coordinator.model_copy(update={"detail": self._silence_of_coordinator})
        since = {"since_s": max(0.0, now - self._coordinator_since), "federation": self.topics.federation}
        return Picture(
            at=wall,
            broker=self._broker(now=now),
            coordinator=coordinator.model_copy(update=since),
            devices=by_trouble([each for each in devices if each.device not in self.revoked]),
            clients=self._troubled(now=now),
            happenings=[
                Happening(ago_s=now - at, kind=event.kind, client=event.client, text=event.text)
                for at, event in self._happenings
            ],
            certificates=self.certificates,
        )

    def _broker(self, *, now: float) -> BrokerPicture:
        figures = self._figures
        return BrokerPicture(
            address=self._address,
            up=self._up,
            detail=self._detail,
            since_s=max(0.0, now - self._since),
            version=figures.version,
            figures=figures.at(now) if self._up else {},
            figures_age_s=None if figures.heard_at is None else now - figures.heard_at,
            queued_messages=figures.queued_messages(now) if self._up else None,
            queued_bytes=figures.queued_bytes(now) if self._up else None,
            resident_bytes=self.resident_bytes,
            limits=self.limits,
            probe_s=self._probe_s,
            probes=self._num_probes,
            probes_lost=self._probes_lost,
            probe_buckets={f"{bound:g}": self._probe_times[bound] for bound in PROBE_BUCKETS_S},
            probe_sum_s=self._probe_sum_s,
            events=dict(self._events),
        )

    def _troubled(self, *, now: float) -> list[ClientPicture]:
        troubled = [
            (client.last_trouble, name, client)
            for name, client in self._clients.items()
            if client.last_trouble is not None and client.last_trouble >= now - _TROUBLED_FOR_S
        ]
        return [
            ClientPicture(
                client=name,
                connects=client.connects,
                troubles=dict(client.troubles),
                last_trouble_s=now - at,
            )
            for at, name, client in sorted(troubled, key=lambda each: (-each[0], each[1]))
        ]
