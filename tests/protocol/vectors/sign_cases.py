"""Cases of the optional value coder: rows of one sign, changing ones, levels, and what must be refused."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedmq_protocol.codecs import body, linear8, log4, sign1, signs
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs.make_vectors import wave
from tests.protocol.vectors.form import Case, Plain, raised

_SHAPES: Final = [[6, 10], [6], [], [0, 3], [4, 3, 3]]
_INDICES: Final = [*range(0, 60, 2), 61, 63, 66, *range(67, 103, 3)]
_HEADS: Final = {"topk-log4": "803f02", "topk-sign": "803f", "topk-int8": "803f"}
_SYMBOLS: Final = {"topk-log4": log4.SYMBOLS, "topk-sign": sign1.SYMBOLS, "topk-int8": linear8.SYMBOLS}


def sign_cases() -> list[Case]:
    """All of them."""
    rows = np.array([index // 10 % 2 == 1 for index in _INDICES])
    cases = []
    for codec, symbols in _SYMBOLS.items():
        top = 1 << symbols.level_bits
        waves = np.abs(wave(len(_INDICES))) * (top - 1)
        levels = np.maximum(waves.astype(np.int64), 1) if codec == "topk-int8" else waves.astype(np.int64)
        for name, negative in (("rows of one sign", rows), ("signs by chance", wave(len(_INDICES)) < 0)):
            coded = bytes.fromhex(_HEADS[codec]) + symbols.joined(negative, levels)
            section = bytes([body.SIGNS]) + signs.encode(coded, symbols, np.array(_INDICES), _SHAPES)
            given = _given(codec, _INDICES, section)
            cases.append(Case(f"{codec}: {name}", "values", given, {"body": coded.hex()}))
    some = bytes.fromhex(cases[0].given["section"])
    wrong = {
        "a byte missing": (_INDICES, some[:-1]),
        "a byte too many": (_INDICES, some + b"\x01"),
        "a value less": (_INDICES[:-1], some),
        "only a head": (_INDICES, some[:3]),
        "a zero after the head": (_INDICES, some[:4] + bytes(5)),
    }
    return cases + [_wrong(name, *case) for name, case in wrong.items()]


def values(given: Plain) -> Plain:
    """The answer to `values`."""
    section = memoryview(bytes.fromhex(given["section"]))
    symbols = _SYMBOLS[given["codec"]]
    return {"body": signs.decode(section[1:], symbols, np.array(given["indices"]), given["shapes"]).hex()}


def _given(codec: str, indices: list[int], section: bytes) -> Plain:
    return {"codec": codec, "shapes": _SHAPES, "indices": indices, "section": section.hex()}


def _wrong(name: str, indices: list[int], section: bytes) -> Case:
    given = _given("topk-log4", indices, section)
    try:
        values(given)
    except CodecError as error:
        return Case(name, "values", given, error=raised(error))
    raise AssertionError(f"{name}: not refused")
