"""A whole federation in virtual time: a coordinator, a broker and devices, joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.broker import Broker, Limits
from fedmq.simulation.coordinator import CoordinatorOptions, Evaluation, VirtualCoordinator
from fedmq.simulation.device import DeviceOptions, VirtualDevice
from fedmq.simulation.learner import Learner
from fedmq.simulation.mail import Mail
from fedmq.simulation.network import Calm, Network
from fedmq.simulation.replicas import Replicas
from fedmq.simulation.watch import Watch
from fedmq.simulation.world import World
from fedmq_coordinator.core.events import RunRequested
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.settings import RunSettings

Vector = NDArray[np.float32]

FEDERATION = "home"


@dataclass(frozen=True)
class Cast:
    """Who takes part.

    Attributes:
        learner: what is trained.
        devices: their ids.
        options: of those devices that are not as usual.
        coordinator: its options.
        limits: the broker's.
        evaluate: measures float32[schema.size] at the coordinator; None: there is no central data.
        parsed: every packet is parsed from its bytes; else who hears it gets the message that was sealed.
        kind: of device, in the simulation.
        packed: those who can write the shorter form of envelopes do.
    """

    learner: Learner
    devices: Sequence[str]
    options: Mapping[str, DeviceOptions] = field(default_factory=dict)
    coordinator: CoordinatorOptions = field(default_factory=CoordinatorOptions)
    limits: Limits = field(default_factory=Limits)
    evaluate: Callable[[Vector], Evaluation] | None = None
    kind: type[VirtualDevice] = VirtualDevice
    parsed: bool = True
    packed: bool = True


class Federation:
    """All of them, in one world.

    Args:
        seed: names the history.
        cast: who takes part.
        network: what lies between them and the broker; default: one that loses nothing.
        watch: told of all that they do.
    """

    def __init__(
        self, seed: int, cast: Cast, *, network: Network | None = None, watch: Watch | None = None
    ) -> None:
        self.world = World(seed)
        self.cast = cast
        self.watch = Watch() if watch is None else watch
        self.broker = Broker(self.world, Calm() if network is None else network, cast.limits)
        self.mail = Mail(parsed=cast.parsed, packed=cast.packed)
        self.coordinator = VirtualCoordinator(
            self.world,
            self.broker,
            federation=FEDERATION,
            mail=self.mail,
            options=cast.coordinator,
            evaluate=cast.evaluate,
            watch=self.watch,
        )
        self.replicas = Replicas(cast.learner.schema)
        usual = DeviceOptions()
        self.devices = {
            name: cast.kind(
                self.world,
                self.broker,
                federation=FEDERATION,
                name=name,
                mail=self.mail,
                learner=cast.learner,
                replicas=self.replicas,
                options=cast.options.get(name, usual),
                watch=self.watch,
            )
            for name in cast.devices
        }

    def start(self) -> None:
        """Switch everybody on: the coordinator at once, devices within their first second."""
        self.coordinator.start()
        chance = self.world.stream("start")
        for device in self.devices.values():
            self.world.after(chance.random(), device.start)

    def request(self, settings: RunSettings, *, run: str = "r1", initial: Vector | None = None) -> None:
        """Ask for a run; `initial` is float32[schema.size], by default zeros."""
        schema = self.cast.learner.schema
        self.coordinator.submit(
            RunRequested(
                run,
                settings,
                self.cast.learner.task,
                schema,
                np.zeros(schema.size, np.float32) if initial is None else initial,
                has_central_data=self.cast.evaluate is not None,
            )
        )

    def run(self, name: str = "r1") -> Run | None:
        """A run as the coordinator has it."""
        return self.coordinator.core.runs.get(name)

    def is_over(self, name: str = "r1") -> bool:
        """Whether a run has ended, and that is on disk."""
        coordinator = self.coordinator
        run = self.run(name)
        return run is not None and run.over and coordinator.alive and not coordinator.is_writing
