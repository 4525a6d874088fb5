"""Snapshots, deltas and updates of a whole model: what the blobs of the protocol hold.

A model is a flat float32 vector of `schema.size` elements: parameters, then frozen tensors, then buffers.

    snapshot = msgpack [codec bytes of parameters and frozen together, codec bytes of the buffers]
    delta    = msgpack [codec bytes of (target - replica) of the parameters, codec bytes of the buffers' new values]
    update   = msgpack [codec bytes of (change + residual) of the parameters, codec bytes of the buffers' change]

Vectors may be `np.memmap`s: everything goes slice by slice, and nothing of a model's length is taken beside what is
given and returned.

Buffers are few and are always coded as `float32`. Frozen tensors travel in snapshots alone. A run that starts from a
seed has a recipe (`seeded`) in its first snapshot instead of weights; later ones are in the codec that it names.

Applying a delta is normative to the bit: one float32 addition an element, subnormal results and -0 become +0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs import blob, seeded
from fedmq_protocol.codecs.container import (
    codec_name,
    decode,
    decode_into,
    decoded_slices,
    is_dense,
    leave,
    max_encoded_bytes,
    replace,
)
from fedmq_protocol.codecs.decoded import Decoded, Dense, flushed
from fedmq_protocol.codecs.dense import Coded
from fedmq_protocol.codecs.registry import CodecSpec
from fedmq_protocol.codecs.seeded import Recipe, Segment
from fedmq_protocol.codecs.slices import SLICE, Difference, parts
from fedmq_protocol.errors import CodecError
from fedmq_protocol.schema import TensorSchema

Vector = NDArray[np.float32]

_LEAST_DENSITY: Final = 1e-12  # one element of each tensor


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
    out, cut = io.BytesIO(), schema.num_parameters + schema.num_frozen
    replica = np.array(vector)
    for part, values in encode_snapshot_to(vector, schema, codec, out).sent():
        replica[part] = values
    replace(replica[cut:], blob.BUFFERS.name)
    return out.getvalue(), replica


def encode_snapshot_to(vector: Vector, schema: TensorSchema, codec: str, out: BinaryIO) -> Coded:
    """Encode a whole model, slice by slice; what it decodes to is what `requantise_inplace` makes of the vector.

    Args:
        vector: float32[size]; may be an `np.memmap`.
        schema: the model's.
        codec: of the weights, a dense one.
        out: a file that can seek, or `io.BytesIO`; the blob goes to its end.

    Returns:
        The weights, parameters and frozen tensors together, as they will be decoded.

    Raises:
        ValueError: the codec is not dense.
    """
    _check_size(vector, schema)
    spec, cut = CodecSpec(codec), schema.num_parameters + schema.num_frozen
    if spec.sparse:
        raise ValueError(f"{codec} is not dense")
    sent = blob.write(out, vector[:cut], spec, vector[cut:])
    assert isinstance(sent, Coded), "so a dense codec writes"
    return sent


def decode_snapshot(data: bytes | memoryview, schema: TensorSchema) -> Vector:
    """The replica, float32[size].

    Raises:
        CodecError: the blob is damaged or of another schema.
    """
    replica = np.empty(schema.size, dtype=np.float32)
    decode_snapshot_into(data, schema, replica)
    return replica


def decode_snapshot_into(data: bytes | memoryview, schema: TensorSchema, out: Vector) -> None:
    """Decode a snapshot slice by slice.

    Args:
        data: the blob; may be a view of a file.
        schema: the model's.
        out: float32[size], overwritten; may be an `np.memmap`. After an error it holds rubbish.

    Raises:
        CodecError: the blob is damaged or of another schema.
    """
    _check_size(out, schema)
    weights, buffers = blob.read(data)
    cut = schema.num_parameters + schema.num_frozen
    values = _decode_buffers(buffers, schema)
    if seeded.is_seeded(weights):
        seeded.generate(_recipe(weights, cut), out[:cut])
    else:
        decode_into(weights, out[:cut])
    out[cut:] = values


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
    return blob.write_payload(seeded.encode(recipe), buffers)


def requantise(replica: Vector, schema: TensorSchema, codec: str = "int8") -> Vector:
    """What every holder does at a rebase: the replica becomes exactly what its snapshot decodes to."""
    replica = np.array(replica)
    requantise_inplace(replica, schema, codec)
    return replica


def requantise_inplace(replica: Vector, schema: TensorSchema, codec: str = "int8") -> None:
    """`requantise`, slice by slice, in the vector given."""
    _check_size(replica, schema)
    cut = schema.num_parameters + schema.num_frozen
    replace(replica[:cut], codec)
    replace(replica[cut:], blob.BUFFERS.name)


def encode_delta(target: Vector, replica: Vector, schema: TensorSchema, spec: CodecSpec) -> bytes:
    """Encode the way from `replica` towards `target`; what is left stays in their difference, which is never formed."""
    _check_size(target, schema)
    _check_size(replica, schema)
    cut, tail = schema.num_parameters, schema.num_parameters + schema.num_frozen
    out = io.BytesIO()
    blob.write(out, Difference(target[:cut], replica[:cut]), spec, target[tail:], shapes=schema.shapes)
    return out.getvalue()


def apply_delta(replica: Vector, data: bytes | memoryview, schema: TensorSchema) -> None:
    """Advance `replica` in place by one version. A long dense delta is decoded twice, by slices: to check, to apply.

    Raises:
        CodecError: the blob is damaged or of another schema; the replica is as it was.
    """
    parameters, buffers = blob.read(data)
    values = _decode_buffers(buffers, schema)
    target = np.asarray(replica)[: schema.num_parameters]
    if len(target) > SLICE and is_dense(parameters):
        for _ in decoded_slices(parameters, len(target)):
            pass
        for part, change in decoded_slices(parameters, len(target)):
            target[part] = flushed(target[part] + change)
    else:
        decode(parameters, len(target), shapes=schema.shapes).apply_to(target)
    replica[schema.num_parameters + schema.num_frozen :] = values


def encode_update(
    delta: Vector,
    residual: Vector | None,
    schema: TensorSchema,
    spec: CodecSpec,
    *,
    rng: np.random.Generator | None = None,
) -> tuple[bytes, Vector]:
    """Encode a device's update with error feedback: sent + new residual = delta + residual, bit for bit.

    Args:
        delta: float32[size], the model after training minus the model before; its frozen part is not looked at.
        residual: float32[num_parameters], what earlier updates did not send; None for none.
        schema: the model's.
        spec: codec and density.
        rng: the stream of chance, where the spec asks for it.

    Returns:
        The blob, and the new residual, float32[num_parameters].
    """
    _check_size(delta, schema)
    parameters = delta[: schema.num_parameters]
    total = parameters.copy() if residual is None else parameters + residual
    buffers = delta[schema.num_parameters + schema.num_frozen :]
    return encode_update_inplace(total, buffers, schema, spec, rng=rng), total


def encode_update_inplace(
    total: Vector,
    buffers: Vector,
    schema: TensorSchema,
    spec: CodecSpec,
    *,
    rng: np.random.Generator | None = None,
) -> bytes:
    """Encode a device's update with error feedback, in place: `total` becomes what was not sent.

    Args:
        total: float32[num_parameters], change + old residual, writable; may be an `np.memmap`. After an error it is as
            it was.
        buffers: float32[num_buffers], the buffers' change.
        schema: the model's.
        spec: codec and density; a budget of bytes is that of the blob.
        rng: the stream of chance, where the spec asks for it.

    Returns:
        The blob. Beside it and `total` about 100 bytes are taken for each element sent, and a few megabytes.

    Raises:
        ValueError: a vector has another length, or is not finite; or the budget is too small for any update.
    """
    out = io.BytesIO()
    encode_update_to(total, buffers, schema, spec, out, rng=rng)
    return out.getvalue()


def encode_update_to(
    total: Vector,
    buffers: Vector,
    schema: TensorSchema,
    spec: CodecSpec,
    out: BinaryIO,
    *,
    rng: np.random.Generator | None = None,
) -> None:
    """`encode_update_inplace`, into a file: an update need not fit into memory, such as a dense one.

    Args:
        total: as there.
        buffers: as there.
        schema: as there.
        spec: as there.
        out: a file that can seek, or `io.BytesIO`; the blob goes to its end.
        rng: as there.

    Raises:
        ValueError: as there.
    """
    if (total.shape, buffers.shape) != ((schema.num_parameters,), (schema.num_buffers,)):
        raise ValueError(f"{total.shape} and {buffers.shape} are not this schema's parameters and buffers")
    if spec.max_bytes is not None:
        spec = dataclasses.replace(spec, max_bytes=max(1, spec.max_bytes - blob.beside_weights(buffers)))
    total = np.asarray(total)
    sent = blob.write(out, total, spec, buffers, shapes=schema.shapes, rng=rng)
    leave(total, sent)


def least_update_bytes(schema: TensorSchema, spec: CodecSpec) -> int:
    """A budget of bytes that is enough for some update, whatever it holds.

    Args:
        schema: the model's.
        spec: the codec; its density and budget do not matter.
    """
    sparse = dataclasses.replace(spec, density=_LEAST_DENSITY, max_bytes=None)
    weights = max_encoded_bytes(schema.num_parameters, sparse)
    return weights + blob.most_beside_weights(schema.num_buffers)


def decode_update(
    data: bytes | memoryview, schema: TensorSchema, *, max_kept: int | None = None
) -> DecodedUpdate:
    """Decode what a device sent. All values are finite.

    Args:
        data: the blob.
        schema: the model's.
        max_kept: the most parameters that a sparse update may hold, where that is known; it bounds memory.

    Raises:
        CodecError: the blob is damaged, hostile, or of another schema.
    """
    parameters, buffers = blob.read(data)
    change = decode(parameters, schema.num_parameters, shapes=schema.shapes, max_kept=max_kept)
    return DecodedUpdate(change, _decode_buffers(buffers, schema))


def add_update(total: Vector, data: bytes | memoryview, schema: TensorSchema) -> None:
    """`total` += what an update carries for the parameters, a dense one slice by slice.

    Args:
        total: float32[num_parameters], writable; may be an `np.memmap`. After an error it holds rubbish.
        data: the blob; may be a view of a file.
        schema: the model's.

    Raises:
        CodecError: the blob is damaged, hostile, or of another schema.
    """
    parameters, buffers = blob.read(data)
    _decode_buffers(buffers, schema)
    total = np.asarray(total)
    if is_dense(parameters):
        for part, values in decoded_slices(parameters, len(total)):
            total[part] += values
    else:
        decode(parameters, len(total), shapes=schema.shapes).add_to(total)


def replica_sha256(replica: Vector) -> bytes:
    """SHA-256 over the float32 values, little-endian."""
    digest = hashlib.sha256()
    for part in parts(len(replica)):
        digest.update(np.ascontiguousarray(replica[part], dtype="<f4").data)
    return digest.digest()


def snapshot_codec(data: bytes | memoryview) -> str:
    """The name of the codec that a rebase uses: that of the snapshot's weights, or the one that a recipe names.

    Raises:
        CodecError: no snapshot, or one of an unknown codec.
    """
    weights, _ = blob.read(data)
    if seeded.is_seeded(weights):
        return codec_name(bytes([seeded.rebase_tag(weights)]))
    return codec_name(weights)


def is_seeded(data: bytes | memoryview) -> bool:
    """Whether a snapshot holds a recipe instead of weights.

    Raises:
        CodecError: no snapshot.
    """
    return seeded.is_seeded(blob.read(data)[0])


def _recipe(weights: memoryview, n: int) -> Recipe:
    recipe = seeded.decode(weights, n)
    _dense_tag(codec_name(bytes([recipe.rebase])))
    return recipe


def _dense_tag(name: str) -> int:
    spec = CodecSpec(name)
    if spec.sparse:
        msg = f"a snapshot cannot be in {name}"
        raise CodecError(msg, reason="unknown-codec")
    return spec.codec.values


def _decode_buffers(data: memoryview, schema: TensorSchema) -> Vector:
    if data == blob.NO_BUFFERS and not schema.num_buffers:
        return np.empty(0, np.float32)
    values = decode(data, schema.num_buffers)
    if not isinstance(values, Dense):
        msg = "buffers must be dense"
        raise CodecError(msg)
    return values.values


def _check_size(vector: Vector, schema: TensorSchema) -> None:
    if vector.shape != (schema.size,):
        msg = f"expected float32[{schema.size}], got an array of shape {vector.shape}"
        raise ValueError(msg)
