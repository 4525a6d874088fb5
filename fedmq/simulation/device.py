"""A device in virtual time: the real core in the thinnest of shells, with a power switch that works at any effect."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fedmq.simulation.broker import Broker, Early, Will
from fedmq.simulation.connection import Connection
from fedmq.simulation.disk import VirtualDisk
from fedmq.simulation.mail import CheapKey, Mail
from fedmq.simulation.post import Outgoing, VirtualPost
from fedmq.simulation.replicas import Replicas
from fedmq.simulation.trainer import TrainerTimes, VirtualTrainer
from fedmq.simulation.watch import Watch
from fedmq.simulation.world import LocalClock, Timer, World
from fedmq_edge_agent.core.conditions import Readings, Rules
from fedmq_edge_agent.core.effects import (
    Ask,
    CommitState,
    Effect,
    FinishBlob,
    Note,
    PinCoordinator,
    Reconnect,
    RemoveFiles,
    RemoveRun,
    SaveModelIndex,
    Send,
    SendUpdate,
    SendUploadChunk,
    StartTrainer,
    StopTrainer,
    StoreBlob,
    Subscribe,
    TryDisk,
    Unsubscribe,
    WriteBlobPart,
    Written,
    relies_on_commit,
)
from fedmq_edge_agent.core.events import (
    AgentStarted,
    BlobFinished,
    ConditionsRead,
    Connected,
    Disconnected,
    DiskMended,
    DiskRefused,
    Event,
    PacketArrived,
    PayloadLost,
    TimePassed,
    TrainerAnswered,
    TrainerDied,
    TrainerRefused,
    TrainerStarted,
)
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.core.state import blob_file
from fedmq_edge_agent.core.supervision import TimeLimits
from fedmq_edge_agent.disk_faults import code_of
from fedmq_edge_agent.shell.writing import DiskError
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.limits import MAX_PACKET_BYTES
from fedmq_protocol.messages import Body
from fedmq_protocol.topics import Topics

if TYPE_CHECKING:
    from fedmq.simulation.learner import Learner

DISK_S: Final = 0.005
"""How long it takes to put a fetched model file in place."""


@dataclass(frozen=True)
class DeviceOptions:
    """What a virtual device is told.

    Attributes:
        outbox_limit: as for the agent.
        max_packet_bytes: the largest packet that it and its broker take.
        daily_bytes: as for the agent.
        conditions: as for the agent; `feel` tells it what its board reads.
        times: how long its trainer takes.
        limits: how long its core lets the trainer take.
        ahead_s: by how much its wall clock is wrong.
        rate: of its monotonic clock: seconds in a true one.
    """

    outbox_limit: int = 4
    max_packet_bytes: int = MAX_PACKET_BYTES
    daily_bytes: int | None = None
    conditions: Rules = field(default_factory=Rules)
    times: TrainerTimes = field(default_factory=TrainerTimes)
    limits: TimeLimits = field(default_factory=TimeLimits)
    ahead_s: float = 0.0
    rate: float = 1.0


class VirtualDevice:
    """One device.

    Args:
        world: the clock, and chance.
        broker: where it connects.
        federation: its name.
        name: the device's id.
        mail: seals, opens and verifies packets.
        learner: what it trains.
        replicas: decodes versions.
        options: what it is told.
        watch: told of what it does.

    Attributes:
        agent: the real core; one for each life.
        disk: what survives the power switch.
        alive: it is powered, and its agent runs.
        starts: lives begun.
        clock: its own, which may be wrong.
    """

    early: Early | None = None
    """As a `Connection`'s."""

    def __init__(  # noqa: PLR0913 - all that a device is
        self,
        world: World,
        broker: Broker,
        *,
        federation: str,
        name: str,
        mail: Mail,
        learner: Learner,
        replicas: Replicas,
        options: DeviceOptions | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.world, self.broker = world, broker
        self.topics, self.name = Topics(federation), name
        self.options = DeviceOptions() if options is None else options
        self.watch = Watch() if watch is None else watch
        self._mail, self._learner, self._replicas = mail, learner, replicas
        self._limits = AgentLimits(
            federation=federation,
            device=name,
            outbox_limit=self.options.outbox_limit,
            times=self.options.limits,
            daily_bytes=self.options.daily_bytes,
            conditions=self.options.conditions,
        )
        self.key = CheapKey(f"device {name}")
        self.disk = VirtualDisk()
        self.clock = LocalClock(world, ahead_s=self.options.ahead_s, rate=self.options.rate)
        self.alive = False
        self.starts = 0
        self._dies_in: int | None = None
        self._down_s: float | None = None
        self._torn: random.Random | None = None
        self._timer = Timer(world, self._time_passed)
        self._deadline: float | None = None
        self.agent: Agent
        self.connection: Connection
        self._post: VirtualPost
        self._sealer: Sealer
        self._trainer: VirtualTrainer | None = None
        self._session = 0
        self._told_at = 0.0
        self._readings = Readings()

    # ------------------------------------------------------------------------------ the power switch

    def start(self) -> None:
        """Switch it on: a new process that knows what is on the disk."""
        if self.alive:
            return
        self.alive = True
        self.starts += 1
        life, world = self.starts, self.world
        state, indexes, parts = self.disk.load()
        self.agent = Agent(
            self._limits,
            public_key=self.key.public_key,
            coordinator_key=self.disk.pinned,
            state=state,
            indexes=indexes,
            chance=world.stream("agent", self.name, life).random,
            clock_s=self.clock(),
            parts=parts,
            reader=self._mail,
        )
        self._trainer = None
        self._sealer = self._mail.sealer(sender=self.name, epoch=0, key=self.key)
        self._post = VirtualPost(self)
        self.connection = Connection(
            world,
            self.broker,
            f"fedmq-{self.topics.federation}-{self.name}",
            filters=self.topics.device_filters(self.name),
            will=self._will,
            owner=_Ear(self, life),
            chance=world.stream("reconnect", self.name, life),
            early=self.early,
        )
        self.watch.device_started(self)
        self.tell(AgentStarted())
        self.feel(self._readings)
        if self.alive and self.starts == life:
            self.connection.open()

    def fail_after(
        self, effects: int, *, down_s: float | None = None, torn: random.Random | None = None
    ) -> None:
        """Let its power fail once it has done so many more effects.

        Args:
            effects: 0: before the next one.
            down_s: when it is switched on again, after that; None: not by itself.
            torn: draws what becomes of what was not flushed; None: it is kept.
        """
        self._dies_in, self._down_s, self._torn = effects, down_s, torn

    def spare(self) -> None:
        """Take back what `fail_after` asked for."""
        self._dies_in = None

    def cut_power(
        self,
        *,
        down_s: float | None = None,
        torn: random.Random | None = None,
        why: str = "its power was cut",
    ) -> None:
        """Switch it off."""
        if not self.alive:
            return
        self.alive = False
        self._dies_in = None
        self._trainer = None
        self._timer.set(None)
        self.connection.vanish()
        self.disk.power_cut(None if torn is None else torn.randrange)
        self.watch.device_died(self, why)
        if down_s is not None:
            life = self.starts
            self.world.after(down_s, lambda: self.start() if self.starts == life else None)

    def stop(self) -> None:
        """End it in good order."""
        if not self.alive:
            return
        with contextlib.suppress(DiskError):  # nothing would be lost, only learnt again
            for effect in self.agent.last_effects():
                self._perform[type(effect)](self, effect)
                self.watch.device_did(self, effect)
        if self.agent.session is not None:
            goodbye = self.agent.presence(online=False, session=self.agent.session)
            goodbye = goodbye.model_copy(update={"traffic": self.traffic})
            topic = self.topics.presence(self.name)
            self.connection.publish(topic, self.seal(topic, goodbye), retain=True)
        self.alive = False
        self._trainer = None
        self._timer.set(None)
        self.connection.close()
        self.watch.device_died(self, "it was stopped")

    # ------------------------------------------------------------------------------ events

    def feel(self, readings: Readings) -> None:
        """Let its board read this from now on, after restarts too."""
        self._readings = readings
        if self.alive and self.options.conditions.any:
            self.tell(ConditionsRead(readings))

    @property
    def now(self) -> float:
        """Its monotonic clock, which is as fast as its wall clock and never put back."""
        start_s = self.world.start_s
        return max(self._told_at, (self.world.now - start_s) * self.options.rate)

    @property
    def deadline(self) -> float | None:
        """When the core said that it wants to be woken, after the last event."""
        return self._deadline

    def tell(self, event: Event) -> None:
        """Let the core handle an event, and do what it says; the power may fail at any effect."""
        self._handle(event, self.now)

    def _handle(self, event: Event, now: float) -> None:
        agent, life, self._told_at = self.agent, self.starts, now
        self.watch.device_told(self, event)
        agent.count(
            sent=self.connection.sent_bytes,
            received=self.connection.received_bytes,
            clock_s=self.clock(),
            now=now,
        )
        following: Event | None = event
        while following is not None and self.alive and self.starts == life:
            following = self._do(agent.handle(following, now=now))
        if self.alive and self.starts == life:
            self._arm(now)

    def _do(self, effects: list[Effect]) -> Event | None:
        """Do all that can be done; return what the disk had to say, if the core is to hear of it."""
        refused: list[Written] = []
        reason: DiskError | None = None
        tried = False
        for effect in effects:
            if self._dies_in is not None and self._power_fails():
                return None
            if refused and relies_on_commit(effect) and any(isinstance(one, CommitState) for one in refused):
                continue
            tried = tried or type(effect) is TryDisk
            try:
                self._perform[type(effect)](self, effect)
            except DiskError as error:
                assert isinstance(effect, Written)
                refused.append(effect)
                reason = error
            else:
                self.watch.device_did(self, effect)
        if reason is not None:
            return DiskRefused(tuple(refused), reason.fault, str(reason))
        return DiskMended() if tried else None

    def _power_fails(self) -> bool:
        """Count an effect; whether it is one too many."""
        assert self._dies_in is not None
        if self._dies_in == 0:
            self.cut_power(down_s=self._down_s, torn=self._torn)
            return True
        self._dies_in -= 1
        return False

    def _arm(self, now: float) -> None:
        self._deadline = deadline = self.agent.next_deadline()
        if deadline is None:
            self._timer.set(None)
        else:
            self._timer.set(self.world.now + (deadline - now) / self.options.rate)

    def _time_passed(self) -> None:
        if self.alive and self._deadline is not None:
            self._handle(TimePassed(), max(self.now, self._deadline))

    def _later(self, delay_s: float, event: Event) -> None:
        """Tell something later, if this life lasts so long."""
        life = self.starts
        self.world.after(delay_s, lambda: self.tell(event) if self.alive and self.starts == life else None)

    # ------------------------------------------------------------------------------ messages

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received in this life."""
        return self.connection.sent_bytes, self.connection.received_bytes

    def seal(self, topic: str, body: Body, *, packed: bool = False) -> bytes:
        """A packet's payload."""
        return self._sealer.seal(topic, body, packed=packed)

    def payload_lost(self, run: str, counter: int, file: str) -> None:
        """The file of an update cannot be sent."""
        self._later(0.0, PayloadLost(run, counter, file))

    def _will(self) -> Will:
        self._session = self.agent.next_session()
        self._sealer = self._mail.sealer(sender=self.name, epoch=self._session, key=self.key)
        topic = self.topics.presence(self.name)
        return Will(topic, self.seal(topic, self.agent.presence(online=False, session=self._session)))

    def on_connected(self) -> None:
        self.tell(Connected(self._session, self.options.max_packet_bytes))

    def on_disconnected(self, reason: str) -> None:
        self._post.connection_lost()
        self.tell(Disconnected(reason))

    # ------------------------------------------------------------------------------ effects

    def _reconnect(self, effect: Reconnect) -> None:
        if effect.session == self._session:
            self.connection.reconnect()

    def _post_it(self, effect: Outgoing) -> None:
        self._post.put(effect)

    def _start_trainer(self, effect: StartTrainer) -> None:
        trainer = self._trainer = VirtualTrainer(self, effect.generation, self._learner, self._replicas)

        def started() -> None:
            if self._trainer is trainer:
                self.tell(TrainerStarted(trainer.generation))

        self.world.after(self.options.times.start_s, started)

    def _stop_trainer(self, effect: StopTrainer) -> None:  # noqa: ARG002 - there is one at most
        self._trainer = None

    def _finish_later(self, effect: FinishBlob) -> None:
        life = self.starts

        def finish() -> None:
            if self.alive and self.starts == life:
                ok, damaged = self.disk.finish_blob(effect.run, effect.blob, effect.version, effect.ref)
                self.tell(BlobFinished(effect.run, effect.blob, effect.version, ok, damaged))

        self.world.after(DISK_S, finish)

    # ------------------------------------------------------------------------------ the trainer child

    def _ask(self, effect: Ask) -> None:
        trainer, request = self._trainer, effect.request
        assert trainer is not None, "the core asks only a trainer that has started"
        assert trainer.request is None, "one request at a time"
        trainer.request = request

        def answer() -> None:
            if self._trainer is not trainer:
                return
            trainer.request = None
            try:
                answered = trainer.answer(request)
            except DiskError as error:
                answered = TrainerRefused(code_of(error.fault), str(error))
            self.tell(TrainerAnswered(trainer.generation, answered))

        self.world.after(trainer.takes_s(request, self.options.times), answer)

    def crash_trainer(self, detail: str = "SIGSEGV") -> bool:
        """Kill the trainer child; False: there is none."""
        trainer, self._trainer = self._trainer, None
        if trainer is None or not self.alive:
            return False
        self.tell(TrainerDied(trainer.generation, detail))
        return True

    _perform: ClassVar[dict[type[Effect], Callable[[Any, Any], None]]] = {
        Subscribe: _post_it,
        Unsubscribe: _post_it,
        Send: _post_it,
        SendUpdate: _post_it,
        SendUploadChunk: _post_it,
        Reconnect: _reconnect,
        CommitState: lambda device, effect: device.disk.save_state(effect.state),
        PinCoordinator: lambda device, effect: device.disk.pin(effect.public_key),
        SaveModelIndex: lambda device, effect: device.disk.save_index(effect.run, effect.index),
        StoreBlob: lambda device, effect: device.disk.write(
            effect.run, blob_file(effect.blob, effect.version), effect.data, durable=False
        ),
        WriteBlobPart: lambda device, effect: device.disk.write_chunk(
            effect.run, effect.head, effect.index, effect.data
        ),
        FinishBlob: _finish_later,
        TryDisk: lambda device, _: device.disk.try_room(),
        RemoveFiles: lambda device, effect: device.disk.remove(effect.run, effect.names),
        RemoveRun: lambda device, effect: device.disk.remove_run(effect.run),
        StartTrainer: _start_trainer,
        StopTrainer: _stop_trainer,
        Ask: _ask,
        Note: lambda _device, _effect: None,
    }
    """How each effect is done: a table, since a history is made of nothing else."""


class _Ear:
    """Hears for one life of a device."""

    __slots__ = ("_device", "_life")

    def __init__(self, device: VirtualDevice, life: int) -> None:
        self._device, self._life = device, life

    def _there(self) -> bool:
        return self._device.alive and self._device.starts == self._life

    def connected(self) -> None:
        if self._there():
            self._device.on_connected()

    def disconnected(self, reason: str) -> None:
        if self._there():
            self._device.on_disconnected(reason)

    def arrived(self, topic: str, payload: bytes, retained: bool) -> None:  # noqa: ARG002, FBT001
        if self._there():
            self._device.tell(PacketArrived(topic, payload))
