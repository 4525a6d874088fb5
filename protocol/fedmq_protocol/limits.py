"""Bounds on whatever comes from outside, checked before memory is taken for it.

A bound is part of the contract: an implementation may accept less and say so, never more.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1

MAX_PACKET_BYTES: Final = 131_072
"""Largest MQTT packet unless more is known to pass: AWS IoT's hard limit, and below every broker's default."""

PACKET_OVERHEAD_BYTES: Final = 2_048
"""Room left in a packet for the MQTT header, the topic, the envelope, its signature and a chunk's own fields."""

MAX_CHUNK_BYTES: Final = MAX_PACKET_BYTES - PACKET_OVERHEAD_BYTES
MAX_ENVELOPE_BYTES: Final = 16 * 1024 * 1024
"""Hard bound on an envelope even where a broker passes larger packets."""

MAX_INLINE_DELTA_BYTES: Final = 16_384
"""A version's delta up to this size rides inside the announcement; a larger one is pulled in chunks."""

MAX_CHUNKS: Final = 65_536
MAX_BLOB_BYTES: Final = MAX_CHUNKS * MAX_CHUNK_BYTES
MAX_PARAMETERS: Final = 2**31 - 1
MAX_TENSORS: Final = 16_384
MAX_TENSOR_DIMS: Final = 16
MAX_ID_CHARS: Final = 64
MAX_TEXT_CHARS: Final = 1_024
MAX_METRICS: Final = 64
MAX_COHORT_LIST: Final = 64
"""A longer cohort is announced as a sampling rule, or as leases device by device."""

RING: Final = 2**32
"""Places that devices have when they take turns."""

RECEIPT_DIGEST_BYTES: Final = 8
"""Of an update's SHA-256, in its receipt: by accident no two updates of one device are alike in so many."""

MAX_NESTING: Final = 16
MAX_COUNTER: Final = 2**53 - 1
"""Counters, epochs and versions stay exact in every language's numbers, JavaScript's included."""

MAX_CODE_MS: Final = 60_000
"""Nominal time for coding one update or delta."""

DEFAULT_CODE_MS: Final = 25
"""About 3,000 elements of a model of 300,000 parameters: 1 %."""

MAX_EXAMPLES: Final = 10**9
"""Examples that one device can claim to have trained on."""

MAX_STORED_UPLOADS: Final = 4
"""Chunked uploads of one device that the coordinator keeps open at once."""
