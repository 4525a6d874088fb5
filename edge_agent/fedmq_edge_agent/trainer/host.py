"""The operations of a trainer child, one method each, found by name in one table.

The host holds one opened task and one replica: the published model version that the device has, bit for bit. It reads
and writes files that the supervisor names; whatever it writes is on disk, whole, before it answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from fedmq_edge_agent.disk_faults import code_of, fault_of, sentence
from fedmq_edge_agent.trainer import weights
from fedmq_edge_agent.trainer.beginning import first_snapshot, new_model
from fedmq_edge_agent.trainer.blame import describe
from fedmq_edge_agent.trainer.centralised import reference
from fedmq_edge_agent.trainer.channel import Message
from fedmq_edge_agent.trainer.dataset import Examples
from fedmq_edge_agent.trainer.durable import flush_folder, replacing, require_room, sweep
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.opened import Opened, Role, central_data, open_task
from fedmq_edge_agent.trainer.paged import Paged, scratch
from fedmq_edge_agent.trainer.process import peak_bytes
from fedmq_edge_agent.trainer.recipes import MisfitError
from fedmq_edge_agent.trainer.residual import Owner, StoredResidual, new_residual
from fedmq_edge_agent.trainer.seeds import derived_seed
from fedmq_edge_agent.trainer.tensors import is_let_go, write_vector
from fedmq_edge_agent.trainer.training import Training
from fedmq_protocol.codecs.model import (
    add_update,
    apply_delta,
    decode_snapshot_into,
    encode_snapshot_to,
    requantise_inplace,
    snapshot_codec,
)
from fedmq_protocol.codecs.randk import shared_seed
from fedmq_protocol.codecs.registry import names
from fedmq_protocol.errors import CodecError
from fedmq_protocol.messages import BlobRef, TrainSettings, UploadSettings

Result = dict[str, Any]
DataName = Literal["test", "train", "central"]
StartName = Literal["auto", "seed", "snapshot"]
Settings = TypeVar("Settings", bound=BaseModel)

_MORE_BYTES: Final = 1 << 16  # for what stands before and between the numbers


@dataclass(frozen=True)
class Replica:
    """The published version that this device holds.

    Attributes:
        version: its number.
        values: float32[schema.size]; where it is large, in a file of its own that nobody else sees.
        codec: of the snapshot that it began with; a rebase uses it again.
    """

    version: int
    values: Paged
    codec: str


class Host:
    """Answers requests, one at a time."""

    def __init__(self) -> None:
        self._opened: Opened | None = None
        self._replica: Replica | None = None

    def handle(self, request: Message) -> Message:
        """Carry out one request; never raises for what the request or the user's code does wrong."""
        identity = request.get("id")
        try:
            return {"id": identity, "ok": True, **self._dispatch(request)}
        except TrainerError as error:
            refusal = {"id": identity, "ok": False, "code": error.code, "detail": error.detail}
            return {**refusal, "room_bytes": error.room_bytes} if error.room_bytes else refusal
        except Exception as error:  # noqa: BLE001 - the supervisor must hear of it, whatever it is
            failure = TrainerError("bad-request", f"{request.get('op')}: {describe(error)}")
            return {"id": identity, "ok": False, "code": failure.code, "detail": failure.detail}

    def _dispatch(self, request: Message) -> Result:
        arguments = {name: value for name, value in request.items() if name not in {"id", "op"}}
        operation = OPERATIONS.get(str(request.get("op")))
        if operation is None:
            raise TrainerError(
                "bad-request",
                f"there is no operation {request.get('op')!r}; there are {', '.join(OPERATIONS)}",
            )
        try:
            inspect.signature(operation).bind(self, **arguments)
        except TypeError as error:
            raise TrainerError("bad-request", f"{request['op']}: {error}") from None
        return operation(self, **arguments)

    def ping(self) -> Result:
        """That the child is there, and its process id, by which the client can end it."""
        return {"pid": os.getpid()}

    def usage(self) -> Result:
        """The most memory that this process has had resident so far."""
        return {"peak_bytes": peak_bytes()}

    def open(self, task: str, settings: dict[str, Any], role: Role, device: str = "") -> Result:
        """Load a task and its data; forgets the one before."""
        self._opened, self._replica = None, None
        opened = self._opened = open_task(task, settings, role, device)
        opened.let_go()
        return {
            "name": opened.task.name,
            "version": opened.task.version,
            "schema": opened.schema.model_dump(mode="json"),
            "schema_hash": opened.schema.hash,
            "num_examples": opened.train_data.count if opened.train_data else 0,
            "num_test_examples": opened.test_data.count if opened.test_data else 0,
            "codecs": list(names()),
            "has_central_data": opened.task.load_test_data is not None,
        }

    # ------------------------------------------------------------------------------------------ the replica

    def load_snapshot(self, version: int, file: str, replica_hash: bytes) -> Result:
        """Let the replica be what a snapshot decodes to."""
        opened, self._replica = self._task(), None
        values = scratch(opened.schema.size, Path(file).parent)
        try:
            with _mapped(file) as data:
                codec = snapshot_codec(data)
                decode_snapshot_into(data, opened.schema, values.vector)
        except CodecError as error:
            raise TrainerError(
                "bad-model", f"the snapshot of version {version} does not decode: {error}"
            ) from None
        self._keep(Replica(version, values, codec), replica_hash)
        return {}

    def apply_delta(
        self,
        *,
        version: int,
        file: str,
        rebase: bool,
        replica_hash: bytes | None,
        snapshot_file: str | None = None,
    ) -> Result:
        """Advance the replica by one version. After an error it is gone: load a snapshot.

        At a rebase the version's snapshot, which this side makes anyway, goes into `snapshot_file`, so that the
        device can begin its chain there without a download.
        """
        opened, before = self._task(), self._held(version - 1)
        self._replica, made = None, None
        values = before.values
        try:
            with _mapped(file) as data:
                apply_delta(values.vector, data, opened.schema)
            if rebase and snapshot_file is not None:
                with contextlib.suppress(OSError):  # a saving: without it the chain goes on where it began
                    made = _write_snapshot(values, opened, before.codec, Path(snapshot_file))
            if rebase:
                requantise_inplace(values.vector, opened.schema, before.codec)
        except CodecError as error:
            raise TrainerError(
                "bad-model", f"the delta to version {version} does not decode: {error}"
            ) from None
        self._keep(Replica(version, values, before.codec), replica_hash)
        return {} if made is None else {"snapshot": {"size": made.size, "sha256": made.sha256}}

    def replica_hash(self) -> Result:
        """SHA-256 of the replica's float32 little-endian bytes."""
        return {"hash": self._held().values.sha256()}

    def _keep(self, replica: Replica, expected: bytes | None) -> None:
        found = None if expected is None else replica.values.sha256()
        replica.values.let_go()
        if found != expected:
            detail = f"version {replica.version} decodes to other bits here than at the coordinator"
            raise TrainerError("bad-model", f"{detail}; the device starts again from a snapshot")
        self._replica = replica

    # --------------------------------------------------------------------------------------------- training

    def train(  # noqa: PLR0913 - the request's fields, named as they travel
        self,
        *,
        run_dir: str,
        run: str,
        device: str,
        counter: int,
        lease: int,
        base_version: int,
        seed: int,
        train: dict[str, Any],
        upload: dict[str, Any],
        updates_done: int,
        residual_file: str | None,
        evaluate: bool,
        measure: DataName | None = None,
    ) -> Result:
        """Train once on the replica; write the update and the residual that it leaves.

        With `evaluate` the version is measured before, on the device's test data; with `measure` the trained weights
        are afterwards. A large model's weights are gone when this returns.
        """
        opened, replica = self._task(), self._held(base_version)
        settings, uploading = _validated(TrainSettings, train), _validated(UploadSettings, upload)
        owner = Owner(opened.schema.hash, run, device)
        residual = None
        if residual_file is not None:
            residual = StoredResidual(Path(residual_file), opened.schema.num_parameters, owner)
        folder = Path(run_dir)
        payload_file, left_file = folder / f"update-{counter}.bin", folder / f"residual-{counter}.bin"
        mask_seed, room_bytes = shared_seed(seed, base_version), _room_bytes(opened)
        try:
            work = Training(opened, replica.values, settings, uploading, mask_seed=mask_seed)
            room_bytes += work.longest_bytes(updates_done)
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            require_room(folder, room_bytes)
            evaluation, warning = work.evaluate(base_version) if evaluate else (None, None)
            own_seed = derived_seed(seed, device, lease)
            trained = work.train(own_seed)
            after = None if measure is None else _evaluated(opened, measure)
            with (
                replacing(payload_file) as payload,
                new_residual(left_file, opened.schema.num_parameters, owner) as left,
            ):
                update = work.encode(residual, left, payload, updates_done, seed=own_seed)
                ref = _ref(payload)
            flush_folder(folder)
        except OSError as error:
            raise _disk_refused(error, "the update and its residual", room_bytes) from None
        finally:
            opened.let_go()
        return {
            "payload_file": str(payload_file),
            "size": ref.size,
            "sha256": ref.sha256,
            "residual_file": str(left_file),
            "num_examples": trained.num_examples,
            "train_s": trained.train_s,
            "encode_s": update.encode_s,
            "metrics": trained.metrics,
            "evaluation": evaluation,
            "residual_dropped": update.residual_dropped,
            "warning": warning,
            "after": after,
        }

    def restore(
        self, payload_file: str, residual_file: str | None, out_file: str, run: str = "", device: str = ""
    ) -> Result:
        """After a rejection: residual += decoded(payload), nothing else."""
        opened = self._task()
        owner, out, before = Owner(opened.schema.hash, run, device), Path(out_file), None
        if residual_file is not None:
            before = StoredResidual(Path(residual_file), opened.schema.num_parameters, owner)
            owner = before.owner
        try:
            with new_residual(out, opened.schema.num_parameters, owner) as values:
                for begin, old in () if before is None else before.slices():
                    values.vector[begin : begin + len(old)] = old
                    values.let_go(begin, begin + len(old))
                with _mapped(payload_file) as data:
                    add_update(values.vector, data, opened.schema)
            flush_folder(out.parent)
        except CodecError as error:
            raise TrainerError("bad-file", f"{payload_file} does not decode: {error}") from None
        except OSError as error:
            raise _disk_refused(error, "the residual", _room_bytes(opened)) from None
        return {}

    # ------------------------------------------------------------------------- the coordinator's model host

    def init(
        self, seed: int, checkpoint: str | None, start: StartName = "snapshot", rebase: str = "int8"
    ) -> Result:
        """Make what a run begins with: a first snapshot that is a recipe, or weights in a file, and why those.

        Args:
            seed: what they are drawn from.
            checkpoint: a file that they come from instead.
            start: `seed` wants a recipe, `snapshot` weights, `auto` a recipe where there is one.
            rebase: the codec of later snapshots.
        """
        opened, why = self._task(), ""
        if checkpoint is not None and start != "snapshot":
            why = "the weights come from a checkpoint"
        elif start != "snapshot":
            try:
                return {"snapshot": first_snapshot(opened, seed, rebase)}
            except MisfitError as misfit:
                why = str(misfit)
        if start == "seed":
            raise TrainerError("bad-request", f"the run cannot start from a seed: {why}")
        model = new_model(opened, seed)
        if checkpoint is not None:
            weights.load_checkpoint(model, Path(checkpoint), opened.schema)
        descriptor, name = tempfile.mkstemp(prefix="fedmq-initial-", suffix=".f32")
        try:
            with os.fdopen(descriptor, "wb") as file:
                weights.write_vector_file(model, opened.schema, file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return {"file": name, "why": why}

    def snapshot(self, file: str, codec: str, out_file: str) -> Result:
        """Encode a vector as a snapshot."""
        opened = self._task()
        values = weights.read_vector_file(Path(file), opened.schema.size)
        out = Path(out_file)
        try:
            size = _write_snapshot(values, opened, codec, out).size
            flush_folder(out.parent)
            replica = scratch(opened.schema.size, out.parent)
            with _mapped(out_file) as data:
                decode_snapshot_into(data, opened.schema, replica.vector)
        except CodecError as error:
            raise TrainerError("bad-request", str(error)) from None
        return {"size": size, "replica_hash": replica.sha256()}

    def evaluate(self, file: str | None = None, on: DataName = "test") -> Result:
        """Measure a vector, or the model as it is, on this side's test data: at the coordinator the central ones."""
        opened = self._task()
        if file is not None:
            values = weights.read_vector_file(Path(file), opened.schema.size)
            write_vector(opened.model, values, opened.schema)
            try:
                return _evaluated(opened, on)
            finally:
                opened.let_go()
        if is_let_go(opened.model, opened.schema):
            raise TrainerError("bad-request", "the model's weights have been let go; name a file of them")
        return _evaluated(opened, on)

    def export(self, file: str, out: str) -> Result:
        """Write a vector as a safetensors file."""
        opened = self._task()
        values = weights.read_vector_file(Path(file), opened.schema.size)
        write_vector(opened.model, values, opened.schema)
        metadata = {"format": "pt", "task": opened.task.name, "task_version": opened.task.version}
        try:
            weights.save_model(opened.model, Path(out), metadata)
        finally:
            opened.let_go()
        return {}

    def centralised(
        self,
        epochs: int,
        train: dict[str, Any],
        seed: int,
        evaluate_every: int = 1,
        devices: list[dict[str, Any]] | None = None,
    ) -> Result:
        """Train on all devices' data at once, the reference that a federated run is compared with."""
        settings = _validated(TrainSettings, train)
        return reference(self._task(), settings, epochs, seed, evaluate_every, devices)

    # ------------------------------------------------------------------------------------------ what is held

    def _task(self) -> Opened:
        if self._opened is None:
            raise TrainerError("bad-request", "no task is open")
        return self._opened

    def _held(self, version: int | None = None) -> Replica:
        if self._replica is None:
            raise TrainerError("bad-model", "no model version is loaded; load a snapshot first")
        if version is not None and self._replica.version != version:
            raise TrainerError("bad-model", f"version {self._replica.version} is loaded, not {version}")
        return self._replica


OPERATIONS: Final[dict[str, Callable[..., Result]]] = {
    "ping": Host.ping,
    "open": Host.open,
    "load_snapshot": Host.load_snapshot,
    "apply_delta": Host.apply_delta,
    "replica_hash": Host.replica_hash,
    "train": Host.train,
    "restore": Host.restore,
    "init": Host.init,
    "evaluate": Host.evaluate,
    "export": Host.export,
    "centralised": Host.centralised,
    "snapshot": Host.snapshot,
    "usage": Host.usage,
}


def _disk_refused(error: OSError, what: str, room_bytes: int) -> TrainerError:
    """Nothing was written: the files are as they were before."""
    return TrainerError(code_of(fault_of(error)), sentence(error, what), room_bytes)


def _room_bytes(opened: Opened) -> int:
    """What a residual takes and the buffers of an update, and some more."""
    return 4 * opened.schema.size + _MORE_BYTES


def _write_snapshot(values: Paged, opened: Opened, codec: str, path: Path) -> BlobRef:
    with replacing(path) as file:
        encode_snapshot_to(values.vector, opened.schema, codec, file)
        return _ref(file)


def _ref(file: BinaryIO) -> BlobRef:
    """Of a file that was just written."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    return BlobRef(size=file.tell(), sha256=digest)


def _evaluated(opened: Opened, on: DataName) -> Result:
    loss, count, metrics = opened.evaluate(_data(opened, on))
    return {"loss": loss, "num_examples": count, "metrics": metrics}


def _data(opened: Opened, name: DataName) -> Examples:
    match name:
        case "train":
            data = opened.train_data
        case "central":
            data = central_data(opened.task, opened.context)
        case _:
            data = opened.test_data
    if data is None:
        raise TrainerError(
            "no-data",
            f"there are no {name} data here; give the task load_test_data, or let load_data return (train, test)",
        )
    return data


def _validated(model: type[Settings], plain: dict[str, Any]) -> Settings:
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise TrainerError("bad-request", f"{model.__name__}.{name}: {first['msg']}") from None


@contextmanager
def _mapped(file: str) -> Iterator[memoryview]:
    """A file's bytes, brought into memory as they are looked at."""
    try:
        with Path(file).open("rb") as opened:
            if os.fstat(opened.fileno()).st_size == 0:
                yield memoryview(b"")
                return
            mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TrainerError("bad-file", f"cannot read {file}: {error.strerror}") from None
    yield memoryview(mapping)
