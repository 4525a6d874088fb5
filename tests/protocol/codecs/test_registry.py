"""What there is to choose from, how it is named, and which index coder a message takes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_protocol.codecs import (
    CODECS,
    CodecSpec,
    check_coders,
    names,
    optional_coders,
    unversioned,
    versioned,
)
from fedmq_protocol.codecs.choice import smallest
from fedmq_protocol.codecs.grid_model import Shapes
from fedmq_protocol.codecs.registry import INDEX_CODES, IndexCode
from fedmq_protocol.errors import CodecError

Indices = NDArray[np.integer]
SHAPES = ((40, 50),)


def coder(size: int, *, cost_ns: float = 1.0, estimate: float | None = None) -> tuple[IndexCode, list[int]]:
    """One that writes so many bytes, and how often it was asked to."""
    calls: list[int] = []

    def encode(indices: Indices, n: int, shapes: Shapes | None) -> bytes:
        assert shapes == SHAPES
        calls.append(n)
        return bytes(size)

    def decode(section: memoryview, n: int, k: int, shapes: Shapes | None) -> NDArray[np.uint32]:
        raise AssertionError

    guess = None if estimate is None else (lambda _indices, _n, _shapes: estimate)
    each = lambda _n, k, _shapes: cost_ns * k  # noqa: E731
    return IndexCode("some/1", lambda _n, _k: size, encode, decode, each, estimate=guess), calls


def chosen(indices: Indices, codes: dict[int, IndexCode]) -> tuple[int, bytes]:
    return smallest(indices, 2000, codes, shapes=SHAPES, code_ms=50.0)


def test_the_birth_certificate_names_everything_with_its_version() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+/[1-9][0-9]*", name) for name in names())
    assert set(map(unversioned, names())) >= set(CODECS)
    assert {code.name for code in INDEX_CODES.values()} <= set(names())
    assert len(set(names())) == len(names())
    assert "rice/1" in names()
    assert "rice/1" not in optional_coders()


@given(st.from_regex(r"[a-z0-9-]{1,20}(/[1-9])?", fullmatch=True))
def test_version_one_goes_without_saying(name: str) -> None:
    assert unversioned(versioned(name)) == unversioned(name)
    assert versioned(unversioned(name)) == versioned(name)


def test_there_is_a_baseline_and_it_comes_first() -> None:
    codes = CodecSpec("topk-log4", coders=optional_coders()).index_codes()
    assert next(iter(codes.values())).baseline
    assert set(codes) == set(INDEX_CODES)
    assert all(
        code.baseline for code in CodecSpec("topk-log4", coders=("who-knows/7",)).index_codes().values()
    )


def test_an_unknown_coder_in_settings_is_refused_with_what_is_known() -> None:
    check_coders(optional_coders())
    with pytest.raises(CodecError, match="known are") as caught:
        check_coders(["who-knows/7"])
    assert caught.value.reason == "unknown-codec"


def test_the_smallest_is_taken() -> None:
    indices = np.arange(1000, dtype=np.uint32)
    codes = {1: coder(100)[0], 2: coder(90)[0], 3: coder(95)[0]}
    assert chosen(indices, codes) == (2, bytes(90))
    assert chosen(indices, {1: codes[1]}) == (1, bytes(100))
    assert chosen(indices, {3: codes[3], 1: codes[1]}) == (3, bytes(95))


def test_what_estimates_more_than_there_is_already_is_not_tried() -> None:
    hopeless, hopeless_calls = coder(10, estimate=200.0)
    hopeful, hopeful_calls = coder(90, estimate=89.0)
    codes = {1: coder(100)[0], 2: hopeless, 3: hopeful}
    assert chosen(np.arange(1000), codes) == (3, bytes(90))
    assert (len(hopeless_calls), len(hopeful_calls)) == (0, 1)


def test_what_does_not_fit_into_the_time_is_not_tried() -> None:
    slow, slow_calls = coder(10, cost_ns=1e6)
    codes = {1: coder(100, cost_ns=1e9)[0], 2: slow, 3: coder(95)[0]}
    assert chosen(np.arange(1000), codes)[0] == 3
    assert slow_calls == []
    assert chosen(np.arange(10), codes)[0] == 2, "for a few indices it is quick enough"
