"""`fedmq broker guard|firewall` and `fedmq device release`, as their users run them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fedmq_broker import membership
from fedmq_broker.dynsec_control import Control
from fedmq_broker.guarding.quarantine import Quarantine
from fedmq_broker.site import Site
from fedmq_protocol.errors import FedmqError
from tests.broker.gate.conftest import stopped, world
from tests.broker.gate.world import World
from tests.fedmq.command_line import CommandLine, one_line

__all__ = ["stopped", "world"]


@pytest.fixture
def toml(tmp_path: Path, world: World) -> Path:
    path = tmp_path / "fed.toml"
    path.write_text(
        '[federation]\nname = "home"\n'
        f'[mosquitto]\nhosts = ["localhost"]\ndevices = 7\nport = {world.port}\n'
        f"password_port = {world.password_port}\nwebsockets_port = 0\n"
    )
    return path


async def known(world: World) -> dict[str, Any]:
    """What the broker knows of the device."""
    async with Control(world.live) as control:
        return await control.client("dev-1") or {}


def until_roles(world: World, number: int) -> None:
    give_up_at = time.monotonic() + 60
    while time.monotonic() < give_up_at:
        with contextlib.suppress(FedmqError):
            if len(asyncio.run(known(world)).get("roles", [])) == number:
                return
        time.sleep(0.1)
    raise AssertionError(world.log[-3_000:])


def test_a_device_is_cut_off_and_released(world: World, toml: Path, fedmq: CommandLine) -> None:
    asyncio.run(membership.enrol(world.site, ["dev-1"], live=world.live))
    Quarantine(world.site.quarantine).begin("dev-1", "it floods", now=time.time())
    guard = fedmq.start("broker", "guard", "--config", str(toml), "--log-format", "json")
    until_roles(world, 0)
    released = fedmq.run("device", "release", "dev-1", "--config", str(toml))
    assert (released.returncode, released.stdout) == (0, "dev-1 is let in again\n")
    assert len(asyncio.run(known(world))["roles"]) == 2
    guard.send_signal(signal.SIGINT)
    said, complaints = guard.communicate(timeout=60)
    assert guard.returncode == 0, complaints
    assert not said
    assert "guarding localhost" in json.loads(complaints.splitlines()[0])["message"]
    again = fedmq.run("device", "release", "dev-1", "--config", str(toml))
    assert one_line(again) == "dev-1 is not in quarantine"


def test_rules_for_the_kernel_name_the_ports(tmp_path: Path, fedmq: CommandLine) -> None:
    toml = tmp_path / "fed.toml"
    toml.write_text('[mosquitto]\nhosts = ["localhost"]\ndevices = 7\npassword_port = 0\n')
    printed = fedmq.run("broker", "firewall", "--config", str(toml))
    assert printed.returncode == 0
    assert "tcp dport { 8883, 8884 }" in printed.stdout
    assert "up to 7 devices behind one address" in printed.stdout
    fewer = fedmq.run("broker", "firewall", "--config", str(toml), "--behind-one-address", "1")
    assert "up to 1 device behind" in fewer.stdout
    assert not Site(tmp_path / "site").folder.exists()


@pytest.mark.parametrize("verb", [("broker", "guard"), ("device", "release", "dev-1")])
def test_without_a_site_there_is_nothing_to_guard(
    tmp_path: Path, fedmq: CommandLine, verb: tuple[str, ...]
) -> None:
    toml = tmp_path / "fed.toml"
    toml.write_text('[federation]\nname = "home"\n')
    assert "there is no [mosquitto] table" in one_line(fedmq.run(*verb, "--config", str(toml)))


def test_a_release_waits_for_a_broker_that_is_down(
    tmp_path: Path, fedmq: CommandLine, toml: Path, world: World
) -> None:
    quarantine = Quarantine(world.site.quarantine)
    quarantine.begin("dev-1", "it floods", now=time.time())
    world.stop()
    for _ in range(2):
        released = fedmq.run("device", "release", "dev-1", "--config", str(toml))
        assert "could not be told (it does not run)" in released.stdout
    assert quarantine.due(now=0.0) == ["dev-1"]
