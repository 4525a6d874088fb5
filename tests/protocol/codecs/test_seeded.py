"""Recipes: small, exact, what they say they are, and deaf to lies."""

from __future__ import annotations

import struct
import tracemalloc
from fractions import Fraction
from math import erf, sqrt

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmq_protocol.codecs import seeded
from fedmq_protocol.codecs.seeded import Recipe, Segment
from fedmq_protocol.errors import CodecError
from tests.protocol.codecs import reference_random

INT8 = 2


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    count = draw(st.integers(1, 40))
    match draw(st.sampled_from(seeded.KINDS)):
        case "constant":
            return Segment.constant(count, draw(st.floats(width=32, allow_nan=False, allow_infinity=False)))
        case "uniform":
            return Segment.uniform(count, draw(st.floats(2.0**-70, 2.0**90)))
        case _:
            return Segment.normal(count, draw(st.floats(2.0**-70, 2.0**90)))


RECIPES = st.builds(
    Recipe,
    st.integers(0, 2**64 - 1),
    st.lists(segments(), min_size=1, max_size=5).map(tuple),
    st.sampled_from([1, 2, 3]),
)


@given(RECIPES)
def test_a_recipe_reads_back_and_makes_what_the_page_says(recipe: Recipe) -> None:
    payload = seeded.encode(recipe)
    assert len(payload) == 14 + 9 * len(recipe.segments)
    assert seeded.is_seeded(payload)
    assert seeded.decode(payload, recipe.n) == recipe
    out = np.empty(recipe.n, np.float32)
    seeded.generate(recipe, out)
    assert [Fraction(float(value)) for value in out] == reference_random.weights(payload)
    assert not np.signbit(out[out == 0]).any()
    assert np.all((out == 0) | (np.abs(out) >= np.float32(2.0**-126)))


def test_slices_join_without_a_seam() -> None:
    """More than one slice, and what a neighbour's length changes: nothing."""
    long = np.empty(2 * 65_536 + 700 + 9, np.float32)
    seeded.generate(Recipe(5, (Segment.normal(65_536 + 700, 1.0), Segment.uniform(65_545, 1.0)), INT8), long)
    short = np.empty(65_536 + 100 + 65_540, np.float32)
    seeded.generate(Recipe(5, (Segment.normal(65_536 + 100, 1.0), Segment.uniform(65_540, 1.0)), INT8), short)
    assert np.array_equal(long[: 65_536 + 100], short[: 65_536 + 100])
    assert np.array_equal(long[65_536 + 700 :][:65_540], short[65_536 + 100 :])


@pytest.mark.parametrize("seed", [0, 1, 20_261_123])
def test_distributions_are_what_they_say(seed: int) -> None:
    """Kolmogorov's distance to the closed form; 1.95 / sqrt(n) is passed once in a thousand times by chance."""
    n = 100_000
    out = np.empty(2 * n, np.float32)
    seeded.generate(Recipe(seed, (Segment.uniform(n, 1.0), Segment.normal(n, 1.0)), INT8), out)
    even, normal = np.sort(out[:n].astype(float)), np.sort(out[n:].astype(float))
    steps = (np.arange(n) + 0.5) / n
    assert np.abs((even / 1.002 + 1) / 2 - steps).max() < 1.95 / sqrt(n) + 0.002
    cdf = np.array([0.5 * (1 + erf(x / sqrt(2))) for x in normal])
    assert np.abs(cdf - steps).max() < 1.95 / sqrt(n) + 0.006  # a sum of eight bytes is that near
    assert abs(float(normal.std()) - 1) < 0.012
    assert abs(np.corrcoef(out[:n], out[n:])[0, 1]) < 5 / sqrt(n)
    assert abs(np.corrcoef(out[: n - 1], out[1:n])[0, 1]) < 5 / sqrt(n)


@given(
    st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"\x0f\x02\0\0\0" + rest),
    st.integers(0, 100) | st.just(2),
)
@example(b"\x0f\x02\0\0\0\x02" + bytes(8) + struct.pack("<IBf", 2, 0, 1.0), 2)
def test_arbitrary_bytes_raise_nothing_but_the_protocols_error(data: bytes, n: int) -> None:
    try:
        recipe = seeded.decode(data, n)
    except CodecError:
        return
    assert recipe.n == n
    assert seeded.encode(recipe) == data


def _payload(*parts: tuple[int, int, float], n: int = 4) -> bytes:
    head = struct.pack("<BIBQ", 0x0F, n, INT8, 1)
    return head + b"".join(struct.pack("<IBf", *part) for part in parts)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (_payload((4, 1, 1.0))[:-1], "malformed"),
        (_payload((3, 1, 1.0), n=3), "wrong-size"),
        (_payload((3, 1, 1.0)), "malformed"),
        (b"\x02" + _payload((4, 1, 1.0))[1:], "unknown-codec"),
        (_payload((2**32 - 1, 1, 1.0), (2**32 - 1, 1, 1.0)), "malformed"),
        (_payload((4, 3, 1.0)), "malformed"),
        (_payload((0, 1, 1.0), (4, 1, 1.0)), "malformed"),
        (_payload((4, 0, float("nan"))), "not-finite"),
        (_payload((4, 2, float("inf"))), "not-finite"),
        (_payload((4, 1, 1.001)), "malformed"),
        (_payload((4, 1, -1.0)), "malformed"),
        (_payload((4, 1, 0.0)), "malformed"),
        (_payload((4, 1, 2.0**97)), "malformed"),
        (_payload((4, 0, -0.0)), "malformed"),
        (_payload((4, 0, 1e-40)), "malformed"),
        (_payload(*[(1, 0, 1.0)] * 16_385), "malformed"),
    ],
)
def test_what_is_wrong_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(CodecError) as caught:
        seeded.decode(payload, 4)
    assert caught.value.reason == reason


def test_a_recipe_for_too_many_takes_no_memory() -> None:
    payload = _payload(*[(2**32 - 1, 1, 1.0)] * 100, n=1000)
    tracemalloc.start()
    with pytest.raises(CodecError):
        seeded.decode(payload, 1000)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


def test_generating_takes_little_memory_beside_the_weights() -> None:
    out = np.empty(4_000_000, np.float32)
    tracemalloc.start()
    seeded.generate(Recipe(0, (Segment.uniform(2_000_000, 1.0), Segment.normal(2_000_000, 1.0)), INT8), out)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "make",
    [lambda: Segment.normal(1, 0.0), lambda: Segment.uniform(1, 2.0**120), lambda: Segment.normal(1, -1.0)],
)
def test_a_scale_that_cannot_be_written_is_refused_at_once(make) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    with pytest.raises(ValueError, match="out of range"):
        make()
