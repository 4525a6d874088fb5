"""A model that comes in chunks: any order, repetitions, lost connections, restarts, damage; and no chunk twice."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq_edge_agent.core.download import DOUBT_S, WINDOW, WINDOW_BYTES, Pull
from fedmq_edge_agent.core.effects import (
    Effect,
    FinishBlob,
    RemoveFiles,
    Send,
    StoreBlob,
    Subscribe,
    Unsubscribe,
    WriteBlobPart,
)
from fedmq_edge_agent.core.replica import Replica
from fedmq_edge_agent.core.state import Link, ModelIndex, Part, PartHead, have_file, part_file
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import Get, ModelChunk
from tests.edge_agent.scripted import ScriptedCoordinator

SIZE = 11_500
COUNT = 12


def coordinator_of(size: int = SIZE, chunk_bytes: int = 1_000) -> ScriptedCoordinator:
    coordinator = ScriptedCoordinator(chunk_bytes=chunk_bytes)
    coordinator.begin("r1", snapshot_bytes=size)
    return coordinator


class Fetching:
    """A pull with a disk and a broker that answers when it is told to."""

    def __init__(self, coordinator: ScriptedCoordinator) -> None:
        self.coordinator = coordinator
        self.head: PartHead | None = None
        self.disk: dict[int, bytes] = {}
        self.asked: list[int] = []
        self.gets: list[int] = []
        self.written: Counter[int] = Counter()
        self.finish: FinishBlob | None = None
        self.whole: bytes | None = None
        self.now = 0.0
        self.received = 0
        self.restart()

    def restart(self) -> None:
        parts = (
            [Part(self.head, frozenset(self.disk))] if self.head is not None and self.whole is None else []
        )
        self.pull = Pull(
            Replica("r1", ModelIndex()),
            topics=self.coordinator.topics,
            device="dev-1",
            chance=lambda: 0.5,
            parts=parts,
        )
        self.asked.clear()
        self.gets.clear()
        self.finish = None
        self.pull.connected()
        if self.whole is None:
            self.do(self.pull.aim(self.coordinator.manifest, now=self.now))
            self.poll()

    def poll(self) -> None:
        self.do(self.pull.poll(now=self.now, received=self.received))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Subscribe(topics):
                    self.asked += [int(topic.rsplit("/s", 1)[1]) for topic in topics]
                    assert len(self.asked) <= WINDOW
                case Unsubscribe(topics):
                    for topic in topics:
                        self.asked.remove(int(topic.rsplit("/s", 1)[1]))
                case Send(body=Get(index=index)):
                    self.gets.append(index)
                case WriteBlobPart(_, head, index, data):
                    if head != self.head:
                        self.head, self.disk = head, {}
                    self.disk[index] = data
                    self.written[index] += 1
                case FinishBlob():
                    self.finish = effect
                case StoreBlob(data=data):
                    self.whole = data
                case RemoveFiles(_, names):
                    assert set(names) == {part_file("snapshot", 0), have_file("snapshot", 0)}
                    self.head, self.disk = None, {}
                case _:
                    raise AssertionError(effect)

    def hear(self, chunk: ModelChunk, *, retained: bool = True) -> None:
        effects, link = self.pull.received(chunk, retained=retained)
        self.do(effects)
        if link is not None:
            assert self.whole is not None
        self.poll()

    def check(self, damaged: tuple[int, ...] = ()) -> None:
        """The shell looks at the whole file."""
        assert self.finish is not None
        self.finish = None
        if damaged:
            for index in damaged:
                del self.disk[index]
            assert self.pull.finished("snapshot", 0, ok=False, damaged=damaged) is None
        else:
            data = b"".join(self.disk[index] for index in range(len(self.disk)))
            assert blob_ref(data) == self.coordinator.manifest.snapshot
            self.whole = data
            assert self.pull.finished("snapshot", 0, ok=True) is not None
        self.poll()

    def settle(self) -> None:
        chunks = self.coordinator.chunks("snapshot", 0)
        for _ in range(200):
            if self.whole is not None:
                break
            if self.finish is not None:
                self.check()
            elif self.gets:
                self.hear(chunks[self.gets.pop(0)], retained=False)
            elif self.asked:
                self.hear(chunks[self.asked[0]])
            else:
                self.poll()
        assert self.whole == self.coordinator.versions[0].snapshot


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_happens_on_the_way_the_model_arrives_whole(data: st.DataObject) -> None:
    fetching = Fetching(coordinator_of())
    chunks = fetching.coordinator.chunks("snapshot", 0)
    for _ in range(data.draw(st.integers(0, 30))):
        if fetching.whole is not None:
            break
        match data.draw(
            st.sampled_from(["answer", "answer", "answer", "repeat", "cut", "kill", "wait", "lie"])
        ):
            case "answer" if fetching.asked:
                fetching.hear(chunks[data.draw(st.sampled_from(fetching.asked))])
            case "repeat":
                index = data.draw(st.integers(0, COUNT - 1))
                if fetching.pull.busy and fetching.head is not None:
                    fetching.hear(chunks[index], retained=False)
            case "cut":
                fetching.do(fetching.pull.disconnected())
                assert not fetching.asked
                fetching.pull.connected()
                fetching.poll()
            case "kill":
                for index in sorted(fetching.disk):
                    if data.draw(st.booleans()):
                        del fetching.disk[index]
                fetching.restart()
            case "wait" if (deadline := fetching.pull.next_deadline()) is not None:
                fetching.now = max(fetching.now, deadline)
                fetching.poll()
            case "lie" if fetching.asked:
                index = fetching.asked[0]
                lie = chunks[index].model_copy(update={"ref": blob_ref(chunks[index].data)})
                with pytest.raises(RemoteError):
                    fetching.hear(lie)
                fetching.poll()
            case _:
                pass
        if fetching.finish is not None:
            kept_badly = data.draw(st.sets(st.integers(0, COUNT - 1), max_size=2))
            fetching.check(tuple(sorted(kept_badly)))
    fetching.settle()


@given(order=st.permutations(range(COUNT)), restarts=st.sets(st.integers(0, COUNT - 1)))
def test_after_restarts_only_what_lacks_is_asked_for(order: list[int], restarts: set[int]) -> None:
    fetching = Fetching(coordinator_of())
    chunks = fetching.coordinator.chunks("snapshot", 0)
    for step in range(COUNT):
        fetching.hear(chunks[min(fetching.asked, key=order.index)])
        if step in restarts:
            fetching.restart()
    assert fetching.written == Counter(range(COUNT))
    fetching.settle()


def test_all_chunks_were_there_when_the_agent_was_killed() -> None:
    fetching = Fetching(coordinator_of())
    for chunk in fetching.coordinator.chunks("snapshot", 0):
        fetching.hear(chunk)
    fetching.restart()
    assert fetching.finish is not None
    assert not fetching.asked
    fetching.settle()


def test_chunks_that_the_disk_did_not_keep_are_fetched_again_and_no_others() -> None:
    fetching = Fetching(coordinator_of())
    for chunk in fetching.coordinator.chunks("snapshot", 0):
        fetching.hear(chunk)
    fetching.check((3, 8))
    assert fetching.asked == [3, 8]
    fetching.settle()
    assert fetching.written == Counter([*range(COUNT), 3, 8])


def test_what_is_on_disk_of_another_snapshot_is_of_no_use() -> None:
    fetching = Fetching(coordinator_of())
    chunks = fetching.coordinator.chunks("snapshot", 0)
    fetching.hear(chunks[0])
    fetching.hear(chunks[1])
    other = ScriptedCoordinator(seed=5)
    other.begin("r1", snapshot_bytes=SIZE)
    fetching.coordinator.versions = other.versions
    fetching.restart()
    assert not fetching.disk
    assert fetching.asked == [0]
    fetching.settle()


def test_a_blob_that_was_cut_anew_meanwhile_is_begun_anew() -> None:
    fetching = Fetching(coordinator_of())
    for chunk in fetching.coordinator.chunks("snapshot", 0)[:5]:
        fetching.hear(chunk)
    fetching.coordinator.chunk_bytes = 700
    fetching.restart()
    assert fetching.asked == [5, 6, 7, 8]
    fetching.hear(fetching.coordinator.chunks("snapshot", 0)[5])
    assert fetching.asked == [0]
    fetching.settle()


def test_within_one_start_a_blob_is_not_cut_anew() -> None:
    fetching = Fetching(coordinator_of())
    fetching.hear(fetching.coordinator.chunks("snapshot", 0)[0])
    fetching.coordinator.chunk_bytes = 700
    with pytest.raises(RemoteError, match="contradicts"):
        fetching.hear(fetching.coordinator.chunks("snapshot", 0)[1])


def test_a_chunk_that_is_not_the_coordinators_is_asked_of_the_coordinator_at_once() -> None:
    fetching = Fetching(coordinator_of())
    fetching.hear(fetching.coordinator.chunks("snapshot", 0)[0])
    assert fetching.asked == [1, 2, 3, 4]
    assert not fetching.gets
    fetching.pull.damaged(fetching.coordinator.topics.chunk("r1", 0, "snapshot", 3))
    fetching.poll()
    assert fetching.gets == [3]
    fetching.pull.damaged(fetching.coordinator.topics.chunk("r1", 0, "snapshot", 3))
    fetching.poll()
    assert fetching.gets == [3]


@pytest.mark.parametrize(("chunk_bytes", "window"), [(1_000, 4), (WINDOW_BYTES // 2, 2), (WINDOW_BYTES, 1)])
def test_the_larger_the_chunks_the_fewer_are_under_way(chunk_bytes: int, window: int) -> None:
    fetching = Fetching(coordinator_of(size=6 * chunk_bytes, chunk_bytes=chunk_bytes))
    fetching.hear(fetching.coordinator.chunks("snapshot", 0)[0])
    assert fetching.asked == list(range(1, 1 + window))
    fetching.settle()


def test_what_is_on_disk_of_a_delta_that_was_published_anew_is_of_no_use() -> None:
    """The manifest does not tell the hashes of deltas in the middle of the chain."""
    old, new = coordinator_of(), ScriptedCoordinator(chunk_bytes=1_000)
    new.begin("r1", snapshot_bytes=SIZE)
    for coordinator, seed in ((old, 100), (new, 0)):
        for delta_bytes in (3_000 + seed, 3_000, 300):
            coordinator.publish(delta_bytes=delta_bytes)
    chunk = old.chunks("delta", 1)[0]
    link = Link(blob="delta", version=1, ref=chunk.ref, chain_hash=chunk.chain_hash)
    part = Part(PartHead(link=link, count=chunk.count, chunk_bytes=1_000), frozenset({0, 1}))
    pull = Pull(
        Replica("r1", ModelIndex()), topics=new.topics, device="dev-1", chance=lambda: 0.5, parts=[part]
    )
    pull.connected()
    pull.aim(new.manifest, now=0.0)
    chunks = new.chunks("delta", 1)
    assert pull.received(chunks[2], retained=True)[1] is None
    for again in chunks:
        effects, _ = pull.received(again, retained=True)
    assert FinishBlob("r1", "delta", 1, chunks[0].ref) in effects


PACKET_BYTES = 12_000  # of a chunk, with its envelope
SLOW = {"size": 115_000, "chunk_bytes": 10_000}


def over_a_slow_link(
    fetching: Fetching, *, bytes_a_s: float, lost: frozenset[int] = frozenset()
) -> list[int]:
    """Let a broker answer in order, and bytes come evenly; the chunks that the coordinator was asked for."""
    chunks = fetching.coordinator.chunks("snapshot", 0)
    gets: list[int] = []
    while fetching.whole is None and fetching.finish is None:
        coming = next((index for index in fetching.asked if index not in lost), None)
        begun = fetching.now
        comes_at = inf if coming is None else begun + PACKET_BYTES / bytes_a_s
        whole = fetching.received + PACKET_BYTES
        while fetching.now < comes_at:
            due = fetching.pull.next_deadline()
            assert due is not None
            if due >= comes_at:
                break
            if coming is not None:
                fetching.received += round((due - fetching.now) * bytes_a_s)
            fetching.now = due
            fetching.poll()
            if fetching.gets:
                break
        if fetching.gets:
            gets.append(fetching.gets.pop(0))
            fetching.hear(chunks[gets[-1]], retained=False)
        elif coming is not None:
            fetching.now, fetching.received = comes_at, whole
            fetching.hear(chunks[coming])
    return gets


def test_on_a_slow_link_nothing_is_asked_for_twice() -> None:
    """A chunk takes eight seconds, and the first time-out is over after two."""
    assert over_a_slow_link(Fetching(coordinator_of(**SLOW)), bytes_a_s=1_500) == []


def test_what_a_slow_link_does_not_bring_is_asked_of_the_coordinator() -> None:
    fetching = Fetching(coordinator_of(**SLOW))
    gets = over_a_slow_link(fetching, bytes_a_s=1_500, lost=frozenset({3, 7}))
    assert {3, 7} <= set(gets)
    assert len(gets) <= 3  # one that was late for once


def test_before_any_chunk_has_come_the_coordinator_is_asked_however_much_else_comes() -> None:
    fetching = Fetching(coordinator_of())
    while not fetching.gets:
        due = fetching.pull.next_deadline()
        assert due is not None
        fetching.now, fetching.received = due, fetching.received + 3_000
        fetching.poll()
    assert DOUBT_S <= fetching.now < DOUBT_S + 5
