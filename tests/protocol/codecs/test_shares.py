"""A share of the whole or of each tensor, a budget of bytes, and masks that a seed stands for."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import (
    CodecSpec,
    Difference,
    Sparse,
    decode,
    decode_update,
    encode,
    encode_update,
    least_update_bytes,
    max_encoded_bytes,
    split,
)
from fedmq_protocol.codecs.budget import TooFewBytesError
from fedmq_protocol.codecs.randk import indices
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs.test_model import NP, SCHEMA, vector

Vector = NDArray[np.float32]

TENSORS = st.lists(st.integers(0, 400), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 64)
SPARSE = st.sampled_from(["topk-log4", "topk-sign", "topk-int8", "randk-int8", "randk-int4", "randk-float32"])


def uneven(sizes: list[int], seed: int) -> Vector:
    """Tensors whose magnitudes differ by orders."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=size) * 10.0 ** rng.integers(-5, 5) for size in sizes]).astype(
        np.float32
    )


@given(TENSORS, st.sampled_from([1e-6, 0.01, 0.1, 0.3, 1.0]), st.integers(0, 99))
def test_every_tensor_gives_its_share(sizes: list[int], density: float, seed: int) -> None:
    p = uneven(sizes, seed)
    spec = CodecSpec("topk-int8", density, tensors=tuple(sizes))
    payload, decoded, residual = split(p, spec)
    assert np.array_equal(decoded.to_dense() + residual, p)
    assert len(payload) <= max_encoded_bytes(len(p), spec)
    assert decode(payload, len(p), max_kept=spec.kept(len(p))).nnz == decoded.nnz
    if not isinstance(decoded, Sparse):
        return
    start, expected = 0, []
    for size in sizes:  # by sorting, tensor by tensor; ties cannot be among these numbers
        k = min(size, max(1, ceil(Fraction(str(density)) * size)))
        expected += sorted(start + np.argsort(-np.abs(p[start : start + size]), kind="stable")[:k])
        start += size
    assert spec.kept(len(p)) == len(expected)
    assert set(decoded.indices.tolist()) <= set(expected), "a value code may leave out what is too small"


def test_each_tensor_is_among_the_sent_however_small_its_changes() -> None:
    sizes = [5000, 100, 30, 1]
    p = np.concatenate([np.full(size, 10.0 ** -(4 * place)) for place, size in enumerate(sizes)]).astype(
        np.float32
    )
    whole, _ = encode(p, CodecSpec("topk-int8", 0.01))
    each, decoded = encode(p, CodecSpec("randk-float32", 0.01, tensors=tuple(sizes), seed=1))
    assert isinstance(decoded, Sparse)
    assert decoded.nnz == 50 + 1 + 1 + 1
    assert len(whole) < len(each)
    bounds = np.cumsum(sizes)
    kept = [0.01, 0.01, 1 / 30, 1.0]
    spec = CodecSpec("topk-log4", 0.01, tensors=tuple(sizes))
    assert spec.kept(len(p)) == sum(round(k * size) for k, size in zip(kept, sizes, strict=True))
    assert bounds[-1] == len(p)


def test_a_difference_that_is_never_formed_is_chosen_from_like_an_array() -> None:
    sizes = (3000, 40_000, 77)
    one, other = uneven(list(sizes), 1), uneven(list(sizes), 2)
    spec = CodecSpec("topk-log4", 0.02, tensors=sizes)
    assert encode(Difference(one, other), spec)[0] == encode(one - other, spec)[0]


def test_tensors_must_make_the_vector() -> None:
    with pytest.raises(ValueError, match="vector of 100"):
        encode(np.ones(100, np.float32), CodecSpec("topk-log4", 0.1, tensors=(50, 49)))


@settings(max_examples=150)
@given(
    st.integers(65, 4000),
    st.integers(1, 6000),
    SPARSE,
    st.booleans(),
    st.integers(0, 99),
)
def test_a_budget_is_never_exceeded(n: int, budget: int, name: str, per_tensor: bool, seed: int) -> None:  # noqa: FBT001
    p = uneven([n // 3, n - n // 3], seed)
    tensors = (n // 3, n - n // 3) if per_tensor else ()
    spec = CodecSpec(name, max_bytes=budget, tensors=tensors, seed=3)
    if budget < max_encoded_bytes(n, CodecSpec(name, 1e-12, tensors=tensors)):
        with contextlib.suppress(TooFewBytesError):
            assert len(split(p, spec)[0]) <= budget
        return
    payload, decoded, residual = split(p, spec)
    assert len(payload) <= budget
    assert len(payload) <= max_encoded_bytes(n, spec)
    assert np.array_equal(decoded.to_dense() + residual, p)
    assert np.array_equal(decode(payload, n, max_kept=spec.kept(n)).to_dense(), decoded.to_dense())


@pytest.mark.parametrize("name", ["topk-log4", "topk-sign", "topk-int8"])
@pytest.mark.parametrize("budget", [300, 3_000, 20_000])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_a_budget_is_used_up(name: str, budget: int, per_tensor: bool) -> None:  # noqa: FBT001
    """Of what would fit, nearly all is sent: a per cent more elements, and it would not fit, or another guess would."""
    rng = np.random.default_rng(budget)
    sizes = (150_000, 40_000, 10_000)
    p = (rng.normal(size=200_000) * np.exp(rng.normal(size=200_000))).astype(np.float32)
    payload, decoded = encode(p, CodecSpec(name, max_bytes=budget, tensors=sizes if per_tensor else ()))
    assert len(payload) <= budget
    if name == "topk-sign" and budget > 10_000:
        return  # of numbers with so long a tail it leaves out what one magnitude cannot stand for
    assert 0.97 * budget < len(payload)
    by_density, _ = encode(
        p, CodecSpec(name, round(1.06 * decoded.nnz / len(p), 9), tensors=sizes if per_tensor else ())
    )
    assert name == "topk-sign" or len(by_density) > budget


def test_what_costs_next_to_nothing_is_taken_as_it_is_sent() -> None:
    p = np.zeros(100_000, np.float32)
    p[:50_000] = 1.0  # a bit of indices each, and signs that compress to nothing
    spec = CodecSpec("topk-sign", max_bytes=500, code_ms=0)
    payload, sent = encode(p, spec)
    assert isinstance(sent, Sparse)
    assert 6 * 500 < sent.nnz <= spec.kept(len(p)) == 16 * 500
    assert np.array_equal(decode(payload, len(p), max_kept=spec.kept(len(p))).to_dense(), sent.to_dense())


def test_the_same_payload_comes_of_a_budget_as_of_the_density_that_it_picks() -> None:
    p = uneven([60_000], 7)
    payload, decoded = encode(p, CodecSpec("topk-int8", max_bytes=5_000))
    again, _ = encode(p, CodecSpec("topk-int8", decoded.nnz / len(p)))
    assert payload == again


def test_a_budget_for_dense_codecs_or_of_nothing_is_refused() -> None:
    with pytest.raises(CodecError, match="sparse"):
        CodecSpec("int8", max_bytes=1000)
    with pytest.raises(CodecError, match="budget of 0"):
        CodecSpec("topk-log4", max_bytes=0)


@given(st.integers(0, 2000), SPARSE, st.integers(0, 99))
def test_an_update_keeps_within_its_budget_buffers_included(budget: int, name: str, seed: int) -> None:
    spec = CodecSpec(name, max_bytes=budget + 1, seed=1)
    if budget + 1 < least_update_bytes(SCHEMA, spec):
        with contextlib.suppress(TooFewBytesError):
            assert len(encode_update(vector(seed), None, SCHEMA, spec)[0]) <= budget + 1
        return
    data, residual = encode_update(vector(seed), None, SCHEMA, spec)
    assert len(data) <= budget + 1
    sent = decode_update(data, SCHEMA, max_kept=spec.kept(NP)).parameters.to_dense()
    assert np.array_equal(sent + residual, vector(seed)[:NP])


@given(st.integers(1, 3000), st.sampled_from([0.001, 0.1, 0.6, 1.0]), st.integers(0, 2**64 - 1))
def test_a_masked_payload_holds_what_the_seed_says_and_loses_nothing(
    n: int, density: float, seed: int
) -> None:
    p = uneven([n], seed % 1000)
    for name in ("randk-int8", "randk-int4", "randk-float32"):
        spec = CodecSpec(name, density, seed=seed)
        payload, decoded, residual = split(p, spec)
        assert isinstance(decoded, Sparse)
        assert np.array_equal(decoded.indices, indices(seed, n, spec.kept(n)))
        assert np.array_equal(decoded.to_dense() + residual, p)
        again = decode(payload, n, max_kept=spec.kept(n))
        assert isinstance(again, Sparse)
        assert np.array_equal(again.indices, decoded.indices)
        assert np.array_equal(again.values, decoded.values)


def test_indices_cost_eight_bytes_whatever_their_number() -> None:
    p = uneven([100_000], 3)
    for density in (0.01, 0.1, 0.5):
        payload, _ = encode(p, CodecSpec("randk-float32", density, seed=1))
        assert len(payload) <= 13 + 8 + 1 + 4 * round(density * 100_000)


def test_a_masked_codec_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="seed"):
        encode(np.ones(100, np.float32), CodecSpec("randk-int8"))
