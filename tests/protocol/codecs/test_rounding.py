"""Rounding by chance: right in expectation, nothing lost, and the same however the vector is cut."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import CodecSpec, Dense, Sparse, decode, encode, split, split_to
from fedmq_protocol.codecs.blockwise import BLOCK, INT4, INT8, Blockwise
from fedmq_protocol.codecs.rounding import Stochastic
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs.vectors_for_tests import bits, hard_vectors

Vector = NDArray[np.float32]

ROUNDED = ["int8", "int4", "topk-int8", "topk-block8", "topk-block4"]


def stream(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=200)
@given(hard_vectors(), st.sampled_from(ROUNDED), st.sampled_from([0.05, 0.3, 1.0]), st.integers(0, 2**32))
def test_sent_and_residual_make_p_to_the_bit(p: Vector, name: str, density: float, seed: int) -> None:
    spec = CodecSpec(name, density, rounding="stochastic")
    payload, decoded, residual = split(p, spec, rng=stream(seed))
    sent = decoded.to_dense()
    assert np.array_equal(bits(sent + residual), bits(p + np.float32(0)))
    real = sent.astype(np.float64) + residual
    assert np.array_equal(real[np.abs(p) > 1e-30], p[np.abs(p) > 1e-30].astype(np.float64))
    again = decode(payload, len(p))
    assert np.array_equal(bits(again.to_dense()), bits(sent))


@pytest.mark.parametrize("code", [INT8, INT4], ids=["int8", "int4"])
def test_it_is_right_in_expectation(code: Blockwise) -> None:
    """Of values of half a level and more; the mean of many roundings lies within five standard errors."""
    rng, turns = stream(1), 4000
    x = rng.uniform(0.6, 1.0, BLOCK).astype(np.float32)
    x[0] = code.largest_level * np.float32(0.5)
    x[1::2] *= -1
    total = np.zeros(BLOCK)
    for _ in range(turns):
        total += code.quantise(x, Stochastic(rng))[1]
    scale = code.measure(x)[0]
    worthwhile = np.abs(x) > 0.5 * scale
    assert worthwhile.sum() > 10
    error = np.abs(total / turns - x)[worthwhile]
    assert np.all(error < 5 * 0.5 * scale / np.sqrt(turns))
    nearest = code.quantise(x)[1]
    assert np.abs(nearest - x)[worthwhile].max() > 5 * 0.5 * scale / np.sqrt(turns), "nearest is not"


def test_a_value_takes_one_of_its_two_levels() -> None:
    x = stream(2).standard_normal(64_000).astype(np.float32)
    sent = INT8.quantise(x, Stochastic(stream(3)))[1]
    scales = np.repeat(INT8.measure(x), BLOCK)
    assert np.all(np.abs(sent - x) <= scales)
    assert np.all(sent[np.abs(x) < 0.5 * scales] == 0), "less than half a level is not worth sending"
    assert np.mean(np.abs(sent - x) > 0.5 * scales) > 0.2


def test_chance_depends_on_the_stream_and_the_place_alone() -> None:
    p = stream(4).standard_normal(300_000).astype(np.float32)
    for name in ROUNDED:
        spec = CodecSpec(name, 0.1, rounding="stochastic")
        payload, decoded, residual = split(p, spec, rng=stream(5))
        q, out = p.copy(), io.BytesIO()
        split_to(q, spec, out, rng=stream(5))
        assert out.getvalue() == payload
        assert q.tobytes() == residual.tobytes()
        assert encode(p, spec, rng=stream(6))[0] != payload
        assert isinstance(decoded, Sparse if name.startswith("topk") else Dense)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="chance"):
        encode(np.ones(100, np.float32), CodecSpec("int8", rounding="stochastic"))
    for name in ("topk-log4", "topk-sign", "float32"):
        with pytest.raises(CodecError, match="does not round by chance"):
            CodecSpec(name, rounding="stochastic")
