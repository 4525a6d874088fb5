"""The way to the broker: its name, a route to it, and a port that answers."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import time

from fedmq_edge_agent.examining.course import in_thread
from fedmq_edge_agent.examining.device import Device
from fedmq_edge_agent.examining.findings import Finding, failed, fine, warning

CONNECT_S = 4.0
"""For one address; a broker of the same federation is not further away than that."""
RESOLVE_S = 4.0
_SLOW_S = 1.5


async def look_up(device: Device) -> Finding:
    """Does the broker's name have an address here?"""
    broker = device.settings.broker
    host = broker.host
    begun = time.monotonic()
    try:
        async with asyncio.timeout(RESOLVE_S):
            addresses = await in_thread(resolve, host, broker.port)
    except TimeoutError:
        return _nobody_answers(host)
    except (OSError, UnicodeError) as error:
        return _unknown(host, error)
    took_s = time.monotonic() - begun
    if _is_address(host):
        return fine(f"{host} is an address: no name to look up")
    listed = ", ".join(dict.fromkeys(addresses))
    if took_s > _SLOW_S:
        return warning(
            f"{host} is {listed}, which took {took_s:.1f} s to find out",
            "name a quicker or nearer DNS server in /etc/resolv.conf; one there may not answer",
        )
    return fine(f"{host} is {listed}")


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host.

    Raises:
        OSError: there are none, or nobody knows (`socket.gaierror`).
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unknown(host: str, error: OSError | UnicodeError) -> Finding:
    if isinstance(error, UnicodeError):
        return failed(f"{host[:80]!r} cannot be a host's name", "correct `url` in [broker]")
    if error.errno == socket.EAI_AGAIN:
        return _nobody_answers(host)
    return failed(
        f"nobody knows a host called {host}",
        "correct `url` in [broker]; or give the name an address in your DNS, or in /etc/hosts of this device",
    )


def _nobody_answers(host: str) -> Finding:
    return failed(
        f"no DNS server answers for {host}",
        "is the network up, and the server in /etc/resolv.conf right? Or use an address in the broker's url",
    )


async def knock(device: Device) -> Finding:
    """Does something answer on the broker's port?"""
    broker = device.settings.broker
    try:
        address, took_s = await in_thread(reach, broker.host, broker.port)
    except OSError as error:
        return _closed(device, error)
    return fine(f"{address} port {broker.port} answers in {1000 * took_s:.0f} ms")


def reach(host: str, port: int) -> tuple[str, float]:
    """Connect by TCP and hang up; the address that answered, and after how many seconds.

    Raises:
        OSError: none does; of the address tried last.
    """
    failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "nobody")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(CONNECT_S)
            begun = time.monotonic()
            try:
                sock.connect(address)
            except OSError as error:
                failure = error
                continue
            return str(address[0]), time.monotonic() - begun
    raise failure


def _closed(device: Device, error: OSError) -> Finding:
    broker = device.settings.broker
    where = broker.address
    if isinstance(error, ConnectionRefusedError):
        return failed(
            f"nothing listens at {where}",
            "is the broker started, and is this its port? On its machine: `fedmq broker status`",
        )
    if isinstance(error, TimeoutError):
        return failed(
            f"{where} does not answer within {CONNECT_S:g} s",
            "is the address right, is its machine on, and does a firewall between let this port through?",
        )
    if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}:
        return failed(
            f"there is no route to {where} ({(error.strerror or '').lower()})",
            "is this device in a network? See `ip addr` and `ip route`",
        )
    return failed(f"no connection to {where}: {error.strerror or error}", "look at this device's network")
