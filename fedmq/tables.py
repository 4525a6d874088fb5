"""The tables of a configuration file, and what each setting in them means.

One file may hold the tables of several components; each command reads those that it needs. Importing this module costs
pydantic and nothing else: a device's supervisor stays small.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    FiniteFloat,
    SecretStr,
    field_validator,
    model_validator,
)

from fedmq.config import Configuration, load
from fedmq_edge_agent.shell.manners import ConditionsSettings
from fedmq_protocol.errors import ConfigError

if TYPE_CHECKING:
    from fedmq_broker.site import Site
    from fedmq_edge_agent.shell.settings import AgentSettings
    from fedmq_protocol.broker_settings import BrokerSettings

TABLE_NAMES: Final = ("federation", "mosquitto", "broker", "coordinator", "run", "device", "trainer")


_HOST: Final = re.compile(r"[a-z0-9_][a-z0-9_-]{0,62}(\.[a-z0-9_][a-z0-9_-]{0,62})*\.?", re.IGNORECASE)


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        return True
    try:
        return _HOST.fullmatch(text.encode("idna").decode("ascii")) is not None
    except UnicodeError:
        return False


class FederationTable(BaseModel):
    """[federation]: which one this is; coordinator and devices must agree."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(default="fedmq", description="Stands in every topic: a-z, 0-9, '.', '_' and '-'.")


class MosquittoTable(BaseModel):
    """[mosquitto]: a Mosquitto of this federation's own, which `fedmq broker init` sets up and `start` runs.

    Where this table stands and no [broker] url is given, coordinator and tools come in here, each as its own member.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    hosts: tuple[str, ...] = Field(
        default=(),
        description="Names and addresses of the broker, all in its certificate; devices are told the first.",
    )
    devices: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=100, description="How many devices the limits are for."
    )
    parameters: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(
        default=1_000_000, description="Parameters of the largest model."
    )
    folder: Path | None = Field(
        default=None,
        description="Where authority, configuration and members lie; default: site, beside the file.",
    )
    listen: str = Field(
        default="", pattern=r"^\S*$", description="The one address to listen on; else all of this machine's."
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=8883, description="TLS with client certificates: the door for everybody who can."
    )
    websockets_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8884, description="WebSockets over TLS, by password; 0: no such listener."
    )
    password_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8885, description="TLS, by password, for boards without certificates; 0: no such listener."
    )

    version: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$")] | None = Field(
        default=None,
        description='The Mosquitto that will run, where that is not the one installed here: "2.0".',
    )

    @field_validator("hosts", mode="before")
    @classmethod
    def _check_hosts(cls, hosts: object) -> object:
        if isinstance(hosts, str):
            raise ValueError(f'must be a list: hosts = ["{hosts}"]')  # noqa: TRY004 - pydantic wants a ValueError
        for host in hosts if isinstance(hosts, list | tuple) else ():
            if isinstance(host, str) and not _is_host(host):
                raise ValueError(f"{host!r} is neither a host's name nor an address")
        return hosts

    @model_validator(mode="after")
    def _check(self) -> Self:
        ports = [port for port in (self.port, self.websockets_port, self.password_port) if port]
        if len(set(ports)) < len(ports):
            raise ValueError("port, websockets_port and password_port must differ")
        return self


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
    updates_under_way: int = Field(
        default=400,
        ge=1,
        description="Where more devices are at work, their updates are admitted in turns, so many at once. A broker "
        "that queues Q messages for a client has room for (Q - 200) / 2.",
    )
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
    conditions: ConditionsSettings = Field(
        default=ConditionsSettings(), description="When this device may train; without any: always."
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


def site_of(configuration: Configuration) -> Site:
    """The folder of the federation's own Mosquitto: as [mosquitto] says, else `site` beside the file."""
    from fedmq_broker.site import Site

    folder = configuration.table("mosquitto", MosquittoTable).folder
    if folder is None:
        folder = (configuration.path.parent if configuration.path else Path()) / "site"
    return Site(folder)


def broker_settings(configuration: Configuration, member: str = "@coordinator") -> BrokerSettings:
    """How `member` reaches the broker: [broker] as it stands or, where it names no url, the federation's own Mosquitto.

    Args:
        configuration: what holds.
        member: a device's id, or one of `fedmq_protocol.access.ROLES`.

    Raises:
        ConfigError: a value is wrong, or the Mosquitto was never set up, or this member has no certificate.
    """
    from fedmq_protocol.broker_settings import BrokerSettings

    given = configuration.table("broker", BrokerSettings)
    if not configuration.gives("mosquitto") or configuration.gives("broker", "url"):
        return given
    table = configuration.table("mosquitto", MosquittoTable)
    host = first_host(configuration)
    site = site_of(configuration)
    files = site.member(member)
    settings = {
        "url": f"mqtts://[{host}]:{table.port}" if ":" in host else f"mqtts://{host}:{table.port}",
        "ca_file": site.authority.ca,
        "cert_file": files.certificate,
        "key_file": files.key,
    }
    if given.cert_file is None and not files.certificate.exists():
        made_by = "fedmq broker init" if member.startswith("@") else f"fedmq device enroll {member}"
        raise ConfigError(f"{member} has no certificate in {files.folder}: {made_by} makes one")
    return given.model_copy(
        update={name: value for name, value in settings.items() if not configuration.gives("broker", name)}
    )


def packet_bytes(configuration: Configuration) -> int:
    """The largest MQTT packet that is sent here: as [broker] says."""
    from fedmq_protocol.broker_settings import BrokerSettings

    return configuration.table("broker", BrokerSettings).max_packet_bytes


def first_host(configuration: Configuration) -> str:
    """The name or address of the federation's own Mosquitto that devices are told.

    Raises:
        ConfigError: [mosquitto] names none.
    """
    hosts = configuration.table("mosquitto", MosquittoTable).hosts
    if not hosts:
        where = f"{configuration.path}: " if configuration.path else ""
        raise ConfigError(f'{where}[mosquitto] hosts is missing, for example hosts = ["broker.home.arpa"]')
    return hosts[0]


def agent_settings(configuration: Configuration) -> AgentSettings:
    """What an agent is told, of all its tables.

    Raises:
        ConfigError: a value is wrong, or the device has no id or no task.
    """
    from fedmq_edge_agent.shell.settings import AgentSettings, TrainerSettings

    table = configuration.table("device", DeviceTable)
    if table.id is None or table.task is None:
        missing = "id" if table.id is None else "task"
        variable = f"FEDMQ_DEVICE__{missing.upper()}"
        raise ConfigError(
            f"a device needs its {missing}: set {missing} in [device], {variable}, or --{missing}"
        )
    given = table.model_dump()
    given["task"] = task_place(table.task)
    given["state_dir"] = table.state_dir or Path("state") / table.id
    return configuration.checked(
        AgentSettings,
        {
            **given,
            "federation": configuration.table("federation", FederationTable).name,
            "broker": broker_settings(configuration, table.id),
            "trainer": configuration.table("trainer", TrainerSettings),
        },
        table="device",
    )


def models() -> dict[str, type[BaseModel]]:
    """Every table's model, for `fedmq config show`; [trainer] says how the child that holds PyTorch is started."""
    from fedmq_coordinator.core.settings import RunSettings
    from fedmq_edge_agent.shell.settings import TrainerSettings
    from fedmq_protocol.broker_settings import BrokerSettings

    return {
        "federation": FederationTable,
        "mosquitto": MosquittoTable,
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
