"""Distributions are read strictly, and drawn as they say: means against their closed forms."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.simulation.fleet.distributions import FAMILIES, parse
from fedmq_protocol.errors import UsageError


@pytest.mark.parametrize(
    ("text", "mean"),
    [
        ("30", 30.0),
        ("constant(2.5)", 2.5),
        ("1.5h", 5_400.0),
        ("50ms", 0.05),
        ("20kbit", 20_000.0),
        ("uniform(10, 30)", 20.0),
        ("exponential(5min)", 300.0),
        ("lognormal(30, 0.5)", 30 * math.exp(0.125)),
        ("gamma(12, 3)", 12.0),
        ("0.75*constant(4) + 0.25 * 20", 8.0),
        ("3*lognormal(1,0)+1*exponential(5)", 2.0),
    ],
)
def test_means(text: str, mean: float) -> None:
    distribution, rng = parse(text), np.random.default_rng(1)
    assert distribution.mean == pytest.approx(mean)
    drawn = [distribution.draw(rng) for _ in range(20_000)]
    assert min(drawn) >= 0
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)


def test_the_spread_is_that_of_the_closed_form() -> None:
    rng = np.random.default_rng(2)
    lognormal = np.log([parse("lognormal(30, 0.5)").draw(rng) for _ in range(20_000)])
    assert np.median(lognormal) == pytest.approx(math.log(30), abs=0.02)
    assert np.std(lognormal) == pytest.approx(0.5, rel=0.03)
    gamma = [parse("gamma(12, 3)").draw(rng) for _ in range(20_000)]
    assert np.var(gamma) == pytest.approx(12**2 / 3, rel=0.06)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lognormal",
        "lognormal()",
        "lognormal(1)",
        "lognormal(1, 2, 3)",
        "lognormal(0, 1)",
        "uniform(3, 1)",
        "normal(1, 2)",
        "3 parsecs",
        "-4",
        "1 + 2 3",
        "0*4 + 1*5",
        "2**3",
        "__import__('os')",
        "exponential(1e999)",
        "+".join(["1*1"] * 17),
        "1" * 500,
    ],
)
def test_what_is_wrong_is_said(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@given(st.text(alphabet="0123456789.e+-*(), " + "".join(FAMILIES), max_size=60) | st.text(max_size=30))
def test_nothing_else_comes_of_a_text(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse(text).mean >= 0
