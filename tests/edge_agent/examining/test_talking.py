"""What a real Mosquitto does not let a device do: come in, speak, hear, send large packets. Nothing is left of it."""

from __future__ import annotations

from typing import Any

import pytest

from fedmq_edge_agent.examining.findings import Finding
from fedmq_protocol.aio import Message
from tests.broker_fixtures import PATIENCE_S, Connect, silence
from tests.edge_agent.examining.clinic import DEVICE, Clinic, be_known, findings_of

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
    "packets",
)


async def examined(clinic: Clinic, port: int, *, known: bool = True, **changes: Any) -> dict[str, Finding]:
    settings = clinic.settings(port, changes)
    if known:
        be_known(settings)
    return await findings_of(settings, *NAMES)


async def test_a_wrong_password(clinic: Clinic) -> None:
    """On a listener without client certificates."""
    certificate, key = clinic.authority.issue("broker", hosts=("127.0.0.1",))
    passwords = clinic.folder / "passwords"
    passwords.write_text("")
    passwords.chmod(0o700)
    lines = (
        "listener {port} 127.0.0.1",
        f"certfile {certificate}",
        f"keyfile {key}",
        "allow_anonymous false",
        f"password_file {passwords}",
    )
    port = clinic.start_broker("\n".join(lines)).port
    by_password: dict[str, Any] = {
        "cert_file": None,
        "key_file": None,
        "username": DEVICE,
        "password": "wrong",
    }
    found = await examined(clinic, port, **by_password)
    assert found["certificate"].level == "ok"
    assert found["tls"].level == "ok"
    assert found["connection"].level == "failed"
    assert f"refuses the user {DEVICE!r}" in found["connection"].found
    assert "password_file" in found["connection"].mend
    found = await examined(clinic, port, **{**by_password, "username": None, "password": None})
    assert "refuses an anonymous client" in found["connection"].found
    assert found["rights"].level == "skipped"


@pytest.mark.parametrize("topic", ["presence", "up/hello", "up/update", "up/get"])
async def test_an_own_topic_on_which_the_device_may_not_publish(clinic: Clinic, topic: str) -> None:
    port = clinic.open(access=clinic.access(without=topic))
    found = await examined(clinic, port)
    assert found["rights"].level == "failed"
    assert f"publish on dev/{DEVICE}/{topic} (" in found["rights"].found
    assert f"fedmq device doctor {DEVICE}" in found["rights"].mend
    assert found["packets"].level == "skipped"


async def test_a_device_of_another_federation(clinic: Clinic) -> None:
    """Its certificate is good, its access list is another federation's."""
    settings = clinic.settings(clinic.open(), federation="office")
    found = await findings_of(settings, *NAMES)
    assert found["rights"].level == "failed"
    assert "of fedmq/v1/office" in found["rights"].found
    assert "'office'" in found["rights"].mend


async def test_mqtt_3_1_1_does_not_tell_who_may_speak(clinic: Clinic) -> None:
    found = await examined(clinic, clinic.open(access=clinic.access(without="up/hello")), protocol="3.1.1")
    assert found["rights"].level == "ok"
    assert "MQTT 3.1.1 does not say" in found["rights"].found


async def test_a_second_board_with_the_same_identity(
    clinic: Clinic, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent is thrown out, and comes back at once."""
    monkeypatch.setattr("fedmq_edge_agent.examining.talking.ALONE_S", PATIENCE_S)
    port = clinic.open()
    reach = clinic.reach(port, DEVICE, reconnect_min_s=0.1, reconnect_max_s=0.1)
    await connect(reach.pop("url"), "the clone", **reach)
    found = await examined(clinic, port)
    assert found["connection"].level == "ok"
    assert found["identity"].level == "failed"
    assert "a second client named" in found["identity"].found
    assert "cloned card" in found["identity"].mend
    assert found["rights"].level == "skipped"


async def test_a_broker_that_names_a_smaller_packet(clinic: Clinic) -> None:
    found = await examined(clinic, clinic.open("max_packet_size 20000"))
    assert found["packets"].level == "warning"
    assert "20,000 bytes" in found["packets"].found
    assert "max_packet_size" in found["packets"].mend
    found = await examined(clinic, clinic.open("max_packet_size 3000"))
    assert found["packets"].level == "failed"
    assert "3,000 bytes" in found["packets"].found


async def test_a_broker_that_drops_large_messages(clinic: Clinic) -> None:
    """message_size_limit is not told at the start: it shows when a large message is sent."""
    found = await examined(clinic, clinic.open("message_size_limit 40000"))
    assert found["packets"].level == "failed"
    assert "a packet of 131,072 bytes does not get through, one of 32,768 does" in found["packets"].found
    assert "max_packet_bytes = 32768" in found["packets"].mend


async def test_a_broker_that_hangs_up_on_large_packets(clinic: Clinic) -> None:
    """So a 3.1.1 client learns of max_packet_size."""
    found = await examined(clinic, clinic.open("max_packet_size 20000"), protocol="3.1.1")
    assert found["packets"].level == "failed"
    assert "does not get through" in found["packets"].found


async def test_a_device_that_was_never_started_sends_nothing_large(clinic: Clinic) -> None:
    found = await examined(clinic, clinic.open(), known=False)
    assert "never started" in found["state"].found
    assert found["packets"].level == "ok"
    assert "none was sent" in found["packets"].found
    assert not (clinic.folder / "state").exists()


async def test_nothing_that_counts_is_said(clinic: Clinic, connect: Connect) -> None:
    """Whoever listens to everything hears empty messages, and a chunk of an upload that there is not."""
    port = clinic.open()
    reach = clinic.reach(port)
    listener = await connect(reach.pop("url"), "listener", **reach)
    await listener.subscribe(["#"])
    events = listener.events()
    settings = clinic.settings(port)
    be_known(settings)
    before = {path.name: path.read_bytes() for path in settings.state_dir.iterdir()}
    await findings_of(settings, *NAMES)

    async def probe() -> None:
        await listener.publish("marker", b"x")

    heard: list[Message] = await silence(events, probe, "marker")
    spoken = [message for message in heard if message.payload]
    assert [message.topic for message in spoken] == [clinic.topics.up(DEVICE, "chunk")]
    assert len(spoken[0].payload) > 130_000
    assert not any(message.retained for message in heard)
    assert {path.name: path.read_bytes() for path in settings.state_dir.iterdir()} == before
