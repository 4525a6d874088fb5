"""Light agents on real connections: those of a federation, and bare ones that move as many bytes. For `fleet_tls`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from benchmarks.fleet_coordinator import TASK_NAME, schema_of
from benchmarks.light_mqtt import LightClient
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import CodecSpec, baseline, encode_update, versioned
from fedmq_protocol.codecs.seeded import NAME as SEEDED
from fedmq_protocol.envelope import Envelope, Sealer, open_envelope
from fedmq_protocol.limits import RING
from fedmq_protocol.messages import (
    DIGEST,
    Announcement,
    BlobRef,
    Presence,
    Receipt,
    TaskRef,
    Turn,
    Update,
    UpdateHeader,
)
from fedmq_protocol.packing import NAME as PACKED
from fedmq_protocol.sampling import has_turn, in_cohort
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

_DIFFERENT: Final = 20
"""Updates that are encoded beforehand."""
_BIRTHS: Final = 20
_BIRTHS_PER_S: Final = 400
"""They are no uploads, and a broker must have room for as many as come at once; here that is not measured."""


@dataclass
class Mean:
    """Of what was added."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)


class Agent(Protocol):
    """One connection's ears.

    Attributes:
        client: the connection.
    """

    client: LightClient

    def hears(self, topic: str, payload: bytes) -> None:
        """A message came."""
        ...


@dataclass
class Fleet:
    """What all agents have in common.

    Attributes:
        topics: the federation's.
        agents: by name.
        began: when the announcement of each round reached the first of them.
        num_updates: sent so far.
        num_turns: words of turns so far.
    """

    topics: Topics
    agents: dict[str, Agent] = field(default_factory=dict)
    began: list[float] = field(default_factory=list)
    num_updates: int = 0
    num_answers: int = 0
    num_turns: int = 0
    num_refused: int = 0
    most_under_way: int = 0
    update_bytes: Mean = field(default_factory=Mean)
    announcement_bytes: Mean = field(default_factory=Mean)
    receipt_bytes: Mean = field(default_factory=Mean)
    _moved_on: asyncio.Event = field(default_factory=asyncio.Event)

    def round_begins(self, payload: bytes) -> None:
        """The first agent has heard of another round."""
        self.began.append(time.perf_counter())
        self.announcement_bytes.add(len(payload))
        self._moved_on.set()

    async def reached(self, number: int) -> None:
        """Return once so many rounds have begun.

        Raises:
            ConnectionError: an agent has lost its connection.
        """
        while len(self.began) < number:
            self._moved_on.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._moved_on.wait()
            lost = [agent.client.lost for agent in self.agents.values() if agent.client.lost is not None]
            if lost:
                raise ConnectionError(f"{len(lost)} connections were lost: {lost[0]}")

    def sent(self, payload: bytes) -> None:
        """An agent has sent its update."""
        self.num_updates += 1
        self.update_bytes.add(len(payload))
        self.most_under_way = max(self.most_under_way, self.num_updates - self.num_answers)

    def answered(self, payload: bytes) -> None:
        """An agent has its answer."""
        self.num_answers += 1
        self.receipt_bytes.add(len(payload))


# ------------------------------------------------------------------------------------------ a federation's


class LightFleet(Fleet):
    """Agents that send updates made beforehand.

    Args:
        federation: its name.
        names: of the agents.
        parameters: of the model.
        density: share of them in an update.
    """

    def __init__(self, federation: str, names: list[str], *, parameters: int, density: float) -> None:
        super().__init__(Topics(federation))
        schema = schema_of(parameters)
        self.task = TaskRef(name=TASK_NAME, version="1", schema_hash=schema.hash)
        generator = np.random.default_rng(1)
        spec = CodecSpec("topk-log4", density, coders=(), code_ms=0)
        changes = (generator.standard_normal(parameters, dtype=np.float32) for _ in range(_DIFFERENT))
        payloads = [bytes(encode_update(np.float32(0.01) * x, None, schema, spec)[0]) for x in changes]
        self.payloads = [(payload, blob_ref(payload)) for payload in payloads]
        self.turn = Turn(start=0, span=RING)
        self._heard: dict[bytes, Envelope] = {}
        for number, name in enumerate(names):
            self.agents[name] = LightAgent(name, self, *self.payloads[number % _DIFFERENT])

    async def introduce(self) -> None:
        """Every agent says that it is there, one after the other."""
        for number, agent in enumerate(self.agents.values()):
            assert isinstance(agent, LightAgent)
            agent.introduce()
            if number % _BIRTHS == 0:
                await asyncio.sleep(_BIRTHS / _BIRTHS_PER_S)

    def opened(self, topic: str, payload: bytes) -> tuple[Envelope, bool]:
        """What all hear alike, opened once; and whether this is the first time."""
        known = self._heard.get(payload)
        if known is not None:
            return known, False
        envelope = self._heard[payload] = open_envelope(topic, payload)
        return envelope, True


class LightAgent:
    """One device: trains in no time, and does what the protocol says with what came of it."""

    client: LightClient

    def __init__(self, name: str, fleet: LightFleet, data: bytes, payload: BlobRef) -> None:
        self._name, self._fleet = name, fleet
        self._data, self._payload = data, payload
        key = SigningKey(hashlib.sha256(name.encode()).digest())
        self._sealer = Sealer(sender=name, epoch=int(time.time()), key=key)
        self._update_topic = fleet.topics.up(name, "update")
        self._pending: UpdateHeader | None = None
        self._begun = False
        self._counter: int | None = None
        self._lease = 0
        self._turn = Turn(start=0, span=RING)
        self._packs = False

    def introduce(self) -> None:
        """The birth certificate."""
        birth = Presence(
            online=True,
            session=self._sealer.epoch,
            public_key=self._sealer.public_key,
            tasks=[self._fleet.task],
            codecs=[*baseline(), versioned(SEEDED), PACKED, DIGEST],
            num_examples=100,
        )
        topic = self._fleet.topics.presence(self._name)
        self.client.publish(topic, self._sealer.seal(topic, birth), retain=True)

    def hears(self, topic: str, payload: bytes) -> None:
        fleet = self._fleet
        if not payload:
            return
        if topic == fleet.topics.announcement:
            envelope, is_first = fleet.opened(topic, payload)
            self._packs = envelope.packed
            body = envelope.body
            assert isinstance(body, Announcement)
            if in_cohort(body.cohort, body.round, self._name) and body.lease > self._lease:
                if is_first:
                    fleet.round_begins(payload)
                self._train(body)
        elif topic == fleet.topics.turn:
            envelope, is_first = fleet.opened(topic, payload)
            assert isinstance(envelope.body, Turn)
            self._turn = envelope.body
            fleet.num_turns += is_first
        elif topic.endswith("/receipt"):
            receipt = open_envelope(topic, payload).body
            assert isinstance(receipt, Receipt)
            fleet.num_refused += receipt.outcome != "accepted"
            if self._pending is not None and receipt.counter == self._pending.counter:
                self._pending = None
                fleet.answered(payload)
        self._send()

    def _train(self, announcement: Announcement) -> None:
        self._lease = announcement.lease
        self._counter = announcement.lease if self._counter is None else self._counter + 1
        self._begun = False
        self._pending = UpdateHeader(
            run=announcement.run,
            counter=self._counter,
            lease=announcement.lease,
            base_version=announcement.manifest.version,
            schema_hash=announcement.task.schema_hash,
            num_examples=100,
            payload=self._payload,
            train_s=1.5,
            metrics={"loss": 0.7, "accuracy": 0.8},
            traffic=(self.client.sent, self.client.received),
        )

    def _send(self) -> None:
        if self._pending is None or self._begun or not has_turn(self._turn, self._name):
            return
        self._begun = True
        update = Update(header=self._pending, data=self._data)
        packet = self._sealer.seal(self._update_topic, update, packed=self._packs)
        self.client.publish(self._update_topic, packet)
        self._fleet.sent(packet)


# ------------------------------------------------------------------------------------------ bare ones


class BareFleet(Fleet):
    """Agents that answer each announcement with as many bytes.

    Args:
        federation: its name.
        names: of the agents.
        update_bytes: how many.
    """

    def __init__(self, federation: str, names: list[str], *, update_bytes: int) -> None:
        super().__init__(Topics(federation))
        self.update = bytes(update_bytes)
        self.newest = b""
        for name in names:
            self.agents[name] = BareAgent(name, self)

    async def introduce(self) -> None:
        """Every agent says that it is there."""
        for name, agent in self.agents.items():
            agent.client.publish(self.topics.up(name, "hello"), b"here")


class BareAgent:
    """One device that reads nothing."""

    client: LightClient

    def __init__(self, name: str, fleet: BareFleet) -> None:
        self._fleet = fleet
        self._topic = fleet.topics.up(name, "update")

    def hears(self, topic: str, payload: bytes) -> None:
        fleet = self._fleet
        if topic == fleet.topics.announcement:
            if payload != fleet.newest:
                fleet.newest = payload
                fleet.round_begins(payload)
            self.client.publish(self._topic, fleet.update)
            fleet.sent(fleet.update)
        elif topic.endswith("/receipt"):
            fleet.answered(payload)
