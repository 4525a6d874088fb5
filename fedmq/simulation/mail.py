"""Packets that cost little to sign and to read, for worlds in which nobody forges.

A key signs with BLAKE2b under its own public key. Whoever changes a byte, or says that he is somebody else, is found
out as with Ed25519, so that every way through the cores is taken; but who knows a public key could sign with it.

A packet is parsed and verified once, however many hear it, and however often.
"""

from __future__ import annotations

import hashlib
from typing import Final

from fedmq_protocol.envelope import Envelope, Reader
from fedmq_protocol.errors import SignatureError
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


class CheapReader(Reader):
    """Opens packets, and verifies signatures of `CheapKey`s; one for a whole world."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, bytes], Envelope] = {}
        self._verified: dict[int, tuple[Envelope, bytes]] = {}

    def open(self, topic: str, payload: bytes) -> Envelope:
        """As `open_envelope`; what fails is not remembered."""
        envelope = self._opened.get((topic, payload))
        if envelope is None:
            envelope = super().open(topic, payload)
            if len(self._opened) >= _REMEMBERED:
                self._opened.clear()
                self._verified.clear()
            self._opened[topic, payload] = envelope
        return envelope

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
