"""From bytes to a message that a known device really said on its own topic, now. Everything before that is hostile.

A presence is retained, so it may come again; by its session and sequence `Device` knows what is older. Anything else
is taken once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedmq_coordinator.core.devices import Device
from fedmq_protocol.envelope import Envelope, Reader
from fedmq_protocol.errors import RemoteError, SignatureError
from fedmq_protocol.messages import Presence
from fedmq_protocol.signing import key_id
from fedmq_protocol.topics import Topics

_KIND_BY_TOPIC = {
    "presence": "presence",
    "hello": "hello",
    "update": "update",
    "offer": "offer",
    "chunk": "upload_chunk",
    "report": "report",
    "get": "get",
}


class UnknownSenderError(RemoteError):
    """A device speaks whose birth certificate has not been seen; it will say the thing again."""


@dataclass(frozen=True)
class Heard:
    """A verified message."""

    device: str
    envelope: Envelope


def hear(topics: Topics, devices: Mapping[str, Device], reader: Reader, topic: str, payload: bytes) -> Heard:
    """Open, check and verify what arrived on a device's topic.

    A birth certificate of a device without a key yet is verified by the key that it carries: trust on first use.

    Raises:
        RemoteError: not this federation's topic, not an envelope, of the wrong kind or sender for its topic, or from
            a device that is not known yet.
        ReplayError: the device has said this before, or says more recent things by now.
        SignatureError: not signed by the key that the device is known by.
    """
    where = topics.parse_device(topic)
    envelope = reader.open(topic, payload)
    if envelope.sender != where.device:
        msg = f"{envelope.sender!r} speaks on the topic of {where.device!r}"
        raise RemoteError(msg, reason="wrong-topic")
    if _KIND_BY_TOPIC.get(where.kind) != envelope.kind:
        msg = f"a message of kind {envelope.kind!r} on the topic for {where.kind!r}"
        raise RemoteError(msg, reason="wrong-topic")
    known = devices.get(where.device)
    if known is not None:
        if envelope.key_id != key_id(known.public_key):
            msg = (
                f"{where.device} speaks with another key than the one it is known by; if its storage was wiped on "
                "purpose, give it a new id"
            )
            raise SignatureError(msg)
        reader.verified(envelope, known.public_key)
        if isinstance(envelope.body, Presence):
            _check_session(envelope, envelope.body)
        else:
            known.replays.check(envelope.epoch, envelope.sequence)
        return Heard(where.device, envelope)
    if isinstance(envelope.body, Presence):
        _check_session(envelope, envelope.body)
        return Heard(where.device, reader.verified(envelope, envelope.body.public_key))
    msg = f"{where.device} has not introduced itself yet"
    raise UnknownSenderError(msg, reason="unknown-device")


def _check_session(envelope: Envelope, presence: Presence) -> None:
    if presence.session != envelope.epoch:
        msg = f"a presence of session {presence.session} in an envelope of session {envelope.epoch}"
        raise RemoteError(msg, reason="bad-session")
