"""The shelf over a journal and a folder: what is lent does not change, and leaves nothing behind."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmq.model_host import _vector_file
from fedmq_coordinator.core.aggregation import Accumulator
from fedmq_coordinator.core.blobs import PIECE_BYTES, MemoryBlob
from fedmq_coordinator.core.facts import VersionPublished
from fedmq_coordinator.core.packing import pack_vector, unpack_vector
from fedmq_coordinator.core.publication import PublishedModel
from fedmq_coordinator.core.settings import CompressionSettings
from fedmq_coordinator.shell.shelf import StoreShelf
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_bulk import StoredBlob
from fedmq_protocol.codecs import CodecSpec, decode_update, encode_update
from fedmq_protocol.schema import TensorEntry, TensorSchema

LARGE = 2_000_003


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[StoreShelf]:
    journal = Journal.open(tmp_path, federation="home")
    yield StoreShelf(journal, tmp_path)
    journal.close()


def lent_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("lent-*"))


def test_a_large_vector_is_lent_in_a_file_that_goes_with_it(shelf: StoreShelf, tmp_path: Path) -> None:
    vector = np.random.default_rng(1).standard_normal(LARGE, dtype=np.float32)
    lent = shelf.lend(vector)
    expected = vector.tobytes()
    vector[:] = 0
    assert isinstance(lent, np.memmap)
    assert lent.tobytes() == expected
    with _vector_file(lent) as file:
        assert [file] == lent_files(tmp_path), "the model host reads it where it is"
        assert file.read_bytes() == expected
    del lent
    gc.collect()
    assert lent_files(tmp_path) == []


def test_a_small_vector_is_lent_in_memory(shelf: StoreShelf, tmp_path: Path) -> None:
    vector = np.arange(5, dtype=np.float32)
    lent = shelf.lend(vector)
    vector[:] = 0
    assert lent.tolist() == [0, 1, 2, 3, 4]
    assert lent_files(tmp_path) == []


def test_what_a_killed_coordinator_left_is_removed(shelf: StoreShelf, tmp_path: Path) -> None:
    (tmp_path / "lent-old.f32").write_bytes(b"1234")
    StoreShelf(shelf._journal, tmp_path)
    assert lent_files(tmp_path) == []


def test_scratch_leaves_no_file(shelf: StoreShelf, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with shelf.scratch() as file:
        file.write(b"abc")
        file.seek(1)
        assert file.read() == b"bc"
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("size", [1, 1_000, LARGE])
def test_vectors_are_packed_and_read_back_to_the_bit(shelf: StoreShelf, size: int) -> None:
    vector = np.random.default_rng(size).standard_normal(size, dtype=np.float32)
    vector[0] = np.float32(-0.0)
    blob = pack_vector(vector, shelf)
    assert isinstance(blob, StoredBlob if 4 * size > PIECE_BYTES else MemoryBlob)
    out = np.full(size, np.nan, dtype=np.float32)
    unpack_vector(blob, out)
    vector[0] = 0.0
    assert out.tobytes() == vector.tobytes()


def test_versions_and_a_start_take_less_than_three_models(tmp_path: Path) -> None:
    size = 6_000_000
    schema = TensorSchema(entries=(TensorEntry(name="w", shape=(size,), dtype="float32", role="parameter"),))
    settings = CompressionSettings(density=0.01, down_density=0.01)
    rng = np.random.default_rng(2)
    initial, change = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    spec = CodecSpec("topk-log4", 0.01)
    journal = Journal.open(tmp_path, federation="home")
    shelf = StoreShelf(journal, tmp_path)
    first = pack_vector(initial, shelf)
    payloads = [encode_update(np.roll(change, shift), None, schema, spec)[0] for shift in range(10)]
    del initial, change
    tracemalloc.start()
    try:
        model = PublishedModel(schema, settings, first)
        for version in range(3):
            model.apply(model.next_version(shelf, run="r", at=0.0), with_model=True)
            accumulator = Accumulator(schema)
            for payload in payloads:
                accumulator.fold(decode_update(payload, schema), weight=1.0, clip=1.0)
            model.step(accumulator, 0.1)
            if version == 2:
                model.snapshot = model.deltas[1]  # the chain is as long as this: the next one is a rebase
        rebase = model.next_version(shelf, run="r", at=0.0)
        _, making = tracemalloc.get_traced_memory()
        assert rebase.snapshot is not None
        journal.append([rebase])
        replica = model.replica.tobytes()
        del model, accumulator
        tracemalloc.reset_peak()
        (found,) = journal.read()
        assert isinstance(found, VersionPublished)
        again = PublishedModel(schema, settings, first)
        again.apply(found.model_copy(update={"version": 0}), with_model=True)
        _, starting = tracemalloc.get_traced_memory()
        assert again.replica.tobytes() == replica
    finally:
        tracemalloc.stop()
        journal.close()
    assert making < 3 * schema.size * 4
    assert starting < 3 * schema.size * 4 + len(replica)  # the last one to compare with
