"""The coordinator's loop: events in, the core decides, its facts go to disk, its effects go out.

    while running:
        events   = all that are queued, and `TimePassed` if the core's deadline has come
        effects  = what `core.handle` says to each
        journal  <- every Record of the batch, in one transaction          (group commit)
        broker   <- every Send, SendChunk and Clear, only now
        aside    <- Prepare to a thread, Evaluate to the model host, Note to the log

While a transaction is under way, events queue up and become the next batch, so the disk sets the size of batches and
not the pace of events. The inbox is bounded: when it is full, messages stay with the broker.

An exception out of the core ends the process: what it has in memory may not be what is on disk, and the disk is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, assert_never

from fedmq_coordinator.core.blobs import Shelf
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
    Event,
    PacketArrived,
    TimePassed,
)
from fedmq_coordinator.core.facts import Fact, VersionPublished
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.retention import DAY_S, RetentionSettings
from fedmq_coordinator.core.showing import best_version
from fedmq_coordinator.shell.checkpointing import Checkpointer
from fedmq_coordinator.shell.clock import Clock
from fedmq_coordinator.shell.echo import Echo
from fedmq_coordinator.shell.evaluator import Evaluator
from fedmq_coordinator.shell.model_host import ModelHost
from fedmq_coordinator.shell.outbox import Outbox, Publisher
from fedmq_coordinator.shell.retention import collect
from fedmq_coordinator.shell.standing import Standing
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.tally import Tally
from fedmq_protocol import aio
from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import FedmqError, RemoteError
from fedmq_protocol.limits import MAX_PACKET_BYTES
from fedmq_protocol.messages import Status
from fedmq_protocol.signing import key_id
from fedmq_protocol.topics import Topics

_log = logging.getLogger(__name__)

INBOX_EVENTS: Final = 256
_BATCH_EVENTS: Final = 128
_FAREWELL_S: Final = 2.0
_TICK_S: Final = 0.02
_TURN_S: Final = 0.005
"""After so much work of the core, the broker's keepalive and the API have their turn."""
_WITNESS_S: Final = 2.0
"""A broker answers a subscription to a retained message at once, or has none."""
_STANDING: Final = "standing"
_MAX_STRANGERS: Final = 16
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_FIELDS: Final = ("run", "round", "device")


class HaltedError(FedmqError):
    """The core says that this coordinator must end, for example because a newer one has taken over."""


class OutrunError(HaltedError):
    """Others know a newer epoch than this coordinator's, or the same: it may begin again with one above `epoch`."""

    def __init__(self, reason: str, epoch: int) -> None:
        super().__init__(reason)
        self.epoch = epoch


class StoppingError(FedmqError):
    """What was asked for cannot be done any more: the coordinator ends."""


class BrokerLink(Publisher, Protocol):
    """As much of a `fedmq_protocol.aio.Connection` as is needed here."""

    def events(self) -> AsyncIterator[aio.Event]: ...

    async def subscribe(self, filters: Sequence[str]) -> None: ...

    async def unsubscribe(self, filters: Sequence[str]) -> None: ...

    def reconnect(self) -> None: ...


@dataclass
class _Queued:
    event: Event
    done: asyncio.Future[None] | None = None
    """Told when the event's facts are on disk."""


class Service:
    """Drives one core. All happens in one event loop, but for the journal's transactions and what is made aside.

    Args:
        core: replayed already; nobody else may touch it but to look.
        journal: where its facts go.
        shelf: where the core puts what is large.
        clock: seconds since the epoch.
        model_host: who evaluates.
        sources: run -> where its task lies.
        num_folded: how many facts were folded at the start, since there is no newer checkpoint.
        retention: for how long what nothing needs is kept.
        max_packet_bytes: the largest packet that we send, whatever more the broker takes.
    """

    def __init__(  # noqa: PLR0913 - what it is made of, each by name
        self,
        core: Coordinator,
        journal: Journal,
        shelf: Shelf,
        *,
        clock: Clock,
        model_host: ModelHost,
        sources: dict[str, str],
        num_folded: int = 0,
        retention: RetentionSettings = RetentionSettings(),  # noqa: B008  # frozen
        max_packet_bytes: int = MAX_PACKET_BYTES,
    ) -> None:
        self.core = core
        self.journal = journal
        self.shelf = shelf
        self.clock = clock
        self.model_host = model_host
        self.sources = sources
        self.retention = retention
        self._max_packet_bytes = max_packet_bytes
        self._inbox: asyncio.Queue[_Queued] = asyncio.Queue(INBOX_EVENTS)
        self._evaluator = Evaluator(model_host, sources, self._tell)
        self.tally = Tally()
        self._outbox: Outbox | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._checkpointer = Checkpointer(core, journal, facts=num_folded)
        self._pruner = ThreadPoolExecutor(1, thread_name_prefix="retention")
        self._to_prepare: asyncio.Queue[Prepare] = asyncio.Queue()
        self._to_prune: asyncio.Queue[str] = asyncio.Queue()
        self._handling = asyncio.Lock()
        self._asked: set[asyncio.Future[None]] = set()
        self._witness: tuple[str, asyncio.Future[bytes]] = "", asyncio.Future()
        self._hearing: asyncio.Future[None] = asyncio.Future()
        self._ticked = False
        self._halted: Halt | None = None
        self._stopping = False
        self._who = ""

    async def begin(self, epoch: int, public_key: bytes, who: str = "", *, outrun: bool = False) -> None:
        """Tell the core that it starts, and put its epoch on disk, before the broker hears of it.

        Args:
            epoch: above every one before.
            public_key: by which devices know this coordinator.
            who: tells this process from others with the same key.
            outrun: whether the federation has heard of newer epochs than the journal.

        Raises:
            StoreError: the journal cannot be written.
        """
        self._who = who
        await self._handle([_Queued(CoordinatorStarted(epoch, public_key, who, outrun))])

    async def run(self, link: BrokerLink, sealer: Sealer, topics: Topics, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then say goodbye.

        Raises:
            HaltedError: the core says that this coordinator must end.
            OutrunError: it may begin again, with a newer epoch.
            StoreError: the journal cannot be written.
        """
        standing = Standing.load(await asyncio.to_thread(self.journal.note, _STANDING))
        self._outbox = Outbox(link, sealer, standing=standing, keep=self._keep_standing)
        self._outbox.start()
        here = Status(online=True, session=sealer.epoch, public_key=sealer.public_key, detail=self._who)
        echo = self._echo(link, sealer, topics.coordinator_status, here)
        echoing = asyncio.create_task(echo.run(), name="echo")
        tasks = [
            asyncio.create_task(self._listen(link, here, topics, echo), name="listen"),
            echoing,
            asyncio.create_task(self._work(), name="work"),
            asyncio.create_task(self._prepare(), name="prepare"),
            asyncio.create_task(self._prune(), name="prune"),
            asyncio.create_task(self._evaluator.run(), name="evaluate"),
        ]
        stopped = asyncio.create_task(stop.wait(), name="stop")
        well = False
        try:
            done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
            echoing.cancel()  # it must not say after the goodbye that somebody is here
            if self._halted is None:
                goodbye = Status(
                    online=False,
                    session=sealer.epoch,
                    public_key=sealer.public_key,
                    detail=f"stopped: {self._who}",
                )
                self._outbox.put_last(Send(topics.coordinator_status, goodbye, retain=True))
            await self._outbox.flush(_FAREWELL_S)
            well = self._halted is None
        finally:
            self._stopping = True
            self.journal.database.hurry()
            self._hearing.cancel()
            for task in (*tasks, stopped):
                task.cancel()
            await asyncio.gather(*tasks, stopped, self._hearing, return_exceptions=True)
            await self._outbox.stop()
            for future in list(self._asked):
                future.set_exception(StoppingError("the coordinator is stopping"))
            self._maker.shutdown()
            self._pruner.shutdown()
            self._writer.shutdown()
            await self._checkpointer.close(well=well)
        halted = self._halted
        if halted is not None and halted.above is not None:
            raise OutrunError(halted.reason, halted.above)
        if halted is not None:
            raise HaltedError(halted.reason)

    async def submit(self, event: Event) -> None:
        """Have the core handle an event; return once what it decided is on disk.

        Raises:
            StoppingError: the coordinator ends before that.
        """
        if self._stopping:
            raise StoppingError("the coordinator is stopping")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.add(done)
        done.add_done_callback(self._asked.discard)
        await self._inbox.put(_Queued(event, done))
        await done

    async def settled(self) -> None:
        """Return once all that the core has decided by now is on disk: what a view shows may not be in the journal yet.

        Where writing fails, this returns as well, and the coordinator ends.
        """
        async with self._handling:
            pass

    # --------------------------------------------------------------------------------------------- tasks

    def _echo(self, link: BrokerLink, sealer: Sealer, topic: str, here: Status) -> Echo:
        """Whoever subscribes is sent what is retained: that costs devices nothing, as saying it again would."""

        async def subscribe() -> None:
            await link.subscribe([topic])

        async def publish() -> None:
            await link.publish(topic, sealer.seal(topic, here), retain=True)

        return Echo(
            [subscribe, publish],
            link.reconnect,
            lambda: self.core.active is not None and not self._inbox.full(),
        )

    async def _listen(self, link: BrokerLink, here: Status, topics: Topics, echo: Echo) -> None:
        """From the broker into the inbox; what does not fit stays with the broker."""
        assert self._outbox is not None
        strangers: set[bytes] = set()
        async for event in link.events():
            match event:
                case aio.Message(topic=topic, payload=payload) if topic == self._witness[0]:
                    if not self._witness[1].done():
                        self._witness[1].set_result(payload)
                case aio.Message(topic=topic, payload=payload, retained=retained):
                    echo.heard(sought=topic == topics.coordinator_status)
                    if topic == topics.coordinator_status:
                        _warn_of_strangers(here.public_key, topic, payload, strangers)
                    packet = PacketArrived(topic, payload, retained)
                    if not self.core.ignores(packet, now=self.clock()):
                        await self._tell(packet)
                case aio.Connected(max_packet_bytes=theirs, refused=refused):
                    for topic_filter in refused:
                        _log.error("the broker refuses the coordinator's subscription to %s", topic_filter)
                    _log.info("connected to the broker")
                    await asyncio.to_thread(self.journal.check_fence)  # who was stopped meanwhile is silent
                    self._outbox.put(Send(topics.coordinator_status, here, retain=True))
                    self._call_witness(link, self._outbox)
                    ours = self._max_packet_bytes
                    await self._tell(BrokerConnected(min(ours, theirs or ours)))
                    echo.set_connected(True)  # not before: while the database is away, nothing is heard
                case aio.Disconnected(reason=reason, retry_in_s=retry_in_s):
                    _log.warning("broker: %s; trying again in %.1f s, and from then on", reason, retry_in_s)
                    echo.set_connected(False)
                    self._hearing.cancel()
                    self._outbox.drop_all()
                    await self._tell(BrokerDisconnected(reason))
                    await asyncio.to_thread(self.journal.check_fence)  # before it would throw a newer one out
                case _:
                    assert_never(event)

    def _call_witness(self, link: BrokerLink, outbox: Outbox) -> None:
        """Learn, aside, whether the broker still has the chunks that it acknowledged before."""
        topic = outbox.call_witness()
        self._hearing.cancel()
        if topic is not None:
            self._witness = topic, asyncio.get_running_loop().create_future()
            self._hearing = asyncio.create_task(self._hear_witness(link, outbox), name="witness")

    async def _hear_witness(self, link: BrokerLink, outbox: Outbox) -> None:
        topic, heard = self._witness
        payload: bytes | None = None
        try:
            with contextlib.suppress(TimeoutError, aio.RefusedError):
                async with asyncio.timeout(_WITNESS_S):
                    await link.subscribe([topic])
                    payload = await heard
            outbox.testify(payload)
        finally:
            await link.unsubscribe(
                [topic]
            )  # of a lost connection, too: it would come again with the next one
            if self._witness[1] is heard:
                self._witness = "", heard

    def _keep_standing(self, data: bytes) -> None:
        kept = asyncio.get_running_loop().run_in_executor(
            self._writer, self.journal.keep_note, _STANDING, data
        )
        kept.add_done_callback(_log_failure)

    async def _tell(self, event: Event) -> None:
        await self._inbox.put(_Queued(event))

    async def _prepare(self) -> None:
        """Versions of large models are made in a thread: NumPy, hashing and the database let the others run."""
        loop = asyncio.get_running_loop()
        while True:
            wanted = await self._to_prepare.get()
            await self._tell(await loop.run_in_executor(self._maker, wanted.work))

    async def _prune(self) -> None:
        """Retention takes its time, and others write meanwhile. All runs have their turn at the start, and daily."""
        loop = asyncio.get_running_loop()
        run: str | None = None
        while True:
            runs = self.core.runs
            best = {name: best_version(runs[name]) for name in (runs if run is None else [run])}
            act = partial(collect, self.journal, self.retention, best=best, now=self.clock(), run=run)
            await loop.run_in_executor(self._pruner, act)
            try:
                async with asyncio.timeout(DAY_S):
                    run = await self._to_prune.get()
            except TimeoutError:
                run = None

    async def _work(self) -> None:
        while self._halted is None:
            batch = await self._next_batch()
            async with self._handling:
                await self._handle(batch)

    async def _next_batch(self) -> list[_Queued]:
        deadline = self.core.next_deadline()
        batch: list[_Queued] = []
        try:
            async with asyncio.timeout(None if deadline is None else self._until(deadline)):
                batch.append(await self._inbox.get())
        except TimeoutError:
            pass
        while len(batch) < _BATCH_EVENTS and not self._inbox.empty():
            batch.append(self._inbox.get_nowait())
        self._ticked = deadline is not None and self.clock() >= deadline
        if self._ticked:
            batch.append(_Queued(TimePassed()))
        return batch

    def _until(self, deadline: float) -> float:
        """Seconds to wait; a deadline that stays in the past although the core was told must not spin."""
        return max(deadline - self.clock(), _TICK_S if self._ticked else 0.0)

    async def _handle(self, batch: Sequence[_Queued]) -> None:
        effects: list[Effect] = []
        began, turn = time.thread_time(), time.perf_counter()
        for queued in batch:
            effects += self.core.handle(queued.event, now=self.clock())
            if time.perf_counter() - turn > _TURN_S:
                self._checkpointer.work_s += time.thread_time() - began
                await asyncio.sleep(0)
                began, turn = time.thread_time(), time.perf_counter()
        self._checkpointer.work_s += time.thread_time() - began
        facts = [effect.fact for effect in effects if isinstance(effect, Record)]
        if facts:
            await self._write(facts)
        for effect in effects:
            self._perform(effect)
        if self._checkpointer.due:
            self._checkpointer.take()
        for queued in batch:
            if queued.done is not None and not queued.done.done():
                queued.done.set_result(None)

    async def _write(self, facts: list[Fact]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self.journal.append, facts)
        self._checkpointer.facts += len(facts)
        for fact in facts:
            if isinstance(fact, VersionPublished) and fact.private is not None:
                self._to_prune.put_nowait(fact.run)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Record(fact=fact):  # on disk already
                self.tally.count(fact)
            case Send() | SendChunk() | Clear():
                if self._outbox is not None:
                    self._outbox.put(effect)
            case Prepare():
                self._to_prepare.put_nowait(effect)
            case Evaluate():
                self._evaluator.put(effect)
            case Note(level=level, text=text, fields=fields):
                known: dict[str, object] = {name: fields[name] for name in _FIELDS if name in fields}
                _log.log(_LEVELS[level], text, extra=known | {"fields": fields})
            case Halt():
                self._halted = effect
            case _:
                assert_never(effect)


def _log_failure(kept: asyncio.Future[None]) -> None:
    if not kept.cancelled() and (error := kept.exception()) is not None:
        _log.warning("what stands at the broker is not remembered: %s", error)


def _warn_of_strangers(public_key: bytes, topic: str, payload: bytes, strangers: set[bytes]) -> None:
    """Say once for each other key that speaks as a coordinator. The core heeds our own key's statuses alone."""
    with contextlib.suppress(RemoteError):
        envelope = open_envelope(topic, payload)
        if envelope.key_id not in strangers | {key_id(public_key)} and len(strangers) < _MAX_STRANGERS:
            strangers.add(envelope.key_id)
            _log.error(
                "another coordinator, with another key (%s), speaks for this federation: stop it, or give one of the "
                "two another federation",
                envelope.key_id.hex(),
            )
