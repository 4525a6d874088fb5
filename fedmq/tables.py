"""The tables of a configuration file, and what each setting in them means.

One file may hold the tables of several components; each command reads those that it needs. Importing this module costs
pydantic and nothing else: a device's supervisor stays small.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ByteSize, ConfigDict, Field, FiniteFloat, SecretStr

from fedmq.config import Configuration, load
from fedmq_protocol.errors import ConfigError

TABLE_NAMES: Final = ("federation", "broker", "coordinator", "run", "device", "trainer")


class FederationTable(BaseModel):
    """[federation]: which one this is; coordinator and devices must agree."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(default="fedmq", description="Stands in every topic: a-z, 0-9, '.', '_' and '-'.")


class CoordinatorTable(BaseModel):
    """[coordinator]: where its state lives and where its HTTP API listens.

    [coordinator.data] holds whatever the task's loader of central test data wants.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    state_dir: Path = Field(default=Path("state/coordinator"), description="Journal, keys, the API's token.")
    database: str | None = Field(
        default=None,
        repr=False,  # it may hold a password
        description="postgresql://user@host/database for the journal; else SQLite in state_dir.",
    )
    database_password: SecretStr | None = Field(default=None, description="Its password.")
    database_password_file: Path | None = Field(
        default=None, description="A file whose first line is that, read anew at each connection."
    )
    database_timeout_s: Annotated[FiniteFloat, Field(gt=0)] = Field(
        default=60.0, description="A lost connection is tried for so long; then the coordinator ends."
    )
    listen: str = Field(
        default="127.0.0.1:8470", description="host:port of the HTTP API; port 0: any free one."
    )
    key_file: Path | None = Field(default=None, description="The signing key; default: <state_dir>/key.")
    keep_versions_days: Annotated[float, Field(ge=0)] = Field(
        default=90.0,
        description="So long any published version can be exported, then a run's newest and best; inf: for ever.",
    )
    keep_updates_days: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="So long updates are kept that a snapshot has made needless, for an audit."
    )
    data: dict[str, Any] = Field(default={}, description="Free keys for the task's load_test_data.")

    def database_settings(self) -> dict[str, Any] | None:
        """What the coordinator is told of its database; None: the journal lies in `state_dir`."""
        if self.database is None:
            return None
        return {
            "url": self.database,
            "password": self.database_password,
            "password_file": self.database_password_file,
            "timeout_s": self.database_timeout_s,
        }


class DeviceTable(BaseModel):
    """[device]: who this device is and what it trains. [device.data] holds whatever the task's data loader wants."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    id: str | None = Field(default=None, description="The device's name; required by `fedmq agent start`.")
    state_dir: Path | None = Field(default=None, description="Outbox, residual, keys; default: state/<id>.")
    task: str | None = Field(
        default=None,
        description="The task: a Python file, or a module that is installed (fedmq.tasks.digits).",
        json_schema_extra={"fedmq": "task"},
    )
    coordinator_key: str | None = Field(
        default=None,
        description="The coordinator's public key, 64 hex digits or a file with them; else the first seen is believed.",
    )
    outbox_limit: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="With so many updates without a receipt, no further training."
    )
    daily_bytes: ByteSize | None = Field(
        default=None, description='Bytes a day (UTC) over the MQTT socket, both ways: "5 MB"; else no limit.'
    )
    slow_s: Annotated[FiniteFloat, Field(ge=0)] = Field(
        default=0.0, description="For trials: each training takes so many seconds longer."
    )
    data: dict[str, Any] = Field(default={}, description="Free keys for the task's data loader.")


def read(
    path: Path | None,
    *,
    flags: Mapping[str, tuple[str, object]] | None = None,
    sets: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Layer the file, the environment's variables and the flags; see `fedmq.config.load`."""
    environ = os.environ if environ is None else environ
    return load(path, tables=TABLE_NAMES, environ=environ, flags=flags, sets=sets)


def models() -> dict[str, type[BaseModel]]:
    """Every table's model, for `fedmq config show`; [trainer] says how the child that holds PyTorch is started."""
    from fedmq_coordinator.core.settings import RunSettings
    from fedmq_edge_agent.shell.settings import TrainerSettings
    from fedmq_protocol.broker_settings import BrokerSettings

    return {
        "federation": FederationTable,
        "broker": BrokerSettings,
        "coordinator": CoordinatorTable,
        "run": RunSettings,
        "device": DeviceTable,
        "trainer": TrainerSettings,
    }


def parse_sets(pairs: tuple[str, ...], *, table: str) -> dict[str, str]:
    """`--set key=value` or `--data key=value`, each as dotted setting and text; the key is relative to `table`.

    Raises:
        ConfigError: there is no `=` in it.
    """
    flag, example = ("--data", "partition_id=0") if table == "device.data" else ("--set", "train.lr=0.1")
    sets: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{flag} {pair!r} must be key=value, for example {flag} {example}")
        key = key.strip().removeprefix(f"{table}.")
        sets[f"{table}.{key}"] = text.strip()
    return sets


def task_place(task: str) -> str:
    """What a task is called for the trainer: `digits` and its like are built in; anything else stands for itself."""
    from fedmq.tasks import BUILT_IN

    return BUILT_IN.get(task, task)
