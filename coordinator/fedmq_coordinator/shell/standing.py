"""Which retained chunks the broker is known to have, so that only those it lacks are published again.

A chunk stands once the broker has acknowledged it. Whether it still does after a lost connection, or a restart of
either side, is asked of the broker itself: if it answers a subscription to the chunk that it acknowledged last with the
very packet that it was sent, it has kept what came before, too, since brokers that keep retained messages across a
restart keep them in one state. Else all are published again. Whatever a broker loses all the same, devices ask for.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from fedmq_coordinator.core.effects import SendChunk

_BLOBS: Final = 64
"""The newest so many are remembered; a run has its chain and its snapshot."""

_Key = tuple[str, int, str]


@dataclass
class _Mark:
    chunk_bytes: int
    bits: bytearray

    def has(self, chunk: SendChunk) -> bool:
        return self.chunk_bytes == chunk.chunk_bytes and bool(
            self.bits[chunk.index // 8] >> (chunk.index % 8) & 1
        )


class Standing:
    """Chunks that the broker has acknowledged."""

    def __init__(self) -> None:
        self._marks: OrderedDict[_Key, _Mark] = OrderedDict()
        self._last: tuple[str, bytes] | None = None

    @property
    def witness(self) -> str | None:
        """The topic of the chunk that was acknowledged last; None if none was."""
        return None if self._last is None else self._last[0]

    @property
    def num_chunks(self) -> int:
        """How many they are."""
        return sum(int.from_bytes(mark.bits, "big").bit_count() for mark in self._marks.values())

    def has(self, chunk: SendChunk) -> bool:
        """Whether a chunk need not be published again."""
        mark = self._marks.get(_key(chunk))
        return mark is not None and mark.has(chunk)

    def acknowledged(self, chunk: SendChunk, payload: bytes) -> None:
        """The broker has taken a chunk, retained, in a packet with this payload."""
        key = _key(chunk)
        mark = self._marks.get(key)
        if mark is None or mark.chunk_bytes != chunk.chunk_bytes:
            mark = self._marks[key] = _Mark(chunk.chunk_bytes, bytearray(-(-chunk.head.count // 8)))
        self._marks.move_to_end(key)
        mark.bits[chunk.index // 8] |= 1 << (chunk.index % 8)
        self._last = chunk.topic, hashlib.sha256(payload).digest()
        while len(self._marks) > _BLOBS:
            self._marks.popitem(last=False)

    def testify(self, payload: bytes) -> bool:
        """What the broker holds on the witness's topic; whether that is what it was sent. If not, all is forgotten."""
        good = self._last is not None and hashlib.sha256(payload).digest() == self._last[1]
        if not good:
            self.forget()
        return good

    def forget(self) -> None:
        """The broker may have nothing."""
        self._marks.clear()
        self._last = None

    def dump(self) -> bytes:
        """As bytes, for the next start."""
        marks = [[*key, mark.chunk_bytes, bytes(mark.bits)] for key, mark in self._marks.items()]
        packed: bytes = msgpack.packb([self._last, marks])
        return packed

    @classmethod
    def load(cls, data: bytes | None) -> Standing:
        """What `dump` wrote; nothing if it does not read."""
        found = cls()
        if not data:
            return found
        try:
            last, marks = msgpack.unpackb(data)
            found._read(last, marks)
        except (ValueError, TypeError, msgpack.UnpackException):
            found.forget()
        return found

    def _read(self, last: list[Any] | None, marks: list[list[Any]]) -> None:
        for run, version, blob, chunk_bytes, bits in marks:
            self._marks[run, version, blob] = _Mark(chunk_bytes, bytearray(bits))
        self._last = None if last is None else (last[0], last[1])


def _key(chunk: SendChunk) -> _Key:
    return chunk.head.run, chunk.head.version, chunk.head.blob
