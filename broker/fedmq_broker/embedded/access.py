"""Who may do what at the embedded broker: the same rules as in production, held to by what a client calls itself.

There are no passwords here, so this keeps out mistakes, not people: an agent that speaks in another's name fails on the
desk, and not first in the field.

    fedmq-<federation>-<device>      the device
    <federation>-coordinator         the coordinator
    <federation>-monitor[-...]       the monitor
    <federation>-operator[-...]      the operator, who may here clear whatever the federation has left retained
    anything else                    may read everything, and publish outside of `fedmq/v1/`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fedmq_protocol.access import COORDINATOR, MONITOR, OPERATOR, Rule, allows, rules
from fedmq_protocol.errors import UsageError
from fedmq_protocol.limits import MAX_ID_CHARS
from fedmq_protocol.topics import Topics

_PROTOCOL: Final = "fedmq/v1/"
_DEVICE: Final = "fedmq-"
_ROLE: Final = re.compile(r"(?P<federation>.+?)-(?P<role>coordinator|(?:monitor|operator)(?:-[0-9a-f]+)?)")
_LONGEST: Final = len(_DEVICE) + 2 * MAX_ID_CHARS + len("-")
"""No member's is longer; a stranger's may be, and it costs time to take one apart."""
_ROLES: Final = {"coordinator": COORDINATOR, "monitor": MONITOR, "operator": OPERATOR}


@dataclass(frozen=True)
class Rights:
    """What one client may do.

    Attributes:
        given: the rules that it is held to; None for a client that is no member of any federation.
    """

    given: tuple[Rule, ...] | None

    def may_publish(self, topic: str) -> bool:
        """Whether a message on this topic may be passed on, last wills included."""
        if topic.startswith("$"):
            return False
        if self.given is None:
            return not topic.startswith(_PROTOCOL)
        return allows(self.given, "publish", topic)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether it may have what this filter matches."""
        return self.given is None or allows(self.given, "subscribe", topic_filter)


def rights_of(client_id: str) -> Rights:
    """The rights of a client by its id."""
    given: list[Rule] = []
    if len(client_id) > _LONGEST:
        return Rights(None)
    if client_id.startswith(_DEVICE):
        words = client_id.removeprefix(_DEVICE).split("-")
        # Federations and devices may have dashes in their names, and one be called `fedmq`: it is all that it could be.
        for cut in range(1, len(words)):
            given += _rules("-".join(words[:cut]), "-".join(words[cut:]))
    if found := _ROLE.fullmatch(client_id):
        role = _ROLES[found["role"].partition("-")[0]]
        given += _rules(found["federation"], role)
        if given and role == OPERATOR:
            given.append(Rule("publish", f"{Topics(found['federation']).root}/#"))
    return Rights(tuple(given) or None)


def _rules(federation: str, member: str) -> tuple[Rule, ...]:
    try:
        return rules(Topics(federation), member)
    except UsageError:  # no such names
        return ()
