"""A device's whole life, and a power cut at each of its moments, with all that a file system may make of it.

From each state that is left the agent starts; what was committed is there, whole; nobody has heard of anything that is
not; and the device is who it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.core.effects import SendUpdate, SendUploadChunk
from fedmq_edge_agent.core.events import AgentStarted
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.core.state import AgentState, part_file
from fedmq_edge_agent.shell import disk as disk_module
from fedmq_edge_agent.shell.disk import Disk
from fedmq_edge_agent.shell.post import Outgoing, Post
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.host import Host
from fedmq_edge_agent.trainer.residual import Owner, StoredResidual
from fedmq_protocol.errors import RemoteError
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import EVERYBODY
from tests.edge_agent.shell.conftest import RunningAgent, StartAgent
from tests.edge_agent.shell.fake_child import FakeChild
from tests.edge_agent.shell.on_air import OnAir
from tests.edge_agent.shell.power_cut import Moment, Recorder, Tree, lay_out, left_behind
from tests.edge_agent.shell.real_agent import ModelCoordinator, on_air_with

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow, pytest.mark.timeout(900)]

CHUNK_BYTES = 100  # the snapshot comes in several
STATE_DIR = "lib/fedmq"
STARTS = 8
LEAST_STATES = 2_500
FIRST_LEASE = 50


class HostChild(FakeChild):
    """The real trainer, in a thread of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._host = Host()

    async def call(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        reply = await asyncio.to_thread(self._host.handle, {"id": 1, "op": op, **arguments})
        if not reply.pop("ok"):
            raise TrainerError(str(reply["code"]), str(reply["detail"]))
        return reply


def listen(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recorder know what the device said, used, and believes to be durable."""
    save, pin, put, began = Disk.save_state, Disk.pin, Post.put, Post.begin_session

    def save_state(self: Disk, state: AgentState) -> None:
        recorder.note("commits", state)
        save(self, state)
        recorder.note("committed", state)

    def pinned(self: Disk, public_key: bytes) -> None:
        pin(self, public_key)
        recorder.note("pinned", public_key)

    def say(self: Post, outgoing: Outgoing) -> None:
        if isinstance(outgoing, SendUpdate):
            recorder.note("sent", (outgoing.header.run, outgoing.header.counter, outgoing.header.payload))
        elif isinstance(outgoing, SendUploadChunk):
            recorder.note("sent", (outgoing.run, outgoing.counter, outgoing.payload))
        put(self, outgoing)

    def begin_session(self: Post, session: int) -> None:
        recorder.note("session", (session, self._key.public_key))
        began(self, session)

    monkeypatch.setattr(Disk, "save_state", save_state)
    monkeypatch.setattr(Disk, "pin", pinned)
    monkeypatch.setattr(Post, "put", say)
    monkeypatch.setattr(Post, "begin_session", begin_session)


async def live(on_air: OnAir, coordinator: ModelCoordinator, recorder: Recorder, agent: RunningAgent) -> None:
    """Start, pin, fetch, train, a receipt of each kind, deltas, a rebase, a new run, and a goodbye."""

    async def settle(residual: str) -> None:
        update = await on_air.receive("dev-1")
        header = update.header
        coordinator.count("dev-1", header.run, header.counter, update.data)
        recorder.note("settled", (header.run, header.counter))
        await on_air.say(coordinator.receipt("dev-1", header.counter, run=header.run, residual=residual))

    await on_air.announce(lease=1, cohort=EVERYBODY)
    await settle("keep")
    coordinator.advance()
    await on_air.announce(lease=2, cohort=EVERYBODY)
    await settle("restore")
    coordinator.advance(rebase=True)
    await on_air.announce(lease=3, cohort=EVERYBODY)
    await settle("discard")
    coordinator.advance()
    coordinator.advance()
    await on_air.announce(lease=4, inline=False, cohort=EVERYBODY)
    await settle("restore")
    coordinator.run = "r2"
    coordinator.begin_model()
    await on_air.announce(lease=1, cohort=EVERYBODY)
    await settle("keep")
    await agent.stop()


class Audit:
    """What must hold of whatever is left.

    Args:
        recorder: of the life.
        coordinator: of its models.
    """

    def __init__(self, recorder: Recorder, coordinator: ModelCoordinator) -> None:
        self.notes = recorder.notes
        self._schema, self._blobs = coordinator.schema, coordinator.published
        self.found: Counter[str] = Counter()

    def check(self, folder: Path, moment: Moment) -> AgentState:
        notes = self.notes[: moment.notes]
        disk = Disk(folder)
        try:
            state = disk.load_state()
            key = disk.key(state)
            self._is_the_one_committed(state, notes)
            self._is_who_it_was(key.public_key, disk.pinned_key(), notes)
            self._is_whole(disk, state)
            self._has_all_that_was_sent(state, notes)
            indexes, parts_left = disk.load_models(state)
            agent = Agent(
                AgentLimits(federation="home", device="dev-1"),
                public_key=key.public_key,
                coordinator_key=disk.pinned_key(),
                state=state,
                indexes=indexes,
                parts=parts_left,
                chance=lambda: 0.5,
            )
            assert agent.handle(AgentStarted(), now=0.0)
            assert agent.waiting(now=0.0)
            assert agent.next_session() > max([used for used, _ in of(notes, "session")], default=0)
            self._believes_no_wrong_model(disk, agent)
        finally:
            disk.close()
        return state

    def _is_the_one_committed(self, state: AgentState, notes: list[tuple[str, Any]]) -> None:
        durable, under_way = AgentState(), None
        for kind, what in notes:
            if kind == "commits":
                under_way = what
            elif kind == "committed":
                durable, under_way = what, None
        assert state in (durable, under_way), "a state that was never committed, or an older one"
        self.found["the commit under way" if state == under_way else "the last commit"] += 1

    def _is_who_it_was(self, public_key: bytes, pinned: bytes | None, notes: list[tuple[str, Any]]) -> None:
        known = {key for _, key in of(notes, "session")}
        assert not known or known == {public_key}, "another identity than was seen"
        believed = of(notes, "pinned")
        assert not believed or pinned == believed[-1]

    def _is_whole(self, disk: Disk, state: AgentState) -> None:
        for name, run in state.runs.items():
            for pending in run.pending:
                assert disk.holds(name, pending.file, pending.header.payload), "an update that is no more"
                self.found["an update in the outbox"] += 1
            if run.residual_file is not None:
                owner = Owner(self._schema.hash, name, "dev-1")
                StoredResidual(Path(disk.file(name, run.residual_file)), self._schema.num_parameters, owner)
                self.found["a residual"] += 1

    def _has_all_that_was_sent(self, state: AgentState, notes: list[tuple[str, Any]]) -> None:
        settled = set(of(notes, "settled"))
        for name, counter, payload in of(notes, "sent"):
            run = state.runs.get(name)
            if run is None:
                assert (name, counter) in settled
                continue
            kept = [one.header for one in run.pending if one.header.counter == counter]
            assert counter <= run.counter, "its number would be used again"
            assert [header.payload for header in kept] == [payload] or (name, counter) in settled

    def _believes_no_wrong_model(self, disk: Disk, agent: Agent) -> None:
        for run, index in agent.desk._indexes.items():
            for link in index.links:
                data = disk.read(run, link.file)
                right = data is not None and hashlib.sha256(data).digest() == link.ref.sha256
                try:
                    disk.check(run, link.file, link.ref)
                except RemoteError:
                    assert not right
                    self.found["a model file to be fetched again"] += 1
                else:
                    assert right
        for run, found in agent.desk._parts.items():
            for part in found:
                whole, head = self._blobs[part.head.link.ref.sha256], part.head
                name = part_file(head.link.blob, head.link.version)
                for place in part.have:
                    at, size = place * head.chunk_bytes, head.size(place)
                    assert disk.read(run, name, at, size) == whole[at : at + size]
                self.found["a model file on its way"] += 1


def of(notes: list[tuple[str, Any]], kind: str) -> list[Any]:
    return [what for name, what in notes if name == kind]


@pytest.fixture
async def life(
    settings: AgentSettings,
    connect: Connect,
    task: Path,
    tmp_path: Path,
    start_agent: StartAgent,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[AgentSettings, OnAir, ModelCoordinator, Recorder]:
    monkeypatch.setattr(disk_module, "SPARE_BYTES", 512)
    on_air, coordinator = await on_air_with(await connect(settings.broker.url, "coordinator"), task)
    coordinator.chunk_bytes = CHUNK_BYTES
    disk = tmp_path / "disk"
    disk.mkdir()
    settings = settings.model_copy(
        update={"task": str(task), "data": {"partition_id": 0}, "state_dir": disk / STATE_DIR}
    )
    recorder = Recorder(disk)
    with pytest.MonkeyPatch.context() as patch:
        listen(recorder, patch)
        recorder.install(patch)
        agent = await start_agent(settings, HostChild)
        await live(on_air, coordinator, recorder, agent)
    return settings, on_air, coordinator, recorder


def audit_all(audit: Audit, recorder: Recorder, rng: random.Random, folder: Path) -> list[tuple[str, Tree]]:
    """Start from everything that may be left; give it back."""
    seen, left = set[int](), list[tuple[str, Tree]]()
    for moment in recorder.moments:
        for words, tree in left_behind(moment, rng):
            fingerprint = hash((moment.notes, frozenset(tree.items())))
            if fingerprint in seen:
                continue
            seen.add(fingerprint)
            lay_out(tree, folder)
            try:
                audit.check(folder / STATE_DIR, moment)
            except Exception as error:
                error.add_note(words)
                raise
            shutil.rmtree(folder)
            left.append((words, tree))
    return left


async def test_from_whatever_a_power_cut_leaves_the_device_takes_up_where_it_was(
    life: tuple[AgentSettings, OnAir, ModelCoordinator, Recorder],
    start_agent: StartAgent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, on_air, coordinator, recorder = life
    audit, rng = Audit(recorder, coordinator), random.Random(7)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # thousands of starts, and no power cut after them
        left = await asyncio.to_thread(audit_all, audit, recorder, rng, tmp_path / "left")
    told = f"{len(recorder.moments)} moments, {len(left)} states: {dict(audit.found)}"
    assert {"the commit under way", "the last commit", "an update in the outbox", "a residual"} < set(
        audit.found
    ), told
    assert {"a model file to be fetched again", "a model file on its way"} < set(audit.found), told
    assert len(left) > LEAST_STATES, told
    # From some of them it starts in earnest, delivers what it had, and trains.
    heard = dict(coordinator.accepted)
    for number, (words, tree) in enumerate(rng.sample(left, STARTS)):
        coordinator.accepted = dict(heard)
        disk = tmp_path / f"start-{number}"
        lay_out(tree, disk)
        agent = await start_agent(settings.model_copy(update={"state_dir": disk / STATE_DIR}), HostChild)
        coordinator.restart()
        await on_air.announce(lease=FIRST_LEASE + number, cohort=EVERYBODY)
        while True:
            update = await on_air.receive("dev-1")
            await on_air.accept("dev-1", update)  # which holds the same number to the same content
            if update.header.lease == FIRST_LEASE + number:
                break
        await agent.stop()
        assert not agent.task.exception(), words
