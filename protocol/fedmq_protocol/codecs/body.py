"""The values' bytes: as they are, or in one zstd frame where that is smaller.

A decoder knows beforehand how many bytes must come out, so a frame that promises anything else is refused before any
memory is taken for it.
"""

from __future__ import annotations

from typing import Final

import zstandard

from fedmq_protocol.errors import CodecError

FLAG_BYTES: Final = 1
_RAW: Final = 0
_ZSTD: Final = 1
_LEVEL: Final = 3
_WORTH_TRYING: Final = 32  # a frame's own header costs about ten bytes


def wrap(body: bytes) -> bytes:
    """A flag byte and the body, compressed if that is smaller: at most `FLAG_BYTES + len(body)` bytes."""
    if len(body) >= _WORTH_TRYING:
        frame = zstandard.ZstdCompressor(
            level=_LEVEL, write_checksum=False, write_content_size=True
        ).compress(body)
        if len(frame) < len(body):
            return bytes([_ZSTD]) + frame
    return bytes([_RAW]) + body


def unwrap(section: memoryview, size: int) -> memoryview:
    """The body back.

    Args:
        section: what `wrap` wrote, and nothing after it.
        size: length of the body in bytes, known from the counts before it.

    Raises:
        CodecError: the section does not hold exactly `size` bytes.
    """
    if len(section) < FLAG_BYTES:
        raise CodecError("the values are missing")
    flag, content = section[0], section[FLAG_BYTES:]
    if flag == _RAW:
        if len(content) != size:
            raise CodecError(f"{len(content)} bytes of values, expected {size}")
        return content
    if flag == _ZSTD:
        return memoryview(_decompressed(content, size))
    raise CodecError(f"unknown flags {flag:#04x} before the values", reason="unknown-codec")


def _decompressed(frame: memoryview, size: int) -> bytes:
    if len(frame) >= size:
        raise CodecError("a zstd frame that is not smaller than what it holds")
    try:
        header = zstandard.get_frame_parameters(frame)
        if header.content_size != size or header.dict_id != 0:
            raise CodecError(f"the zstd frame promises {header.content_size} bytes, expected {size}")
        body = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"the values do not decompress: {error}") from None
    if len(body) != size:
        raise CodecError(f"the zstd frame held {len(body)} bytes, expected {size}")
    return body
