"""A device whose disk was replaced and whose clock is behind: its sessions begin anew, below those that are known."""

from __future__ import annotations

import pytest

from fedmq.simulation.federation import Cast, Federation
from fedmq.simulation.learner import ToyLearner
from fedmq_coordinator.core.settings import RunSettings

DAY_S = 86_400.0


@pytest.mark.parametrize("clock", ["none", "a day behind"])
def test_a_run_that_needs_it_goes_on(clock: str) -> None:
    """Both devices are needed in each round, and nobody sets the clock."""
    federation = Federation(3, Cast(ToyLearner(seconds=60.0), ["dev-0", "dev-1"]))
    federation.start()
    selection = {"min_available_devices": 2, "fraction_train": 1.0}
    federation.request(
        RunSettings.model_validate({"mode": "sync", "rounds": 12, "seed": 5, "selection": selection}),
        run="r1",
    )
    world, device = federation.world, federation.devices["dev-0"]
    world.run(world.now + 240)
    run = federation.coordinator.core.runs["r1"]
    at, before = run.round, device.agent.session
    assert 1 < at < 12
    assert before is not None
    device.cut_power()
    device.disk.wipe()
    device.clock.jump(-device.clock() if clock == "none" else -DAY_S)
    world.after(30.0, device.start)
    world.run(world.now + DAY_S, done=lambda: run.over)
    assert (run.state, run.round) == ("finished", 12)
    assert device.agent.session is not None
    assert device.agent.session > before
    assert run.updates_by_device["dev-0"] > at, "its updates count again"
