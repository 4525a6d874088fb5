"""A device as its operator sees it, by a real Mosquitto with the security plugin; each finding by its cause."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmq.member_doctor import CHECKS, Patient, _judged
from fedmq.tables import read
from fedmq_broker import membership
from fedmq_broker.authority import Authority
from fedmq_broker.dynsec_control import Control
from fedmq_broker.guarding.quarantine import Quarantine
from fedmq_broker.site import Site
from fedmq_coordinator.core.views import DeviceView
from fedmq_edge_agent.examining.course import examine
from fedmq_edge_agent.examining.findings import Finding
from fedmq_protocol.access import OPERATOR
from fedmq_protocol.aio import Connection
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.messages import Presence, TaskRef
from fedmq_protocol.signing import SigningKey
from tests.broker.gate.world import HOST, World
from tests.broker_fixtures import require_mosquitto
from tests.fedmq.command_line import CommandLine, one_line

NAME = "kitchen"
KEY = SigningKey(b"k" * 32)
IRIS = TaskRef(name="iris", version="1", schema_hash="ab" * 32)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[World]:
    """A site whose broker runs, with a device."""
    require_mosquitto()
    world = World(Site(tmp_path / "site"))
    world.prepare()
    world.start()
    yield world
    world.stop()


@pytest.fixture
async def home(site: World) -> World:
    def settings(name: str) -> str:
        return f"""
[federation]
name = "home"
[broker]
url = "mqtts://{HOST}:{site.port}"
ca_file = "ca.pem"
cert_file = "cert.pem"
key_file = "key.pem"
[device]
id = "{name}"
task = "fedmq.tasks.iris"
"""

    await membership.enrol(site.site, [NAME], live=site.live, settings=settings)
    return site


@pytest.fixture
async def device(home: World) -> AsyncIterator[Connection]:
    """The device itself, connected."""
    connection = Connection(home.settings(NAME), client_id=NAME)
    await connection.start(wait=True, timeout_s=60.0)
    yield connection
    await connection.stop()


async def speak(home: World, connection: Connection, **changes: Any) -> None:
    topic = home.topics.presence(NAME)
    given = {"online": True, "session": 3, "public_key": KEY.public_key, "tasks": [IRIS], "num_examples": 120}
    body = Presence.model_validate(given | changes)
    await connection.publish(topic, Sealer(sender=NAME, epoch=3, key=KEY).seal(topic, body), retain=True)


async def findings_of(
    home: World, *names: str, name: str = NAME, runs: bool = True, days: float = 0.0
) -> dict[str, Finding]:
    """Examine by all checks or by some, so many days from now."""
    clock = lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=days)  # noqa: E731
    authority = Authority.open(home.site.authority.folder, clock=clock)
    live = home.live if runs else None
    configuration = read(None, environ={})
    patient = Patient(name, configuration, home.site, live, authority, authority.register())
    checks = [check for check in CHECKS if not names or check.name in names]
    try:
        return {finding.name: finding async for finding in examine(checks, patient)}
    finally:
        if patient.control is not None:
            await patient.control.__aexit__(None, None, None)


async def command(home: World, *commands: dict[str, Any]) -> None:
    async with Control(home.live, lock=home.site.member(OPERATOR).folder / "lock") as control:
        assert await control.command(commands) == [None] * len(commands)


async def test_a_device_that_is_well(home: World, device: Connection) -> None:
    await speak(home, device)
    found = await findings_of(home)
    assert {name: one.level for name, one in found.items()} == {
        "member": "ok",
        "quarantine": "ok",
        "certificate": "ok",
        "settings": "ok",
        "revocations": "ok",
        "broker": "ok",
        "access": "ok",
        "packets": "ok",
        "presence": "ok",
        "coordinator": "skipped",
    }, found
    assert "connected" in found["presence"].found
    assert "iris 1, 120 examples" in found["presence"].found
    assert device.is_connected  # nobody threw it out


async def test_nobody_of_that_name(home: World) -> None:
    found = await findings_of(home, name="kitchn")
    assert found["member"].level == "failed"
    assert "fedmq device enroll kitchn" in found["member"].mend
    assert found["access"].level == found["presence"].level == "skipped"


async def test_a_revoked_device(home: World) -> None:
    await membership.revoke(home.site, [NAME], live=home.live)
    found = await findings_of(home, "member", "certificate")
    assert found["member"].level == "failed"
    assert "revoked on" in found["member"].found


async def test_a_change_that_the_broker_was_not_told(home: World) -> None:
    home.stop()
    authority = Authority.open(home.site.authority.folder)
    authority.issue("cellar")
    found = await findings_of(home, "member", name="cellar", runs=False)
    assert found["member"].level == "warning"
    assert "not told yet" in found["member"].found


async def test_a_device_that_was_cut_off(home: World) -> None:
    quarantine = Quarantine(home.site.quarantine)
    quarantine.begin(NAME, "100 messages a second", now=1_795_000_000.0)
    found = await findings_of(home, "member", "quarantine", "broker", "access")
    assert found["quarantine"].level == "failed"
    assert "for the 1. time: 100 messages a second" in found["quarantine"].found
    assert (
        f"until {dt.datetime.fromtimestamp(1_795_000_600, dt.UTC):%Y-%m-%d %H:%M} UTC"
        in found["quarantine"].found
    )
    assert f"fedmq device release {NAME}" in found["quarantine"].mend
    assert found["access"].level == "skipped"


async def test_certificates_that_end(home: World) -> None:
    soon = await findings_of(home, "member", "certificate", days=700)
    assert soon["certificate"].level == "warning"
    assert f"fedmq device renew {NAME}" in soon["certificate"].mend
    late = await findings_of(home, "member", "certificate", "revocations", days=40_000)
    assert late["certificate"].level == "failed"
    assert late["revocations"].level == "failed"
    assert "lets nobody in" in late["revocations"].found


async def test_another_list_than_the_brokers(home: World) -> None:
    home.site.mosquitto.crl.write_bytes(b"")
    found = await findings_of(home, "revocations")
    assert found["revocations"].level == "warning"
    assert "fedmq broker reload" in found["revocations"].mend
    home.site.authority.crl.unlink()
    assert (await findings_of(home, "revocations"))["revocations"].level == "failed"


@pytest.mark.parametrize(
    ("before", "after", "level", "words"),
    [
        ('id = "kitchen"', 'id = "cellar"', "failed", "is for cellar"),
        ('name = "home"', 'name = "office"', "failed", "the federation office"),
        ("[device]", "[devices]", "failed", "did you mean 'device'"),
        ('task = "fedmq.tasks.iris"', "", "warning", "names no task"),
    ],
)
async def test_settings_that_lead_elsewhere(
    home: World, before: str, after: str, level: str, words: str
) -> None:
    path = home.site.member(NAME).settings
    path.write_text(path.read_text().replace(before, after))
    found = await findings_of(home, "member", "settings")
    assert found["settings"].level == level
    assert words in found["settings"].found


async def test_a_host_that_the_brokers_certificate_does_not_name(home: World) -> None:
    path = home.site.member(NAME).settings
    path.write_text(path.read_text().replace(HOST, "broker.elsewhere"))
    found = await findings_of(home, "member", "settings", "broker")
    assert found["broker"].level == "failed"
    assert "the device was told to go to broker.elsewhere" in found["broker"].found
    assert "hosts" in found["broker"].mend


async def test_a_broker_that_does_not_run(home: World) -> None:
    found = await findings_of(home, runs=False)
    assert found["broker"].level == "failed"
    assert "fedmq broker start" in found["broker"].mend
    assert found["access"].level == found["packets"].level == found["presence"].level == "skipped"


async def test_a_certificate_that_the_broker_has_not_read_yet(home: World) -> None:
    membership.prepare(home.site, "home", [HOST, "more.example"])
    found = await findings_of(home, "broker")
    assert found["broker"].level == "warning"
    assert "fedmq broker reload" in found["broker"].mend


async def test_rights_that_are_not_as_they_should_be(home: World) -> None:
    presence = home.topics.presence(NAME)
    lacks = {"command": "removeRoleACL", "rolename": NAME, "acltype": "publishClientSend", "topic": presence}
    await command(home, lacks)
    found = await findings_of(home, "member", "quarantine", "broker", "access")
    assert found["access"].level == "failed"
    assert f"publishClientSend {presence}" in found["access"].found
    back = {**lacks, "command": "addRoleACL", "allow": True}
    more = {**back, "topic": "#", "allow": True}
    await command(home, back, more)
    found = await findings_of(home, "member", "quarantine", "broker", "access")
    assert found["access"].level == "warning"
    assert "publishClientSend #" in found["access"].found
    await command(home, {"command": "removeClientRole", "username": NAME, "rolename": NAME})
    found = await findings_of(home, "member", "quarantine", "broker", "access")
    assert f"lacks the role {NAME}" in found["access"].found


async def test_a_device_that_the_plugin_does_not_know(home: World) -> None:
    await command(home, {"command": "disableClient", "username": NAME})
    assert "disabled" in (await findings_of(home, "member", "quarantine", "broker", "access"))["access"].found
    await command(home, {"command": "deleteClient", "username": NAME})
    found = await findings_of(home, "member", "quarantine", "broker", "access")
    assert found["access"].level == "failed"
    assert "does not know it" in found["access"].found


async def test_packets_larger_than_the_broker_takes(home: World) -> None:
    path = home.site.member(NAME).settings
    path.write_text(path.read_text().replace("[device]", "max_packet_bytes = 100_000_000\n[device]"))
    found = await findings_of(home, "member", "settings", "broker", "packets")
    assert found["packets"].level == "warning"
    assert "max_packet_size" in found["packets"].mend


async def test_what_a_device_says_of_itself(home: World, device: Connection) -> None:
    names = ("member", "broker", "presence")
    found = await findings_of(home, *names)
    assert found["presence"].level == "warning"
    assert "it was never here" in found["presence"].found
    await speak(home, device, problem="the disk is full\x1b[2J")
    found = await findings_of(home, *names)
    assert found["presence"].level == "warning"
    assert "the disk is full" in found["presence"].found
    await speak(home, device, online=False)
    assert "last will" in (await findings_of(home, *names))["presence"].found
    await speak(home, device, online=False, traffic=(1, 2), problem="stopped")
    assert "goodbye" in (await findings_of(home, *names))["presence"].found
    await device.publish(home.topics.presence(NAME), b"nonsense", retain=True)
    assert (await findings_of(home, *names))["presence"].level == "failed"


@pytest.mark.parametrize(
    ("changes", "online", "level", "words"),
    [
        ({}, True, "ok", "idle for 3 min, 5 updates so far"),
        ({"problem": "this device has iris 1 and the run wants 2"}, True, "failed", "wants 2"),
        ({"rejections": {"bad-signature": 2}}, True, "failed", "another key"),
        ({"rejections": {"too-old": 2}}, True, "warning", "2 too-old"),
        ({"state": "training", "lease_age_s": 120.0}, True, "ok", "holds a lease since 2 min"),
        (
            {"state": "training", "since_s": 8.0, "lease_age_s": 0.6},
            True,
            "ok",
            "for 8 s, holds a lease since 1 s,",
        ),
        (None, True, "failed", "has not heard of this device, which is connected"),
        (None, False, "ok", "not heard of this device yet"),
    ],
)
async def test_what_the_coordinator_makes_of_it(
    home: World, changes: dict[str, Any] | None, *, online: bool, level: str, words: str
) -> None:
    authority = home.authority
    patient = Patient(NAME, read(None, environ={}), home.site, None, authority, authority.register())
    patient.presence = Presence(online=online, session=1, public_key=KEY.public_key)
    view: dict[str, Any] = {}
    if changes is not None:
        given = {"device": NAME, "state": "idle", "since_s": 180.0, "updates": 5, **changes}
        view = DeviceView.model_validate(given).model_dump()
    finding = _judged(patient, view)
    assert finding.level == level
    assert words in finding.found


async def test_the_command(home: World, device: Connection, tmp_path: Path) -> None:
    """From the operator's file to the exit code, with a device that is well, one that is not, and no such file."""
    await speak(home, device)
    file = tmp_path / "fed.toml"
    file.write_text(
        f"""
[federation]
name = "home"
[mosquitto]
hosts = ["{HOST}"]
folder = "site"
port = {home.port}
password_port = {home.password_port}
websockets_port = 0
[coordinator]
state_dir = "nowhere"
"""
    )
    (tmp_path / "command").mkdir()
    fedmq = CommandLine(tmp_path / "command")
    well = await asyncio.to_thread(fedmq.run, "device", "doctor", NAME, "--config", str(file), "--json")
    told = json.loads(well.stdout)
    assert (well.returncode, told["verdict"], told["device"]) == (0, "ok", NAME), well
    strange = await asyncio.to_thread(fedmq.run, "device", "doctor", "cellar", "--config", str(file))
    assert strange.returncode == 1
    assert "cellar, seen from here" in strange.stdout
    assert "failed   member" in strange.stdout
    assert max(map(len, strange.stdout.splitlines())) <= 80
    assert device.is_connected
    file.write_text('[federation]\nname = "home"\n')
    lacking = await asyncio.to_thread(fedmq.run, "device", "doctor", NAME, "--config", str(file))
    assert "there is no [mosquitto] table" in one_line(lacking)
