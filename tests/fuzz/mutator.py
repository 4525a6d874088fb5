"""Mutations that know msgpack: a field takes a hostile value, goes, comes twice, or moves.

Coverage guides little where validation happens in compiled code, so whoever wants to get past it has to send what is
almost right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Final

import msgpack

_HOSTILE: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    1,
    2**31 - 1,
    2**32,
    2**53 - 1,
    2**53,
    2**63,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    1e-310,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    "",
    "x" * 65,
    "\x00",
    "é" * 40,
    "../../etc",
    "a/b",
    "#",
    b"",
    bytes(31),
    bytes(32),
    bytes(33),
    b"\xff" * 100,
    [],
    {},
    [[[[[[[[[[]]]]]]]]]],
    {"a": {"a": {"a": {"a": {"a": {}}}}}},
    list(range(70)),
)


def mutate(head: int, mutate_bytes: Callable[[bytes, int], bytes]) -> Callable[[bytes, int, int], bytes]:
    """A mutator for inputs of `head` bytes and one msgpack value.

    Args:
        head: bytes before the value; they choose what the target does with it.
        mutate_bytes: libFuzzer's own way, used half of the time and where there is no value.
    """

    def apply(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)  # no secret
        if chance.random() < 0.5:  # half of the time
            return mutate_bytes(data, max_size)
        try:
            value = msgpack.unpackb(data[head:], strict_map_key=False)
        except Exception:  # noqa: BLE001  # whatever it is, it is no msgpack
            return mutate_bytes(data, max_size)
        first = bytes([chance.randrange(256)]) if head and chance.random() < 0.1 else data[:head]  # seldom
        try:
            changed = first + msgpack.packb(_changed(value, chance))
        except (ValueError, OverflowError, RecursionError):
            return mutate_bytes(data, max_size)
        return changed if len(changed) <= max_size else mutate_bytes(data, max_size)

    return apply


def _changed(value: Any, chance: random.Random) -> Any:  # whatever msgpack holds
    match value:
        case dict() if value and chance.random() < 0.9:  # mostly deeper
            key = chance.choice(list(value))
            match chance.randrange(8):
                case 0:
                    return {name: inner for name, inner in value.items() if name != key}
                case 1:
                    return {**value, "extra": chance.choice(_HOSTILE)}
                case _:
                    return {**value, key: _changed(value[key], chance)}
        case list() if value and chance.random() < 0.9:  # likewise
            place = chance.randrange(len(value))
            match chance.randrange(6):
                case 0:
                    return value[:place] + value[place + 1 :]
                case 1:
                    return [*value, value[place]]
                case _:
                    return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
        case int() if not isinstance(value, bool) and chance.random() < 0.5:  # near what it was
            return value + chance.choice((-1, 1, 2, 255))
        case bytes() if value and chance.random() < 0.5:  # likewise
            place = chance.randrange(len(value))
            return value[:place] + bytes([chance.randrange(256)]) + value[place + 1 :]
        case _:
            return chance.choice(_HOSTILE)
