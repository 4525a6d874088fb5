"""The coordinator's model host: a trainer child holds the task's own code, the coordinator needs no PyTorch.

The child is started at the first call, and again after it has died. It holds one task at a time; a call for another
task opens that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.settings import Start
from fedmq_coordinator.shell.model_host import Beginning, TaskDescription
from fedmq_edge_agent.trainer.client import TrainerClient
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_protocol.errors import FedmqError, UsageError
from fedmq_protocol.schema import TensorSchema

_LARGE: Final = 1_000_000
"""Elements of a model that is not kept without a purpose."""
_GONE: Final = frozenset({"trainer-died", "trainer-timeout"})


class TrainerModelHost:
    """`fedmq_coordinator.shell.model_host.ModelHost` over a trainer child.

    Args:
        nursery: the socket of a nursery that forks the child; None: the child is a process of its own.
        threads: of PyTorch, in a child of its own; 0: as it decides.
        data: settings for the task's `load_test_data`, as [coordinator.data] has them.
        timeout_s: a call that takes longer ends the child, and fails.
    """

    def __init__(
        self,
        *,
        nursery: Path | None = None,
        threads: int = 0,
        data: Mapping[str, Any] | None = None,
        timeout_s: float = 3600.0,
    ) -> None:
        self._nursery = nursery
        self._threads = threads
        self._data = dict(data or {})
        self._timeout_s = timeout_s
        self._client: TrainerClient | None = None
        self._task: str | None = None
        self._opened: TaskDescription | None = None
        self._turn = asyncio.Lock()

    async def describe(self, task: str) -> TaskDescription:
        """What the task is called, its schema, and whether it brings central data.

        Raises:
            UsageError: the task cannot be loaded; names the file, the line and the fault.
            FedmqError: the child died.
        """
        async with self._turn:
            return await self._open(task)

    async def initial(
        self,
        task: str,
        *,
        seed: int,
        checkpoint: Path | None,
        start: Start = "snapshot",
        snapshot: str = "int8",
    ) -> Beginning:
        """What a run begins with: weights, float32[schema.size], or a recipe for them.

        Raises:
            UsageError: the task or the checkpoint cannot be used.
            FedmqError: the child died.
        """
        async with self._turn:
            description = await self._open(task)
            source = None if checkpoint is None else _absolute(checkpoint)
            answer = await self._call("init", seed=seed, checkpoint=source, start=start, rebase=snapshot)
            if "snapshot" in answer:
                beginning = Beginning(recipe=answer["snapshot"])
            else:
                file = Path(answer["file"])
                weights = await asyncio.to_thread(_take_vector, file, description.schema.size)
                beginning = Beginning(weights=weights, why=answer["why"])
            if description.schema.size >= _LARGE and not description.has_central_data:
                await self.close()  # there may be no more for it to do, and it holds a model
            return beginning

    async def evaluate(self, task: str, vector: NDArray[np.float32]) -> tuple[float, int, dict[str, float]]:
        """Loss, number of examples and metrics of `vector`, float32[schema.size], on the central data.

        Raises:
            UsageError: the task has no central data, or its code fails.
            FedmqError: the child died.
        """
        async with self._turn:
            await self._open(task)
            with _vector_file(vector) as file:
                answer = await self._call("evaluate", file=str(file))
        return answer["loss"], answer["num_examples"], answer["metrics"]

    async def export(self, task: str, vector: NDArray[np.float32], out: Path) -> None:
        """Write `vector`, float32[schema.size], as safetensors with the names, shapes and dtypes of the state_dict.

        Raises:
            UsageError: the file cannot be written.
            FedmqError: the child died.
        """
        async with self._turn:
            await self._open(task)
            with _vector_file(vector) as file:
                await self._call("export", file=str(file), out=_absolute(out))

    async def centralised(
        self, task: str, *, epochs: int, train: Mapping[str, Any], seed: int, devices: list[dict[str, Any]]
    ) -> list[float]:
        """Train on the data of all `devices` in one place; the accuracy after each epoch, for comparison.

        Raises:
            UsageError: the task has no central data, or its code fails.
            FedmqError: the child died.
        """
        async with self._turn:
            await self._open(task)
            answer = await self._call(
                "centralised", epochs=epochs, train=dict(train), seed=seed, devices=devices
            )
        accuracy: list[float] = answer["accuracy"]
        return accuracy

    async def close(self) -> None:
        """End the child."""
        client, self._client, self._opened = self._client, None, None
        if client is not None:
            await client.close()

    async def _open(self, task: str) -> TaskDescription:
        if self._opened is not None and self._task == task and self._client is not None:
            return self._opened
        self._opened = None
        if self._client is None:
            if self._nursery is None:
                self._client = await TrainerClient.spawn(threads=self._threads)
            else:
                self._client = await TrainerClient.connect(self._nursery)
        answer = await self._call("open", task=_place(task), settings=self._data, role="coordinator")
        self._task = task
        self._opened = TaskDescription(
            name=answer["name"],
            version=answer["version"],
            schema=TensorSchema.model_validate(answer["schema"]),
            has_central_data=answer["has_central_data"],
        )
        return self._opened

    async def _call(self, op: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - the operation's own
        assert self._client is not None
        try:
            return await self._client.call(op, timeout_s=self._timeout_s, **arguments)
        except TrainerError as error:
            if error.code in _GONE:
                await self.close()
                raise FedmqError(f"the model host failed: {error.detail}") from None
            raise UsageError(error.detail) from None


def _place(task: str) -> str:
    """A file's place does not depend on where the child runs; an installed module has a name."""
    return _absolute(Path(task)) if ".py" in task or "/" in task else task


def _absolute(path: Path) -> str:
    return str(path.expanduser().absolute())


@contextlib.contextmanager
def _vector_file(vector: NDArray[np.float32]) -> Iterator[Path]:
    lent = getattr(vector, "filename", None)  # of an np.memmap: its raw values are in a file already
    if lent is not None and Path(lent).is_file():
        yield Path(lent)
        return
    descriptor, name = tempfile.mkstemp(prefix="fedmq-vector-", suffix=".f32")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(np.ascontiguousarray(vector, dtype="<f4").data)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _take_vector(file: Path, size: int) -> NDArray[np.float32]:
    """The values in a file, which goes with the last look at them; none of them is read yet."""
    try:
        made = file.stat().st_size // 4
        if made != size:
            raise FedmqError(f"the model host made {made} weights instead of {size}")
        return np.memmap(file, dtype="<f4", mode="r") if size else np.zeros(0, dtype=np.float32)
    finally:
        file.unlink(missing_ok=True)
