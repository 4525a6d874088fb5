"""Deciding whether to believe a packet: right form, right sender, right key, and not an echo of the past.

The coordinator's key comes from the configuration, or is the first that signs a status with itself (trust on first
use); from then on no other is believed. What a coordinator of a lower epoch says is void: a newer one has taken over.
Chunks are the exception, since they are retained for as long as they are of use, and pinned by hashes anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedmq_protocol.envelope import COORDINATOR, Envelope, Reader
from fedmq_protocol.errors import RemoteError, SignatureError
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Credit,
    Lease,
    ModelChunk,
    Notice,
    Receipt,
    Status,
    Turn,
)
from fedmq_protocol.replays import FROM_COORDINATOR, ReplayGuard
from fedmq_protocol.signing import key_id
from fedmq_protocol.topics import Topics

_CHUNK: Final = "chunk"


class KeyUnknownError(RemoteError):
    """Nothing can be believed before the coordinator's key is known."""


class StaleError(RemoteError):
    """True once, but overtaken: no offence."""


@dataclass(frozen=True)
class Heard:
    """A message that the coordinator really sent."""

    body: Body
    epoch: int
    sequence: int
    own_topic: bool
    """For chunks: it came on the chunk's own topic, and not from the coordinator's hand."""
    packed: bool = False
    """It came in the shorter form of envelopes."""


class Inbox:
    """Judges packets for one device.

    Args:
        topics: of the federation.
        device: whose inbox it is.
        coordinator_key: the coordinator's 32 public bytes, if they are known.
        epoch: the highest epoch seen so far.
        epoch_of: the key of the coordinator whose epoch that is; another coordinator counts from the beginning.
        announced: sequence of the newest announcement in that epoch.
        reader: opens and verifies packets.
    """

    def __init__(
        self,
        *,
        topics: Topics,
        device: str,
        coordinator_key: bytes | None,
        epoch: int,
        epoch_of: bytes | None = None,
        announced: int = 0,
        reader: Reader | None = None,
    ) -> None:
        self._topics = topics
        self._device = device
        self._reader = reader or Reader()
        self._epoch_of = epoch_of
        self.coordinator_key = coordinator_key
        self.epoch = epoch if coordinator_key in {None, epoch_of} else 0
        self._announced = (self.epoch, announced if self.epoch else 0)  # the newest announcement's place
        self._turn = (0, 0)  # likewise the newest turn's
        self._replays = ReplayGuard(FROM_COORDINATOR)

    def open(self, topic: str, payload: bytes) -> Heard:
        """Return the message if it is to be believed; pins the key of the first status where none is known.

        Raises:
            KeyUnknownError: the coordinator's key is not known yet.
            StaleError: of a lower epoch, or older than an announcement that came before.
            ReplayError: not retained, and came before.
            RemoteError: anything else is wrong with it.
        """
        kind, own_topic = self._expected(topic)
        envelope = self._reader.open(topic, payload)
        if envelope.kind != kind:
            raise RemoteError(f"a {envelope.kind} on a topic for {kind}", reason="wrong-kind")
        if envelope.sender != COORDINATOR:
            raise RemoteError(
                f"sent by {envelope.sender[:64]!r}, not by the coordinator", reason="wrong-sender"
            )
        if self.coordinator_key is None:
            self._pin(envelope)
        else:
            self._verify(envelope, self.coordinator_key)
        body = envelope.body
        if isinstance(body, ModelChunk):
            self._check_place(topic, body, own_topic=own_topic)
        else:
            self._check_age(envelope)
        return Heard(body, envelope.epoch, envelope.sequence, own_topic, envelope.packed)

    def _expected(self, topic: str) -> tuple[str, bool]:
        if topic == self._topics.coordinator_status:
            return "status", False
        if topic == self._topics.announcement:
            return "announcement", False
        if topic == self._topics.turn:
            return "turn", False
        if topic.startswith(f"{self._topics.root}/model/"):
            self._topics.parse_chunk(topic)
            return _CHUNK, True
        parsed = self._topics.parse_device(topic)
        if parsed.device != self._device or parsed.direction != "down":
            raise RemoteError(f"not for this device: {topic[:120]!r}", reason="unknown-topic")
        return parsed.kind, False

    def _pin(self, envelope: Envelope) -> None:
        if not isinstance(envelope.body, Status):
            raise KeyUnknownError("the coordinator's key is not known yet", reason="key-unknown")
        self._reader.verified(envelope, envelope.body.public_key)
        if envelope.body.public_key != self._epoch_of:
            self.epoch, self._announced, self._turn = 0, (0, 0), (0, 0)
        self._check_age(envelope)  # an echo pins nothing
        self.coordinator_key = envelope.body.public_key

    def _verify(self, envelope: Envelope, key: bytes) -> None:
        if envelope.key_id != key_id(key):
            raise SignatureError(
                f"signed with another key than the coordinator's known one ({key_id(key).hex()})"
            )
        self._reader.verified(envelope, key)
        if isinstance(envelope.body, Status) and envelope.body.public_key != key:
            raise SignatureError("a status that names another key than the one that signed it")

    def _check_place(self, topic: str, chunk: ModelChunk, *, own_topic: bool) -> None:
        if own_topic and self._topics.chunk(chunk.run, chunk.version, chunk.blob, chunk.index) != topic:
            raise RemoteError("a chunk on the topic of another one", reason="bad-chunk")

    def _check_age(self, envelope: Envelope) -> None:
        if envelope.epoch < self.epoch:
            raise StaleError(
                f"from the coordinator's epoch {envelope.epoch}, and {self.epoch} has begun",
                reason="old-epoch",
            )
        if isinstance(envelope.body, Lease | Receipt | Credit | Notice):
            self._replays.check(envelope.epoch, envelope.sequence)
        self.epoch = envelope.epoch
        if isinstance(envelope.body, Announcement):
            place = (envelope.epoch, envelope.sequence)
            if place < self._announced:
                raise StaleError("an announcement older than the newest one", reason="old-announcement")
            self._announced = place
        elif isinstance(envelope.body, Turn):
            place = (envelope.epoch, envelope.sequence)
            if place < self._turn:
                raise StaleError("a turn older than the newest one", reason="old-turn")
            self._turn = place
