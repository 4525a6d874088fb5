"""What a site's files tell of its members: when their certificates run out, and who may not come in any more.

The list of revoked certificates runs out, too, and it is as fatal when that is old.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509

from fedmq_broker.authority_register import Member, read_register
from fedmq_broker.site import Site
from fedmq_protocol.access import ROLES
from fedmq_protocol.errors import FedmqError

DEVICES: Final = "devices"


def expiries(site: Site) -> dict[str, float]:
    """Name -> seconds since the epoch: authority, server, list of revoked, roles, and the first of all devices'.

    What is not there, or cannot be read, is left out.
    """
    found = dict(_found(site))
    ends = [
        member.current.not_after.timestamp()
        for member in _members(site)
        if member.role == "device" and member.active and member.current is not None
    ]
    if ends:
        found[DEVICES] = min(ends)
    return found


def revoked(site: Site) -> frozenset[str]:
    """Devices that were members once and may not come in any more."""
    return frozenset(member.name for member in _members(site) if not member.active)


def _members(site: Site) -> list[Member]:
    try:
        return list(read_register(site.authority.register).members.values())
    except FedmqError:
        return []


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


def _end(path: Path) -> float | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return None
