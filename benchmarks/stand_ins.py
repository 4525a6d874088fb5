"""What stands where the model host does, in benchmarks of a coordinator that holds a model and trains none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.settings import Start
from fedmq_coordinator.shell.model_host import Beginning, TaskDescription
from fedmq_protocol.schema import TensorSchema

_UNASKED = "nothing of this kind is asked for in this benchmark"


class NumbersHost:
    """Knows one task, whose model is made by a call, and evaluates and exports none.

    Args:
        task: its name.
        schema: the model's.
        begin: makes the first version from the run's seed and the snapshot's codec.
    """

    def __init__(self, task: str, schema: TensorSchema, begin: Callable[[int, str], Beginning]) -> None:
        self._description = TaskDescription(task, "1", schema, has_central_data=False)
        self._begin = begin

    async def describe(self, task: str) -> TaskDescription:  # noqa: ARG002 - as the port has it
        return self._description

    async def initial(
        self,
        task: str,  # noqa: ARG002
        *,
        seed: int,
        checkpoint: Path | None,  # noqa: ARG002
        start: Start = "snapshot",  # noqa: ARG002
        snapshot: str = "int8",
    ) -> Beginning:
        return self._begin(seed, snapshot)

    async def evaluate(self, task: str, vector: NDArray[np.float32]) -> tuple[float, int, dict[str, float]]:
        raise AssertionError(_UNASKED, task, vector.size)

    async def export(self, task: str, vector: NDArray[np.float32], out: Path) -> None:
        raise AssertionError(_UNASKED, task, vector.size, out)

    async def close(self) -> None:
        """Nothing is open."""
