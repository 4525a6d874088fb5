"""A device whose disk is full, between the real cores: the operator reads which device and why, and it comes back."""

from __future__ import annotations

import pytest

from fedmq.simulation.federation import Cast, Federation
from fedmq.simulation.learner import ToyLearner
from fedmq_coordinator.core.facts import UpdateAccepted
from fedmq_coordinator.core.settings import RunSettings

FULL = "the disk is full; make room on it: cannot write"


def accepted(world: Federation, device: str) -> int:
    facts = world.coordinator.journal.read()
    return sum(isinstance(fact, UpdateAccepted) and fact.device == device for fact in facts)


@pytest.mark.parametrize("mode", ["sync", "fedbuff"])
def test_the_operator_reads_which_device_has_a_full_disk(mode: str) -> None:
    world = Federation(2, Cast(ToyLearner(seconds=10.0), ["dev-0", "dev-1", "dev-2"]))
    world.start()
    world.request(
        RunSettings.model_validate(
            {
                "mode": mode,
                "rounds": 10_000,
                "seed": 5,
                "federated_evaluation": False,
                "strategy": {"max_norm_ratio": 1e6},
            }
        )
    )
    world.world.run(world.world.now + 60.0)
    before = accepted(world, "dev-1")
    assert before > 0
    world.devices["dev-1"].disk.full = True
    world.world.run(world.world.now + 60.0)
    at_most = accepted(world, "dev-1")
    assert at_most <= before + 2  # what was under way
    others = accepted(world, "dev-0")
    world.world.run(world.world.now + 600.0)
    assert accepted(world, "dev-1") == at_most, "it takes no leases that it could not commit"
    assert accepted(world, "dev-0") > others, "the others go on"
    shown = world.coordinator.core.view(now=world.coordinator.now).devices
    problems = {device.device: device.problem for device in shown if device.problem}
    assert list(problems) == ["dev-1"]
    assert problems["dev-1"].startswith(FULL)
    world.devices["dev-1"].disk.full = False
    world.world.run(world.world.now + 400.0)
    assert accepted(world, "dev-1") > at_most
