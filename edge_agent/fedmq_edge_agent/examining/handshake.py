"""TLS with the broker: does each trust the other's certificate? Without a word of MQTT, so that nobody is thrown out.

In TLS 1.3 a server judges the client's certificate after the client believes that it is through. The verdict is then
the first thing that the server sends: session tickets, or an alert.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from datetime import UTC, datetime

from cryptography import x509

from fedmq_edge_agent.examining.certificates import (
    common_name,
    day,
    issuer_of,
    moment,
    names_of,
    span,
)
from fedmq_edge_agent.examining.course import in_thread
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, warning
from fedmq_edge_agent.examining.network import CONNECT_S
from fedmq_protocol.aio_access import make_tls_context
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError

_READ_BYTES = 65_536
_VERDICT_S = 2.0
_EXPIRES_SOON_DAYS = 14

_EXPIRED, _NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID
_WRONG_NAME = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


async def shake_hands(device: Device) -> Finding:
    """Do both sides accept each other's certificate?"""
    broker = device.settings.broker
    if not broker.uses_tls:
        if broker.host in {"127.0.0.1", "::1", "localhost"}:
            return fine("not asked for by the broker's url; and nothing leaves this machine")
        return warning(
            "not asked for by the broker's url: who is on the way can read everything, the password too",
            "use mqtts:// in `url` of [broker], if the broker has a port for it",
        )
    try:
        certificate, protocol = await in_thread(_shake_hands, broker)
    except ConfigError as error:
        return failed(str(error), "correct the setting, or put the file there again")
    except ssl.SSLCertVerificationError as error:
        server = await in_thread(shown_certificate, broker)
        return _distrusted(device, error, server)
    except ssl.SSLError as error:
        return _refused(device, error)
    except OSError as error:
        return failed(
            f"{broker.address} takes the connection, and no TLS handshake comes about: {error.strerror or error}",
            "is this the broker's TLS port? Look at the broker's log",
        )
    if broker.tls_insecure:
        return warning(
            "tls_insecure is set: any certificate is accepted, and who is on the way can pretend to be the broker",
            "remove tls_insecure from [broker], and set ca_file",
        )
    if certificate is not None:
        left = certificate.not_valid_after_utc - datetime.fromtimestamp(device.clock(), UTC)
        if left.days < _EXPIRES_SOON_DAYS:
            return warning(
                f"both sides agree ({protocol}), and the broker's certificate expires in {span(left)}",
                "tell whoever keeps the broker: `fedmq broker init` renews it",
            )
    return fine(f"both sides accept each other ({protocol})")


def _shake_hands(broker: BrokerSettings, *, verdict: bool = True) -> tuple[x509.Certificate | None, str]:
    """Shake hands, wait for the broker's verdict on our certificate, and leave.

    Args:
        broker: where it is, and what we show and believe.
        verdict: wait for it.

    Returns:
        The broker's certificate, where it was asked for, and the version of TLS.

    Raises:
        OSError: nobody answers, or the handshake fails (`ssl.SSLError`).
        ConfigError: a file cannot be used.
    """
    context = make_tls_context(broker)
    assert context is not None
    with socket.create_connection((broker.host, broker.port), timeout=CONNECT_S) as sock:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=broker.host)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                _feed(incoming, sock)
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    sock.sendall(outgoing.read())  # the alert tells the broker's log why
                raise
            else:
                break
        sock.sendall(outgoing.read())
        if verdict and tls.version() == "TLSv1.3":
            sock.settimeout(_VERDICT_S)
            with contextlib.suppress(TimeoutError):  # a broker that sends no tickets has no objection
                _feed(incoming, sock)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.read(1)
        with contextlib.suppress(ssl.SSLError, OSError):
            tls.unwrap()
        with contextlib.suppress(OSError):
            sock.sendall(outgoing.read())
        shown = tls.getpeercert(binary_form=True)
        return (None if shown is None else x509.load_der_x509_certificate(shown)), tls.version() or "TLS"


def _feed(incoming: ssl.MemoryBIO, sock: socket.socket) -> None:
    data = sock.recv(_READ_BYTES)
    if data:
        incoming.write(data)
    else:
        incoming.write_eof()


def shown_certificate(broker: BrokerSettings) -> x509.Certificate | None:
    """What the broker shows, believed or not; None where that cannot be seen."""
    careless = broker.model_copy(update={"tls_insecure": True})
    try:
        return _shake_hands(careless, verdict=False)[0]
    except (OSError, ConfigError):
        return None


def _distrusted(
    device: Device, error: ssl.SSLCertVerificationError, server: x509.Certificate | None
) -> Finding:
    broker = device.settings.broker
    now = datetime.fromtimestamp(device.clock(), UTC)
    if server is None:
        return failed(
            f"the broker's certificate is not trusted: {error.verify_message}",
            "set ca_file in [broker] to ca.pem of this federation's site/authority",
        )
    if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
        first, last = server.not_valid_before_utc, server.not_valid_after_utc
        found = (
            f"the broker's certificate is good from {moment(first)} to {moment(last)}, and this device's clock "
            f"says {moment(now)}"
        )
        if error.verify_code == _NOT_YET_VALID:
            return failed(found, "the clock is behind: `timedatectl set-ntp true`, or set it by `date -s …`")
        renew = "renew the broker's certificate (`fedmq broker init`, then `fedmq broker reload`)"
        return failed(found, renew if device.synchronised else f"if the clock is right, {renew}; else set it")
    if error.verify_code in _WRONG_NAME:
        names = names_of(server)
        known = ", ".join(names) if names else f"nobody in particular ({common_name(server)})"
        return failed(
            f"the broker's certificate is for {known}, and not for {broker.host}",
            f"use one of those names in `url` of [broker]; or add {broker.host!r} to `hosts` in [mosquitto] of the "
            "operator's file, and run `fedmq broker init`",
        )
    source = "the system's authorities" if broker.ca_file is None else str(broker.ca_file)
    holds = f"does not know it ({error.verify_message})"
    if broker.ca_file is not None and device.certificates:
        ours = device.certificates[-1]
        same = f" of the same name, of {day(ours.not_valid_before_utc)}"
        other = f", {common_name(ours)!r}"
        holds = f"holds another authority{same if common_name(ours) == issuer_of(server) else other}"
    return failed(
        f"the broker's certificate is by {issuer_of(server)!r}, of {day(server.not_valid_before_utc)}; "
        f"{source} {holds}",
        "set ca_file in [broker] to ca.pem of this federation's site/authority; if it was made anew, enroll again",
    )


def _holds(device: Device) -> bool:
    """Whether this device's certificate is still good, if the clock is right."""
    now = datetime.fromtimestamp(device.clock(), UTC)
    return bool(device.certificates) and now < device.certificates[0].not_valid_after_utc


def _refused(device: Device, error: ssl.SSLError) -> Finding:
    """What the broker's alert, or its silence, says of us."""
    broker = device.settings.broker
    word = (error.reason or str(error)).replace("_", " ").lower()
    enroll = f"`fedmq device enroll {device.settings.id}`"
    if "certificate revoked" in word:
        return failed(
            "the broker refuses this device's certificate: it is revoked",
            f"if that was not meant, {enroll} makes a new one; copy it here",
        )
    if "certificate expired" in word and _holds(device):
        return failed(
            "the broker says that this device's certificate has expired, and by the clock here it has not",
            "is one of the two clocks wrong? Or has the broker's list of revoked certificates run out, by which nobody "
            "gets in: at the operator's, `fedmq broker reload` makes it anew",
        )
    if "certificate expired" in word:
        return failed(
            "the broker refuses this device's certificate: it has expired",
            f"renew it: `fedmq device renew {device.settings.id}`",
        )
    if "certificate required" in word or ("handshake failure" in word and broker.cert_file is None):
        return failed(
            "the broker lets in only who shows a certificate, and none is set here",
            f"set cert_file and key_file in [broker]; {enroll} makes them",
        )
    if "alert" in word and ("unknown ca" in word or "bad certificate" in word or "decrypt" in word):
        return failed(
            f"the broker refuses this device's certificate: its authority is not the broker's ({word})",
            f"enroll this device in this federation: {enroll}",
        )
    if "wrong version number" in word or "record layer" in word:
        return failed(
            f"{broker.address} does not speak TLS",
            "is it the port without TLS? Then use mqtt://, or better the other port",
        )
    if "unexpected eof" in word:
        return failed(
            f"{broker.address} hangs up in the TLS handshake",
            "is this the broker's TLS port? Look at its log",
        )
    return failed(
        f"TLS with {broker.address} fails: {word}", "look at the broker's log, which names the reason"
    )
