"""How large a Mosquitto's limits must be for a fleet and a model, with the reasoning beside each.

What travels is bounded by the protocol, so that a broker's limits can be computed instead of guessed:

- No packet is larger than `packet_bytes`.
- A device asks for at most four chunks of a model at once, and a model in eight bits takes about a byte a parameter.
- What a device has under way to the coordinator is a handful of small messages and at most about one packet of update;
  larger ones wait for the coordinator's credit.

So the queue that counts is the coordinator's: Mosquitto drops what goes beyond it, and has acknowledged it already.
Sources for what each limit does: mosquitto.conf(5), and Mosquitto's `database.c` in 2.0 and 2.1, which agree here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedmq_protocol.errors import UsageError
from fedmq_protocol.limits import MAX_PACKET_BYTES, MAX_PARAMETERS, PACKET_OVERHEAD_BYTES

PULL_WINDOW: Final = 4
"""Chunks that a device asks for at once."""
MESSAGES_PER_DEVICE: Final = 8
"""On the way to the coordinator: birth, hello, report, update, and a window of requests for chunks."""
_IN_FLIGHT: Final = 20
"""What fedmq's connections take before they acknowledge."""
_IN_FLIGHT_PACKETS: Final = 8
_MESSAGE_FLOOR: Final = 1_000
_QUEUE_FLOOR_PACKETS: Final = 64
_CONNECTION_SPARE: Final = 32
"""Coordinator, monitor, exporter, operator, and who is refused in this moment."""
_SESSION_BYTES: Final = 8_192
"""Of Mosquitto's own memory for a connection and what the security plugin knows of its member; TLS comes on top."""
_BASE_BYTES: Final = 32 * 2**20
_SAVE_BYTES_PER_S: Final = 100_000
_SAVE_S: Final = (60, 1_800)
_KEEPALIVE_S: Final = 600
_FILES_SPARE: Final = 64
_TLS_BYTES: Final = 40 * 2**10
"""Of OpenSSL for a connection. Idle ones take 24 KB, session included (400 of them at Mosquitto 2.0.11)."""
_MOST_DEVICES: Final = 1_000_000


@dataclass(frozen=True)
class Limits:
    """A Mosquitto's limits, named as its options are, and how many files it must be allowed to open.

    Attributes:
        max_packet_size: bytes.
        max_connections: of each listener.
        max_keepalive: seconds.
        max_inflight_messages: of one client.
        max_inflight_bytes: of one client.
        max_queued_messages: of one client.
        max_queued_bytes: of one client.
        memory_limit: bytes of Mosquitto's own; OpenSSL's come on top.
        persistent_client_expiration: a number and a letter, as Mosquitto reads it.
        autosave_interval: seconds.
        open_files: descriptors, all listeners together.
        resident_bytes: memory of the whole process that a machine should have for it at most.
        why: for each of these, the reasoning with its numbers.
    """

    max_packet_size: int
    max_connections: int
    max_keepalive: int
    max_inflight_messages: int
    max_inflight_bytes: int
    max_queued_messages: int
    max_queued_bytes: int
    memory_limit: int
    persistent_client_expiration: str
    autosave_interval: int
    open_files: int
    resident_bytes: int
    why: Mapping[str, str]


def plan(
    devices: int, parameters: int, packet_bytes: int = MAX_PACKET_BYTES, *, listeners: int = 3
) -> Limits:
    """The limits for a fleet.

    Args:
        devices: how many may be connected.
        parameters: of the largest model.
        packet_bytes: the largest MQTT packet that coordinator and devices send.
        listeners: how many listeners there are, each with `max_connections` of its own.

    Raises:
        UsageError: a number is not one that a federation can have.
    """
    if not (1 <= devices <= _MOST_DEVICES and 1 <= parameters <= MAX_PARAMETERS and listeners >= 1):
        raise UsageError(
            f"there are no limits for {devices} devices, {parameters} parameters, {listeners} listeners"
        )
    if packet_bytes <= PACKET_OVERHEAD_BYTES:
        raise UsageError(
            f"packets of {packet_bytes} bytes are too small: above {PACKET_OVERHEAD_BYTES} are needed"
        )
    fleet = _Fleet(devices, parameters, packet_bytes, listeners)
    return Limits(
        max_packet_size=packet_bytes,
        max_connections=fleet.connections,
        max_keepalive=_KEEPALIVE_S,
        max_inflight_messages=_IN_FLIGHT,
        max_inflight_bytes=_IN_FLIGHT_PACKETS * packet_bytes,
        max_queued_messages=_MESSAGE_FLOOR + MESSAGES_PER_DEVICE * devices,
        max_queued_bytes=fleet.queued_bytes,
        memory_limit=fleet.memory_bytes,
        persistent_client_expiration="1d",
        autosave_interval=fleet.autosave_s,
        open_files=listeners * fleet.connections + _FILES_SPARE,
        resident_bytes=fleet.memory_bytes + fleet.tls_bytes,
        why=_why(fleet),
    )


@dataclass(frozen=True)
class _Fleet:
    """The numbers that the limits follow from."""

    devices: int
    parameters: int
    packet_bytes: int
    listeners: int

    @property
    def connections(self) -> int:
        return 2 * self.devices + _CONNECTION_SPARE

    @property
    def chunks(self) -> int:
        return -(-self.parameters // (self.packet_bytes - PACKET_OVERHEAD_BYTES))

    @property
    def snapshot_bytes(self) -> int:
        return self.parameters + self.chunks * PACKET_OVERHEAD_BYTES

    @property
    def retained_bytes(self) -> int:
        """The newest snapshot, deltas up to a snapshot's size, and as much while both are replaced."""
        return 3 * self.snapshot_bytes

    @property
    def pulled_bytes(self) -> int:
        return self.devices * min(PULL_WINDOW, self.chunks) * self.packet_bytes

    @property
    def queued_bytes(self) -> int:
        return max(_QUEUE_FLOOR_PACKETS, self.devices) * self.packet_bytes

    @property
    def session_bytes(self) -> int:
        return self.listeners * self.connections * _SESSION_BYTES

    @property
    def memory_bytes(self) -> int:
        asked = self.retained_bytes + self.pulled_bytes + self.queued_bytes + self.session_bytes
        return -(-(_BASE_BYTES + 5 * asked // 4) // 2**20) * 2**20

    @property
    def tls_bytes(self) -> int:
        return self.connections * _TLS_BYTES

    @property
    def autosave_s(self) -> int:
        shortest, longest = _SAVE_S
        return min(max(self.retained_bytes // _SAVE_BYTES_PER_S, shortest), longest)


def _why(fleet: _Fleet) -> dict[str, str]:
    """The reasoning behind each limit, as it stands in the configuration."""
    devices = f"{fleet.devices:,} device" + "s" * (fleet.devices > 1)
    packets = max(_QUEUE_FLOOR_PACKETS, fleet.devices)
    return {
        "max_packet_size": f"The largest packet that coordinator and devices send ({_size(fleet.packet_bytes)})."
        " A larger one is somebody else's: Mosquitto cuts it off before it takes memory for it, and tells"
        " clients of MQTT 5 beforehand.",
        "max_connections": f"{devices}, and each once more: after a power cut all come back while their old"
        f" connections still count. {_CONNECTION_SPARE} for coordinator, monitor and operator.",
        "max_keepalive": "Whoever is gone without a word is noticed within"
        f" {_KEEPALIVE_S * 3 // 2 // 60} minutes (one and a half times this), whatever it asked for; fedmq asks"
        " for 30 s. A client of MQTT 3.1.1 that asks for more is refused by some versions.",
        "max_inflight_messages": "On the way to one client without its acknowledgement. fedmq's connections take"
        f" {_IN_FLIGHT}, and a device asks for {PULL_WINDOW} chunks at once. Each is a copy in memory.",
        "max_inflight_bytes": f"The same in bytes: {_IN_FLIGHT_PACKETS} full packets, twice what a device asks for."
        " So much can a client that reads nothing make the broker copy.",
        "max_queued_messages": "What waits behind those for one client; beyond it Mosquitto drops what it has"
        f" acknowledged. {MESSAGES_PER_DEVICE} messages from each of {devices} may wait for the coordinator (birth,"
        f" hello, report, update, requests), and {_MESSAGE_FLOOR:,} to spare.",
        "max_queued_bytes": f"The same in bytes; the first limit that is reached drops. {packets:,} full packets:"
        f" one of update from each of {devices} at once"
        + ("." if packets == fleet.devices else ", and room to spare in a fleet this small."),
        "memory_limit": "A quarter above the worst that this fleet can ask for:"
        f" {_size(fleet.retained_bytes)} retained (a model of {fleet.parameters:,} parameters is a snapshot of"
        f" {_size(fleet.snapshot_bytes)} in {fleet.chunks:,} chunk{'s' * (fleet.chunks > 1)}, as much of deltas, as"
        f" much while both are replaced), {_size(fleet.pulled_bytes)} of chunks on the way if every device fetches"
        f" and stalls, {_size(fleet.queued_bytes)} queued, {_size(fleet.session_bytes)} for sessions; and"
        f" {_size(_BASE_BYTES)} beside. At the limit a client is disconnected instead of the machine running dry."
        f" TLS is not counted: about {_size(fleet.tls_bytes)} more.",
        "persistent_client_expiration": "A session that wants to outlive its connection is forgotten after a day."
        " fedmq uses clean sessions and has none.",
        "autosave_interval": "A crash loses what was retained since; the coordinator publishes again what is"
        f" missing. All of it (up to {_size(fleet.retained_bytes)}) is written each time, at most"
        f" {_SAVE_BYTES_PER_S // 1000} kB/s on average, to spare an SD card.",
        "open_files": f"{fleet.listeners} listener{'s' * (fleet.listeners > 1)} with {fleet.connections:,}"
        f" connections each, and {_FILES_SPARE} for itself.",
        "resident_bytes": f"Its own limit, and about {_size(_TLS_BYTES)} of TLS for each of"
        f" {fleet.connections:,} connections.",
    }


def _size(size: int) -> str:
    for unit, name in ((2**30, "GB"), (2**20, "MB"), (2**10, "KB")):
        if size >= unit:
            return f"{size / unit:.{0 if size >= 10 * unit else 1}f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"
