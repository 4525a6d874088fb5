"""What Mosquitto's dynamic security plugin reads: who is a member, and what each may do, from the protocol's own rules.

Rendered from the register before the broker starts; while it runs, the same is said to it live (`dynsec_control`).

Each member has a role of its own, by its name, and devices have one more in common: the plugin of Mosquitto 2.0 has no
`%u` for a member's own name in its rules. Nothing is allowed that no rule allows; to end a subscription always is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedmq_broker.authority_register import Member
from fedmq_protocol.access import ROLES, Action, Rule, device_alone, every_device, rules
from fedmq_protocol.topics import Topics

EVERY_DEVICE: Final = "@device"
"""The role that all devices have in common; no member can be called so."""

DEFAULTS: Final[Mapping[str, bool]] = {
    "publishClientSend": False,
    "publishClientReceive": False,
    "subscribe": False,
    "unsubscribe": True,
}

_ACL_TYPES: Final[Mapping[Action, str]] = {
    "publish": "publishClientSend",
    "receive": "publishClientReceive",
    "subscribe": "subscribePattern",
}


def render(members: Iterable[Member], topics: Topics) -> dict[str, Any]:
    """The plugin's whole file, of those members that may come in."""
    active = sorted((member for member in members if member.active), key=lambda member: member.name)
    return {
        "defaultACLAccess": dict(DEFAULTS),
        "clients": [_client(member) for member in active],
        "groups": [],
        "roles": [
            {"rolename": EVERY_DEVICE, "acls": acls(every_device(topics))},
            *({"rolename": member.name, "acls": own_acls(topics, member.name)} for member in active),
        ],
    }


def roles_of(name: str) -> list[dict[str, Any]]:
    """The roles that a member has, as the plugin writes them."""
    return [{"rolename": name}] if name in ROLES else [{"rolename": EVERY_DEVICE}, {"rolename": name}]


def own_acls(topics: Topics, name: str) -> list[dict[str, Any]]:
    """What a member's own role allows."""
    return acls(rules(topics, name) if name in ROLES else device_alone(topics, name))


def acls(given: Iterable[Rule]) -> list[dict[str, Any]]:
    """Rules in the plugin's words."""
    return [
        {"acltype": _ACL_TYPES[rule.action], "topic": rule.filter, "priority": 0, "allow": True}
        for rule in given
    ]


def _client(member: Member) -> dict[str, Any]:
    client: dict[str, Any] = {"username": member.name, "textName": "", "roles": roles_of(member.name)}
    if member.verifier is not None:
        client["password"] = base64.b64encode(member.verifier.hash).decode("ascii")
        client["salt"] = base64.b64encode(member.verifier.salt).decode("ascii")
        client["iterations"] = member.verifier.iterations
    return client
