"""Rules about who comes in, what they may do there, and who listens on the way."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from typing import Final

from fedmq_broker.checking.finding import Context, Finding, Rule, reaches_out
from fedmq_broker.checking.reading import Line, Listener, Section

_OLD_TLS: Final = frozenset({"tlsv1", "tlsv1.0", "tlsv1.1"})
_ALL_TOPICS: Final = re.compile(r"^(?:topic|pattern)\s+(?:(?:readwrite|read|write)\s+)?#\s*$")
_WITHOUT_LISTENERS: Final = (2, 0)
_LISTENER_ANONYMOUS: Final = (2, 1)


def anonymous(context: Context) -> Iterator[Finding]:
    """Whoever reaches the port is in."""
    for listener in context.reading.listeners:
        line = _lets_anybody_in(context, listener)
        if line is None or _by_certificate(listener):
            continue
        if reaches_out(listener):
            yield Finding(
                "error",
                "anonymous",
                line,
                f"whoever reaches {listener.name} is in, without a name",
                "write allow_anonymous false, and let members in by certificate or password",
            )
        else:
            yield Finding(
                "warning",
                "anonymous",
                line,
                f"every program on this machine is in by {listener.name}, without a name",
                "write allow_anonymous false, unless nobody else works here",
            )


def in_the_clear(context: Context) -> Iterator[Finding]:
    """Without TLS, passwords and messages are there for whoever is on the way."""
    for listener in context.outside():
        if not listener.has_tls:
            yield Finding(
                "error",
                "no-tls",
                listener.head,
                f"{listener.name} has no TLS: passwords and messages can be read, and changed, on the way",
                "give it certfile and keyfile, or have it listen on 127.0.0.1",
            )


def nobody_asked(context: Context) -> Iterator[Finding]:
    """Nobody can come in at all, or nobody is told apart."""
    for listener in context.reading.listeners:
        security = context.reading.security(listener)
        known = any(security.last(name) for name in ("password_file", "plugin", "auth_plugin", "psk_file"))
        known = known or any(context.reading.common.last(name) for name in ("plugin_load", "global_plugin"))
        if known or listener.flag("require_certificate", default=False):
            continue
        if _lets_anybody_in(context, listener) is None and listener.port is not None:
            yield Finding(
                "error",
                "nobody-comes-in",
                listener.head,
                f"{listener.name} lets nobody in: there is neither password_file nor plugin, nor are certificates"
                " asked for",
                "write require_certificate true and use_identity_as_username true, or a plugin that knows the members",
            )


def no_rules(context: Context) -> Iterator[Finding]:
    """Without rules each member may read and publish everything."""
    for listener in context.reading.listeners:
        security = context.reading.security(listener)
        ruled = any(security.last(name) for name in ("acl_file", "plugin", "auth_plugin"))
        ruled = ruled or any(context.reading.common.last(name) for name in ("plugin_load", "global_plugin"))
        if not ruled and reaches_out(listener):
            yield Finding(
                "error",
                "no-access-rules",
                listener.head,
                f"who is in by {listener.name} may read and publish everything, as any other device and as coordinator",
                "load the dynamic-security plugin with rules for each member, as fedmq broker init does",
            )


def wide_rules(context: Context) -> Iterator[Finding]:
    """An access list that grants everything is none."""
    for line in _distinct(context, "acl_file"):
        text = _text_of(context, line)
        for number, rule in enumerate((text or "").splitlines(), 1):
            if _ALL_TOPICS.match(rule.strip()):
                yield Finding(
                    "error",
                    "wide-access-rules",
                    line,
                    f"line {number} of {line.value} grants every topic: {rule.strip()!r}",
                    "name the topics; with %u in a pattern each device has its own branch",
                )
                break


def nameless_certificates(context: Context) -> Iterator[Finding]:
    """A certificate that is asked for, and whose name is then not used."""
    for listener in context.reading.listeners:
        line = listener.last("require_certificate")
        if line is None or not line.flag:
            continue
        used = any(
            listener.flag(name, default=False)
            for name in ("use_identity_as_username", "use_subject_as_username")
        )
        if not used:
            yield Finding(
                "warning",
                "use-identity-as-username",
                line,
                f"{listener.name} asks for a certificate and forgets the name in it: devices are not told apart",
                "write use_identity_as_username true",
            )
        if listener.text("cafile") is None and listener.text("capath") is None:
            yield Finding(
                "error",
                "no-authority",
                line,
                f"{listener.name} asks for certificates and knows no authority that signs them: it does not start",
                "write cafile",
            )
        if listener.text("crlfile") is None:
            yield Finding(
                "error",
                "no-revocation",
                line,
                f"at {listener.name} a certificate that was revoked comes in until it expires",
                "write crlfile with the authority's list; SIGHUP has it read again",
            )


def expired_certificates(context: Context) -> Iterator[Finding]:
    """An option of 2.1 that lets in who should be out."""
    for listener in context.reading.listeners:
        line = listener.last("disable_client_cert_date_checks")
        if line is not None and line.flag:
            yield Finding(
                "error",
                "expired-certificates",
                line,
                "certificates that have expired come in",
                "take the line out",
            )


def shared_names(context: Context) -> Iterator[Finding]:
    """Two sessions of one client id push each other out, whoever they belong to."""
    for listener in context.outside():
        if listener.flag("use_username_as_clientid", default=False):
            continue
        if _lets_anybody_in(context, listener) is None:
            yield Finding(
                "warning",
                "use-username-as-clientid",
                listener.head,
                f"a member that comes in by {listener.name} with another's client id throws that one out",
                "write use_username_as_clientid true",
            )


def old_tls(context: Context) -> Iterator[Finding]:
    """What TLS 1.1 and older protect is not protected."""
    for listener in context.reading.listeners:
        line = listener.last("tls_version")
        if line is not None and line.value in _OLD_TLS:
            yield Finding(
                "error", "tls-version", line, f"{line.value} is broken", "write tls_version tlsv1.2"
            )
    for bridge in context.reading.bridges:
        line = bridge.last("bridge_tls_version")
        if line is not None and line.value in _OLD_TLS:
            yield Finding(
                "error", "tls-version", line, f"{line.value} is broken", "write bridge_tls_version tlsv1.2"
            )


def open_page(context: Context) -> Iterator[Finding]:
    """The HTTP interface of 2.1 asks nobody who they are."""
    for listener in context.outside():
        line = listener.last("protocol")
        if line is not None and line.value == "http_api":
            yield Finding(
                "error",
                "http-api",
                line,
                f"{listener.name} tells anybody how the broker stands, and asks for no password",
                "have it listen on 127.0.0.1",
            )


def retained_by_the_revoked(context: Context) -> Iterator[Finding]:
    """What somebody left who may no longer publish."""
    line = context.reading.common.last("check_retain_source")
    if line is not None and line.flag is False:
        yield Finding(
            "warning",
            "check-retain-source",
            line,
            "what a member left retained is delivered on after it was thrown out",
            "take the line out",
        )


def odd_names(context: Context) -> Iterator[Finding]:
    """`#`, `+` and `/` in a name reach into patterns."""
    line = context.reading.common.last("auth_plugin_deny_special_chars")
    if line is not None and line.flag is False:
        yield Finding(
            "warning",
            "special-characters",
            line,
            "a user called + or # matches everybody's branch in a rule with %u",
            "take the line out",
        )


def as_root(context: Context) -> Iterator[Finding]:
    """A flaw in Mosquitto would be a flaw of the whole machine."""
    line = context.reading.common.last("user")
    if line is not None and line.value == "root":
        yield Finding(
            "warning",
            "user-root",
            line,
            "started by root it stays root: a flaw in it gives away the machine",
            "write user mosquitto",
        )


def readable_keys(context: Context) -> Iterator[Finding]:
    """The server's key in the hands of everybody on this machine."""
    for line in _distinct(context, "keyfile"):
        path = context.reading.path.parent / line.value
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):
            continue
        if mode & stat.S_IROTH:
            yield Finding(
                "error",
                "readable-key",
                line,
                f"everybody on this machine can read {line.value}, and be the broker",
                f"chmod o= {path}",
            )


def trusting_bridges(context: Context) -> Iterator[Finding]:
    """A bridge is a client of another broker: the same care holds."""
    for bridge in context.reading.bridges:
        address = bridge.last("address") or bridge.last("addresses")
        insecure = bridge.last("bridge_insecure")
        if insecure is not None and insecure.flag:
            yield Finding(
                "error",
                "bridge-insecure",
                insecure,
                "the other broker's certificate is not checked: anybody on the way can be it",
                "take the line out",
            )
        protected = any(
            bridge.last(name)
            for name in ("bridge_cafile", "bridge_capath", "bridge_psk", "bridge_tls_use_os_certs")
        )
        if address is not None and not protected and not _is_local(address):
            yield Finding(
                "error",
                "bridge-in-the-clear",
                address,
                "the bridge has no TLS: what passes can be read, and changed, on the way",
                "write bridge_cafile",
            )


def only_here(context: Context) -> Iterator[Finding]:
    """Since 2.0, without a listener nobody from another machine comes in."""
    if not context.reading.listeners and context.version >= _WITHOUT_LISTENERS:
        yield Finding(
            "error",
            "no-listener",
            None,
            "there is no listener: only programs on this machine come in, by port 1883 and without a name;"
            " devices cannot",
            "write listener 8883, with certificates: fedmq broker init makes all of it",
        )


def _lets_anybody_in(context: Context, listener: Listener) -> Line | None:
    """The line by which clients without a name are let in; None where they are not."""
    own = listener.last("listener_allow_anonymous")
    if own is not None and context.version >= _LISTENER_ANONYMOUS:
        return own if own.flag else None
    line = context.reading.security(listener).last("allow_anonymous")
    return line if line is not None and line.flag else None


def _by_certificate(listener: Listener) -> bool:
    return listener.flag("require_certificate", default=False) and any(
        listener.flag(name, default=False) for name in ("use_identity_as_username", "use_subject_as_username")
    )


def _distinct(context: Context, name: str) -> list[Line]:
    """Each line of a name in any section, one for each value."""
    sections: list[Section] = [context.reading.common, *context.reading.listeners]
    return list({line.value: line for section in sections for line in section.all(name)}.values())


def _text_of(context: Context, line: Line) -> str | None:
    try:
        return (context.reading.path.parent / line.value).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def _is_local(address: Line) -> bool:
    return all(word.startswith(("127.", "localhost", "[::1]", "::1")) for word in address.value.split())


RULES: Final[tuple[Rule, ...]] = (
    only_here,
    anonymous,
    in_the_clear,
    nobody_asked,
    no_rules,
    wide_rules,
    nameless_certificates,
    expired_certificates,
    shared_names,
    old_tls,
    open_page,
    retained_by_the_revoked,
    odd_names,
    as_root,
    readable_keys,
    trusting_bridges,
)
