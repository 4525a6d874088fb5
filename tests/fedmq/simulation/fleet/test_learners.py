"""What a fleet learns: gradients against finite differences, data as they were dealt, sizes as codecs give them."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.simulation.fleet.distributions import parse
from fedmq.simulation.fleet.learners import Data, Pace, TableLearner, expected_sizes
from fedmq.simulation.fleet.tables import TABLES, deal, load
from fedmq_protocol.codecs import CodecSpec

PACE = Pace({"a": 1.0}, parse("1"))


def learner(hidden: int) -> TableLearner:
    rng = np.random.default_rng(0)
    data = Data(rng.standard_normal((12, 5)).astype(np.float32), rng.integers(0, 3, 12))
    return TableLearner("toy", {"a": data}, data, classes=3, hidden=hidden, pace=PACE, seed=1)


@pytest.mark.parametrize("hidden", [0, 4])
def test_the_gradient_is_that_of_the_loss(hidden: int) -> None:
    toy, rng = learner(hidden), np.random.default_rng(3)
    data = toy._parts["a"]
    weights = rng.standard_normal(toy.schema.size).astype(np.float32)
    loss, gradient = toy.gradient(weights, data.x, data.y)
    assert loss == pytest.approx(toy.evaluate(weights)[0], rel=1e-5)
    for place in range(0, len(weights), 3):
        step = np.zeros_like(weights)
        step[place] = 1e-2
        slope = (toy.evaluate(weights + step)[0] - toy.evaluate(weights - step)[0]) / 2e-2
        assert gradient[place] == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_dealt(name: str) -> None:
    train, held_out, classes = load(name, 0)
    assert abs(train.x.mean()) < 1e-4
    assert set(held_out.y.tolist()) <= set(range(classes))
    rng, devices = np.random.default_rng(0), [f"dev-{number}" for number in range(30)]
    even = deal(train, devices, examples=50, alpha=None, classes=classes, rng=rng)
    uneven = deal(train, devices, examples=50, alpha=0.05, classes=classes, rng=rng)
    assert all(len(part.y) == 50 for part in (*even.values(), *uneven.values()))

    def largest(parts: dict[str, Data]) -> float:
        return float(np.mean([np.bincount(part.y).max() / 50 for part in parts.values()]))

    assert largest(uneven) > largest(even) + 0.1


def test_expected_sizes_are_those_of_the_codecs() -> None:
    dense = CodecSpec("float32")
    sizes = expected_sizes(10_000, up=dense, down=dense, snapshot="int8")
    assert sizes.update == pytest.approx(40_000, rel=0.12)  # noise of float32 hardly compresses
    assert sizes.snapshot == pytest.approx(10_000, rel=0.1)
    sparse = expected_sizes(100_000, up=CodecSpec("topk-log4", 0.01), down=dense, snapshot="int8")
    assert 1_000 < sparse.update < 2_000
