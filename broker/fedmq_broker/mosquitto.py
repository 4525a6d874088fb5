"""Mosquitto: where the program is, which version, and a configuration with the reason beside each setting."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# Debian puts it where a plain user's PATH does not look; Homebrew and source builds have their own places.
_OTHER_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin", "/usr/local/bin")
_OLDEST_WITH_PACKET_LIMIT = (1, 6)


def find_mosquitto(search_path: str | None = None) -> Path | None:
    """The `mosquitto` program on the PATH or where packages put it; None where there is none.

    Args:
        search_path: used instead of the PATH and the usual places.
    """
    if search_path is None:
        search_path = os.pathsep.join([os.environ.get("PATH", ""), *_OTHER_PLACES])
    found = shutil.which("mosquitto", path=search_path)
    return None if found is None else Path(found)


def mosquitto_version(program: Path) -> tuple[int, ...]:
    """The version that the program tells, as numbers; empty where it tells none."""
    try:
        told = subprocess.run(  # noqa: S603  # the program that we found
            [program, "-h"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"mosquitto version (\d+(?:\.\d+)*)", told)
    return () if match is None else tuple(map(int, match[1].split(".")))


@dataclass(frozen=True)
class LocalConfig:
    """Settings of a Mosquitto on this machine, without passwords and certificates.

    Attributes:
        host: address to listen on; beyond loopback anyone who reaches it may publish.
        state_dir: where retained messages are saved; None keeps them in memory only.
        max_packet_bytes: the largest MQTT packet; clients speaking MQTT 5 are told.
        user: who Mosquitto runs as when it is started by root.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    state_dir: Path | None = None
    max_packet_bytes: int = 2_000_000
    max_inflight_messages: int = 20
    max_queued_messages: int = 5_000
    user: str = field(default_factory=getpass.getuser)


def render_local_config(config: LocalConfig, version: tuple[int, ...] = ()) -> str:
    """A Mosquitto configuration for trying out and for tests, each setting with its reason.

    Args:
        config: what to write.
        version: the Mosquitto that will read it; settings that it does not know are left out.
    """
    lines = [
        "# Written by fedmq at each start: changes here are lost.",
        "",
        "# Listening on one address alone; without a listener line Mosquitto 2 chooses for itself.",
        f"listener {config.port} {config.host}",
        "# No passwords: whoever reaches the address above may publish. Messages are signed; brokers are not trusted.",
        "allow_anonymous true",
        "# A small message leaves at once instead of waiting to share a packet: rounds are short.",
        "set_tcp_nodelay true",
        "# Run as whoever started it. Giving up root for another user would also cancel the signal by which the broker",
        "# ends with its parent, and leave it with a state folder that it cannot write.",
        f"user {config.user}",
        "",
        "# How many messages may be on the way to one client without its acknowledgement. Each is a copy in memory.",
        f"max_inflight_messages {config.max_inflight_messages}",
        "# What waits behind those for one client. Beyond it Mosquitto drops messages that it has acknowledged, so it",
        "# is above what a fleet sends the coordinator at once; the next line bounds what that may cost.",
        f"max_queued_messages {config.max_queued_messages}",
        "max_queued_bytes 67108864",
    ]
    if not version or version >= _OLDEST_WITH_PACKET_LIMIT:
        lines += [
            "# Said outright, because the default changed between versions. message_size_limit is not used: it",
            "# acknowledges what it drops.",
            f"max_packet_size {config.max_packet_bytes}",
        ]
    lines += [
        "# A client that vanished for good does not keep its queue for ever. Ours use clean sessions and need none.",
        "persistent_client_expiration 1d",
        "",
        "# To its standard error, which goes to a file beside this one.",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
    ]
    if config.state_dir is None:
        lines += ["", "# Retained messages live as long as the process.", "persistence false"]
    else:
        lines += [
            "",
            "# Retained messages survive a restart. A crash loses what came since the last save; the coordinator",
            "# publishes again whatever is missing, so this is convenience and not the system of record.",
            "persistence true",
            f"persistence_location {config.state_dir}/",
            "autosave_interval 60",
        ]
    return "\n".join(lines) + "\n"
