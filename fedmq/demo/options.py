"""What a demo is asked for, checked, and as the settings of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedmq.tasks import BUILT_IN
from fedmq_protocol.errors import UsageError

MODES: Final = ("sync", "fedasync", "fedbuff")
PARTITIONS: Final = ("iid", "dirichlet", "shards")
COMPRESSIONS: Final = ("default", "none")
OWN_BROKERS: Final = ("mosquitto", "embedded")
"""What may stand for the URL of a broker, to have the demo start one of that kind."""

_UPDATES: Final = 20

DEFAULT_TARGET: Final = 0.95
"""What rounds and bytes are counted to where no target is given; without one the run does not stop at it."""

_TRAIN: Final[dict[str, dict[str, Any]]] = {
    "digits": {"local_epochs": 2, "batch_size": 32, "lr": 0.05, "momentum": 0.9},
    "iris": {"local_epochs": 5, "batch_size": 8, "lr": 0.02, "momentum": 0.9},
    "breast-cancer": {"local_epochs": 2, "batch_size": 16, "lr": 0.02, "momentum": 0.9},
}
_DENSE: Final = {
    "up": "float32",
    "down": "float32",
    "snapshot": "float32",
    "start": "snapshot",
    "density": 1.0,
    "down_density": 1.0,
}
_SMALL_MODEL: Final = {"density": 0.25, "down_density": 0.25}
"""Where a model has a thousand parameters, two in a hundred of them say too little a round."""


@dataclass(frozen=True)
class DemoOptions:
    """The options of `fedmq demo`."""

    devices: int = 10
    rounds: int | None = None
    mode: str = "sync"
    partition: str = "iid"
    alpha: float = 0.3
    task: str = "digits"
    density: float | None = None
    compression: str = "default"
    stragglers: int = 0
    straggler_delay_s: float = 3.0
    dropouts: int = 0
    broker: str | None = None
    target: float | None = None
    seed: int = 0
    out: Path = Path("fedmq-demo")
    sets: Mapping[str, str] | None = None
    """Any setting of a run beyond these, as text: `selection.deadline_factor` -> `1.5`."""
    keep: bool = False

    @property
    def outside_broker(self) -> str | None:
        """The URL of a broker that is there already; None where the demo starts one."""
        return None if self.broker in {None, *OWN_BROKERS} else self.broker

    def check(self) -> None:
        """Look for what cannot be.

        Raises:
            UsageError: the options contradict each other.
        """
        if self.stragglers > self.devices:
            raise UsageError(f"--stragglers {self.stragglers} is more than --devices {self.devices}")
        if self.dropouts >= self.devices:
            raise UsageError(
                f"--dropouts {self.dropouts} leaves no device of --devices {self.devices}; it must be less"
            )

    @property
    def task_module(self) -> str:
        """The task as it is installed."""
        return BUILT_IN[self.task]

    @property
    def num_rounds(self) -> int:
        """Rounds, or published versions; by default about twenty updates of each device in every mode."""
        if self.rounds is not None:
            return self.rounds
        match self.mode:
            case "fedasync":
                return _UPDATES * self.devices
            case "fedbuff":
                buffer_size = min(10, max(2, self.devices // 2))  # as the coordinator chooses it
                return math.ceil(_UPDATES * self.devices / buffer_size)
            case _:
                return _UPDATES

    @property
    def device_ids(self) -> list[str]:
        """What the devices are called."""
        if self.task == "iris" and self.devices == 2:  # noqa: PLR2004 - alice and bob are two
            return ["alice", "bob"]
        return [f"dev-{number}" for number in range(1, self.devices + 1)]

    @property
    def slow_ids(self) -> list[str]:
        """The stragglers: the last ones, so that they stand together in the view."""
        return self.device_ids[self.devices - self.stragglers :] if self.stragglers else []

    def data_settings(self, partition_id: int) -> dict[str, Any]:
        """[device.data] of one device: which part of the data is its own."""
        return {
            "partition_id": partition_id,
            "num_partitions": self.devices,
            "partition": self.partition,
            "alpha": self.alpha,
            "seed": self.seed,
        }

    def run_settings(self) -> dict[str, Any]:
        """The [run] table."""
        compression: dict[str, Any] = {}
        if self.compression == "none":
            compression = dict(_DENSE)
        elif self.task != "digits":
            compression = dict(_SMALL_MODEL)
        if self.density is not None and self.compression != "none":
            compression["density"] = self.density
        settings: dict[str, Any] = {
            "mode": self.mode,
            "rounds": self.num_rounds,
            "seed": self.seed,
            # All are there when the run begins; after that it goes on with half of those that are to survive.
            "selection": {"min_available_devices": max(1, (self.devices - self.dropouts) // 2)},
            "train": _TRAIN[self.task],
            "compression": compression,
        }
        if self.target is not None:
            settings["target"] = self.target
        return settings
