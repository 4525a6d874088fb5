"""A second reader of packets, with no library of the first: msgpack and Ed25519 from their specifications, slowly.

Ed25519 as in RFC 8032, section 5.1, with points as (x, y) on -x^2 + y^2 = 1 + d x^2 y^2 over the integers modulo p.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

P: Final = 2**255 - 19
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
D: Final = -121665 * pow(121666, P - 2, P) % P
Point = tuple[int, int]


def _add(a: Point, b: Point) -> Point:
    t = D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P)
    return x % P, y % P


def _times(scalar: int, point: Point) -> Point:
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    return total


def _decompressed(data: bytes) -> Point:
    whole = int.from_bytes(data, "little")
    y, odd = whole & (2**255 - 1), whole >> 255
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square:
        raise ValueError("no point of the curve")
    return (P - x if x & 1 != odd else x), y


_BASE: Final = _decompressed((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def verifies(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether s B = R + SHA-512(R || A || data) A."""
    s = int.from_bytes(signature[32:], "little")
    if s >= ORDER:
        return False
    key, commitment = _decompressed(public_key), _decompressed(signature[:32])
    h = int.from_bytes(hashlib.sha512(signature[:32] + public_key + data).digest(), "little")
    return _times(s, _BASE) == _add(commitment, _times(h % ORDER, key))


def public_key(private: bytes) -> bytes:
    """The key that belongs to 32 private bytes."""
    scalar = int.from_bytes(hashlib.sha512(private).digest()[:32], "little")
    scalar = scalar & ((1 << 254) - 8) | (1 << 254)
    x, y = _times(scalar, _BASE)
    return (y | (x & 1) << 255).to_bytes(32, "little")


def unpack(data: bytes) -> Any:
    """One msgpack value that fills `data`."""
    value, end = _value(data, 0)
    if end != len(data):
        raise ValueError("bytes left over")
    return value


_NUMBERS: Final = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_LENGTHS: Final = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_CONSTANTS: Final = {0xC0: None, 0xC2: False, 0xC3: True}


def _value(data: bytes, at: int) -> tuple[object, int]:
    first, at = data[at], at + 1
    if first <= 0x7F:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first in _CONSTANTS:
        return _CONSTANTS[first], at
    if first in _NUMBERS:
        size = struct.calcsize(_NUMBERS[first])
        return struct.unpack(_NUMBERS[first], data[at : at + size])[0], at + size
    if first in _LENGTHS:
        what, width = _LENGTHS[first]
        length, at = int.from_bytes(data[at : at + width], "big"), at + width
    elif first <= 0x9F:
        what, length = ("map", first & 15) if first <= 0x8F else ("array", first & 15)
    elif first <= 0xBF:
        what, length = "str", first & 31
    else:
        raise ValueError(f"type {first:#x}")
    if what in {"bin", "str"}:
        raw = data[at : at + length]
        if len(raw) != length:
            raise ValueError("it ends too early")
        return (raw if what == "bin" else raw.decode()), at + length
    items: list[object] = []
    for _ in range(length if what == "array" else 2 * length):
        item, at = _value(data, at)
        items.append(item)
    return (items if what == "array" else dict(zip(items[::2], items[1::2], strict=True))), at
