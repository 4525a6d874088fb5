"""Whole payloads: round trips, error feedback to the bit, hostile bytes, bounds."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import (
    CODECS,
    CodecSpec,
    Decoded,
    Dense,
    Sparse,
    decode,
    encode,
    max_accepted_bytes,
    max_encoded_bytes,
    split,
)
from fedmq_protocol.codecs.container import TINY, codec_name
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs import reference_decoder
from tests.protocol.codecs.vectors_for_tests import SPECIALS, bits, hard_vectors

Vector = NDArray[np.float32]

DENSITIES = [1e-9, 0.001, 0.01, 0.03, 0.1, 0.24, 0.25, 0.5, 0.9, 1.0]
REASONS = {"malformed", "unknown-codec", "wrong-size", "too-large", "not-finite"}
SPECS = st.builds(
    CodecSpec, st.sampled_from(sorted(CODECS)), st.sampled_from(DENSITIES), seed=st.integers(0, 9)
)


def same(one: Decoded, other: Decoded) -> bool:
    return (
        type(one) is type(other)
        and one.n == other.n
        and np.array_equal(bits(one.values), bits(other.values))
        and (
            isinstance(one, Dense)
            or (isinstance(other, Sparse) and np.array_equal(one.indices, other.indices))
        )
    )


@settings(max_examples=400)
@given(hard_vectors(), SPECS)
@example(SPECIALS, CodecSpec("float32"))
@example(np.empty(0, np.float32), CodecSpec("topk-log4"))
@example(np.empty(0, np.float32), CodecSpec("int8"))
@example(np.ones(1, np.float32), CodecSpec("topk-sign"))
def test_sent_and_residual_make_p_to_the_bit(p: Vector, spec: CodecSpec) -> None:
    payload, decoded, residual = split(p, spec)
    assert len(payload) <= max_encoded_bytes(len(p), spec) <= max_encoded_bytes(len(p))
    sent = decoded.to_dense()
    assert np.array_equal(bits(sent + residual), bits(p + np.float32(0)))  # + 0: only the sign of zero may go
    real = sent.astype(np.float64) + residual
    assert np.array_equal(real[np.abs(p) > 1e-30], p[np.abs(p) > 1e-30].astype(np.float64)), (
        "the sum is exact too"
    )
    assert same(decode(payload, len(p)), decoded)
    assert same(encode(p, spec)[1], decoded)


@settings(max_examples=200)
@given(hard_vectors(), SPECS)
def test_a_second_decoder_reads_the_same(p: Vector, spec: CodecSpec) -> None:
    payload, decoded = encode(p, spec)
    n, elements = reference_decoder.decode(payload)
    assert n == len(p)
    if isinstance(decoded, Sparse):
        assert [i for i, _ in elements] == decoded.indices.tolist()
    assert [value for _, value in elements] == decoded.values.tolist()
    assert CODECS[codec_name(payload)].values == payload[0] & 15


@given(hard_vectors(), SPECS)
def test_a_processor_that_flushes_subnormals_changes_nothing(p: Vector, spec: CodecSpec) -> None:
    torch = pytest.importorskip("torch")
    payload, decoded, residual = split(p, spec)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot be told to")
    try:
        flushing = split(p, spec)
        again = decode(payload, len(p))
    finally:
        torch.set_flush_denormal(False)
    assert flushing[0] == payload
    assert same(flushing[1], decoded)
    assert same(again, decoded)
    assert np.array_equal(bits(flushing[2]), bits(residual))


@given(hard_vectors(), SPECS, st.integers(2, 6))
def test_over_rounds_what_was_sent_and_what_is_left_make_what_came(
    p: Vector, spec: CodecSpec, rounds: int
) -> None:
    """In float32 the sums delta + residual round, and these are what counts as p: each round is exact by itself."""
    residual = np.zeros(len(p), np.float32)
    for _ in range(rounds):
        with np.errstate(over="ignore"):
            total = (p / np.float32(8) + residual).astype(np.float32)
        _, decoded, left = split(total, spec)
        assert np.array_equal(decoded.to_dense() + left, total)
        residual = left


def test_what_is_kept_is_the_top_share() -> None:
    p = np.random.default_rng(8).laplace(size=10_000).astype(np.float32)
    for name in ("topk-log4", "topk-sign", "topk-int8"):
        _, decoded = encode(p, CodecSpec(name, 0.013))
        assert isinstance(decoded, Sparse)
        assert decoded.nnz == 130
        assert decoded.indices.tolist() == np.sort(np.argsort(-np.abs(p), kind="stable")[:130]).tolist()


@pytest.mark.parametrize(
    ("density", "n", "k"), [(0.01, 301_066, 3011), (0.07, 100, 7), (0.1, 30, 3), (1e-9, 5, 1), (1.0, 5, 5)]
)
def test_the_share_is_rounded_up_as_written_in_decimal(density: float, n: int, k: int) -> None:
    assert CodecSpec("topk-log4", density).kept(n) == k


def test_zeros_are_not_sent() -> None:
    p = np.zeros(1000, np.float32)
    for name in ("topk-log4", "topk-sign", "topk-int8", "topk-block8", "topk-block4"):
        payload, decoded = encode(p, CodecSpec(name))
        assert decoded.nnz == 0
        assert len(payload) == 14
    p[[3, 900]] = [1.0, -2.0]
    assert encode(p, CodecSpec("topk-log4", 0.1))[1].to_dense().tolist() == p.tolist()


def test_a_sparse_codec_falls_back_to_dense_where_that_is_smaller() -> None:
    p = np.random.default_rng(9).standard_normal(5000).astype(np.float32)
    assert codec_name(encode(p[:TINY], CodecSpec("topk-log4"))[0]) == "int8"
    assert codec_name(encode(p[: TINY + 1], CodecSpec("topk-log4"))[0]) == "topk-log4"
    assert codec_name(encode(p, CodecSpec("topk-log4", 0.24))[0]) == "topk-log4"
    assert codec_name(encode(p, CodecSpec("topk-log4", 1.0, code_ms=0))[0]) == "int4"


@given(st.binary(max_size=300), st.integers(0, 1000))
def test_any_bytes_give_a_vector_or_a_codec_error(data: bytes, n: int) -> None:
    check_hostile(data, n)


@settings(max_examples=300)
@given(hard_vectors(max_size=200), SPECS, st.data())
def test_damage_gives_a_vector_or_a_codec_error(p: Vector, spec: CodecSpec, data: st.DataObject) -> None:
    payload = bytearray(encode(p, spec)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload) - 1))
        match data.draw(st.sampled_from(["set", "cut", "grow", "huge"])):
            case "set":
                payload[place] = data.draw(st.integers(0, 255))
            case "cut" if len(payload) > 1:
                del payload[place]
            case "grow":
                payload.insert(place, data.draw(st.integers(0, 255)))
            case _:
                payload[place : place + 4] = b"\xff" * len(payload[place : place + 4])
    check_hostile(bytes(payload), len(p))


def check_hostile(data: bytes, n: int) -> None:
    try:
        decoded = decode(data, n)
    except CodecError as error:
        reason = error.reason
    else:
        check_sound(decoded, n)
        return
    assert reason in REASONS


def check_sound(decoded: Decoded, n: int) -> None:
    assert decoded.n == n
    values = decoded.values
    assert np.isfinite(values).all()
    assert np.all((values == 0) | (np.abs(values) >= 2.0**-126))
    assert not np.any(bits(values) == 0x8000_0000)
    if isinstance(decoded, Sparse):
        places = decoded.indices.astype(np.int64)
        assert np.all(np.diff(places, prepend=-1) > 0)
        assert len(places) == 0 or places[-1] < n


def bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(bytes(size))


def without_size(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_content_size=False).compress(bytes(size))


N = 2_000_000
HEAD = struct.pack("<BI", 1, N)
SPARSE = struct.pack("<BIII", 0x14, N, 0, 0)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"\x01\x00", "malformed"),
        (HEAD, "malformed"),
        (HEAD + b"\x00", "malformed"),
        (HEAD + b"\x02" + bytes(4), "unknown-codec"),
        (HEAD + b"\x01" + bomb(2**30), "malformed"),
        (HEAD + b"\x01" + bomb(4 * N + 1), "malformed"),
        (HEAD + b"\x01" + without_size(4 * N), "malformed"),
        (HEAD + b"\x01" + bomb(4 * N) + b"\x00", "malformed"),
        (HEAD + b"\x01" + bomb(4 * N)[:-1], "malformed"),
        (HEAD + b"\x01" + bytes.fromhex("502a4d1804000000") + bytes(4), "malformed"),  # a skippable frame
        (b"\x00" + HEAD[1:] + bytes(10), "unknown-codec"),
        (b"\xf4" + HEAD[1:] + bytes(10), "unknown-codec"),
        (b"\x11" + HEAD[1:] + bytes(10), "unknown-codec"),
        (struct.pack("<BI", 1, N + 1) + bytes(10), "wrong-size"),
        (struct.pack("<BIII", 0x14, 2**32 - 1, 2**32 - 1, 0) + b"\x00", "wrong-size"),
        (struct.pack("<BIII", 0x14, N, 2**32 - 1, 0) + b"\x00", "malformed"),
        (struct.pack("<BIII", 0x14, N, N, 2**32 - 1) + b"\x00", "malformed"),
        (struct.pack("<BIII", 0x14, N, N, 0) + b"\x00", "malformed"),
        (struct.pack("<BIII", 0x14, N, 1, 100) + bytes(110), "too-large"),
        (SPARSE[:-1], "malformed"),
        (SPARSE, "malformed"),
        (SPARSE + b"\x00\x00", "malformed"),
        (SPARSE + b"\x01", "malformed"),
    ],
)
def test_lies_are_refused_before_memory_is_taken(payload: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError) as caught:
            decode(payload, N)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == reason
    assert peak < 4 * N + 2_000_000  # the one honest frame that is cut short may take its place


@pytest.mark.parametrize("tag", range(256))
def test_only_tags_that_are_decoded_have_a_name(tag: int) -> None:
    with pytest.raises(CodecError) as caught:
        decode(bytes([tag]) + bytes(100), N)
    is_known = caught.value.reason != "unknown-codec"
    with suppress(CodecError):
        name = codec_name(bytes([tag]))
        assert is_known, name
        return
    assert not is_known


def test_memory_is_bounded_whatever_is_kept() -> None:
    p = np.random.default_rng(10).standard_normal(200_000).astype(np.float32)
    for spec in (CodecSpec("topk-int8", 0.2), CodecSpec("int8"), CodecSpec("int4"), CodecSpec("float32")):
        payload, sent = encode(p, spec)
        tracemalloc.start()
        decode(payload, len(p))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 * len(p) + 56 * (sent.nnz if isinstance(sent, Sparse) else 0) + 2_000_000


def test_longer_than_any_encoder_writes_is_refused() -> None:
    with pytest.raises(CodecError) as caught:
        decode(bytes(max_encoded_bytes(100) + 1), 100)
    assert caught.value.reason == "too-large"


def test_more_than_agreed_is_refused() -> None:
    payload, decoded = encode(
        np.random.default_rng(11).standard_normal(1000).astype(np.float32), CodecSpec("topk-log4", 0.1)
    )
    assert decode(payload, 1000, max_kept=decoded.nnz).nnz == 100
    with pytest.raises(CodecError) as caught:
        decode(payload, 1000, max_kept=99)
    assert caught.value.reason == "too-large"


@given(st.integers(1, 5000), st.floats(1e-4, 1.0), st.integers(0, 2**32))
def test_whatever_is_within_what_was_agreed_is_looked_at(n: int, density: float, seed: int) -> None:
    p = np.random.default_rng(seed).standard_t(1.5, n).astype(np.float32)
    most = CodecSpec("topk-log4", density).kept(n)
    for share in (density, density / 2, density / 7):
        payload, decoded = encode(p, CodecSpec("topk-int8", share))
        assert len(payload) <= max_accepted_bytes(n, most)
        assert decode(payload, n, max_kept=most).nnz == decoded.nnz


def test_a_dense_payload_where_a_few_elements_were_agreed_on_takes_no_memory() -> None:
    n = 4_000_000
    for name in ("int4", "int8", "float32"):
        payload = encode(np.zeros(n, np.float32), CodecSpec(name))[0]
        assert len(payload) < 3000
        tracemalloc.start()
        with pytest.raises(CodecError) as caught:
            decode(payload, n, max_kept=n // 5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert caught.value.reason == "too-large"
        assert peak < 100_000
        assert isinstance(decode(payload, n, max_kept=n // 4), Dense), "here an encoder falls back to it"


def test_a_view_is_read_as_bytes_are() -> None:
    payload, decoded = encode(np.arange(100, dtype=np.float32), CodecSpec("topk-log4", 0.1))
    assert same(decode(memoryview(b"xx" + payload)[2:], 100), decoded)


@pytest.mark.parametrize("p", [np.array([np.nan]), np.array([1.0, -np.inf]), np.zeros((2, 2))])
def test_misuse_raises(p: NDArray[np.float64]) -> None:
    for name in CODECS:
        with pytest.raises(ValueError, match=r"finite|float32"):
            encode(p.astype(np.float32), CodecSpec(name, 1.0, seed=1))
    with pytest.raises(ValueError, match="float32"):
        encode(p, CodecSpec("int8"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("place", range(0, 100, 9))
def test_what_is_not_finite_is_found_wherever_it_is(name: str, place: int) -> None:
    p = np.ones(100, np.float32)
    p[place] = np.inf
    with pytest.raises(ValueError, match="finite"):
        split(p, CodecSpec(name, 0.01, seed=1))


def test_specs_are_validated() -> None:
    assert CodecSpec("topk-log4/1").codec is CodecSpec("topk-log4").codec
    with pytest.raises(CodecError) as caught:
        CodecSpec("gzip")
    assert caught.value.reason == "unknown-codec"
    for density in (0.0, -0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(CodecError, match="density"):
            CodecSpec("topk-log4", density)
    with pytest.raises(CodecError) as caught:
        codec_name(b"")
    assert caught.value.reason == "unknown-codec"
