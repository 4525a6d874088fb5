"""What a coordinator is told at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, SecretStr, field_validator

from fedmq_coordinator.core.retention import RetentionSettings
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.turns import MAX_UNDER_WAY
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.topics import ID_PATTERN

_MAX_PORT = 65_535


class DatabaseSettings(BaseModel):
    """Where a journal lies that does not lie in the state folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[str, Field(repr=False)]
    """postgresql://user@host:port/database; parameters of libpq may follow."""
    password: SecretStr | None = None
    """Wins over the file's and the URL's; without any, libpq looks into PGPASSWORD and PGPASSFILE."""
    password_file: Path | None = None
    """A file whose first line is the password, read anew at each connection."""
    timeout_s: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    """So long a lost connection is tried for again, while everything waits; then the coordinator ends."""

    @field_validator("url")
    @classmethod
    def _is_server(cls, url: str) -> str:
        scheme, _, rest = url.partition("://")
        if scheme not in {"postgresql", "postgres"} or "/" not in rest:
            raise ValueError(
                "the database must be a URL such as postgresql://user@host/fedmq (SQLite in state_dir needs none)"
            )
        if "password=" in rest:
            raise ValueError("the password stands before the host, or better in database_password_file")
        return url


class CoordinatorSettings(BaseModel):
    """One coordinator process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation: Annotated[str, Field(pattern=ID_PATTERN)] = "fedmq"
    """Stands in every topic; the devices have the same."""
    broker: BrokerSettings = BrokerSettings()
    state_dir: Path = Path("state/coordinator")
    """The journal, the signing key, the API's token and its address. One coordinator a folder."""
    database: DatabaseSettings | None = None
    """The journal's server; None: `<state_dir>/journal.sqlite`."""
    listen: str = "127.0.0.1:8470"
    """host:port of the HTTP API; port 0 takes any free one, which `<state_dir>/api.json` then names."""
    key_file: Path | None = None
    """The key that signs what the coordinator says; default `<state_dir>/key`, made at the first start."""
    updates_under_way: Annotated[int, Field(ge=1)] = MAX_UNDER_WAY
    """Where more devices are at work, their updates are admitted in turns, so many at once."""
    retention: RetentionSettings = RetentionSettings()
    """For how long what nothing needs is kept in the journal."""
    run: RunSettings = RunSettings()
    """Defaults of a run, for what `fedmq run start` leaves open."""

    @field_validator("listen")
    @classmethod
    def _is_address(cls, listen: str) -> str:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > _MAX_PORT:
            raise ValueError(f"listen {listen!r} must be host:port, for example 127.0.0.1:8470")
        return listen

    @property
    def listen_host(self) -> str:
        """Without the brackets of an IPv6 address."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def key_path(self) -> Path:
        return self.state_dir / "key" if self.key_file is None else self.key_file
