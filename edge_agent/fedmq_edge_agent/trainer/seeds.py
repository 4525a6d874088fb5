"""Where a training's chance comes from: what is durable, so that a training done twice is the same twice."""

from __future__ import annotations

import hashlib
from typing import Final

_SEED_BYTES: Final = 8


def derived_seed(seed: int, device: str, lease: int) -> int:
    """The seed of one training: 63 bits of SHA-256 over the run's seed, the device and the lease."""
    digest = hashlib.sha256(f"{seed}/{lease}/{device}".encode()).digest()
    return int.from_bytes(digest[:_SEED_BYTES], "big") >> 1
