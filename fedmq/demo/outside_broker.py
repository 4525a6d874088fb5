"""A demo's manners towards a broker that others use too: look before, tidy up after."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Final

from pydantic import ValidationError

from fedmq.config import first_complaint
from fedmq_protocol.aio import Connected, Connection, Disconnected, Message
from fedmq_protocol.broker_settings import BrokerSettings
from fedmq_protocol.errors import ConfigError, FedmqError
from fedmq_protocol.topics import Topics

_TIDY_WITHIN_S: Final = 15.0
_QUIET_S: Final = 3.0
"""Where a broker does not let us hear ourselves: after so long without a message there is no more."""


async def check_broker(url: str) -> None:
    """Connect once, so that a wrong address or password is told before anything is started.

    Raises:
        ConfigError: `url` is no broker's.
        ConnectionFailedError: the broker cannot be reached or refuses us; the text names the fix.
    """
    connection = Connection(_settings(url), client_id=f"check-{secrets.token_hex(4)}")
    await connection.start(wait=True)
    await connection.stop()


async def tidy_up(url: str, federation: str) -> None:
    """Remove what a federation has left retained, as far as the broker lets us: it would stay for ever."""
    connection = Connection(_settings(url), client_id=f"{federation}-operator-{secrets.token_hex(4)}")
    with contextlib.suppress(FedmqError, TimeoutError):
        async with asyncio.timeout(_TIDY_WITHIN_S):
            await connection.start(wait=True)
            topics = Topics(federation)
            await connection.subscribe([f"{topics.root}/#"])
            await connection.publish(topics.monitor_probe, b"!")
            await _clear_retained(connection, topics.monitor_probe)
    await connection.stop()


async def _clear_retained(connection: Connection, last: str) -> None:
    """Until what was said last comes back: a broker hands out what it has retained before."""
    events = connection.events()
    while True:
        async with asyncio.timeout(_QUIET_S):
            event = await anext(events)
        match event:
            case Message(topic=topic) if topic == last:
                return
            case Message(topic=topic, retained=True, payload=payload) if payload:
                await connection.publish(topic, b"", retain=True)
            case Message() | Connected() | Disconnected():
                pass


def _settings(url: str) -> BrokerSettings:
    try:
        return BrokerSettings(url=url)
    except ValidationError as error:
        raise ConfigError(f"--broker: {first_complaint(error)}") from None
