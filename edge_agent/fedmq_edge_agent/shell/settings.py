"""What an agent is told: the `[device]` table of its configuration, and where the broker is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from fedmq_edge_agent.core.supervision import TimeLimits
from fedmq_edge_agent.shell.manners import ConditionsSettings
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError
from fedmq_protocol.messages import Id
from fedmq_protocol.signing import PUBLIC_KEY_BYTES

MIN_PACKET_BYTES = 4_096
"""Below this no update's header and chunk fit into a packet."""

MIN_DAILY_BYTES = 20_000
"""Keep-alives, at one in 30 s, take 12 kB in a day, and reconnects as much again."""

Value = bool | int | float | str | list[bool | int | float | str]
PositiveS = Annotated[float, Field(gt=0)]


class TrainerSettings(BaseModel):
    """The child process that trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    nursery: Path | None = Field(
        default=None,
        description="Socket of a nursery that forks trainers; otherwise the agent starts its own.",
    )
    threads: int = Field(default=0, ge=0, description="PyTorch's threads; 0: all cores but one.")
    memory_limit: ByteSize | None = Field(
        default=None,
        description='The most that it may have of memory of its own, "600 MB"; above it is killed. Else no limit.',
    )
    nice: int = Field(
        default=10,
        ge=0,
        le=19,
        description="How far it stands back behind other processes; not of a nursery's.",
    )
    cpu_share: float = Field(
        default=1.0, ge=0.05, le=1, description="Part of the time that it may compute, with all its threads."
    )
    start_timeout_s: PositiveS = Field(default=60.0, description="Limit for starting the process.")
    open_timeout_s: PositiveS = Field(
        default=300.0, description="Limit for importing PyTorch, the task and its data."
    )
    model_timeout_s: PositiveS = Field(
        default=120.0,
        description="Limit for loading a model version; and for each MB of a snapshot 1 s more.",
    )
    first_train_timeout_s: PositiveS = Field(
        default=600.0, description="Limit for a training, while it is not known how long one takes."
    )
    train_timeout_factor: float = Field(default=10.0, ge=2, description="Later: so many times what is usual.")

    def limits(self) -> TimeLimits:
        """The same for the core; who may compute half of the time alone has twice as long for it."""
        return TimeLimits(
            start_s=self.start_timeout_s,
            open_s=self.open_timeout_s / self.cpu_share,
            model_s=self.model_timeout_s / self.cpu_share,
            first_train_s=self.first_train_timeout_s / self.cpu_share,
            train_factor=self.train_timeout_factor,
        )


class AgentSettings(BaseModel):
    """One device."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    federation: Id = Field(default="home", description="The federation's name; part of every topic.")
    id: Id = Field(description="This device's name; unique in the federation.")
    state_dir: Path = Field(description="Folder for the key, the model and the updates without a receipt.")
    task: str = Field(
        min_length=1, description="The task to train: a .py file, or package.module[:attribute]."
    )
    data: dict[str, Value] = Field(default={}, description="Settings that the task's load_data gets.")
    broker: BrokerSettings = Field(default=BrokerSettings(), description="Where the broker is.")
    coordinator_key: str | None = Field(
        default=None,
        description="The coordinator's public key: 64 hex digits, or a file that holds them. "
        "Otherwise the first key that is seen is believed from then on.",
    )
    trainer: TrainerSettings = Field(default=TrainerSettings(), description="The child process that trains.")
    outbox_limit: int = Field(
        default=4, ge=1, le=64, description="With so many updates without a receipt, no further training."
    )
    daily_bytes: ByteSize | None = Field(
        default=None,
        description='The most that goes over the MQTT socket in a day (UTC), both ways: "5 MB"; none: no limit.',
    )
    conditions: ConditionsSettings = Field(
        default=ConditionsSettings(), description="When this device may train; without any: always."
    )
    slow_s: float = Field(
        default=0.0, ge=0, description="For trials: each training takes so many seconds longer."
    )

    def read_coordinator_key(self) -> bytes | None:
        """The configured key.

        Raises:
            ConfigError: it is neither a key nor a file with one.
        """
        if self.coordinator_key is None:
            return None
        text = self.coordinator_key
        try:
            if Path(text).is_file():
                text = Path(text).read_text(encoding="ascii")
            key = bytes.fromhex(text.strip())
        except (OSError, ValueError):
            key = b""
        if len(key) != PUBLIC_KEY_BYTES:
            raise ConfigError(
                f"coordinator_key {self.coordinator_key[:80]!r} is neither {2 * PUBLIC_KEY_BYTES} hex digits "
                "nor a file that holds them; leave it out to believe the first coordinator that is seen"
            )
        return key

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: with the name of the setting and the fix.
        """
        self.read_coordinator_key()
        if self.daily_bytes is not None and self.daily_bytes < MIN_DAILY_BYTES:
            raise ConfigError(
                f"daily_bytes is {self.daily_bytes}: keep-alives alone take more in a day; "
                f"give at least {MIN_DAILY_BYTES}, or leave it out for no limit"
            )
        if self.broker.max_packet_bytes < MIN_PACKET_BYTES:
            raise ConfigError(f"the broker's max_packet_bytes must be at least {MIN_PACKET_BYTES}")
