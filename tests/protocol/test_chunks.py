"""Chunks: any order, any duplicates, the same bytes; anything else is refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_protocol.chunks import NO_HASH, Assembly, blob_ref, chain_hash, chunk_count, split
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_CHUNKS
from fedmq_protocol.messages import BlobRef


@given(st.binary(max_size=500), st.integers(1, 60), st.randoms(use_true_random=False))
def test_any_order_and_duplicates_give_the_same_bytes(data: bytes, chunk_bytes: int, random: object) -> None:
    pieces = list(enumerate(split(data, chunk_bytes)))
    assembly = Assembly(blob_ref(data), chunk_bytes)
    shuffled = pieces + pieces[:3]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    new = [assembly.add(index, piece) for index, piece in shuffled]
    assert sum(new) == len(pieces)
    assert assembly.complete
    assert assembly.missing() == []
    assert assembly.result() == data


def test_the_have_list_is_lowest_bit_first() -> None:
    data = bytes(100)
    assembly = Assembly(blob_ref(data), 10)
    for index in (0, 3, 9):
        assembly.add(index, data[:10])
    assert assembly.have() == bytes([0b0000_1001, 0b0000_0010])
    assert assembly.missing() == [1, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("index", "size"), [(-1, 10), (10, 10), (0, 9), (0, 11), (9, 4)])
def test_a_chunk_that_cannot_be_is_refused(index: int, size: int) -> None:
    assembly = Assembly(blob_ref(bytes(95)), 10)
    with pytest.raises(RemoteError):
        assembly.add(index, bytes(size))


def test_the_last_chunk_is_as_short_as_it_must_be() -> None:
    assembly = Assembly(blob_ref(bytes(95)), 10)
    assert assembly.add(9, bytes(5))


def test_a_wrong_byte_is_noticed_and_all_is_asked_for_again() -> None:
    assembly = Assembly(blob_ref(b"hello world"), 6)
    assembly.add(0, b"hello ")
    assembly.add(1, b"wurld")
    with pytest.raises(RemoteError, match="hash"):
        assembly.result()
    assert assembly.missing() == [0, 1]


def test_more_chunks_than_allowed_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(RemoteError) as caught:
        Assembly(BlobRef(size=MAX_CHUNKS * 10 + 1, sha256=bytes(32)), 10)
    assert caught.value.reason == "too-large"
    assert chunk_count(MAX_CHUNKS * 10, 10) == MAX_CHUNKS


def test_an_empty_blob_is_one_empty_chunk() -> None:
    assert split(b"", 10) == [b""]


def test_the_chain_hash_is_what_the_document_says() -> None:
    content = hashlib.sha256(b"delta").digest()
    assert chain_hash(NO_HASH, content) == hashlib.sha256(bytes(32) + content).digest()
