"""Brokers and connections for tests, on free ports of the loopback interface; all are gone when the test is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.runner import BrokerKind, RunningBroker, start_broker
from fedmq_protocol.aio import BrokerSettings, Connection, Event, Message

NO_MOSQUITTO = "mosquitto is not installed (apt-get install mosquitto, or brew install mosquitto)"

Connect: TypeAlias = Callable[..., Awaitable[Connection]]


def require_mosquitto() -> Path:
    """Where mosquitto is; skips the test where it is not."""
    program = find_mosquitto()
    if program is None:
        pytest.skip(NO_MOSQUITTO)
    return program


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[RunningBroker]:
    """A Mosquitto of this test's own."""
    require_mosquitto()
    with start_broker("mosquitto", port=0, state_dir=tmp_path / "mosquitto") as broker:
        yield broker


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningBroker]]:
    """Brokers on demand that end with the test: `start("mosquitto", port=1234)`."""
    running: list[RunningBroker] = []

    def start_one(
        kind: BrokerKind = "mosquitto", *, port: int = 0, state_dir: Path | None = None
    ) -> RunningBroker:
        if kind == "mosquitto":
            require_mosquitto()
        broker = start_broker(kind, port=port, state_dir=state_dir or tmp_path / f"broker-{len(running)}")
        running.append(broker)
        return broker

    yield start_one
    for broker in running:
        broker.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make connections that end with the test: `await connect(broker.url, "dev-1", will=...)`."""
    connections: list[Connection] = []

    async def connect_one(url: str, client_id: str, *, wait: bool = True, **options: object) -> Connection:
        own = {"will", "receive_maximum", "rng", "flush_timeout_s"}
        settings = BrokerSettings.model_validate(
            {"url": url} | {name: value for name, value in options.items() if name not in own}
        )
        chosen = {name: value for name, value in options.items() if name in own}
        connection = Connection(settings, client_id=client_id, **chosen)  # type: ignore[arg-type]
        connections.append(connection)
        await connection.start(wait=wait, timeout_s=10.0)
        return connection

    yield connect_one
    for connection in connections:
        await connection.stop(graceful=False)


async def next_of(events: AsyncIterator[Event], kind: type[Event], *, timeout_s: float = 20.0) -> Event:
    """The next event of a kind; others are passed over."""
    async with asyncio.timeout(timeout_s):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the stream ended before a {kind.__name__}")


async def next_message(events: AsyncIterator[Event], *, timeout_s: float = 20.0) -> Message:
    """The next message; what else happens is passed over."""
    event = await next_of(events, Message, timeout_s=timeout_s)
    assert isinstance(event, Message)
    return event


async def silence(
    events: AsyncIterator[Event], probe: Callable[[], Awaitable[None]], marker: str
) -> list[Message]:
    """What arrives before a marker that `probe` publishes: so one sees that nothing came, without sleeping."""
    await probe()
    seen: list[Message] = []
    while (message := await next_message(events)).topic != marker:
        seen.append(message)
    return seen
