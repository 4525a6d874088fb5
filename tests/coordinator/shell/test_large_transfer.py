"""Large transfers on a real broker, cut off in the middle: only what lacks travels again, by count."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from fedmq_broker.runner import RunningBroker
from fedmq_coordinator.shell.client import Client
from fedmq_coordinator.shell.outbox import KEPT_EVERY
from fedmq_coordinator.shell.standing import Standing
from fedmq_coordinator.shell.store import Journal
from fedmq_protocol.aio import Connected, Connection, Message
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.chunks import blob_ref, split
from fedmq_protocol.codecs import CodecSpec, encode_update
from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import (
    Announcement,
    Credit,
    Lease,
    Offer,
    Presence,
    Receipt,
    TaskRef,
    UpdateHeader,
    UploadChunk,
)
from fedmq_protocol.schema import TensorEntry, TensorSchema
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.coordinator.shell.doubles import eventually

ROOT = Path(__file__).parents[3]
TOPICS = Topics("home")
PARAMETERS = 8_000_000
SCHEMA = TensorSchema(
    entries=(TensorEntry(name="w", shape=(PARAMETERS,), dtype="float32", role="parameter"),)
)
TASK = TaskRef(name="large", version="1", schema_hash=SCHEMA.hash)

PROGRAM = """
import asyncio, logging, sys
from pathlib import Path
import numpy as np
from fedmq_coordinator.shell import service
from fedmq_coordinator.shell.main import run_coordinator_forever
from fedmq_coordinator.shell.model_host import Beginning, TaskDescription
from fedmq_coordinator.shell.settings import CoordinatorSettings
from fedmq_protocol.aio import Connection
from fedmq_protocol.broker_settings import BrokerSettings
from tests.coordinator.shell.doubles import FakeModelHost
from tests.coordinator.shell.test_large_transfer import PARAMETERS, SCHEMA

class Host(FakeModelHost):
    async def describe(self, task):
        return TaskDescription("large", "1", SCHEMA, has_central_data=False)
    async def initial(self, task, *, seed, checkpoint, start="snapshot", snapshot="int8"):
        return Beginning(np.random.default_rng(seed).standard_normal(PARAMETERS, dtype=np.float32))

class HaltingConnection(Connection):
    left = int(sys.argv[3])  # so many chunks go over the link, then no more

    async def publish(self, topic, payload, **options):
        if "/model/" in topic:
            if self.left == 0:
                await asyncio.Event().wait()
            self.left -= 1
        await super().publish(topic, payload, **options)

async def main():
    settings = CoordinatorSettings(
        federation="home", broker=BrokerSettings(url=sys.argv[1]), state_dir=Path(sys.argv[2]), listen="127.0.0.1:0",
    )
    await run_coordinator_forever(settings, model_host=Host())

logging.basicConfig(level=logging.INFO)
import fedmq_coordinator.shell.main as shell
shell.Connection = HaltingConnection
service._WITNESS_S = 60.0  # a broker that stands still for a while has lost nothing
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def process(
    broker: RunningBroker, state_dir: Path, *, chunks: int = -1
) -> AsyncIterator[tuple[Process, Client]]:
    """A coordinator whose API is up, and that publishes so many chunks, or all; killed at the end if it is there."""
    (state_dir / "api.json").unlink(missing_ok=True)
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, broker.url, str(state_dir), str(chunks)),
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )

    async def is_up() -> bool:
        return (state_dir / "api.json").exists() or running.returncode is not None

    try:
        await eventually(is_up, bool)
        with Client(state_dir) as client:
            yield running, client
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


class Observer:
    """Sees every chunk that is published while it is there, and what is announced."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(BrokerSettings(url=url), client_id="observer")
        self.seen: list[str] = []
        self.announced: list[Announcement] = []
        self.connected = asyncio.Event()

    @contextlib.asynccontextmanager
    async def online(self) -> AsyncIterator[Observer]:
        await self.connection.subscribe(["fedmq/v1/home/model/+/+/+", TOPICS.announcement])
        async with self.connection:
            task = asyncio.create_task(self._follow())
            try:
                await self.connected.wait()
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> None:
        async for event in self.connection.events():
            if isinstance(event, Connected):
                self.connected.set()
            elif isinstance(event, Message) and not event.retained and event.payload:
                if event.topic != TOPICS.announcement:
                    self.seen.append(event.topic)
                elif isinstance(body := open_envelope(event.topic, event.payload).body, Announcement):
                    self.announced.append(body)


async def test_killed_in_mid_publication_it_publishes_what_the_broker_lacks(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    observer = Observer(mosquitto.url)
    seen_before = KEPT_EVERY + 8

    async def known_to_stand() -> int:
        with contextlib.closing(Journal.look(tmp_path)) as journal:
            return Standing.load(journal.note("standing")).num_chunks

    async def num_seen() -> int:
        return len(observer.seen)

    async def num_announced() -> int:
        return len(observer.announced)

    async with observer.online():
        async with process(mosquitto, tmp_path, chunks=seen_before) as (running, client):
            await asyncio.to_thread(client.start_run, "large", name="r")
            await eventually(num_seen, lambda count: count == seen_before)
            await eventually(known_to_stand, lambda count: count == KEPT_EVERY)
            running.kill()
            await running.wait()
        before = list(observer.seen)
        observer.seen.clear()
        assert not observer.announced, "a first version is announced when its chunks are there"
        async with process(mosquitto, tmp_path) as (_, client):
            await eventually(num_announced, lambda count: count >= 1)
            manifest = observer.announced[-1].manifest
            chunk_bytes = 131_072 - 2_048
            total = -(-manifest.snapshot.size // chunk_bytes)
            await eventually(num_seen, lambda count: count >= total - KEPT_EVERY)
            assert len(observer.seen) == total - KEPT_EVERY, "only those that are not known to stand"
            assert len(set(before + observer.seen)) == total


class UploadingDevice:
    """Offers an update in small chunks, and counts those that it sends."""

    def __init__(self, url: str) -> None:
        self.id = "dev-1"
        self.url = url
        self.key = SigningKey(hashlib.sha256(b"dev-1").digest())
        self.session = 0
        self.sent: list[int] = []
        self.announcement: asyncio.Future[Announcement] = asyncio.get_running_loop().create_future()
        self.receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self.leases: list[int] = []

    @contextlib.asynccontextmanager
    async def online(self) -> AsyncIterator[asyncio.Queue[Credit]]:
        """A connection of its own, with a new session; gives the credits that come."""
        self.session += 1
        self.sealer = Sealer(sender=self.id, epoch=self.session, key=self.key)
        self.connection = Connection(BrokerSettings(url=self.url), client_id=self.id)
        answers: asyncio.Queue[Credit] = asyncio.Queue()
        await self.connection.subscribe(TOPICS.device_filters(self.id))
        connected = asyncio.get_running_loop().create_future()
        async with self.connection:
            task = asyncio.create_task(self._follow(answers, connected))
            try:
                await connected
                yield answers
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await self.connection.stop(graceful=False)

    async def say(self, kind: str, body: Offer | UploadChunk | Presence) -> None:
        topic = TOPICS.presence(self.id) if kind == "presence" else f"fedmq/v1/home/dev/{self.id}/up/{kind}"
        await self.connection.publish(topic, self.sealer.seal(topic, body), retain=kind == "presence")

    async def _follow(self, answers: asyncio.Queue[Credit], connected: asyncio.Future[None]) -> None:
        async for event in self.connection.events():
            if isinstance(event, Connected):
                birth = Presence(
                    online=True,
                    session=self.session,
                    public_key=self.key.public_key,
                    tasks=[TASK],
                    codecs=["topk-log4/1", "float32/1", "int8/1"],
                )
                await self.say("presence", birth)
                if not connected.done():
                    connected.set_result(None)
            if not isinstance(event, Message) or not event.payload:
                continue
            with contextlib.suppress(RemoteError):
                match open_envelope(event.topic, event.payload).body:
                    case Announcement() as body if body.cohort.devices and not self.announcement.done():
                        self.announcement.set_result(body)
                    case Lease(lease=lease):
                        self.leases.append(lease)
                    case Credit() as body:
                        answers.put_nowait(body)
                    case Receipt() as body if not self.receipt.done():
                        self.receipt.set_result(body)
                    case _:
                        pass


def lacking(credit: Credit, count: int) -> list[int]:
    return [index for index in range(count) if not credit.have[index // 8] >> (index % 8) & 1]


async def test_an_upload_that_was_cut_off_goes_on_where_it_was(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    device = UploadingDevice(mosquitto.url)
    change = np.random.default_rng(1).standard_normal(PARAMETERS, dtype=np.float32)
    data, _ = encode_update(change, None, SCHEMA, CodecSpec("topk-log4", 0.01))
    chunks = split(data, 4_096)
    assert len(chunks) > 20
    async with process(mosquitto, tmp_path) as (_, client), asyncio.timeout(240):
        async with device.online() as answers:
            settings = {
                "selection": {"min_available_devices": 1},
                "compression": {"density": 0.01},
            }
            await asyncio.to_thread(client.start_run, "large", name="r", settings=settings)
            announced = await device.announcement
            header = UpdateHeader(
                run="r",
                counter=1,
                lease=announced.lease,
                base_version=0,
                schema_hash=SCHEMA.hash,
                num_examples=10,
                payload=blob_ref(data),
            )
            offer = Offer(header=header, chunk_bytes=4_096)
            await device.say("offer", offer)
            assert lacking(await answers.get(), len(chunks)) == list(range(len(chunks)))
            for index in (3, 0, 1, 7, 8, 9):
                await device.say("chunk", UploadChunk(run="r", counter=1, index=index, data=chunks[index]))
                await answers.get()
        async with device.online() as answers:
            await device.say("offer", offer)
            again = lacking(await answers.get(), len(chunks))
            assert again == [index for index in range(len(chunks)) if index not in {0, 1, 3, 7, 8, 9}]
            for index in again:
                await device.say("chunk", UploadChunk(run="r", counter=1, index=index, data=chunks[index]))
            assert (await device.receipt).outcome == "accepted"
            view = await asyncio.to_thread(client.run, "r")
            assert view.accepted == 1
