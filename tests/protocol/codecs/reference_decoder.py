"""A second decoder of every format, written from docs/protocol-codecs.md: one bit after another, exact fractions.

It is slow and trusts its input. It shares nothing with the package: no NumPy, no table but the sixteen numerators. The
grid is in `reference_grid`, the optional value coder in `reference_signs`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction

import zstandard

from tests.protocol.codecs import reference_grid, reference_signs
from tests.protocol.codecs.reference_random import mask

Element = tuple[int, Fraction]
_NUMERATORS = (256, 245, 235, 225, 215, 206, 197, 189, 181, 173, 166, 159, 152, 146, 140, 134)


class _Bits:
    """Bits of a byte string, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def one(self) -> int:
        byte = self.data[self.place // 8]
        bit = byte >> (7 - self.place % 8) & 1
        self.place += 1
        return bit

    def number(self, width: int) -> int:
        value = 0
        for _ in range(width):
            value = value << 1 | self.one()
        return value

    def zeros_before_a_one(self) -> int:
        count = 0
        while self.one() == 0:
            count += 1
        return count


def decode(payload: bytes, shapes: Sequence[Sequence[int]] | None = None) -> tuple[int, list[Element]]:
    """The length of the vector, and its elements as (index, exact value): those sent, or all of a dense one."""
    tag, n = struct.unpack_from("<BI", payload)
    if tag >> 4 == 0:
        return n, list(enumerate(_dense(tag, _body(payload[5:]), n)))
    _, _, k, index_bytes = struct.unpack_from("<BIII", payload)
    section, rest = payload[13 : 13 + index_bytes], payload[13 + index_bytes :]
    if tag >> 4 == 15:
        values = _dense(tag & 15, _body(rest), k)
        return n, list(zip(mask(int.from_bytes(section, "little"), n, k), values, strict=True))
    shapes = shapes or [(n,)]
    places = indices(section, k) if tag >> 4 == 1 else reference_grid.indices(section, k, shapes)
    if rest[0] == 2:
        return n, list(zip(places, _expected(tag & 15, rest[1:], places, shapes), strict=True))
    return n, list(zip(places, _kept(tag & 15, _body(rest), k), strict=True))


def indices(section: bytes, k: int) -> list[int]:
    """The indices of a Rice-coded section."""
    blocks = -(-k // 64)
    parameters = _Bits(section[1:])
    r = [section[0] + parameters.number(4) for _ in range(blocks)] if k else []
    low = _Bits(section[1 + -(-blocks // 2) :])
    remainders = []
    for block in range(blocks):
        gaps = min(64, k - 64 * block)
        remainders += [low.number(r[block]) for _ in range(gaps)]
        low.number(r[block] * (-gaps % 8))
    unary = _Bits(low.data[low.place // 8 :])
    places, last = [], -1
    for j in range(k):
        last += 1 + (unary.zeros_before_a_one() << r[j // 64]) + remainders[j]
        places.append(last)
    return places


def _body(section: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(section[1:]) if section[0] == 1 else section[1:]


def _scale(data: bytes) -> Fraction:
    return Fraction(struct.unpack("<f", b"\0\0" + data)[0])


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def _dense(tag: int, body: bytes, n: int) -> list[Fraction]:
    if tag == 1:
        return [Fraction(x) for (x,) in struct.iter_unpack("<f", body)]
    blocks = -(-n // 64)
    scales = [_scale(body[2 * b : 2 * b + 2]) for b in range(blocks)]
    width = {2: 8, 3: 4}[tag]
    levels = _Bits(body[2 * blocks :])
    return [_signed(levels.number(width), width) * scales[i // 64] for i in range(n)]


def _kept(code: int, body: bytes, k: int) -> list[Fraction]:
    if k == 0:
        return []
    if code in (7, 8):
        return _dense(code - 5, body, k)
    scale = _scale(body[:2])
    if code == 4:
        step, nibbles = body[2], _Bits(body[3:])
        return [_log4(nibbles.number(4), step) * scale for _ in range(k)]
    if code == 5:
        signs = _Bits(body[2:])
        return [-scale if signs.one() else scale for _ in range(k)]
    return [_signed(level, 8) * scale for level in body[2:]]


def _expected(
    code: int, content: bytes, places: list[int], shapes: Sequence[Sequence[int]]
) -> list[Fraction]:
    """Kept values with flag 2."""
    head = 3 if code == 4 else 2
    scale, level_bits = _scale(content[:2]), {4: 3, 5: 0, 6: 7}[code]
    pairs = reference_signs.values(content[head:], places, level_bits, shapes)
    if code == 4:
        return [_log4(level + (8 if sign < 0 else 0), content[2]) * scale for sign, level in pairs]
    return [sign * (level if code == 6 else 1) * scale for sign, level in pairs]


def _log4(nibble: int, step: int) -> Fraction:
    octaves, sixteenths = divmod((nibble & 7) * step, 16)
    magnitude = Fraction(_NUMERATORS[sixteenths], 256 << octaves)
    return -magnitude if nibble & 8 else magnitude
