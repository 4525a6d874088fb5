"""Both cores read packets with what they are given, and by the protocol's rule unless they are given something."""

from __future__ import annotations

import hashlib
import random

import pytest

from fedmq_coordinator.core import events as happened
from fedmq_coordinator.core.machine import Coordinator
from fedmq_edge_agent.core.inbox import Inbox
from fedmq_protocol.envelope import COORDINATOR, Envelope, Reader, Sealer
from fedmq_protocol.errors import SignatureError
from fedmq_protocol.messages import Presence, Status
from fedmq_protocol.signing import Signer, key_id
from fedmq_protocol.topics import Topics

TOPICS = Topics("home")


class Keyed:
    """Signs with a keyed hash, which whoever knows the public key can compute: for worlds without strangers."""

    def __init__(self, name: str) -> None:
        self.public_key = hashlib.sha256(name.encode()).digest()
        self.key_id = key_id(self.public_key)

    def sign(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self.public_key).digest()


class KeyedReader(Reader):
    """Verifies what `Keyed` signs."""

    def verified(self, envelope: Envelope, public_key: bytes) -> Envelope:
        if hashlib.blake2b(envelope.signed, key=public_key).digest() != envelope.signature:
            raise SignatureError("not this key's")
        return envelope


def born(key: Signer) -> happened.PacketArrived:
    topic = TOPICS.presence("dev-1")
    body = Presence(online=True, session=1, public_key=key.public_key)
    return happened.PacketArrived(topic, Sealer(sender="dev-1", epoch=1, key=key).seal(topic, body))


def test_the_coordinator_verifies_with_the_reader_that_it_was_given() -> None:
    ours, by_rule = Coordinator(federation="home", reader=KeyedReader()), Coordinator(federation="home")
    for core in (ours, by_rule):
        core.handle(happened.CoordinatorStarted(epoch=1), now=1.0)
        core.handle(born(Keyed("dev-1")), now=2.0)
    assert list(ours.state.devices) == ["dev-1"]
    assert not by_rule.state.devices


def test_a_device_verifies_with_the_reader_that_it_was_given() -> None:
    key, topic = Keyed(COORDINATOR), TOPICS.coordinator_status
    status = Status(online=True, session=1, public_key=key.public_key)
    packet = bytearray(Sealer(sender=COORDINATOR, epoch=1, key=key).seal(topic, status))
    ours = Inbox(topics=TOPICS, device="dev-1", coordinator_key=None, epoch=0, reader=KeyedReader())
    by_rule = Inbox(topics=TOPICS, device="dev-1", coordinator_key=None, epoch=0)
    assert ours.open(topic, bytes(packet)).body == status
    with pytest.raises(SignatureError):
        by_rule.open(topic, bytes(packet))
    packet[-1 - random.Random(0).randrange(60)] ^= 1
    with pytest.raises(SignatureError):
        ours.open(topic, bytes(packet))
