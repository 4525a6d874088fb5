"""The agent's one loop: a packet, an answer of the trainer, or the clock -> event -> effects.

Events are taken one at a time, and their effects are done in order before the next one: a state is on disk before the
message that relies on it is queued. Nothing here waits for the network or for the trainer: both have tasks of their
own, so that keepalives go out while PyTorch computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import random
import time
from collections.abc import Coroutine
from typing import Any, assert_never

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
    Request,
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
    TrainerStarted,
)
from fedmq_edge_agent.core.machine import Agent, AgentLimits
from fedmq_edge_agent.shell.board import LOOK_S, Board
from fedmq_edge_agent.shell.disk import Disk
from fedmq_edge_agent.shell.notify import Notifier
from fedmq_edge_agent.shell.post import Post
from fedmq_edge_agent.shell.reporting import Reporter
from fedmq_edge_agent.shell.settings import AgentSettings
from fedmq_edge_agent.shell.trainer import Child, StartChild, TrainerCalls, starter
from fedmq_edge_agent.shell.writing import DiskError, to_the_end
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_protocol import aio
from fedmq_protocol.errors import ConnectionFailedError, FedmqError, StoreError
from fedmq_protocol.topics import Topics

_log = logging.getLogger("fedmq_edge_agent")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
GOODBYE_S = 1.0
FLUSH_S = 0.5
MURMUR_S = 60.0


class AgentService:
    """One device's supervisor.

    Args:
        settings: what it is told.
        start_child: how it gets a trainer; by default as the settings say.
        notifier: the line to systemd; None: there is none.
        board: tells of power, heat, clock and link.

    Raises:
        ConfigError: a setting cannot work.
        StoreError: the state folder cannot be used, or is in use.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        start_child: StartChild | None = None,
        notifier: Notifier | None = None,
        board: Board | None = None,
    ) -> None:
        settings.check()
        self.settings = settings
        self._topics = Topics(settings.federation)
        self._disk = Disk(settings.state_dir)
        try:
            configured = settings.read_coordinator_key()
            state = self._disk.load_state()
            key = self._disk.key(state)
            indexes, parts = self._disk.load_models(state)
            self.agent = Agent(
                AgentLimits(
                    federation=settings.federation,
                    device=settings.id,
                    outbox_limit=settings.outbox_limit,
                    agent_version=_version(),
                    times=settings.trainer.limits(),
                    daily_bytes=settings.daily_bytes,
                    conditions=settings.conditions.rules(),
                ),
                public_key=key.public_key,
                coordinator_key=self._disk.pinned_key() if configured is None else configured,
                state=state,
                indexes=indexes,
                parts=parts,
                chance=random.Random().random,  # noqa: S311  # jitter, not a secret
                clock_s=time.time(),
            )
        except BaseException:
            self._disk.close()
            raise
        self._session = 0
        self._leaving = False
        self._connection = aio.Connection(
            settings.broker,
            client_id=f"fedmq-{settings.federation}-{settings.id}",
            will=self._will,
            flush_timeout_s=FLUSH_S,
        )
        self._post = Post(
            self._connection,
            topics=self._topics,
            device=settings.id,
            key=key,
            disk=self._disk,
            payload_lost=self._payload_lost,
            packs=lambda: self.agent.desk.packs,
        )
        self._start_child = starter(settings.trainer) if start_child is None else start_child
        self._calls = TrainerCalls(settings, self._disk)
        self._child: Child | None = None
        self._notifier = Notifier({}) if notifier is None else notifier
        self._board = Board() if board is None else board
        self._reporter = Reporter(
            settings,
            self.agent,
            self._notifier,
            traffic=lambda: self._post.traffic,
            trainer_pid=lambda: None if self._child is None else self._child.pid,
        )
        self._turn = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None
        self._last_said = time.monotonic()

    # ------------------------------------------------------------------------------ life

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set.

        A disk that does not take what is to be kept ends nothing: it is said, and tried again.
        """
        self._failed = asyncio.get_running_loop().create_future()
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        problem = ""
        try:
            await self._connection.subscribe(self._topics.device_filters(self.settings.id))
            await self._handle(AgentStarted())  # first of all: a session number is used once it is reserved
            if self.agent.desk.conditions.rules.any:
                await self._look_at_board()
                self._spawn(self._watch_board(), "board")
            await self._connection.start()
            self._notifier.ready()
            self._spawn(self._reporter.run(), "status")
            self._spawn(self._reporter.ping(self._turn), "watchdog")
            self._spawn(self._post.run(), "post")
            self._spawn(self._listen(), "broker")
            self._spawn(self._murmur(), "murmur")
            await asyncio.wait({stopped, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
        except FedmqError as error:
            problem = str(error)
            raise
        finally:
            stopped.cancel()
            await self._leave(problem)
        kept = len(self.agent.desk.outbox)
        updates = f"{kept} update{'' if kept == 1 else 's'}"
        self._say(logging.INFO, f"stopped; {updates} kept in the outbox for next time" if kept else "stopped")

    async def _leave(self, problem: str) -> None:
        """Say goodbye, end the child, let go of everything; quick, and whatever else goes wrong."""
        self._leaving = True
        self._notifier.stopping()
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        if self._child is not None:
            self._child.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._count()
        with contextlib.suppress(StoreError):  # nothing would be lost, only learnt again
            for effect in self.agent.last_effects():
                await self._perform(effect)
        if self.agent.session is not None:
            goodbye = self.agent.presence(online=False, session=self.agent.session)
            goodbye = goodbye.model_copy(update={"problem": problem[:1_000]})
            with contextlib.suppress(ConnectionFailedError, ValueError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._post.goodbye(goodbye)
        await self._connection.stop()
        if self._child is not None:
            with contextlib.suppress(Exception):
                await self._child.close()
        self._reporter.close()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()
        self._disk.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"{self.settings.id}-{name}")
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None and self._failed is not None:
            error = task.exception()
            if not self._failed.done() and error is not None:
                self._failed.set_exception(error)

    # ------------------------------------------------------------------------------ events

    async def _listen(self) -> None:
        async for event in self._connection.events():
            match event:
                case aio.Connected(max_packet_bytes=theirs):
                    limit = min(self.settings.broker.max_packet_bytes, theirs or 1 << 28)
                    self._say(logging.INFO, f"connected to the broker at {self.settings.broker.address}")
                    await self._handle(Connected(self._session, limit))
                case aio.Disconnected(reason=reason):
                    self._say(logging.WARNING, f"{reason}; trying again")
                    self._post.connection_lost()
                    await self._handle(Disconnected(reason))
                case aio.Message(topic=topic, payload=payload):
                    await self._handle(PacketArrived(topic, payload))
                case _:
                    assert_never(event)

    async def _handle(self, event: Event) -> None:
        async with self._turn:
            self._count()
            following: Event | None = event
            while following is not None:
                following = await self._do(self.agent.handle(following, now=time.monotonic()))
            self._arm()
            self._reporter.look()

    async def _do(self, effects: list[Effect]) -> Event | None:
        """Do all that can be done; return what the disk had to say, if the core is to hear of it."""
        refused: list[Written] = []
        reason: DiskError | None = None
        for effect in effects:
            if relies_on_commit(effect) and any(isinstance(other, CommitState) for other in refused):
                continue
            try:
                await self._perform(effect)
            except DiskError as error:
                assert isinstance(effect, Written)
                refused.append(effect)
                reason = error
        if reason is not None:
            return DiskRefused(tuple(refused), reason.fault, str(reason))
        return DiskMended() if any(isinstance(effect, TryDisk) for effect in effects) else None

    def _count(self) -> None:
        sent, received = self._post.traffic
        self.agent.count(sent=sent, received=received, clock_s=time.time(), now=time.monotonic())

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.agent.next_deadline()
        if deadline is not None:
            delay_s = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        self._spawn(self._handle(TimePassed()), "clock")

    def _payload_lost(self, run: str, counter: int, file: str) -> None:
        self._spawn(self._handle(PayloadLost(run, counter, file)), "payload")

    def _will(self) -> aio.Will:
        """The last will of a connection that is about to be made, with a session number of its own."""
        self._session = self.agent.next_session()
        if not self._leaving:
            self._spawn(self._handle(TimePassed()), "session")  # attempts in vain use numbers too
        self._post.begin_session(self._session)
        topic = self._topics.presence(self.settings.id)
        presence = self.agent.presence(online=False, session=self._session)
        return aio.Will(topic, self._post.seal(topic, presence), retain=True)

    # ------------------------------------------------------------------------------ effects

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Subscribe() | Unsubscribe() | Send() | SendUpdate() | SendUploadChunk():
                self._post.put(effect)
            case Reconnect(session):
                if session == self._session:
                    self._connection.reconnect()
            case RemoveFiles(run, names):
                self._disk.remove(run, names)
            case RemoveRun(run):
                await asyncio.to_thread(self._disk.remove_run, run)
            case StartTrainer(generation):
                self._spawn(self._start_trainer(generation), "trainer")
            case StopTrainer():
                self._stop_trainer()
            case Ask(generation, request):
                self._spawn(self._ask(generation, request), "trainer")
            case Note(level, text, fields):
                self._say(_LEVELS[level], text, **fields)
            case _:
                await self._write(effect)

    async def _write(self, effect: Written) -> None:
        match effect:
            case CommitState(state):
                await to_the_end(self._disk.save_state, state)
            case PinCoordinator(public_key):
                await to_the_end(self._disk.pin, public_key)
            case SaveModelIndex(run, index):
                self._disk.save_index(run, index)
            case StoreBlob(run, blob, version, data):
                self._disk.store_blob(run, blob, version, data)
            case WriteBlobPart(run, head, chunk, data):
                self._disk.write_chunk(run, head, chunk, data)
            case FinishBlob():
                self._spawn(self._finish(effect), "blob")
            case TryDisk(room_bytes):
                await to_the_end(self._disk.try_room, room_bytes)
            case _:
                assert_never(effect)

    async def _finish(self, effect: FinishBlob) -> None:
        try:
            ok, damaged = await asyncio.to_thread(
                self._disk.finish_blob, effect.run, effect.blob, effect.version, effect.ref
            )
        except DiskError as error:
            await self._handle(DiskRefused((effect,), error.fault, str(error)))
            return
        await self._handle(BlobFinished(effect.run, effect.blob, effect.version, ok, damaged))

    async def _watch_board(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look_at_board()

    async def _look_at_board(self) -> None:
        await self._handle(ConditionsRead(await self._board.read(self.agent.desk.conditions.rules)))

    async def _murmur(self) -> None:
        """Say what we wait for when there was nothing to say for a while."""
        while True:
            rest_s = self._last_said + MURMUR_S - time.monotonic()
            if rest_s <= 0:
                self._say(logging.INFO, self.agent.waiting(now=time.monotonic()))
                rest_s = MURMUR_S
            await asyncio.sleep(rest_s)

    def _say(self, level: int, text: str, **fields: str | float) -> None:
        if level >= logging.INFO:
            self._last_said = time.monotonic()
        run, announced = self.agent.desk.place(str(fields.get("run", "")))
        extra = {"device": self.settings.id, "run": run, "round": announced, "fields": fields}
        _log.log(level, "%s", text, extra=extra)

    # ------------------------------------------------------------------------------ the trainer child

    async def _start_trainer(self, generation: int) -> None:
        try:
            child = await self._start_child()
        except (TrainerError, OSError) as error:
            await self._handle(TrainerDied(generation, f"it cannot be started: {error}"))
            return
        if generation != self.agent.desk.trainer.generation:  # given up meanwhile
            await _end(child)
            return
        self._child = child
        await self._handle(TrainerStarted(generation))

    async def _ask(self, generation: int, request: Request) -> None:
        child = self._child
        if child is None:  # it was ended in the moment in which it was asked: nobody waits for an answer
            return
        try:
            answer = await self._calls.carry_out(child, request)
        except TrainerError as error:
            if self._child is child:
                self._child = None
            await _end(child)
            await self._handle(TrainerDied(generation, error.detail))
        else:
            await self._handle(TrainerAnswered(generation, answer))

    def _stop_trainer(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            self._spawn(_end(child), "trainer-end")


async def _end(child: Child) -> None:
    child.kill()
    await child.close()


def _version() -> str:
    try:
        return importlib.metadata.version("fedmq")
    except importlib.metadata.PackageNotFoundError:
        return "0"
