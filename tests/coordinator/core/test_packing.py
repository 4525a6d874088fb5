"""Vectors in the journal: a payload of the codec `float32`, whoever wrote it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq_coordinator.core.blobs import MemoryBlob, MemoryShelf
from fedmq_coordinator.core.packing import Vector, pack_vector, unpack_vector
from fedmq_protocol.codecs import CodecSpec, decode, encode
from fedmq_protocol.errors import StoreError

finite = hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(finite)
def test_the_codec_reads_what_is_packed_and_the_other_way_round(vector: Vector) -> None:
    blob = pack_vector(vector, MemoryShelf())
    expected = decode(blob.data, len(vector)).to_dense()
    for written in (blob, MemoryBlob(encode(vector, CodecSpec("float32"))[0])):
        out = np.full(len(vector), np.nan, dtype=np.float32)
        unpack_vector(written, out)
        assert out.tobytes() == expected.tobytes()


def test_a_compressed_one_of_an_earlier_version_is_read() -> None:
    vector = np.repeat(np.array([1.5, 2.5], dtype=np.float32), 50_000)
    data = encode(vector, CodecSpec("float32"))[0]
    assert len(data) < vector.nbytes // 10
    out = np.empty_like(vector)
    unpack_vector(MemoryBlob(data), out)
    assert out.tobytes() == vector.tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4],
        lambda data: data + b"1234",
        lambda data: data[:3],
        lambda data: b"\x02" + data[1:],
        lambda data: data[:5] + b"\x07" + data[6:],
        lambda data: data[:5] + b"\x01" + data[6:],
        lambda _: b"",
    ],
)
def test_what_is_damaged_is_said(damage: object) -> None:
    data = pack_vector(np.ones(100, dtype=np.float32), MemoryShelf()).data
    with pytest.raises(StoreError, match="a vector in the journal"):
        unpack_vector(MemoryBlob(damage(data)), np.empty(100, dtype=np.float32))  # type: ignore[operator]
