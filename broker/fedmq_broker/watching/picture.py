"""The one picture of broker and federation, as plain data."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel

DEVICE_STATES: Final = ("training", "idle", "paused", "unable", "offline")
STEPS_BY: Final = ("all", "goal", "deadline", "timeout", "buffer", "flush", "arrival")
"""What makes a step due; `deadline` and `timeout` are rounds that did not get what they waited for."""


class BrokerPicture(BaseModel):
    """The broker, by its own figures and by ours."""

    address: str = ""
    up: bool = False
    detail: str = "not connected yet"
    """Why we are not connected; empty where we are."""
    since_s: float = 0.0
    """For how long it has been up, or away, for us."""
    version: str = ""
    figures: dict[str, float] = {}
    figures_age_s: float | None = None
    """Since the broker last told any; None: it never did."""
    queued_messages: float | None = None
    """No client's queue is longer. None: the broker does not tell."""
    queued_bytes: float | None = None
    resident_bytes: int | None = None
    """Memory of its process, where that is on this machine."""
    limits: dict[str, float] = {}
    """Options of its configuration that bound something, and `resident_bytes` that it was planned for."""
    probe_s: float | None = None
    """How long the newest probe took from publishing to receiving."""
    probes: int = 0
    probes_lost: int = 0
    probe_buckets: dict[str, int] = {}
    """Bound in seconds -> how many probes took at most so long."""
    probe_sum_s: float = 0.0
    events: dict[str, int] = {}
    """By kind, since the watching began; see `fedmq_broker.watching.log_lines`."""


class Happening(BaseModel):
    """Something that an operator should know of."""

    ago_s: float
    kind: str
    client: str
    text: str


class ClientPicture(BaseModel):
    """What befell one client at the broker since the watching began, where something did."""

    client: str
    connects: int = 0
    troubles: dict[str, int] = {}
    last_trouble_s: float | None = None
    """How long ago the last was."""


class DevicePicture(BaseModel):
    """A device."""

    device: str
    state: Literal["training", "idle", "paused", "unable", "offline"]
    silent_s: float = 0.0
    """For how long nothing came of it that should have: since its last will, or beyond its usual time under a lease."""
    since_s: float = 0.0
    """For how long it has been connected, or gone."""
    by_will: bool = False
    """It went without a goodbye."""
    floods: bool = False
    """It sends so much that the coordinator reads nothing of it."""
    problem: str = ""
    updates: int = 0
    lease_age_s: float | None = None
    rejections: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class RunPicture(BaseModel):
    """The run that is active, or else the newest."""

    run: str
    state: str
    mode: str
    task: str
    round: int
    rounds: int | None = None
    version: int
    round_open: bool = False
    round_age_s: float | None = None
    closes_in_s: float | None = None
    """When the open round closes with what it has; below 0: it should have."""
    answered: int = 0
    goal: int = 0
    leases: int = 0
    accepted: int = 0
    rejected: int = 0
    waiting: str = ""


class CoordinatorPicture(BaseModel):
    """The federation as its coordinator tells it over HTTP or, where that does not answer, as the broker has it."""

    federation: str = ""
    told_by: Literal["coordinator", "broker", "nobody"] = "nobody"
    up: bool = False
    detail: str = "not asked yet"
    """Why the coordinator's API does not answer; empty where it does."""
    since_s: float = 0.0
    epoch: int | None = None
    at_broker: bool = False
    """The coordinator is connected to the broker."""
    queued_runs: int = 0
    run: RunPicture | None = None
    states: dict[str, int] = {}
    """Devices by state."""
    steps: dict[str, int] = {}
    """Steps since the coordinator's start, by what made them due."""
    updates_accepted: int = 0
    updates_rejected: dict[str, int] = {}
    """Since the coordinator's start, by reason."""
    refused: dict[str, int] = {}
    """Messages that were refused, by reason."""


class Picture(BaseModel):
    """Everything at one moment."""

    at: float
    """Seconds since the epoch."""
    broker: BrokerPicture = BrokerPicture()
    coordinator: CoordinatorPicture = CoordinatorPicture()
    devices: list[DevicePicture] = []
    """All; the silent and the troubled first."""
    clients: list[ClientPicture] = []
    """Those with trouble of late, the latest first."""
    happenings: list[Happening] = []
    """The latest first."""
    certificates: dict[str, float] = {}
    """Name -> when it ends, in seconds since the epoch; `devices` is the first of all devices' to end."""


def by_trouble(devices: list[DevicePicture]) -> list[DevicePicture]:
    """Who floods first; then the silent, the longest of them before the others; then the troubled; then by name."""
    rank = {"unable": 0, "paused": 1, "offline": 2, "training": 3, "idle": 3}
    return sorted(devices, key=lambda each: (not each.floods, -each.silent_s, rank[each.state], each.device))
