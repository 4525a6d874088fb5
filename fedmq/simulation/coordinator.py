"""The coordinator in virtual time: the real core in the thinnest of shells, which may be killed at any moment.

As in `fedmq_coordinator.shell.service`: events that come while a transaction is under way are the next batch; nothing
is said before the facts of its batch are on disk; what is said goes out in the order in which it was decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.broker import Broker, Will
from fedmq.simulation.connection import Connection
from fedmq.simulation.journal import VirtualJournal
from fedmq.simulation.mail import CheapKey, Mail
from fedmq.simulation.watch import Watch
from fedmq.simulation.world import LocalClock, Timer, World
from fedmq_coordinator.core.checkpoint import load
from fedmq_coordinator.core.effects import (
    Clear,
    Effect,
    Evaluate,
    Halt,
    Note,
    Prepare,
    Record,
    Send,
    SendChunk,
)
from fedmq_coordinator.core.events import (
    BrokerConnected,
    BrokerDisconnected,
    CoordinatorStarted,
    EvaluationFailed,
    EvaluationFinished,
    Event,
    PacketArrived,
    TimePassed,
)
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.progress import LARGE_MODEL
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.core.turns import Turns
from fedmq_protocol.envelope import COORDINATOR, Envelope, Sealer
from fedmq_protocol.limits import MAX_PACKET_BYTES
from fedmq_protocol.messages import Body, Status
from fedmq_protocol.topics import Topics

Vector = NDArray[np.float32]

Evaluation: TypeAlias = tuple[float, int, dict[str, float]]
"""Loss, number of examples, metrics."""

_BATCH_EVENTS: Final = 128
FatalMoment = Literal["before-commit", "after-commit"]


@dataclass(frozen=True)
class CoordinatorOptions:
    """What the virtual coordinator is told.

    Attributes:
        commit_s: how long a transaction takes.
        prepare_s: how long it takes to make a version aside.
        evaluate_s: how long an evaluation takes.
        max_packet_bytes: what the broker takes.
        aside_from: as for the core.
        ahead_s: by how much its wall clock is wrong.
        checkpoint_facts: a checkpoint is taken after so many facts; 0: never.
        under_way: so many updates are admitted at once; by default all, since no queue here meets its bound by them.
    """

    commit_s: float = 0.004
    prepare_s: float = 0.2
    evaluate_s: float = 0.1
    max_packet_bytes: int = MAX_PACKET_BYTES
    aside_from: int = LARGE_MODEL
    ahead_s: float = 0.0
    checkpoint_facts: int = 50
    under_way: int = 1_000_000


class VirtualCoordinator:
    """The one coordinator.

    Args:
        world: the clock, and chance.
        broker: where it connects.
        federation: its name.
        mail: seals, opens and verifies packets.
        options: what it is told.
        evaluate: measures float32[schema.size] on held-out data; None: every evaluation fails.
        watch: told of what it does.

    Attributes:
        core: the real one; one for each life.
        journal: what survives a kill.
        alive: it runs.
        starts: lives begun.
        clock: its wall clock, which may be wrong; a life goes by it at its start alone.
        halted: why the core ended it.
    """

    def __init__(
        self,
        world: World,
        broker: Broker,
        *,
        federation: str,
        mail: Mail,
        options: CoordinatorOptions | None = None,
        evaluate: Callable[[Vector], Evaluation] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.world, self.broker, self.topics = world, broker, Topics(federation)
        self.options = CoordinatorOptions() if options is None else options
        self.watch = Watch() if watch is None else watch
        self._mail, self._evaluate = mail, evaluate
        self.key = CheapKey("coordinator")
        self.journal = VirtualJournal()
        self.clock = LocalClock(world, ahead_s=self.options.ahead_s)
        self.alive = False
        self.starts = 0
        self.halted = ""
        self._requests: list[Event] = []
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._dies: tuple[FatalMoment, int, float | None] | None = None
        self._timer = Timer(world, self._time_passed)
        self._deadline: float | None = None
        self._offset = self._told_at = 0.0
        self.core: Coordinator
        self.connection: Connection
        self._sealer: Sealer

    # ------------------------------------------------------------------------------ life

    def make_core(self) -> Coordinator:
        """A core that knows the journal alone, through its bytes."""
        state = FederationState()
        state.replay(self.journal.read)
        return self._core_at(state)

    def resumed_core(self) -> Coordinator:
        """A core as a start makes it: out of the newest checkpoint, and the facts after it."""
        stored = self.journal.checkpoint
        if stored is None:
            return self.make_core()
        state = load(stored, self.journal.fetch, self.journal.after)
        state.fold(self.journal.after(state.num_facts))
        return self._core_at(state)

    def _core_at(self, state: FederationState) -> Coordinator:
        return Coordinator(
            federation=self.topics.federation,
            aside_from=self.options.aside_from,
            reader=self._mail,
            state=state,
            turns=Turns(max_under_way=self.options.under_way),
        )

    def start(self) -> None:
        """Begin a life: go on where the journal ends, put the new epoch on disk, connect."""
        if self.alive:
            return
        self.alive, self.halted = True, ""
        self.starts += 1
        life, world = self.starts, self.world
        self._inbox.clear()
        self._busy = False
        self.core = self.resumed_core()
        self._told_at = 0.0
        self._offset = max(self.clock(), self.journal.last_at) - world.now
        self.watch.coordinator_started(self)
        self._handle([CoordinatorStarted(self.core.state.epoch + 1, self.key.public_key)], at_once=True)
        self._sealer = self._mail.sealer(sender=COORDINATOR, epoch=self.core.state.epoch, key=self.key)
        self.connection = Connection(
            world,
            self.broker,
            f"{self.topics.federation}-coordinator",
            filters=self.topics.coordinator_filters(),
            will=self._will,
            owner=_Ear(self, life),
            chance=world.stream("reconnect", COORDINATOR, life),
        )
        self.connection.open()
        for request in self._requests:
            self.tell(request)
        self._arm()

    def fail_at(self, moment: FatalMoment, *, sends: int = 0, down_s: float | None = None) -> None:
        """Let it be killed at the next batch that has facts.

        Args:
            moment: with the facts not on disk, or on disk.
            sends: after so many of the batch's messages were handed over; counts after the commit alone.
            down_s: when it is started again, after that; None: not by itself.
        """
        self._dies = moment, sends, down_s

    def spare(self) -> None:
        """Take back what `fail_at` asked for."""
        self._dies = None

    @property
    def is_busy(self) -> bool:
        """Whether facts are on their way to the disk; until they are there, nothing is said or handled."""
        return self._busy

    def kill(self, *, down_s: float | None = None, why: str = "it was killed") -> None:
        """End its process; what is not on disk is gone."""
        if not self.alive:
            return
        self.alive = False
        self._dies = None
        self._timer.set(None)
        self.connection.vanish()
        self.watch.coordinator_died(self, why)
        if down_s is not None:
            life = self.starts
            self.world.after(down_s, lambda: self.start() if self.starts == life else None)

    def stop(self) -> None:
        """End it in good order."""
        if not self.alive:
            return
        goodbye = self._status(online=False, detail="stopped")
        topic = self.topics.coordinator_status
        self.connection.publish(topic, self.seal(topic, goodbye), retain=True)
        self._leave("it was stopped")

    def _leave(self, why: str) -> None:
        self.alive = False
        self._timer.set(None)
        self.connection.close()
        self.watch.coordinator_died(self, why)

    # ------------------------------------------------------------------------------ events

    @property
    def now(self) -> float:
        """The clock of this life: the wall's at its start, never before the journal's end, and never put back."""
        return max(self._told_at, self.world.now + self._offset)

    def submit(self, event: Event) -> None:
        """What the operator asks for; asked again after a kill until its facts are on disk."""
        self._requests.append(event)
        if self.alive:
            self.tell(event)

    def opened(self, topic: str, payload: bytes) -> Envelope:
        """A packet as its core reads it.

        Raises:
            RemoteError: it is none.
        """
        return self._mail.open(topic, payload)

    @property
    def deadline(self) -> float | None:
        """When the core said that it wants to be woken, after the last batch."""
        return self._deadline

    @property
    def told_at(self) -> float:
        """When the core was told something last, by its clock."""
        return self._told_at

    def tell(self, event: Event) -> None:
        """Put an event into the inbox."""
        if not self.alive:
            return
        self._inbox.append(event)
        if not self._busy:
            self._work()

    @property
    def is_writing(self) -> bool:
        """Whether facts are on their way to the disk."""
        return self._busy

    def _later(self, delay_s: float, make: Callable[[], Event]) -> None:
        life = self.starts
        self.world.after(delay_s, lambda: self.tell(make()) if self.alive and self.starts == life else None)

    def _work(self) -> None:
        """Handle what is queued, batch after batch, while it is not waiting for a disk."""
        while self._inbox and self.alive and not self._busy:
            batch = [self._inbox.popleft() for _ in range(min(len(self._inbox), _BATCH_EVENTS))]
            self._handle(batch)
        if self.alive and not self._busy:
            self._arm()

    def _handle(self, batch: list[Event], *, at_once: bool = False) -> None:
        effects: list[Effect] = []
        now = self.now
        if self._deadline is not None and any(isinstance(event, TimePassed) for event in batch):
            now = max(now, self._deadline)  # the timer has rounded
        self._told_at = now
        for event in batch:
            self.watch.coordinator_told(self, event)
            effects += self.core.handle(event, now=now)
        if at_once or not any(isinstance(effect, Record) for effect in effects):
            self._committed(effects, batch, at_once=at_once)
            return
        self._busy = True
        life = self.starts

        def committed() -> None:
            if self.alive and self.starts == life:
                self._busy = False
                self._committed(effects, batch)
                self._work()

        self.world.after(self.options.commit_s, committed)

    def _committed(self, effects: list[Effect], batch: list[Event], *, at_once: bool = False) -> None:
        """The facts reach the disk; then everything else is done."""
        facts = [effect.fact for effect in effects if isinstance(effect, Record)]
        dies = self._dies if facts and not at_once else None
        if dies is not None and dies[0] == "before-commit":
            self.kill(down_s=dies[2], why="it was killed before its facts were on disk")
            return
        if facts:
            self.journal.append(facts)
            self._requests = [asked for asked in self._requests if all(asked is not told for told in batch)]
            self.watch.journaled(self, facts)
            if 0 < self.options.checkpoint_facts <= self.journal.num_after_checkpoint:
                self.journal.keep(self.core.checkpoint())
        sends = 0
        for effect in effects:
            if isinstance(effect, Send | SendChunk | Clear):
                if dies is not None and sends == dies[1]:
                    break
                sends += 1
            self._perform(effect)
            self.watch.coordinator_did(self, effect)
        if dies is not None:
            self.kill(down_s=dies[2], why=f"it was killed after {sends} messages of a batch")

    def _arm(self) -> None:
        self._deadline = deadline = self.core.next_deadline()
        self._timer.set(None if deadline is None else deadline - self._offset)

    def _time_passed(self) -> None:
        self.tell(TimePassed())

    # ------------------------------------------------------------------------------ effects

    def seal(self, topic: str, body: Body, *, packed: bool = False) -> bytes:
        """A packet's payload."""
        return self._sealer.seal(topic, body, packed=packed)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Record() | Note():
                pass
            case Send(topic, body, retain):
                self._say(topic, body, retain=retain, packed=effect.packed)
            case SendChunk(topic=topic, retain=retain):
                self._say(topic, effect.body, retain=retain)
            case Clear(topic):
                self.connection.publish(topic, b"", retain=True)
            case Prepare(work=work):
                self._later(self.options.prepare_s, work)
            case Evaluate():
                self._later(self.options.evaluate_s, lambda: self._evaluated(effect))
            case Halt(reason):
                self.halted = reason
                self._leave(reason)
            case _:
                assert_never(effect)

    def _say(self, topic: str, body: Body, *, retain: bool, packed: bool = False) -> None:
        if self.connection.is_connected:
            self.connection.publish(topic, self.seal(topic, body, packed=packed), retain=retain)

    def _evaluated(self, wanted: Evaluate) -> Event:
        if self._evaluate is None:
            return EvaluationFailed(wanted.run, wanted.version, "there is no model host")
        return EvaluationFinished(wanted.run, wanted.version, *self._evaluate(wanted.vector))

    def _status(self, *, online: bool, detail: str = "") -> Status:
        return Status(
            online=online, session=self._sealer.epoch, public_key=self.key.public_key, detail=detail
        )

    def _will(self) -> Will:
        topic = self.topics.coordinator_status
        return Will(topic, self.seal(topic, self._status(online=False, detail="vanished")))

    def on_connected(self) -> None:
        self._say(self.topics.coordinator_status, self._status(online=True), retain=True)
        self.tell(BrokerConnected(self.options.max_packet_bytes))


class _Ear:
    """Hears for one life of the coordinator."""

    __slots__ = ("_coordinator", "_life")

    def __init__(self, coordinator: VirtualCoordinator, life: int) -> None:
        self._coordinator, self._life = coordinator, life

    def _there(self) -> bool:
        return self._coordinator.alive and self._coordinator.starts == self._life

    def connected(self) -> None:
        if self._there():
            self._coordinator.on_connected()

    def disconnected(self, reason: str) -> None:
        if self._there():
            self._coordinator.tell(BrokerDisconnected(reason))

    def arrived(self, topic: str, payload: bytes, retained: bool) -> None:  # noqa: FBT001 - as it arrives
        if self._there():
            self._coordinator.tell(PacketArrived(topic, payload, retained))
