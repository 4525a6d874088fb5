"""Applying what was decoded: float32, elementwise, and flushed where it must be the same on everyone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import CodecSpec, Decoded, Dense, Sparse, decode, encode, flushed
from tests.protocol.codecs.vectors_for_tests import bits, hard_vectors

Vector = NDArray[np.float32]


def sparse() -> Sparse:
    return Sparse(5, np.array([1, 4], np.uint32), np.array([0.1, -2.0], np.float32))


def test_sparse_and_dense_agree() -> None:
    one: Decoded = sparse()
    other: Decoded = Dense(one.to_dense())
    assert (one.n, one.nnz) == (other.n, other.nnz) == (5, 2)
    assert one.norm() == other.norm() == pytest.approx(np.hypot(np.float32(0.1), 2.0), rel=1e-12)
    first, second = np.ones(5, np.float32), np.ones(5, np.float32)
    one.add_to(first, 0.3)
    other.add_to(second, 0.3)
    assert first.tolist() == second.tolist()
    assert first[1] == np.float32(1) + np.float32(0.3) * np.float32(0.1)


@given(st.floats(0, 4, width=32), st.integers(0, 2**32 - 1))
def test_adding_is_a_multiplication_and_an_addition_in_float32(weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(70_000).astype(np.float32)  # more than one slice
    acc = rng.standard_normal(70_000).astype(np.float32)
    expected = acc + np.float32(weight) * values
    Dense(values).add_to(acc, weight)
    assert np.array_equal(acc, expected)


@given(hard_vectors(), hard_vectors())
def test_a_replica_never_holds_a_subnormal_or_a_negative_zero(start: Vector, change: Vector) -> None:
    n = min(len(start), len(change))
    for spec in (CodecSpec("topk-log4", 0.5), CodecSpec("float32")):
        payload, decoded = encode(change[:n] / np.float32(4), spec)
        replica = flushed(start[:n] / np.float32(4))
        expected = replica + decoded.to_dense()
        decode(payload, n).apply_to(replica)
        assert np.all((replica == 0) | (np.abs(replica) >= 2.0**-126))
        assert not np.any(bits(replica) == 0x8000_0000)
        assert np.all((replica == expected) | (np.abs(expected) < 2.0**-126))


def test_only_what_was_sent_is_touched() -> None:
    replica = np.full(5, -0.0, np.float32)
    sparse().apply_to(replica)
    assert np.signbit(replica).tolist() == [True, False, True, True, True]


def test_norms_do_not_overflow() -> None:
    assert Dense(np.full(100_000, 3e38, np.float32)).norm() == pytest.approx(3e38 * 100_000**0.5, rel=1e-6)


def test_a_wrong_target_raises() -> None:
    for acc in (np.zeros(4, np.float32), np.zeros(5), np.zeros((5, 1), np.float32)):
        for decoded in (sparse(), Dense(sparse().to_dense())):
            with pytest.raises(ValueError, match="expected float32"):
                decoded.add_to(acc, 1.0)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="expected float32"):
                decoded.apply_to(acc)  # type: ignore[arg-type]


def test_what_was_decoded_is_read_only() -> None:
    for name in ("topk-log4", "int8", "float32"):
        payload, sent = encode(np.ones(100, np.float32), CodecSpec(name, 0.1))
        for decoded in (sent, decode(payload, 100)):
            with pytest.raises(ValueError, match="read-only"):
                decoded.values[0] = 1
            decoded.to_dense()[0] = 1
