"""A coordinator that is not there, is another, or is silent; and a model whose chunks lack or lie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fedmq_edge_agent.examining.findings import Finding
from fedmq_protocol.signing import SigningKey
from tests.broker_fixtures import Connect
from tests.edge_agent.examining.clinic import DEVICE, Clinic, be_known, findings_of
from tests.edge_agent.scripted import ScriptedCoordinator
from tests.edge_agent.shell.on_air import OnAir

NAMES = (
    "agent",
    "state",
    "certificate",
    "name",
    "route",
    "tls",
    "connection",
    "identity",
    "rights",
    "coordinator",
    "run",
    "model",
)


class Hospital:
    """A clinic with a coordinator in the house."""

    def __init__(self, clinic: Clinic, port: int, on_air: OnAir) -> None:
        self.clinic, self.port, self.air, self.script = clinic, port, on_air, on_air.script

    async def examined(self, *, known: bool = False, **changes: Any) -> dict[str, Finding]:
        settings = self.clinic.settings(self.port, changes.pop("broker", None), **changes)
        if known:
            be_known(settings)
        return await findings_of(settings, *NAMES)


@pytest.fixture
async def hospital(clinic: Clinic, connect: Connect) -> AsyncIterator[Hospital]:
    port = clinic.open()
    reach = clinic.reach(port)
    air = OnAir(await connect(reach.pop("url"), "coordinator", **reach), ScriptedCoordinator())
    yield Hospital(clinic, port, air)
    await air.close()


async def test_a_federation_that_is_well(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.script.publish()
    await hospital.air.announce()
    found = await hospital.examined()
    assert found["coordinator"].level == "ok"
    assert found["run"].found == "r1 trains digits 1, at version 3"
    assert found["model"].level == "ok"
    # The snapshot of 2,500 bytes in chunks of 1,000, two deltas; the third came with the announcement.
    assert found["model"].found == "version 3: 5 chunks, 3.4 kB, every hash as promised"


@pytest.fixture
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something does not come."""
    monkeypatch.setattr("fedmq_edge_agent.examining.federation.RETAINED_S", 2.0)


@pytest.mark.usefixtures("_little_patience")
async def test_no_coordinator(hospital: Hospital) -> None:
    found = await hospital.examined()
    assert found["coordinator"].level == "warning"
    assert "no sign" in found["coordinator"].found
    assert "fedmq coordinator start" in found["coordinator"].mend
    assert found["run"].level == "skipped"
    assert found["model"].level == "skipped"


@pytest.mark.usefixtures("_little_patience")
async def test_a_status_that_the_device_may_not_read(clinic: Clinic, connect: Connect) -> None:
    """Mosquitto's access lists grant the subscription, and then deliver nothing."""
    port = clinic.open(access=clinic.access(without="coordinator/status"))
    reach = clinic.reach(port)
    air = OnAir(await connect(reach.pop("url"), "coordinator", **reach), ScriptedCoordinator())
    await air.announce()
    found = await findings_of(clinic.settings(port), *NAMES)
    await air.close()
    assert found["rights"].level == "ok"
    assert found["coordinator"].level == "warning"
    assert "read coordinator/status" in found["coordinator"].mend


async def test_a_coordinator_that_is_away(hospital: Hospital) -> None:
    await hospital.air.announce()
    await hospital.air.say(hospital.script.status(online=False), retain=True)
    found = await hospital.examined()
    assert found["coordinator"].level == "warning"
    assert "away" in found["coordinator"].found
    assert found["model"].level == "ok"


async def test_another_coordinator_than_the_one_that_is_believed(hospital: Hospital) -> None:
    await hospital.air.announce()
    other = SigningKey(b"o" * 32).public_key
    found = await hospital.examined(coordinator_key=other.hex())
    assert found["coordinator"].level == "failed"
    assert "coordinator_key" in found["coordinator"].mend
    assert found["model"].level == "skipped"
    state = hospital.clinic.folder / "state"
    state.mkdir()
    (state / "coordinator.pub").write_text(other.hex())
    found = await hospital.examined()
    assert found["coordinator"].level == "failed"
    assert f"remove {state}/coordinator.pub" in found["coordinator"].mend


async def test_a_coordinator_that_does_not_answer(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmq_edge_agent.examining.federation.ANSWER_S", 0.2)
    await hospital.air.announce()
    found = await hospital.examined(known=True)
    assert found["coordinator"].level == "warning"
    assert "does not answer" in found["coordinator"].found
    assert f"fedmq device doctor {DEVICE}" in found["coordinator"].mend


@pytest.mark.usefixtures("_little_patience")
async def test_a_chunk_that_the_broker_does_not_have(hospital: Hospital) -> None:
    await hospital.air.announce()
    lacking = hospital.script.topics.chunk("r1", 0, "snapshot", 1)
    await hospital.air.connection.publish(lacking, b"", retain=True)
    found = await hospital.examined()
    assert found["model"].level == "warning"
    assert "model/r1/0/s1" in found["model"].found
    await hospital.air.say(hospital.script.status(online=False), retain=True)
    found = await hospital.examined()
    assert found["model"].level == "failed"
    assert "start the coordinator" in found["model"].mend


@pytest.mark.usefixtures("_little_patience")
async def test_chunks_that_the_device_may_not_read(clinic: Clinic, connect: Connect) -> None:
    port = clinic.open(access=clinic.access(without="model/"))
    reach = clinic.reach(port)
    air = OnAir(await connect(reach.pop("url"), "coordinator", **reach), ScriptedCoordinator())
    await air.announce()
    found = await findings_of(clinic.settings(port), *NAMES)
    await air.close()
    assert found["model"].level == "warning"
    assert "may this device read model/+/+/+" in found["model"].mend


async def test_chunks_that_are_another_versions(hospital: Hospital) -> None:
    """Signed by the coordinator, and not what its announcement promises."""
    await hospital.air.announce()
    hospital.script.begin("r1")  # another first version under the same name
    await hospital.air.announce(chunks=False)
    found = await hospital.examined()
    assert found["model"].level == "failed"
    assert "not what the coordinator promised" in found["model"].found


async def test_chunks_of_somebody_else(hospital: Hospital) -> None:
    await hospital.air.announce()
    forger = ScriptedCoordinator(key=SigningKey(b"f" * 32))
    for topic, packet in forger.retained().items():
        await hospital.air.connection.publish(topic, packet, retain=True)
    found = await hospital.examined()
    assert found["model"].level == "failed"


async def test_chunks_larger_than_this_device_takes(hospital: Hospital) -> None:
    hospital.script.chunk_bytes = 20_000
    hospital.script.begin("r1", snapshot_bytes=30_000)
    await hospital.air.announce()
    found = await hospital.examined(broker={"max_packet_bytes": 8_192})
    assert found["model"].level == "failed"
    assert "8,192" in found["model"].found
    assert "max_packet_bytes" in found["model"].mend


async def test_of_a_large_model_the_ends_are_fetched(hospital: Hospital) -> None:
    hospital.script.chunk_bytes = 60_000
    hospital.script.begin("r1", snapshot_bytes=300_000)
    hospital.script.versions = hospital.script.versions[:1]
    await hospital.air.announce(
        manifest=hospital.script.manifest.model_copy(update={"chain_bytes": 50_000_000})
    )
    found = await hospital.examined()
    assert found["model"].level == "ok"
    assert found["model"].found.startswith("2 chunks of 50.3 MB were fetched")


async def test_a_run_that_is_over(hospital: Hospital) -> None:
    await hospital.air.announce(state="finished")
    found = await hospital.examined()
    assert "finished" in found["run"].found
    assert found["model"].level == "skipped"
