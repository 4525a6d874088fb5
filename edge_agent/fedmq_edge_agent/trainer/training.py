"""One training and the update that comes of it: begin at the replica, train, take the change, encode it.

Of model size there are only the model's own tensors, the replica and the residual in its file, the latter two mapped:
the change is taken piece by piece and put where the new residual will be, the old residual is added to it there, and
the codec takes out what is sent. By then a large model's own memory has been let go.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.feedback import cap_factor, update_spec
from fedmq_edge_agent.trainer.opened import Opened
from fedmq_edge_agent.trainer.paged import Paged
from fedmq_edge_agent.trainer.residual import StoredResidual
from fedmq_edge_agent.trainer.tensors import changes, write_vector
from fedmq_protocol.codecs.budget import TooFewBytesError
from fedmq_protocol.codecs.container import max_encoded_bytes
from fedmq_protocol.codecs.decoded import Dense
from fedmq_protocol.codecs.model import encode_update_to
from fedmq_protocol.codecs.registry import CodecSpec
from fedmq_protocol.errors import CodecError
from fedmq_protocol.messages import TrainSettings, UploadSettings

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """What training said of itself; `train_s` is in seconds."""

    num_examples: int
    metrics: dict[str, float]
    train_s: float


@dataclass(frozen=True)
class Encoded:
    """What there is to say of an encoded update.

    Attributes:
        residual_dropped: length of what the residual's bound took away.
        encode_s: seconds.
    """

    residual_dropped: float
    encode_s: float


class Training:
    """One training on one version.

    Args:
        opened: the task; its model is changed.
        replica: float32[size], the version that training begins with.
        settings: how to train.
        upload: how to encode.
        mask_seed: what the indices of a masked codec are drawn from.

    Raises:
        TrainerError: an unknown codec, before anything is computed.
    """

    def __init__(
        self,
        opened: Opened,
        replica: Paged,
        settings: TrainSettings,
        upload: UploadSettings,
        *,
        mask_seed: int = 0,
    ) -> None:
        _spec(upload, 0)
        self._mask_seed = mask_seed
        self._opened, self._settings, self._upload, self._replica = opened, settings, upload, replica
        write_vector(opened.model, replica, opened.schema)

    def longest_bytes(self, updates_done: int) -> int:
        """The most that the parameters' part of the update can take; `updates_done` as for `encode`."""
        return max_encoded_bytes(self._opened.schema.num_parameters, self._spec(updates_done))

    def _spec(self, updates_done: int) -> CodecSpec:
        tensors = self._opened.schema.parameter_sizes if self._upload.per_tensor else ()
        return replace(_spec(self._upload, updates_done), tensors=tensors, seed=self._mask_seed)

    def evaluate(self, version: int) -> tuple[dict[str, Any] | None, str | None]:
        """Measure the version on the device's own test data, before training; a failure is told, not raised.

        Returns:
            The evaluation, None where there are no test data or it failed; and why it failed.
        """
        if self._opened.test_data is None:
            return None, None
        try:
            loss, count, metrics = self._opened.evaluate(self._opened.test_data)
        except TrainerError as error:
            return None, error.detail
        return {"version": version, "num_examples": count, "loss": loss, "metrics": metrics}, None

    def train(self, seed: int) -> Trained:
        """Train the model in place.

        Raises:
            TrainerError: `no-data` or `train-failed`.
        """
        started = time.perf_counter()
        num_examples, metrics = self._opened.train(self._settings, seed)
        return Trained(num_examples, metrics, time.perf_counter() - started)

    def encode(
        self,
        residual: StoredResidual | None,
        left: Paged,
        payload: BinaryIO,
        updates_done: int,
        *,
        seed: int,
    ) -> Encoded:
        """Encode what training changed, with error feedback. A large model's weights are let go meanwhile.

        Args:
            residual: what earlier updates did not send; None: nothing.
            left: float32[num_parameters], where the new residual goes.
            payload: the file where the update goes.
            updates_done: how many updates of this run the device has made before.
            seed: of the chance by which values are rounded, where the run asks for it.

        Raises:
            TrainerError: `train-failed`; the weights are not finite. `left` and `payload` are of no use then.
        """
        started = time.perf_counter()
        schema = self._opened.schema
        buffers, delta_norm = self._take_change(left)
        self._opened.let_go()
        dropped = 0.0
        if residual is not None:
            factor, dropped = cap_factor(residual.norm(), delta_norm, self._upload.residual_cap)
            for begin, old in residual.slices():
                left.vector[begin : begin + len(old)] += old if factor == 1 else old * np.float32(factor)
                left.let_go(begin, begin + len(old))
        try:
            spec, rng = self._spec(updates_done), np.random.default_rng(seed)
            encode_update_to(left.vector, buffers, schema, spec, payload, rng=rng)
        except TooFewBytesError as error:
            raise TrainerError("bad-request", f"the run's update_bytes: {error}") from None
        except ValueError as error:  # delta + residual overflowed
            raise TrainerError("train-failed", f"the update cannot be encoded: {error}") from None
        return Encoded(dropped, time.perf_counter() - started)

    def _take_change(self, delta: Paged) -> tuple[Vector, float]:
        """Put the parameters' change into `delta`; return the buffers' change, and the length of the parameters'."""
        schema = self._opened.schema
        squares, tail = 0.0, schema.num_parameters + schema.num_frozen
        buffers = np.empty(schema.num_buffers, np.float32)
        for entry, begin, piece in changes(self._opened.model, self._replica, schema):
            if not np.isfinite(piece).all():
                hint = f"a smaller lr than {self._settings.lr:g} may help"
                raise TrainerError(
                    "train-failed", f"after training {entry.name} holds NaN or infinity; {hint}"
                )
            end = begin + len(piece)
            if entry.role == "parameter":
                delta.vector[begin:end] = piece
                delta.let_go(begin, end)
                squares += Dense(piece).norm() ** 2
            elif entry.role == "buffer":
                buffers[begin - tail : end - tail] = piece
        return buffers, math.sqrt(squares)


def _spec(upload: UploadSettings, updates_done: int) -> CodecSpec:
    try:
        return update_spec(upload, updates_done)
    except CodecError as error:
        raise TrainerError("bad-request", str(error)) from None
