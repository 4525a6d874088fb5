"""What the security plugin is told: the protocol's rules and no more, and what a running broker survives."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from fedmq_broker import membership
from fedmq_broker.dynsec import render
from fedmq_broker.dynsec_control import Control, ControlError, Synced
from fedmq_protocol.access import MONITOR, OPERATOR, ROLES, rules
from tests.broker.gate.conftest import ComeIn
from tests.broker.gate.world import World

ACTIONS = {"publishClientSend": "publish", "publishClientReceive": "receive", "subscribePattern": "subscribe"}


async def test_each_member_is_allowed_the_protocol_s_rules_and_no_more(stopped: World) -> None:
    await membership.enrol(stopped.site, ["dev-1", "gone"], live=None)
    await membership.enrol(stopped.site, ["board"], live=None, password=True)
    await membership.revoke(stopped.site, ["gone"], live=None)
    rendered = render(stopped.authority.members().values(), stopped.topics)
    allowed = {
        role["rolename"]: {(ACTIONS[each["acltype"]], each["topic"]) for each in role["acls"]}
        for role in rendered["roles"]
    }
    assert {each["username"] for each in rendered["clients"]} == {"dev-1", "board", *ROLES}
    for client in rendered["clients"]:
        own = set().union(*(allowed[role["rolename"]] for role in client["roles"]))
        assert own == {(rule.action, rule.filter) for rule in rules(stopped.topics, client["username"])}
    assert not any(rendered["defaultACLAccess"][each] for each in ("publishClientSend", "subscribe"))
    assert not rendered["defaultACLAccess"]["publishClientReceive"]
    with_password = [each["username"] for each in rendered["clients"] if "password" in each]
    assert with_password == ["board"]


async def test_the_hash_of_a_password_is_pbkdf2(stopped: World) -> None:
    (made,), _ = await membership.enrol(stopped.site, ["board"], live=None, password=True)
    verifier, password = made.member.verifier, made.password
    assert verifier is not None
    assert password is not None
    assert verifier.hash == hashlib.pbkdf2_hmac(
        "sha512", password.encode(), verifier.salt, verifier.iterations
    )


@pytest.mark.mosquitto
async def test_a_thousand_commands_and_the_broker_serves_on(world: World, come_in: ComeIn) -> None:
    """With a memory_limit, Mosquitto 2.0.11 serves nobody after the first hundred."""
    async with Control(world.live) as control:
        for _ in range(50):
            assert await control.command([{"command": "getRole", "rolename": "@device"}] * 20) == [None] * 20
    assert (await come_in(world.settings(MONITOR))).is_connected


@pytest.mark.mosquitto
async def test_the_broker_is_made_to_agree_with_the_register(world: World) -> None:
    await membership.enrol(world.site, ["dev-1", "dev-2"], live=world.live)
    members, topics = world.authority.members().values(), world.topics
    async with Control(world.live) as control:
        assert await control.sync(members, topics) == Synced()
        everything = {"acltype": "subscribePattern", "topic": "#", "priority": 0, "allow": True}
        for command in (
            {"command": "deleteClient", "username": "dev-1"},
            {"command": "modifyRole", "rolename": "dev-2", "acls": [everything]},
            {"command": "createClient", "username": "stranger", "password": "x"},
        ):
            assert await control.command([command]) == [None]
        assert await control.sync(members, topics) == Synced(("dev-1",), ("dev-2",), ("stranger",))
        assert await control.sync(members, topics) == Synced()
        assert set(await control.clients()) == {"dev-1", "dev-2", *ROLES}


@pytest.mark.mosquitto
async def test_a_command_that_the_plugin_refuses_is_told(world: World) -> None:
    async with Control(world.live) as control:
        with pytest.raises(ControlError, match="refuses modifyClient of nobody: Client not found"):
            await control.let_in("nobody")
        assert await control.client("nobody") is None


@pytest.mark.mosquitto
async def test_two_operators_take_turns(world: World) -> None:
    """The broker has one session for each identity: the second would push the first out."""
    lock = world.site.member(OPERATOR).folder / "lock"
    async with Control(world.live, lock=lock) as first:
        second = asyncio.create_task(membership.enrol(world.site, ["dev-1"], live=world.live))
        for _ in range(20):
            assert await first.client(OPERATOR) is not None
            await asyncio.sleep(0.01)
        assert not second.done()
    _, applied = await second
    assert applied.how == "live"
