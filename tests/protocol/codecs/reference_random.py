"""A second Philox, and what is drawn from it, written from docs/protocol-codecs.md with Python's integers alone."""

from __future__ import annotations

import struct
from fractions import Fraction

Words = tuple[int, int, int, int]


def block(counter: Words, key: tuple[int, int]) -> Words:
    """One block of Philox-4x32-10."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = y >> 32 ^ b ^ k, y % 2**32, x >> 32 ^ d ^ m, x % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def stream(seed: int, purpose: int, part: int, blocks: int) -> bytes:
    """The first blocks of a stream as bytes."""
    key = (seed % 2**32, seed >> 32)
    return b"".join(struct.pack("<4I", *block((i, part, purpose, 0), key)) for i in range(blocks))


def weights(payload: bytes) -> list[Fraction]:
    """What a recipe makes, exactly."""
    _, _, _, seed = struct.unpack_from("<BIBQ", payload)
    made: list[Fraction] = []
    for part, (count, kind, value) in enumerate(struct.iter_unpack("<IBf", payload[14:])):
        data = stream(seed, 1, part, count)
        for i in range(count):
            match kind:
                case 0:
                    integer = 1
                case 1:
                    integer = 2 * int.from_bytes(data[2 * i : 2 * i + 2], "little") - 65535
                case _:
                    integer = sum(data[8 * i : 8 * i + 8]) - 1020
            made.append(integer * Fraction(value))
    return made


def mask(seed: int, n: int, k: int) -> list[int]:
    """The k indices below n that a seed stands for."""
    if k > n // 2:
        return sorted(set(range(n)) - set(mask(seed, n, n - k)))
    chosen: set[int] = set()
    number = 0
    while len(chosen) < k:
        for word in block((number, 0, 2, 0), (seed % 2**32, seed >> 32)):
            candidate = word >> (32 - (n - 1).bit_length())
            if candidate < n and len(chosen) < k:
                chosen.add(candidate)
        number += 1
    return sorted(chosen)
