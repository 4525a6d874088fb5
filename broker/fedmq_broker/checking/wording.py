"""Rules about the text itself: what Mosquitto does not know, or reads otherwise than it looks."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from fedmq_broker.checking.finding import Context, Finding, Rule
from fedmq_broker.checking.options import OPTIONS, option_of, version_text
from fedmq_broker.checking.reading import Line, Section

_NUMBER: Final = re.compile(r"[+-]?\d+")
_FILES: Final = (
    "cafile",
    "certfile",
    "keyfile",
    "crlfile",
    "acl_file",
    "password_file",
    "psk_file",
    "dhparamfile",
)
_SOON: Final = timedelta(days=30)
_PROTOCOLS: Final = frozenset({"mqtt", "mqttsn", "websockets", "http_api"})
_TLS: Final = frozenset({"tlsv1.3", "tlsv1.2", "tlsv1.1"})
_LOG_TYPES: Final = frozenset(
    {
        "all",
        "debug",
        "error",
        "information",
        "internal",
        "none",
        "notice",
        "subscribe",
        "unsubscribe",
        "warning",
        "websockets",
    }
)
_LAST_PORT: Final = 65_535
_STRICTER: Final = (2, 1)
"""Reads numbers to their end."""


def unread(context: Context) -> Iterator[Finding]:
    """Files that are not there, or not readable."""
    for line, why in context.reading.complaints:
        yield Finding("error", "unreadable", line, why, "name a file or folder that is there")


def unknown(context: Context) -> Iterator[Finding]:
    """Mosquitto refuses to start over a word that it does not know."""
    for line in context.reading.lines:
        option = option_of(line.name)
        if option is None:
            near = difflib.get_close_matches(line.name, OPTIONS, n=1)
            yield Finding(
                "error",
                "unknown-option",
                line,
                f"Mosquitto knows no option {_short(line.name)}, and does not start",
                f"write {near[0]}" if near else "take the line out",
            )
        elif option.since > context.version:
            yield Finding(
                "error",
                "too-new",
                line,
                f"{line.name} came with {version_text(option.since)}; {version_text(context.version)} does not start",
                "take the line out, or install a newer Mosquitto",
            )


def outdated(context: Context) -> Iterator[Finding]:
    """What a later version will not know."""
    for line in context.reading.lines:
        option = option_of(line.name)
        if option is not None and option.outdated is not None and line.name != "message_size_limit":
            version, mend = option.outdated
            when = "since" if context.version >= version else "from"
            yield Finding(
                "warning",
                "deprecated",
                line,
                f"{line.name} is deprecated {when} {version_text(version)}" + " on" * (when == "from"),
                mend,
            )


def malformed(context: Context) -> Iterator[Finding]:
    """Values that Mosquitto refuses, or reads as something else."""
    for line in context.reading.lines:
        option = option_of(line.name)
        if option is None:
            continue
        if not line.value:
            yield Finding(
                "error",
                "no-value",
                line,
                f"{line.name} has no value: Mosquitto does not start",
                "give it one",
            )
        elif option.kind == "flag" and line.flag is None:
            yield Finding(
                "error",
                "not-a-flag",
                line,
                f"{line.name} is true or false, not {_short(line.value)}: Mosquitto does not start",
                f"write {line.name} true, or false",
            )
        elif option.kind == "number" and not _NUMBER.fullmatch(line.value):
            yield Finding(
                "error",
                "not-a-number",
                line,
                f"Mosquitto reads {_short(line.value)} as {line.integer}"
                if context.version < _STRICTER
                else f"{_short(line.value)} is no number: Mosquitto does not start",
                "write the number alone, without unit or comment",
            )
        elif option.kind == "text" and " #" in line.value and line.name not in {"topic", "include_dir"}:
            yield Finding(
                "error",
                "comment-in-value",
                line,
                f"a comment begins a line; here it is part of the value {_short(line.value)}",
                "put the comment on a line of its own",
            )


def unknown_words(context: Context) -> Iterator[Finding]:
    """Options that take one of a few words."""
    for line in context.reading.lines:
        words = {"protocol": _PROTOCOLS, "tls_version": _TLS | {"tlsv1"}, "log_type": _LOG_TYPES}.get(
            line.name
        )
        if words is not None and line.value and line.value.split(" ")[0] not in words:
            yield Finding(
                "error",
                "unknown-word",
                line,
                f"{line.name} is one of {', '.join(sorted(words))}, not {_short(line.value)}",
                f"write {line.name} with one of these",
            )


def repeated(context: Context) -> Iterator[Finding]:
    """Of a text Mosquitto takes one alone; of numbers and flags, and of users from 2.1 on, the last."""
    for section in (context.reading.common, *context.reading.listeners, *context.reading.bridges):
        seen: dict[str, Line] = {}
        for line in section.lines:
            option = option_of(line.name)
            if option is None or option.repeats:
                continue
            before = seen.get(line.name)
            seen[line.name] = line
            if before is None:
                continue
            if option.kind == "text" and (line.name != "user" or context.version < _STRICTER):
                yield Finding(
                    "error",
                    "twice",
                    line,
                    f"{line.name} stands in line {before.number} already: Mosquitto does not start",
                    "take one of them out",
                )
            elif before.value != line.value:
                yield Finding(
                    "warning",
                    "twice",
                    line,
                    f"{line.name} {_short(before.value)} in line {before.number} does not hold: this one does",
                    "take one of them out",
                )


def astray(context: Context) -> Iterator[Finding]:
    """Options above the listener that they are meant for."""
    for listener in context.reading.listeners:
        strays = [line for line in listener.lines if line.name not in {"port", "bind_address"}]
        if listener.implied and strays and listener.last("port") is None:
            yield Finding(
                "error",
                "before-any-listener",
                strays[0],
                f"{strays[0].name} stands above every listener: Mosquitto opens one more for it, on port 1883 of all"
                " addresses",
                "put it below the listener that it is meant for",
            )
    for line in context.reading.common.lines:
        option = option_of(line.name)
        if option is not None and option.scope == "bridge":
            yield Finding(
                "error",
                "outside-a-bridge",
                line,
                f"{line.name} belongs to a bridge, and there is no connection above it: Mosquitto does not start",
                "put it below a connection line",
            )
        elif line.name.startswith(("plugin_opt_", "auth_opt_")) and not _plugin_above(
            context.reading.common, line
        ):
            yield Finding(
                "error",
                "outside-a-plugin",
                line,
                f"{line.name} belongs to a plugin, and there is none above it: Mosquitto does not start",
                "put it below the plugin line",
            )


def same_port(context: Context) -> Iterator[Finding]:
    """Two listeners, one port; or a port that cannot be."""
    listeners = context.reading.listeners
    counts = Counter((one.port, one.host) for one in listeners if one.port)
    for listener in listeners:
        if listener.port is not None and not 0 <= listener.port <= _LAST_PORT:
            yield Finding(
                "error",
                "no-such-port",
                listener.head,
                f"there is no port {listener.port}",
                "write one below 65536",
            )
        elif listener.port and counts[listener.port, listener.host] > 1:
            counts[listener.port, listener.host] = 0
            yield Finding(
                "error",
                "same-port",
                listener.head,
                f"{listener.name} stands there twice: the second cannot be opened",
                "take one of them out, or give it another port",
            )


def missing_files(context: Context) -> Iterator[Finding]:
    """Files that the configuration names; paths are taken relative to the configuration's own folder."""
    for line in context.reading.lines:
        if line.name in _FILES and line.value:
            path = context.reading.path.parent / line.value
            try:
                path.stat()
            except FileNotFoundError:
                yield Finding(
                    "error",
                    "no-such-file",
                    line,
                    f"there is no file {_short(str(path))}",
                    "make it, or mend the path",
                )
            except (OSError, ValueError):  # behind a folder that is not for us; nothing can be said
                continue


def expiring(context: Context) -> Iterator[Finding]:
    """Certificates and lists that end: with the list of revoked ones everybody's way in ends."""
    seen: set[tuple[str, str]] = set()
    for line in context.reading.lines:
        if line.name not in {"certfile", "cafile", "crlfile"} or (line.name, line.value) in seen:
            continue
        seen.add((line.name, line.value))
        end = _end_of(context.reading.path.parent / line.value, is_list=line.name == "crlfile")
        if end is None:
            continue
        left = end - datetime.now(UTC)
        if left < _SOON:
            ends = f"expired on {end:%Y-%m-%d}" if left < timedelta() else f"expires on {end:%Y-%m-%d}"
            yield Finding(
                "error" if left < timedelta() else "warning",
                "expiry",
                line,
                f"{line.value} {ends}; from then on nobody comes in",
                "renew it and send SIGHUP; on a site, fedmq broker renew does both",
            )


def _end_of(path: Path, *, is_list: bool) -> datetime | None:
    try:
        data = path.read_bytes()
        if is_list:
            return x509.load_pem_x509_crl(data).next_update_utc
        return min(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(data))
    except (OSError, ValueError):
        return None


def _plugin_above(section: Section, line: Line) -> bool:
    above = section.lines[: section.lines.index(line)]
    return any(one.name in {"plugin", "auth_plugin", "plugin_load", "global_plugin"} for one in above)


def _short(text: str) -> str:
    shown = text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - what fits a line
    return repr(shown)


RULES: Final[tuple[Rule, ...]] = (
    unread,
    unknown,
    outdated,
    malformed,
    unknown_words,
    repeated,
    astray,
    same_port,
    missing_files,
    expiring,
)
