"""The port to whoever holds the model as such: the coordinator has no PyTorch and never loads a task's code.

The front door injects an implementation over a trainer child; tests inject one of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.settings import Start
from fedmq_protocol.schema import TensorSchema


@dataclass(frozen=True)
class TaskDescription:
    """What a run needs to know of a task."""

    name: str
    version: str
    schema: TensorSchema
    has_central_data: bool
    """Whether the coordinator holds data to evaluate on."""


@dataclass(frozen=True)
class Beginning:
    """What a run begins with: weights that travel, or a recipe that does.

    Attributes:
        weights: float32[schema.size]; None where there is a recipe.
        recipe: the bytes of a first snapshot that holds a recipe; None where there are weights.
        why: why there is no recipe, where one would have been welcome.
    """

    weights: NDArray[np.float32] | None = None
    recipe: bytes | None = None
    why: str = ""


class ModelHost(Protocol):
    """Model work that needs the task's own code. One call at a time; each may take as long as the model does.

    `task` is the path of a Python file, or the name of an importable module. `vector` is float32[schema.size].

    Raises, each of them:
        UsageError: the task or the checkpoint cannot be used; one line that names the file, its line and the mend.
        FedmqError: the host itself fails.
    """

    async def describe(self, task: str) -> TaskDescription: ...

    async def initial(
        self,
        task: str,
        *,
        seed: int,
        checkpoint: Path | None,
        start: Start = "snapshot",
        snapshot: str = "int8",
    ) -> Beginning:
        """What a run begins with: from `checkpoint`, else drawn from `seed`.

        Args:
            task: which.
            seed: of all that is drawn.
            checkpoint: a file with weights.
            start: whether there should be, may be, or must not be a recipe.
            snapshot: the codec of later snapshots, which a recipe names.
        """

    async def evaluate(self, task: str, vector: NDArray[np.float32]) -> tuple[float, int, dict[str, float]]:
        """Loss, number of examples and metrics on the coordinator's own held-out data."""

    async def export(self, task: str, vector: NDArray[np.float32], out: Path) -> None:
        """Write a safetensors file with the names, shapes and dtypes of the state_dict."""

    async def close(self) -> None: ...
