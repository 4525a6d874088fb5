"""Stand-ins for what surrounds a coordinator: a model host of a few numbers, and a device on a real broker.

The task: find `TARGET`. A device's training moves half of the way there, so that with uncompressed updates from all,
the replica after k rounds is TARGET * (1 - 0.5 ** k), in closed form.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.settings import (
    CompressionSettings,
    RunSettings,
    SelectionSettings,
    Start,
)
from fedmq_coordinator.core.views import RunView
from fedmq_coordinator.shell.client import Client
from fedmq_coordinator.shell.main import run_coordinator
from fedmq_coordinator.shell.model_host import Beginning, TaskDescription
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_protocol.aio import Connected, Connection, Message, Will
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import CodecSpec, apply_delta, decode_snapshot, encode_seeded, encode_update
from fedmq_protocol.codecs.seeded import Segment
from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import RemoteError, UsageError
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Evaluation,
    Get,
    Lease,
    ModelChunk,
    Notice,
    Presence,
    Receipt,
    TaskRef,
    Update,
    UpdateHeader,
)
from fedmq_protocol.sampling import in_cohort
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

T = TypeVar("T")

SIZE = 24
SCHEMA = TensorSchema(entries=(TensorEntry(name="w", shape=(4, 6), dtype="float32", role="parameter"),))
TARGET = np.linspace(-2.0, 3.0, SIZE, dtype=np.float32)
TASK = TaskRef(name="find", version="1", schema_hash=SCHEMA.hash)

PLAIN = RunSettings(
    rounds=3,
    federated_evaluation=True,
    compression=CompressionSettings(
        up="float32", density=1.0, down="float32", down_density=1.0, snapshot="float32"
    ),
    selection=SelectionSettings(min_available_devices=2, deadline_factor=0.0, round_timeout_s=120.0),
)
"""Three rounds, nothing compressed, and nobody is too late: a machine may stand still for a while."""


def loss_of(vector: NDArray[np.float32]) -> float:
    return float(np.mean((vector - TARGET) ** 2))


class FakeModelHost:
    """A `ModelHost` whose task is to find `TARGET`. Its tasks are called `find.py`; others are refused."""

    def __init__(self) -> None:
        self.evaluated: list[NDArray[np.float32]] = []
        self.may_evaluate = asyncio.Event()
        self.may_evaluate.set()
        self.breaks: Exception | None = None
        self.closed = False

    async def describe(self, task: str) -> TaskDescription:
        if not task.endswith("find.py"):
            raise UsageError(f"{task}:3: NameError: name 'nm' is not defined")
        return TaskDescription("find", "1", SCHEMA, has_central_data=True)

    async def initial(
        self,
        task: str,
        *,
        seed: int,
        checkpoint: Path | None,
        start: Start = "snapshot",
        snapshot: str = "int8",
    ) -> Beginning:
        if checkpoint is not None:
            raise UsageError(f"there is no checkpoint {str(checkpoint)!r}")
        if start == "seed":
            zeros = (Segment.constant(SIZE, 0.0),)
            return Beginning(recipe=encode_seeded(seed, zeros, np.empty(0, np.float32), SCHEMA, snapshot))
        return Beginning(
            weights=np.zeros(SIZE, dtype=np.float32), why="" if start == "snapshot" else "for a test"
        )

    async def evaluate(self, task: str, vector: NDArray[np.float32]) -> tuple[float, int, dict[str, float]]:
        await self.may_evaluate.wait()
        if self.breaks is not None:
            raise self.breaks
        self.evaluated.append(vector)
        return loss_of(vector), 100, {"accuracy": 1.0 / (1.0 + loss_of(vector))}

    async def export(self, task: str, vector: NDArray[np.float32], out: Path) -> None:
        await asyncio.to_thread(out.write_bytes, vector.tobytes())

    async def close(self) -> None:
        self.closed = True


@dataclass
class VirtualDevice:
    """A device without a trainer: it follows the announcements on a real connection."""

    id: str
    url: str
    federation: str = "home"
    receipts: list[Receipt] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    replica: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    version: int = -1
    session: int = 1
    trains: bool = True
    waits_at: float = math.inf
    """From this version on it trains no more until `may_go_on`, and hears nothing else meanwhile."""
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    _counter: int = 0
    _lease: int = 0
    _epoch: int = 0
    _outbox: dict[int, Update] = field(default_factory=dict)
    """What has no receipt yet; sent again when the coordinator's epoch changes."""

    def __post_init__(self) -> None:
        self.topics = Topics(self.federation)
        self.sealer = Sealer(
            sender=self.id, epoch=self.session, key=SigningKey(hashlib.sha256(self.id.encode()).digest())
        )

    @contextlib.asynccontextmanager
    async def online(self) -> AsyncIterator[VirtualDevice]:
        presence_topic = self.topics.presence(self.id)
        will = Will(
            presence_topic, self.sealer.seal(presence_topic, self._presence(online=False)), retain=True
        )
        self.connection = Connection(BrokerSettings(url=self.url), client_id=self.id, will=will)
        await self.connection.subscribe(self.topics.device_filters(self.id))
        async with self.connection:
            task = asyncio.create_task(self._follow())
            try:
                yield self
            finally:
                task.cancel()
                results = await asyncio.gather(task, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def say(self, topic: str, body: Body, *, retain: bool = False) -> None:
        await self.connection.publish(topic, self.sealer.seal(topic, body), retain=retain)

    async def receives(self, number: int) -> None:
        """Return once so many updates have a receipt: the last ones may be on their way when a run is over."""

        async def counters() -> set[int]:
            return {receipt.counter for receipt in self.receipts}

        await eventually(counters, lambda seen: len(seen) >= number)

    def _presence(self, *, online: bool) -> Presence:
        return Presence(
            online=online,
            session=self.session,
            public_key=self.sealer.public_key,
            tasks=[TASK],
            codecs=["float32"],
        )

    async def _follow(self) -> None:
        async for event in self.connection.events():
            match event:
                case Connected():
                    await self.say(self.topics.presence(self.id), self._presence(online=True), retain=True)
                case Message(topic=topic, payload=payload) if payload:
                    with contextlib.suppress(RemoteError):
                        envelope = open_envelope(topic, payload)
                        await self._hear(envelope.body)
                        if envelope.epoch > self._epoch and not topic.endswith("status"):
                            self._epoch = envelope.epoch
                            for update in self._outbox.values():
                                await self.say(self.topics.up(self.id, "update"), update)
                case _:
                    pass

    async def _hear(self, body: Body) -> None:
        match body:
            case Announcement():
                await self._announced(body)
            case ModelChunk(blob="snapshot", data=data):
                self.replica, self.version = decode_snapshot(data, SCHEMA), body.version
                await self._announced(self._latest)
            case Lease():
                await self._train(body.run, body.lease)
            case Receipt():
                self.receipts.append(body)
                self._outbox.pop(body.counter, None)
            case Notice():
                self.notices.append(body)
            case _:
                pass

    async def _announced(self, announcement: Announcement) -> None:
        self._latest = announcement
        wanted = announcement.manifest.version
        if announcement.inline_delta is not None and self.version == wanted - 1 and wanted > 0:
            apply_delta(self.replica, announcement.inline_delta, SCHEMA)
            self.version = wanted
        elif self.version != wanted:
            get = Get(run=announcement.run, version=announcement.manifest.base, blob="snapshot", index=0)
            if announcement.manifest.base == wanted:
                await self.say(self.topics.up(self.id, "get"), get)
            return
        member = in_cohort(announcement.cohort, announcement.round, self.id)
        if announcement.state == "running" and member and announcement.lease > self._lease:
            await self._train(announcement.run, announcement.lease)

    async def _train(self, run: str, lease: int) -> None:
        self._lease = lease
        if not self.trains:
            return
        if self.version >= self.waits_at:
            await self.may_go_on.wait()
        data, _ = encode_update(np.float32(0.5) * (TARGET - self.replica), None, SCHEMA, CodecSpec("float32"))
        self._counter += 1
        traffic = self.connection.traffic
        header = UpdateHeader(
            run=run,
            counter=self._counter,
            lease=lease,
            base_version=self.version,
            schema_hash=SCHEMA.hash,
            num_examples=10,
            payload=blob_ref(data),
            evaluation=Evaluation(
                version=self.version, num_examples=5, loss=loss_of(self.replica), metrics={"accuracy": 0.5}
            ),
            traffic=(traffic.bytes_sent, traffic.bytes_received),
        )
        update = self._outbox[self._counter] = Update(header=header, data=data)
        await self.say(self.topics.up(self.id, "update"), update)


@dataclass
class RunningCoordinator:
    """A coordinator in this process's loop, and how to ask it."""

    settings: CoordinatorSettings
    host: FakeModelHost
    task: asyncio.Task[None]
    stop: asyncio.Event
    client: Client

    async def ask(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call the client's method `name` off the loop, which has to serve it."""
        return await asyncio.to_thread(getattr(self.client, name), *args, **kwargs)

    async def until(self, run: str, state: str) -> RunView:
        """The run's view once it is in `state`."""
        return await eventually(lambda: self.ask("run", run), lambda view: view.state == state)

    async def connected(self) -> None:
        """Return once the broker is there."""
        await eventually(lambda: self.ask("status"), lambda status: status.broker_connected)


async def eventually(
    look: Callable[[], Awaitable[T]], accept: Callable[[T], bool], *, timeout_s: float = 60.0
) -> T:
    """Look at another process or thread again and again, until what is seen is accepted."""
    async with asyncio.timeout(timeout_s):
        while not accept(seen := await look()):  # noqa: ASYNC110  # what is looked at has no event to wait for
            await asyncio.sleep(0.01)
    return seen


@contextlib.asynccontextmanager
async def coordinator(
    state_dir: Path, url: str, *, host: FakeModelHost | None = None, **settings: Any
) -> AsyncIterator[RunningCoordinator]:
    """Run a coordinator until the block ends; what it raises is raised there."""
    host = FakeModelHost() if host is None else host
    given = CoordinatorSettings(
        federation="home",
        broker=BrokerSettings(url=url, reconnect_min_s=0.05, reconnect_max_s=0.2),
        state_dir=state_dir,
        listen="127.0.0.1:0",
        run=PLAIN,
        **settings,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(run_coordinator(given, model_host=host, stop=stop))
    try:

        async def is_up() -> bool:
            return task.done() or (state_dir / "api.json").exists()

        await eventually(is_up, bool)
        if task.done():
            await task
        with Client(state_dir) as client:
            yield RunningCoordinator(given, host, task, stop, client)
    finally:
        stop.set()
        await task
