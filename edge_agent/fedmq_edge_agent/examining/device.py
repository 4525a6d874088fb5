"""The device that is examined: its settings, and what the checks so far have learnt of it, for those that follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509

from fedmq_edge_agent.shell.settings import AgentSettings
from fedmq_protocol.messages import Announcement
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

if TYPE_CHECKING:
    from fedmq_edge_agent.examining.line import Line

Clock = Callable[[], float]


@dataclass
class Device:
    """What is known so far. Checks fill it in, in the order of `checks.CHECKS`.

    Attributes:
        settings: as the agent would read them.
        clock: seconds since 1970, as this machine believes.
        agent_runs: another process holds the state folder.
        status: what the running agent last wrote of itself.
        session: the highest session number that the agent may have used; None: it has never been started.
        key: by which the coordinator knows it.
        coordinator_key: the one that the agent would believe.
        synchronised: whether the system says that its clock is; None: it does not say.
        certificates: this device's own and the authority's, where there are such.
        line: the connection to the broker.
        largest_packet: bytes, of those that came from the broker.
        coordinator_online: what the retained status says; None: there is none.
        announcement: the run's.
        probe: what the trainer's trial said, step by step.
    """

    settings: AgentSettings
    clock: Clock = time.time
    agent_runs: bool = False
    status: dict[str, Any] = field(default_factory=dict)
    session: int | None = None
    key: SigningKey | None = None
    coordinator_key: bytes | None = None
    synchronised: bool | None = None
    certificates: list[x509.Certificate] = field(default_factory=list)
    line: Line | None = None
    coordinator_online: bool | None = None
    announcement: Announcement | None = None
    probe: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.federation)

    @property
    def state_dir(self) -> Path:
        return self.settings.state_dir.absolute()

    async def let_go(self) -> None:
        """End what the examination holds."""
        if self.line is not None:
            await self.line.close()
            self.line = None
