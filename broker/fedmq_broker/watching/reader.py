"""One connection to the broker that feeds a watch, and the probe that measures how long a message takes.

Only reads, but for the probe: a few bytes on a topic of its own, now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable

from fedmq_broker.watching.log_lines import LogEvent
from fedmq_broker.watching.watch import Watch
from fedmq_protocol.aio import BrokerSettings, Connected, Connection, Disconnected, Message
from fedmq_protocol.errors import ConnectionFailedError

_log = logging.getLogger(__name__)

PROBE_EVERY_S = 5.0
_MINUTE_S = 60.0
_TOLD_A_MINUTE = 30


class Reader:
    """Keeps a watch fed until it is stopped; the broker's absence is a fact like any other.

    Args:
        settings: how to reach the broker.
        watch: what is fed.
        clock: seconds that only go forward.
        probe_every_s: how often a probe goes out.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        watch: Watch,
        *,
        clock: Callable[[], float],
        probe_every_s: float = PROBE_EVERY_S,
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._probe_every_s = probe_every_s
        # On a site the broker gives us our name; elsewhere this one is unlike any other monitor's.
        client_id = f"{watch.topics.federation}-monitor-{secrets.token_hex(4)}"
        self._connection = Connection(settings, client_id=client_id)
        self._minute, self._told = -_MINUTE_S, 0
        self._inside = asyncio.Event()
        self.settled = asyncio.Event()
        """The broker has told of itself and of the federation, or cannot be reached."""

    async def run(self) -> None:
        """Feed the watch, for ever."""
        topics = self._watch.topics
        federation = [
            topics.coordinator_status,
            topics.announcement,
            topics.presence("+"),
            topics.monitor_probe,
        ]
        # At most once: a watcher must not be the one whose queue is full.
        await self._connection.subscribe(["$SYS/#", *federation], qos=0)
        async with self._connection as connection, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe(), name="probe")
            async for event in connection.events():
                now = self._clock()
                match event:
                    case Connected(refused=refused):
                        self._watch.connected(now=now)
                        self._inside.set()
                        _log.info("connected to the broker at %s", connection.settings.address)
                        for topic_filter in refused:
                            _log.warning("the broker does not let us see %s", topic_filter)
                    case Disconnected(reason=reason):
                        self._watch.disconnected(reason, now=now)
                        self._inside.clear()
                        self.settled.set()
                        _log.warning("broker: %s; trying again", reason)
                    case Message(topic=topic, payload=payload, retained=retained):
                        trouble = self._watch.heard(topic, payload, now=now, retained=retained)
                        if trouble is not None:
                            self._tell(trouble, now=now)
                        if topic == topics.monitor_probe:  # what was retained came before it
                            self.settled.set()

    def _tell(self, event: LogEvent, *, now: float) -> None:
        """For the log; a flood of them is told once a minute."""
        if now - self._minute >= _MINUTE_S:
            if self._told > _TOLD_A_MINUTE:
                _log.warning("the broker had %d more like these", self._told - _TOLD_A_MINUTE)
            self._minute, self._told = now, 0
        self._told += 1
        if self._told <= _TOLD_A_MINUTE:
            about = {"device": event.client, "fields": {"kind": event.kind}}
            _log.warning("the broker: %s", event.text, extra=about)

    async def _probe(self) -> None:
        topic = self._watch.topics.monitor_probe
        while True:
            await self._inside.wait()
            payload = secrets.token_bytes(8)
            self._watch.probe_sent(payload, now=self._clock())
            with contextlib.suppress(ConnectionFailedError):
                await self._connection.publish(topic, payload)
            await asyncio.sleep(self._probe_every_s)
