"""A coordinator's core and scripted devices that speak real, signed packets to it. No network, no clock, no torch."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.faults.same_bits import differences
from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.progress import LARGE_MODEL
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.settings import RunSettings
from fedmq_coordinator.core.turns import MAX_UNDER_WAY, Turns
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import CodecSpec, encode_update
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.messages import Announcement, Body, Presence, Receipt, TaskRef, Update, UpdateHeader
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.signing import SigningKey

Vector = NDArray[np.float32]
B = TypeVar("B", bound=Body)

SCHEMA = TensorSchema(
    entries=(
        TensorEntry(name="w", shape=(40, 10), dtype="float32", role="parameter"),
        TensorEntry(name="running_mean", shape=(10,), dtype="float32", role="buffer"),
    )
)
TASK = TaskRef(name="toy", version="1", schema_hash=SCHEMA.hash)
FLOAT32 = {"up": "float32", "down": "float32", "snapshot": "float32"}


def settings(**fields: object) -> RunSettings:
    """Run settings out of plain nested fields."""
    return RunSettings.model_validate(fields)


@dataclass
class Device:
    """What a device needs to speak."""

    id: str
    sealer: Sealer
    counter: int = 0
    residual: Vector | None = None
    codecs: Sequence[str] = ()


@dataclass
class World:
    """The core, what it journaled and sent, and the time. What it wants made aside waits in `aside`."""

    aside_from: int = LARGE_MODEL
    max_under_way: int = MAX_UNDER_WAY
    core: Coordinator = field(init=False)
    now: float = 1_000_000.0
    journal: list[tuple[str, bytes]] = field(default_factory=list)
    effects: list[do.Effect] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)
    aside: list[do.Prepare] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = Coordinator(federation="home", aside_from=self.aside_from, turns=self.turns())
        self.tell(e.CoordinatorStarted(epoch=1))
        self.tell(e.BrokerConnected())

    def turns(self) -> Turns:
        return Turns(max_under_way=self.max_under_way)

    def tell(self, event: e.Event) -> list[do.Effect]:
        """Hand an event to the core; journal what it records, as the shell does."""
        effects = self.core.handle(event, now=self.now)
        self.journal += [f.dump(effect.fact) for effect in effects if isinstance(effect, do.Record)]
        self.effects += effects
        self.aside += [effect for effect in effects if isinstance(effect, do.Prepare)]
        assert_roster_is_true(self.core)
        return effects

    def make(self) -> list[do.Effect]:
        """Do what is to be made aside."""
        (wanted,), self.aside = self.aside, []
        return self.tell(wanted.work())

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with every deadline on the way."""
        end = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= end:
            assert due > self.now or self.now == end or due >= self.now - 1e-9, "the core asks for the past"
            before = self.now
            self.now = max(self.now, due)
            self.tell(e.TimePassed())
            after = self.core.next_deadline()
            assert after is None or after > before, "the core spins"
        self.now = end
        self.tell(e.TimePassed())

    def start_run(self, run_settings: RunSettings, run: str = "r1", initial: Vector | None = None) -> Run:
        vector = np.zeros(SCHEMA.size, dtype=np.float32) if initial is None else initial
        self.tell(e.RunRequested(run, run_settings, TASK, SCHEMA, vector))
        return self.core.runs[run]

    def join(
        self,
        name: str,
        *,
        session: int = 1,
        task: TaskRef = TASK,
        problem: str = "",
        codecs: Sequence[str] = (),
    ) -> Device:
        """A device connects."""
        key = SigningKey(hashlib.sha256(name.encode()).digest())
        device = self.devices.get(name) or Device(name, Sealer(sender=name, epoch=session, key=key))
        device.sealer.epoch = session
        self.devices[name] = device
        device.codecs = codecs
        birth = Presence(
            online=True,
            session=session,
            public_key=key.public_key,
            tasks=[task],
            codecs=list(codecs),
            problem=problem,
            num_examples=10,
        )
        self.say(device, "presence", birth)
        return device

    def leave(self, name: str, *, session: int = 1) -> None:
        """Its last will comes."""
        device = self.devices[name]
        self.say(
            device, "presence", Presence(online=False, session=session, public_key=device.sealer.public_key)
        )

    def say(self, device: Device, kind: str, body: Body) -> list[do.Effect]:
        root = f"fedmq/v1/home/dev/{device.id}"
        topic = f"{root}/presence" if kind == "presence" else f"{root}/up/{kind}"
        return self.tell(e.PacketArrived(topic, device.sealer.seal(topic, body)))

    def update(
        self,
        name: str,
        delta: Vector | float,
        *,
        lease: int | None = None,
        base: int | None = None,
        num_examples: int = 10,
        codec: str | None = None,
        run: str = "r1",
        **changes: object,
    ) -> Update:
        """The next update of a device, ready to be said."""
        device, state = self.devices[name], self.core.runs[run]
        vector = np.full(SCHEMA.size, delta, dtype=np.float32) if isinstance(delta, float) else delta
        spec = CodecSpec(codec or state.settings.compression.up, state.settings.compression.density)
        data, device.residual = encode_update(vector, device.residual, SCHEMA, spec)
        fields: dict[str, object] = {
            "run": run,
            "counter": device.counter,
            "lease": state.cohort_lease if lease is None else lease,
            "base_version": state.version if base is None else base,
            "schema_hash": SCHEMA.hash,
            "num_examples": num_examples,
            "payload": blob_ref(data),
        }
        device.counter += 1
        return Update(header=UpdateHeader.model_validate(fields | changes), data=data)

    def send(self, name: str, delta: Vector | float, **fields: object) -> Receipt:
        """Make an update, say it, and return its receipt."""
        return self.receipt(self.say(self.devices[name], "update", self.update(name, delta, **fields)))  # type: ignore[arg-type]

    @staticmethod
    def receipt(effects: list[do.Effect]) -> Receipt:
        found = [
            effect.body
            for effect in effects
            if isinstance(effect, do.Send) and isinstance(effect.body, Receipt)
        ]
        assert len(found) == 1
        return found[0]

    def sent(self, kind: type[B]) -> list[B]:
        """Every body of a kind that the core has sent."""
        said = (x for x in self.effects if isinstance(x, do.Send | do.SendChunk))
        return [x.body for x in said if isinstance(x.body, kind)]

    def announcement(self) -> Announcement:
        return self.sent(Announcement)[-1]

    def facts(self) -> Iterator[f.Fact]:
        """The journal, read back from its bytes."""
        return (f.load(kind, data) for kind, data in self.journal)

    def of(self, kind: type[f.Fact]) -> list[f.Fact]:
        return [fact for fact in self.facts() if isinstance(fact, kind)]

    def replayed(self) -> Coordinator:
        """A new core that knows the journal alone."""
        core = Coordinator(federation="home", aside_from=self.aside_from, turns=self.turns())
        core.state.replay(self.facts)
        return core

    def restart(self) -> None:
        """Kill the coordinator and start another one on the same journal; devices stay connected."""
        self.core = self.replayed()
        self.aside.clear()
        self.tell(e.CoordinatorStarted(epoch=self.core.state.epoch + 1))
        self.tell(e.BrokerConnected())
        for device in self.devices.values():
            self.join(device.id, session=device.sealer.epoch, codecs=device.codecs)


def assert_roster_is_true(core: Coordinator) -> None:
    """What the roster keeps up to date is what one look at every device gives."""
    desk, run, devices = core._desk, core.active, core.state.devices
    assert desk.roster.online == {name for name, device in devices.items() if device.online}
    if run is None:
        return
    crew = desk.crew(run)
    presuming = desk.now < desk.presumed_until
    there = {name for name, x in devices.items() if x.online or (presuming and not x.heard)}
    available = sorted(
        name
        for name, device in devices.items()
        if device.online
        and not device.problem
        and not device.flood
        and device.offers(run.task)
        and crew.paused.get(name, 0.0) <= desk.now
    )
    free = [name for name in available if name not in run.leases]
    times = {name: time for name in devices if (time := run.task_time(name)) is not None}
    assert crew.available == available
    assert crew.free == free
    assert crew.idle == [name for name in free if run.last_lease_version.get(name, -1) < run.version]
    assert crew.num_at_work == len(there & run.leases.keys())
    assert crew.num_answered == len(run.members & run.answered)
    assert crew.member_times() == sorted(times[name] for name in run.members & times.keys())
    assert crew.usual_time() == (statistics.median(times.values()) if times else None)
    for limit in (0.0, *times.values(), 1e9):
        awaited = sorted(
            name
            for name in (run.members - run.answered) & there & run.leases.keys()
            if run.leases[name].granted_at >= run.opened_at and times.get(name, 0.0) <= limit
        )
        assert crew.awaited(within_s=limit) == awaited
        assert crew.is_any_awaited(within_s=limit) == bool(awaited)
    ends = [desk.extended(held.granted_at, held.expires_at) for held in run.leases.values()]
    assert crew.next_expiry() == min(ends, default=None)


def assert_same_bits(one: Coordinator, other: Coordinator) -> None:
    """Two cores hold the same state, weights and accumulators to the bit."""
    assert differences(one, other) == []
