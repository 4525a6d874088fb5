"""The protocol's codecs on vectors that are worked on in place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.codecs.model import decode_snapshot, encode_update
from fedmq_protocol.codecs.registry import CodecSpec
from fedmq_protocol.schema import TensorSchema

Vector = NDArray[np.float32]


def encode_update_inplace(total: Vector, buffers: Vector, schema: TensorSchema, spec: CodecSpec) -> bytes:
    """Encode p = delta + residual; what is not sent stays in it.

    Args:
        total: float32[num_parameters]; the new residual afterwards.
        buffers: float32[num_buffers], their change.
        schema: the model's.
        spec: codec and density.
    """
    whole = np.concatenate([total, np.zeros(schema.num_frozen, np.float32), buffers])
    payload, left = encode_update(whole, None, schema, spec)
    total[:] = left
    return payload


def decode_snapshot_into(data: bytes | memoryview, schema: TensorSchema, out: Vector) -> None:
    """Decode a snapshot into float32[schema.size].

    Raises:
        CodecError: the blob is damaged or of another schema.
    """
    out[:] = decode_snapshot(bytes(data), schema)
