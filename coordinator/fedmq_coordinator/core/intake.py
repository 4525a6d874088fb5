"""Judging an update: every check between its bytes and the model, in order of cost."""

from __future__ import annotations

import hashlib
import math
from statistics import median
from typing import Final

from fedmq_coordinator.core.dedupe import DIGEST_BYTES
from fedmq_coordinator.core.facts import UpdateAccepted, UpdateRejected
from fedmq_coordinator.core.run import NORMS_NEEDED, Run
from fedmq_coordinator.core.strategies import Rejection, Strategy, Submission
from fedmq_protocol.codecs import decode_update, max_accepted_bytes, max_encoded_bytes
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.messages import Evaluation, UpdateHeader

_RESTORED: Final = frozenset({"no-lease", "bad-hash"})
_FIRST_RATIO: Final = 100.0
_FRAME_BYTES: Final = 64
_LARGEST: Final = 1e30
"""A float32 sum of as many of these as a round can have stays finite."""


def judge(
    run: Run, strategy: Strategy, device: str, header: UpdateHeader, data: bytes, *, now: float
) -> UpdateAccepted | UpdateRejected:
    """Decide on an update of an active run that is not settled yet; nothing that a device sends raises here."""
    try:
        return _accept(run, strategy, device, header, data, now=now)
    except RemoteError as error:
        return refused(run, device, header, error, now=now)


def refused(run: Run, device: str, header: UpdateHeader, error: RemoteError, *, now: float) -> UpdateRejected:
    """The verdict that an update does not count. What was never looked at goes back to the device's residual."""
    return UpdateRejected(
        at=now,
        run=run.id,
        device=device,
        counter=header.counter,
        lease=header.lease,
        reason=error.reason,
        detail=str(error),
        residual="restore" if error.reason in _RESTORED else "discard",
        digest=header.payload.sha256[:DIGEST_BYTES],
    )


def _counted_examples(run: Run, num_examples: int) -> int:
    """A claim far above the others' counts as the largest that is believed: weight must not be had for the asking."""
    if len(run.examples) < NORMS_NEEDED:
        return num_examples
    return min(num_examples, math.ceil(run.settings.strategy.max_examples_ratio * median(run.examples)))


def _credible(run: Run, header: UpdateHeader) -> Evaluation | None:
    """The device's evaluation, unless it is of a version that does not exist."""
    evaluation = header.evaluation
    return evaluation if evaluation is not None and evaluation.version <= run.version else None


def _norm_limit(run: Run, base_version: int) -> float:
    """The largest norm that is believed.

    Norms fall while a model converges, so a late update is held against what was usual when its version was published,
    if that was more. Before anything is usual, against the model itself.
    """
    then = run.usual_norms.get(base_version)
    if len(run.norms) < NORMS_NEEDED or then is None:
        return _FIRST_RATIO * max(1.0, run.model.norm)
    return run.settings.strategy.max_norm_ratio * max(median(run.norms), then)


def max_kept(run: Run) -> int:
    """The most parameters that an update of this run may hold: as many as its densest setting asks for."""
    return run.settings.compression.up_spec(run.schema).kept(run.schema.num_parameters)


def largest_update(run: Run) -> int:
    """The most bytes that an update of this run can have."""
    bound = max_accepted_bytes(run.schema.num_parameters, max_kept(run))
    return bound + max_encoded_bytes(run.schema.num_buffers) + _FRAME_BYTES


def _accept(
    run: Run, strategy: Strategy, device: str, header: UpdateHeader, data: bytes, *, now: float
) -> UpdateAccepted:
    if header.schema_hash != run.task.schema_hash:
        raise RemoteError(
            "the update is of a model with other tensors than this run's", reason="schema-mismatch"
        )
    if header.base_version > run.version:
        raise RemoteError(f"version {header.base_version} has not been published", reason="unknown-version")
    granted_at = run.was_granted(device, header.lease)
    if granted_at is None:
        msg = f"lease {header.lease} was not given to {device}, or is used up"
        raise RemoteError(msg, reason="no-lease")
    if len(data) != header.payload.size or hashlib.sha256(data).digest() != header.payload.sha256:
        raise RemoteError("the payload is not the one that the header promises", reason="bad-hash")
    update = decode_update(data, run.schema, max_kept=max_kept(run))
    run.decoded = data, update
    staleness = run.version - header.base_version
    weight = strategy.accept(Submission(_counted_examples(run, header.num_examples), staleness))
    if isinstance(weight, Rejection):
        raise RemoteError(weight.detail, reason=weight.reason)
    norm = update.norm()
    if not math.isfinite(norm):
        raise RemoteError("the update's norm is not finite", reason="not-finite")
    limit = _norm_limit(run, header.base_version)
    if norm > limit:
        raise RemoteError(f"norm {norm:.3g}, more than {limit:.3g}, is far above the usual", reason="norm")
    clip = 1.0
    if run.settings.strategy.clip == "median" and len(run.norms) >= NORMS_NEEDED:
        clip = min(1.0, median(run.norms) / norm) if norm > 0 else 1.0
    if norm * weight * clip > _LARGEST:
        raise RemoteError(f"norm {norm:.3g} times weight {weight:.3g} is beyond float32", reason="norm")
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
        evaluation=_credible(run, header),
        traffic=header.traffic,
        digest=header.payload.sha256[:DIGEST_BYTES],
    )
