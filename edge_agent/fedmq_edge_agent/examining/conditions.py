"""What holds training back now, though nothing is wrong: the rules in [device.conditions]."""

from __future__ import annotations

import time

from fedmq_edge_agent.core.conditions import Conditions
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, fine, warning
from fedmq_edge_agent.shell.board import Board


async def look_at_conditions(device: Device) -> Finding:
    """May this device train now, by its own rules? As the agent says, or as it would find when it started."""
    rules = device.settings.conditions.rules()
    if device.status.get("state") == "resting":
        return fine(f"it rests, as it is told to: {device.status['problem']}")
    if not rules.any:
        return fine("none are set: it may train at any time")
    conditions = Conditions(rules)
    conditions.read(await Board().read(rules), now=time.monotonic())
    if conditions.untold:
        return warning(
            "; ".join(conditions.untold),
            "remove that rule from [device.conditions], or say by `untold` there what is to be done",
        )
    if conditions.problem:
        return fine(f"it would rest now, as it is told to: {conditions.problem}")
    return fine("they hold: it may train now")
