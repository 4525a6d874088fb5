"""Contents of envelopes made shorter by zstd with a dictionary of what messages have in common.

A message of some hundred bytes is mostly names of fields, which every message repeats, so it compresses little by
itself and well beside an example of its kind. The dictionary, `dictionary-1.bin`, is such examples one after another,
without any structure of its own ("raw content" in RFC 8878's terms). It never changes; another one is another form.

Signatures are over the content as it was before, so this is a matter between two who both know how.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from fedmq_protocol.errors import RemoteError
from fedmq_protocol.lending import Pool

if TYPE_CHECKING:
    import zstandard

NAME: Final = "packed/1"
"""In a birth certificate: the device reads this form. It writes it to a coordinator that does."""

FORM: Final = 1
MAX_PACKED_BYTES: Final = 131_072
"""Longer contents are refused, so that a small packet cannot cost much memory."""

_LEVEL: Final = 19  # contents are short
_WORTH_TRYING: Final = 32_768  # what is longer is data, which milliseconds of a board's core make no shorter
_SHORT: Final = 4_096  # a context keeps room for the longest content so far
_WORTH_IT: Final = 4  # bytes that the other form of a packet takes


def pack(content: bytes) -> bytes | None:
    """The content as a zstd frame; None if that does not pay, or is not expected to."""
    if len(content) > _WORTH_TRYING:
        return None
    if len(content) <= _SHORT:
        with _compressors.lend() as compressor:
            frame = compressor.compress(content)
    else:
        frame = _compressor().compress(content)
    return frame if len(frame) + _WORTH_IT < len(content) else None


def unpack(frame: bytes) -> bytes:
    """The content back.

    Raises:
        RemoteError: `too-large`, by what the frame says before anything is decompressed; or it is damaged.
    """
    import zstandard  # noqa: PLC0415 - not before it is needed: a device's supervisor is small

    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if size > MAX_PACKED_BYTES:  # one that states no size states the largest number
            raise RemoteError(f"a packed content of {size} bytes", reason="too-large")
        with _decompressors.lend() as decompressor:
            return decompressor.decompress(frame, max_output_size=MAX_PACKED_BYTES, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RemoteError(f"a packed content that does not decompress: {error}") from None


def _compressor() -> zstandard.ZstdCompressor:
    import zstandard  # noqa: PLC0415 - as above

    return zstandard.ZstdCompressor(
        level=_LEVEL,
        dict_data=_dictionary(),
        write_checksum=False,
        write_content_size=True,
        write_dict_id=False,
    )


def _decompressor() -> zstandard.ZstdDecompressor:
    import zstandard  # noqa: PLC0415 - as above

    return zstandard.ZstdDecompressor(dict_data=_dictionary(), max_window_size=2 * MAX_PACKED_BYTES)


_compressors: Final = Pool(_compressor)
_decompressors: Final = Pool(_decompressor)


@cache
def _dictionary() -> zstandard.ZstdCompressionDict:
    import zstandard  # noqa: PLC0415 - as above

    data = files("fedmq_protocol").joinpath("dictionary-1.bin").read_bytes()
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
