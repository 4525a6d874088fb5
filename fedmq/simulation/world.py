"""Virtual time: a heap of what is to happen, one thing at a time, the same for the same seed to the bit.

Nothing here, nor in what runs in it, looks at a clock, at the order of a set, or at a hash. Chance comes from streams,
one for each purpose, so that one more draw in one place changes nothing in another.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Final, TypeAlias

from fedmq_protocol.errors import FedmqError

Action: TypeAlias = Callable[[], object]

START_S: Final = 1_800_000_000.0
"""What the clock says at the beginning, unless told otherwise: seconds since 1970."""


_SPIN: Final = 100


class SpinError(FedmqError):
    """Somebody wants to be woken again and again, now."""


class World:
    """The clock, and what is to happen.

    Args:
        seed: names the history.
        start_s: what the clock says at the beginning, in seconds since 1970.

    Attributes:
        now: seconds; never less than before.
        steps: how many things have happened.
        after_step: called after each of them, if set: what must always hold is checked there.
    """

    __slots__ = ("_due", "_next", "after_step", "now", "seed", "start_s", "steps")

    def __init__(self, seed: int, *, start_s: float = START_S) -> None:
        self.seed = seed
        self.now = self.start_s = start_s
        self.steps = 0
        self.after_step: Callable[[], object] | None = None
        self._due: list[tuple[float, int, Action]] = []
        self._next = 0

    def stream(self, *purpose: str | int) -> random.Random:
        """The stream of chance for one purpose, from its beginning."""
        name = "\0".join(map(str, (self.seed, *purpose))).encode()
        return random.Random(int.from_bytes(hashlib.blake2b(name, digest_size=16).digest()))  # noqa: S311

    def at(self, when: float, action: Action) -> None:
        """Have `action` done at `when`; what is set for one moment happens in the order in which it was set."""
        heapq.heappush(self._due, (max(self.now, when), self._next, action))
        self._next += 1

    def after(self, delay_s: float, action: Action) -> None:
        """Have `action` done in so many seconds."""
        self.at(self.now + delay_s, action)

    @property
    def next_at(self) -> float | None:
        """When the next thing happens; None: nothing is left."""
        return self._due[0][0] if self._due else None

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._due:
            return False
        self.now, _, action = heapq.heappop(self._due)
        self.steps += 1
        action()
        if self.after_step is not None:
            self.after_step()
        return True

    def run(self, until: float, *, done: Callable[[], bool] | None = None) -> None:
        """Let happen what is due up to `until`, or until `done` says so after a step."""
        due, after_step, pop = self._due, self.after_step, heapq.heappop
        while due and due[0][0] <= until:
            self.now, _, action = pop(due)
            self.steps += 1
            action()
            if after_step is not None:
                after_step()
            if done is not None and done():
                return
        self.now = max(self.now, until)


class Timer:
    """The one deadline of somebody who is to be woken, and who may change it often.

    Args:
        world: the clock.
        wake: called when the deadline has come.
    """

    __slots__ = ("_at", "_set_for", "_wake", "_wakes", "_woken_at", "_world")

    def __init__(self, world: World, wake: Callable[[], object]) -> None:
        self._world, self._wake = world, wake
        self._wakes, self._woken_at = 0, 0.0
        self._at: float | None = None
        self._set_for = float("inf")

    def set(self, at: float | None) -> None:
        """Wake then; None: not at all. A later deadline than before costs nothing."""
        self._at = at
        if at is not None and at < self._set_for:
            self._set_for = at
            self._world.at(at, lambda: self._due(at))

    def _due(self, set_for: float) -> None:
        if set_for != self._set_for:
            return  # an earlier one was set since, and has set this one's successor
        self._set_for = float("inf")
        at = self._at
        if at is None:
            return
        if at > self._world.now:
            self.set(at)
            return
        self._at = None
        self._wakes = self._wakes + 1 if self._woken_at == self._world.now else 0
        self._woken_at = self._world.now
        if self._wakes > _SPIN:
            raise SpinError(f"woken {_SPIN} times at {self._world.now}, and wants to be woken now again")
        self._wake()


class LocalClock:
    """Somebody's own clock, which may be wrong, run too fast, and be put forward or back.

    Args:
        world: true time.
        ahead_s: by how much it is ahead at the beginning.
        rate: its seconds in a true one.
    """

    __slots__ = ("_ahead_s", "_rate", "_world")

    def __init__(self, world: World, *, ahead_s: float = 0.0, rate: float = 1.0) -> None:
        self._world, self._rate = world, rate
        self._ahead_s = ahead_s

    def __call__(self) -> float:
        """What it says."""
        start_s = self._world.start_s
        return start_s + (self._world.now - start_s) * self._rate + self._ahead_s

    def jump(self, seconds: float) -> None:
        """Put it forward, or back."""
        self._ahead_s += seconds
