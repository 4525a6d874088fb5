"""A device that reads its mail when something comes of it, so that ten thousand may hear of a hundred versions.

An announcement that brings the next version along, and no lease, makes a device store it, perhaps apply it, and wait.
Nobody can see when it does that. So the packet is put aside, with its time, until anything else reaches the device:
then its core is told of all that was put aside, at the times at which it came, with what its trainer answered in
between, and stands exactly where it would stand. A device that nothing else reaches saves that altogether.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

from fedmq.simulation.broker import Arrived
from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.trainer import VirtualTrainer
from fedmq_edge_agent.core.contact import SILENCE_S
from fedmq_edge_agent.core.effects import Ask, Effect, Request
from fedmq_edge_agent.core.events import Disconnected, Event, PacketArrived, TimePassed, TrainerAnswered
from fedmq_protocol.messages import Announcement
from fedmq_protocol.sampling import in_cohort

_LEAST_SILENCE_S: Final = 0.8 * SILENCE_S
"""No device asks after a run sooner than that after an announcement."""
_STEADY: Final = frozenset({"idle", "busy"})


class _News(NamedTuple):
    body: Announcement
    epoch: int
    version: int
    members: frozenset[str] | None


class PatientDevice(VirtualDevice):
    """One device; its clock is the world's, and it has no daily budget."""

    _reading = False
    _latest: ClassVar[tuple[bytes, _News | None]] = b"", None
    """The last announcement that any device looked at: ten thousand hear the same."""

    def start(self) -> None:
        assert self.options.rate == 1.0, "put aside by the world's clock"
        assert self.options.daily_bytes is None, "bytes are counted when they are read"
        self._aside: deque[tuple[float, PacketArrived]] = deque()
        self._newest = -1
        self._asked: tuple[float, VirtualTrainer, Request] | None = None
        super().start()

    # ------------------------------------------------------------------------------ what reaches it

    def early(self, message: Arrived, when: float) -> bool:
        """Put aside what is on its way, if it can wait."""
        if not self.alive or not self._can_wait(message):
            return False
        at = when - self.world.start_s
        self._aside.append((at, PacketArrived(message.topic, message.payload)))
        return True

    def tell(self, event: Event) -> None:
        """Let the core handle an event, behind all that was put aside and has come by now."""
        self._read(self.now)
        if isinstance(event, Disconnected):
            self._aside.clear()  # what was still on its way is lost
        super().tell(event)
        self._wait_for_the_rest()

    def _wait_for_the_rest(self) -> None:
        """What is put aside and still on its way is read as it comes: something may come of it now."""
        if self._aside and self.alive and not self._reading:
            life, at = self.starts, self._aside[-1][0]
            self.world.at(
                at + self.world.start_s,
                lambda: self._read(at) if self.alive and self.starts == life else None,
            )

    def _time_passed(self) -> None:
        due = self._deadline
        if self._aside and due is not None:
            silent_until = self._aside[-1][0] + _LEAST_SILENCE_S
            if due == self.agent.desk.contact.hello_at and silent_until > self.now:
                self._timer.set(self.world.now + silent_until - self.now)
                return
            now = max(self.now, due)  # the timer has rounded
            self._read(now)
            if self._deadline is None or self._deadline > now:
                return
        super()._time_passed()

    def cut_power(
        self,
        *,
        down_s: float | None = None,
        torn: random.Random | None = None,
        why: str = "its power was cut",
    ) -> None:
        if self.alive:
            self._read(self.now)
        self._aside.clear()
        super().cut_power(down_s=down_s, torn=torn, why=why)

    def stop(self) -> None:
        if self.alive:
            self._read(self.now)
        self._aside.clear()
        super().stop()

    # ------------------------------------------------------------------------------ what is put aside

    def _can_wait(self, message: Arrived) -> bool:
        """Whether it is the followed run's next version, whole, and no lease for this device."""
        if message.topic != self.topics.announcement:
            return False
        if PatientDevice._latest[0] is not message.payload:
            PatientDevice._latest = message.payload, self._news(message)
        news = PatientDevice._latest[1]
        desk = self.agent.desk
        following, trainer = desk.following, desk.trainer
        if news is None or following is None or following.run != news.body.run or trainer.opened is None:
            return False
        if news.epoch != desk.ledger.state.epoch or trainer.state not in _STEADY:
            return False
        if desk.leases.held is not None and trainer.ready:
            return False
        newest = self._newest if self._aside else following.replica.held
        if newest is None or news.version != newest + 1:
            return False
        if news.members is None:
            if in_cohort(news.body.cohort, news.body.round, self.name):
                return False
        elif self.name in news.members:
            return False
        self._newest = news.version
        return True

    def _news(self, message: Arrived) -> _News | None:
        """What an announcement says; None: nothing that could wait."""
        envelope = self._mail.open(message.topic, message.payload)
        body = envelope.body
        if not isinstance(body, Announcement) or body.state != "running" or body.inline_delta is None:
            return None
        members = None if body.cohort.devices is None else frozenset(body.cohort.devices)
        return _News(body, envelope.epoch, body.manifest.version, members)

    def _read(self, until: float) -> None:
        """Tell the core of all that came up to now, as it came."""
        if not self._aside or self._reading:
            return
        self._reading = True
        while True:
            event, at = self._next(until)
            if event is None:
                break
            self._handle(event, at)
        self._reading = False
        if self._asked is not None:
            (at, trainer, request), self._asked = self._asked, None
            self.world.at(at + self.world.start_s, lambda: self._answered(trainer, request))
        self._arm(until)

    def _next(self, until: float) -> tuple[Event | None, float]:
        """What happened next, and when: a packet, an answer of the trainer, or a deadline."""
        deadline = self.agent.next_deadline()
        packet_at = self._aside[0][0] if self._aside else until + 1.0
        answer_at = self._asked[0] if self._asked is not None else until + 1.0
        if deadline is not None and deadline < min(packet_at, answer_at) and deadline <= until:
            return TimePassed(), deadline
        if min(packet_at, answer_at) > until:
            return None, until
        if packet_at <= answer_at:
            at, packet = self._aside.popleft()
            self.connection.count_received(packet.topic, packet.payload)
            return packet, at
        assert self._asked is not None
        (at, trainer, request), self._asked = self._asked, None
        trainer.request = None
        return TrainerAnswered(trainer.generation, trainer.answer(request)), at

    def _answered(self, trainer: VirtualTrainer, request: Request) -> None:
        if self._trainer is trainer:
            trainer.request = None
            self.tell(TrainerAnswered(trainer.generation, trainer.answer(request)))

    # ------------------------------------------------------------------------------ while it reads

    def _ask(self, effect: Ask) -> None:
        trainer, request = self._trainer, effect.request
        if not self._reading or trainer is None:
            super()._ask(effect)
            return
        trainer.request = request
        self._asked = self._told_at + trainer.takes_s(request, self.options.times), trainer, request

    def _arm(self, now: float) -> None:
        if not self._reading:
            super()._arm(now)

    _perform: ClassVar[dict[type[Effect], Callable[[Any, Any], None]]] = {
        **VirtualDevice._perform,  # noqa: SLF001 - of its own base
        Ask: _ask,
    }
