"""What the coordinator shows of itself: to commands, to the live view, to the API. Plain data, made on demand."""

from __future__ import annotations

from pydantic import BaseModel

from fedmq_coordinator.core.settings import RunSettings
from fedmq_protocol.messages import TaskRef


class DeviceView(BaseModel):
    """A device as the operator sees it."""

    device: str
    state: str
    """`training`, `idle`, `offline`, `paused`, or `unable`."""
    since_s: float
    """For how long it has been connected, or gone."""
    gone_by: str = ""
    """How it went: see `devices.GOODBYE` and those beside it."""
    problem: str = ""
    floods: bool = False
    """Nothing of it is read, since it sends far too much."""
    task: str = ""
    num_examples: int | None = None
    agent_version: str = ""
    updates: int = 0
    task_time_s: float | None = None
    lease_age_s: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    rejections: dict[str, int] = {}


class VersionView(BaseModel):
    """A version that has been evaluated."""

    version: int
    loss: float
    metrics: dict[str, float]


class RunView(BaseModel):
    """A run as the operator sees it."""

    run: str
    state: str
    task: TaskRef
    settings: RunSettings
    num_parameters: int
    size: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    end_reason: str
    round: int
    version: int
    best_version: int | None
    round_open: bool = False
    """Synchronous: the round waits for updates."""
    round_age_s: float | None = None
    """For how long it has been open."""
    closes_in_s: float | None = None
    """When it closes with what it has."""
    waiting: str
    """For what the run waits, since when, until when."""
    updates_in_buffer: int
    goal: int
    answered: int
    accepted: int
    rejected: int
    leases: int
    late: int
    """Devices at work under a lease of an earlier round."""
    evaluations: list[VersionView]
    federated: list[VersionView]
    chain_bytes: int
    snapshot_bytes: int
    start: str = ""
    """How the first weights come to the devices: in how many bytes, and why they travel where they need not."""
    moved: dict[str, tuple[int, int]] = {}
    """Device -> bytes sent and received on its socket while this run was under way, as its agent told."""


class FederationView(BaseModel):
    """The whole federation."""

    federation: str
    epoch: int
    broker_connected: bool
    broker_detail: str
    active_run: str | None
    queued_runs: list[str]
    devices: list[DeviceView]
    runs: list[str]
    rejections: dict[str, int]
