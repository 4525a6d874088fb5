"""Who is in a cohort, and whose turn it is: the same answer on a device and at the coordinator, without a word."""

from __future__ import annotations

import hashlib

from fedmq_protocol.limits import RING
from fedmq_protocol.messages import Cohort, Turn

_FRACTION_BYTES = 8
_PLACE_BYTES = 4


def sample(seed: bytes, round_number: int, device: str) -> float:
    """A fraction in [0, 1): the first 8 bytes of SHA-256(seed || round || device), read as a big-endian fraction.

    `round_number` goes in as 8 big-endian bytes, `device` as UTF-8.
    """
    digest = hashlib.sha256(seed + round_number.to_bytes(8, "big") + device.encode()).digest()
    return int.from_bytes(digest[:_FRACTION_BYTES], "big") / 2.0 ** (8 * _FRACTION_BYTES)


def in_cohort(cohort: Cohort, round_number: int, device: str) -> bool:
    """Whether `device` takes part in `round_number`."""
    if cohort.devices is not None:
        return device in cohort.devices
    if cohort.rate is None or cohort.seed is None:
        return False
    return sample(cohort.seed, round_number, device) < cohort.rate


def place(device: str) -> int:
    """Where a device stands on the ring of turns: the first 4 bytes of SHA-256(device), big-endian."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:_PLACE_BYTES], "big")


def has_turn(turn: Turn, device: str) -> bool:
    """Whether `device` may send updates."""
    return (place(device) - turn.start) % RING < turn.span
