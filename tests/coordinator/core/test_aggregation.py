"""The accumulator against a plain dense sum: the same bits, whatever arrives in whatever order."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq_coordinator.core.aggregation import Accumulator
from fedmq_protocol.codecs import CodecSpec, DecodedUpdate, decode_update, encode_update
from fedmq_protocol.schema import TensorEntry, TensorSchema

Vector = NDArray[np.float32]


def model(parameters: int) -> TensorSchema:
    return TensorSchema(
        entries=(
            TensorEntry(name="w", shape=(parameters,), dtype="float32", role="parameter"),
            TensorEntry(name="embedding", shape=(7,), dtype="float32", role="frozen"),
            TensorEntry(name="mean", shape=(3,), dtype="float32", role="buffer"),
        )
    )


def update(schema: TensorSchema, rng: np.random.Generator, codec: str, density: float) -> DecodedUpdate:
    change = rng.normal(size=schema.size).astype(np.float32)
    return decode_update(encode_update(change, None, schema, CodecSpec(codec, density))[0], schema)


def plain_step(
    schema: TensorSchema, weights: Vector, folded: list[tuple[DecodedUpdate, float, float]], scale: float
) -> None:
    """What the accumulator stands for, in arrays of the model's size."""
    total = np.zeros(schema.size, dtype=np.float32)
    for each, weight, clip in folded:
        factor = np.float32(weight * clip)
        total[: schema.num_parameters] += factor * each.parameters.to_dense()
        total[-schema.num_buffers :] += factor * each.buffers
    weights += total * np.float32(scale)


kinds = st.sampled_from([("topk-log4", 0.003), ("topk-sign", 0.01), ("topk-int8", 0.2), ("int8", 1.0)])


@settings(max_examples=40, deadline=None)
@given(st.lists(kinds, min_size=1, max_size=8), st.integers(0, 2**32 - 1), st.floats(0.01, 3.0))
def test_a_step_gives_the_bits_of_a_dense_sum(
    arriving: list[tuple[str, float]], seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    schema = model(600_000 if len(arriving) < 3 else 5_000)  # the larger one takes several slices
    weights = rng.normal(size=schema.size).astype(np.float32)
    expected = weights.copy()
    accumulator = Accumulator(schema)
    folded = []
    for codec, density in arriving:
        each = update(schema, rng, codec, density), float(rng.uniform(0.1, 50)), float(rng.uniform(0.2, 1))
        accumulator.fold(each[0], weight=each[1], clip=each[2])
        folded.append(each)
    plain_step(schema, expected, folded, scale)
    accumulator.step(weights, scale)
    assert weights.tobytes() == expected.tobytes()
    assert accumulator.buffer.num_updates == 0
    assert not accumulator.total().any()


def test_the_sum_is_the_same_before_and_after_it_becomes_dense() -> None:
    rng = np.random.default_rng(5)
    schema = model(20_000)
    accumulator, expected = Accumulator(schema), np.zeros(schema.size, dtype=np.float32)
    was_sparse = []
    for _ in range(12):
        each = update(schema, rng, "topk-log4", 0.04)
        accumulator.fold(each, weight=3.0, clip=0.5)
        expected[: schema.num_parameters] += np.float32(1.5) * each.parameters.to_dense()
        expected[-schema.num_buffers :] += np.float32(1.5) * each.buffers
        was_sparse.append(accumulator.is_sparse)
        assert accumulator.total().tobytes() == expected.tobytes()
    assert was_sparse[0]
    assert not was_sparse[-1]


def test_ten_sparse_updates_take_less_than_half_of_a_dense_sum() -> None:
    schema = model(2_000_000)
    rng = np.random.default_rng(1)
    arriving = [update(schema, rng, "topk-log4", 0.01) for _ in range(10)]
    weights = np.zeros(schema.size, dtype=np.float32)
    tracemalloc.start()
    try:
        accumulator = Accumulator(schema)
        for each in arriving:
            accumulator.fold(each, weight=1.0, clip=1.0)
        accumulator.step(weights, 0.1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert accumulator.is_sparse
    assert peak < 2 * schema.size  # half of a dense sum; most of it is what a slice of the step takes


def test_a_step_of_many_slices_does_not_copy_the_indices_for_each() -> None:
    schema = model(40 * 2**18)
    accumulator = Accumulator(schema)
    accumulator.fold(update(schema, np.random.default_rng(1), "topk-log4", 0.05), weight=1.0, clip=1.0)
    assert accumulator.is_sparse
    weights = np.zeros(schema.size, dtype=np.float32)
    tracemalloc.start()
    accumulator.step(weights, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2**18, "two slices, and a little"
