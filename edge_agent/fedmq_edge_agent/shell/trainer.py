"""The core's requests to the trainer as calls to a child process, and its replies as events."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, assert_never

from pydantic import ValidationError

from fedmq_edge_agent.core.effects import ApplyDelta, LoadSnapshot, OpenTask, Request, Restore, Train
from fedmq_edge_agent.core.events import (
    Answer,
    ModelLoaded,
    ResidualRestored,
    TaskOpened,
    TrainerRefused,
    TrainingFinished,
)
from fedmq_edge_agent.shell.bounds import BoundedTrainer
from fedmq_edge_agent.shell.disk import Disk
from fedmq_edge_agent.shell.settings import AgentSettings, TrainerSettings
from fedmq_edge_agent.trainer.client import TrainerClient
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import BlobRef, Evaluation, TaskRef

GONE = frozenset({"trainer-died", "trainer-timeout"})
"""Codes that say that there is no child any more."""


class Child(Protocol):
    """A trainer child, as `TrainerClient` is one."""

    async def call(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever msgpack can say
        """Ask for one operation; raises `TrainerError`."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process id; None: it has none of its own."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    async def close(self) -> None:
        """Release what belongs to it."""
        ...


StartChild = Callable[[], Awaitable[Child]]


def starter(settings: TrainerSettings) -> StartChild:
    """How this device gets a trainer child."""

    async def start() -> Child:
        if settings.nursery is not None:
            client = await TrainerClient.connect(settings.nursery, timeout_s=settings.start_timeout_s)
        else:
            client = await TrainerClient.spawn(threads=settings.threads, nice=settings.nice)
        return BoundedTrainer(client, memory_limit=settings.memory_limit, share=settings.cpu_share)

    return start


class TrainerCalls:
    """Turns requests into calls.

    Args:
        settings: of the device.
        disk: where the files are.
    """

    def __init__(self, settings: AgentSettings, disk: Disk) -> None:
        self._settings = settings
        self._disk = disk

    async def carry_out(self, child: Child, request: Request) -> Answer:
        """Ask `child`, and say what it answered.

        Raises:
            TrainerError: the child is gone.
        """
        try:
            return await self._call(child, request)
        except TrainerError as error:
            if error.code in GONE:
                raise
            return TrainerRefused(error.code, error.detail, error.room_bytes)
        except RemoteError as error:
            return TrainerRefused("bad-model", str(error))
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            line = " ".join(str(error).split())[:300]
            return TrainerRefused("bad-answer", f"the trainer's answer is not understood: {line}")

    async def _call(self, child: Child, request: Request) -> Answer:
        match request:
            case OpenTask():
                return await self._open(child)
            case LoadSnapshot(run, version, file, ref, replica_hash):
                await self._check(run, file, ref)
                path = self._disk.file(run, file)
                await child.call("load_snapshot", version=version, file=path, replica_hash=replica_hash)
                return ModelLoaded(run, version)
            case ApplyDelta():
                return await self._apply_delta(child, request)
            case Train():
                return await self._train(child, request)
            case Restore():
                return await self._restore(child, request)
            case _:
                assert_never(request)

    async def _check(self, run: str, file: str, ref: BlobRef) -> None:
        if ref.size <= 1 << 18:
            self._disk.check(run, file, ref)
        else:
            await asyncio.to_thread(self._disk.check, run, file, ref)

    async def _open(self, child: Child) -> Answer:
        settings = self._settings
        task, data = settings.task, dict(settings.data)
        reply = await child.call("open", task=task, settings=data, role="device", device=settings.id)
        try:
            ref = TaskRef(name=reply["name"], version=reply["version"], schema_hash=reply["schema_hash"])
        except ValidationError as error:
            first = error.errors()[0]
            detail = f"the task's {first['loc'][0]} cannot be announced: {first['msg']}"
            return TrainerRefused("task-error", detail)
        return TaskOpened(ref, tuple(reply["codecs"]), int(reply["num_examples"]))

    async def _apply_delta(self, child: Child, request: ApplyDelta) -> Answer:
        await self._check(request.run, request.file, request.ref)
        wanted = request.snapshot_file
        reply = await child.call(
            "apply_delta",
            version=request.version,
            file=self._disk.file(request.run, request.file),
            rebase=request.rebase,
            replica_hash=request.replica_hash,
            snapshot_file=None if wanted is None else self._disk.file(request.run, wanted),
        )
        made = reply.get("snapshot")
        snapshot = None if made is None else BlobRef.model_validate(made)
        return ModelLoaded(request.run, request.version, snapshot)

    async def _train(self, child: Child, request: Train) -> Answer:
        residual = (
            None if request.residual_file is None else self._disk.file(request.run, request.residual_file)
        )
        reply = await child.call(
            "train",
            run_dir=str(self._disk.run_dir(request.run)),
            run=request.run,
            device=self._settings.id,
            counter=request.counter,
            lease=request.lease,
            base_version=request.base_version,
            seed=request.seed,
            train=request.train.model_dump(),
            upload=request.upload.model_dump(),
            updates_done=request.updates_done,
            residual_file=residual,
            evaluate=request.evaluate,
        )
        if self._settings.slow_s:
            await asyncio.sleep(self._settings.slow_s)
        evaluation = reply.get("evaluation")
        return TrainingFinished(
            run=request.run,
            payload_file=Path(reply["payload_file"]).name,
            payload=BlobRef(size=reply["size"], sha256=reply["sha256"]),
            residual_file=Path(reply["residual_file"]).name,
            num_examples=int(reply["num_examples"]),
            train_s=_finite(reply["train_s"]) + self._settings.slow_s,
            metrics={
                str(name)[:64]: value for name, value in reply["metrics"].items() if math.isfinite(value)
            },
            evaluation=None if evaluation is None else Evaluation.model_validate(evaluation),
            residual_dropped=_finite(reply["residual_dropped"]),
        )

    async def _restore(self, child: Child, request: Restore) -> Answer:
        before = (
            None if request.residual_file is None else self._disk.file(request.run, request.residual_file)
        )
        await child.call(
            "restore",
            payload_file=self._disk.file(request.run, request.payload_file),
            residual_file=before,
            out_file=self._disk.file(request.run, request.out_file),
            run=request.run,
            device=self._settings.id,
        )
        return ResidualRestored(request.run, request.counter, request.out_file)


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) and value >= 0 else 0.0
