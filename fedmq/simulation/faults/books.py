"""The books: each update from its training to its last word, by what is really on disks and in the journal.

An update exists once its device has committed it. From then on it is either settled, by a verdict in the journal that
never changes and that every receipt repeats, or it waits on its device's disk; only a new disk may lose it.
What it carried and what it left behind add up, over kills and refusals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmq.simulation.coordinator import VirtualCoordinator
from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.faults.broken import BrokenError
from fedmq.simulation.faults.model_books import ModelBooks
from fedmq.simulation.watch import Trained, Watch
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.checkpoint import differs
from fedmq_coordinator.core.effects import Effect as CoordinatorEffect
from fedmq_coordinator.core.effects import Send, SendChunk
from fedmq_coordinator.core.machine import Coordinator
from fedmq_edge_agent.core.effects import CommitState, Restore, SendUpdate, Train
from fedmq_edge_agent.core.effects import Effect as DeviceEffect
from fedmq_edge_agent.core.effects import Send as DeviceSend
from fedmq_edge_agent.core.state import AgentState, PendingUpdate, RunState
from fedmq_edge_agent.trainer.feedback import cap_factor
from fedmq_protocol.codecs import DecodedUpdate, Dense, decode_update
from fedmq_protocol.messages import Announcement, Lease, Offer, Receipt, UpdateHeader

Vector = NDArray[np.float32]
Key = tuple[str, str, int]
"""Device, run, counter."""

_DIGEST_BYTES = 16
_NO_STATE, _NO_RUN = AgentState(), RunState()
_UNSETTLED = frozenset({"run-over", "unknown-run"})
"""Why an update may be refused for good without a word in the journal."""


@dataclass
class Update:
    """One update that its device has committed.

    Attributes:
        sha256: of its payload.
        decoded: what it carries.
        said: by the lease that it was trained for, the version that it was trained on and the number of examples; of
            more leases than one where a device's old disk came back, and it made the very same again.
        verdict: accepted, restore or discard, as the journal has it; "": none yet.
        told: likewise, of the receipts that were sent.
        away: its device has let go of it.
        lost: with its device's disk.
        lost_disk: its device got a new disk after it was made, and may use its number again.
    """

    sha256: bytes
    decoded: DecodedUpdate
    said: dict[int, tuple[int, int]]
    verdict: str = ""
    told: str = ""
    away: bool = False
    lost: bool = False
    lost_disk: bool = False


@dataclass(frozen=True)
class Backup:
    """What the books say of one disk.

    Attributes:
        state: the device's.
        residuals: by run.
        waiting: updates without a receipt.
    """

    state: AgentState
    residuals: dict[str, Vector | None]
    waiting: dict[Key, Update]


@dataclass(frozen=True)
class Training:
    """What a training gave that is still to be committed.

    Attributes:
        decoded: what the payload holds.
        residual: after it.
        base_version: on which it trained.
    """

    decoded: DecodedUpdate
    residual: Vector
    base_version: int


class Books(Watch):
    """Checks every commit, fact and receipt as it is made."""

    def __init__(self) -> None:
        self.updates: dict[Key, Update] = {}
        self.models: dict[str, ModelBooks] = {}
        self.epoch = self.num_over = 0
        self._states: dict[str, AgentState] = {}
        self._residuals: dict[tuple[str, str], Vector | None] = {}
        self._trained: dict[str, dict[bytes, Training]] = {}
        """By device and payload: in this life of it, and not committed."""
        self._restored: dict[tuple[str, str], tuple[int, Vector]] = {}
        self._others: dict[Key, list[Update]] = {}
        """Updates of devices whose disk was replaced, and which then gave their number to another."""
        self._leases: set[tuple[str, str, int]] = set()

    # ------------------------------------------------------------------------------ devices

    def held(self, device: VirtualDevice, run: str, version: int, replica: Vector) -> None:
        """One model, bit for bit, whatever way it came."""
        published = self.models[run].versions.get(version) if run in self.models else None
        if published is None or not np.array_equal(published, replica):
            text = f"{device.name} holds another version {version} of {run} than was published"
            raise BrokenError("one-model", text, device.name, "coordinator")

    def trained(self, device: VirtualDevice, request: Train, trained: Trained) -> None:
        """Sent + residual = p, and p has all of the old residual in it."""
        name, run, schema = device.name, request.run, self.models[request.run].schema
        decoded = decode_update(trained.payload, schema)
        total = trained.change if trained.before is None else trained.change + trained.before
        if not np.array_equal(decoded.parameters.to_dense() + trained.after, total):
            raise BrokenError("mass", f"{name}: sent + residual is not p at update {request.counter}", name)
        expected = self._residual_in_hand(device, run)
        if expected is not None:
            factor, _ = cap_factor(
                Dense(expected).norm(), Dense(trained.change).norm(), request.upload.residual_cap
            )
            expected = expected if factor == 1 else expected * np.float32(factor)
        if not _same(expected, trained.before) and not self.models[run].over:
            text = f"{name} trains update {request.counter} of {run} on another residual than it had"
            raise BrokenError("mass", text, name)
        sha256 = hashlib.sha256(trained.payload).digest()
        self._trained.setdefault(name, {})[sha256] = Training(decoded, trained.after, request.base_version)

    def _residual_in_hand(self, device: VirtualDevice, run: str) -> Vector | None:
        """What the next training is to begin with: a full disk may not have taken the commit of the last one."""
        residual = self._residuals.get((device.name, run))
        kept = device.agent.desk.ledger.state.runs.get(run)
        for pending in () if kept is None else kept.pending:
            training = self._trained.get(device.name, {}).get(pending.header.payload.sha256)
            if training is not None:
                residual = training.residual
        return residual

    def restored(self, device: VirtualDevice, request: Restore, before: Vector | None, after: Vector) -> None:
        """A refused update goes back: residual + sent."""
        name, run = device.name, request.run
        update = self.updates.get((name, run, request.counter))
        if update is None or update.told != "restore":
            raise BrokenError(
                "mass", f"{name} puts update {request.counter} back unasked", name, "coordinator"
            )
        sent = update.decoded.parameters.to_dense()
        whole = sent if before is None else before + sent
        if not _same(self._residuals.get((name, run)), before) or not np.array_equal(whole, after):
            raise BrokenError("mass", f"{name} does not put all of update {request.counter} back", name)
        self._restored[name, run] = request.counter, after

    def device_did(self, device: VirtualDevice, effect: DeviceEffect) -> None:
        match effect:
            case CommitState(state):
                self._committed(device, state)
            case SendUpdate(header, _):
                self._sends(device, header)
            case DeviceSend(body=Offer(header=header)):
                self._sends(device, header)
            case _:
                pass

    def device_started(self, device: VirtualDevice) -> None:
        """A start begins with what the last commit left."""
        found, left = device.agent.desk.ledger.state, self._states.get(device.name, _NO_STATE)
        if found != left:
            raise BrokenError(
                "device-memory", f"{device.name} starts with another state than it committed", device.name
            )
        self._states[device.name] = found
        self._trained.pop(device.name, None)

    def backup(self, device: VirtualDevice) -> Backup:
        """What is on a device's disk now."""
        mine = {run: residual for (name, run), residual in self._residuals.items() if name == device.name}
        waiting = {key: each for key, each in self.updates.items() if key[0] == device.name and not each.away}
        return Backup(self._states.get(device.name, _NO_STATE), mine, waiting)

    def disk_replaced(self, device: VirtualDevice, backup: Backup | None) -> None:
        """Its disk is replaced, by an empty one or by an older state: what is not on it is gone, and nobody's fault."""
        backup = backup or Backup(AgentState(), {}, {})
        for key, update in self.updates.items():
            if key[0] == device.name:
                update.lost, update.away, update.lost_disk = update.lost or not update.away, True, True
        for key, update in backup.waiting.items():
            update.away = update.lost = False  # it waits for its receipt again
            if self.updates[key] is not update:
                self._others.setdefault(key, []).append(self.updates[key])
                self.updates[key] = update
        self._states[device.name] = backup.state
        for name, run in list(self._residuals):
            if name == device.name:
                del self._residuals[name, run]
        self._residuals |= {(device.name, run): residual for run, residual in backup.residuals.items()}

    def _sends(self, device: VirtualDevice, header: UpdateHeader) -> None:
        update = self.updates.get((device.name, header.run, header.counter))
        if update is None or update.sha256 != header.payload.sha256 or update.away:
            text = f"{device.name} sends update {header.counter} of {header.run}, which is not on its disk"
            raise BrokenError("device-memory", text, device.name)

    def _committed(self, device: VirtualDevice, state: AgentState) -> None:
        name, before = device.name, self._states.get(device.name, _NO_STATE)
        self._states[name] = state
        if state.runs is before.runs:
            return
        for run in before.runs:
            if run not in state.runs:
                for pending in before.runs[run].pending:
                    self._let_go(name, run, pending)
                self._residuals.pop((name, run), None)
        for run, kept in state.runs.items():
            known = before.runs.get(run, _NO_RUN)
            if kept is known:
                continue
            old = {pending.header.counter for pending in known.pending}
            new = {pending.header.counter for pending in kept.pending}
            for pending in kept.pending:
                if pending.header.counter not in old:
                    self._made(name, run, pending)
            for pending in known.pending:
                if pending.header.counter not in new:
                    self._let_go(name, run, pending)
            if kept.residual_file != known.residual_file:
                self._residual_is(device, run, kept)

    def _made(self, name: str, run: str, pending: PendingUpdate) -> None:
        header = pending.header
        trained = self._trained.get(name, {}).pop(header.payload.sha256, None)
        if trained is None:
            raise BrokenError("device-memory", f"{name} commits an update that it did not make", name)
        earlier = self.updates.get((name, run, header.counter))
        if header.base_version != trained.base_version:
            text = f"{name} trained on version {trained.base_version}, and says {header.base_version}"
            raise BrokenError("staleness", text, name)
        says = header.base_version, header.num_examples
        if earlier is not None and earlier.lost_disk and earlier.sha256 == header.payload.sha256:
            earlier.away = earlier.lost = False  # it has made the very same again
            earlier.said[header.lease] = says
            self._residuals[name, run] = trained.residual
            return
        if earlier is not None and not earlier.lost_disk:
            raise BrokenError("counted-once", f"{name} uses counter {header.counter} of {run} twice", name)
        if earlier is not None:
            self._others.setdefault((name, run, header.counter), []).append(earlier)
        self.updates[name, run, header.counter] = Update(
            header.payload.sha256, trained.decoded, {header.lease: says}
        )
        self._residuals[name, run] = trained.residual

    def _let_go(self, name: str, run: str, pending: PendingUpdate) -> None:
        """A device forgets an update: only after its last word."""
        counter = pending.header.counter
        update = self.updates[name, run, counter]
        update.away = True
        put_back = self._restored.get((name, run))
        if update.told == "restore" and put_back is not None and put_back[0] == counter:
            self._residuals[name, run] = put_back[1]
        elif not update.told and not self.models[run].over:
            raise BrokenError(
                "never-lost", f"{name} forgets update {counter} of {run} without a receipt", name
            )
        elif update.told == "restore" and not self.models[run].over:
            text = f"{name} forgets the refused update {counter} of {run}, and its mass is not back"
            raise BrokenError("mass", text, name)

    def _residual_is(self, device: VirtualDevice, run: str, kept: RunState) -> None:
        """The file that the state names holds what the books say."""
        expected = self._residuals.get((device.name, run))
        found: Vector | None = None
        if kept.residual_file is not None:
            data = device.disk.files.get((run, kept.residual_file), b"")
            found = np.frombuffer(data[_DIGEST_BYTES:], dtype=np.float32)
        if self.models[run].over:
            self._residuals[device.name, run] = (
                found  # of no use any more; an update may have gone with the run
            )
            return
        if not _same(expected, found):
            text = (
                f"{device.name} commits {kept.residual_file} as the residual of {run}, which is another one"
            )
            raise BrokenError("mass", text, device.name)

    # ------------------------------------------------------------------------------ the journal

    def journaled(self, coordinator: VirtualCoordinator, facts: Sequence[f.Fact]) -> None:
        compare: dict[str, None] = {}
        for fact in facts:
            match fact:
                case f.UpdateAccepted():
                    self._accepted(fact)
                    compare[fact.run] = None
                case f.UpdateRejected():
                    self._rejected(fact)
                case f.StepTaken():
                    self.models[fact.run].step(fact.scale, fact.num_updates)
                    compare[fact.run] = None
                case f.VersionPublished():
                    self.models[fact.run].publish(fact)
                    compare[fact.run] = None
                case f.RoundOpened() | f.LeaseGranted():
                    self._leased(fact)
                case f.RunCreated():
                    self.models[fact.run] = ModelBooks(fact)
                case f.RunEnded():
                    self.models[fact.run].over = True
                    self.num_over += 1
                case f.EpochBegun(epoch=epoch):
                    if epoch <= self.epoch:
                        text = f"epoch {epoch} begins after {self.epoch}"
                        raise BrokenError("epoch", text, "coordinator")
                    self.epoch = epoch
                case _:
                    pass
        for run in compare:
            self.models[run].compare(coordinator.core.runs[run], when="after a commit")

    def coordinator_started(self, coordinator: VirtualCoordinator) -> None:
        """The journal, read back from its bytes, is the same model to the bit, and the same state from a checkpoint."""
        runs = coordinator.core.runs
        if runs.keys() != self.models.keys():
            raise BrokenError("fold", f"runs {list(runs)} come back, not {list(self.models)}", "coordinator")
        for run, model in self.models.items():
            model.compare(runs[run], when="after a restart")
        if coordinator.journal.checkpoint is not None:
            self.same_state(coordinator.core, coordinator.make_core(), "the checkpoint")

    @staticmethod
    def same_state(one: Coordinator, other: Coordinator, what: str) -> None:
        """All of two cores' states is alike.

        Raises:
            BrokenError: they differ.
        """
        ours, theirs = one.checkpoint(), other.checkpoint()
        where = None if ours is None or theirs is None else differs(ours, theirs)
        if where is not None:
            raise BrokenError("fold", f"{what} comes back with another {where}", "coordinator")

    def _accepted(self, fact: f.UpdateAccepted) -> None:
        key = fact.device, fact.run, fact.counter
        update, model = self._judged(key, fact), self.models[fact.run]
        update.verdict = "accepted"
        digest = hashlib.sha256(fact.payload or b"").digest()
        if digest != update.sha256:
            raise BrokenError(
                "counted-once", f"{_named(key)} counts with other bytes", fact.device, "coordinator"
            )
        lease = fact.device, fact.run, fact.lease
        if lease in self._leases or fact.lease not in update.said:
            text = f"lease {fact.lease} of {fact.device} counts twice, or for an update of another one"
            raise BrokenError("counted-once", text, fact.device, "coordinator")
        self._leases.add(lease)
        if (fact.base_version, fact.num_examples) != update.said[fact.lease]:
            text = f"{_named(key)} counts as of version {fact.base_version}, or with examples, that it did not say"
            raise BrokenError("staleness", text, fact.device, "coordinator")
        most = model.settings.strategy.max_staleness
        if fact.staleness != model.version - fact.base_version or (
            most is not None and fact.staleness > most
        ):
            text = f"{_named(key)} counts with staleness {fact.staleness} at version {model.version}"
            raise BrokenError("staleness", text, fact.device, "coordinator")
        model.accept(update.decoded, weight=fact.weight, clip=fact.clip)

    def _rejected(self, fact: f.UpdateRejected) -> None:
        self._judged((fact.device, fact.run, fact.counter), fact).verdict = fact.residual

    def _judged(self, key: Key, fact: f.UpdateAccepted | f.UpdateRejected) -> Update:
        update = self._named_by(key, fact.digest)
        if update is None:
            raise BrokenError("counted-once", f"{_named(key)} is judged, and was never made", *_parties(key))
        if update.verdict or update.told:
            text = (
                f"{_named(key)} is judged twice: {update.verdict or update.told}, then {type(fact).__name__}"
            )
            raise BrokenError("counted-once", text, *_parties(key))
        return update

    def _named_by(self, key: Key, digest: bytes) -> Update | None:
        """The update whose payload's hash begins so, of those that had the number; None: there is none."""
        mine = self.updates.get(key)
        alike = (each for each in (mine, *self._others.get(key, ())) if each is not None)
        return next((each for each in alike if each.sha256.startswith(digest)), None)

    def _leased(self, fact: f.RoundOpened | f.LeaseGranted) -> None:
        model = self.models[fact.run]
        if fact.lease <= model.lease:
            text = f"lease {fact.lease} is given after {model.lease}"
            raise BrokenError("fold", text, "coordinator")
        model.lease = fact.lease

    # ------------------------------------------------------------------------------ what the coordinator says

    def coordinator_did(self, coordinator: VirtualCoordinator, effect: CoordinatorEffect) -> None:  # noqa: ARG002
        """Nothing is said that is not on disk."""
        match effect:
            case Send(topic, Receipt() as receipt):
                self._receipt(topic, receipt)
            case Send(body=Announcement() as said):
                model = self.models.get(said.run)
                if model is None or said.manifest.version > model.version or said.lease > model.lease:
                    self._too_early(f"version {said.manifest.version} or lease {said.lease} of {said.run}")
            case Send(body=Lease() as lease):
                if lease.run not in self.models or lease.lease > self.models[lease.run].lease:
                    self._too_early(f"lease {lease.lease} of {lease.run}")
            case SendChunk(head=head):
                if head.run not in self.models or head.version > self.models[head.run].version:
                    self._too_early(f"version {head.version} of {head.run}")
            case _:
                pass

    def _too_early(self, what: str) -> None:
        raise BrokenError("journal-first", f"{what} is announced before it is on disk", "coordinator")

    def _receipt(self, topic: str, receipt: Receipt) -> None:
        key = topic.split("/")[-3], receipt.run, receipt.counter
        if receipt.digest is None:
            raise BrokenError("receipts", f"{_named(key)} has a receipt without a hash", *_parties(key))
        update = self._named_by(key, receipt.digest)
        if update is None:
            raise BrokenError("receipts", f"{_named(key)} has a receipt, and was never made", *_parties(key))
        says = "accepted" if receipt.outcome == "accepted" else receipt.residual
        namesakes = (each for each in (self.updates[key], *self._others.get(key, ())) if each is not update)
        if receipt.reason == "number-used" and says == "restore" and any(each.verdict for each in namesakes):
            pass  # it is not the one that is settled
        elif not update.verdict and receipt.outcome == "rejected" and receipt.reason in _UNSETTLED:
            model = self.models.get(receipt.run)
            if model is not None and not model.over and not self._ending(model):
                raise BrokenError("receipts", f"{_named(key)} is refused as {receipt.reason}", *_parties(key))
        elif says != update.verdict:
            text = f"{_named(key)} gets the receipt {says} ({receipt.reason}), the journal has {update.verdict!r}"
            raise BrokenError("receipts", text, *_parties(key))
        if update.told and update.told != says:
            text = f"{_named(key)} got the receipt {update.told}, and now {says}"
            raise BrokenError("receipts", text, *_parties(key))
        update.told = says

    @staticmethod
    def _ending(model: ModelBooks) -> bool:
        """All its rounds are over, and its last evaluation is under way."""
        return model.settings.mode != "sync" or model.steps >= model.settings.rounds

    # ------------------------------------------------------------------------------ the end

    def settled(self) -> list[str]:
        """What is still open."""
        return [_named(key) for key, update in self.updates.items() if not update.away]

    def close(self) -> None:
        """All runs are over and all is quiet.

        Raises:
            BrokenError: an update was neither settled nor kept.
        """
        for key, update in self.updates.items():
            if not update.away and not update.verdict and not self.models[key[1]].over:
                raise BrokenError("never-lost", f"{_named(key)} has no last word", *_parties(key))


def _same(one: Vector | None, other: Vector | None) -> bool:
    """Equal values; nothing is as zero."""
    if one is None or other is None:
        rest = other if one is None else one
        return rest is None or not rest.any()
    return bool(np.array_equal(one, other))


def _named(key: Key) -> str:
    return f"update {key[2]} of {key[0]} in {key[1]}"


def _parties(key: Key) -> tuple[str, str]:
    return key[0], "coordinator"
