"""Model versions as devices decode them, by the real codecs, each computed once however many devices do it.

Decoding is a pure function of what was held before and of the bytes: a thousand devices that take the same way to a
version share its array, and one that came another way has its own, whose hash must be the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import (
    apply_delta,
    decode_snapshot,
    encode_snapshot,
    snapshot_codec,
)
from fedmq_protocol.messages import BlobRef
from fedmq_protocol.schema import TensorSchema

Vector = NDArray[np.float32]

_KEPT: Final = 64
_ROOM_BYTES: Final = 1 << 24  # for more, where they are small


class Snapshot(NamedTuple):
    """A snapshot's bytes, and what names them."""

    data: bytes
    ref: BlobRef


@dataclass(frozen=True, eq=False)
class Replica:
    """A decoded version.

    Attributes:
        values: float32[schema.size], read only.
        codec: of the snapshot that it began with; a rebase uses it again.
        sha256: of the values.
        snapshot: at a rebase, the snapshot that it equals.
    """

    values: Vector
    codec: str
    sha256: bytes
    snapshot: Snapshot | None = None


class Replicas:
    """Decodes, and remembers.

    Args:
        schema: the model's.
    """

    def __init__(self, schema: TensorSchema) -> None:
        self._schema = schema
        self._kept = max(_KEPT, _ROOM_BYTES // (4 * schema.size + 1_024))
        self._known: OrderedDict[tuple[bytes, bytes, bool], Replica] = OrderedDict()

    def snapshot(self, data: bytes, sha256: bytes) -> Replica:
        """What a snapshot decodes to.

        Args:
            data: its bytes.
            sha256: of them.

        Raises:
            CodecError: it is damaged, or another model's.
        """
        key = b"", sha256, False
        known = self._known.get(key)
        if known is None:
            known = self._keep(key, decode_snapshot(data, self._schema), snapshot_codec(data))
        return known

    def delta(self, before: Replica, data: bytes, sha256: bytes, *, rebase: bool) -> Replica:
        """What a delta makes of a version.

        Args:
            before: the version before.
            data: the delta's bytes.
            sha256: of them.
            rebase: the result becomes what its snapshot decodes to.

        Raises:
            CodecError: it is damaged, or another model's.
        """
        key = before.sha256, sha256, rebase
        known = self._known.get(key)
        if known is None:
            values, snapshot = before.values.copy(), None
            apply_delta(values, data, self._schema)
            if rebase:
                encoded, values = encode_snapshot(values, self._schema, before.codec)
                snapshot = Snapshot(encoded, blob_ref(encoded))
            known = self._keep(key, values, before.codec, snapshot)
        return known

    def _keep(
        self, key: tuple[bytes, bytes, bool], values: Vector, codec: str, snapshot: Snapshot | None = None
    ) -> Replica:
        values.setflags(write=False)
        made = Replica(values, codec, hashlib.sha256(values.data).digest(), snapshot)
        self._known[key] = made
        if len(self._known) > self._kept:
            self._known.popitem(last=False)
        return made
