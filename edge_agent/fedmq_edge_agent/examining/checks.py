"""Every check, in the order in which they are made. Adding one is a function and a line here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from fedmq_edge_agent.examining import (
    certificates,
    conditions,
    federation,
    folder,
    handshake,
    machine,
    network,
    talking,
    training,
)
from fedmq_edge_agent.examining.course import Check, examine
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding
from fedmq_edge_agent.shell.settings import AgentSettings

CONFIGURATION: Final = "configuration"
"""The check that comes before all others, and is made by whoever reads the configuration."""

CHECKS: Final[tuple[Check[Device], ...]] = (
    Check("agent", folder.look_at_agent),
    Check("state", folder.look_at_state, limit_s=10.0),
    Check("certificate", certificates.look_at_certificate),
    Check("clock", certificates.look_at_clock),
    Check("name", network.look_up),
    Check("route", network.knock, needs=("name",)),
    Check("tls", handshake.shake_hands, needs=("route", "certificate"), limit_s=12.0),
    Check("connection", talking.connect, needs=("tls", "agent"), limit_s=12.0),
    Check("identity", talking.is_alone, needs=("connection",)),
    Check("rights", talking.may_speak, needs=("identity",)),
    Check("coordinator", federation.look_for_coordinator, needs=("rights",), limit_s=8.0),
    Check("packets", talking.send_large, needs=("rights",), limit_s=10.0),
    Check("run", federation.look_for_run, needs=("coordinator",)),
    Check("model", federation.fetch_model, needs=("run",), limit_s=15.0),
    Check("torch", training.try_torch, limit_s=training.CHILD_S + 10.0),
    Check("task", training.try_task, needs=("torch",)),
    Check("data", training.try_data, needs=("task",)),
    Check("memory", machine.look_at_memory),
    Check("disk", machine.look_at_disk, needs=("state",)),
    Check("conditions", conditions.look_at_conditions),
)

TRAINING: Final = frozenset({"torch", "task", "data"})
"""What starts PyTorch, and may be left out."""


async def examined(
    settings: AgentSettings,
    *,
    without: frozenset[str] = frozenset(),
    begun: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Finding]:
    """Examine this device; each finding comes as soon as it is there.

    Args:
        settings: as the agent would read them.
        without: names of checks that are left out.
        begun: told the name of each check that is begun.
    """
    device = Device(settings)
    checks = [check for check in CHECKS if check.name not in without]
    try:
        async for finding in examine(checks, device, begun=begun):
            yield finding
    finally:
        await device.let_go()
