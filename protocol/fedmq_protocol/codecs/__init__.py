"""Vectors of parameters as bytes: top-k with error feedback for updates, blocks for snapshots, and what bounds them.

The names here are all that others need. `encode`, `split` and `decode` do the work for a `CodecSpec`; what comes out
is a `Sparse` or a `Dense`, with the same operations.
"""

from __future__ import annotations

from fedmq_protocol.codecs.container import decode, encode, max_encoded_bytes, split
from fedmq_protocol.codecs.decoded import Decoded, Dense, Sparse, flushed
from fedmq_protocol.codecs.model import (
    DecodedUpdate,
    apply_delta,
    decode_snapshot,
    decode_update,
    encode_delta,
    encode_seeded,
    encode_snapshot,
    encode_update,
    is_seeded,
    replica_sha256,
    requantise,
    snapshot_codec,
)
from fedmq_protocol.codecs.registry import (
    CODECS,
    CodecSpec,
    check_coders,
    names,
    optional_coders,
    unversioned,
    versioned,
)
from fedmq_protocol.codecs.topk import select

__all__ = [
    "CODECS",
    "CodecSpec",
    "Decoded",
    "DecodedUpdate",
    "Dense",
    "Sparse",
    "apply_delta",
    "check_coders",
    "decode",
    "decode_snapshot",
    "decode_update",
    "encode",
    "encode_delta",
    "encode_seeded",
    "encode_snapshot",
    "encode_update",
    "flushed",
    "is_seeded",
    "max_encoded_bytes",
    "names",
    "optional_coders",
    "replica_sha256",
    "requantise",
    "select",
    "snapshot_codec",
    "split",
    "unversioned",
    "versioned",
]
