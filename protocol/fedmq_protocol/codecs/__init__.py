"""Vectors of parameters as bytes: top-k with error feedback for updates, blocks for snapshots, and what bounds them.

The names here are all that others need. `encode`, `split` and `decode` do the work for a `CodecSpec`; what comes out
is a `Sparse` or a `Dense`, with the same operations.
"""

from __future__ import annotations

from fedmq_protocol.codecs.container import (
    decode,
    decode_into,
    decoded_slices,
    encode,
    encode_to,
    max_accepted_bytes,
    max_encoded_bytes,
    replace,
    split,
    split_to,
)
from fedmq_protocol.codecs.decoded import Decoded, Dense, Sparse, flushed
from fedmq_protocol.codecs.model import (
    DecodedUpdate,
    add_update,
    apply_delta,
    decode_snapshot,
    decode_snapshot_into,
    decode_update,
    encode_delta,
    encode_seeded,
    encode_snapshot,
    encode_snapshot_to,
    encode_update,
    encode_update_inplace,
    encode_update_to,
    is_seeded,
    least_update_bytes,
    replica_sha256,
    requantise,
    requantise_inplace,
    snapshot_codec,
)
from fedmq_protocol.codecs.registry import (
    CODECS,
    CodecSpec,
    Rounding,
    baseline,
    check_coders,
    names,
    optional_coders,
    unversioned,
    versioned,
)
from fedmq_protocol.codecs.slices import Difference, Source
from fedmq_protocol.codecs.topk import select

__all__ = [
    "CODECS",
    "CodecSpec",
    "Decoded",
    "DecodedUpdate",
    "Dense",
    "Difference",
    "Rounding",
    "Source",
    "Sparse",
    "add_update",
    "apply_delta",
    "baseline",
    "check_coders",
    "decode",
    "decode_into",
    "decode_snapshot",
    "decode_snapshot_into",
    "decode_update",
    "decoded_slices",
    "encode",
    "encode_delta",
    "encode_seeded",
    "encode_snapshot",
    "encode_snapshot_to",
    "encode_to",
    "encode_update",
    "encode_update_inplace",
    "encode_update_to",
    "flushed",
    "is_seeded",
    "least_update_bytes",
    "max_accepted_bytes",
    "max_encoded_bytes",
    "names",
    "optional_coders",
    "replace",
    "replica_sha256",
    "requantise",
    "requantise_inplace",
    "select",
    "snapshot_codec",
    "split",
    "split_to",
    "unversioned",
    "versioned",
]
