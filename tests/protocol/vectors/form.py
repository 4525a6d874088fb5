"""How the vectors are written: cases of a question and its answer, as JSON with bytes in hexadecimal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import Body, to_plain
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.signing import SigningKey

FOLDER = Path(__file__).parents[3] / "protocol" / "vectors"

Vector = NDArray[np.float32]
Plain = dict[str, Any]

COORDINATOR_PRIVATE = bytes(range(32))
DEVICE_PRIVATE = bytes(range(32, 64))
COORDINATOR_KEY = SigningKey(COORDINATOR_PRIVATE)
DEVICE_KEY = SigningKey(DEVICE_PRIVATE)
FEDERATION = "home"
DEVICE = "dev-1"


@dataclass(frozen=True)
class Case:
    """One question: `ask` with the arguments `given`, and either what it `gives` or the `error` that it ends with."""

    name: str
    ask: str
    given: Plain
    gives: Plain = field(default_factory=dict)
    error: str | None = None

    def plain(self) -> Plain:
        """As it stands in a file."""
        answer: Plain = {"gives": self.gives} if self.error is None else {"error": self.error}
        return {"name": self.name, "ask": self.ask, "given": self.given, **answer}


def floats(values: Vector) -> str:
    """float32 values as hexadecimal digits, little-endian, eight after eight."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes().hex()


def vector(text: str) -> Vector:
    """What `floats` wrote."""
    return np.frombuffer(bytes.fromhex(text), "<f4").astype(np.float32)


def entries(schema: TensorSchema) -> list[Plain]:
    """A tensor schema."""
    return [entry.model_dump(mode="json") for entry in schema.entries]


def plain_body(body: Body) -> Plain:
    """What of a body goes on the wire, byte strings as `{"hex": ...}`."""
    shown = _shown(to_plain(body))
    assert isinstance(shown, dict)
    return shown


def whole_body(body: Body) -> Plain:
    """`plain_body` with the defaults of fields that do not go on the wire, but for those that are absent by default."""
    shown = _shown(body.model_dump(exclude_none=True))
    assert isinstance(shown, dict)
    return shown


def _shown(value: object) -> object:
    match value:
        case bytes():
            return {"hex": value.hex()}
        case dict():
            return {key: _shown(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_shown(inner) for inner in value]
        case _:
            return value


def raised(error: RemoteError) -> str:
    """The word that an error is known by."""
    return error.reason


def text_of(about: str, cases: list[Case]) -> str:
    """The text of a file of cases, one to a line."""
    lines = ",\n".join("  " + json.dumps(case.plain(), ensure_ascii=True) for case in cases)
    return f'{{\n "about": {json.dumps(about)},\n "cases": [\n{lines}\n ]\n}}\n'
