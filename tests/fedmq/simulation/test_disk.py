"""The disk in memory and the real one, told the same, begin the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fedmq.simulation.disk import VirtualDisk
from fedmq_edge_agent.core.state import (
    AgentState,
    Link,
    ModelIndex,
    PartHead,
    RunState,
    blob_file,
    have_file,
    part_file,
)
from fedmq_edge_agent.shell.disk import Disk
from fedmq_edge_agent.shell.writing import DiskError
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.topics import BlobKind

CHUNK = 1_024
DATA = {version: bytes([version]) * (CHUNK * 2 + version) for version in range(1, 5)}


def link(blob: BlobKind, version: int) -> Link:
    return Link(blob=blob, version=version, ref=blob_ref(DATA[version]), chain_hash=bytes(32))


def head(blob: BlobKind, version: int) -> PartHead:
    return PartHead(link=link(blob, version), count=3, chunk_bytes=CHUNK)


class Twins:
    """Both, and the same done to either."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.real, self.virtual = Disk(folder), VirtualDisk()

    def state(self, runs: dict[str, RunState]) -> None:
        state = AgentState(runs=runs)
        self.real.save_state(state)
        self.virtual.save_state(state)

    def index(self, run: str, links: tuple[Link, ...]) -> None:
        self.real.save_index(run, ModelIndex(links=links))
        self.virtual.save_index(run, ModelIndex(links=links))

    def store(self, run: str, blob: BlobKind, version: int) -> None:
        self.real.store_blob(run, blob, version, DATA[version])
        self.virtual.write(run, blob_file(blob, version), DATA[version], durable=False)

    def chunk(self, run: str, blob: BlobKind, version: int, index: int) -> None:
        data = DATA[version][index * CHUNK : (index + 1) * CHUNK]
        self.real.write_chunk(run, head(blob, version), index, data)
        self.virtual.write_chunk(run, head(blob, version), index, data)

    def finish(self, run: str, blob: BlobKind, version: int) -> None:
        real = self.real.finish_blob(run, blob, version, blob_ref(DATA[version]))
        assert self.virtual.finish_blob(run, blob, version, blob_ref(DATA[version])) == real

    def remove(self, run: str, names: tuple[str, ...]) -> None:
        self.real.remove(run, names)
        self.virtual.remove(run, names)

    def remove_run(self, run: str) -> None:
        self.real.remove_run(run)
        self.virtual.remove_run(run)

    def start_again(self) -> None:
        self.real.close()
        self.real = Disk(self.folder)
        state = self.real.load_state()
        indexes, parts = self.real.load_models(state)
        virtual_state, virtual_indexes, virtual_parts = self.virtual.load()
        assert virtual_state == state
        assert {run: index for run, index in virtual_indexes.items() if index.links} == {
            run: index for run, index in indexes.items() if index.links
        }
        assert virtual_parts == {run: found for run, found in parts.items() if found}
        files = {
            (path.parent.name, path.name): path.read_bytes()
            for path in (self.folder / "runs").glob("*/*")
            if path.name != "model.idx" and ".part" not in path.name
        }
        assert self.virtual.files == files


@pytest.mark.parametrize("seed", range(40))
def test_whatever_was_done_both_begin_with_the_same(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    twins = Twins(tmp_path / "state")
    twins.state({"r1": RunState(), "r2": RunState()})
    for _ in range(60):
        run, version = chance.choice(["r1", "r2"]), chance.randint(1, 4)
        blob: BlobKind = chance.choice(["snapshot", "delta"])
        name = blob_file(blob, version)
        match chance.randrange(12):
            case 0:
                kept = {run: RunState(residual_file=chance.choice([None, "base-2.bin"]))}
                twins.state({"r2" if run == "r1" else "r1": RunState(), **kept})
            case 1 | 2:
                first, count = chance.randint(1, 3), chance.randint(0, 2)
                links = (
                    link("snapshot", first),
                    *(link("delta", first + n + 1) for n in range(min(count, 4 - first))),
                )
                twins.index(run, links)
            case 3:
                twins.store(run, blob, version)
            case 4 | 5 | 6 | 7:
                twins.chunk(run, blob, version, chance.randrange(3))
            case 8:
                for index in range(3):
                    twins.chunk(run, blob, version, index)
                twins.finish(run, blob, version)
            case 9:
                names = (name, part_file(blob, version), have_file(blob, version))
                twins.remove(run, names if chance.random() < 0.5 else names[2:])
            case 10:
                if chance.random() < 0.3:
                    twins.remove_run(run)
                    twins.state({"r1": RunState(), "r2": RunState()})
            case _:
                twins.start_again()
    twins.start_again()
    twins.real.close()


def test_a_full_disk_takes_nothing_and_says_so() -> None:
    disk = VirtualDisk(full=True)
    with pytest.raises(DiskError):
        disk.save_state(AgentState())
    with pytest.raises(DiskError):
        disk.write("r1", "update-1.bin", b"x", durable=True)
    assert not disk.files
    assert disk.refused == 2


def test_what_was_fetched_is_put_in_place_on_a_full_disk_too() -> None:
    disk = VirtualDisk()
    for index in range(3):
        disk.write_chunk("r1", head("delta", 1), index, DATA[1][index * CHUNK : (index + 1) * CHUNK])
    disk.full = True
    assert disk.finish_blob("r1", "delta", 1, blob_ref(DATA[1])) == (True, ())
    assert disk.files["r1", "delta-1.bin"] == DATA[1]


def test_a_power_cut_takes_or_tears_what_was_not_flushed_and_nothing_else() -> None:
    disk = VirtualDisk()
    disk.write("r1", "update-1.bin", b"payload", durable=True)
    for version in (1, 2, 3):
        disk.write("r1", f"delta-{version}.bin", bytes([version]) * 8, durable=False)
    fates = iter([0, 1, 2])
    disk.power_cut(lambda _: next(fates))
    assert disk.files == {
        ("r1", "update-1.bin"): b"payload",
        ("r1", "delta-1.bin"): b"\1" * 8,
        ("r1", "delta-3.bin"): b"\3" * 4 + bytes(4),
    }
    disk.power_cut(lambda _: 1)
    assert len(disk.files) == 3  # what survived one cut is on the disk
