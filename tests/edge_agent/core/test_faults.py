"""A device, a coordinator and a trainer joined by a wire that loses, repeats and reorders, and a power switch.

The fuzzed invariant: every committed training is counted exactly once, or refused and its mass is back in the residual,
whatever is lost, repeated, crashed or restarted, and at whatever effect the power goes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedmq.simulation.disk import VirtualDisk
from fedmq_edge_agent.core.download import WINDOW
from fedmq_edge_agent.core.effects import (
    ApplyDelta,
    Ask,
    CommitState,
    Effect,
    FinishBlob,
    LoadSnapshot,
    Note,
    OpenTask,
    PinCoordinator,
    Reconnect,
    RemoveFiles,
    RemoveRun,
    Request,
    Restore,
    SaveModelIndex,
    Send,
    SendUpdate,
    SendUploadChunk,
    StartTrainer,
    StopTrainer,
    StoreBlob,
    Subscribe,
    Train,
    TryDisk,
    Unsubscribe,
    WriteBlobPart,
    Written,
    relies_on_commit,
)
from fedmq_edge_agent.core.events import (
    AgentStarted,
    Answer,
    BlobFinished,
    Connected,
    Disconnected,
    DiskMended,
    DiskRefused,
    Event,
    ModelLoaded,
    PacketArrived,
    ResidualRestored,
    TaskOpened,
    TimePassed,
    TrainerAnswered,
    TrainerDied,
    TrainerRefused,
    TrainerStarted,
    TrainingFinished,
)
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.core.state import (
    AgentState,
    blob_file,
    part_file,
)
from fedmq_protocol.chunks import Assembly, blob_ref
from fedmq_protocol.messages import Get, Hello, Offer, Update, UploadChunk
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import BlobKind, Topics
from tests.edge_agent.scripted import EVERYBODY, NOBODY, TASK, ScriptedCoordinator

DEVICE = "dev-1"
TOPICS = Topics("home")
KEY = SigningKey(b"d" * 32)
SMALL_PACKET = 5_000  # an update of the larger kind needs several
Packet = tuple[str, bytes]
OUTCOMES = st.sampled_from(["keep", "keep", "restore", "discard"])


def encode_mass(mass: int, nonce: int, size: int) -> bytes:
    """A payload that carries a mass, and is unlike any other."""
    return (mass.to_bytes(16, "big", signed=True) + nonce.to_bytes(8, "big")).ljust(size, b".")


def decode_mass(payload: bytes) -> int:
    return int.from_bytes(payload[:16], "big", signed=True)


class Device:
    """The machine with the thinnest of shells."""

    def __init__(self, world: World) -> None:
        self.world = world
        disk = world.disk
        state, indexes, parts = disk.load()
        self.agent = Agent(
            AgentLimits(federation="home", device=DEVICE, outbox_limit=3),
            public_key=KEY.public_key,
            coordinator_key=disk.pinned,
            state=state,
            indexes=indexes,
            chance=lambda: 0.5,
            parts=parts,
        )
        self.alive = True
        self.connected = False
        self.trainer: int | None = None
        self.request: Request | None = None
        self.replica: tuple[str, int] | None = None
        self.subscribed: set[str] = set()
        self.finishing: list[FinishBlob] = []

    def tell(self, event: Event, *, power_fails_after: int | None = None) -> None:
        following: Event | None = event
        while following is not None:
            effects = self.agent.handle(following, now=self.world.now)
            following = self.do(effects[:power_fails_after])
            if power_fails_after is not None:
                break
        if power_fails_after is not None:
            self.alive = False
            return
        deadline = self.agent.next_deadline()
        assert deadline is None or deadline > self.world.now, "it would spin"
        assert self.agent.waiting(now=self.world.now)

    def do(self, effects: list[Effect]) -> Event | None:
        """What can be done; and what the disk had to say of it."""
        refused: list[Written] = []
        for effect in effects:
            if relies_on_commit(effect) and any(isinstance(other, CommitState) for other in refused):
                continue
            if isinstance(effect, Written) and self.world.refuses(effect):
                refused.append(effect)
            else:
                self.perform(effect)
        if refused:
            return DiskRefused(tuple(refused), "full", "the disk is full")
        return DiskMended() if any(isinstance(effect, TryDisk) for effect in effects) else None

    def perform(self, effect: Effect) -> None:  # noqa: C901, PLR0912 - a case an effect
        disk, world = self.world.disk, self.world
        match effect:
            case CommitState(state):
                world.note_commit(disk.state, state)
                disk.save_state(state)
            case PinCoordinator(key):
                disk.pin(key)
            case SaveModelIndex(run, index):
                disk.save_index(run, index)
            case StoreBlob(run, blob, version, data):
                disk.write(run, blob_file(blob, version), data, durable=False)
            case WriteBlobPart(run, head, index, data):
                disk.write_chunk(run, head, index, data)
            case FinishBlob():
                self.finishing.append(effect)
            case RemoveFiles(run, names):
                disk.remove(run, names)
            case RemoveRun(run):
                disk.remove_run(run)
            case Subscribe(topics):
                self.subscribed |= set(topics)
                assert len(self.subscribed) <= WINDOW
                world.serve_retained(topics)
            case Unsubscribe(topics):
                self.subscribed -= set(topics)
            case Reconnect():
                raise AssertionError("its sessions are as they should be")
            case TryDisk():
                pass
            case Send(topic, body):
                world.up.append(("send", topic, body))
            case SendUpdate(header, file):
                kept = disk.state.runs[header.run]
                assert header.counter in [pending.header.counter for pending in kept.pending]
                data = disk.files[header.run, file]
                world.up.append(("send", TOPICS.up(DEVICE, "update"), Update(header=header, data=data)))
            case SendUploadChunk(run, counter, index, file, offset, size):
                piece = disk.files[run, file][offset : offset + size]
                chunk = UploadChunk(run=run, counter=counter, index=index, data=piece)
                world.up.append(("send", TOPICS.up(DEVICE, "chunk"), chunk))
            case StartTrainer(generation):
                self.trainer, self.request, self.replica = generation, None, None
            case StopTrainer():
                self.trainer = self.request = None
            case Ask(generation, request):
                assert self.trainer == generation
                assert self.request is None, "one request at a time"
                self.request = request
            case Note():
                pass

    # ------------------------------------------------------------------------------ the trainer

    def answer(self) -> Answer:
        disk, request = self.world.disk, self.request
        self.request = None
        match request:
            case OpenTask():
                return TaskOpened(TASK, ("topk-log4",), 143)
            case LoadSnapshot(run, version, file, ref):
                return self.model(run, version, file, ref)
            case ApplyDelta(run, version, file, ref):
                assert self.replica == (run, version - 1), "a delta on the wrong version"
                loaded = self.model(run, version, file, ref)
                if request.snapshot_file is None or not isinstance(loaded, ModelLoaded):
                    return loaded
                snapshot = self.world.coordinators[run].blob("snapshot", version)
                disk.files[run, request.snapshot_file] = snapshot
                return ModelLoaded(run, version, blob_ref(snapshot))
            case Train() | Restore() if self.world.full:
                return TrainerRefused("disk-full", "the disk is full", 1_000)
            case Train():
                return self.train(request)
            case Restore(run, counter, payload_file, residual_file, out_file):
                before = 0 if residual_file is None else decode_mass(disk.files[run, residual_file])
                mass = decode_mass(disk.files[run, payload_file])
                disk.files[run, out_file] = encode_mass(before + mass, 0, 24)
                return ResidualRestored(run, counter, out_file)
            case _:
                raise AssertionError("asked for nothing")

    def model(self, run: str, version: int, file: str, ref: Any) -> Answer:
        data = self.world.disk.files.get((run, file))
        if data is None or blob_ref(data) != ref:
            return TrainerRefused("bad-model", "not what was stored")
        kind: BlobKind = "snapshot" if file.startswith("base") else "delta"
        assert data == self.world.coordinators[run].blob(kind, version), (
            "another model than the coordinator's"
        )
        self.replica = (run, version)
        return ModelLoaded(run, version)

    def train(self, request: Train) -> Answer:
        world, disk, run = self.world, self.world.disk, request.run
        assert self.replica == (run, request.base_version)
        world.nonce += 1
        before = 0 if request.residual_file is None else decode_mass(disk.files[run, request.residual_file])
        change = 1_000 + 37 * world.nonce
        sent = (before + change) // 2
        payload = encode_mass(sent, world.nonce, 9_000 if world.nonce % 3 == 0 else 500)
        disk.files[run, f"update-{request.counter}.bin"] = payload
        disk.files[run, f"residual-{request.counter}.bin"] = encode_mass(before + change - sent, 0, 24)
        world.changes[hashlib.sha256(payload).digest()] = change
        return TrainingFinished(
            run=run,
            payload_file=f"update-{request.counter}.bin",
            payload=blob_ref(payload),
            residual_file=f"residual-{request.counter}.bin",
            num_examples=143,
            train_s=0.1,
        )


class World(RuleBasedStateMachine):
    """Everything around the device; the rules are what can go right or wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.nonce = 0
        self.disk = VirtualDisk()
        self.coordinators: dict[str, ScriptedCoordinator] = {}
        self.outcomes: dict[tuple[str, int], str] = {}
        self.payloads: dict[tuple[str, int], bytes] = {}
        self.up: list[tuple[str, str, Any]] = []
        self.down: list[Packet] = []
        self.changes: dict[bytes, int] = {}
        self.committed: dict[tuple[str, int], int] = {}
        self.leases: set[tuple[str, int]] = set()
        self.uploads: dict[tuple[str, int], tuple[Offer, Assembly]] = {}
        self.next_lease = 0
        self.refusals: list[str] = []
        self.online = True
        self.full = False
        """No room for what is large."""
        self.choked = False
        """Nor for the state."""

    @initialize()
    def begin(self) -> None:
        self.new_run()
        self.power_on()
        self.connect()
        while not self.settled:
            assert self.one_step("keep")

    # ------------------------------------------------------------------------------ bookkeeping

    @property
    def coordinator(self) -> ScriptedCoordinator:
        return list(self.coordinators.values())[-1]

    def note_commit(self, before: AgentState, after: AgentState) -> None:
        for run, kept in after.runs.items():
            known = before.runs.get(run)
            old = set() if known is None else {pending.header.counter for pending in known.pending}
            for pending in kept.pending:
                header = pending.header
                if header.counter in old:
                    continue
                assert (run, header.counter) not in self.committed, "a counter was used twice"
                assert (run, header.lease) not in self.leases, "a lease was trained for twice"
                self.leases.add((run, header.lease))
                self.committed[run, header.counter] = self.changes[header.payload.sha256]

    def serve_retained(self, topics: tuple[str, ...]) -> None:
        if self.device.connected:
            retained = self.coordinator.retained()
            self.down += [(topic, retained[topic]) for topic in topics if topic in retained]

    def refuses(self, effect: Written) -> bool:
        return self.choked if isinstance(effect, CommitState | PinCoordinator) else self.full

    @rule(choked=st.booleans())
    def the_disk_fills(self, choked: bool) -> None:  # noqa: FBT001 - hypothesis names it
        self.full, self.choked = True, choked

    @rule()
    def there_is_room_again(self) -> None:
        self.full = self.choked = False

    # ------------------------------------------------------------------------------ power and wire

    def power_on(self) -> None:
        self.up.clear()
        self.down.clear()
        for _, chunks in self.disk.parts.values():  # the newest had not reached the disk
            if len(chunks) > 1:
                chunks.popitem()
        self.device = Device(self)
        self.device.tell(AgentStarted())

    @rule(after=st.integers(0, 3), which=st.integers(0, 5))
    def power_fails(self, after: int, which: int) -> None:
        """At any effect of whatever the device was about to do."""
        event: Event | None = None
        if which == 0 and self.down:
            event = PacketArrived(*self.down.pop(0))
        elif which in {1, 2, 3} and self.device.request is not None and self.device.trainer is not None:
            event = TrainerAnswered(self.device.trainer, self.device.answer())
        elif which == 4 and (deadline := self.device.agent.next_deadline()) is not None:
            self.now = max(self.now, deadline)
            event = TimePassed()
        if event is not None:
            self.device.tell(event, power_fails_after=after)
        self.power_on()

    @rule()
    def connect(self) -> None:
        if not self.device.connected:
            self.device.connected = True
            self.device.tell(Connected(self.device.agent.next_session(), SMALL_PACKET))
            self.down.append(self.coordinator.status(online=self.online))
            self.announce(lease=False)

    @rule()
    def disconnect(self) -> None:
        if self.device.connected:
            self.device.connected = False
            self.up.clear()
            self.down.clear()
            self.device.tell(Disconnected("the wire was cut"))
            assert not self.device.subscribed

    @rule(which=st.integers(0, 3), again=st.booleans())
    @precondition(lambda self: self.down)
    def device_hears(self, which: int, again: bool) -> None:  # noqa: FBT001 - hypothesis names it
        place = min(which, len(self.down) - 1)
        packet = self.down[place] if again else self.down.pop(place)
        self.device.tell(PacketArrived(*packet))

    @rule()
    @precondition(lambda self: self.down)
    def packet_to_the_device_is_lost(self) -> None:
        self.down.pop(0)

    @rule()
    @precondition(lambda self: self.up)
    def packet_from_the_device_is_lost(self) -> None:
        self.up.pop(0)

    @rule(outcome=OUTCOMES)
    @precondition(lambda self: self.up)
    def coordinator_hears(self, outcome: str) -> None:
        _, _, body = self.up.pop(0)
        coordinator = self.coordinator
        match body:
            case Update(header=header, data=data):
                self.receive(header.run, header.counter, data, outcome)
            case Offer(header=header):
                update = (header.run, header.counter)
                if update in self.outcomes:
                    self.receipt(*update)
                else:
                    self.uploads.setdefault(update, (body, Assembly(header.payload, body.chunk_bytes)))
                    self.credit(update)
            case UploadChunk(run=run, counter=counter, index=index, data=data):
                if (run, counter) in self.uploads:
                    assembly = self.uploads[run, counter][1]
                    assembly.add(index, data)
                    if assembly.complete:
                        del self.uploads[run, counter]
                        self.receive(run, counter, assembly.result(), outcome)
                    else:
                        self.credit((run, counter))
            case Get(run=run, version=version, blob=blob, index=index) if run == coordinator.run:
                chunk = coordinator.chunks(blob, version)[index]
                self.down.append(coordinator.seal(TOPICS.down(DEVICE, "chunk"), chunk))
            case Hello():
                self.down.append(coordinator.status())
                self.announce(lease=False)
            case _:
                pass

    def credit(self, update: tuple[str, int]) -> None:
        coordinator = self.coordinator
        coordinator.uploads[DEVICE, update[0], update[1]] = self.uploads[update][1]
        self.down.append(coordinator.credit(DEVICE, *update))

    def receive(self, run: str, counter: int, payload: bytes, outcome: str) -> None:
        """Validate, journal, and answer; the word once given is final."""
        assert self.payloads.setdefault((run, counter), payload) == payload, "one id, two contents"
        self.outcomes.setdefault((run, counter), outcome)
        self.receipt(run, counter)

    def receipt(self, run: str, counter: int) -> None:
        self.down.append(
            self.coordinator.receipt(DEVICE, counter, run=run, residual=self.outcomes[run, counter])
        )

    # ------------------------------------------------------------------------------ what goes well

    def one_step(self, outcome: str) -> bool:
        """The next thing that is under way arrives or gets done; whether there was any."""
        device = self.device
        if device.trainer is not None and device.agent.desk.trainer.state == "starting":
            self.trainer_starts()
        elif device.finishing:
            self.a_blob_is_checked(good=True)
        elif self.down:
            self.device_hears(0, again=False)
        elif device.request is not None:
            self.trainer_answers()
        elif self.up:
            self.coordinator_hears(outcome)
        else:
            return False
        return True

    @rule(steps=st.integers(1, 25), outcome=OUTCOMES)
    def things_go_well(self, steps: int, outcome: str) -> None:
        for _ in range(steps):
            self.one_step(outcome)

    @rule(outcome=OUTCOMES, delta=st.booleans())
    @precondition(lambda self: self.device.connected)
    def a_round_goes_well(self, outcome: str, delta: bool) -> None:  # noqa: FBT001
        """Until an update is under way; its receipt is left to fate."""
        if delta:
            self.coordinator.publish(rebase=self.nonce % 4 == 3)
        self.announce(lease=True)
        trained = len(self.committed)
        for _ in range(40):
            if len(self.committed) > trained or not self.one_step(outcome):
                break

    # ------------------------------------------------------------------------------ the coordinator

    def announce(self, *, lease: bool, inline: bool = True) -> None:
        if self.device.connected:
            if lease:
                self.next_lease += 1
            cohort = EVERYBODY if lease else NOBODY
            self.down.append(
                self.coordinator.announcement(lease=self.next_lease, cohort=cohort, inline=inline)
            )

    @rule(rebase=st.booleans(), inline=st.booleans(), lease=st.booleans(), big=st.booleans())
    def coordinator_publishes(self, rebase: bool, inline: bool, lease: bool, big: bool) -> None:  # noqa: FBT001
        self.coordinator.publish(rebase=rebase, delta_bytes=2_500 if big else 300)
        self.announce(lease=lease, inline=inline)

    @rule()
    def coordinator_leases(self) -> None:
        self.next_lease += 1
        if self.device.connected:
            self.down.append(self.coordinator.lease(DEVICE, self.next_lease, lease_s=30.0))

    @rule()
    def coordinator_restarts(self) -> None:
        self.uploads.clear()
        epoch = self.coordinator.epoch + 1
        for coordinator in self.coordinators.values():
            coordinator.epoch = epoch - 1
            coordinator.restart()
        if self.device.connected:
            self.down.append(self.coordinator.status())
            self.announce(lease=False)

    @precondition(lambda self: len(self.coordinators) < 3)
    @rule()
    def new_run(self) -> None:
        run = f"r{len(self.coordinators) + 1}"
        if self.coordinators:
            before = self.coordinator
            after = ScriptedCoordinator(run=run, seed=len(self.coordinators), epoch=before.epoch)
            after.sealer = before.sealer
            self.coordinators[run] = after
            self.next_lease = 0
            self.announce(lease=False)
        else:
            self.coordinators[run] = ScriptedCoordinator(run=run)

    # ------------------------------------------------------------------------------ the device's own time

    @rule()
    @precondition(lambda self: self.device.request is not None)
    def trainer_answers(self) -> None:
        assert self.device.trainer is not None
        self.device.tell(TrainerAnswered(self.device.trainer, self.device.answer()))

    @rule()
    @precondition(lambda self: self.device.trainer is not None and self.device.request is None)
    def trainer_starts(self) -> None:
        if self.device.agent.desk.trainer.state == "starting":
            assert self.device.trainer is not None
            self.device.tell(TrainerStarted(self.device.trainer))

    @rule()
    @precondition(lambda self: self.device.trainer is not None)
    def trainer_crashes(self) -> None:
        generation, self.device.trainer, self.device.request = self.device.trainer, None, None
        assert generation is not None
        self.device.tell(TrainerDied(generation, "SIGSEGV"))

    @rule()
    @precondition(lambda self: isinstance(self.device.request, Train))
    def training_fails(self) -> None:
        self.device.request = None
        assert self.device.trainer is not None
        self.device.tell(TrainerAnswered(self.device.trainer, TrainerRefused("train-failed", "NaN")))

    @rule(good=st.booleans())
    @precondition(lambda self: self.device.finishing)
    def a_blob_is_checked(self, good: bool) -> None:  # noqa: FBT001
        finish = self.device.finishing.pop(0)
        name = (finish.run, part_file(finish.blob, finish.version))
        part = self.disk.parts.get(name)
        data = b"" if part is None else b"".join(part[1][index] for index in sorted(part[1]))
        ok, damaged = blob_ref(data) == finish.ref, tuple[int, ...]()
        if ok and good:
            ok, damaged = self.disk.finish_blob(finish.run, finish.blob, finish.version, finish.ref)
        elif ok and part is not None and len(part[1]) > 1:  # the disk kept one chunk badly
            damaged = (min(part[1]),)
            del part[1][min(part[1])]
        elif part is not None:
            del self.disk.parts[name]
        self.device.tell(BlobFinished(finish.run, finish.blob, finish.version, ok and good, damaged))

    @rule(seconds=st.sampled_from([0.1, 1.5, 6.0, 40.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(500):
            deadline = self.device.agent.next_deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.device.tell(TimePassed())
        else:
            raise AssertionError("500 deadlines within one pass of time")
        self.now = until
        del self.up[200:]

    @rule(place=st.integers(0, 10))
    @precondition(lambda self: self.disk.files)
    def a_model_file_rots(self, place: int) -> None:
        names = sorted(name for name in self.disk.files if name[1].startswith(("base-", "delta-")))
        if names:
            name = names[place % len(names)]
            self.disk.files[name] = bytes(len(self.disk.files[name]))

    # ------------------------------------------------------------------------------ what must hold

    @invariant()
    def the_outbox_is_bounded(self) -> None:
        assert len(self.device.agent.desk.outbox) <= 3

    def teardown(self) -> None:
        """Heal everything, let it settle, and account for all mass."""
        if not hasattr(self, "device"):
            return
        self.announce(lease=False)
        for _ in range(2_000):
            self.heal()
            if self.settled:
                break
        state = self.device.agent.desk.ledger.state
        assert set(self.committed) == set(self.outcomes), "lost, or never committed"
        for run in self.coordinators:
            kept = state.runs.get(run)
            if kept is None:
                continue  # over; its residual is of no use
            residual = 0
            if kept.residual_file is not None:
                residual = decode_mass(self.disk.files[run, kept.residual_file])
            sent = sum(
                decode_mass(self.payloads[update])
                for update, outcome in self.outcomes.items()
                if update[0] == run and outcome in {"keep", "discard"}
            )
            made = sum(change for update, change in self.committed.items() if update[0] == run)
            assert sent + residual == made, f"{sent} sent + {residual} left, and {made} made"
        assert self.device.replica == (self.coordinator.run, self.coordinator.versions[-1].number)

    @property
    def settled(self) -> bool:
        newest = (self.coordinator.run, self.coordinator.versions[-1].number)
        desk = self.device.agent.desk
        waits = desk.outbox or not desk.storage.takes or self.down or self.up or self.device.request
        return not waits and self.device.replica == newest

    def heal(self) -> None:
        self.there_is_room_again()
        self.connect()
        if not self.one_step("keep"):
            self.time_passes(6.0)


TestFaults = World.TestCase
TestFaults.settings = settings(
    max_examples=100, stateful_step_count=50, suppress_health_check=list(HealthCheck), deadline=None
)


@pytest.mark.parametrize("seed", range(12))
def test_a_long_and_eventful_life(seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    world.begin()

    def outcome() -> str:
        return rng.choice(["keep", "keep", "restore", "discard"])

    def coin() -> bool:
        return rng.random() < 0.5

    life: dict[Callable[[], None], int] = {
        lambda: world.things_go_well(rng.randrange(1, 20), outcome()): 10,
        lambda: world.a_round_goes_well(outcome(), coin()) if world.device.connected else None: 10,
        lambda: world.power_fails(rng.randrange(4), rng.randrange(6)): 4,
        world.connect: 6,
        world.disconnect: 2,
        lambda: world.device_hears(rng.randrange(4), coin()) if world.down else None: 5,
        lambda: world.packet_to_the_device_is_lost() if world.down else None: 2,
        lambda: world.packet_from_the_device_is_lost() if world.up else None: 2,
        lambda: world.coordinator_hears(outcome()) if world.up else None: 5,
        lambda: world.coordinator_publishes(rng.random() < 0.2, coin(), coin(), coin()): 3,
        world.coordinator_leases: 2,
        lambda: world.the_disk_fills(coin()): 1,
        world.there_is_room_again: 2,
        world.coordinator_restarts: 1,
        lambda: world.trainer_crashes() if world.device.trainer is not None else None: 1,
        lambda: world.training_fails() if isinstance(world.device.request, Train) else None: 1,
        lambda: world.time_passes(rng.choice([0.1, 1.5, 6.0, 40.0])): 4,
        lambda: world.a_model_file_rots(rng.randrange(10)): 1,
        lambda: world.new_run() if len(world.coordinators) < 3 and rng.random() < 0.02 else None: 1,
    }
    for _ in range(400):
        rng.choices(list(life), list(life.values()))[0]()
        world.the_outbox_is_bounded()
    assert len(world.committed) >= 5
    world.teardown()
