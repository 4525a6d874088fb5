"""A device of a federation's own Mosquitto, whose security plugin refuses what an access list only withholds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmq_broker import membership
from fedmq_broker.dynsec_control import Control
from fedmq_broker.site import Site
from fedmq_edge_agent import AgentSettings
from fedmq_protocol.access import OPERATOR
from tests.broker.gate.world import World
from tests.broker_fixtures import require_mosquitto
from tests.edge_agent.examining.clinic import DEVICE, be_known, findings_of

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


@pytest.fixture
def home(tmp_path: Path) -> Iterator[World]:
    require_mosquitto()
    world = World(Site(tmp_path / "site"))
    world.prepare()
    world.start()
    yield world
    world.stop()


def settings(home: World, **changes: Any) -> AgentSettings:
    given = {"id": DEVICE, "task": "t.py", "broker": home.settings(DEVICE), **changes}
    one = AgentSettings.model_validate({"state_dir": home.site.folder / "state", **given})
    be_known(one)
    return one


@pytest.mark.parametrize("by_password", [False, True])
async def test_a_member_by_certificate_or_password(home: World, *, by_password: bool) -> None:
    await membership.enrol(home.site, [DEVICE], live=home.live, password=by_password)
    how = home.by_password(DEVICE) if by_password else home.settings(DEVICE)
    found = await findings_of(settings(home, broker=how), *NAMES)
    assert [name for name in NAMES if found[name].level != "ok"] == [], found
    if by_password:
        wrong = home.by_password(DEVICE, "not this one")
        found = await findings_of(settings(home, broker=wrong), *NAMES)
        assert found["tls"].level == "ok"
        assert found["connection"].level == "failed"
        assert "password_file" in found["connection"].mend


async def test_a_subscription_that_is_refused(home: World) -> None:
    await membership.enrol(home.site, [DEVICE], live=home.live)
    own = f"{home.topics.root}/dev/{DEVICE}/down/+"
    async with Control(home.live, lock=home.site.member(OPERATOR).folder / "lock") as control:
        acl = {"rolename": DEVICE, "acltype": "subscribePattern", "topic": own}
        assert await control.command([{"command": "removeRoleACL", **acl}]) == [None]
    found = await findings_of(settings(home), *NAMES)
    assert found["rights"].level == "failed"
    assert f"subscribe to dev/{DEVICE}/down/+" in found["rights"].found
    assert f"fedmq device doctor {DEVICE}" in found["rights"].mend


async def test_a_certificate_that_the_plugin_does_not_know(home: World) -> None:
    """It comes in, as every certificate of the authority does, and may do nothing."""
    await membership.enrol(home.site, [DEVICE], live=home.live)
    async with Control(home.live, lock=home.site.member(OPERATOR).folder / "lock") as control:
        assert await control.command([{"command": "deleteClient", "username": DEVICE}]) == [None]
    found = await findings_of(settings(home), *NAMES)
    assert found["tls"].level == "ok"
    assert "failed" in {found["connection"].level, found["rights"].level}


async def test_a_member_that_was_thrown_out(home: World) -> None:
    await membership.enrol(home.site, [DEVICE], live=home.live)
    kept = {name: (home.site.member(DEVICE).folder / name).read_bytes() for name in ("cert.pem", "key.pem")}
    applied = await membership.revoke(home.site, [DEVICE], live=home.live)
    assert applied.how == "live"
    for name, data in kept.items():
        (home.site.member(DEVICE).folder / name).write_bytes(data)
    found = await findings_of(settings(home), *NAMES)
    assert found["tls"].level == "failed"
    assert "it is revoked" in found["tls"].found
