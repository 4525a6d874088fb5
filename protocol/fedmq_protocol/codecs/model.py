"""Snapshots, deltas and updates of a whole model: what the blobs of the protocol hold.

A model is a flat float32 vector of `schema.size` elements: parameters, then frozen tensors, then buffers.

    snapshot = msgpack [codec bytes of parameters and frozen together, codec bytes of the buffers]
    delta    = msgpack [codec bytes of (target - replica) of the parameters, codec bytes of the buffers' new values]
    update   = msgpack [codec bytes of (change + residual) of the parameters, codec bytes of the buffers' change]

Buffers are few and are always coded as `float32`. Frozen tensors travel in snapshots alone. A run that starts from a
seed has a recipe (`seeded`) in its first snapshot instead of weights; later ones are in the codec that it names.

Applying a delta is normative to the bit: one float32 addition an element, subnormal results and -0 become +0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import seeded
from fedmq_protocol.codecs.container import codec_name, decode, encode, split
from fedmq_protocol.codecs.decoded import Decoded, Dense
from fedmq_protocol.codecs.registry import CodecSpec
from fedmq_protocol.codecs.seeded import Recipe, Segment
from fedmq_protocol.errors import CodecError
from fedmq_protocol.schema import TensorSchema

Vector = NDArray[np.float32]

_FLOAT32: Final = CodecSpec("float32")
_PARTS: Final = 2


@dataclass(frozen=True)
class DecodedUpdate:
    """An update as the coordinator sees it: a sparse or dense change of the parameters, and one of the buffers."""

    parameters: Decoded
    buffers: Vector

    def norm(self) -> float:
        """L2 norm over parameters and buffers, in float64."""
        buffers = self.buffers.astype(np.float64)
        return float(np.sqrt(self.parameters.norm() ** 2 + float(buffers @ buffers)))


def encode_snapshot(vector: Vector, schema: TensorSchema, codec: str = "int8") -> tuple[bytes, Vector]:
    """Encode a whole model.

    Returns:
        The blob, and the replica: what everybody who decodes it holds, float32[size].
    """
    _check_size(vector, schema)
    cut = schema.num_parameters + schema.num_frozen
    blob: bytes = msgpack.packb(
        [encode(vector[:cut], CodecSpec(codec))[0], encode(vector[cut:], _FLOAT32)[0]]
    )
    return blob, decode_snapshot(blob, schema)


def decode_snapshot(data: bytes, schema: TensorSchema) -> Vector:
    """The replica, float32[size].

    Raises:
        CodecError: the blob is damaged or of another schema.
    """
    weights, buffers = _unpack(data)
    cut = schema.num_parameters + schema.num_frozen
    recipe = _recipe(weights, cut) if seeded.is_seeded(weights) else None
    replica = np.empty(schema.size, dtype=np.float32)
    if recipe is None:
        replica[:cut] = decode(weights, cut).to_dense()
    else:
        seeded.generate(recipe, replica[:cut])
    replica[cut:] = _decode_buffers(buffers, schema)
    return replica


def encode_seeded(
    seed: int, segments: Sequence[Segment], buffers: Vector, schema: TensorSchema, rebase: str = "int8"
) -> bytes:
    """The first snapshot of a run that starts from a seed.

    Args:
        seed: 0..2**64 - 1.
        segments: for parameters and frozen tensors together.
        buffers: float32[num_buffers], which travel as they are.
        schema: the model's.
        rebase: the dense codec that later snapshots, and with them rebases, are in.

    Raises:
        ValueError: the segments are for another model, or cannot be written.
        CodecError: `rebase` is no dense codec.
    """
    tag = _dense_tag(rebase)
    recipe = Recipe(seed, tuple(segments), tag)
    if recipe.n != schema.num_parameters + schema.num_frozen or len(buffers) != schema.num_buffers:
        msg = f"a recipe for {recipe.n} weights and {len(buffers)} elements of buffers is for another model"
        raise ValueError(msg)
    blob: bytes = msgpack.packb([seeded.encode(recipe), encode(buffers, _FLOAT32)[0]])
    return blob


def requantise(replica: Vector, schema: TensorSchema, codec: str = "int8") -> Vector:
    """What every holder does at a rebase: the replica becomes exactly what its snapshot decodes to."""
    return encode_snapshot(replica, schema, codec)[1]


def encode_delta(target: Vector, replica: Vector, schema: TensorSchema, spec: CodecSpec) -> bytes:
    """Encode the way from `replica` towards `target`; what is left stays in their difference."""
    _check_size(target, schema)
    _check_size(replica, schema)
    cut, tail = schema.num_parameters, schema.num_parameters + schema.num_frozen
    change = target[:cut] - replica[:cut]
    blob: bytes = msgpack.packb([encode(change, spec)[0], encode(target[tail:], _FLOAT32)[0]])
    return blob


def apply_delta(replica: Vector, data: bytes, schema: TensorSchema) -> None:
    """Advance `replica` in place by one version.

    Raises:
        CodecError: the blob is damaged or of another schema; the replica is as it was.
    """
    parameters, buffers = _unpack(data)
    change = decode(parameters, schema.num_parameters)
    values = _decode_buffers(buffers, schema)
    change.apply_to(replica[: schema.num_parameters])
    replica[schema.num_parameters + schema.num_frozen :] = values


def encode_update(
    delta: Vector, residual: Vector | None, schema: TensorSchema, spec: CodecSpec
) -> tuple[bytes, Vector]:
    """Encode a device's update with error feedback: sent + new residual = delta + residual, bit for bit.

    Args:
        delta: float32[size], the model after training minus the model before; its frozen part is not looked at.
        residual: float32[num_parameters], what earlier updates did not send; None for none.
        schema: the model's.
        spec: codec and density.

    Returns:
        The blob, and the new residual, float32[num_parameters].
    """
    _check_size(delta, schema)
    parameters = delta[: schema.num_parameters]
    total = parameters if residual is None else parameters + residual
    coded, _, left = split(np.ascontiguousarray(total, dtype=np.float32), spec)
    buffers = delta[schema.num_parameters + schema.num_frozen :]
    blob: bytes = msgpack.packb([coded, encode(np.ascontiguousarray(buffers), _FLOAT32)[0]])
    return blob, left


def decode_update(data: bytes, schema: TensorSchema, *, max_kept: int | None = None) -> DecodedUpdate:
    """Decode what a device sent. All values are finite.

    Args:
        data: the blob.
        schema: the model's.
        max_kept: the most parameters that a sparse update may hold, where that is known; it bounds memory.

    Raises:
        CodecError: the blob is damaged, hostile, or of another schema.
    """
    parameters, buffers = _unpack(data)
    return DecodedUpdate(
        decode(parameters, schema.num_parameters, max_kept=max_kept), _decode_buffers(buffers, schema)
    )


def replica_sha256(replica: Vector) -> bytes:
    """SHA-256 over the float32 values, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(replica, dtype="<f4").data).digest()


def snapshot_codec(data: bytes) -> str:
    """The name of the codec that a rebase uses: that of the snapshot's weights, or the one that a recipe names.

    Raises:
        CodecError: no snapshot, or one of an unknown codec.
    """
    weights, _ = _unpack(data)
    if seeded.is_seeded(weights):
        return codec_name(bytes([seeded.rebase_tag(weights)]))
    return codec_name(weights)


def is_seeded(data: bytes) -> bool:
    """Whether a snapshot holds a recipe instead of weights.

    Raises:
        CodecError: no snapshot.
    """
    return seeded.is_seeded(_unpack(data)[0])


def _recipe(weights: bytes, n: int) -> Recipe:
    recipe = seeded.decode(weights, n)
    _dense_tag(codec_name(bytes([recipe.rebase])))
    return recipe


def _dense_tag(name: str) -> int:
    spec = CodecSpec(name)
    if spec.sparse:
        msg = f"a snapshot cannot be in {name}"
        raise CodecError(msg, reason="unknown-codec")
    return spec.codec.values


def _decode_buffers(data: bytes, schema: TensorSchema) -> Vector:
    values = decode(data, schema.num_buffers)
    if not isinstance(values, Dense):
        msg = "buffers must be dense"
        raise CodecError(msg)
    return values.values


def _unpack(data: bytes) -> tuple[bytes, bytes]:
    try:
        parts = msgpack.unpackb(data, max_array_len=_PARTS, max_map_len=0, max_ext_len=0, max_str_len=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        msg = "a model's blob is a msgpack array of two byte strings"
        raise CodecError(msg) from error
    match parts:
        case [bytes() as weights, bytes() as buffers]:
            return weights, buffers
        case _:
            msg = "a model's blob is a msgpack array of two byte strings"
            raise CodecError(msg)


def _check_size(vector: Vector, schema: TensorSchema) -> None:
    if vector.shape != (schema.size,):
        msg = f"expected float32[{schema.size}], got an array of shape {vector.shape}"
        raise ValueError(msg)
