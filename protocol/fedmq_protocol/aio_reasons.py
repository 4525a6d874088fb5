"""Why there is no connection, in one line that names the fix."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from enum import Enum, auto

from fedmq_protocol.broker_settings import BrokerSettings


class Fault(Enum):
    """What kind of failure it is, which decides what is tried next."""

    UNREACHABLE = auto()
    """Try again: the broker or the network is down."""
    NO_ANSWER = auto()
    """Something accepts the connection and does not answer CONNECT: perhaps it does not know this MQTT version."""
    WRONG_VERSION = auto()
    """The broker says that it does not know this MQTT version."""
    REFUSED = auto()
    """Someone must mend something: credentials, rights, certificates, a name."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A failure for people (`text`) and for the retry logic (`fault`)."""

    text: str
    fault: Fault


def explain_failed_connect(error: OSError, settings: BrokerSettings) -> Reason:
    """Why no connection came about, from what resolving, connecting or the TLS handshake raised."""
    where = settings.address
    match error:
        case ssl.SSLCertVerificationError():
            return Reason(_explain_certificate(error, settings), Fault.REFUSED)
        case ssl.SSLError():
            detail = (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
            if "wrong version number" in detail or "record layer failure" in detail:
                text = f"{where} does not speak TLS: use mqtt:// (or ws://), or the broker's TLS port"
            elif "alert" in detail:
                text = f"the broker at {where} refuses our TLS handshake ({detail}): {_of_our_certificate(detail)}"
            else:
                text = f"TLS with {where} fails: {detail}"
            return Reason(text, Fault.REFUSED)
        case socket.gaierror():
            return Reason(
                f"the name {settings.host!r} cannot be resolved: check the broker url {settings.shown_url} "
                "and this machine's DNS",
                Fault.UNREACHABLE,
            )
        case ConnectionRefusedError():
            return Reason(
                f"no broker at {where}: start one with `fedmq broker start`, or correct the broker url",
                Fault.UNREACHABLE,
            )
        case TimeoutError():
            return Reason(
                f"{where} does not answer within {settings.connect_timeout_s:g} s: is the address right, "
                "and does a firewall stand between?",
                Fault.UNREACHABLE,
            )
        case ConnectionResetError() | BrokenPipeError():
            return Reason(
                f"{where} closes the connection at once: is the port right, {_tls_hint(settings)}?",
                Fault.UNREACHABLE,
            )
        case _:
            return Reason(
                f"no connection to {where}: {(error.strerror or str(error)).lower()}", Fault.UNREACHABLE
            )


def _explain_certificate(error: ssl.SSLCertVerificationError, settings: BrokerSettings) -> str:
    detail = error.verify_message or str(error)
    start = f"the certificate of {settings.address} is not trusted ({detail})"
    if "mismatch" in detail.lower() or "not valid for" in detail.lower():
        return f"{start}: use the name in the certificate in the broker url"
    if "expired" in detail or "not yet valid" in detail:
        today = time.strftime("%Y-%m-%d", time.gmtime())
        if "not yet valid" in detail:
            return f"{start}: this machine's clock shows {today}; until it is set, this is tried again"
        return f"{start}: this machine's clock shows {today}; is that right? Then renew the certificate"
    return f"{start}: set ca_file to the certificate of the authority that signed it"


def _of_our_certificate(detail: str) -> str:
    if "revoked" in detail:
        return "our certificate was revoked, and this device is let in again only if it is enrolled anew"
    if "expired" in detail:
        return "our certificate has expired: let the operator renew it"
    return "does it ask for a client certificate? Set cert_file and key_file"


def explain_silence(settings: BrokerSettings, *, closed: bool) -> Reason:
    """The connection stood, and no CONNACK came."""
    what = (
        "closes the connection before it answers"
        if closed
        else f"accepts the connection and does not answer within {settings.connect_timeout_s:g} s"
    )
    # In TLS 1.3 the broker looks at our certificate when the handshake is over for us; its alert may be lost.
    ours = "does it still accept our certificate, and " if closed and settings.cert_file is not None else ""
    return Reason(
        f"{settings.address} {what}: {ours}is it an MQTT port, {_tls_hint(settings)}?", Fault.NO_ANSWER
    )


def explain_websocket(error: Exception, settings: BrokerSettings) -> Reason:
    """The WebSocket handshake failed."""
    return Reason(
        f"{settings.address} does not accept WebSockets at {settings.path} ({error}): check the port and the path in "
        f"the broker url {settings.shown_url}",
        Fault.UNREACHABLE,
    )


def explain_refusal(code: int, name: str, settings: BrokerSettings, username: str | None) -> Reason:
    """The broker's CONNACK says no: MQTT 5.0 table 3-1, into which paho-mqtt translates those of 3.1.1."""
    who = f"the broker at {settings.address}"
    user = "an anonymous client" if username is None else f"the user {username!r}"
    match code:
        case 0x84:
            return Reason(f"{who} does not know the MQTT version asked for", Fault.WRONG_VERSION)
        case 0x85:
            return Reason(f"{who} does not accept our client id: choose another name", Fault.REFUSED)
        case 0x86:
            return Reason(f"{who} refuses {user}: wrong user name or password", Fault.REFUSED)
        case 0x87 if username is None:
            return Reason(f"{who} refuses {user}: set username and password_file", Fault.REFUSED)
        case 0x87:
            return Reason(f"{who} refuses {user}: wrong password, or no right to connect", Fault.REFUSED)
        case 0x8A | 0x8C:
            return Reason(f"{who} refuses {user}: {name.lower()}", Fault.REFUSED)
        case _:
            return Reason(f"{who} refuses the connection: {name.lower()}", Fault.UNREACHABLE)


def explain_loss(
    settings: BrokerSettings, client_id: str, *, error: OSError | None, ended: bool, said: str | None
) -> Reason:
    """An established connection broke.

    Args:
        settings: where the broker is.
        client_id: ours.
        error: what the socket raised, if it did.
        ended: the broker closed the stream.
        said: the reason in the broker's DISCONNECT (MQTT 5), if there was one.
    """
    who = f"the broker at {settings.address}"
    if said is not None and "taken over" in said.lower():
        return Reason(
            f"another client named {client_id!r} has connected to {who}: two processes must not share a name",
            Fault.UNREACHABLE,
        )
    if said is not None:
        return Reason(f"{who} ended the connection: {said.lower()}", Fault.UNREACHABLE)
    if error is not None:
        detail = (error.strerror or str(error)).lower()
        return Reason(f"the connection to {settings.address} broke: {detail}", Fault.UNREACHABLE)
    if ended:
        # Some brokers do so when a client id is taken over, and do not say why.
        hint = f"if that repeats, look for a second client named {client_id!r}"
        return Reason(f"{who} closed the connection; {hint}", Fault.UNREACHABLE)
    return Reason(f"{who} was silent for too long", Fault.UNREACHABLE)


def _tls_hint(settings: BrokerSettings) -> str:
    return "and does it speak TLS" if settings.uses_tls else "and without TLS"
