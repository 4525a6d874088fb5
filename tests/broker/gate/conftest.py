"""A site with a Mosquitto that runs, and connections that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from fedmq_broker.site import Site
from fedmq_protocol.aio import BrokerSettings, Connection
from tests.broker.gate.world import World
from tests.broker_fixtures import PATIENCE_S, require_mosquitto

ComeIn: TypeAlias = Callable[..., Coroutine[None, None, Connection]]


@pytest.fixture
def stopped(tmp_path: Path) -> World:
    """A site that is set up, whose broker does not run."""
    world = World(Site(tmp_path / "site"))
    world.prepare()
    return world


@pytest.fixture
def world(stopped: World) -> Iterator[World]:
    """A site whose broker runs."""
    require_mosquitto()
    stopped.start()
    yield stopped
    stopped.stop()


@pytest.fixture
async def come_in() -> AsyncIterator[ComeIn]:
    """Connect with given settings, and wait until the broker has taken us in."""
    connections: list[Connection] = []

    async def one(settings: BrokerSettings, *, wait: bool = True, **options: Any) -> Connection:
        connection = Connection(settings, client_id="any", **options)
        connections.append(connection)
        await connection.start(wait=wait, timeout_s=PATIENCE_S)
        return connection

    yield one
    for connection in connections:
        await connection.stop(graceful=False)
