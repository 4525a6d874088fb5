"""What is asked: which fleet, on which lines, learning what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fedmq.simulation.fleet.distributions import Distribution, parse
from fedmq.simulation.fleet.dropout import Dropout
from fedmq.simulation.fleet.links import LinkKind, parse_link
from fedmq_coordinator.core.settings import RunSettings

NO_TASK: Final = "none"


@dataclass(frozen=True)
class Plan:
    """A fleet, and what it is to do.

    Attributes:
        devices: how many.
        settings: of the run; its mode is one of those that are compared.
        compute: seconds that a device's training usually takes, drawn once for each device.
        jitter: what each training's time is multiplied with.
        network: kinds of lines.
        dropout: when devices go.
        task: `none`, or one of `tables.TABLES`.
        parameters: of the model whose cost counts, with task `none`.
        examples: each device has, with a real task.
        alpha: of the Dirichlet distribution of classes; None: as in the data.
        hidden: units of the model's hidden layer; 0: softmax regression.
        seed: of everything.
        most_s: virtual seconds after which it ends anyway.
    """

    devices: int
    settings: RunSettings
    compute: Distribution = field(default_factory=lambda: parse("lognormal(30, 0.5)"))
    jitter: Distribution = field(default_factory=lambda: parse("lognormal(1, 0.1)"))
    network: tuple[LinkKind, ...] = field(default_factory=lambda: (parse_link("wifi"),))
    dropout: Dropout = field(default_factory=Dropout)
    task: str = NO_TASK
    parameters: int = 100_000
    examples: int = 40
    alpha: float | None = None
    hidden: int = 0
    seed: int = 0
    most_s: float = 30 * 86_400.0

    @property
    def names(self) -> list[str]:
        """The devices' ids."""
        digits = len(str(self.devices - 1))
        return [f"dev-{number:0{digits}}" for number in range(self.devices)]
