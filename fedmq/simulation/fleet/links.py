"""The devices' lines: bandwidth each way, latency, and loss, under TCP.

A packet waits until those before it have gone out, takes its bytes over the bandwidth and half a round trip. TCP loses
nothing: a lost segment comes again after a time-out, 0.2 s and a round trip, so loss is a delay here. What a device is
sent keeps its order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmq.simulation.fleet.distributions import Distribution, parse
from fedmq.simulation.network import Fate, Way, WillFate
from fedmq.simulation.world import World
from fedmq_protocol.errors import UsageError

_SEGMENT_BYTES: Final = 1_448
_TIMEOUT_S: Final = 0.2
_MOST_LOSS: Final = 0.9
"""With more, TCP itself would give up."""
_FRAME_BYTES: Final = 8
"""What a PUBLISH has beside its topic and payload, and its acknowledgement, roughly."""
_COORDINATOR_S: Final = 0.001
_WILL_S: Final = 45.0
"""One and a half keep-alives of 30 s."""

PRESETS: Final[dict[str, str]] = {
    "ethernet": "up=100Mbit down=100Mbit latency=1ms loss=0",
    "wifi": "up=20Mbit down=40Mbit latency=lognormal(5ms,0.5) loss=0.002",
    "lte": "up=10Mbit down=30Mbit latency=lognormal(45ms,0.3) loss=0.005",
    "ltem": "up=300kbit down=600kbit latency=lognormal(100ms,0.3) loss=0.01",
    "nbiot": "up=20kbit down=25kbit latency=lognormal(1.6s,0.4) loss=0.02",
}
"""Round figures for what such links usually give; whoever knows better writes their own."""

_FIELDS: Final = ("up", "down", "latency", "loss")
_FIELD: Final = re.compile(r"^([a-z]+)=(.+)$")


@dataclass(frozen=True)
class LinkKind:
    """What the lines of some devices are like; each device draws its own.

    Attributes:
        weight: its share among the kinds.
        text: as it was written.
        up: bits a second.
        down: likewise.
        latency: one way, seconds.
        loss: of a segment.
    """

    weight: float
    text: str
    up: Distribution
    down: Distribution
    latency: Distribution
    loss: float


def parse_link(text: str) -> LinkKind:
    """Read `wifi`, `0.3*nbiot`, or `up=1Mbit down=5Mbit latency=lognormal(50ms,0.3) loss=0.01`.

    Raises:
        UsageError: it cannot be read.
    """
    head, star, rest = text.strip().partition("*")
    weight, body = 1.0, text.strip()
    if star and re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", head.strip()):
        weight, body = float(head), rest.strip()
    if weight <= 0:
        raise UsageError(f"{text!r}: a weight is above zero")
    fields: dict[str, str] = {}
    for word in PRESETS.get(body, body).split():
        found = _FIELD.match(word)
        if found is None or found[1] not in _FIELDS or found[1] in fields:
            raise UsageError(
                f"{text!r} is no network: {', '.join(PRESETS)}, or "
                "up=1Mbit down=5Mbit latency=lognormal(50ms,0.3) loss=0.01 (no blanks within a distribution)"
            )
        fields[found[1]] = found[2]
    lacking = [name for name in _FIELDS[:3] if name not in fields]
    if lacking:
        raise UsageError(f"{text!r} does not tell {', '.join(lacking)}")
    up, down, latency = (parse(fields[name]) for name in _FIELDS[:3])
    loss = parse(fields.get("loss", "0")).mean
    if not (up.mean > 0 and down.mean > 0 and 0 <= loss <= _MOST_LOSS):
        raise UsageError(f"{text!r}: bandwidths are above zero, and loss is a share of at most {_MOST_LOSS}")
    return LinkKind(weight, text, up, down, latency, loss)


class Line:
    """One device's."""

    __slots__ = (
        "down_bps",
        "down_bytes",
        "down_free_at",
        "latency_s",
        "loss",
        "up_bps",
        "up_bytes",
        "up_free_at",
    )

    def __init__(self, up_bps: float, down_bps: float, latency_s: float, loss: float) -> None:
        self.up_bps, self.down_bps, self.latency_s, self.loss = up_bps, down_bps, latency_s, loss
        self.up_free_at = self.down_free_at = 0.0
        self.up_bytes = self.down_bytes = 0


class Lines:
    """The network between the devices and the broker; the coordinator sits beside it.

    Args:
        world: the clock, and chance.
        lines: of each device, by its MQTT client id.
        extra_bytes: what a packet is to count beside its own bytes, by topic and payload.

    Attributes:
        lines: as given.
        up_bytes: by all devices.
        down_bytes: to all devices.
    """

    def __init__(
        self, world: World, lines: Mapping[str, Line], *, extra_bytes: Callable[[str, bytes], int]
    ) -> None:
        self._world, self.lines, self._extra_bytes = world, lines, extra_bytes
        self._chance = world.stream("segments").random
        self._beside = Fate(_COORDINATOR_S)
        self.up_bytes = self.down_bytes = 0

    def fate(self, client_id: str, way: Way, topic: str, payload: bytes) -> Fate:
        """When a packet arrives; its bytes are counted."""
        line = self.lines.get(client_id)
        if line is None:
            return self._beside
        size = len(topic) + len(payload) + _FRAME_BYTES + self._extra_bytes(topic, payload)
        now = self._world.now
        if way == "up":
            line.up_free_at = ready_at = max(now, line.up_free_at) + 8 * size / line.up_bps
            line.up_bytes += size
            self.up_bytes += size
        else:
            line.down_free_at = ready_at = max(now, line.down_free_at) + 8 * size / line.down_bps
            line.down_bytes += size
            self.down_bytes += size
        delay_s = ready_at - now + line.latency_s
        if line.loss:
            chance = 1.0 - (1.0 - line.loss) ** -(-size // _SEGMENT_BYTES)
            while self._chance() < chance:
                delay_s += _TIMEOUT_S + 2 * line.latency_s
                chance = line.loss
        return Fate(delay_s)

    def latency_s(self, client_id: str) -> float:
        """Of a small packet."""
        line = self.lines.get(client_id)
        return _COORDINATOR_S if line is None else line.latency_s

    def will(self, client_id: str) -> WillFate:  # noqa: ARG002 - all alike
        """After one and a half keep-alives."""
        return WillFate(_WILL_S)


def draw_lines(
    kinds: Sequence[LinkKind], clients: Sequence[str], rng: np.random.Generator
) -> dict[str, Line]:
    """A line for each client, of a kind by weight."""
    weights = np.array([kind.weight for kind in kinds])
    chosen = rng.choice(len(kinds), size=len(clients), p=weights / weights.sum())
    lines = {}
    for client, index in zip(clients, chosen.tolist(), strict=True):
        kind = kinds[index]
        up, down = max(1.0, kind.up.draw(rng)), max(1.0, kind.down.draw(rng))
        lines[client] = Line(up, down, kind.latency.draw(rng), kind.loss)
    return lines
