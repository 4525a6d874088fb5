"""The state at one moment as bytes, so that a start need not fold the journal from its first fact.

A checkpoint is a cache of the fold and never the truth: whoever doubts one folds the journal instead, and gets the
same state bit for bit. It does not copy what can be found by the number of a fact: a run's settings and schema,
published bytes, weights at a snapshot. The arrays in it are those that lie between facts: full-precision weights after
some steps, and the accumulator.

    8 bytes     "fedmq-cp"
    u32         FORMAT
    u32         CRC-32 over the names of all that is kept
    u64         n, little-endian as all of these
    n bytes     msgpack of the plain values
    the rest    the arrays that these name

The names' checksum makes checkpoints of other classes than today's void by themselves. Raise `FORMAT` when the meaning
of what is kept changes, or when the same facts shall fold to something else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.kept import HISTORY, RUN, STATE, freeze_history, packed_history, restore_history
from fedmq_coordinator.core.plain import Arrays
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.state import FederationState
from fedmq_protocol.errors import RemoteError, StoreError

FORMAT: Final = 7

MAX_ARRAY_BYTES: Final = 16 * 1024 * 1024
"""Enough for any model that is worked on in the loop. A larger one's checkpoints wait for its next snapshot."""

_MAGIC: Final = b"fedmq-cp"
_HEAD: Final = struct.Struct("<8sIIQ")
_NORM_TOLERANCE: Final = 1e-6
_NAMES: Final = zlib.crc32(" ".join([*STATE.kept, "|", *RUN.kept, "|", *HISTORY.kept]).encode())

Fetch = Callable[[Collection[int]], Mapping[int, f.Fact]]
"""Facts by their numbers in the journal."""


@dataclass(frozen=True)
class Checkpoint:
    """A state that nothing changes any more.

    Attributes:
        number: of the newest fact that it holds.
        head: everything but the arrays.
        arrays: copies.
    """

    number: int
    head: bytes
    arrays: Arrays

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Its bytes, in their order."""
        yield self.head
        yield from self.arrays.pieces()


def dump(state: FederationState) -> Checkpoint | None:
    """The state as it stands, which must be a fold of facts alone: no version of a model may be under way.

    Returns:
        The checkpoint; None while its arrays would be larger than `MAX_ARRAY_BYTES`.
    """
    if sum(run.array_bytes for run in state.runs.values()) > MAX_ARRAY_BYTES:
        return None
    arrays = Arrays()
    plain = STATE.plain(state)
    plain["devices"] = [[device.id, device.public_key] for device in state.devices.values()]
    plain["runs"] = [
        [run.id, RUN.plain(run), packed_history(run), None if run.closed else run.plain_model(arrays)]
        for run in state.runs.values()
    ]
    plain["arrays"] = arrays.kinds
    body: bytes = msgpack.packb(plain)
    return Checkpoint(state.num_facts, _HEAD.pack(_MAGIC, FORMAT, _NAMES, len(body)) + body, arrays)


def load(blob: Blob, fetch: Fetch, later: Callable[[int], Iterable[f.Fact]]) -> FederationState:
    """The state that `dump` wrote, ready for `FederationState.fold` with the facts after it.

    Args:
        blob: what was written, undamaged.
        fetch: gives facts with their bulk; those that it is asked for make a run, or are of its newest chain.
        later: gives the facts after a number, payloads aside: their snapshots decide what is computed.

    Raises:
        StoreError: it is of another format, or refers to what is not in the journal (any more).
    """
    try:
        return _load(blob, fetch, later)
    except StoreError:
        raise
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        RemoteError,
        msgpack.UnpackException,
    ) as error:
        raise StoreError(f"it does not read back ({type(error).__name__}: {error})") from error


def _load(blob: Blob, fetch: Fetch, later: Callable[[int], Iterable[f.Fact]]) -> FederationState:
    head = blob.read(0, _HEAD.size)
    if len(head) < _HEAD.size:
        raise StoreError("it is cut short")
    magic, number, names, length = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise StoreError("it is no checkpoint")
    if number != FORMAT or names != _NAMES:
        raise StoreError(f"it is of another format ({number}, {names:08x}), written by another fedmq")
    plain: dict[str, Any] = msgpack.unpackb(blob.read(_HEAD.size, length), strict_map_key=False)
    arrays = Arrays(blob, _HEAD.size + length, [(kind, size) for kind, size in plain["arrays"]])
    state = FederationState()
    STATE.restore(state, plain)
    state.restore_devices(plain["devices"])
    steps = {name: kept["num_steps"] for name, kept, _, _ in plain["runs"]}
    skip = state.look_ahead(later(state.num_facts), steps)
    numbers = {
        number for _, kept, _, _ in plain["runs"] for number in (kept["numbers"][0], *kept["numbers"][1])
    }
    facts = fetch(numbers)
    for name, kept, history, model in plain["runs"]:
        run = _run(facts, name, kept, model, arrays, skip_steps=skip.get(name, 0))
        (freeze_history if model is None else restore_history)(run, history)
        state.runs[name] = run
    return state


def _run(
    facts: Mapping[int, f.Fact],
    name: str,
    kept: Mapping[str, Any],
    model: Mapping[str, Any] | None,
    arrays: Arrays,
    *,
    skip_steps: int,
) -> Run:
    created, chain, _ = kept["numbers"]
    first = facts[created]
    if not isinstance(first, f.RunCreated) or first.run != name:
        raise StoreError(f"fact number {created} did not make the run {name}")
    versions = [facts[number] for number in chain]
    published = [fact for fact in versions if isinstance(fact, f.VersionPublished) and fact.run == name]
    if len(published) != len(versions) or (published and published[0].snapshot is None):
        raise StoreError(f"facts that it refers to are no versions of {name}")
    run = Run(first, skip_steps=skip_steps)
    RUN.restore(run, kept)
    if model is not None:
        run.restore_model(model, arrays, published)
    return run


def differs(one: Checkpoint, other: Checkpoint) -> str | None:
    """The first place where two states are not the same, for people to read; None if they are.

    The lengths of weights may differ by rounding, since another processor adds them up in another order. They bound
    what is believed of a first update, and no model depends on them.
    """
    left, right = (_unpacked(each) for each in (one, other))
    found = _difference(left, right, "state")
    if found is None and [bytes(piece) for piece in one.arrays.pieces()] != [
        bytes(piece) for piece in other.arrays.pieces()
    ]:
        return "the bits of weights or of the accumulator"
    return found


def _unpacked(checkpoint: Checkpoint) -> dict[str, Any]:
    plain: dict[str, Any] = msgpack.unpackb(checkpoint.head[_HEAD.size :], strict_map_key=False)
    for run in plain["runs"]:
        run[2] = msgpack.unpackb(run[2], strict_map_key=False)
    return plain


def _difference(one: object, other: object, where: str) -> str | None:
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        places = ((one[key], other[key], f"{where}.{key}") for key in one)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        places = ((a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    elif where.endswith(".norm") and isinstance(one, float) and isinstance(other, float):
        return None if abs(one - other) <= _NORM_TOLERANCE * abs(one) else where
    else:
        return None if type(one) is type(other) and one == other else where
    return next((found for a, b, place in places if (found := _difference(a, b, place)) is not None), None)
