"""The network of a plan: calm but for the messages that the plan names, and for who is stalled."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

from fedmq.simulation.faults.plan import ON_MESSAGES, Fault
from fedmq.simulation.network import Fate, Way, WillFate
from fedmq.simulation.world import World

_SOON_S, _KEEPALIVE_S = 0.1, 15.0
_LATE_WILL_S = (1.0, 20.0, 200.0)


class HostileNetwork:
    """Counts messages, and strikes at those that faults name.

    Args:
        world: the clock, and chance.
        latency_s: of a packet.
        names: the party behind each client id.
        struck: told of every fault that takes effect.
    """

    def __init__(
        self, world: World, latency_s: float, names: Mapping[str, str], struck: Callable[[Fault], None]
    ) -> None:
        self._world, self._latency_s = world, latency_s
        self._names, self._struck = dict(names), struck
        self._usual = Fate(latency_s)
        self._faults: dict[tuple[str, Way, str], dict[int, list[Fault]]] = {}
        self._counts: dict[tuple[str, Way, str], int] = {}
        self._stalled: dict[str, tuple[float, Fault]] = {}
        self._wills: dict[str, str] = {}
        self._chance: random.Random = world.stream("wills")

    def expect(self, faults: Iterable[Fault]) -> None:
        """Have these faults strike, those on messages that have not passed already."""
        for fault in faults:
            if fault.kind in ON_MESSAGES:
                by_count = self._faults.setdefault((fault.who, fault.way, fault.what), {})
                by_count.setdefault(fault.at, []).append(fault)

    def count(self, fault: Fault) -> int:
        """How many messages of its kind there have been."""
        return self._counts.get((fault.who, fault.way, fault.what), 0)

    def calm(self) -> None:
        """No more faults."""
        self._faults.clear()
        self._stalled.clear()
        self._wills.clear()

    def stall(self, fault: Fault) -> None:
        """Whatever goes to `who` from now on takes until it is over."""
        self._stalled[fault.who] = self._world.now + fault.seconds, fault

    def next_will(self, fault: Fault) -> None:
        """The connection of `who` is about to end: what becomes of its last will."""
        if fault.will:
            self._wills[fault.who] = fault.will

    # ------------------------------------------------------------------------------ as a `Network`

    def latency_s(self, client_id: str) -> float:  # noqa: ARG002 - all alike
        return self._latency_s

    def will(self, client_id: str) -> WillFate | None:
        """Sooner or later, as the broker notices; or as a fault has it."""
        match self._wills.pop(self._names[client_id], ""):
            case "never":
                return None
            case "late":
                return WillFate(self._chance.choice(_LATE_WILL_S), outlives=True)
            case _:
                return WillFate(self._chance.choice((_SOON_S, _KEEPALIVE_S)))

    def fate(self, client_id: str, way: Way, topic: str, payload: bytes) -> Fate:  # noqa: ARG002 - as it is asked
        who = self._names[client_id]
        if way == "down" and who in self._stalled:
            until, fault = self._stalled[who]
            if until > self._world.now:
                self._struck(fault)
                return Fate(until - self._world.now)
            del self._stalled[who]
        what = "model" if "/model/" in topic else topic[topic.rindex("/") + 1 :]
        for key in ((who, way, what), (who, way, "")):
            count = self._counts[key] = self._counts.get(key, 0) + 1
            due = self._faults.get(key)
            if due is not None and count in due:
                fault = due[count].pop()
                if not due[count]:
                    del due[count]
                self._struck(fault)
                return self._under(fault)
        return self._usual

    def _under(self, fault: Fault) -> Fate:
        latency_s = self._latency_s
        if fault.cuts or fault.kind == "cut":
            self.next_will(fault)
        match fault.kind:
            case "lose":
                return Fate(latency_s, loss="packet", cuts=fault.cuts)
            case "lose-ack":
                return Fate(latency_s, loss="ack", cuts=fault.cuts)
            case "false-ack":
                return Fate(latency_s, loss="routing")
            case "duplicate":
                return Fate(latency_s, copies=1 + fault.extra)
            case "overtake":
                return Fate(latency_s + fault.seconds, overtakes=True)
            case "delay":
                return Fate(latency_s + fault.seconds)
            case _:
                return Fate(latency_s, cuts=True)
