"""A federation whose devices may not always train: the real cores, and a coordinator that knows why nobody comes."""

from __future__ import annotations

from fedmq.simulation.device import DeviceOptions
from fedmq.simulation.federation import Cast, Federation
from fedmq.simulation.learner import ToyLearner
from fedmq_coordinator.core.facts import UpdateAccepted
from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.core.conditions import SETTLE_S, Readings, Rules

COOL, HOT = Readings(temperature=("soc", 40.0)), Readings(temperature=("soc", 90.0))
NAMES = [f"dev-{number}" for number in range(4)]


def test_hot_devices_hold_nobody_up_are_shown_with_their_reason_and_come_back() -> None:
    options = {name: DeviceOptions(conditions=Rules(max_temperature=70)) for name in NAMES[:2]}
    federation = Federation(3, Cast(ToyLearner(), NAMES, options))
    for name in options:
        federation.devices[name].feel(COOL)
    federation.start()
    federation.request(RunSettings.model_validate({"rounds": 60, "seed": 5, "federated_evaluation": False}))
    run_for(federation, rounds=5)
    for name in options:
        federation.devices[name].feel(HOT)
    began = accepted(federation)
    run_for(federation, rounds=15)
    shown = {
        each.device: each for each in federation.coordinator.core.view(now=federation.coordinator.now).devices
    }
    for name in options:
        assert shown[name].state == "unable"
        assert shown[name].problem == "soc is at 90 °C, and it trains up to 70 °C"
    late = [each for each in accepted_devices(federation, since=began) if each in options]
    assert len(late) <= len(options)  # what was on its way when it became hot
    for name in options:
        federation.devices[name].feel(COOL)
    federation.world.run(federation.world.now + SETTLE_S + 1)
    before = accepted(federation)
    run_for(federation, rounds=60)
    assert set(options) <= set(accepted_devices(federation, since=before))


def accepted_devices(federation: Federation, *, since: int = 0) -> list[str]:
    facts = [fact for fact in federation.coordinator.journal.read() if isinstance(fact, UpdateAccepted)]
    return [fact.device for fact in facts[since:]]


def accepted(federation: Federation) -> int:
    return len(accepted_devices(federation))


def run_for(federation: Federation, *, rounds: int) -> None:
    """Until the run has so many rounds, or is over."""

    def there() -> bool:
        run = federation.run()
        return federation.is_over() or (run is not None and run.round >= rounds)

    federation.world.run(federation.world.now + 10_000.0, done=there)
    assert there()
