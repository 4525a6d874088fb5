"""Vectors of parameters as bytes: top-k with error feedback for updates, blocks for snapshots, and what bounds them.

The names here are all that others need. `encode`, `split` and `decode` do the work for a `CodecSpec`; what comes out
is a `Sparse` or a `Dense`, with the same operations.
"""

from __future__ import annotations

from fedmq_protocol.codecs.container import CODECS, CodecSpec, decode, encode, max_encoded_bytes, names, split
from fedmq_protocol.codecs.decoded import Decoded, Dense, Sparse, flushed
from fedmq_protocol.codecs.topk import select

__all__ = [
    "CODECS",
    "CodecSpec",
    "Decoded",
    "Dense",
    "Sparse",
    "decode",
    "encode",
    "flushed",
    "max_encoded_bytes",
    "names",
    "select",
    "split",
]
