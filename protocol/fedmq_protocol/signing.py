"""Ed25519 keys (RFC 8032): who says a thing is who they claim to be.

A key lives in a file of 32 raw private bytes in hex, readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from fedmq_protocol import ed25519
from fedmq_protocol.errors import SignatureError, StoreError

SIGNATURE_BYTES = ed25519.SIGNATURE_BYTES
PUBLIC_KEY_BYTES = ed25519.KEY_BYTES
KEY_ID_BYTES = 8


@lru_cache(maxsize=4_096)
def key_id(public_key: bytes) -> bytes:
    """The first 8 bytes of SHA-256 of the 32 public bytes."""
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]


class Signer(Protocol):
    """Whatever signs for one sender: a private key, or what stands for one where nothing leaves the process."""

    @property
    def public_key(self) -> bytes:
        """32 bytes by which others know it."""
        ...

    @property
    def key_id(self) -> bytes:
        """`key_id(public_key)`."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the signature."""
        ...


class SigningKey:
    """A private key."""

    def __init__(self, private_bytes: bytes) -> None:
        self._key = ed25519.library().private(private_bytes)
        self.public_key = self._key.public_bytes
        self.key_id = key_id(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the signature."""
        return self._key.sign(data)


def verify(public_key: bytes, signature: bytes, data: bytes) -> None:
    """Check a signature.

    Raises:
        SignatureError: it is not this key's signature of `data`, or the key is no key.
    """
    if not ed25519.library().verifies(public_key, signature, data):
        msg = "the signature does not fit the key that this sender is known by"
        raise SignatureError(msg)


def load_or_create_key(path: Path) -> SigningKey:
    """Read the key at `path`, or make one there with mode 0600.

    Raises:
        StoreError: the file cannot be read or written, or holds no key.
    """
    try:
        if path.exists():
            return SigningKey(bytes.fromhex(path.read_text(encoding="ascii").strip()))
        path.parent.mkdir(parents=True, exist_ok=True)
        private = os.urandom(32)
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(private.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut would make it another one
        finally:
            os.close(folder)
        return SigningKey(private)
    except (OSError, ValueError) as error:
        msg = f"cannot use the key file {path}: {error}"
        raise StoreError(msg) from error
