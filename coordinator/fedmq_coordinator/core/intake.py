"""Judging an update: every check between its bytes and the model, in order of cost."""

from __future__ import annotations

import hashlib
import math
from statistics import median
from typing import Final, Literal

from fedmq_coordinator.core.facts import UpdateAccepted, UpdateRejected
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.strategies import Rejection, Strategy, Submission
from fedmq_protocol.codecs import CodecSpec, decode_update
from fedmq_protocol.errors import CodecError
from fedmq_protocol.messages import UpdateHeader

_MIN_NORMS: Final = 5


class _Refusal(Exception):  # noqa: N818  not an error: a verdict on its way up
    def __init__(self, reason: str, detail: str, residual: Literal["restore", "discard"] = "discard") -> None:
        super().__init__(detail)
        self.reason, self.detail, self.residual = reason, detail, residual


def judge(
    run: Run, strategy: Strategy, device: str, header: UpdateHeader, data: bytes, *, now: float
) -> UpdateAccepted | UpdateRejected:
    """Decide on an update of an active run that is not settled yet."""
    try:
        return _accept(run, strategy, device, header, data, now=now)
    except _Refusal as refusal:
        return UpdateRejected(
            at=now,
            run=run.id,
            device=device,
            counter=header.counter,
            lease=header.lease,
            reason=refusal.reason,
            detail=refusal.detail,
            residual=refusal.residual,
        )


def _max_kept(run: Run) -> int:
    """The most parameters that an update of this run may hold: as many as its densest setting asks for."""
    compression = run.settings.compression
    density = max(compression.density, compression.first_density or 0.0)
    return CodecSpec(compression.up, density).kept(run.schema.num_parameters)


def _accept(
    run: Run, strategy: Strategy, device: str, header: UpdateHeader, data: bytes, *, now: float
) -> UpdateAccepted:
    if header.schema_hash != run.task.schema_hash:
        raise _Refusal("schema-mismatch", "the update is of a model with other tensors than this run's")
    if header.base_version > run.version:
        raise _Refusal("unknown-version", f"version {header.base_version} has not been published")
    granted_at = run.was_granted(device, header.lease)
    if granted_at is None:
        raise _Refusal(
            "no-lease", f"lease {header.lease} was not given to {device}, or is used up", "restore"
        )
    if len(data) != header.payload.size or hashlib.sha256(data).digest() != header.payload.sha256:
        raise _Refusal("bad-hash", "the payload is not the one that the header promises", "restore")
    try:
        update = decode_update(data, run.schema, max_kept=_max_kept(run))
    except CodecError as error:
        raise _Refusal(error.reason, str(error)) from error
    staleness = run.version - header.base_version
    weight = strategy.accept(Submission(header.num_examples, staleness))
    if isinstance(weight, Rejection):
        raise _Refusal(weight.reason, weight.detail)
    norm = update.norm()
    if not math.isfinite(norm):
        raise _Refusal("not-finite", "the update's norm is not finite")
    clip = 1.0
    if len(run.norms) >= _MIN_NORMS:
        usual = median(run.norms)
        limit = run.settings.strategy.max_norm_ratio * usual
        if norm > limit > 0:
            raise _Refusal("norm", f"norm {norm:.3g}, more than {limit:.3g}, which is far above the others'")
        if run.settings.strategy.clip == "median" and norm > usual > 0:
            clip = usual / norm
    return UpdateAccepted(
        at=now,
        run=run.id,
        device=device,
        counter=header.counter,
        lease=header.lease,
        base_version=header.base_version,
        staleness=staleness,
        weight=weight,
        clip=clip,
        norm=norm,
        num_examples=header.num_examples,
        duration_s=now - granted_at,
        train_s=header.train_s,
        payload=data,
        metrics=header.metrics,
        evaluation=header.evaluation,
        traffic=header.traffic,
    )
