"""Error feedback: what an update did not carry waits in the residual, and is tried again with the next.

    p = delta + e,   send C(p),   e' = p - C(p)          (Seide et al. 2014; Karimireddy et al. 2019, alg. 2)

`encode_update` of the protocol's codecs keeps sent + e' = p to the bit. Here: the bound on e, the density of a
device's first updates, and the residual's file. The bound is applied to the old residual, before p is formed, so the
identity holds for every update; the length of what it takes away is reported.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.durable import write_file
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_protocol.codecs.decoded import Dense
from fedmq_protocol.messages import UploadSettings

Vector = NDArray[np.float32]

_MAGIC: Final = b"fedmq residual 1\n"
_DIGEST_BYTES: Final = 32  # SHA-256 of all that follows it
_LENGTH: Final = struct.Struct(">I")  # of the owner


@dataclass(frozen=True)
class Owner:
    """Whose residual it is; `""` where that is not known.

    Attributes:
        schema_hash: of the model that it belongs to.
        run: the run in which it arose.
        device: the device on which.
    """

    schema_hash: str
    run: str = ""
    device: str = ""

    def difference(self, other: Owner) -> str:
        """In what another owner differs, or ""."""
        for what in ("schema_hash", "run", "device"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine and theirs and mine != theirs:
                return f"{what.replace('_', ' ')} {theirs}, not {mine}"
        return ""


def capped(residual: Vector, delta_norm: float, cap: float) -> tuple[Vector, float]:
    """Scale the residual down to at most `cap * delta_norm`.

    Returns:
        The residual, itself where it is short enough, and the length of what was scaled away.
    """
    length = Dense(residual).norm()
    bound = cap * delta_norm
    if length <= bound:
        return residual, 0.0
    factor = bound / length
    return residual * np.float32(factor), length * (1.0 - factor)


def density(upload: UploadSettings, updates_done: int) -> float:
    """The share of the parameters that this update carries: from `first_density` geometrically down to `density`.

    Args:
        upload: the run's settings.
        updates_done: how many updates of this run the device has made before.
    """
    if updates_done >= upload.anneal_updates:
        return upload.density
    way = updates_done / upload.anneal_updates
    return float(upload.first_density ** (1.0 - way) * upload.density**way)


def write_residual(path: Path, residual: Vector, owner: Owner) -> None:
    """Write float32[num_parameters] with a checksum, and the name of its owner."""
    who = msgpack.packb([owner.schema_hash, owner.run, owner.device])
    values = np.ascontiguousarray(residual, dtype="<f4").data.cast("B")
    head = _LENGTH.pack(len(who)) + who
    digest = hashlib.sha256(head)
    digest.update(values)
    write_file(path, [_MAGIC, digest.digest(), head, values])


def read_residual(path: Path, num_parameters: int, owner: Owner) -> tuple[Vector, Owner]:
    """Read what `write_residual` wrote.

    Returns:
        The residual, float32[num_parameters], and whose it is.

    Raises:
        TrainerError: `bad-residual`; it is missing, torn, or somebody else's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrainerError("bad-residual", f"{path} cannot be read: {error.strerror}") from None
    start = len(_MAGIC) + _DIGEST_BYTES
    body = memoryview(data)[start:]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
        raise TrainerError("bad-residual", f"{path} is torn, or no residual: its checksum does not fit")
    (length,) = _LENGTH.unpack_from(body)  # what the checksum vouches for was written by write_residual
    written = Owner(*msgpack.unpackb(body[_LENGTH.size : _LENGTH.size + length]))
    difference = owner.difference(written)
    if difference:
        raise TrainerError("bad-residual", f"{path} belongs to {difference}")
    values = np.frombuffer(body[_LENGTH.size + length :], dtype="<f4").astype(np.float32)  # a copy, writable
    if len(values) != num_parameters:
        raise TrainerError("bad-residual", f"{path} holds {len(values)} values, not {num_parameters}")
    return values, written
