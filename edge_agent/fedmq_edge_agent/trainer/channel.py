"""How a supervisor and its trainer talk: on a Unix socket, msgpack maps, each after its length in 4 big-endian bytes.

    request  {"id": int, "op": str, **arguments}
    reply    {"id": int, "ok": true, **result}  or  {"id": int, "ok": false, "code": str, "detail": str}

One request at a time; replies come in the order of requests. Both ends belong to the same user on the same machine, so
a broken frame is a bug or the wrong peer: the reader raises, and the process that reads ends. Models never travel here,
only the names of the files that hold them, so a frame is small.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgpack

from fedmq_protocol.errors import FedmqError

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""A schema of 16,384 tensors with long names fits several times over."""

_LENGTH: Final = struct.Struct(">I")

Message = dict[str, Any]


class ChannelError(FedmqError):
    """What came over the channel is not a frame of it."""


def pack(message: Mapping[str, Any]) -> bytes:
    """One frame.

    Raises:
        ChannelError: it would be longer than a frame may be.
    """
    body: bytes = msgpack.packb(dict(message))
    if len(body) > MAX_FRAME_BYTES:
        raise ChannelError(
            f"a message of {len(body)} bytes is longer than the {MAX_FRAME_BYTES} that a frame may have"
        )
    return _LENGTH.pack(len(body)) + body


def read(source: socket.socket) -> Message | None:
    """The next message, waiting for it; None when the peer has closed.

    Raises:
        ChannelError: the bytes are no frame, or end within one.
    """
    head = _read_exactly(source, _LENGTH.size)
    if not head:
        return None
    body = _read_exactly(source, _body_length(head))
    return _unpack(body)


async def read_async(source: asyncio.StreamReader) -> Message | None:
    """As `read`, on a stream of asyncio."""
    try:
        head = await source.readexactly(_LENGTH.size)
        return _unpack(await source.readexactly(_body_length(head)))
    except asyncio.IncompleteReadError as error:
        if error.partial or error.expected != _LENGTH.size:
            raise ChannelError("the channel closed within a message") from None
        return None


def _body_length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise ChannelError(f"a frame of {length} bytes is announced; this peer speaks something else")
    return int(length)


def _read_exactly(source: socket.socket, count: int) -> bytes:
    """`count` bytes; fewer only as b"" where the peer closed before the first byte of a frame's head."""
    parts = bytearray()
    while len(parts) < count:
        part = source.recv(min(count - len(parts), 1 << 16))
        if not part:
            if parts or count != _LENGTH.size:
                raise ChannelError("the channel closed within a message")
            return b""
        parts += part
    return bytes(parts)


def _unpack(body: bytes) -> Message:
    try:
        message = msgpack.unpackb(body, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ChannelError(f"a frame is not msgpack: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("id"), int):
        raise ChannelError("a frame is not a map with an id")
    return message
