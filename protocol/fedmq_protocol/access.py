"""Who may do what at the broker, as data: the one list from which every broker's access rules are rendered.

A *member* is who a broker takes a client for. A device goes by its id. The names of roles begin with `@`, which no
device's id may, so that nobody can be enrolled as one of them:

- `@coordinator` runs the federation;
- `@monitor` watches: the broker's own figures, presence, status and announcements, but neither updates nor models;
- `@operator` lets members in and throws them out, and may read everything;
- `@guard` cuts off who floods: it hears the broker's log and what the coordinator tells flooders, no more, but whoever
  may command the security plugin at all may command it everything.

A broker grants what is listed and nothing else. Each kind of message of a device has a rule of its own: it could
otherwise leave retained messages on as many topics as it can think of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from fedmq_protocol.topics import Topics, UpKind, check_id

Action: TypeAlias = Literal["publish", "receive", "subscribe"]

COORDINATOR: Final = "@coordinator"
MONITOR: Final = "@monitor"
OPERATOR: Final = "@operator"
GUARD: Final = "@guard"
ROLES: Final = (COORDINATOR, MONITOR, OPERATOR, GUARD)

CONTROL_TOPIC: Final = "$CONTROL/dynamic-security/v1"
"""Where Mosquitto's dynamic-security plugin takes commands; it answers below it."""

BROKER_LOG: Final = "$SYS/broker/log/#"
"""Where Mosquitto writes its log, line by line."""

SUBSCRIPTIONS: Final = "$SYS/broker/subscriptions/count"
"""How many there are, of all clients together."""


@dataclass(frozen=True, order=True)
class Rule:
    """One thing that a member may do.

    Attributes:
        action: `publish` a message, last wills included; `receive` one, however it was subscribed to; `subscribe`.
        filter: to which topics; for `subscribe`, to this filter and to any that asks for less.
    """

    action: Action
    filter: str


def check_member(name: str) -> str:
    """Return `name` if it is a role's or can be a device's.

    Raises:
        UsageError: it is neither; the text says what may be used.
    """
    return name if name in ROLES else check_id(name, what="device")


def rules(topics: Topics, member: str) -> tuple[Rule, ...]:
    """All that a member may do.

    Raises:
        UsageError: no such member can be.
    """
    match check_member(member):
        case "@coordinator":
            return _coordinator(topics)
        case "@monitor":
            return _monitor(topics)
        case "@operator":
            return _operator(topics)
        case "@guard":
            return _guard(topics)
        case device:
            return every_device(topics) + device_alone(topics, device)


def every_device(topics: Topics) -> tuple[Rule, ...]:
    """What all devices may do alike: read what the coordinator says to all."""
    return _read(topics.coordinator_status, topics.announcement, topics.turn, topics.every_chunk)


def device_alone(topics: Topics, device: str) -> tuple[Rule, ...]:
    """What this device may do and no other: speak as itself, and read what is said to it."""
    own = (topics.presence(device), *(topics.up(device, kind) for kind in get_args(UpKind)))
    return _publish(*own) + _read(f"{topics.root}/dev/{device}/down/+")


def _coordinator(topics: Topics) -> tuple[Rule, ...]:
    says = (
        topics.coordinator_status,
        topics.announcement,
        topics.turn,
        topics.every_chunk,
        f"{topics.root}/dev/+/down/+",
    )
    # It reads a chunk back now and then, to see that the broker still has it.
    return _publish(*says) + _read(*topics.coordinator_filters(), topics.every_chunk)


def _monitor(topics: Topics) -> tuple[Rule, ...]:
    presence = f"{topics.root}/dev/+/presence"
    return _publish(topics.monitor_probe) + _read(
        "$SYS/#",
        topics.coordinator_status,
        topics.announcement,
        topics.turn,
        presence,
        topics.monitor_probe,
    )


def _operator(topics: Topics) -> tuple[Rule, ...]:
    # The presence of a device that was thrown out stays retained until somebody clears it.
    return _publish(CONTROL_TOPIC, f"{topics.root}/dev/+/presence") + _read(
        "$SYS/#", f"{CONTROL_TOPIC}/#", f"{topics.root}/#"
    )


def _guard(topics: Topics) -> tuple[Rule, ...]:
    return _publish(CONTROL_TOPIC) + _read(
        BROKER_LOG, SUBSCRIPTIONS, f"{CONTROL_TOPIC}/#", f"{topics.root}/dev/+/down/notice"
    )


def _publish(*filters: str) -> tuple[Rule, ...]:
    return tuple(Rule("publish", each) for each in filters)


def _read(*filters: str) -> tuple[Rule, ...]:
    return tuple(Rule(action, each) for each in filters for action in ("subscribe", "receive"))


# ------------------------------------------------------------------------------------------------- asking


def allows(given: tuple[Rule, ...], action: Action, topic: str) -> bool:
    """Whether one of the rules covers it; `topic` is a topic filter where the action is to subscribe."""
    return any(rule.action == action and covers(rule.filter, topic) for rule in given)


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that the filter or topic `narrow` matches is matched by the filter `wide`.

    Linear in the levels. Neither matches `$`-topics by a wildcard in the first level (MQTT 4.7.2).
    """
    if wide == "+/#":  # matches "a" as well as "a/b", as `#` does
        wide = "#"
    wide_levels, narrow_levels = wide.split("/"), narrow.split("/")
    if narrow_levels[0].startswith("$") and wide_levels[0] in {"+", "#"}:
        return False
    for position, level in enumerate(wide_levels):
        if level == "#":
            return True  # `a/#` covers `a` too: then we are right behind its last level
        if position >= len(narrow_levels):
            return False
        asked = narrow_levels[position]
        if asked == "#" or level not in {asked, "+"}:
            return False
    return len(wide_levels) == len(narrow_levels)
