"""This device's own certificate, and its clock, which certificates bear witness against."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ctypes.util
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, warning

_SOON = timedelta(days=30)
_TIMEX_BYTES = 512  # struct timex has 208; nothing in it is set
_TIME_ERROR = 5
_CLOCK_MEND = (
    "set it: `timedatectl set-ntp true`, or `date -s …` once; a board without a clock of its own needs an NTP server "
    "that it can reach"
)


async def look_at_certificate(device: Device) -> Finding:
    """Is this device's certificate whole, its own, of the right authority, and still good?"""
    broker = device.settings.broker
    if not broker.uses_tls:
        return fine("none is needed: the broker's url asks for no TLS")
    try:
        authorities = [] if broker.ca_file is None else read_certificates(broker.ca_file)
    except (OSError, ValueError) as error:
        return _unreadable("ca_file", broker.ca_file, error)
    device.certificates += authorities
    if broker.cert_file is None:
        if broker.username is not None or broker.url_credentials[0] is not None:
            return fine("none: this device is known by user name and password")
        return warning(
            "none, and no user name either: only a broker that takes strangers lets it in",
            "set cert_file and key_file, or username and password_file, in [broker]; `fedmq device enroll` makes them",
        )
    try:
        certificate = read_certificates(broker.cert_file)[0]
    except (OSError, ValueError) as error:
        return _unreadable("cert_file", broker.cert_file, error)
    device.certificates.insert(0, certificate)
    key_file = broker.key_file or broker.cert_file
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        return _unreadable("key_file", key_file, error)
    if public_bytes(key.public_key()) != public_bytes(certificate.public_key()):
        return failed(
            f"{key_file} is not the key of {broker.cert_file}",
            "they were mixed up: copy both from the same enrolment, or enroll this device anew",
        )
    if authorities and not any(is_issued_by(certificate, authority) for authority in authorities):
        return failed(
            f"{broker.cert_file} was not issued by the authority in {broker.ca_file}, but by {issuer_of(certificate)}",
            "take cert_file and ca_file from the same federation: `fedmq device enroll` makes both",
        )
    return _judge(device, certificate, key_file)


def _judge(device: Device, certificate: x509.Certificate, key_file: Path) -> Finding:
    now = datetime.fromtimestamp(device.clock(), UTC)
    ends, name = certificate.not_valid_after_utc, common_name(certificate)
    said = f"{name}, by {issuer_of(certificate)}, until {day(ends)}"
    if ends < now:
        return failed(
            f"it expired on {day(ends)}, {span(now - ends)} ago (and today is {day(now)}, says this device's clock)",
            f"renew it where it was made: `fedmq device renew {device.settings.id}`; unless the clock is wrong",
        )
    if name != device.settings.id:
        return warning(
            f"it is made out to {name!r}, and this device is called {device.settings.id!r}: a broker that goes by the "
            "name in the certificate lets it speak as the other only",
            f"set id = {name!r} in [device], or enroll {device.settings.id}",
        )
    lasts = ends - certificate.not_valid_before_utc
    if ends - now < min(_SOON, lasts / 3):
        return warning(
            f"{said}: that is in {span(ends - now)}",
            f"renew it before: `fedmq device renew {device.settings.id}`, and copy it here",
        )
    with contextlib.suppress(OSError):
        if stat.S_IMODE(key_file.stat().st_mode) & stat.S_IRWXO:
            return warning(
                f"{said}; but everybody on this device may read its key", f"chmod o-rwx {key_file}"
            )
    return fine(said)


def _unreadable(setting: str, path: Path | None, error: Exception) -> Finding:
    if isinstance(error, FileNotFoundError):
        why = "is not there"
    elif isinstance(error, PermissionError):
        why = "may not be read by this user"
    elif isinstance(error, OSError):
        why = f"cannot be read ({error.strerror})"
    else:
        why = "holds nothing of the kind in PEM, or is damaged"
    return failed(
        f"{setting} {path} {why}",
        f"correct {setting} in [broker], or put the file there again; `fedmq device enroll` makes it",
    )


# ------------------------------------------------------------------------------------------------------- the clock


async def look_at_clock(device: Device) -> Finding:
    """Can the time be right: not before certificates were made that are here already?"""
    now = datetime.fromtimestamp(device.clock(), UTC)
    device.synchronised = await asyncio.to_thread(is_synchronised)
    made = max((certificate.not_valid_before_utc for certificate in device.certificates), default=None)
    if made is not None and now < made:
        return failed(
            f"it says {moment(now)}, and the certificates here were made on {moment(made)}: it is behind by "
            f"{span(made - now)} at least",
            _CLOCK_MEND,
        )
    if device.synchronised is False:
        return warning(
            f"{moment(now)}; no time server has set it since the start",
            "look whether it is right; certificates are good or not by it. To have it set: `timedatectl set-ntp true`",
        )
    return fine(f"{moment(now)}" + (", set by a time server" if device.synchronised else ""))


def is_synchronised() -> bool | None:
    """What the kernel knows of its clock (adjtimex(2), asked without changing anything); None: it does not say."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
        state = int(library.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


# ------------------------------------------------------------------------------------------------- reading them


def read_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file.

    Raises:
        OSError: it cannot be read.
        ValueError: there is none in it.
    """
    found = x509.load_pem_x509_certificates(path.read_bytes())
    if not found:
        raise ValueError(f"{path} holds no certificate")
    return found


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether its signature is the authority's."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def public_bytes(key: object) -> bytes:
    """A public key, to compare."""
    made: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return made


def common_name(certificate: x509.Certificate) -> str:
    """Whom it is made out to."""
    return _common_name(certificate.subject)


def issuer_of(certificate: x509.Certificate) -> str:
    """Who made it."""
    return _common_name(certificate.issuer)


def _common_name(name: x509.Name) -> str:
    names = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else name.rfc4514_string() or "nobody"


def names_of(certificate: x509.Certificate) -> list[str]:
    """The hosts that a server's certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [
        *found.get_values_for_type(x509.DNSName),
        *(str(address) for address in found.get_values_for_type(x509.IPAddress)),
    ]


def day(when: datetime) -> str:
    """2026-11-23."""
    return f"{when:%Y-%m-%d}"


def moment(when: datetime) -> str:
    """2026-11-23 07:30 UTC."""
    return f"{when:%Y-%m-%d %H:%M} UTC"


def span(lasts: timedelta) -> str:
    """How long, roughly."""
    minutes = lasts.total_seconds() / 60
    for unit, length in (("day", 1440.0), ("hour", 60.0)):
        if minutes >= 2 * length:
            return f"{minutes / length:.0f} {unit}s"
    return f"{minutes:.0f} min" if minutes >= 1 else f"{max(lasts.total_seconds(), 0):.0f} s"
