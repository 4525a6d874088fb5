"""The roster, kept up to date by each event, is what a look at every device gives; `World.tell` checks it."""

from __future__ import annotations

import random

import pytest

from fedmq_coordinator.core import events as e
from fedmq_protocol.messages import Report
from tests.coordinator.core.world import World, assert_same_bits, settings

DEVICES = [f"dev-{number:02}" for number in range(40)]
MODES = ["sync", "fedbuff", "fedasync"]


def some_history(mode: str, seed: int, *, events: int) -> World:
    """Devices come, go, train, fail, come late and not at all; the coordinator dies now and then."""
    rng, world = random.Random(seed), World()
    selection = {"fraction_train": rng.choice([0.1, 0.5, 1.0]), "round_timeout_s": 30.0}
    world.start_run(settings(mode=mode, rounds=10_000, seed=seed, evaluate_every=0, selection=selection))
    session = dict.fromkeys(DEVICES, 0)
    for _ in range(events):
        run, what = world.core.active, rng.random()
        assert run is not None
        at_work = sorted(run.leases)
        name = rng.choice(at_work if at_work and rng.random() < 0.5 else DEVICES)
        held = run.leases.get(name)
        if what < 0.2 or name not in world.devices:
            session[name] += 1
            world.join(name, session=session[name], problem="hot" if rng.random() < 0.1 else "")
        elif what < 0.3:
            world.leave(name, session=session[name])
        elif what < 0.35:
            world.pass_time(rng.choice([0.1, 3.0, 20.0]))
        elif what < 0.37:
            world.restart()
        elif what < 0.38:
            world.tell(e.BrokerDisconnected("gone"))
            world.tell(e.BrokerConnected())
        elif what < 0.45 and held is not None:
            report = Report(code="busy", detail="not now", run=run.id, lease=held.lease)
            world.say(world.devices[name], "report", report)
        elif held is not None:
            world.now += rng.random()
            world.send(name, 0.1, lease=held.lease, base=held.version)
    return world


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_it_follows_every_event(mode: str, seed: int) -> None:
    world = some_history(mode, seed, events=250)
    run = world.core.active
    assert run is not None
    assert run.num_accepted > 10, "not much of a history"
    assert_same_bits(world.core, world.replayed())


def test_ends_of_leases_that_are_over_do_not_pile_up() -> None:
    world = World()
    world.start_run(settings(mode="fedasync", rounds=10_000, evaluate_every=0))
    world.join("dev-1")
    world.join("dev-2")
    for _ in range(300):
        for name in ("dev-1", "dev-2"):
            run = world.core.active
            assert run is not None
            world.send(name, 0.1, lease=run.leases[name].lease)
    assert len(world.core._desk.roster._expiries) < 100
