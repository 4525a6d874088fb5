"""When the certificates of a site run out, the list of revoked ones included: it is as fatal when that is old."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509

from fedmq_broker.site import Site
from fedmq_protocol.access import ROLES

DEVICES: Final = "devices"


def expiries(site: Site) -> dict[str, float]:
    """Name -> seconds since the epoch: authority, server, list of revoked, roles, and the first of all devices'.

    What is not there, or cannot be read, is left out. Members whose certificates are on the list of revoked ones do
    not count.
    """
    found = dict(_found(site))
    revoked = _revoked(site.mosquitto.crl)
    devices = [
        end
        for folder in _folders(site.members)
        if folder.name not in ROLES and (end := _end(folder / "cert.pem", revoked)) is not None
    ]
    if devices:
        found[DEVICES] = min(devices)
    return found


def _found(site: Site) -> Iterator[tuple[str, float]]:
    places = {"authority": site.authority.ca, "server": site.mosquitto.certificate}
    places |= {role: site.member(role).certificate for role in ROLES}
    for name, path in places.items():
        if (end := _end(path)) is not None:
            yield name, end
    try:
        crl = x509.load_pem_x509_crl(site.mosquitto.crl.read_bytes())
    except (OSError, ValueError):
        return
    if crl.next_update_utc is not None:
        yield "crl", crl.next_update_utc.timestamp()


def _end(path: Path, revoked: frozenset[int] = frozenset()) -> float | None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return None if certificate.serial_number in revoked else certificate.not_valid_after_utc.timestamp()


def _revoked(path: Path) -> frozenset[int]:
    try:
        return frozenset(each.serial_number for each in x509.load_pem_x509_crl(path.read_bytes()))
    except (OSError, ValueError):
        return frozenset()


def _folders(path: Path) -> list[Path]:
    try:
        return [each for each in path.iterdir() if each.is_dir()]
    except OSError:
        return []
