"""What the kernel keeps from the broker: connections and bytes of one address beyond what its devices need.

A connection that never says who it is belongs to nobody that the broker, or its guard, could cut off. Mosquitto bounds
how many there are, and so whoever takes them all keeps others from coming back. The kernel can tell addresses apart,
and drop a packet for less than Mosquitto needs for a TLS handshake.

Rendered for nftables(8), for the operator to read and to load: `fedmq broker firewall > fedmq.nft; nft -f fedmq.nft`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fedmq_protocol.errors import UsageError

_HANDSHAKES_PER_S: Final = 5
_BYTES_PER_S: Final = 4 * 2**20
_BURST_S: Final = 4
_SPARE: Final = 4
_ADDRESSES: Final = 65_536


@dataclass(frozen=True)
class AddressLimits:
    """What one address may do.

    Attributes:
        connections: at once.
        new_per_s: new ones in the long run.
        new_burst: and at once.
        bytes_per_s: in the long run; four times as many at once.
    """

    connections: int
    new_per_s: int
    new_burst: int
    bytes_per_s: int


def address_limits(devices: int) -> AddressLimits:
    """Enough for so many devices behind one address, who come back all at once, twice.

    Raises:
        UsageError: no number of devices.
    """
    if devices < 1:
        raise UsageError(f"{devices} devices behind an address are none")
    return AddressLimits(
        connections=2 * devices + _SPARE,
        new_per_s=max(_HANDSHAKES_PER_S, devices),
        new_burst=max(4 * _HANDSHAKES_PER_S, 2 * devices),
        bytes_per_s=max(_BYTES_PER_S, devices * _BYTES_PER_S // 16),
    )


def render(ports: Sequence[int], devices: int) -> str:
    """A table for nftables; loading it again replaces it.

    Args:
        ports: of the broker's listeners.
        devices: so many may stand behind one address, such as that of a router.

    Raises:
        UsageError: no ports, or no devices.
    """
    if not ports:
        raise UsageError("the broker has no ports to guard")
    limits = address_limits(devices)
    to_us = f"tcp dport {{ {', '.join(map(str, sorted(ports)))} }}"
    lines = [
        "# What the kernel keeps from the broker, by source address. Written by `fedmq broker firewall`.",
        f"# For up to {devices} device{'s' * (devices > 1)} behind one address: behind a router, count all of them.",
        "",
        "table inet fedmq_broker",
        "delete table inet fedmq_broker",
        "",
        "table inet fedmq_broker {",
    ]
    for family in ("ipv4", "ipv6"):
        for kind, keeps in (("held", ""), ("new", "; timeout 1m"), ("bytes", "; timeout 1m")):
            lines.append(
                f"    set {kind}_{family} {{ type {family}_addr; size {_ADDRESSES}; flags dynamic{keeps}; }}"
            )
    lines += ["", "    chain input {", "        type filter hook input priority filter; policy accept;", ""]
    rate, burst = limits.bytes_per_s // 1024, _BURST_S * limits.bytes_per_s // 1024
    for family, source in (("ipv4", "ip saddr"), ("ipv6", "ip6 saddr")):
        held = f"add @held_{family} {{ {source} ct count over {limits.connections} }}"
        new_limit = f"limit rate over {limits.new_per_s}/second burst {limits.new_burst} packets"
        bytes_limit = f"limit rate over {rate} kbytes/second burst {burst} kbytes"
        said = (
            f"{limits.new_per_s} a second, {limits.new_burst} at once. A TLS handshake costs the broker much."
        )
        lines += [
            f"        # New connections: {said}",
            f"        {to_us} ct state new add @new_{family} {{ {source} {new_limit} }} counter drop",
            f"        # Connections that stand: {limits.connections}.",
            f"        {to_us} ct state new {held} counter reject with tcp reset",
            f"        # Bytes: {rate} kB a second. TCP slows down where packets are lost.",
            f"        {to_us} add @bytes_{family} {{ {source} {bytes_limit} }} counter drop",
        ]
    return "\n".join([*lines, "    }", "}", ""])
