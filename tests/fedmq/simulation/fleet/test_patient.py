"""A device that reads its mail later is, to everybody else, the device that reads it as it comes: to the last fact."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import pytest

from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.federation import Cast, Federation
from fedmq.simulation.fleet.patient import PatientDevice
from fedmq.simulation.learner import ToyLearner
from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.core.effects import Train


@dataclass(frozen=True)
class Slow(ToyLearner):
    """Its devices are of different speed."""

    def train_s(self, device: str, request: Train) -> float:
        return random.Random(f"{device} {request.lease}").lognormvariate(3.0, 0.7)


def history(kind: type[VirtualDevice], mode: str, share: float, *, fail: bool) -> Federation:
    cast = Cast(Slow(), kind=kind, devices=[f"dev-{number:02}" for number in range(40)])
    federation = Federation(5, cast)
    federation.start()
    settings = {
        "mode": mode,
        "rounds": 12,
        "evaluate_every": 0,
        "selection": {"fraction_train": share, "round_timeout_s": 90.0},
        "compression": {"down_density": 0.2, "density": 0.2},
    }
    federation.request(RunSettings.model_validate(settings))
    world, chance = federation.world, random.Random(7)
    for device in federation.devices.values() if fail else ():
        world.after(200 * chance.random(), partial(device.cut_power, down_s=300 * chance.random()))
        world.after(200 * chance.random(), partial(federation.broker.cut, f"fedmq-home-{device.name}"))
    world.run(world.now + 20_000, done=federation.is_over)
    return federation


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("mode", ["sync", "fedbuff", "fedasync"])
def test_the_journal_is_the_same(mode: str, share: float, *, fail: bool) -> None:
    at_once, later = (history(kind, mode, share, fail=fail) for kind in (VirtualDevice, PatientDevice))
    assert at_once.is_over()
    assert list(later.coordinator.journal.read()) == list(at_once.coordinator.journal.read())
    assert later.world.now == at_once.world.now
    assert later.world.steps < at_once.world.steps
    for name, device in later.devices.items():
        device.stop()
        at_once.devices[name].stop()
        assert device.traffic == at_once.devices[name].traffic
        assert device.disk.state == at_once.devices[name].disk.state
