"""The value codes one by one: precision, and that what they leave behind is exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import linear8, log4, scale, sign1
from fedmq_protocol.codecs.blockwise import BLOCK, INT4, INT8, Blockwise
from fedmq_protocol.codecs.body import wrap
from fedmq_protocol.codecs.keptblocks import KEPT4, KEPT8, KeptBlocks
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs.vectors_for_tests import bits, hard_vectors

Vector = NDArray[np.float32]
KEPT = pytest.mark.parametrize("code", [log4, sign1, linear8], ids=["log4", "sign1", "linear8"])
BLOCKWISE = pytest.mark.parametrize("code", [INT8, INT4], ids=["int8", "int4"])
TINIEST = Fraction(2) ** -126


def nmse(x: Vector, decoded: Vector) -> float:
    error = x.astype(np.float64) - decoded
    return float(error @ error / (x.astype(np.float64) @ x.astype(np.float64)))


def check_differences(x: Vector, decoded: Vector) -> None:
    """X - decoded in float32 is the real difference, and a normal number or zero wherever something was sent."""
    with np.errstate(all="raise"):
        left = x - decoded
    for real, sent, rest in zip(x.tolist(), decoded.tolist(), left.tolist(), strict=True):
        assert Fraction(real) - Fraction(sent) == Fraction(rest)
        assert sent == 0 or rest == 0 or abs(Fraction(rest)) >= TINIEST
        assert sent == 0 or abs(Fraction(sent)) >= TINIEST


@KEPT
@given(x=hard_vectors())
def test_kept_values_round_trip_and_leave_exact_differences(code: object, x: Vector) -> None:
    assert isinstance(code, type(log4))
    kept, body, decoded = code.quantise(x)
    assert kept.shape == x.shape
    assert decoded.dtype == np.float32
    assert len(body) == code.body_bytes(len(decoded))
    assert np.array_equal(bits(code.dequantise(memoryview(body), len(decoded))), bits(decoded))
    assert np.isfinite(decoded).all()
    assert np.all(np.sign(decoded) == np.sign(x[kept]))
    check_differences(x[kept], decoded)
    # Sending never does harm, and what is large is sent.
    assert np.all(np.abs(x[kept] - decoded) <= np.abs(x[kept]))
    if np.abs(x).max(initial=0) >= 2.0**-80:
        assert kept[np.argmax(np.abs(x))]


@pytest.mark.parametrize("code", [KEPT8, KEPT4], ids=["block8", "block4"])
@given(x=hard_vectors())
def test_kept_blocks_round_trip_and_leave_exact_differences(code: KeptBlocks, x: Vector) -> None:
    kept, body, decoded = code.quantise(x)
    assert len(body) == code.body_bytes(len(decoded)) == code.body_bytes(int(np.count_nonzero(kept)))
    assert np.array_equal(bits(code.dequantise(memoryview(body), len(decoded))), bits(decoded))
    check_differences(x[kept], decoded)
    assert np.all(np.abs(x[kept] - decoded) <= np.abs(x[kept]))
    sent = np.zeros_like(x)
    sent[kept] = decoded
    dense = code.blocks.quantise(x)[1]
    assert np.all(kept == (dense != 0)), "what is worth a level in its own block is sent"
    if kept.all():
        assert np.array_equal(sent, dense)


@BLOCKWISE
@given(x=hard_vectors())
def test_blocks_round_trip_and_leave_exact_differences(code: Blockwise, x: Vector) -> None:
    body, decoded = code.quantise(x)
    assert len(body) == code.body_bytes(len(x))
    assert np.array_equal(bits(code.dequantise(memoryview(body), len(x))), bits(decoded))
    assert np.isfinite(decoded).all()
    assert not np.any(bits(decoded) == 0x8000_0000), "no -0"
    check_differences(x, decoded)
    again, twice = code.quantise(decoded)
    assert again == body, "what was decoded is coded the same"
    assert np.array_equal(bits(twice), bits(decoded))


@BLOCKWISE
def test_blocks_follow_the_definition(code: Blockwise) -> None:
    x = np.random.default_rng(5).standard_normal(1000).astype(np.float32)
    x[128:192] = 0
    expected: list[Fraction] = []
    for start in range(0, len(x), BLOCK):
        block = [Fraction(v) for v in x[start : start + BLOCK].tolist()]
        wanted = float(max(map(abs, block)) / code.largest_level)
        mantissa, exponent = np.frexp(wanted)
        s = Fraction(round(float(mantissa) * 256)) * Fraction(2) ** (int(exponent) - 8)
        expected += [round(v / s) * s if s else Fraction(0) for v in block]
    assert [Fraction(v) for v in code.quantise(x)[1].tolist()] == expected


@BLOCKWISE
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_blocks_are_as_precise_as_their_step(code: Blockwise, kind: str) -> None:
    rng = np.random.default_rng(6)
    x = (rng.standard_normal(64_000) if kind == "normal" else rng.uniform(-1, 1, 64_000)).astype(np.float32)
    largest = np.abs(x.reshape(-1, BLOCK)).max(axis=1).astype(np.float64)
    uniform_error = np.mean((largest / code.largest_level) ** 2) / 12 / np.mean(x.astype(np.float64) ** 2)
    assert nmse(x, code.quantise(x)[1]) == pytest.approx(uniform_error, rel=0.05)
    if code is INT8:
        assert 1e-5 < uniform_error < 4e-5  # 2.4e-5 for trained weights, which lie between the two


def test_log_levels_are_powers_of_the_sixteenth_root() -> None:
    assert len(log4.POWERS) == 113
    exact = np.exp2(-np.arange(113) / 16)
    assert np.all(np.abs(log4.POWERS / exact - 1) < 2.0**-8)
    assert all(Fraction(v).numerator < 256 or v == 1 for v in log4.POWERS.tolist())


# Exponential above a threshold of 1, as with much error feedback, some, and none.
@pytest.mark.parametrize(("tail", "most_precise"), [(0.05, 3e-4), (0.2, 2.5e-3), (1.0, 1.5e-2)])
def test_log_levels_adapt_to_the_tail(
    tail: float, most_precise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    x = ((1 + tail * rng.exponential(size=3000)) * rng.choice([-1, 1], 3000)).astype(np.float32)
    kept, body, decoded = log4.quantise(x)
    assert kept.all()
    one_level = float(np.var(np.abs(x)) / np.mean(np.square(x)))
    assert nmse(x, decoded) <= 1.02 * one_level
    monkeypatch.setattr(log4, "_OTHER_BITS", 1e9)  # whatever the bits
    _, longer, precise = log4.quantise(x)
    assert nmse(x, precise) < most_precise
    assert len(wrap(longer)) > len(wrap(body))


def test_log_levels_see_the_few_that_carry_most() -> None:
    x = np.random.default_rng(12).pareto(1.1, 30_000).astype(np.float32) + np.float32(1e-3)
    squares = np.sort(np.square(x, dtype=np.float64))
    assert squares[-30:].sum() > 0.5 * squares.sum()
    kept, _, decoded = log4.quantise(x)
    sent = np.zeros_like(x)
    sent[kept] = decoded
    assert nmse(x, sent) < 0.03


def test_signs_send_the_mean_of_what_is_worth_sending() -> None:
    x = np.array([1.0, -1.25, 1.5, -1.25, 0.1], np.float32)
    kept, body, decoded = sign1.quantise(x)
    assert kept.tolist() == [True, True, True, True, False]
    assert decoded.tolist() == [1.25, -1.25, 1.25, -1.25]
    assert body == bytes.fromhex("a03f50")  # the upper half of 1.25, then 0101


def test_an_outlier_does_not_silence_the_rest_for_ever() -> None:
    """With error feedback, what an outlier drowns in one upload is sent in a later one."""
    for code in (log4, sign1, linear8):
        p = np.ones(1000, np.float32)
        p[17] = 3e38
        total = np.zeros(1000)
        for _ in range(120):
            kept, _, decoded = code.quantise(p)
            total[kept] += decoded
            p[kept] -= decoded
        assert np.all(total[np.arange(1000) != 17] > 0), code.__name__


@given(st.binary(max_size=64), st.integers(0, 70))
def test_any_body_gives_finite_values_or_a_codec_error(noise: bytes, count: int) -> None:
    for code in (log4, sign1, linear8, INT8, INT4):
        size = code.body_bytes(count)
        body = (noise * (size // max(len(noise), 1) + 1))[:size]
        if len(body) < size:
            continue
        try:
            values = code.dequantise(memoryview(body), count)
        except CodecError:
            continue
        assert values.dtype == np.float32
        assert values.shape == (count,)
        assert np.isfinite(values).all()
        assert np.all((values == 0) | (np.abs(values) >= 2.0**-126))
        assert not np.any(bits(values) == 0x8000_0000)


@pytest.mark.parametrize("value", ["0080", "807f", "c07f", "80ff", "0100", "80bf", "0012"])
def test_scales_out_of_range_are_refused(value: str) -> None:
    head = bytes.fromhex(value)
    reason = "not-finite" if value in {"807f", "c07f", "80ff"} else "malformed"
    for body, code in (
        (head + b"\x01\x00", log4),
        (head + b"\x00", sign1),
        (head + b"\x01", linear8),
        (head + b"\x01", INT8),
        (head + b"\x10", INT4),
    ):
        with pytest.raises(CodecError) as caught:
            code.dequantise(memoryview(body), 1)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("code", "body", "count"),
    [
        (log4, "803f0000", 1),  # step 0
        (log4, "803f1100", 1),  # step 17
        (log4, "803f0101", 1),  # filling
        (log4, "00000100", 1),  # scale 0
        (sign1, "803f7f", 1),
        (sign1, "000080", 1),
        (linear8, "803f00", 1),  # level 0
        (linear8, "803f80", 1),  # level -128
        (linear8, "000001", 1),
        (INT8, "803f80", 1),
        (INT8, "000001", 1),
        (INT4, "803f80", 1),  # level -8
        (INT4, "803f11", 1),
        (INT4, "000010", 1),
    ],
)
def test_what_no_encoder_writes_is_refused(code: Blockwise, body: str, count: int) -> None:
    with pytest.raises(CodecError):
        code.dequantise(memoryview(bytes.fromhex(body)), count)


def test_scales_are_rounded_to_nearest_even() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, 1.004, 3.4028235e38, 2.0**-90, 2.0**-91, 0.0], np.float32)
    expected = [1.0, 1.0, 1.015625, 1.0078125, 255 / 128 * 2.0**127, 2.0**-90, 0.0, 0.0]
    assert scale.rounded(x).tolist() == expected
