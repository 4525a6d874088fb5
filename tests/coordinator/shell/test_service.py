"""The loop around the core: nothing is said before it is on disk, nothing piles up, nothing spins."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedmq_coordinator.core.blobs import MemoryShelf
from fedmq_coordinator.core.effects import Effect
from fedmq_coordinator.core.events import Event, RunRequested, StopRequested, TimePassed
from fedmq_coordinator.core.facts import Fact
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.shell import service as service_module
from fedmq_coordinator.shell.clock import Clock
from fedmq_coordinator.shell.echo import Echo
from fedmq_coordinator.shell.service import INBOX_EVENTS, Service, StoppingError
from fedmq_coordinator.shell.store import Journal
from fedmq_protocol import aio
from fedmq_protocol.envelope import Sealer, open_envelope
from fedmq_protocol.errors import StoreError
from fedmq_protocol.messages import Status
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics
from tests.coordinator.shell.doubles import PLAIN, SCHEMA, SIZE, TASK, FakeModelHost, eventually

TOPICS = Topics("home")
KEY = SigningKey(bytes(32))
REQUEST = RunRequested("r", PLAIN, TASK, SCHEMA, np.zeros(SIZE, dtype=np.float32), has_central_data=True)


class SlowJournal(Journal):
    """Writes when it may."""

    may_write = threading.Event()
    may_check = threading.Event()
    checks = 0
    full = False

    def check_fence(self) -> None:
        self.checks += 1
        self.may_check.wait(60)
        super().check_fence()

    def append(self, facts: Sequence[Fact]) -> None:
        self.may_write.wait(60)
        if self.full:
            raise StoreError("cannot write to the journal: the disk is full")
        super().append(facts)


@dataclass
class Link:
    """A broker that acknowledges everything, and says what the test says."""

    incoming: asyncio.Queue[aio.Event] = field(default_factory=asyncio.Queue)
    handed: list[tuple[str, bytes]] = field(default_factory=list)
    subscribed: list[str] = field(default_factory=list)
    retains: bool = False
    reconnections: int = 0
    may_acknowledge: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_acknowledge.set()

    async def events(self) -> AsyncIterator[aio.Event]:
        while True:
            yield await self.incoming.get()

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.handed.append((topic, payload))
        await self.may_acknowledge.wait()

    async def subscribe(self, filters: Sequence[str]) -> None:
        self.subscribed += filters
        if self.retains:
            for topic in filters:
                self.incoming.put_nowait(aio.Message(topic, b"", retained=True))

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        self.subscribed = [each for each in self.subscribed if each not in filters]

    def reconnect(self) -> None:
        self.reconnections += 1
        self.incoming.put_nowait(aio.Disconnected("asked for", permanent=False, retry_in_s=0.0))

    def kinds(self) -> list[str]:
        return [open_envelope(topic, payload).kind for topic, payload in self.handed]


class Rig:
    """A service with a link and a journal of the test's own."""

    def __init__(self, journal: SlowJournal, core: Coordinator, clock: Clock) -> None:
        self.journal, self.core, self.link, self.stop = journal, core, Link(), asyncio.Event()
        self.host = FakeModelHost()
        self.service = Service(
            core, journal, MemoryShelf(), clock=clock, model_host=self.host, sources={"r": "find.py"}
        )

    async def start(self) -> None:
        await self.service.begin(1, KEY.public_key)
        sealer = Sealer(sender="coordinator", epoch=1, key=KEY)
        self.task = asyncio.create_task(self.service.run(self.link, sealer, TOPICS, self.stop))
        self.link.incoming.put_nowait(aio.Connected(session_present=False, protocol=5, max_packet_bytes=None))
        await eventually(self._is_connected, bool)

    async def _is_connected(self) -> bool:
        return self.core.view(now=0.0).broker_connected

    async def looks(self, accept: Callable[[], bool]) -> None:
        """Return once something inside is as the test expects."""

        async def look() -> bool:
            return accept()

        await eventually(look, bool)


@pytest.fixture
def echo_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Those of the echo, which does nothing in these tests: a machine may stand still for longer than it is patient."""
    times = {"silence_s": 3_600.0, "answer_s": 3_600.0}
    monkeypatch.setattr(Echo.__init__, "__kwdefaults__", times)
    return times


@pytest.fixture
async def make_rig(
    tmp_path: Path, echo_times: dict[str, float]
) -> AsyncIterator[Callable[..., Awaitable[Rig]]]:
    del echo_times
    rigs: list[Rig] = []

    async def make(core: Coordinator | None = None, clock: Clock | None = None) -> Rig:
        journal = SlowJournal.open(tmp_path, federation="home")
        assert isinstance(journal, SlowJournal)
        journal.may_write.set()
        journal.may_check.set()
        rigs.append(Rig(journal, core or Coordinator(federation="home"), clock or Clock()))
        await rigs[-1].start()
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.journal.may_write.set()
        rig.journal.may_check.set()
        rig.stop.set()
        await asyncio.gather(rig.task, return_exceptions=True)
        rig.journal.close()


MakeRig = Callable[..., Awaitable[Rig]]


async def test_nothing_is_said_before_it_is_on_disk(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.looks(lambda: rig.link.kinds() == ["status"])
    rig.journal.may_write.clear()
    asked = asyncio.create_task(rig.service.submit(REQUEST))
    await rig.looks(lambda: "r" in rig.core.runs)
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.link.kinds() == ["status"]
    assert not asked.done()
    rig.journal.may_write.set()
    await asked
    assert [type(fact).__name__ for fact in rig.journal.read()][1:4] == [
        "RunCreated",
        "RunActivated",
        "VersionPublished",
    ]
    await rig.looks(lambda: "announcement" in rig.link.kinds())


async def test_while_the_disk_is_busy_messages_stay_with_the_broker(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.journal.may_write.clear()
    asked = asyncio.create_task(rig.service.submit(REQUEST))
    await rig.looks(lambda: "r" in rig.core.runs)
    for number in range(3 * INBOX_EVENTS):
        rig.link.incoming.put_nowait(aio.Message(TOPICS.presence(f"dev-{number}"), b"garbage"))
    taken = 3 * INBOX_EVENTS - INBOX_EVENTS - 1
    await rig.looks(lambda: rig.link.incoming.qsize() == taken)
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.link.incoming.qsize() == taken
    rig.journal.may_write.set()
    await asked
    await rig.looks(lambda: sum(rig.core.view(now=0.0).rejections.values()) == 3 * INBOX_EVENTS)


class StandingClock(Clock):
    """No time passes, however slow the machine: what may be said does not grow meanwhile."""

    def __call__(self) -> float:
        return 1_000_000.0


async def test_what_a_flooder_says_never_reaches_the_core(make_rig: MakeRig) -> None:
    rig = await make_rig(clock=StandingClock())
    for _ in range(5_000):
        rig.link.incoming.put_nowait(aio.Message(TOPICS.up("dev-0", "hello"), b"garbage"))
    await rig.looks(lambda: "flood" in rig.core.view(now=0.0).rejections)
    heard = rig.core.view(now=0.0).rejections["malformed"]
    assert heard == 500
    await rig.looks(lambda: rig.core.floods["dev-0"].messages == 5_000 - heard)


async def test_a_full_disk_ends_the_coordinator_and_what_was_asked_is_refused(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.journal.full = True
    with pytest.raises(StoppingError):
        await rig.service.submit(REQUEST)
    with pytest.raises(StoreError, match="the disk is full"):
        await rig.task
    with pytest.raises(StoppingError):
        await rig.service.submit(StopRequested("r"))
    assert "announcement" not in rig.link.kinds()


async def test_the_last_word_is_goodbye(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.service.submit(REQUEST)
    rig.stop.set()
    await rig.task
    topic, payload = rig.link.handed[-1]
    goodbye = open_envelope(topic, payload).verified(KEY.public_key).body
    assert topic == TOPICS.coordinator_status
    assert isinstance(goodbye, Status)
    assert not goodbye.online


async def test_nobody_is_told_after_the_goodbye_that_somebody_is_here(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.looks(lambda: rig.link.kinds() == ["status"])
    rig.link.may_acknowledge.clear()
    rig.stop.set()
    await rig.looks(lambda: rig.link.kinds() == ["status"] * 2)
    back = aio.Connected(session_present=False, protocol=5, max_packet_bytes=None)
    behind_it = aio.Message(TOPICS.coordinator_status, b"")
    checks = rig.journal.checks
    for event in (back, behind_it):
        rig.link.incoming.put_nowait(event)
    await rig.looks(lambda: rig.journal.checks > checks and rig.link.incoming.empty())
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.link.kinds() == ["status"] * 2
    rig.link.may_acknowledge.set()
    await rig.task


class Impatient(Coordinator):
    """A core whose deadline stays in the past."""

    ticks = 0

    def next_deadline(self) -> float | None:
        return 0.0

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        self.ticks += isinstance(event, TimePassed)
        return super().handle(event, now=now)


async def test_the_witness_outlives_a_connection_that_is_lost_before_it_speaks(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_WITNESS_S", 60.0)
    rig = await make_rig()
    lost = aio.Disconnected(reason="lost", retry_in_s=0.0)
    back = aio.Connected(session_present=False, protocol=5, max_packet_bytes=None)

    def chunks() -> list[tuple[str, bytes]]:
        return [(topic, payload) for topic, payload in rig.link.handed if "/model/" in topic]

    await rig.service.submit(REQUEST)
    await rig.looks(lambda: len(chunks()) == 1)
    ((witness, payload),) = chunks()
    for event in (lost, back):
        rig.link.incoming.put_nowait(event)
    await rig.looks(lambda: rig.link.subscribed == [witness])
    for event in (lost, back):
        rig.link.incoming.put_nowait(event)
    await rig.looks(lambda: rig.link.incoming.empty() and len(rig.link.subscribed) > 0)
    assert rig.link.subscribed == [witness], "not once more, for good"
    rig.link.incoming.put_nowait(aio.Message(witness, payload, retained=True))
    await rig.looks(lambda: rig.link.subscribed == [])
    assert len(chunks()) == 1, "the broker has it still"


async def test_while_the_database_is_away_silence_is_no_reason_to_connect_anew(
    make_rig: MakeRig, echo_times: dict[str, float]
) -> None:
    echo_times |= {"silence_s": 0.02, "answer_s": 0.2}
    rig = await make_rig()
    rig.link.retains = True
    await rig.service.submit(REQUEST)
    await rig.looks(lambda: TOPICS.coordinator_status in rig.link.subscribed)
    rig.journal.may_check.clear()
    checks = rig.journal.checks
    back = aio.Connected(session_present=False, protocol=5, max_packet_bytes=None)
    for event in (aio.Disconnected(reason="lost", retry_in_s=0.0), back):
        rig.link.incoming.put_nowait(event)
    await rig.looks(lambda: rig.journal.checks > checks)
    rig.journal.may_check.set()
    rig.journal.may_check.clear()
    await rig.looks(lambda: rig.journal.checks > checks + 1)
    await asyncio.sleep(1.0)
    assert not rig.link.reconnections


async def test_a_deadline_that_stays_in_the_past_does_not_spin(make_rig: MakeRig) -> None:
    core = Impatient(federation="home")
    rig = await make_rig(core)
    first, began = core.ticks, time.monotonic()
    await rig.looks(lambda: core.ticks >= first + 10)
    assert time.monotonic() - began > 0.1


def test_the_clock_is_the_walls_and_never_before_the_journals_end() -> None:
    began = time.time()
    told = Clock()()
    assert began - 1.0 <= told <= time.time() + 1.0
    later, began_at = time.time() + 1_000_000, time.monotonic()
    clock = Clock(not_before=later)
    told, again = clock(), clock()
    tick = 1e-6  # what a float of this size cannot tell apart
    assert later - tick <= told <= again <= later + (time.monotonic() - began_at) + tick
