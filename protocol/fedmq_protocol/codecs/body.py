"""The values' bytes: as they are, or in one zstd frame where that is smaller.

A decoder knows beforehand how many bytes must come out, so a frame that promises anything else is refused before any
memory is taken for it. Short bodies are compressed and decompressed at once; long ones stream, both ways, through a few
megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO, Final, Protocol

import zstandard

from fedmq_protocol.errors import CodecError
from fedmq_protocol.lending import Pool

FLAG_BYTES: Final = 1
MAX_WINDOW_BYTES: Final = 1 << 23
"""How far back a frame may reach: what RFC 8878, section 3.1.1.1.2, asks of every decoder."""

_RAW: Final = 0
_ZSTD: Final = 1
SIGNS: Final = 2
"""The flag of a sparse body that `signs` wrote; this module leaves it to whoever knows the indices."""
_LEVEL: Final = 3
_WORTH_TRYING: Final = 32  # a frame's own header costs about ten bytes
_SHORT: Final = 1 << 16  # a context keeps room for the longest body so far
_AT_ONCE: Final = 1 << 20  # longer bodies stream
_PIECE: Final = 1 << 16
_BLOCK_HEADER_BYTES: Final = 3
_CHECKSUM_BYTES: Final = 4
_RUN: Final = 1  # the kind of block that is one byte, repeated
_LEAST_BLOCK: Final = (
    1024  # on average a block of a long body holds as much, encoders' own blocks 128 times that
)
_SPARE_BLOCKS: Final = 16


class Reader(Protocol):
    """A body, to be read from its beginning to its end."""

    def read(self, size: int) -> memoryview:
        """The next `size` bytes; valid until the next call.

        Raises:
            CodecError: the frame is damaged, or ends before.
        """
        ...

    def finish(self) -> None:
        """Say that all has been read.

        Raises:
            CodecError: something is left over.
        """
        ...


def wrap(body: bytes) -> bytes:
    """A flag byte and the body, compressed if that is smaller: at most `FLAG_BYTES + len(body)` bytes."""
    if len(body) >= _WORTH_TRYING:
        if len(body) <= _SHORT:
            with _compressors.lend() as compressor:
                frame = compressor.compress(body)
        else:
            frame = _compressor().compress(body)
        if len(frame) < len(body):
            return bytes([_ZSTD]) + frame
    return bytes([_RAW]) + body


def write(out: BinaryIO, size: int, pieces: Callable[[], Iterable[bytes]]) -> None:
    """Write what `wrap` would make of the pieces put together, or as good a frame, without putting them together.

    Args:
        out: a file that can seek; it is written at its end.
        size: of all pieces.
        pieces: gives them, twice if compression does not pay.
    """
    if size <= _AT_ONCE:
        out.write(wrap(b"".join(pieces())))
        return
    start = out.tell()
    out.write(bytes([_ZSTD]))
    if not _compress(out, size, pieces()):
        out.seek(start)
        out.truncate()
        out.write(bytes([_RAW]))
        out.writelines(pieces())


def unwrap(section: memoryview, size: int) -> memoryview:
    """The body back, whole.

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


def reader(section: memoryview, size: int) -> Reader:
    """The body back, piece by piece; arguments and errors as `unwrap`."""
    if size <= _AT_ONCE or len(section) < FLAG_BYTES or section[0] != _ZSTD:
        return _Whole(unwrap(section, size))
    frame = section[FLAG_BYTES:]
    _check_frame(frame, size)
    _check_end(frame, size)
    return _Streamed(frame)


class _Whole:
    """A body that is at hand."""

    def __init__(self, body: memoryview) -> None:
        self._body, self._place = body, 0

    def read(self, size: int) -> memoryview:
        piece = self._body[self._place : self._place + size]
        self._place += size
        return piece

    def finish(self) -> None:
        assert self._place == len(self._body), "the caller knows how long the body is"


class _Streamed:
    """A body out of a frame whose head has been checked."""

    def __init__(self, frame: memoryview) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._stream = decompressor.stream_reader(frame, read_size=_PIECE)

    def read(self, size: int) -> memoryview:
        buffer = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            count = self._into(buffer[filled:])
            if count == 0:
                raise CodecError("the zstd frame ends before its values do")
            filled += count
        return buffer

    def finish(self) -> None:
        if self._into(memoryview(bytearray(1))):
            raise CodecError("the zstd frame holds more than it promises")

    def _into(self, buffer: memoryview) -> int:
        try:
            return self._stream.readinto(buffer)
        except zstandard.ZstdError as error:
            raise CodecError(f"the values do not decompress: {error}") from None


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)


_compressors: Final = Pool(_compressor)
_decompressors: Final = Pool(zstandard.ZstdDecompressor)


def _compress(out: BinaryIO, size: int, pieces: Iterable[bytes]) -> bool:
    """Write a frame; False, with what is written to be thrown away, if it does not come out smaller."""
    stream = _compressor().compressobj(size=size)
    written = 0
    for piece in pieces:
        written += out.write(stream.compress(piece))
        if written >= size:
            return False
    return written + out.write(stream.flush()) < size


def _check_frame(frame: memoryview, size: int) -> None:
    if len(frame) >= size:
        raise CodecError("a zstd frame that is not smaller than what it holds")
    try:
        header = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise CodecError(f"the values do not decompress: {error}") from None
    if header.content_size != size or header.dict_id != 0:
        raise CodecError(f"the zstd frame promises {header.content_size} bytes, expected {size}")
    if header.window_size > MAX_WINDOW_BYTES:
        raise CodecError(f"the zstd frame reaches {header.window_size} bytes back")


def _check_end(frame: memoryview, size: int) -> None:
    """See that the frame ends where its bytes do: go from block to block (RFC 8878, section 3.1.1.2)."""
    place = zstandard.frame_header_size(frame)
    for _ in range(size // _LEAST_BLOCK + _SPARE_BLOCKS):
        header = int.from_bytes(frame[place : place + _BLOCK_HEADER_BYTES], "little")
        last, kind, length = header & 1, header >> 1 & 3, header >> 3
        place += _BLOCK_HEADER_BYTES + (1 if kind == _RUN else length)
        if last:
            place += _CHECKSUM_BYTES if zstandard.get_frame_parameters(frame).has_checksum else 0
            break
        if place >= len(frame):
            break
    if place != len(frame):
        raise CodecError("the zstd frame does not end where its bytes do, or is cut into crumbs")


def _decompressed(frame: memoryview, size: int) -> bytes:
    _check_frame(frame, size)
    try:
        with _decompressors.lend() as decompressor:
            body = decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"the values do not decompress: {error}") from None
    if len(body) != size:
        raise CodecError(f"the zstd frame held {len(body)} bytes, expected {size}")
    return body
