"""What stands in for a device's trainer child: the same answers by the same codecs, in virtual time.

It is asked one thing at a time and computes when the answer is due, so that work which a kill makes void costs nothing.
Its files are written in whole before it answers, as the child's are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, assert_never

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.learner import Learner
from fedmq.simulation.replicas import Replica, Replicas
from fedmq.simulation.watch import Trained
from fedmq_edge_agent.core.effects import ApplyDelta, LoadSnapshot, OpenTask, Request, Restore, Train
from fedmq_edge_agent.core.events import (
    Answer,
    ModelLoaded,
    ResidualRestored,
    TaskOpened,
    TrainerRefused,
    TrainingFinished,
)
from fedmq_edge_agent.shell.writing import DiskError
from fedmq_edge_agent.trainer.feedback import cap_factor, update_spec
from fedmq_edge_agent.trainer.seeds import derived_seed
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.codecs import Dense, add_update, encode_update_inplace
from fedmq_protocol.codecs.randk import shared_seed
from fedmq_protocol.errors import CodecError
from fedmq_protocol.messages import BlobRef

if TYPE_CHECKING:
    from fedmq.simulation.device import VirtualDevice

Vector = NDArray[np.float32]

_DIGEST_BYTES: Final = 16


@dataclass(frozen=True)
class TrainerTimes:
    """How long the child takes, in seconds, but for training, which is the learner's to say."""

    start_s: float = 1.0
    open_s: float = 1.0
    model_s: float = 0.05
    restore_s: float = 0.05


class VirtualTrainer:
    """One generation of the child.

    Args:
        device: whose.
        generation: which.
        learner: what it trains.
        replicas: decodes versions.
    """

    def __init__(self, device: VirtualDevice, generation: int, learner: Learner, replicas: Replicas) -> None:
        self._device = device
        self.generation = generation
        self._learner, self._replicas = learner, replicas
        self._held: tuple[int, Replica] | None = None
        self.request: Request | None = None

    def takes_s(self, request: Request, times: TrainerTimes) -> float:
        """How long a request takes."""
        match request:
            case OpenTask():
                return times.open_s
            case LoadSnapshot() | ApplyDelta():
                return times.model_s
            case Restore():
                return times.restore_s
            case Train():
                return self._learner.train_s(self._device.name, request)
            case _:
                assert_never(request)

    def answer(self, request: Request) -> Answer:
        """Do what is asked.

        Raises:
            DiskError: the disk does not take it.
        """
        match request:
            case OpenTask():
                learner = self._learner
                return TaskOpened(
                    learner.task, tuple(learner.codecs), learner.num_examples(self._device.name)
                )
            case LoadSnapshot(run, version, file, ref, replica_hash):
                return self._load(run, version, file, ref, replica_hash)
            case ApplyDelta():
                return self._apply(request)
            case Train():
                return self._train(request)
            case Restore():
                return self._restore(request)
            case _:
                assert_never(request)

    # ------------------------------------------------------------------------------ the replica

    def _file(self, run: str, file: str, ref: BlobRef) -> bytes | None:
        data = self._device.disk.files.get((run, file))
        if data is None or len(data) != ref.size or hashlib.sha256(data).digest() != ref.sha256:
            return None
        return data

    def _load(
        self, run: str, version: int, file: str, ref: BlobRef, replica_hash: bytes | None
    ) -> ModelLoaded | TrainerRefused:
        self._held = None
        data = self._file(run, file, ref)
        if data is None:
            return TrainerRefused("bad-model", f"the file {file} is not what was stored")
        try:
            replica = self._replicas.snapshot(data, ref.sha256)
        except CodecError as error:
            return TrainerRefused("bad-model", str(error))
        return self._keep(run, version, replica, replica_hash)

    def _apply(self, request: ApplyDelta) -> ModelLoaded | TrainerRefused:
        run, version = request.run, request.version
        held, self._held = self._held, None
        data = self._file(run, request.file, request.ref)
        if data is None:
            return TrainerRefused("bad-model", f"the file {request.file} is not what was stored")
        if held is None or held[0] != version - 1:
            return TrainerRefused("bad-request", f"a delta to version {version} on {held and held[0]}")
        try:
            replica = self._replicas.delta(held[1], data, request.ref.sha256, rebase=request.rebase)
        except CodecError as error:
            return TrainerRefused("bad-model", str(error))
        loaded = self._keep(run, version, replica, request.replica_hash)
        if request.snapshot_file is None or replica.snapshot is None or isinstance(loaded, TrainerRefused):
            return loaded
        try:
            self._device.disk.write(run, request.snapshot_file, replica.snapshot.data, durable=False)
        except DiskError:
            return loaded  # a saving: without it the chain goes on where it began
        return ModelLoaded(run, version, replica.snapshot.ref)

    def _keep(
        self, run: str, version: int, replica: Replica, expected: bytes | None
    ) -> ModelLoaded | TrainerRefused:
        if expected is not None and expected != replica.sha256:
            return TrainerRefused("bad-model", f"version {version} decodes to other bits here")
        self._held = version, replica
        self._device.watch.held(self._device, run, version, replica.values)
        return ModelLoaded(run, version)

    # ------------------------------------------------------------------------------ error feedback

    def _residual(self, run: str, file: str | None) -> Vector | TrainerRefused | None:
        if file is None:
            return None
        data = self._device.disk.files.get((run, file), b"")
        values = data[_DIGEST_BYTES:]
        if hashlib.sha256(values).digest()[:_DIGEST_BYTES] != data[:_DIGEST_BYTES]:
            return TrainerRefused("bad-residual", f"{file} is torn, or no residual")
        return np.frombuffer(values, dtype=np.float32)

    def _write_residual(self, run: str, file: str, values: Vector) -> None:
        data = values.tobytes()
        digest = hashlib.sha256(data).digest()[:_DIGEST_BYTES]
        self._device.disk.write(run, file, digest + data, durable=True)

    def _train(self, request: Train) -> TrainingFinished | TrainerRefused:
        device, run, schema = self._device, request.run, self._learner.schema
        if self._held is None or self._held[0] != request.base_version:
            return TrainerRefused("bad-model", f"version {request.base_version} is not held")
        residual = self._residual(run, request.residual_file)
        if isinstance(residual, TrainerRefused):
            return residual
        learnt = self._learner.train(device.name, request, self._held[1].values)
        change = learnt.change[: schema.num_parameters]
        dropped = 0.0
        if residual is not None:
            cap = request.upload.residual_cap
            factor, dropped = cap_factor(Dense(residual).norm(), Dense(change).norm(), cap)
            residual = residual if factor == 1 else residual * np.float32(factor)
        total = change.copy() if residual is None else change + residual
        try:
            spec = update_spec(request.upload, request.updates_done)
            tensors = schema.parameter_sizes if request.upload.per_tensor else ()
            spec = replace(spec, tensors=tensors, seed=shared_seed(request.seed, request.base_version))
            chance = None
            if spec.rounding != "nearest":
                chance = np.random.default_rng(derived_seed(request.seed, device.name, request.lease))
            buffers = learnt.change[schema.num_parameters + schema.num_frozen :]
            payload = encode_update_inplace(total, buffers, schema, spec, rng=chance)
        except CodecError as error:
            return TrainerRefused("bad-request", str(error))
        payload_file, residual_file = f"update-{request.counter}.bin", f"residual-{request.counter}.bin"
        device.disk.write(run, payload_file, payload, durable=True)
        self._write_residual(run, residual_file, total)
        device.watch.trained(device, request, Trained(change, residual, payload, total))
        return TrainingFinished(
            run=run,
            payload_file=payload_file,
            payload=blob_ref(payload),
            residual_file=residual_file,
            num_examples=learnt.num_examples,
            train_s=self._learner.train_s(device.name, request),
            metrics=learnt.metrics,
            evaluation=learnt.evaluation if request.evaluate else None,
            residual_dropped=dropped,
        )

    def _restore(self, request: Restore) -> ResidualRestored | TrainerRefused:
        device, run, schema = self._device, request.run, self._learner.schema
        before = self._residual(run, request.residual_file)
        if isinstance(before, TrainerRefused):
            return before
        payload = device.disk.files.get((run, request.payload_file))
        if payload is None:
            return TrainerRefused("bad-file", f"{request.payload_file} is gone")
        after = np.zeros(schema.num_parameters, np.float32) if before is None else before.copy()
        try:
            add_update(after, payload, schema)
        except CodecError as error:
            return TrainerRefused("bad-file", str(error))
        self._write_residual(run, request.out_file, after)
        device.watch.restored(device, request, before, after)
        return ResidualRestored(run, request.counter, request.out_file)
