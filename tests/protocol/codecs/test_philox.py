"""Philox against its published answers and against a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.codecs import philox
from tests.protocol.codecs import reference_random

WORD = st.integers(0, 2**32 - 1)

KNOWN = [  # the known-answer tests of Random123, `philox4x32 10`
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_published_answers(counter: str, key: str, answer: str) -> None:
    words = [int(word, 16) for word in counter.split()]
    first, second = (int(word, 16) for word in key.split())
    block = philox.philox(np.array([words], np.uint32), (first, second))
    assert [f"{word:08x}" for word in block[0]] == answer.split()


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_agrees_with_the_second_implementation(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    block = philox.philox(np.array([counter], np.uint32), key)
    assert tuple(block[0].tolist()) == reference_random.block(counter, key)


@given(st.integers(0, 2**64 - 1), st.integers(0, 40), st.integers(0, 40))
def test_a_stream_can_be_taken_up_anywhere(seed: int, first: int, count: int) -> None:
    whole = philox.words(seed, philox.WEIGHTS, 3, 0, 80)
    assert np.array_equal(
        philox.words(seed, philox.WEIGHTS, 3, first, count), whole[4 * first :][: 4 * count]
    )
    assert philox.block_bytes(whole).tobytes() == reference_random.stream(seed, 1, 3, 80)


def test_streams_differ_by_seed_purpose_and_part() -> None:
    streams = {
        philox.words(seed, purpose, part, 0, 4).tobytes()
        for seed in (0, 1, 2**32, 2**64 - 1)
        for purpose in (philox.WEIGHTS, philox.INDICES)
        for part in (0, 1)
    }
    assert len(streams) == 16


def test_the_last_block_and_not_one_more() -> None:
    assert len(philox.words(0, philox.INDICES, 0, 2**32 - 1, 1)) == 4
    with pytest.raises(ValueError, match="out of range"):
        philox.words(0, philox.INDICES, 0, 2**32 - 1, 2)
    with pytest.raises(ValueError, match="out of range"):
        philox.words(2**64, philox.INDICES, 0, 0, 1)
