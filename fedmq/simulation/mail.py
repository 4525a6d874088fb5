"""Packets that cost little to sign and to read, for worlds in which nobody forges.

A key signs with BLAKE2b under its own public key. Whoever changes a byte, or says that he is somebody else, is found
out as with Ed25519, so that every way through the cores is taken; but who knows a public key could sign with it.

A packet is parsed once at most, and verified once, however many hear it, and however often.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgpack

from fedmq_protocol.envelope import Envelope, Reader, Sealer
from fedmq_protocol.errors import SignatureError
from fedmq_protocol.messages import KIND_OF, Body
from fedmq_protocol.packing import unpack
from fedmq_protocol.signing import SIGNATURE_BYTES, key_id

_REMEMBERED: Final = 4_096


class CheapKey:
    """A key as `fedmq_protocol.signing.SigningKey` is one.

    Args:
        owner: whose; one owner has one key.
    """

    __slots__ = ("key_id", "public_key")

    def __init__(self, owner: str) -> None:
        self.public_key = hashlib.sha256(owner.encode()).digest()
        self.key_id = key_id(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return hashlib.blake2b(data, digest_size=SIGNATURE_BYTES, key=self.public_key).digest()


class Mail(Reader):
    """Seals, opens and verifies for a whole world.

    Args:
        parsed: every packet is parsed from its bytes when it is first heard; else whoever hears it gets the message
            that was sealed, which saves a twentieth of a history's time and takes the codec of envelopes on trust.
        packed: those who can write the shorter form of envelopes do.
    """

    def __init__(self, *, parsed: bool = True, packed: bool = True) -> None:
        self.parsed, self.packed = parsed, packed
        self._opened: dict[tuple[str, bytes], Envelope] = {}
        self._verified: dict[int, tuple[Envelope, bytes]] = {}

    def sealer(self, *, sender: str, epoch: int, key: CheapKey) -> Sealer:
        """Who seals for one sender and epoch."""
        return _Sealer(self, sender=sender, epoch=epoch, key=key)

    def open(self, topic: str, payload: bytes) -> Envelope:
        """As `open_envelope`; what fails is not remembered."""
        envelope = self._opened.get((topic, payload))
        if envelope is None:
            envelope = super().open(topic, payload)
            self.remember(envelope, payload)
        return envelope

    def remember(self, envelope: Envelope, payload: bytes) -> None:
        """What a packet says."""
        if len(self._opened) >= _REMEMBERED:
            self._opened.clear()
            self._verified.clear()
        self._opened[envelope.topic, payload] = envelope

    def verified(self, envelope: Envelope, public_key: bytes) -> Envelope:
        """The envelope.

        Raises:
            SignatureError: the owner of `public_key` did not sign it.
        """
        known = self._verified.get(id(envelope))
        if known is not None and known[0] is envelope and known[1] == public_key:
            return envelope
        signature = hashlib.blake2b(envelope.signed, digest_size=SIGNATURE_BYTES, key=public_key).digest()
        if signature != envelope.signature:
            raise SignatureError("the signature does not fit the key that this sender is known by")
        self._verified[id(envelope)] = envelope, public_key
        return envelope


class _Sealer(Sealer):
    """Seals as its world's mail says, and lets it know what was sealed."""

    def __init__(self, mail: Mail, *, sender: str, epoch: int, key: CheapKey) -> None:
        super().__init__(sender=sender, epoch=epoch, key=key)
        self._mail, self._cheap_key = mail, key

    def seal(self, topic: str, body: Body, *, packed: bool = False) -> bytes:
        payload = super().seal(topic, body, packed=packed and self._mail.packed)
        if self._mail.parsed:
            return payload
        *form, inner, signature = msgpack.unpackb(payload)
        content = unpack(inner) if form else inner
        envelope = Envelope(
            topic,
            KIND_OF[type(body)],
            self.sender,
            self.epoch,
            self._sequence,
            self._cheap_key.key_id,
            body,
            content,
            signature,
            packed=bool(form),
        )
        self._mail.remember(envelope, payload)
        return payload
