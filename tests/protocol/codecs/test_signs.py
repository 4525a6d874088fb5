"""Signs and levels from those before: exact, agreed between two decoders, shorter where something can be expected."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import (
    CodecSpec,
    decode,
    encode,
    linear8,
    log4,
    optional_coders,
    rice,
    sign1,
    signs,
)
from fedmq_protocol.codecs.signs import Symbols
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs import reference_decoder, reference_signs
from tests.protocol.codecs.vectors_for_tests import hard_vectors

SHAPES = ((30, 12), (30,), (), (0, 4), (20, 3, 3))
N = 30 * 12 + 30 + 1 + 180
SYMBOLS = st.sampled_from([log4.SYMBOLS, sign1.SYMBOLS, linear8.SYMBOLS])
CODERS = {"topk-log4": log4.SYMBOLS, "topk-sign": sign1.SYMBOLS, "topk-int8": linear8.SYMBOLS}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Symbols, bytes, NDArray[np.uint32]]:
    """A value code, a body of it, and where the values belong."""
    symbols = draw(SYMBOLS)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = np.flatnonzero(rng.random(N) < draw(st.sampled_from([0.01, 0.1, 0.6, 1.0])))
    indices = indices if len(indices) else np.array([draw(st.integers(0, N - 1))])
    count = len(indices)
    levels = rng.integers(0, 1 + rng.integers(0, 1 << symbols.level_bits), count)
    negative = rng.random(count) < draw(st.sampled_from([0.0, 0.2, 0.5]))
    if symbols is linear8.SYMBOLS:
        levels = np.maximum(levels, 1)
    head = rng.bytes(symbols.head_bytes)
    return symbols, head + symbols.joined(negative, levels), indices.astype(np.uint32)


@given(bodies())
def test_round_trip_and_a_second_decoder(case: tuple[Symbols, bytes, NDArray[np.uint32]]) -> None:
    symbols, body, indices = case
    section = signs.encode(body, symbols, indices, SHAPES)
    assert signs.decode(memoryview(section), symbols, indices, SHAPES) == body
    negative, levels = symbols.apart(body[symbols.head_bytes :], len(indices))
    expected = [(-1 if minus else 1, level) for minus, level in zip(negative, levels.tolist(), strict=True)]
    coded = section[symbols.head_bytes :]
    assert reference_signs.values(coded, indices.tolist(), symbols.level_bits, SHAPES) == expected


def test_rows_of_one_sign_cost_next_to_nothing_and_chance_costs_what_it_must() -> None:
    rng = np.random.default_rng(2)
    shapes, indices = ((100, 50),), np.arange(0, 5000, 2)
    by_row = np.repeat(rng.random(100) < 0.5, 25)
    head = b"\x80\x3f"
    one = signs.encode(head + sign1.SYMBOLS.joined(by_row, by_row * 0), sign1.SYMBOLS, indices, shapes)
    assert 100 <= 8 * len(one) <= 100 + 2500 * 0.1
    chance = rng.random(2500) < 0.5
    two = signs.encode(head + sign1.SYMBOLS.joined(chance, chance * 0), sign1.SYMBOLS, indices, shapes)
    assert 8 * len(two) <= 2500 * 1.02 + 100


@pytest.mark.parametrize("name", CODERS)
def test_a_payload_is_written_so_only_where_both_sides_agreed(name: str) -> None:
    rng = np.random.default_rng(4)
    p = np.abs(1 + rng.random((30, 12))).astype(np.float32)
    p = np.concatenate([(p * np.where(rng.random((30, 1)) < 0.5, 1, -1)).ravel(), rng.random(N - 360)])
    p = p.astype(np.float32)
    plain, _ = encode(p, CodecSpec(name, 0.3), shapes=SHAPES)
    expected, sent = encode(p, CodecSpec(name, 0.3, optional_coders()), shapes=SHAPES)
    slow, _ = encode(p, CodecSpec(name, 0.3, optional_coders(), code_ms=0), shapes=SHAPES)
    assert len(expected) < len(plain) <= len(slow)
    decoded = decode(expected, N, shapes=SHAPES)
    assert np.array_equal(decoded.to_dense(), sent.to_dense())
    second = dict(reference_decoder.decode(expected, SHAPES)[1])
    assert {index: float(value) for index, value in second.items()} == {
        index: value for index, value in enumerate(decoded.to_dense().tolist()) if value
    }


@given(hard_vectors(), st.sampled_from(sorted(CODERS)), st.sampled_from([0.01, 0.2, 1.0]))
def test_hard_vectors_round_trip(p: NDArray[np.float32], name: str, density: float) -> None:
    payload, sent = encode(p, CodecSpec(name, density, optional_coders()))
    assert np.array_equal(decode(payload, len(p)).to_dense(), sent.to_dense())


@given(st.binary(max_size=60), SYMBOLS, st.integers(0, 40))
def test_any_bytes_give_a_body_or_a_codec_error(data: bytes, symbols: Symbols, count: int) -> None:
    indices = np.arange(3, 3 + 7 * count, 7)
    try:
        body = signs.decode(memoryview(data), symbols, indices, SHAPES)
    except CodecError:
        return
    _, levels = symbols.apart(body[symbols.head_bytes :], count)
    assert len(levels) == count


@pytest.mark.parametrize(
    ("section", "count", "reason"),
    [
        (b"\x80", 3, "malformed"),
        (b"\x80\x3f", 0, "malformed"),
        (b"\x80\x3f\x00\x01", 3, "malformed"),
        (b"\x80\x3f\x01\x02\x03\x04\x05\x06", 3, "malformed"),
        (b"\x80\x3f\x01", signs.MAX_BITS + 1, "too-large"),
    ],
)
def test_lies_are_refused(section: bytes, count: int, reason: str) -> None:
    with pytest.raises(CodecError) as caught:
        signs.decode(memoryview(section), sign1.SYMBOLS, np.arange(count), ((count,),))
    assert caught.value.reason == reason


def test_values_that_do_not_get_shorter_so_are_refused() -> None:
    indices = np.array([5], np.uint32)
    body = b"\x80\x3f" + sign1.SYMBOLS.joined(np.array([True]), np.array([0]))
    coded = signs.encode(body, sign1.SYMBOLS, indices, SHAPES)
    assert len(coded) > len(body)
    places = rice.encode(indices, N)
    head = struct.pack("<BIII", 0x15, N, 1, len(places)) + places
    assert decode(head + b"\0" + body, N, shapes=SHAPES).to_dense()[5] == -1.0
    with pytest.raises(CodecError, match="more bytes"):
        decode(head + b"\2" + coded, N, shapes=SHAPES)
