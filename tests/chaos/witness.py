"""What was said, as an outsider heard it on the wire: updates as their devices signed them, and verdicts about them.

Of our code it uses the envelope, which is the contract; what coordinator and agents believe plays no part.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from fedmq_protocol.envelope import Envelope, open_envelope
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import (
    Announcement,
    Offer,
    Presence,
    Receipt,
    Status,
    Update,
    UpdateHeader,
    UploadChunk,
)
from fedmq_protocol.topics import Topics
from tests.chaos.packets import Publish
from tests.chaos.proxy import Way

Name: TypeAlias = tuple[str, str, int]
"""Of an update: device, run, counter."""

COORDINATOR = "coordinator"


@dataclass
class Sent:
    """One update, as its device signed it, maybe many times."""

    header: UpdateHeader
    payload: bytes | None = None
    """None while not all of its chunks were heard."""
    chunk_bytes: int | None = None
    chunks: dict[int, bytes] = field(default_factory=dict)
    times: int = 0
    """How often it was sent, or offered."""


@dataclass
class Witness:
    """Takes what passes the doors.

    Attributes:
        sent: every update that a device said.
        said: what the coordinator's receipts said of an update: outcome, reason, residual.
        delivered: the same, as it went to the device.
        complaints: what must never happen.
        on_accepted: told of a receipt `accepted` the moment that the coordinator says it.
        keys: the public key that each participant showed first.
        news: when something was heard last, by participant and kind.
    """

    federation: str
    on_accepted: Callable[[Name], None] = lambda _: None
    sent: dict[Name, Sent] = field(default_factory=dict)
    said: dict[Name, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))
    delivered: dict[Name, set[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(set))
    complaints: list[str] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=dict)
    news: dict[tuple[str, str], float] = field(default_factory=dict)
    accepted_at: dict[Name, float] = field(default_factory=dict)
    """When the coordinator said so first."""
    versions: dict[int, float] = field(default_factory=dict)
    """When a version was announced first."""

    chunk_topics: set[str] = field(default_factory=set)
    """Where chunks of models were retained, at one time or another."""

    def __post_init__(self) -> None:
        self._topics = Topics(self.federation)

    def heard(self, who: str, way: Way, publish: Publish) -> None:
        """A packet passes the door of `who`."""
        if "/model/" in publish.topic:
            if way == "up" and publish.payload:
                self.chunk_topics.add(publish.topic)
            return
        if not publish.payload:
            return
        try:
            envelope = open_envelope(publish.topic, publish.payload)
        except RemoteError as error:
            self.complaints.append(f"{who}, {way}: no envelope on {publish.topic}: {error}")
            return
        now = time.monotonic()
        body = envelope.body
        self._verify(who if way == "up" else "", envelope)
        if way == "up":
            if envelope.sender != who and not who.startswith(
                envelope.sender
            ):  # of coordinators there may be two
                self.complaints.append(f"{who} speaks as {envelope.sender}")
            self.news[who, envelope.kind] = now
        match body:
            case Update(header=header, data=data) if way == "up":
                sent = self._sent(who, header)
                sent.times += 1
                self._complete(who, sent, data)
            case Offer(header=header, chunk_bytes=chunk_bytes) if way == "up":
                sent = self._sent(who, header)
                sent.times += 1
                if sent.chunk_bytes != chunk_bytes:
                    sent.chunk_bytes, sent.chunks = chunk_bytes, {}
            case UploadChunk(run=run, counter=counter, index=index, data=data) if way == "up":
                self._chunk((who, run, counter), index, data)
            case Receipt():
                self._receipt(who, way, publish.topic, body)
            case Announcement() if way == "up":
                self.versions.setdefault(body.manifest.version, now)
            case Status(online=online) | Presence(online=online) if way == "up":
                self.news[who, "online" if online else "offline"] = now
            case _:
                pass

    def _verify(self, who: str, envelope: Envelope) -> None:
        """Hold a signature against the key that its sender showed first."""
        body = envelope.body
        if isinstance(body, Presence | Status) and who == envelope.sender:
            self.keys.setdefault(who, body.public_key)
        if who in self.keys:
            try:
                envelope.verified(self.keys[who])
            except RemoteError as error:
                self.complaints.append(f"{who} said something that it did not sign: {error}")

    def _sent(self, device: str, header: UpdateHeader) -> Sent:
        name = device, header.run, header.counter
        bare = header.model_copy(update={"traffic": None})  # how much was moved differs from time to time
        known = self.sent.setdefault(name, Sent(bare))
        if known.header != bare:
            self.complaints.append(f"{name} was sent as two different updates: {known.header} and {bare}")
        return known

    def _complete(self, device: str, sent: Sent, payload: bytes) -> None:
        ref = sent.header.payload
        if (len(payload), hashlib.sha256(payload).digest()) != (ref.size, ref.sha256):
            name = sent.header.run, sent.header.counter
            self.complaints.append(f"{device} sent a payload for {name} that is not what its header promises")
        sent.payload = payload

    def _chunk(self, name: Name, index: int, data: bytes) -> None:
        sent = self.sent.get(name)
        if sent is None or sent.chunk_bytes is None:
            self.complaints.append(f"{name}: a chunk of an update that was never offered")
            return
        sent.chunks[index] = data
        if len(sent.chunks) == -(-sent.header.payload.size // sent.chunk_bytes):
            self._complete(name[0], sent, b"".join(data for _, data in sorted(sent.chunks.items())))

    def _receipt(self, who: str, way: Way, topic: str, receipt: Receipt) -> None:
        name = self._topics.parse_device(topic).device, receipt.run, receipt.counter
        verdict = receipt.outcome, receipt.reason, receipt.residual
        if way == "down":
            self.delivered[name].add(verdict)
            return
        self.said[name].add(verdict)
        if receipt.outcome == "accepted":
            self.accepted_at.setdefault(name, time.monotonic())
            self.on_accepted(name)
