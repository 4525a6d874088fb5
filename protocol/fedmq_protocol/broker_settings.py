"""Where the broker is and how to get in: the `[broker]` table that every component reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


class BrokerSettings(BaseModel):
    """How to reach one MQTT broker.

    Paths are used as they stand; whoever reads a configuration file resolves them against its folder first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(
        default="mqtt://127.0.0.1:1883",
        repr=False,  # it may hold a password: show `shown_url`
        description="mqtt://, mqtts:// (TLS), ws:// or wss:// (WebSockets, with TLS), host and port; "
        "the port defaults to 1883, 8883, 80 or 443; user:password@ may stand before the host.",
    )
    username: str | None = Field(default=None, description="User name; wins over the one in the URL.")
    password: SecretStr | None = Field(default=None, description="Password; wins over the one in the URL.")
    password_file: Path | None = Field(
        default=None, description="A file whose first line is the password, read anew at each connection."
    )
    ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authority that signed the broker's certificate; else the system's.",
    )
    cert_file: Path | None = Field(
        default=None, description="PEM file of this client's certificate (mutual TLS)."
    )
    key_file: Path | None = Field(
        default=None, description="PEM file of this client's key, if not in cert_file."
    )
    tls_insecure: bool = Field(
        default=False, description="Accept any broker certificate. For trying out only: anyone can listen in."
    )
    keepalive_s: int = Field(
        default=30,
        ge=2,
        le=65535,
        description="A silent peer is given up after about one and a half times this.",
    )
    connect_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="Limit for each step: name and TCP, TLS, and the broker's answer to CONNECT.",
    )
    ack_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="A connection on which no awaited acknowledgement comes for so long is dropped.",
    )
    reconnect_min_s: float = Field(default=0.25, gt=0, description="Mean wait before the first reconnection.")
    reconnect_max_s: float = Field(default=30.0, gt=0, description="Longest wait between two attempts.")
    max_packet_bytes: int = Field(
        default=131_072,
        ge=1024,
        le=268_435_455,
        description="Largest MQTT packet sent or accepted. 128 KB passes every broker that we know of.",
    )
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        default="auto", description="MQTT version; auto tries 5 and falls back to 3.1.1."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"broker url {self.shown_url!r} is not a URL: {error}") from None
        if parts.scheme not in DEFAULT_PORTS:
            known = ", ".join(f"{scheme}://" for scheme in DEFAULT_PORTS)
            raise ValueError(f"broker url {self.shown_url!r} must begin with one of {known}")
        if not parts.hostname:
            raise ValueError(
                f"broker url {self.shown_url!r} names no host, for example mqtt://127.0.0.1:1883"
            )
        if port == 0:
            raise ValueError(f"broker url {self.shown_url!r} has port 0")
        if (
            parts.query
            or parts.fragment
            or (parts.path not in {"", "/"} and not parts.scheme.startswith("ws"))
        ):
            raise ValueError(f"broker url {self.shown_url!r} must end after the port")
        if self.password is not None and self.password_file is not None:
            raise ValueError("set either password or password_file, not both")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs cert_file beside it")
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ValueError("reconnect_min_s must not be above reconnect_max_s")
        return self

    @property
    def scheme(self) -> str:
        """`mqtt`, `mqtts`, `ws` or `wss`."""
        return urlsplit(self.url).scheme

    @property
    def host(self) -> str:
        """Host name or address, without the brackets of an IPv6 address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port in the URL or the default of its scheme."""
        return urlsplit(self.url).port or DEFAULT_PORTS[self.scheme]

    @property
    def path(self) -> str:
        """The path of a WebSocket URL; `/mqtt` unless it says otherwise."""
        path = urlsplit(self.url).path
        return path if path not in {"", "/"} else "/mqtt"

    @property
    def uses_tls(self) -> bool:
        """Whether the URL asks for TLS."""
        return self.scheme in {"mqtts", "wss"}

    @property
    def uses_websockets(self) -> bool:
        """Whether the URL asks for MQTT in WebSocket frames."""
        return self.scheme in {"ws", "wss"}

    @property
    def address(self) -> str:
        """`host:port` as messages for people show it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def shown_url(self) -> str:
        """The URL without the credentials in it, safe for logs."""
        head, separator, tail = self.url.rpartition("@")
        return f"{head.partition('://')[0]}://{tail}" if separator else self.url

    @property
    def url_credentials(self) -> tuple[str | None, str | None]:
        """User name and password in the URL, unquoted; None for each that is not there."""
        parts = urlsplit(self.url)
        return _unquoted(parts.username), _unquoted(parts.password)


def _unquoted(text: str | None) -> str | None:
    return None if text is None else unquote(text)
