"""What a task learns about the device that it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmq_edge_agent.trainer.errors import TrainerError


@dataclass(frozen=True)
class DeviceContext(Mapping[str, Any]):
    """The settings of this device's `[device.data]`; whatever else stands there is a key of the mapping.

    `context.partition_id` and `context["alpha"]`, `context.get("alpha", 0.3)`.

    Attributes:
        partition_id: which part of the data is this device's, from 0; names as in Flower.
        num_partitions: into how many parts the data are cut.
        folder: where this device's data lie, absolute.
        seed: the seed of the split, the same on all devices of a federation.
        device: the device's id, `""` at the coordinator.
        settings: all settings as they were given.
    """

    partition_id: int = 0
    num_partitions: int = 1
    folder: Path | None = None
    seed: int = 0
    device: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any], *, device: str = "") -> DeviceContext:
        """Check the settings that every task knows.

        Raises:
            TrainerError: `task-error`; one of them is not what it should be.
        """
        partition_id = _whole(settings, "partition_id", 0)
        num_partitions = _whole(settings, "num_partitions", 1)
        if num_partitions < 1 or not 0 <= partition_id < num_partitions:
            detail = (
                f"partition_id = {partition_id} is not one of num_partitions = {num_partitions}; "
                "partitions are counted from 0: mend [device.data]"
            )
            raise TrainerError("task-error", detail)
        folder = settings.get("folder")
        if folder is not None and not isinstance(folder, str):
            raise TrainerError("task-error", f"folder = {folder!r} in [device.data] is not a path")
        return cls(
            partition_id=partition_id,
            num_partitions=num_partitions,
            folder=None if folder is None else Path(folder).expanduser().absolute(),
            seed=_whole(settings, "seed", 0),
            device=device,
            settings=dict(settings),
        )

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - whatever TOML can say
        try:
            return self.settings[key]
        except KeyError:
            raise KeyError(f"[device.data] has no {key}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


def _whole(settings: Mapping[str, Any], key: str, default: int) -> int:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TrainerError(
            "task-error", f"{key} = {value!r} in [device.data] is not a whole number of 0 or more"
        )
    return value
