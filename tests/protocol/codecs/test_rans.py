"""The entropy coder: exact, close to the entropy, and it notices what is left."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmq_protocol.codecs import rans
from fedmq_protocol.errors import CodecError

Events = list[tuple[int, int]]


@st.composite
def events(draw: st.DrawFn) -> Events:
    """Intervals of every size, sure ones among them."""
    drawn: Events = []
    for _ in range(draw(st.integers(0, 60))):
        size = draw(
            st.one_of(st.integers(1, rans.TOTAL), st.sampled_from([1, 2, rans.TOTAL - 1, rans.TOTAL]))
        )
        drawn.append((draw(st.integers(0, rans.TOTAL - size)), size))
    return drawn


def coded(drawn: Events) -> bytes:
    return rans.encode([start for start, _ in drawn], [size for _, size in drawn])


@given(events())
@example([(0, 1)] * 50)
@example([(rans.TOTAL - 1, 1)] * 50)
@example([(0, rans.TOTAL)] * 50)
def test_round_trip(drawn: Events) -> None:
    section = coded(drawn)
    assert len(section) <= 5 + 3 * len(drawn)
    source = rans.Decoder(memoryview(section))
    for start, size in drawn:
        assert start <= source.peek() < start + size
        source.take(start, size)
    source.finish()


@pytest.mark.parametrize("bias", [0.5, 0.03, 0.001])
def test_the_length_is_the_entropy(bias: float) -> None:
    hits = np.random.default_rng(1).random(20_000) < bias
    cut = round(rans.TOTAL * bias)
    drawn = [(0, cut) if hit else (cut, rans.TOTAL - cut) for hit in hits.tolist()]
    ideal = sum(-log2(size / rans.TOTAL) for _, size in drawn)
    assert ideal - 1 <= 8 * len(coded(drawn)) <= 1.002 * ideal + 40


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0)).map(lambda t: (t[1] % t[0], t[0])), max_size=30)
)
def test_equally_likely_numbers(numbers: list[tuple[int, int]]) -> None:
    source = rans.Decoder(memoryview(coded([rans.uniform(number, count) for number, count in numbers])))
    assert [source.uniform(count) for _, count in numbers] == [number for number, _ in numbers]
    source.finish()


def test_a_place_behind_all_numbers_is_refused() -> None:
    with pytest.raises(CodecError, match="none of those"):
        rans.Decoder(memoryview(b"\xff\xff\xff")).uniform(3)


@pytest.mark.parametrize("section", [b"\x01", b"\x01" + bytes(40)])
def test_what_is_left_is_noticed(section: bytes) -> None:
    with pytest.raises(CodecError, match="do not end"):
        rans.Decoder(memoryview(section)).finish()


def test_zeros_at_the_front_are_refused() -> None:
    with pytest.raises(CodecError, match="begin with a zero"):
        rans.Decoder(memoryview(b"\x00\x01"))
