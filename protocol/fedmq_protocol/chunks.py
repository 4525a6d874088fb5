"""Cutting a blob into chunks that fit into packets, putting it together again, and the hashes that pin it."""

from __future__ import annotations

import hashlib

from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_CHUNKS
from fedmq_protocol.messages import BlobRef

NO_HASH = bytes(32)


def blob_ref(data: bytes) -> BlobRef:
    """Size and SHA-256 of `data`."""
    return BlobRef(size=len(data), sha256=hashlib.sha256(data).digest())


def chain_hash(before: bytes, content_sha256: bytes) -> bytes:
    """The chained hash of a version: SHA-256(hash of the version before || SHA-256 of the bytes that lead here)."""
    return hashlib.sha256(before + content_sha256).digest()


def chunk_count(size: int, chunk_bytes: int) -> int:
    """How many chunks `size` bytes take; an empty blob takes one empty chunk.

    Raises:
        RemoteError: more than the protocol allows.
    """
    count = max(1, -(-size // chunk_bytes))
    if count > MAX_CHUNKS:
        msg = f"{size} bytes in chunks of {chunk_bytes} are {count} chunks, more than {MAX_CHUNKS}"
        raise RemoteError(msg, reason="too-large")
    return count


def split(data: bytes, chunk_bytes: int) -> list[bytes]:
    """Cut `data` into `chunk_count` pieces of `chunk_bytes`, the last one shorter."""
    return [data[i * chunk_bytes : (i + 1) * chunk_bytes] for i in range(chunk_count(len(data), chunk_bytes))]


class Assembly:
    """Collects the chunks of one blob in any order; duplicates are harmless.

    Args:
        ref: size and hash of the whole, from a signed message.
        chunk_bytes: size of every chunk but the last.

    Raises:
        RemoteError: the blob would take more chunks than the protocol allows.
    """

    def __init__(self, ref: BlobRef, chunk_bytes: int) -> None:
        self.ref = ref
        self.chunk_bytes = chunk_bytes
        self.count = chunk_count(ref.size, chunk_bytes)
        self._parts: dict[int, bytes] = {}

    @property
    def complete(self) -> bool:
        return len(self._parts) == self.count

    def missing(self) -> list[int]:
        """Indices that are not there yet, in order."""
        return [index for index in range(self.count) if index not in self._parts]

    def add(self, index: int, data: bytes) -> bool:
        """Take a chunk; return whether it was new.

        Raises:
            RemoteError: no such index, or not the size that this chunk must have.
        """
        if not 0 <= index < self.count:
            msg = f"chunk {index} of {self.count}"
            raise RemoteError(msg, reason="bad-chunk")
        expected = min(self.chunk_bytes, self.ref.size - index * self.chunk_bytes)
        if len(data) != expected:
            msg = f"chunk {index} has {len(data)} bytes, not {expected}"
            raise RemoteError(msg, reason="bad-chunk")
        if index in self._parts:
            return False
        self._parts[index] = data
        return True

    def have(self) -> bytes:
        """The bitmap of a `Credit`: bit i % 8 of byte i // 8 is set when chunk i is there."""
        bitmap = bytearray(-(-self.count // 8))
        for index in self._parts:
            bitmap[index // 8] |= 1 << (index % 8)
        return bytes(bitmap)

    def result(self) -> bytes:
        """The whole blob.

        Raises:
            RemoteError: it does not have the hash that was promised; everything collected is dropped.
        """
        data = b"".join(self._parts[index] for index in range(self.count))
        if hashlib.sha256(data).digest() != self.ref.sha256:
            self._parts.clear()
            msg = "the chunks do not add up to the promised hash"
            raise RemoteError(msg, reason="bad-hash")
        return data
