"""Strategies against closed forms and the papers' own values."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq_coordinator.core.settings import RunSettings, StrategySettings
from fedmq_coordinator.core.strategies import Buffer, Rejection, Submission, make_strategy
from fedmq_coordinator.core.strategies.staleness import staleness_weight
from tests.coordinator.core.world import FLOAT32, SCHEMA, World, settings


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"staleness": "constant"}, {0: 1.0, 7: 1.0}),
        ({"staleness": "polynomial", "staleness_exponent": 0.5}, {0: 1.0, 3: 0.5, 8: 1 / 3}),
        ({"staleness": "hinge"}, {0: 1.0, 4: 1.0, 5: 1 / 11, 6: 1 / 21}),
    ],
)
def test_staleness_functions_have_the_papers_values(
    fields: dict[str, object], values: dict[int, float]
) -> None:
    chosen = StrategySettings.model_validate(fields)
    for staleness, value in values.items():
        assert staleness_weight(staleness, chosen) == pytest.approx(value)
    weights = [staleness_weight(t, chosen) for t in range(50)]
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize("mode", ["sync", "fedasync", "fedbuff"])
def test_too_old_is_refused_and_the_limit_is_not(mode: str) -> None:
    strategy = make_strategy(settings(mode=mode, strategy={"max_staleness": 7}), in_flight=10)
    assert isinstance(strategy.accept(Submission(10, 7)), float)
    refused = strategy.accept(Submission(10, 8))
    assert isinstance(refused, Rejection)
    assert refused.reason == "too-old"


@pytest.mark.parametrize("mode", ["sync", "fedasync", "fedbuff"])
def test_a_device_ten_times_slower_than_the_median_is_heard(mode: str) -> None:
    strategy = make_strategy(RunSettings.model_validate({"mode": mode}), in_flight=40)
    size = getattr(strategy, "buffer_size", 1 if mode == "fedasync" else 40)
    versions_while_it_trains = 10 * 40 // size
    assert isinstance(strategy.accept(Submission(10, versions_while_it_trains)), float)


@pytest.mark.parametrize(("in_flight", "size"), [(1, 1), (2, 2), (5, 2), (10, 5), (400, 10)])
def test_fedbuff_sizes_its_buffer_by_the_devices_in_flight(in_flight: int, size: int) -> None:
    strategy = make_strategy(settings(mode="fedbuff"), in_flight=in_flight)
    assert not strategy.ready(Buffer(size - 1, 1.0))
    assert strategy.ready(Buffer(size, 1.0))


def test_fedavg_is_the_mean_weighted_by_examples() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.join(name)
    run = world.start_run(settings(compression=FLOAT32, selection={"min_available_devices": 3}))
    rng = np.random.default_rng(0)
    deltas = {name: rng.normal(size=SCHEMA.size).astype(np.float32) for name in ("a", "b", "c")}
    examples = {"a": 10, "b": 70, "c": 20}
    for name, delta in deltas.items():
        assert world.send(name, delta, num_examples=examples[name]).outcome == "accepted"
    expected = sum(examples[name] * delta.astype(np.float64) for name, delta in deltas.items()) / 100
    np.testing.assert_allclose(run.model.weights, expected, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(run.model.replica, expected, rtol=2e-6, atol=1e-7)


def test_fedasync_in_delta_form_is_the_papers_mixing_where_nothing_is_late() -> None:
    alpha = 0.6
    world = World()
    world.join("a")
    start = np.random.default_rng(1).normal(size=SCHEMA.size).astype(np.float32)
    run = world.start_run(
        settings(
            mode="fedasync",
            compression=FLOAT32,
            selection={"min_available_devices": 1},
            strategy={"alpha": alpha, "publish_interval_s": 0},
        ),
        initial=start,
    )
    model = start.astype(np.float64)
    for turn in range(5):
        local = model + np.random.default_rng(turn).normal(size=SCHEMA.size)
        delta = (local - run.model.replica).astype(np.float32)
        world.send("a", delta, lease=run.leases["a"].lease)
        model = (1 - alpha) * model + alpha * local
        np.testing.assert_allclose(run.model.weights, model, rtol=1e-5, atol=1e-5)


def test_fedbuff_with_the_whole_cohort_and_no_delay_is_fedavg() -> None:
    rng = np.random.default_rng(2)
    rounds = [{name: rng.normal(size=SCHEMA.size).astype(np.float32) for name in "abcd"} for _ in range(4)]
    models = []
    for mode in ("sync", "fedbuff"):
        world = World()
        for name in "abcd":
            world.join(name)
        run = world.start_run(
            settings(
                mode=mode,
                compression=FLOAT32,
                selection={"min_available_devices": 4},
                strategy={"buffer_size": 4, "publish_interval_s": 0, "server_lr": 1.0},
            )
        )
        for turn in rounds:
            world.pass_time(1)
            leases = {name: run.leases[name].lease for name in "abcd"}
            for number, (name, delta) in enumerate(turn.items()):
                world.send(name, delta, lease=leases[name], num_examples=10 + number)
        models.append(run.model.weights.copy())
    assert models[0].tobytes() == models[1].tobytes()


def test_one_full_batch_step_a_device_is_centralised_gradient_descent() -> None:
    """Least squares: the average of the devices' gradient steps, weighted by examples, is the step on all the data."""
    rng = np.random.default_rng(3)
    features, targets = rng.normal(size=(60, 400)), rng.normal(size=60)
    parts = {"a": slice(0, 10), "b": slice(10, 45), "c": slice(45, 60)}
    lr = 0.01

    def gradient(w: np.ndarray, rows: slice) -> np.ndarray:
        x, y = features[rows], targets[rows]
        return np.asarray(x.T @ (x @ w - y) / len(y))

    world = World()
    for name in parts:
        world.join(name)
    run = world.start_run(settings(rounds=20, compression=FLOAT32, selection={"min_available_devices": 3}))
    central = np.zeros(400)
    for _ in range(20):
        held = run.model.replica[:400].astype(np.float64)
        for name, rows in parts.items():
            delta = np.zeros(SCHEMA.size, dtype=np.float32)
            delta[:400] = -lr * gradient(held, rows)
            world.send(name, delta, num_examples=rows.stop - rows.start)
        central = central - lr * gradient(central, slice(0, 60))
    np.testing.assert_allclose(run.model.replica[:400], central, rtol=1e-4, atol=1e-6)


def test_a_late_update_weighs_less_by_its_staleness() -> None:
    world = World()
    for name in ("a", "b"):
        world.join(name)
    run = world.start_run(
        settings(
            rounds=9,
            compression=FLOAT32,
            selection={"min_updates": 1, "deadline_factor": 0, "round_timeout_s": 5},
        )
    )
    first = run.cohort_lease
    for _ in range(3):
        world.send("a", 0.0)
        world.pass_time(6)
    assert run.version == 3
    before = run.model.weights.copy()
    assert world.send("b", 1.0, lease=first, base=0).outcome == "accepted"
    world.send("a", 0.0)
    world.pass_time(6)
    share = 0.5 / (0.5 + 1.0)  # s(3) = 1/2, equal numbers of examples
    np.testing.assert_allclose(run.model.weights - before, share, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "in_flight", "length"),
    [
        ({"mode": "sync"}, 10, 1.6),
        ({"mode": "sync", "compression": FLOAT32}, 10, 1.0),
        ({"mode": "sync", "compression": {"density": 0.25, "down_density": 0.25}}, 10, 1.0),
        ({"mode": "sync", "strategy": {"server_lr": 0.5}}, 10, 0.5),
        ({"mode": "fedbuff"}, 10, 0.6),
        ({"mode": "fedbuff", "strategy": {"buffer_size": 2}}, 10, 0.24),
        ({"mode": "fedbuff"}, 2, 1.0),
        ({"mode": "fedbuff", "strategy": {"server_lr": 0.5}}, 10, 0.5),
        ({"mode": "fedasync"}, 1, 1.0),
        ({"mode": "fedasync"}, 100, 0.25),
        ({"mode": "fedasync", "strategy": {"server_lr": 0.5}}, 100, 0.5),
    ],
)
def test_the_length_of_a_step(fields: dict[str, object], in_flight: int, length: float) -> None:
    strategy = make_strategy(settings(**fields), in_flight=in_flight)
    per_weight = strategy.scale(Buffer(2, 4.0)) * (1.0 if fields["mode"] == "fedasync" else 4.0)
    assert per_weight == pytest.approx(length)


def test_many_stale_steps_do_not_run_away() -> None:
    """A quadratic with ten devices in flight and steps of K: a loop with delay, which has to converge."""
    for size in (2, 3, 5):
        strategy = make_strategy(settings(mode="fedbuff", strategy={"buffer_size": size}), in_flight=10)
        w, seen = 1.0, [1.0] * 10
        for turn in range(400):
            deltas = [-1.0 * seen[(turn * size + each) % 10] for each in range(size)]
            w += strategy.scale(Buffer(size, float(size))) * sum(deltas)
            for each in range(size):
                seen[(turn * size + each) % 10] = w
        assert abs(w) < 1e-3
