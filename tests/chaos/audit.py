"""The reckoning: what devices trained and sent, what the journal says, and what the model is must be one and the same.

It stands on the codecs, which are the contract, on the witness, on the task's own ledger, and on what lies on the
disks. The coordinator's and the agents' cores are not asked: sums are formed here once more, from the payloads as
they went over the wire.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.facts import (
    Fact,
    RunCreated,
    StepTaken,
    UpdateAccepted,
    UpdateRejected,
    VersionPublished,
)
from fedmq_coordinator.shell.store import Journal
from fedmq_edge_agent.core.state import AgentState, RunState, load_index, load_state
from fedmq_protocol.codecs import (
    CodecSpec,
    DecodedUpdate,
    apply_delta,
    decode_snapshot,
    decode_update,
    encode_delta,
    flushed,
    replica_sha256,
    requantise,
    snapshot_codec,
)
from fedmq_protocol.schema import TensorSchema
from fedmq_protocol.signing import load_or_create_key
from tests.chaos.task import NUM_PARAMETERS, drawn
from tests.chaos.witness import Name, Witness

Vector = NDArray[np.float32]

_RESIDUAL_HEAD: Final = len(b"fedmq residual 2\n") + 32


@dataclass
class Findings:
    """What came out.

    Attributes:
        faults: each a sentence; none: everything agrees.
        figures: what was counted.
    """

    faults: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Audit:
    """One run's.

    Args:
        state_dir: the coordinator's; it must have ended.
        devices: name -> state folder; they must have ended, too.
        ledgers: name -> where the device's trainings were noted.
        wide: the devices whose trainings change all weights.
        witness: what was said.
        exact: whether the run's arithmetic is exact, so that sums must be equal in any order.
    """

    federation: str
    run: str
    state_dir: Path
    devices: dict[str, Path]
    ledgers: dict[str, Path]
    wide: set[str]
    witness: Witness
    exact: bool
    found: Findings = field(default_factory=Findings)
    _accepted: dict[Name, UpdateAccepted] = field(default_factory=dict)
    _rejected: dict[Name, UpdateRejected] = field(default_factory=dict)
    _replicas: dict[int, Vector] = field(default_factory=dict)
    _schema: TensorSchema | None = None

    def carry_out(self) -> Findings:
        """Compare everything with everything."""
        facts = self._facts()
        self._verdicts(facts)
        self._model(facts)
        for device in self.devices:
            self._device(device)
        self.found.faults += self.witness.complaints
        self._count()
        return self.found

    def _facts(self) -> list[Fact]:
        journal = Journal.open(self.state_dir, federation=self.federation)
        try:
            return [fact for fact in journal.read() if getattr(fact, "run", self.run) == self.run]
        finally:
            journal.close()

    def _fault(self, text: str) -> None:
        self.found.faults.append(text)

    @property
    def schema(self) -> TensorSchema:
        assert self._schema is not None
        return self._schema

    # ------------------------------------------------------------------------------------------ receipts and facts

    def _verdicts(self, facts: list[Fact]) -> None:
        """Every receipt has its fact and every fact its update, once."""
        for fact in facts:
            if not isinstance(fact, UpdateAccepted | UpdateRejected):
                continue
            name = fact.device, fact.run, fact.counter
            if name in self._accepted or name in self._rejected:
                self._fault(f"{name} is settled twice in the journal")
            if isinstance(fact, UpdateAccepted):
                self._accepted[name] = fact
                self._was_sent(name, fact)
            else:
                self._rejected[name] = fact
        for name in {*self.witness.said, *self.witness.delivered}:
            verdicts = self.witness.said.get(name, set()) | self.witness.delivered.get(name, set())
            if len({(outcome, residual) for outcome, _, residual in verdicts}) > 1:
                self._fault(f"{name} was given different receipts: {sorted(verdicts)}")
            for outcome, reason, residual in verdicts:
                if outcome == "accepted" and name not in self._accepted:
                    self._fault(f"{name} has a receipt, and is not in the journal")
                rejected = self._rejected.get(name)
                if outcome == "rejected" and (rejected is None or rejected.residual != residual):
                    self._fault(f"{name} was refused ({reason}, {residual}), and the journal has {rejected}")

    def _was_sent(self, name: Name, fact: UpdateAccepted) -> None:
        sent = self.witness.sent.get(name)
        if sent is None or sent.payload is None:
            self._fault(f"{name} counts, and nobody heard it being sent")
            return
        header = sent.header
        if (header.lease, header.base_version, header.num_examples) != (
            fact.lease,
            fact.base_version,
            fact.num_examples,
        ):
            self._fault(f"{name} is in the journal otherwise than it was sent: {header}, {fact}")
        if fact.payload is not None and fact.payload != sent.payload:
            self._fault(f"{name} has another payload in the journal than on the wire")

    # ------------------------------------------------------------------------------------------ the model

    def _model(self, facts: list[Fact]) -> None:
        """Form the model anew from what went over the wire, and hold every published version against it."""
        created = next(fact for fact in facts if isinstance(fact, RunCreated))
        self._schema = created.tensor_schema
        down = created.settings.compression
        spec = CodecSpec(down.down, down.down_density, code_ms=down.code_ms)
        weights = self._beginning(created)
        gathered = np.zeros_like(weights)
        total = weights.astype(np.float64)
        replica: Vector | None = None
        chain = bytes(32)
        since = 0
        for fact in facts:
            match fact:
                case UpdateAccepted():
                    update = self._decoded((fact.device, fact.run, fact.counter))
                    if update is not None:
                        _add(gathered, update, np.float32(fact.weight * fact.clip))
                        since += 1
                case StepTaken():
                    if fact.num_updates != since:
                        self._fault(f"a step of {fact.num_updates} updates, after {since} were accepted")
                    gathered *= np.float32(fact.scale)
                    weights += gathered
                    total += gathered
                    gathered[:] = 0
                    since = 0
                case VersionPublished():
                    replica = self._published(fact, replica, weights, spec)
                    content = fact.snapshot if fact.delta is None else fact.delta
                    assert content is not None
                    chain = hashlib.sha256(chain + content.ref.sha256).digest()
                    if chain != fact.chain_hash:
                        self._fault(f"version {fact.version} has another chain hash than its bytes")
                case _:
                    pass
        if self.exact and not np.array_equal(total, weights.astype(np.float64)):
            self._fault("the model is not the exact sum of the accepted updates")
        self.found.figures["versions"] = len(self._replicas)

    def _beginning(self, created: RunCreated) -> Vector:
        """float32[size]."""
        if created.recipe is not None:
            return decode_snapshot(created.recipe, self.schema)
        return np.frombuffer(created.initial.data, "<f4", offset=6).copy()

    def _decoded(self, name: Name) -> DecodedUpdate | None:
        sent = self.witness.sent.get(name)
        if sent is None or sent.payload is None:
            return None  # said already
        return decode_update(sent.payload, self.schema)

    def _published(
        self, fact: VersionPublished, replica: Vector | None, weights: Vector, spec: CodecSpec
    ) -> Vector:
        """Hold one version against the weights that it should be of; the replica that every holder has."""
        if fact.delta is None or replica is None:
            assert fact.snapshot is not None
            made = decode_snapshot(fact.snapshot.data, self.schema)
        else:
            made = replica.copy()
            apply_delta(made, fact.delta.data, self.schema)
            if encode_delta(weights, replica, self.schema, spec) != bytes(fact.delta.data):
                self._fault(f"version {fact.version} is not the way to what the accepted updates add up to")
            if fact.snapshot is not None:
                made = requantise(made, self.schema, snapshot_codec(fact.snapshot.data))
                if not np.array_equal(made, decode_snapshot(fact.snapshot.data, self.schema)):
                    self._fault(f"the snapshot of version {fact.version} is not its replica")
        if fact.snapshot is not None:
            weights[:] = flushed(weights)  # as they are written down
            if fact.private is not None and not np.array_equal(
                np.frombuffer(fact.private.data, "<f4", offset=6), weights
            ):
                self._fault(f"the coordinator's own weights at version {fact.version} are others")
        if fact.replica_hash is not None and fact.replica_hash != replica_sha256(made):
            self._fault(f"version {fact.version} has another replica hash")
        if self.exact and not np.array_equal(made, weights):
            self._fault(f"version {fact.version} is not the sum of the updates before it")
        self._replicas[fact.version] = made
        return made

    # ------------------------------------------------------------------------------------------ devices

    def _device(self, device: str) -> None:
        folder = self.devices[device]
        state = load_state((folder / "state").read_bytes())
        if load_or_create_key(folder / "key").public_key != self.witness.keys.get(device):
            self._fault(f"{device} has another key than it showed")
        run = state.runs.get(self.run)
        if run is None:
            self._fault(f"{device} has forgotten the run")
            return
        headers = {name[2]: sent.header for name, sent in self.witness.sent.items() if name[0] == device}
        headers |= {pending.header.counter: pending.header for pending in run.pending}
        self._none_lost(device, run, set(headers))
        self._trained(device, run, headers)
        self._held(device, state)

    def _none_lost(self, device: str, run: RunState, known: set[int]) -> None:
        """What a device has committed waits in its outbox, or has its last word, and that came."""
        if not known:
            return
        expected = set(range(min(known), run.counter + 1))
        for counter in sorted(expected ^ known):
            self._fault(f"{device} committed its update {counter}, and it is gone without having been sent")
        waiting = {pending.header.counter for pending in run.pending}
        for counter in sorted(known - waiting):
            name = device, self.run, counter
            if name not in self._accepted and name not in self._rejected:
                self._fault(f"{name} is lost: neither in the outbox nor in the journal")
            elif name not in self.witness.delivered:
                self._fault(f"{name} left the outbox, and no receipt had reached the device")

    def _trained(self, device: str, run: RunState, headers: dict[int, Any]) -> None:
        """What was trained = what was sent and counts, or waits, or was discarded aloud + the residual."""
        ledger = dict(line.split() for line in self.ledgers[device].read_text().splitlines())
        known = {replica_sha256(replica).hex(): replica for replica in self._replicas.values()}
        balance = np.zeros(NUM_PARAMETERS, np.float64)
        size = 0.0
        waiting = {pending.header.counter: pending.file for pending in run.pending}
        used: Counter[int] = Counter()
        for counter, header in sorted(headers.items()):
            ticket = int(header.metrics["ticket"])
            used[ticket] += 1
            begun = ledger.get(str(ticket))
            base = self._replicas.get(header.base_version)
            if begun is None or base is None or begun != replica_sha256(base).hex():
                self._fault(
                    f"{device} trained its update {counter} on {'an unknown' if begun not in known else 'another'} "
                    f"version than {header.base_version}"
                )
                continue
            change = (base + drawn(ticket, wide=device in self.wide)) - base
            balance += change[:NUM_PARAMETERS]
            size += float(np.abs(change).sum())
            if header.residual_dropped:
                self._fault(f"{device} scaled away a part of its residual")
            verdict = self._rejected.get((device, self.run, counter))
            if counter in waiting or verdict is None or verdict.residual == "discard":
                balance -= self._carried(device, counter, waiting.get(counter))
        for ticket, times in used.items():
            if times > 1:
                self._fault(f"{device} sent the training {ticket} {times} times")
        balance -= self._residual(device, run)
        off = float(np.abs(balance).max())
        if off > (0.0 if self.exact else 1e-5 * max(1.0, size / NUM_PARAMETERS)):
            self._fault(f"{device}: what it trained and what became of it differ by {off:g} in an element")
        self.found.figures.setdefault("largest_imbalance", {})[device] = off

    def _carried(self, device: str, counter: int, file: str | None) -> NDArray[np.float64]:
        """What an update carries, float64[NUM_PARAMETERS], from the wire or else from the outbox."""
        sent = self.witness.sent.get((device, self.run, counter))
        data = None if sent is None else sent.payload
        if data is None and file is not None:
            data = (self.devices[device] / "runs" / self.run / file).read_bytes()
        if data is None:
            self._fault(f"{device}: the payload of its update {counter} was never seen")
            return np.zeros(NUM_PARAMETERS)
        total = np.zeros(NUM_PARAMETERS, np.float32)
        decode_update(data, self.schema).parameters.add_to(total, 1.0)
        return total.astype(np.float64)

    def _residual(self, device: str, run: RunState) -> NDArray[np.float64]:
        """The residual as it lies on the disk, float64[NUM_PARAMETERS]."""
        if run.residual_file is None:
            return np.zeros(NUM_PARAMETERS)
        data = (self.devices[device] / "runs" / self.run / run.residual_file).read_bytes()
        if hashlib.sha256(data[_RESIDUAL_HEAD:]).digest() != data[_RESIDUAL_HEAD - 32 : _RESIDUAL_HEAD]:
            self._fault(f"{device}: its residual is torn")
        return np.frombuffer(data[-4 * NUM_PARAMETERS :], "<f4").astype(np.float64)

    def _held(self, device: str, state: AgentState) -> None:
        """The model files on a device's disk make the published version, bit for bit."""
        folder = self.devices[device] / "runs" / self.run
        index = load_index((folder / "model.idx").read_bytes())
        replica: Vector | None = None
        codec = ""
        for link in index.links:
            data = (folder / link.file).read_bytes()
            if hashlib.sha256(data).digest() != link.ref.sha256:
                self._fault(f"{device}: {link.file} is not what its index says")
            if link.blob == "snapshot":
                replica, codec = decode_snapshot(data, self.schema), snapshot_codec(data)
            else:
                assert replica is not None
                apply_delta(replica, data, self.schema)
                if link.rebase:
                    replica = requantise(replica, self.schema, codec)
            if not np.array_equal(replica, self._replicas.get(link.version, np.empty(0))):
                self._fault(f"{device} holds another version {link.version} than was published")
        del state

    # ------------------------------------------------------------------------------------------ figures

    def _count(self) -> None:
        refused = Counter((fact.reason, fact.residual) for fact in self._rejected.values())
        self.found.figures |= {
            "updates_sent": len(self.witness.sent),
            "sendings": sum(sent.times for sent in self.witness.sent.values()),
            "in_several_packets": sum(sent.chunk_bytes is not None for sent in self.witness.sent.values()),
            "accepted": len(self._accepted),
            "rejected": {f"{reason}, {residual}": count for (reason, residual), count in refused.items()},
        }


def _add(gathered: Vector, update: DecodedUpdate, factor: np.float32) -> None:
    """The float32 multiplication and addition of each element, not fused; parameters first, buffers last."""
    sent = np.zeros(NUM_PARAMETERS, np.float32)
    update.parameters.add_to(sent, 1.0)
    gathered[:NUM_PARAMETERS] += factor * sent
    gathered[NUM_PARAMETERS:] += factor * update.buffers
