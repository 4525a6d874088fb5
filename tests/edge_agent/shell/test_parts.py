"""Chunks on disk: at their places in any order, believed after a restart only with their hash."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmq_edge_agent.core.state import Link, Part, PartHead
from fedmq_edge_agent.shell import parts
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.messages import BlobRef

DATA = random.Random(0).randbytes(10_500)
CHUNKS = [DATA[at : at + 1_000] for at in range(0, len(DATA), 1_000)]


def head_of(data: bytes, *, chunk_bytes: int = 1_000, version: int = 7) -> PartHead:
    link = Link(blob="snapshot", version=version, ref=blob_ref(data), chain_hash=bytes(32))
    return PartHead(link=link, count=-(-len(data) // chunk_bytes), chunk_bytes=chunk_bytes)


HEAD = head_of(DATA)
ALL = frozenset(range(11))


def write(folder: Path, *indices: int) -> None:
    for index in indices:
        parts.write_chunk(folder, HEAD, index, CHUNKS[index])


@given(order=st.permutations(range(11)), again=st.lists(st.integers(0, 10)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_any_order_and_any_repetition_give_the_file(
    tmp_path: Path, order: list[int], again: list[int]
) -> None:
    write(tmp_path, *order[:6], *again, *order[6:])
    assert parts.find(tmp_path) == [Part(HEAD, ALL)]
    assert parts.finish(tmp_path, "snapshot", 7, HEAD.link.ref) == (True, ())
    assert (tmp_path / "base-7.bin").read_bytes() == DATA


def test_a_restart_finds_the_chunks_that_are_whole(tmp_path: Path) -> None:
    write(tmp_path, 3, 0, 10, 4)
    part, have = tmp_path / "base-7.bin.part", tmp_path / "base-7.bin.part.have"
    with part.open("r+b") as file:
        file.seek(4_500)
        file.write(b"!")
    noted = have.read_bytes()
    have.write_bytes(noted[:-5])  # the last record, of chunk 4, is torn
    assert parts.find(tmp_path) == [Part(HEAD, frozenset({0, 3, 10}))]
    write(tmp_path, 4, 5)
    assert parts.find(tmp_path) == [Part(HEAD, frozenset({0, 3, 4, 5, 10}))]
    part.write_bytes(DATA[:3_500])  # what was written last never reached the disk
    assert parts.find(tmp_path) == [Part(HEAD, frozenset({0}))]


@pytest.mark.parametrize("place", range(0, 300, 7))
def test_a_list_that_is_damaged_anywhere_makes_nobody_believe_a_wrong_chunk(
    tmp_path: Path, place: int
) -> None:
    write(tmp_path, 0, 1, 2)
    have = tmp_path / "base-7.bin.part.have"
    noted = bytearray(have.read_bytes())
    noted[place % len(noted)] ^= 4
    have.write_bytes(noted)
    for part in parts.find(tmp_path):
        assert part.head == HEAD
        assert part.have <= {0, 1, 2}


def test_the_disk_and_the_sender_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, *range(11))
    with (tmp_path / "base-7.bin.part").open("r+b") as file:
        file.seek(2_000)
        file.write(bytes(1_001))
    assert parts.finish(tmp_path, "snapshot", 7, HEAD.link.ref) == (False, (2, 3))
    write(tmp_path, 2, 3)
    wrong = blob_ref(DATA[:-1] + b"?")
    assert parts.finish(tmp_path, "snapshot", 7, wrong.model_copy(update={"size": len(DATA)})) == (False, ())
    assert not list(tmp_path.iterdir())


def test_without_its_list_a_file_is_fetched_anew(tmp_path: Path) -> None:
    write(tmp_path, *range(10))
    (tmp_path / "base-7.bin.part.have").unlink()
    assert parts.find(tmp_path) == []
    assert parts.finish(tmp_path, "snapshot", 7, HEAD.link.ref) == (False, (0,))
    write(tmp_path, 0)
    assert parts.finish(tmp_path, "snapshot", 7, HEAD.link.ref) == (False, tuple(range(1, 11)))


def test_another_blob_of_the_same_name_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    other = head_of(DATA[::-1], chunk_bytes=2_000)
    parts.write_chunk(tmp_path, other, 5, DATA[::-1][10_000:])
    assert parts.find(tmp_path) == [Part(other, frozenset({5}))]


def test_a_file_put_in_place_and_never_noted_is_not_fetched_again(tmp_path: Path) -> None:
    write(tmp_path, *range(11))
    assert parts.finish(tmp_path, "snapshot", 7, HEAD.link.ref)[0]
    assert parts.find(tmp_path) == [Part(HEAD, ALL)]
    assert parts.finish(tmp_path, "snapshot", 7, HEAD.link.ref)[0]
    digest = hashlib.sha256((tmp_path / "base-7.bin").read_bytes()).digest()
    assert digest == HEAD.link.ref.sha256


def test_a_file_that_is_removed_while_it_is_checked_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *range(11))
    check = parts.matches

    def check_while_the_run_ends(path: Path, ref: BlobRef) -> bool:
        whole = check(path, ref)
        shutil.rmtree(tmp_path)
        return whole

    monkeypatch.setattr(parts, "matches", check_while_the_run_ends)
    assert parts.finish(tmp_path, "snapshot", 7, HEAD.link.ref) == (False, (0,))
