"""How a model's two payloads, of its weights and of its buffers, stand in one blob: a msgpack array of byte strings.

A blob of hundreds of megabytes is written where it belongs and read where it lies, so its array is taken apart by hand:
it has the short form, and whatever else msgpack can say is refused.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, Final

import msgpack
import numpy as np

from fedmq_protocol.codecs.container import Sent, encode, encode_to, max_encoded_bytes
from fedmq_protocol.codecs.decoded import Float32Array
from fedmq_protocol.codecs.grid_model import Shapes
from fedmq_protocol.codecs.registry import CodecSpec
from fedmq_protocol.codecs.slices import Source
from fedmq_protocol.errors import CodecError

BUFFERS: Final = CodecSpec("float32")
"""What buffers are coded in."""

NO_BUFFERS: Final = encode(np.empty(0, np.float32), BUFFERS)[0]
"""The payload of no buffers, which most models have."""

_ARRAY_OF_TWO: Final = b"\x92"
_BIN_WIDTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # msgpack's byte strings: the length takes so many bytes
_BIN32_CODE: Final = 0xC6
_BIN32: Final = struct.Struct(">BI")
_STREAM_FROM: Final = 1 << 20  # longer parts are written where they belong, with the long form of the length


def write(
    out: BinaryIO,
    weights: Source,
    spec: CodecSpec,
    buffers: Float32Array,
    *,
    shapes: Shapes | None = None,
    rng: np.random.Generator | None = None,
) -> Sent:
    """Write a blob.

    Args:
        out: a file that can seek, or `io.BytesIO`; the blob goes to its end.
        weights: float32[n].
        spec: how they are coded.
        buffers: float32[num_buffers].
        shapes: as `encode_to`.
        rng: as `encode_to`.

    Returns:
        What was sent of the weights.

    Raises:
        ValueError: as `encode_to`.
    """
    if max_encoded_bytes(len(weights), spec) < _STREAM_FROM:
        part = io.BytesIO()
        sent = encode_to(weights, spec, part, shapes=shapes, rng=rng)
        out.write(_ARRAY_OF_TWO + msgpack.packb(part.getvalue()))
    else:  # as long as it turns out to be, so its length is written last
        place = out.tell() + len(_ARRAY_OF_TWO)
        out.write(_ARRAY_OF_TWO + _BIN32.pack(_BIN32_CODE, 0))
        sent = encode_to(weights, spec, out, shapes=shapes, rng=rng)
        end = out.tell()
        out.seek(place)
        out.write(_BIN32.pack(_BIN32_CODE, end - place - _BIN32.size))
        out.seek(end)
    out.write(_packed_buffers(buffers))
    return sent


def write_payload(weights: bytes, buffers: Float32Array) -> bytes:
    """The blob whose first payload is there already."""
    return _ARRAY_OF_TWO + bytes(msgpack.packb(weights)) + _packed_buffers(buffers)


def beside_weights(buffers: Float32Array) -> int:
    """How many bytes of a blob are not the weights' payload, at most."""
    return len(_ARRAY_OF_TWO) + _BIN32.size + len(_packed_buffers(buffers))


def most_beside_weights(num_buffers: int) -> int:
    """`beside_weights`, whatever the buffers hold."""
    return len(_ARRAY_OF_TWO) + 2 * _BIN32.size + max_encoded_bytes(num_buffers, BUFFERS)


def read(data: bytes | memoryview) -> tuple[memoryview, memoryview]:
    """Both payloads of a blob, as views of it.

    Raises:
        CodecError: it is no blob.
    """
    view = memoryview(data).cast("B")
    if bytes(view[:1]) != _ARRAY_OF_TWO:
        raise CodecError("a model's blob is a msgpack array of two byte strings")
    weights, rest = _byte_string(view[1:])
    buffers, rest = _byte_string(rest)
    if len(rest):
        raise CodecError("bytes follow a model's blob")
    return weights, buffers


def _packed_buffers(buffers: Float32Array) -> bytes:
    payload = encode(np.ascontiguousarray(buffers), BUFFERS)[0] if len(buffers) else NO_BUFFERS
    packed: bytes = msgpack.packb(payload)
    return packed


def _byte_string(view: memoryview) -> tuple[memoryview, memoryview]:
    """The msgpack byte string that a view begins with, and what follows it."""
    width = _BIN_WIDTHS.get(view[0] if len(view) else 0)
    if width is None:
        raise CodecError("a model's blob is a msgpack array of two byte strings")
    start = 1 + width
    end = start + int.from_bytes(view[1:start], "big")
    if end > len(view) or len(view) < start:
        raise CodecError("a model's blob ends within a byte string")
    return view[start:end], view[end:]
