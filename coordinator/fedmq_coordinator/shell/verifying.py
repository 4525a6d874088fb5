"""Whether a journal is what was written, and whether what it says gives the models that were published.

Three looks, each at more than the one before:

1. every fact's checksum and number, every byte that lies beside one against its hash, and the database's own check;
2. for each run, the chained hash of every version, and every replica that can be rebuilt, against the facts' hashes;
3. a replay from the first moment of which everything is there: at every later snapshot the weights must be those that
   were journaled, bit for bit, and at the end the state must be the one that comes out of each checkpoint.

It reads alone, and may do so beside a coordinator: what came since it began is left out, and what retention takes away
meanwhile is no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq_coordinator.core.blobs import Blob
from fedmq_coordinator.core.checkpoint import differs, dump, load
from fedmq_coordinator.core.facts import Fact, RunCreated, StepTaken, UpdateAccepted, VersionPublished
from fedmq_coordinator.core.packing import unpack_vector
from fedmq_coordinator.core.state import FederationState
from fedmq_coordinator.shell.store import Journal
from fedmq_coordinator.shell.store_bulk import DroppedError
from fedmq_coordinator.shell.store_checkpoints import StoredCheckpoint
from fedmq_coordinator.shell.store_retention import Dropped
from fedmq_coordinator.shell.store_scan import Scan, scan
from fedmq_protocol.chunks import NO_HASH, chain_hash
from fedmq_protocol.codecs import apply_delta, decode_snapshot, flushed, replica_sha256, requantise_inplace
from fedmq_protocol.errors import RemoteError, StoreError

Vector = NDArray[np.float32]

MAX_FINDINGS: Final = 100
"""So many are told; the first is what counts."""

Progress = Callable[[str, int, int], None]
"""Told what is looked at, how far it is, and of how much."""


@dataclass
class Verdict:
    """What was looked at, and what is wrong.

    Attributes:
        findings: a line for each thing that is not as it was written; empty is good.
        notes: what could not be looked at, and why that is no damage.
        facts: how many there are.
        pieces: how many fields have bytes beside their facts, and these were read.
        size: how many bytes these are.
        dropped: how many of them retention has dropped.
        versions: how many versions' chained hashes were computed.
        rebuilt: how many of them were rebuilt.
        anchors: at how many snapshots the replayed weights were compared with the journaled ones.
        checkpoints: how many gave the same state as the replay.
    """

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: int = 0
    pieces: int = 0
    size: int = 0
    dropped: int = 0
    versions: int = 0
    rebuilt: int = 0
    anchors: int = 0
    checkpoints: int = 0

    @property
    def is_good(self) -> bool:
        return not self.findings

    def find(self, text: str) -> None:
        """Enter something that is wrong."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(text)


def verify(journal: Journal, progress: Progress) -> Verdict:
    """Look at everything.

    Args:
        journal: as `Journal.look` opens it.
        progress: is told how far it is.

    Raises:
        StoreError: the database cannot be read at all.
    """
    verdict = Verdict(facts=journal.num_facts)
    before = journal.database.read(Dropped.read)
    found = Scan()
    for done in scan(journal, found):
        progress("facts", done, journal.num_facts)
    verdict.pieces, verdict.size, verdict.dropped = found.pieces, found.size, found.dropped
    for text in found.findings:
        verdict.find(text)
    if verdict.findings:
        verdict.notes.append("models were not rebuilt: what they are made of is damaged")
        return verdict
    try:
        created = [fact for fact in journal.read(kinds=["RunCreated"]) if isinstance(fact, RunCreated)]
        for number, run in enumerate(created):
            progress("runs", number, len(created))
            _check_versions(journal, run, verdict, before)
        progress("runs", len(created), len(created))
        if verdict.is_good:
            _Replay(journal, verdict, before).run(progress)
    except (StoreError, RemoteError) as error:
        if _went_on(journal, before):
            verdict.notes.append(
                f"not all was rebuilt and replayed, since retention went on meanwhile: {error}"
            )
        else:
            verdict.find(str(error))
    return verdict


def _went_on(journal: Journal, before: Dropped) -> bool:
    """Whether retention has dropped something since, or has passed the last fact that is looked at.

    Bytes go after it was written down that they do. So if this is false after they were read, all were there.
    """
    now = journal.database.read(Dropped.read)
    return now != before or any(first > journal.num_facts for first in now.lines.values())


def _check_versions(journal: Journal, run: RunCreated, verdict: Verdict, dropped: Dropped) -> None:
    """Chained hashes of all versions, and the replicas of those of which everything is there."""
    before, newest = NO_HASH, -1
    replica: Vector | None = None
    schema, codec = run.tensor_schema, run.settings.compression.snapshot
    for fact in journal.read(run=run.run, kinds=["VersionPublished"], leave_out=["private"]):
        assert isinstance(fact, VersionPublished)
        name = f"version {fact.version} of {run.run}"
        content = fact.snapshot if fact.delta is None else fact.delta
        if fact.version != newest + 1 or content is None:
            verdict.find(f"{name} comes after version {newest}, or was published without anything")
            return
        if chain_hash(before, content.ref.sha256) != fact.chain_hash:
            verdict.find(f"the chained hash of {name} is not that of the published bytes")
        before, newest = fact.chain_hash, fact.version
        verdict.versions += 1
        try:
            if fact.delta is not None and replica is not None:
                apply_delta(replica, fact.delta.data, schema)
            if fact.snapshot is not None:
                stepped, replica = replica, decode_snapshot(fact.snapshot.data, schema)
                if stepped is not None:
                    requantise_inplace(stepped, schema, codec)
                    if not _same_bits(stepped, replica):
                        verdict.find(f"the snapshot of {name} is not what its delta leads to")
                if fact.replica_hash != replica_sha256(replica):
                    verdict.find(f"the replica of {name} has another hash than was published")
        except DroppedError:
            replica = None
        except RemoteError as error:
            verdict.find(f"{name}: {error}")
            return
        verdict.rebuilt += replica is not None
    if newest >= 0 and replica is None and not _went_on(journal, dropped):
        verdict.find(f"the newest version of {run.run}, {newest}, cannot be rebuilt")


class _Replay:
    """One fold of the whole journal, compared at every snapshot with what it says."""

    def __init__(self, journal: Journal, verdict: Verdict, before: Dropped) -> None:
        self._journal = journal
        self._verdict = verdict
        self._before = before
        self._floors: dict[str, int] = {}
        """The first version of each run whose private weights are there."""
        self._gone: set[str] = set()
        """Runs of which retention took something away meanwhile."""

    def run(self, progress: Progress) -> None:
        state = FederationState()
        state.look_ahead(self._floors_alone(), {})
        state.fold(self._compared(state, progress))
        if self._gone:
            names = ", ".join(sorted(self._gone))
            self._verdict.notes.append(f"{names} was not replayed whole, since retention went on meanwhile")
            return
        if _went_on(self._journal, self._before):
            self._verdict.notes.append("no checkpoint was compared, since retention went on meanwhile")
            return
        whole = dump(state)
        for stored in self._journal.checkpoints.list():
            if stored.number > self._journal.num_facts:
                continue  # taken since
            if whole is None:
                self._verdict.notes.append("checkpoints are not compared: the models are too large for any")
                return
            self._compare(stored, state)

    def _floors_alone(self) -> Iterator[Fact]:
        """The facts as if each run's first private weights that are there were its last."""
        for fact in self._journal.outline():
            if isinstance(fact, VersionPublished) and fact.private is not None:
                if fact.run in self._floors:
                    continue
                self._floors[fact.run] = fact.version
            if isinstance(fact, StepTaken | VersionPublished):
                yield fact

    def _compared(self, state: FederationState, progress: Progress) -> Iterator[Fact]:
        total = self._journal.num_facts
        for number, fact in enumerate(self._journal.read(), 1):
            match fact:
                case UpdateAccepted(payload=None) if self._replays(state, fact.run):
                    self._gone.add(fact.run)
                case VersionPublished(private=Blob() as private) if self._replays(state, fact.run):
                    self._compare_weights(state, fact, private)
                case _:
                    pass
            yield fact
            progress("replay", number, total)

    def _replays(self, state: FederationState, run: str) -> bool:
        """Whether a run's model is computed by now, and not read."""
        return run in self._floors and state.runs[run].version >= self._floors[run]

    def _compare_weights(self, state: FederationState, fact: VersionPublished, private: Blob) -> None:
        if fact.run in self._gone:
            return
        model = state.runs[fact.run].model
        journaled = np.empty(model.schema.size, dtype=np.float32)
        unpack_vector(private, journaled)
        self._verdict.anchors += 1
        if not _same_bits(flushed(model.weights), journaled):
            self._verdict.find(
                f"the updates of {fact.run} do not lead to the weights that were journaled at version {fact.version}"
            )

    def _compare(self, stored: StoredCheckpoint, replayed: FederationState) -> None:
        journal = self._journal
        try:
            data = journal.checkpoints.read(stored.number)
        except StoreError as error:
            if stored in journal.checkpoints.list():  # else a newer one has taken its place
                self._verdict.find(f"the checkpoint of fact {stored.number}: {error}; starts pass it over")
            return
        try:
            state = load(data, journal.fetch, journal.outline)
            state.fold(journal.read(after=stored.number))
        except StoreError as error:
            self._verdict.notes.append(f"the checkpoint of fact {stored.number} is passed over: {error}")
            return
        one, other = dump(state), dump(replayed)
        difference = None if one is None or other is None else differs(one, other)
        if difference is None:
            self._verdict.checkpoints += 1
        elif _went_on(journal, self._before):
            self._verdict.notes.append(
                f"the checkpoint of fact {stored.number} was not compared, since retention went on meanwhile"
            )
        else:
            self._verdict.find(
                f"the checkpoint of fact {stored.number} leads to another state than the facts: {difference}"
            )


def _same_bits(one: Vector, other: Vector) -> bool:
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))
