"""The fuzzer's corpus, replayed: no error but our own, no second, no memory beyond what is stated."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable, Iterator

import msgpack
import pytest

from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import KINDS
from tests.fuzz.__main__ import CORPUS, SHARES
from tests.fuzz.mutator import mutate
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

PEAK_BYTES = 40 << 20
"""Above this no input may take memory. The longest vector here has 2^20 elements: 16 bytes for each are allowed to a
decoder, 8 more take the sums that the target makes of it."""
SECONDS = 1.0


def test_every_target_has_a_share_of_the_executions_and_a_corpus() -> None:
    assert SHARES.keys() == TARGETS.keys() == {folder.name for folder in CORPUS.iterdir()}
    assert sum(SHARES.values()) == 100


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_does_no_harm(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    run = TARGETS[name].run
    for file in inputs:
        data = file.read_bytes()
        assert min(seconds(run, data)) < SECONDS, file


def seconds(run: Callable[[bytes], None], data: bytes) -> Iterator[float]:
    """Of the processor; a long run is tried again, as who shares it makes some of them longer."""
    for _ in range(4):
        began = time.process_time()
        run(data)
        took = time.process_time() - began
        yield took
        if took < SECONDS:
            return


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_takes_no_more_memory_than_is_stated(name: str) -> None:
    """Of the long inputs one in ten: counting memory makes them thirty times slower."""
    inputs = sorted((CORPUS / name).iterdir())[:: 10 if name == "long_payload" else 1]
    run = TARGETS[name].run
    run(b"")
    tracemalloc.start()
    try:
        for file in inputs:
            data = file.read_bytes()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            run(data)
            assert tracemalloc.get_traced_memory()[1] - before < PEAK_BYTES, file
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_neither_do_a_few_thousand_mutations_of_the_seeds(name: str) -> None:
    """What the fuzzer does millions of times, without guidance: whoever breaks a decoder learns it here."""
    chance = random.Random(name)
    target = TARGETS[name]
    change = mutate(target.value_at or 0, _flipped(chance))
    inputs = seeds()[name]
    for seed in range(1_500):
        target.run(change(chance.choice(inputs), target.max_bytes, seed))


def _flipped(chance: random.Random) -> Callable[[bytes, int], bytes]:
    def apply(data: bytes, max_size: int) -> bytes:
        changed = bytearray(data[:max_size])
        for _ in range(chance.randrange(1, 4)):
            if changed:
                changed[chance.randrange(len(changed))] = chance.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
                )
        return bytes(changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.1 else changed)

    return apply


def test_the_mutations_reach_bodies_that_are_almost_right() -> None:
    """Otherwise they would prove little: many of them are accepted, and many refused."""
    chance = random.Random(1)
    change = mutate(1, lambda data, _size: data)
    good = seeds()["body"][: len(KINDS)]
    accepted = refused = 0
    for seed in range(2_000):
        data = change(chance.choice(good), 2_048, seed)
        kind = list(KINDS)[data[0] % len(KINDS)]
        content = b"\x97" + b"".join(map(msgpack.packb, [1, kind, "dev-1", 3, 1, bytes(8)])) + data[1:]
        try:
            open_envelope("t", msgpack.packb([content, bytes(64)]))
            accepted += 1
        except RemoteError:
            refused += 1
    assert min(accepted, refused) > 200
