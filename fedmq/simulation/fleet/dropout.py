"""Devices that go and come: a power cut with whatever they were at, and a start some time later.

none
up=2h down=10min               so long on and so long off, in the mean (exponential), or as distributions
training=0.05 down=60s         of the trainings, this share is cut short somewhere in between
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.fleet.distributions import Distribution, Part, parse
from fedmq.simulation.world import World
from fedmq_protocol.errors import UsageError

_FIELDS: Final = ("up", "down", "training")
_DEFAULT_DOWN: Final = Distribution("60s", (Part(1.0, "exponential", (60.0,)),))


@dataclass(frozen=True)
class Dropout:
    """When devices go.

    Attributes:
        text: as it was written.
        up: seconds that a device stays on; None: until a training is cut short.
        down: seconds that it stays off.
        training: the share of trainings that are cut short.
    """

    text: str = "none"
    up: Distribution | None = None
    down: Distribution = _DEFAULT_DOWN
    training: float = 0.0

    def begin(self, world: World, devices: Iterable[VirtualDevice], rng: np.random.Generator) -> None:
        """Let them go and come from now on."""
        if self.up is not None:
            for device in devices:
                world.after(self.up.draw(rng), self._cut(world, device, self.up, rng))

    def _cut(
        self, world: World, device: VirtualDevice, up: Distribution, rng: np.random.Generator
    ) -> Callable[[], None]:
        def cut() -> None:
            down_s = self.down.draw(rng)
            device.cut_power(down_s=down_s)
            world.after(down_s + up.draw(rng), cut)

        return cut

    def training_begins(
        self, world: World, device: VirtualDevice, train_s: float, rng: np.random.Generator
    ) -> None:
        """A training of so many seconds has begun; perhaps it will not end."""
        if self.training and rng.random() < self.training:
            life, down_s = device.starts, self.down.draw(rng)
            world.after(
                train_s * rng.random(),
                lambda: device.cut_power(down_s=down_s) if device.starts == life else None,
            )


def parse_dropout(text: str) -> Dropout:
    """Read how devices drop out.

    Raises:
        UsageError: it cannot be read.
    """
    if text.strip() in {"", "none"}:
        return Dropout()
    fields: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or name not in _FIELDS or name in fields:
            raise UsageError(f"{text!r} is no dropout: none, up=2h down=10min, or training=0.05 down=60s")
        fields[name] = value
    training = parse(fields["training"]).mean if "training" in fields else 0.0
    if not 0 <= training < 1:
        raise UsageError(f"{text!r}: training is a share below 1")
    up = _span(fields["up"]) if "up" in fields else None
    down = _span(fields["down"]) if "down" in fields else _DEFAULT_DOWN
    if up is not None and up.mean <= 0:
        raise UsageError(f"{text!r}: a device that is never on")
    return Dropout(text, up, down, training)


def _span(text: str) -> Distribution:
    """A distribution; a mere number is the mean of an exponential one."""
    read = parse(text)
    (part, *others) = read.parts
    if part.family == "constant" and not others and "constant" not in text and part.arguments[0] > 0:
        return Distribution(text, (Part(1.0, "exponential", part.arguments),))
    return read
