"""One run's model, computed again from what devices put into their updates and what the journal decided.

It folds by a plain loop in float32, in the journal's order, with the payloads that *devices* committed: if an update
was lost on the way into the model, or counted twice, the coordinator's weights have other bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.faults.broken import BrokenError
from fedmq_coordinator.core.blobs import EMPTY
from fedmq_coordinator.core.facts import RunCreated, VersionPublished
from fedmq_coordinator.core.packing import unpack_vector
from fedmq_coordinator.core.run import Run
from fedmq_protocol.chunks import NO_HASH, chain_hash
from fedmq_protocol.codecs import DecodedUpdate, Sparse, apply_delta, decode_snapshot, flushed, requantise

Vector = NDArray[np.float32]


class ModelBooks:
    """The model of one run.

    Attributes:
        over: the journal says that the run has ended.
        version: the newest that is published; -1: none.
        lease: the highest that was given.
        versions: what each is, float32[size].
        waiting: updates that were accepted since the last step.
        steps: how many were taken.
    """

    def __init__(self, created: RunCreated) -> None:
        self.id, self.schema, self.settings = created.run, created.tensor_schema, created.settings
        self.over = False
        self.version, self.lease, self.waiting, self.steps, self.rebases = -1, 0, 0, 0, 0
        self.versions: dict[int, Vector] = {}
        self.weights: Vector = np.zeros(self.schema.size, np.float32)
        if created.initial is not EMPTY:
            unpack_vector(created.initial, self.weights)
        self._sum: Vector = np.zeros(self.schema.size, np.float32)
        self._chain = NO_HASH

    def accept(self, update: DecodedUpdate, *, weight: float, clip: float) -> None:
        """Sum += (weight * clip) * update."""
        factor = np.float32(weight * clip)
        parameters, count = update.parameters, self.schema.num_parameters
        if isinstance(parameters, Sparse):
            self._sum[parameters.indices] += factor * parameters.values
        else:
            self._sum[:count] += factor * parameters.to_dense()
        self._sum[count + self.schema.num_frozen :] += factor * update.buffers
        self.waiting += 1

    def step(self, scale: float, num_updates: int) -> None:
        """Weights += scale * sum."""
        if num_updates != self.waiting:
            text = f"a step of {self.id} counts {num_updates} updates, and {self.waiting} were accepted"
            raise BrokenError("counted-once", text, "coordinator")
        self.weights += np.float32(scale) * self._sum
        self._sum = np.zeros(self.schema.size, np.float32)
        self.waiting, self.steps = 0, self.steps + 1

    def publish(self, fact: VersionPublished) -> None:
        """The next version is there."""
        if fact.version != self.version + 1:
            text = f"version {fact.version} of {self.id} is published after {self.version}"
            raise BrokenError("one-model", text, "coordinator")
        content = fact.snapshot if fact.delta is None else fact.delta
        if content is None:
            raise BrokenError("one-model", f"version {fact.version} has no bytes", "coordinator")
        self._chain = chain_hash(self._chain, content.ref.sha256)
        if fact.chain_hash != self._chain:
            raise BrokenError(
                "one-model", f"version {fact.version} breaks the chain of hashes", "coordinator"
            )
        if fact.delta is None:
            replica = decode_snapshot(content.data, self.schema)
        else:
            replica = self.versions[self.version].copy()
            apply_delta(replica, fact.delta.data, self.schema)
            if fact.snapshot is not None:
                self.rebases += 1
                replica = requantise(replica, self.schema, self.settings.compression.snapshot)
                if not np.array_equal(replica, decode_snapshot(fact.snapshot.data, self.schema)):
                    text = (
                        f"the snapshot of version {fact.version} is not what holders of the chain make of it"
                    )
                    raise BrokenError("one-model", text, "coordinator")
        if fact.private is not None:
            self.weights = flushed(self.weights)
        replica.setflags(write=False)
        self.version, self.versions[fact.version] = fact.version, replica

    def compare(self, run: Run, *, when: str) -> None:
        """The core's run is the same to the bit.

        Raises:
            BrokenError: it is not.
        """
        seen = run.version, run.accumulator.num_updates if not run.over else self.waiting, run.num_steps
        if seen != (self.version, self.waiting, self.steps):
            text = (
                f"{when} {self.id} is at version {seen[0]} with {seen[1]} updates after {seen[2]} steps; the journal "
                f"says {self.version}, {self.waiting} and {self.steps}"
            )
            raise BrokenError("fold", text, "coordinator")
        if run.over or not run.holds_model:
            return
        if not np.array_equal(run.model.weights, self.weights):
            raise BrokenError(
                "in-the-model", f"{when} the weights of {self.id} have other bits", "coordinator"
            )
        if not np.array_equal(run.model.replica, self.versions[self.version]):
            raise BrokenError("one-model", f"{when} the replica of {self.id} has other bits", "coordinator")
        if self.waiting and not np.array_equal(run.accumulator.total(), self._sum):
            raise BrokenError("in-the-model", f"{when} the sum of {self.id} has other bits", "coordinator")
