"""Cases of what is drawn from seeds: first weights by a recipe, and masks."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from fedmq_protocol.codecs import CodecSpec, encode, encode_seeded, seeded
from fedmq_protocol.codecs.decoded import Sparse
from fedmq_protocol.codecs.seeded import Recipe, Segment
from fedmq_protocol.errors import RemoteError
from tests.protocol.codecs.make_vectors import wave
from tests.protocol.vectors import answer
from tests.protocol.vectors.form import Case, Plain, entries, raised
from tests.protocol.vectors.model_cases import PLAIN_SCHEMA

_INT8, _INT4 = 2, 3


def cases() -> list[Case]:
    """Everything that is drawn."""
    return [*_recipes(), *_wrong_recipes(), *_masks(), *_masked()]


def _recipes() -> list[Case]:
    named = {
        "constant": Recipe(0, (Segment.constant(3, -0.5),), _INT8),
        "even": Recipe(1, (Segment.uniform(17, 0.125),), _INT8),
        "normal": Recipe(1, (Segment.normal(5, 0.02),), _INT4),
        "as layers begin, the largest seed": Recipe(
            2**64 - 1,
            (
                Segment.uniform(12, 0.5),
                Segment.uniform(4, 0.5),
                Segment.constant(4, 1.0),
                Segment.normal(9, 1.0),
            ),
            _INT8,
        ),
        "edges of scales": Recipe(
            2**32,
            (Segment(2, "uniform", 2.0**96), Segment(2, "normal", 2.0**-90), Segment(1, "constant", 0.0)),
            _INT8,
        ),
    }
    found = []
    for name, recipe in named.items():
        given = {"n": recipe.n, "payload": seeded.encode(recipe).hex()}
        found.append(Case(f"recipe: {name}", "recipe", given, answer.QUESTIONS["recipe"](given)))
    segments = (Segment.uniform(128, 0.25), Segment.constant(8, 0.0))
    snapshot = encode_seeded(20_261_123, segments, np.empty(0, np.float32), PLAIN_SCHEMA)
    given = {"entries": entries(PLAIN_SCHEMA), "n": 136, "payload": _weights_of(snapshot).hex()}
    found.append(Case("recipe: of a small model", "recipe", given, answer.QUESTIONS["recipe"](given)))
    return found


def _weights_of(snapshot: bytes) -> bytes:
    length = snapshot[2]  # [bin 8 with the recipe, bin 8 with the buffers]
    return snapshot[3 : 3 + length]


def _wrong_recipes() -> list[Case]:
    def payload(*parts: tuple[int, int, float], n: int = 4, tag: int = seeded.TAG) -> bytes:
        head = struct.pack("<BIBQ", tag, n, _INT8, 1)
        return head + b"".join(struct.pack("<IBf", *part) for part in parts)

    wrong = {
        "cut short": payload((4, 1, 1.0))[:-1],
        "for another number of weights": payload((5, 1, 1.0), n=5),
        "segments that do not add up": payload((3, 1, 1.0)),
        "lengths beyond 2^32": payload((2**32 - 1, 1, 1.0), (5, 1, 1.0)),
        "an empty segment": payload((0, 0, 1.0), (4, 0, 1.0)),
        "a kind that does not exist": payload((4, 3, 1.0)),
        "a scale of nine bits": payload((4, 1, 1.00390625)),
        "a scale below zero": payload((4, 2, -1.0)),
        "a scale that is too large": payload((4, 1, 2.0**97)),
        "a NaN": payload((4, 0, float("nan"))),
        "a subnormal": payload((4, 0, 1e-40)),
        "another tag": payload((4, 1, 1.0), tag=2),
    }
    return [
        _refused(f"recipe: {name}", "recipe", {"n": 4, "payload": data.hex()}) for name, data in wrong.items()
    ]


def _masks() -> list[Case]:
    asked: list[tuple[str, dict[str, Any]]] = [
        ("one of one", {"seed": "0", "n": 1, "k": 1}),
        ("one of two", {"seed": "1", "n": 2, "k": 1}),
        ("none", {"seed": "2", "n": 100, "k": 0}),
        ("few", {"seed": "3", "n": 1000, "k": 12}),
        ("half of a power of two", {"seed": "4", "n": 64, "k": 32}),
        ("most, by those left out", {"seed": "5", "n": 40, "k": 33}),
        ("all", {"seed": "6", "n": 9, "k": 9}),
        ("of the longest vector, by the largest seed", {"seed": str(2**64 - 1), "n": 2**31 - 1, "k": 8}),
        ("shared by all who train on a version", {"run_seed": 7, "version": 3, "n": 500, "k": 10}),
    ]
    return [Case(f"mask: {name}", "mask", given, answer.QUESTIONS["mask"](given)) for name, given in asked]


def _masked() -> list[Case]:
    found = []
    for name in ("randk-int8", "randk-int4", "randk-float32"):
        payload, decoded = encode(wave(330), CodecSpec(name, 0.2, seed=2**63 + 5))
        assert isinstance(decoded, Sparse)
        given: Plain = {"n": 330, "payload": payload.hex()}
        found.append(Case(f"masked: {name}", "masked", given, answer.QUESTIONS["masked"](given)))
    head = struct.pack("<BIII", 0xF2, 100, 2, 8)
    body = b"\0" + b"\x80\x3f" + b"\x01\x02"
    wrong = {
        "more than there are": (struct.pack("<BIII", 0xF2, 100, 101, 8) + bytes(8) + body, "malformed"),
        "a seed too short": (struct.pack("<BIII", 0xF2, 100, 2, 7) + bytes(7) + body, "malformed"),
        "a value missing": (head + bytes(8) + body[:-1], "malformed"),
        "another length": (b"\xf2" + (99).to_bytes(4, "little") + head[5:] + bytes(8) + body, "wrong-size"),
        "values that go with other indices": (b"\xf4" + head[1:] + bytes(8) + body, "unknown-codec"),
    }
    for name, (data, why) in wrong.items():
        refused = _refused(f"masked: {name}", "masked", {"n": 100, "payload": data.hex()})
        assert refused.error == why, name
        found.append(refused)
    return found


def _refused(name: str, ask: str, given: Plain) -> Case:
    try:
        answer.QUESTIONS[ask](given)
    except RemoteError as error:
        return Case(name, ask, given, error=raised(error))
    raise AssertionError(name)
