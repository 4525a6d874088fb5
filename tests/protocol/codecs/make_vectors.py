"""Write protocol/vectors/codecs.json anew: `python -m tests.protocol.codecs.make_vectors`.

Only after a deliberate change of the format, in the same commit as its description.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import CodecSpec, Sparse, split

PATH = Path(__file__).parents[3] / "protocol" / "vectors" / "codecs.json"

Vector = NDArray[np.float32]


def wave(n: int, octaves: int = 5) -> Vector:
    """Numbers from integers alone, so that any language can make them: odd steps, falling octaves, both signs."""
    i = np.arange(n, dtype=np.int64)
    return ((i * 40_503 % 65_536 - 32_768) / 32_768 * np.exp2(-(i * 7 % octaves))).astype(np.float32)


def edges() -> Vector:
    """What is special about float32."""
    specials = [0.0, -0.0, 2.0**-149, -(2.0**-126), 2.0**-90, 1.0, -1.0, 1.5, 3.0e38, -2.5e-20]
    return np.array(specials * 7, np.float32)


def outer(rows: int, columns: int, seed: int) -> Vector:
    """A matrix with busy rows and columns, by rows."""
    row, column = wave(rows + seed)[seed:], wave(columns + seed, 7)[seed:]
    return (
        (np.outer(row, column) + wave(rows * columns).reshape(rows, columns) / 16).astype(np.float32).ravel()
    )


SHAPES: dict[str, list[list[int]]] = {"layers": [[24, 30], [24], [50, 3, 2, 2], [], [0, 7], [10, 24]]}
"""Those of the vectors below that have some."""

VECTORS: dict[str, tuple[Vector, list[CodecSpec]]] = {
    "empty": (wave(0), [CodecSpec(name) for name in ("topk-log4", "int8", "int4", "float32")]),
    "one": (
        np.array([-0.75], np.float32),
        [CodecSpec(name) for name in ("topk-sign", "int8", "int4", "float32")],
    ),
    "tiny": (wave(7), [CodecSpec("topk-log4"), CodecSpec("int4"), CodecSpec("float32")]),
    "zeros": (
        np.zeros(70, np.float32),
        [CodecSpec(name) for name in ("topk-log4", "topk-sign", "topk-int8", "int8")],
    ),
    "edges": (
        edges(),
        [
            CodecSpec(name, 0.2)
            for name in ("topk-log4", "topk-sign", "topk-int8", "topk-block8", "int8", "float32")
        ],
    ),
    "wave": (wave(130), [CodecSpec("int8"), CodecSpec("int4")]),
    "flat wave": (wave(300, 1), [CodecSpec(name, 0.1) for name in ("topk-log4", "topk-sign", "topk-int8")]),
    "two blocks": (
        wave(330),
        [
            CodecSpec(name, 0.2)
            for name in ("topk-log4", "topk-sign", "topk-int8", "topk-block8", "topk-block4")
        ],
    ),
    "dense fallback": (wave(100), [CodecSpec("topk-log4", 1.0)]),
    "layers": (
        np.concatenate([outer(24, 30, 1), wave(24), outer(50, 12, 2), wave(1), outer(10, 24, 3)]),
        [CodecSpec(name, 0.05) for name in ("topk-log4", "topk-sign", "topk-int8")],
    ),
}

HEAD = struct.pack("<BI", 1, 4)
SPARSE = struct.pack("<BIII", 0x15, 100, 1, 3)
INVALID: dict[str, tuple[int, bytes, str]] = {
    "nothing": (4, b"", "malformed"),
    "unknown tag": (4, b"\x7f" + HEAD[1:], "unknown-codec"),
    "unknown flags": (4, HEAD + b"\x02" + bytes(16), "unknown-codec"),
    "for another length": (5, HEAD + b"\x00" + bytes(16), "wrong-size"),
    "a value missing": (4, HEAD + b"\x00" + bytes(15), "malformed"),
    "a byte too many": (4, HEAD + b"\x00" + bytes(17), "too-large"),
    "an infinity": (4, HEAD + b"\x00" + bytes(12) + bytes.fromhex("0000807f"), "not-finite"),
    "a NaN": (4, HEAD + b"\x00" + bytes(12) + bytes.fromhex("0100c0ff"), "not-finite"),
    "index 100 of 100": (
        100,
        struct.pack("<BIII", 0x15, 100, 1, 15) + bytes(14) + b"\x08" + bytes.fromhex("00803f80"),
        "malformed",
    ),
    "more kept than there are": (100, struct.pack("<BIII", 0x15, 100, 101, 0) + b"\x00", "malformed"),
    "a zero as magnitude": (100, SPARSE + bytes.fromhex("000080") + bytes.fromhex("00000080"), "malformed"),
    "grid: a zero at the front": (100, struct.pack("<BIII", 0x25, 100, 1, 2) + bytes(2), "malformed"),
    "grid: a state that does not end at 0": (
        100,
        struct.pack("<BIII", 0x25, 100, 1, 5) + b"\x01\x02\x03\x04\x05" + bytes.fromhex("00803f80"),
        "malformed",
    ),
    "grid: a number that is none of three": (
        100,
        struct.pack("<BIII", 0x25, 100, 2, 3) + b"\xff\xff\xff" + bytes.fromhex("00803f80"),
        "malformed",
    ),
    "level -128": (1, struct.pack("<BI", 2, 1) + bytes.fromhex("00803f80"), "malformed"),
}


def main() -> None:
    """Write the file."""
    valid = []
    for name, (vector, specs) in VECTORS.items():
        shapes = SHAPES.get(name)
        for spec in specs:
            payload, decoded, residual = split(vector, spec, shapes=shapes)
            entry: dict[str, object] = {
                "name": f"{name}, {spec.name}",
                "codec": spec.name,
                "density": spec.density,
                "n": len(vector),
                "vector": as_hex(vector),
                "payload": payload.hex(),
            }
            if shapes is not None:
                entry["shapes"] = shapes
            if isinstance(decoded, Sparse):
                entry["indices"] = decoded.indices.tolist()
            valid.append(entry | {"values": as_hex(decoded.values), "residual": as_hex(residual)})
    invalid = [
        {"name": name, "n": n, "payload": payload.hex(), "reason": reason}
        for name, (n, payload, reason) in INVALID.items()
    ]
    lists = [
        f' "{key}": [\n' + ",\n".join("  " + json.dumps(entry) for entry in entries) + "\n ]"
        for key, entries in (("valid", valid), ("invalid", invalid))
    ]
    PATH.write_text("{\n" + ",\n".join(lists) + "\n}\n", encoding="utf-8")


def as_hex(values: Vector) -> str:
    """Little-endian float32, four bytes after four bytes."""
    return values.astype("<f4").tobytes().hex()


if __name__ == "__main__":
    main()
