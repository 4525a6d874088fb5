"""The guard's loop: hear who floods, cut it off for a stated time, let it in again.

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Patrol(settings, ports, quarantine, allowance).run(stop))

Three witnesses are heard: the coordinator's notices of code `flood` (only it may publish there, so the broker's own
rules vouch for them), Mosquitto's log, and the kernel's counters. To cut off is one change in the security plugin: the
member's session ends, and it may do nothing until it is let in. A connection that it makes meanwhile stands, and
whatever it says there is dropped at a glance: to refuse it again and again would cost the broker more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final

from fedmq_broker.dynsec_control import Control, ControlError
from fedmq_broker.guarding.quarantine import CutOff, Quarantine
from fedmq_broker.guarding.sockets import received_bytes
from fedmq_broker.guarding.watching import Allowance, Watch
from fedmq_protocol.access import BROKER_LOG, ROLES, SUBSCRIPTIONS
from fedmq_protocol.aio import BrokerSettings, Connected, Disconnected, Event, Message
from fedmq_protocol.envelope import open_envelope
from fedmq_protocol.errors import ConnectionFailedError, RemoteError, UsageError
from fedmq_protocol.messages import Notice
from fedmq_protocol.topics import Topics

_log = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_AGAIN_S: Final = 5.0
_LOG_TOPIC: Final = BROKER_LOG.removesuffix("#")


@dataclass
class Patrol:
    """One guard.

    Attributes:
        settings: how `@guard` reaches the broker.
        topics: of the federation.
        ports: of the broker's listeners, whose connections are counted.
        quarantine: who is cut off.
        allowance: of each member, at the broker.
        clock: seconds since the epoch.
    """

    settings: BrokerSettings
    topics: Topics
    ports: frozenset[int]
    quarantine: Quarantine
    allowance: Allowance
    clock: Callable[[], float] = time.time
    _watch: Watch = field(init=False)
    _accused: dict[str, str] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)
    """Whom the broker, since it was last reached, has been told to keep out."""

    def __post_init__(self) -> None:
        self._watch = Watch(self.allowance)

    async def run(self, stop: asyncio.Event) -> None:
        """Guard until `stop` is set; a broker that is away is waited for.

        Raises:
            StoreError: the list of who is cut off is damaged.
        """
        while not stop.is_set():
            try:
                control = Control(
                    self.settings,
                    hears=[BROKER_LOG, SUBSCRIPTIONS, f"{self.topics.root}/dev/+/down/notice"],
                    heard=self._hear,
                )
                async with control:
                    _log.info("guarding %s", self.settings.address)
                    await self._guard(control, stop)
            except (ConnectionFailedError, ControlError) as error:
                _log.warning("%s; trying again in %g s", error, _AGAIN_S)
                await _wait(stop, _AGAIN_S)

    async def _guard(self, control: Control, stop: asyncio.Event) -> None:
        while not stop.is_set():
            for name, why in self._watch.counted(received_bytes(self.ports), now=self.clock()):
                self._accuse(name, why)
            await self._judge(control)
            await _wait(stop, _TICK_S)

    def _hear(self, event: Event) -> None:
        match event:
            case Message(topic=topic, payload=payload) if topic.startswith(_LOG_TOPIC):
                flood = self._watch.logged(payload.decode(errors="replace"), now=self.clock())
                if flood is not None:
                    self._accuse(*flood)
            case Message(topic=topic, payload=payload) if topic == SUBSCRIPTIONS:
                with contextlib.suppress(ValueError):
                    self._suspect(int(payload))
            case Message(topic=topic, payload=payload):
                name = self.topics.addressed(topic)
                with contextlib.suppress(RemoteError):
                    match open_envelope(topic, payload).body:
                        case Notice(code="flood", session=None, detail=detail) if name is not None:
                            self._accuse(name, f"the coordinator says that {detail}")
            case Connected() | Disconnected():
                self._held.clear()  # a broker that starts anew knows everybody's rights again

    def _suspect(self, subscriptions: int) -> None:
        suspected, acquitted, why = self._watch.subscribed(subscriptions)
        if acquitted is not None:
            with contextlib.suppress(UsageError):  # the operator was quicker
                self.quarantine.forgive(acquitted)
                _log.warning("%s was not it", acquitted, extra={"device": acquitted})
        if suspected is not None:
            self._accuse(suspected, why)

    def _accuse(self, name: str, why: str) -> None:
        if name not in ROLES:
            self._accused.setdefault(name, why)

    async def _judge(self, control: Control) -> None:
        """Cut off who was accused, let in whose time is over, and whoever was released by hand."""
        now = self.clock()
        accused, self._accused = self._accused, {}
        for name, why in accused.items():
            if name not in self.quarantine.active() and await control.client(name) is not None:
                self._tell(name, self.quarantine.begin(name, why, now=now))
        for name in self.quarantine.due(now=now):
            await self._release(control, name)
            self.quarantine.end(name, now=now)
        active = self.quarantine.active().keys()
        for name in active - self._held:
            await self._unless_gone(control, name, control.cut_off)
            self._held.add(name)
        for name in self._held - active:
            await self._release(control, name)

    async def _release(self, control: Control, name: str) -> None:
        await self._unless_gone(control, name, control.let_in)
        self._held.discard(name)
        _log.info("%s is let in again", name, extra={"device": name})

    @staticmethod
    async def _unless_gone(
        control: Control, name: str, change: Callable[[str], Coroutine[None, None, None]]
    ) -> None:
        """Change what a member may do, and leave it where it is no member any more.

        Raises:
            ControlError: the plugin did not do it: then it is to be tried again.
        """
        try:
            await change(name)
        except ControlError:
            if await control.client(name) is not None:
                raise

    def _tell(self, name: str, cut: CutOff) -> None:
        minutes = (cut.until - cut.since) / 60
        until = time.strftime("%H:%M:%S", time.localtime(cut.until))
        text = "%s is cut off for %.0f minutes, until %s (fedmq device release %s): %s"
        _log.error(text, name, minutes, until, name, cut.why, extra={"device": name})


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
