"""One training and the update that comes of it: begin at the replica, train, take the change, encode it.

The change is measured against what the model held when training began. For float32 that is the replica itself; in half
precision the model holds the replica rounded, and measuring against that keeps the rounding out of every update.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.feedback import capped, density
from fedmq_edge_agent.trainer.opened import Opened
from fedmq_edge_agent.trainer.tensors import is_exact, read_vector, write_vector
from fedmq_protocol.codecs.decoded import Dense
from fedmq_protocol.codecs.model import encode_update
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
    """An update for the wire, and what stays.

    Attributes:
        payload: the bytes to send.
        residual: float32[num_parameters].
        residual_dropped: length of what the residual's bound took away.
        encode_s: seconds.
    """

    payload: bytes
    residual: Vector
    residual_dropped: float
    encode_s: float


class Training:
    """One training on one version.

    Args:
        opened: the task; its model is changed.
        replica: float32[size], the version that training begins with.
        settings: how to train.
        upload: how to encode.

    Raises:
        TrainerError: an unknown codec, before anything is computed.
    """

    def __init__(
        self, opened: Opened, replica: Vector, settings: TrainSettings, upload: UploadSettings
    ) -> None:
        _spec(upload, 0)
        self._opened, self._settings, self._upload = opened, settings, upload
        write_vector(opened.model, replica, opened.schema)
        self._begun = replica if is_exact(opened.schema) else read_vector(opened.model, opened.schema)

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

    def encode(self, residual: Vector | None, updates_done: int) -> Encoded:
        """Encode what training changed, with error feedback.

        Raises:
            TrainerError: `train-failed`; the weights are not finite.
        """
        started = time.perf_counter()
        schema = self._opened.schema
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found just below
            delta = read_vector(self._opened.model, schema) - self._begun
        self._check_finite(delta)
        dropped = 0.0
        if residual is not None:
            norm = Dense(delta[: schema.num_parameters]).norm()
            residual, dropped = capped(residual, norm, self._upload.residual_cap)
        try:
            payload, left = encode_update(delta, residual, schema, _spec(self._upload, updates_done))
        except ValueError as error:  # delta + residual overflowed
            raise TrainerError("train-failed", f"the update cannot be encoded: {error}") from None
        return Encoded(payload, left, dropped, time.perf_counter() - started)

    def _check_finite(self, delta: Vector) -> None:
        if np.isfinite(delta).all():
            return
        start = 0
        for entry in self._opened.schema.vector_entries():
            if not np.isfinite(delta[start : start + entry.size]).all():
                hint = f"a smaller lr than {self._settings.lr:g} may help"
                raise TrainerError(
                    "train-failed", f"after training {entry.name} holds NaN or infinity; {hint}"
                )
            start += entry.size


def _spec(upload: UploadSettings, updates_done: int) -> CodecSpec:
    try:
        return CodecSpec(upload.codec, density(upload, updates_done), tuple(upload.coders))
    except CodecError as error:
        raise TrainerError("bad-request", str(error)) from None
