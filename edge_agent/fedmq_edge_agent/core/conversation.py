"""What the coordinator says, and what is said in its name: believed or refused, and entered in the books."""

from __future__ import annotations

from collections import Counter
from typing import Final

from fedmq_edge_agent.core.desk import Desk, ReportCode
from fedmq_edge_agent.core.effects import PinCoordinator
from fedmq_edge_agent.core.events import TaskOpened
from fedmq_edge_agent.core.inbox import Heard, Inbox, KeyUnknownError, StaleError
from fedmq_edge_agent.core.leases import HeldLease
from fedmq_protocol.envelope import Reader
from fedmq_protocol.errors import RemoteError
from fedmq_protocol.limits import MAX_COUNTER, RING
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Credit,
    Lease,
    ModelChunk,
    Notice,
    Receipt,
    Status,
    Turn,
)
from fedmq_protocol.replays import ReplayError
from fedmq_protocol.sampling import has_turn, in_cohort

_FIRST_VERSION: Final = "/1"
_MAX_SESSION: Final = MAX_COUNTER // 2
"""No honest count comes near it, and above it there is room for ever."""


class Conversation:
    """Hears the coordinator out.

    Args:
        desk: the books.
        coordinator_key: the coordinator's, if configured or pinned before.
        reader: opens and verifies packets; default: as the protocol says.
    """

    def __init__(self, desk: Desk, *, coordinator_key: bytes | None, reader: Reader | None = None) -> None:
        self._desk = desk
        self.inbox = Inbox(
            topics=desk.topics,
            device=desk.device,
            coordinator_key=coordinator_key,
            epoch=desk.ledger.state.epoch,
            epoch_of=desk.ledger.state.coordinator,
            announced=desk.ledger.state.announced,
            reader=reader,
        )
        self.rejected: Counter[tuple[str, str]] = Counter()
        """Packets that were not believed, by kind of topic and reason."""
        self._unverified: dict[str, bytes] = {}
        self._mismatch_told = ""

    # ------------------------------------------------------------------------------ packets

    def packet(self, topic: str, payload: bytes, *, now: float) -> None:
        """Take in what arrived on a topic; hostile until proven otherwise."""
        if not payload:  # somebody has cleared what was retained there
            if self._desk.following is not None:
                self._desk.following.pull.damaged(topic)
            return
        knew_key = self.inbox.coordinator_key is not None
        try:
            heard = self._open(topic, payload)
            if not knew_key and self.inbox.coordinator_key is not None:
                key = self.inbox.coordinator_key
                self._desk.do(PinCoordinator(key))
                self._desk.note(
                    "info", f"believes the coordinator with the key {key.hex()}, and no other from now on"
                )
            if not isinstance(heard.body, ModelChunk) and self._is_new(heard.epoch):
                self._new_epoch(heard.epoch, now=now)
            self._desk.packs = self._desk.packs or heard.packed
            self._on_message(heard, now=now)
        except KeyUnknownError:
            # Retained messages come in any order; the newest on each topic is heard once the key is known.
            if topic in {
                self._desk.topics.announcement,
                self._desk.topics.turn,
                self._desk.topics.down(self._desk.device, "announcement"),
            }:
                self._unverified[topic] = payload
        except RemoteError as error:
            self._reject(topic, error, now=now)
        if not knew_key and self.inbox.coordinator_key is not None:
            earlier, self._unverified = self._unverified, {}
            for earlier_topic, earlier_payload in earlier.items():
                self.packet(earlier_topic, earlier_payload, now=now)

    def _open(self, topic: str, payload: bytes) -> Heard:
        """Like the inbox's; whatever hostile bytes can bring about ends as a rejection, and never the process."""
        try:
            return self.inbox.open(topic, payload)
        except (ValueError, RecursionError) as error:  # pydantic's errors among them
            raise RemoteError(f"cannot be opened: {type(error).__name__}") from error

    def _on_message(self, heard: Heard, *, now: float) -> None:
        match heard.body:
            case Status() as status:
                self._on_status(status, heard.epoch, now=now)
            case Turn() as turn:
                mine = has_turn(turn, self._desk.device)
                self._desk.outbox.turn(mine=mine, everybody=turn.span == RING, now=now)
            case Announcement() as announcement:
                self._desk.outbox.announced()
                self._desk.ledger.announced(heard.sequence)
                self._on_announcement(announcement, now=now)
            case Lease() as lease:
                self._on_lease(lease, now=now)
            case Receipt() as receipt:
                self._on_receipt(receipt, now=now)
            case Credit() as credit if not self._desk.saving:
                self._desk.effects += self._desk.outbox.credit(credit, now=now)
            case ModelChunk() as chunk:
                if self._desk.following is not None:
                    self._desk.effects += self._desk.following.chunk(
                        chunk, own_topic=heard.own_topic, now=now
                    )
            case Credit():
                pass  # offered again when there is no need to save any more
            case Notice() as notice:
                self._on_notice(notice, now=now)
            case Body():
                raise RemoteError("not a message for a device", reason="wrong-kind")

    def _reject(self, topic: str, error: RemoteError, *, now: float) -> None:
        parts = topic.removeprefix(f"{self._desk.topics.root}/").split("/")
        place = parts[0] if parts[0] == "model" else parts[-1][:32]
        self.rejected[place, error.reason] += 1
        if self._desk.following is not None:
            self._desk.following.pull.damaged(topic)
        newest = self._desk.announcement
        if error.reason == "old-announcement" and newest is not None:
            # What the broker keeps is older than what was heard since: there is nothing to ask for.
            self._desk.contact.announced(running=newest.state == "running", now=now)
        if self.rejected[place, error.reason] > 1:
            return
        if isinstance(error, StaleError | ReplayError):
            self._desk.note("info", f"ignored a message on {topic[:160]}: {error}")
            return
        mend = ""
        if error.reason == "bad-signature" and place in {"status", "run"}:
            mend = (
                "; if the coordinator was set up anew, remove coordinator.pub from the agent's state folder"
            )
        self._desk.note(
            "warning", f"ignored a message on {topic[:160]}: {error}{mend}; others like it are only counted"
        )
        self._desk.report("bad-message", f"{place}: {error}")

    def _is_new(self, epoch: int) -> bool:
        state = self._desk.ledger.state
        return epoch > state.epoch or self.inbox.coordinator_key != state.coordinator

    def _new_epoch(self, epoch: int, *, now: float) -> None:
        """Another start of the coordinator, or another one: what it had not put on disk, it does not know."""
        key = self.inbox.coordinator_key
        assert key is not None
        self._desk.packs = False
        self._desk.ledger.new_epoch(epoch, key, now=now)
        self._desk.outbox.new_epoch(now=now)
        self._desk.contact.introduce_again()
        self._desk.contact.expect_announcement(now=now)

    def _on_status(self, status: Status, epoch: int, *, now: float) -> None:
        before = self._desk.contact.coordinator_online
        if not self._desk.contact.status(status, epoch):
            return
        if before is not None and before != status.online:
            self._desk.note("info", "the coordinator is back" if status.online else "the coordinator is away")
        self._desk.outbox.coordinator(online=status.online, now=now)

    def _on_notice(self, notice: Notice, *, now: float) -> None:
        """Show it; where this session is none that the coordinator takes, connect anew above those that it knows."""
        session, least = self._desk.contact.session, notice.session
        if least is None or session is None:
            self._desk.note("warning", f"the coordinator says: {notice.detail} ({notice.code})")
        elif session < least:
            if least > _MAX_SESSION:
                raise RemoteError(f"told to go above session {least}", reason="bad-session")
            text = f"the coordinator knows later sessions than this one, {session}: connects again, above {least}"
            self._desk.note("warning", f"{text}; was the disk replaced, and the clock wrong?")
            self._desk.ledger.exceed(least, now=now)
            self._desk.contact.leaves = session

    # ------------------------------------------------------------------------------ runs

    def _on_announcement(self, announcement: Announcement, *, now: float) -> None:
        self._desk.announcement, self._desk.announced_at = announcement, now
        self._desk.contact.announced(running=announcement.state == "running", now=now)
        self._consider(now=now)

    def task_opened(self, now: float) -> None:
        """Now it can be told whether the announced run is ours."""
        try:
            self._consider(now=now)
        except RemoteError as error:
            self._reject(self._desk.topics.announcement, error, now=now)

    def _consider(self, *, now: float) -> None:
        """Whether the announced run is ours, and what follows from it."""
        announcement, opened = self._desk.announcement, self._desk.trainer.opened
        if announcement is None or opened is None:
            return
        if announcement.state != "running":
            self._end_run(announcement.run, announcement.state, now=now)
            return
        other_task = _difference(announcement, opened)
        self._desk.idle_reason = other_task or _lacking(announcement, opened)
        if self._desk.idle_reason:
            self._desk.stop_following()
            if announcement.task.name == opened.task.name and self._mismatch_told != announcement.run:
                self._mismatch_told = announcement.run
                self._desk.note("warning", self._desk.idle_reason, run=announcement.run)
                code: ReportCode = "task-mismatch" if other_task else "other"
                self._desk.report(code, self._desk.idle_reason, run=announcement.run)
            return
        if self._desk.following is None or self._desk.following.run != announcement.run:
            self._follow(announcement.run, now=now)
        assert self._desk.following is not None
        self._desk.effects += self._desk.following.announced(announcement, now=now)
        run, version = announcement.run, announcement.manifest.version
        if in_cohort(announcement.cohort, announcement.round, self._desk.device):
            expires_at = self._desk.announced_at + announcement.lease_s
            self._offer_lease(HeldLease(run, announcement.lease, version, now, expires_at))
        early = self._desk.leases.take_early(run)
        if early is not None:
            self._offer_lease(early)

    def _follow(self, run: str, *, now: float) -> None:
        self._desk.stop_following()
        if self._desk.ended == run:
            self._desk.ended = ""
        if self._desk.ledger.activate(run, now=now):
            self._desk.note("info", "a new run", run=run)
        self._desk.follow(run)

    def _end_run(self, run: str, how: str, *, now: float) -> None:
        if self._desk.following is not None and self._desk.following.run == run:
            self._desk.stop_following()
        self._desk.idle_reason = f"the run {run} is {how}"
        if self._desk.ended != run:
            self._desk.ended = run
            self._desk.note("info", f"the run is {how}", run=run)
        dropped = self._desk.outbox.counters(run)
        for counter in dropped:
            self._desk.settle(run, counter, now=now)
        if dropped:
            updates = "an update" if len(dropped) == 1 else f"{len(dropped)} updates"
            text = f"the run is over: drops {updates} that came too late for it"
            self._desk.note("warning", text, run=run, dropped=len(dropped))

    def _on_lease(self, lease: Lease, *, now: float) -> None:
        held = HeldLease(lease.run, lease.lease, lease.version, now, now + lease.lease_s)
        if self._desk.following is not None and self._desk.following.run == lease.run:
            self._offer_lease(held)
        elif lease.run != self._desk.ended:
            # It overtook the announcement, or the broker keeps none for us.
            self._desk.leases.keep_early(held)
            self._desk.contact.ask_at_once(now=now)

    def _offer_lease(self, lease: HeldLease) -> None:
        self._desk.leases.offer(lease, committed=self._desk.ledger.state.runs[lease.run].lease)

    # ------------------------------------------------------------------------------ receipts

    def _on_receipt(self, receipt: Receipt, *, now: float) -> None:
        if (receipt.outcome == "accepted") != (receipt.residual == "keep"):
            raise RemoteError(
                f"a receipt that is {receipt.outcome} and says {receipt.residual}", reason="bad-receipt"
            )
        run, counter = receipt.run, receipt.counter
        pending = self._desk.outbox.get(run, counter)
        if pending is None:
            return
        if receipt.digest is not None and not pending.header.payload.sha256.startswith(receipt.digest):
            text = (
                f"ignored a receipt for another update {counter}, of before the disk was replaced or restored"
            )
            self._desk.note("info", text, run=run)
            return
        if receipt.outcome == "accepted":
            late = self._desk.outbox.is_from_before(run, counter)
            text = f"update {counter}{', from before the start,' if late else ''} is accepted"
            self._desk.note("info" if late else "debug", text, run=run)
            self._desk.settle(run, counter, now=now)
            return
        why = f"{receipt.reason}: {receipt.detail}" if receipt.detail else receipt.reason
        self._desk.note(
            "warning", f"update {counter} is refused ({why}); residual: {receipt.residual}", run=run
        )
        if receipt.residual == "restore":
            self._desk.outbox.hold_for_restore(run, counter)
        else:
            self._desk.settle(run, counter, now=now)


def _difference(announcement: Announcement, opened: TaskOpened) -> str:
    """Why the announced task is not the opened one; empty when it is."""
    theirs, ours = announcement.task, opened.task
    if theirs.name != ours.name:
        return f"the run {announcement.run} trains {theirs.name}, and this device has {ours.name}"
    if theirs.version != ours.version:
        what, wanted, mine = "version", theirs.version, ours.version
    elif theirs.schema_hash != ours.schema_hash:
        what, wanted, mine = "the tensor schema", theirs.schema_hash[:12], ours.schema_hash[:12]
    else:
        return ""
    return (
        f"the run {announcement.run} trains {theirs.name} with {what} {wanted}, and this device has {mine}: "
        "install the run's task here"
    )


def _lacking(announcement: Announcement, opened: TaskOpened) -> str:
    """Why this device cannot code an update of the run; empty when it can. Without a version a name means the first."""
    wanted = announcement.upload.codec
    if wanted.removesuffix(_FIRST_VERSION) in {name.removesuffix(_FIRST_VERSION) for name in opened.codecs}:
        return ""
    return f"the run {announcement.run} takes updates in {wanted}, which this agent does not speak: update it"
