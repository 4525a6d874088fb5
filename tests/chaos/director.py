"""A seeded schedule of misfortunes, and who lifts them again.

Every choice comes from the seed; when exactly a process is hit, in the middle of what, is the machine's own chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from paho.mqtt import publish

from fedmq_protocol.topics import Topics
from tests.chaos import ground
from tests.chaos.actors import Actor
from tests.chaos.recovery import Recoveries
from tests.chaos.stage import FEDERATION, Stage
from tests.chaos.witness import COORDINATOR

_LOOK_S: Final = 0.05
_WEIGH_S: Final = 2.0
_GROWN_UP_S: Final = 10.0
_STALL_S: Final = 150.0
_AFTERMATH_S: Final = 30.0
"""For so long after a disk was full, a process may end because of it."""
_KILLED: Final = {COORDINATOR: 0.25, "broker": 0.15, "device": 0.4, "trainer": 0.2}
"""Whom a kill hits."""
_FAULTS: Final = {
    "kill": 0.52,
    "pause": 0.14,
    "cut": 0.06,
    "freeze": 0.05,
    "slow": 0.04,
    "cable": 0.08,
    "disk": 0.06,
    "vandal": 0.02,
    "join": 0.03,
}
_CABLES: Final = (("unplug",), ("flicker",), ("tbf", "rate", "64kbit", "burst", "1600", "limit", "30000"))
_NETEM: Final = (
    ("netem", "delay", "200ms", "100ms", "distribution", "normal"),
    ("netem", "loss", "20%", "25%"),
    ("netem", "delay", "50ms", "20ms", "loss", "5%", "duplicate", "5%", "reorder", "25%", "50%"),
)
"""Where the kernel has it."""
_FLICKER_S: Final = (0.4, 0.1)
"""Up and down: what is sent meanwhile is lost, and TCP has to say it again."""


@dataclass
class Director:
    """Lets things happen.

    Args:
        stage: on which.
        seed: of every choice.
        pace_s: mean time between two misfortunes.
        most_devices: so many may there be, late joiners included.
    """

    stage: Stage
    seed: int
    pace_s: float = 3.0
    most_devices: int = 5
    faults: list[str] = field(default_factory=list)
    """What should not have been."""
    told: Counter[str] = field(default_factory=Counter)
    """What has happened, how often."""
    story: list[str] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    _expected_down: set[str] = field(default_factory=set)
    _disk_was_full: dict[str, float] = field(default_factory=dict)
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)
    _began: float = field(default_factory=time.monotonic)
    _good_since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self.recoveries = Recoveries(self.stage)

    @property
    def num_kills(self) -> int:
        return sum(count for what, count in self.told.items() if what.startswith("kill "))

    async def play(self, kills: int) -> None:
        """One misfortune after the other, until so many kills."""
        watch = asyncio.create_task(self._watch())
        try:
            while self.num_kills < kills:
                if watch.done():
                    watch.result()
                await asyncio.sleep(min(4 * self.pace_s, self._chance.expovariate(1 / self.pace_s)))
                (what,) = self._chance.choices(list(_FAULTS), list(_FAULTS.values()))
                happening = getattr(self, f"_{what}")()
                task = asyncio.create_task(self._alone(happening))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            await asyncio.gather(*self._under_way)
        finally:
            watch.cancel()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(watch, *self._under_way, return_exceptions=True)

    async def _alone(self, happening: Awaitable[None]) -> None:
        try:
            await happening
        except OSError as error:
            self.faults.append(f"the harness failed: {error}")

    def tell(self, what: str, detail: str = "") -> None:
        """Note what happens."""
        self.told[what] += 1
        self.story.append(f"{time.monotonic() - self._began:8.2f} {what} {detail}".rstrip())

    # ------------------------------------------------------------------------------------------ misfortunes

    @contextlib.contextmanager
    def _claim(self, *names: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        """Whether nothing else happens to these just now; if so, keep others off."""
        free = not self._busy & set(names)
        if free:
            self._busy |= set(names)
        try:
            yield free
        finally:
            if free:
                self._busy -= set(names)

    def _target(self) -> str:
        (kind,) = self._chance.choices(list(_KILLED), list(_KILLED.values()))
        return self._chance.choice(self.stage.device_names) if kind == "device" else kind

    async def _kill(self) -> None:
        name, wait_s, again = self._target(), self._chance.uniform(0, 2.5), self._chance.random() < 0.2
        soon_s = self._chance.uniform(0.05, 1.2)
        if name == "trainer":
            self._hit_trainer(signal.SIGKILL)
            return
        with self._claim(name) as free:
            if not free or self.stage.actors[name].state == "down":
                return
            await self._kill_and_start(name, wait_s)
            if again:  # while it is still finding its feet
                await asyncio.sleep(soon_s)
                if self.stage.actors[name].state != "down":
                    await self._kill_and_start(name, wait_s / 4)

    async def _kill_and_start(self, name: str, wait_s: float) -> None:
        actor = self.stage.actors[name]
        self._expected_down.add(name)
        actor.kill()
        self.tell(f"kill {_kind(name)}", name)
        await asyncio.sleep(wait_s)
        self._expected_down.discard(name)
        self._start(actor)

    def _start(self, actor: Actor) -> None:
        actor.start()
        self.recoveries.started(actor)

    def _hit_trainer(self, number: signal.Signals) -> int | None:
        trainers = sorted(self.stage.trainers())
        if not trainers:
            return None
        pid = self._chance.choice(trainers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.tell("kill trainer" if number == signal.SIGKILL else "pause trainer", str(pid))
            return pid
        return None

    async def _pause(self) -> None:
        name, for_s = self._target(), self._chance.choice((0.3, 1.0, 3.0, 9.0))
        then_kill = self._chance.random() < 0.15
        if name == "trainer":
            pid = self._hit_trainer(signal.SIGSTOP)
            await asyncio.sleep(for_s)
            if pid is not None and pid in self.stage.trainers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            return
        with self._claim(name) as free:
            actor = self.stage.actors[name]
            if not free or actor.state != "up":
                return
            actor.pause()
            self.tell(f"pause {_kind(name)}", f"{name} for {for_s} s")
            await asyncio.sleep(for_s)
            if then_kill:
                await self._kill_and_start(name, 0.5)
            else:
                actor.go_on()

    def _someone(self) -> str:
        return self._chance.choice([COORDINATOR, *self.stage.device_names])

    async def _cut(self) -> None:
        await self._at_door("cut", lambda name: self.stage.doors[name].shut(), (0.0, 0.5, 2.0, 6.0))

    async def _freeze(self) -> None:
        await self._at_door("freeze", lambda name: self.stage.doors[name].freeze(), (0.5, 2.0, 6.0, 12.0))

    async def _slow(self) -> None:
        rate = self._chance.choice((2_000.0, 10_000.0, 50_000.0))

        def slow(name: str) -> None:
            self.stage.doors[name].bytes_a_second = rate

        await self._at_door("slow", slow, (3.0, 8.0))

    async def _at_door(self, what: str, do: Callable[[str], None], lengths: tuple[float, ...]) -> None:
        name, for_s = self._someone(), self._chance.choice(lengths)
        with self._claim(f"door {name}") as free:
            if not free:
                return
            do(name)
            self.tell(f"{what} network", f"{name} for {for_s} s")
            await asyncio.sleep(for_s)
            self.stage.doors[name].mend()

    async def _cable(self) -> None:
        (what, *arguments) = self._chance.choice(_CABLES + (_NETEM if ground.has_netem() else ()))
        name, for_s = self._chance.choice(self.stage.device_names), self._chance.choice((1.0, 4.0, 10.0))
        with self._claim(f"cable {name}") as free:
            if not free or name not in self.stage.networks:
                return
            network = self.stage.networks[name]
            self.tell(f"cable {what}", f"{name} {' '.join(arguments)} for {for_s} s")
            if what == "flicker":
                for _ in range(round(for_s / sum(_FLICKER_S))):
                    network.unplug()
                    await asyncio.sleep(_FLICKER_S[1])
                    network.plug_in()
                    await asyncio.sleep(_FLICKER_S[0])
            else:
                network.unplug() if what == "unplug" else network.impair(what, *arguments)
                await asyncio.sleep(for_s)
            network.mend()

    async def _disk(self) -> None:
        name, for_s = self._someone(), self._chance.choice((0.5, 2.0, 6.0))
        room = self._chance.choice((0, 4_096, 40_000))
        with self._claim(f"disk {name}") as free:
            if not free or name not in self.stage.disks:
                return
            self._disk_was_full[name] = float("inf")
            self.stage.disks[name].fill(room_bytes=room)
            self.tell("full disk", f"{name} for {for_s} s")
            await asyncio.sleep(for_s)
            self.stage.disks[name].empty()
            self._disk_was_full[name] = time.monotonic()

    async def _vandal(self) -> None:
        """Somebody clears what is retained."""
        with self._claim("broker") as free:
            if not free or self.stage.actors["broker"].state != "up":
                return
            with contextlib.suppress(OSError):
                await clear_retained(self.stage)
                self.tell("retained cleared")

    async def _join(self) -> None:
        """A device that nobody knows comes late."""
        with self._claim("joining") as free:
            number = len(self.stage.device_names) + 1
            if free and number <= self.most_devices:
                actor = await self.stage.add_device(number)
                self.tell("late joiner", actor.name)
                self._start(actor)

    # ------------------------------------------------------------------------------------------ watching

    async def _watch(self) -> None:
        """Start again who ended by itself, as an init system would; see that the run goes on."""
        weigh_at = 0.0
        while True:
            for name, actor in list(self.stage.actors.items()):
                if actor.state == "down" and name not in self._expected_down and name not in self._busy:
                    self._ended(actor)
            self.recoveries.look()
            if time.monotonic() > weigh_at:
                weigh_at = time.monotonic() + _WEIGH_S
                for actor in self.stage.actors.values():
                    actor.weigh()
            self._see_progress()
            await asyncio.sleep(_LOOK_S)

    def _ended(self, actor: Actor) -> None:
        code, words = actor.ends[-1] if actor.ends else (0, "")
        last = words.splitlines()[-1] if words else "it said nothing"
        was_full = self._disk_was_full.get(actor.name)
        if was_full is not None and time.monotonic() - was_full < _AFTERMATH_S:
            self.tell(f"end of {_kind(actor.name)} on a full disk", last)
        else:
            self.tell(f"end of {_kind(actor.name)} by itself", f"code {code}: {last}")
            self.faults.append(f"{actor.name} ended by itself with code {code}: {last}")
        self._start(actor)

    def memory(self) -> dict[str, dict[str, int]]:
        """MB by participant: the most, and the median of those past their start, early and late in the run."""
        table = {}
        for name, actor in self.stage.actors.items():
            grown_up = [kb for age, kb in actor.resident if age > _GROWN_UP_S] or [0]
            third = max(1, len(grown_up) // 3)
            table[name] = {
                "most": max((kb for _, kb in actor.resident), default=0) // 1024,
                "first_third": round(statistics.median(grown_up[:third]) / 1024),
                "last_third": round(statistics.median(grown_up[-third:]) / 1024),
            }
        return table

    def is_good(self) -> bool:
        """Whether nothing is wrong just now."""
        return not self._busy and all(actor.state == "up" for actor in self.stage.actors.values())

    def _see_progress(self) -> None:
        now = time.monotonic()
        if not self.is_good():
            self._good_since = now
            return
        last = max(self.stage.witness.accepted_at.values(), default=self._began)
        if now - max(last, self._good_since) > _STALL_S:
            self.faults.append(f"nothing was accepted for {_STALL_S:g} s in which nothing was wrong")
            self._good_since = now


async def clear_retained(stage: Stage) -> None:
    """Remove from the broker what the coordinator has it retain."""
    topics = Topics(FEDERATION)
    cleared = [*stage.witness.chunk_topics, topics.announcement, topics.coordinator_status]
    messages: list[Any] = [(topic, b"", 0, True) for topic in cleared]
    await asyncio.to_thread(publish.multiple, messages, hostname="127.0.0.1", port=stage.broker_port)


def _kind(name: str) -> str:
    return "device" if name.startswith("dev-") else name
