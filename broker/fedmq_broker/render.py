"""The configuration of a federation's own Mosquitto, each setting with its reason and the numbers in it.

All paths are relative to the folder that Mosquitto runs in (`site/mosquitto`), so that the same file serves a process
started by hand, a systemd unit and a container. All but `memory_limit` is the same for Mosquitto 2.0 and 2.1.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmq_broker.site import MosquittoFiles
from fedmq_broker.sizing import Limits

_WIDTH = 108
PLUGIN = "mosquitto_dynamic_security.so"
_PLUGIN_PLACES = ("/usr/lib", "/usr/local/lib", "/opt/homebrew/lib", "/opt/homebrew/opt/mosquitto/lib")
_COUNTS_THE_PLUGIN = (2, 1)
_SEARCHED = ("/usr/lib", "/lib")
"""The dynamic linker looks there by itself, in a subfolder named for the processor too."""


@dataclass(frozen=True)
class Wanted:
    """What a configuration is rendered from.

    Attributes:
        federation: its name, for the heading.
        limits: from `fedmq_broker.sizing.plan`.
        port: TLS with client certificates.
        websockets_port: WebSockets over TLS, by password; 0: no such listener.
        password_port: TLS, by password; 0: no such listener.
        listen: the one address to listen on; empty: all.
        user: who Mosquitto becomes when root starts it.
        plugin: the security plugin, by name where the dynamic linker finds it, else by path.
        version: the Mosquitto that will read it; unknown: the oldest that will do.
    """

    federation: str
    limits: Limits
    port: int = 8883
    websockets_port: int = 8884
    password_port: int = 8885
    listen: str = ""
    user: str = "mosquitto"
    plugin: str = PLUGIN
    version: tuple[int, ...] = ()


def find_plugin() -> str:
    """How to name the dynamic security plugin on this machine: by name alone, unless it lies off the beaten track."""
    for folder in map(Path, _PLUGIN_PLACES):
        for path in (folder / PLUGIN, *folder.glob(f"*-linux-*/{PLUGIN}")):
            if path.exists():
                return PLUGIN if str(folder) in _SEARCHED else str(path)
    return PLUGIN


def render(wanted: Wanted) -> str:
    """The text of `mosquitto.conf`."""
    return "\n".join(_lines(wanted)) + "\n"


def _lines(wanted: Wanted) -> Iterator[str]:
    here = MosquittoFiles(Path())
    yield from _comment(
        f"Mosquitto for the federation {wanted.federation}. Written by `fedmq broker init` from the [mosquitto] table:"
        " changes here are lost. Paths are relative to this folder, in which Mosquitto must be started."
    )
    yield from _heading("Who may come in, and what they may do")
    yield from _setting("Nobody without a certificate or a password.", "allow_anonymous false")
    yield from _setting(
        "Rights are rendered from the protocol's topics and kept by the dynamic security plugin: members come and go"
        " while it runs, a SUBSCRIBE that is not allowed is refused, and who is removed is cut off at once.",
        f"plugin {wanted.plugin}",
        f"plugin_opt_config_file {here.dynamic_security}",
    )
    yield from _setting("When root starts it, it becomes:", f"user {wanted.user}")

    yield from _heading("Limits: global, or of one client")
    limits = wanted.limits
    for name in (
        "max_packet_size",
        "max_inflight_messages",
        "max_inflight_bytes",
        "max_queued_messages",
        "max_queued_bytes",
        "max_keepalive",
        "persistent_client_expiration",
    ):
        yield from _setting(limits.why[name], f"{name} {getattr(limits, name)}")
    if wanted.version >= _COUNTS_THE_PLUGIN:
        yield from _setting(limits.why["memory_limit"], f"memory_limit {limits.memory_limit}")
    else:
        yield from _comment(
            "No memory_limit: up to 2.0, Mosquitto takes each answer of the security plugin off its own account of"
            " memory without ever having added it. A hundred commands later the account is below zero, which it takes"
            " for above any limit, and it serves nobody any more. What it may take, about"
            f" {limits.memory_limit // 1_000_000:,} MB, is for the unit or the container to bound."
        )
        yield ""
    yield from _setting(
        "A small message leaves at once instead of waiting to share a packet: rounds are short.",
        "set_tcp_nodelay true",
    )

    yield from _heading("What survives a restart")
    yield from _setting(
        "Retained messages: presence, and the model's chunks. This is convenience, not the system of record.",
        "persistence true",
        f"persistence_location {here.data}/",
    )
    yield from _setting(limits.why["autosave_interval"], f"autosave_interval {limits.autosave_interval}")

    yield from _heading("What it tells")
    yield from _setting(
        "To its standard error (a file, or the journal), and to $SYS/broker/log, where the monitor reads who is"
        " dropped, refused and cut off.",
        "log_dest stderr",
        "log_dest topic",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages true",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    )
    yield from _setting("Counters for the monitor and the operator alone.", "sys_interval 10")
    yield f"pid_file {here.pid}"

    yield from _heading("Listeners")
    yield from _comment(f"max_connections: {limits.why['max_connections']}")
    yield from _comment(
        f"Open files, all listeners together: {limits.open_files:,}. {limits.why['open_files']}"
    )
    yield ""
    yield from _setting(
        "TLS with client certificates. The certificate's common name is the member's name, and its client id as well:"
        " one identity has one session, so that nobody can push another out.",
        *_listener(wanted, wanted.port),
        "require_certificate true",
        "use_identity_as_username true",
        f"cafile {here.ca}",
        f"crlfile {here.crl}",
    )
    if wanted.password_port:
        yield from _setting(
            "TLS, by user name and password: for boards that cannot do certificates. A member with a certificate has no"
            " password.",
            *_listener(wanted, wanted.password_port),
        )
    if wanted.websockets_port:
        yield from _setting(
            "WebSockets over TLS, by user name and password: for browsers.",
            *_listener(wanted, wanted.websockets_port),
            "protocol websockets",
        )


def _listener(wanted: Wanted, port: int) -> list[str]:
    here = MosquittoFiles(Path())
    return [
        f"listener {port} {wanted.listen}".rstrip(),
        f"certfile {here.certificate}",
        f"keyfile {here.key}",
        "tls_version tlsv1.2",
        "use_username_as_clientid true",
        f"max_connections {wanted.limits.max_connections}",
        "max_qos 1",
    ]


def _heading(text: str) -> Iterator[str]:
    yield ""
    yield f"# ---- {text} ".ljust(_WIDTH, "-")
    yield ""


def _setting(reason: str, *lines: str) -> Iterator[str]:
    yield from _comment(reason)
    yield from lines
    yield ""


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, _WIDTH))
