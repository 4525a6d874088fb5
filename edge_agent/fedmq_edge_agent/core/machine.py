"""The device: follows the announced run, holds its newest version, trains when a lease says so, delivers the update.

    connected ─ announcement ─> pull what lacks ─> trainer holds the newest version ─ lease ─> train
                                                                                                 │
    residual, outbox <── receipt <── send, and send again <── commit (the only point of no return) ┘

Everything that waits has a deadline here and a sentence in `words`. `handle` first takes in what happened, then
`_advance` does whatever has become possible or due; the latter is idempotent, so that no event can leave something
undone. Before the commit of an update nothing happened; after it the update is sent until a receipt comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import assert_never

from fedmq_edge_agent.core import words
from fedmq_edge_agent.core.backoff import Chance
from fedmq_edge_agent.core.conversation import Conversation
from fedmq_edge_agent.core.desk import AgentLimits, Desk
from fedmq_edge_agent.core.effects import (
    CommitState,
    Effect,
    FinishBlob,
    PinCoordinator,
    Reconnect,
    Restore,
    SaveModelIndex,
    Send,
    StoreBlob,
    Subscribe,
    Train,
    TryDisk,
    Unsubscribe,
    WriteBlobPart,
)
from fedmq_edge_agent.core.events import (
    AgentStarted,
    BlobFinished,
    ConditionsRead,
    Connected,
    Disconnected,
    DiskMended,
    DiskRefused,
    Event,
    PacketArrived,
    PayloadLost,
    TimePassed,
    TrainerAnswered,
    TrainerDied,
    TrainerStarted,
)
from fedmq_edge_agent.core.standing import Standing, standing
from fedmq_edge_agent.core.state import AgentState, ModelIndex, Part
from fedmq_edge_agent.core.workshop import Workshop
from fedmq_protocol.envelope import Reader
from fedmq_protocol.messages import DIGEST, Hello, Presence
from fedmq_protocol.packing import NAME as PACKED

__all__ = ["Agent", "AgentLimits"]


class Agent:
    """The device's state machine.

    Args:
        limits: what it is told of its device.
        public_key: the device's, for the birth certificate.
        coordinator_key: the coordinator's, if configured or pinned before.
        state: what the last commit left.
        indexes: the model files on disk, by run.
        chance: fractions in [0, 1), for jitter.
        clock_s: seconds since 1970 at the start; 0: the device does not know.
        parts: what is on disk of model files that were being fetched, by run.
        reader: opens and verifies packets; default: as the protocol says.
    """

    def __init__(  # noqa: PLR0913 - all that a device is
        self,
        limits: AgentLimits,
        *,
        public_key: bytes,
        coordinator_key: bytes | None,
        state: AgentState,
        indexes: Mapping[str, ModelIndex],
        chance: Chance,
        clock_s: float = 0.0,
        parts: Mapping[str, tuple[Part, ...]] = MappingProxyType({}),
        reader: Reader | None = None,
    ) -> None:
        self.desk = Desk(limits, state=state, indexes=indexes, parts=parts, chance=chance, clock_s=clock_s)
        self.conversation = Conversation(self.desk, coordinator_key=coordinator_key, reader=reader)
        self.workshop = Workshop(self.desk, task_opened=self.conversation.task_opened)
        self._found = words.found(state, indexes, parts)
        self._public_key = public_key
        self._rested = False
        """Whether the daily budget or the conditions have kept us from listening since the start."""
        self._resting = False
        self._why_resting = self._budget_problem = ""
        self._untold: tuple[str, ...] = ()
        self._unpinned: bytes | None = None
        """The coordinator's key, where the disk did not take it."""

    # ------------------------------------------------------------------------------ what the shell calls

    def next_session(self) -> int:
        """The session number for a connection that is about to be made; the next event reserves more when they end."""
        return self.desk.ledger.next_session()

    @property
    def session(self) -> int | None:
        """The number of the present connection; None: there is none."""
        return self.desk.contact.session

    def count(self, *, sent: int, received: int, clock_s: float, now: float) -> None:
        """Take in the socket's counters, before each `handle`.

        Args:
            sent: bytes sent since the agent started.
            received: likewise.
            clock_s: seconds since 1970; may be wrong.
            now: as for `handle`.
        """
        self.desk.budget.count(sent=sent, received=received, clock_s=clock_s, now=now)

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take in what happened; return what to do, in order."""
        self.desk.effects = []
        self._take_in(event, now=now)
        self._advance(now=now)
        return self.desk.effects

    def last_effects(self) -> list[Effect]:
        """What is to be done before an orderly end: the commit that was due anyway."""
        ledger, budget = self.desk.ledger, self.desk.budget
        unsaved = ledger.commit_at is not None or budget.spent != ledger.state.spent
        return ledger.commit(budget.keep()) if unsaved else []

    def next_deadline(self) -> float | None:
        """When `TimePassed` is due, if nothing happens before."""
        desk = self.desk
        deadlines = (
            desk.trainer.next_deadline(),
            None if desk.saving else desk.outbox.next_deadline(),
            desk.budget.next_deadline(),
            desk.conditions.next_deadline(),
            None if desk.following is None else desk.following.pull.next_deadline(),
            desk.contact.next_deadline(),
            None if desk.storage.books_wait else desk.ledger.commit_at,
            desk.storage.retry_at,
            None if desk.leases.held is None else desk.leases.held.expires_at,
            self.workshop.train_at(),
        )
        return min([deadline for deadline in deadlines if deadline is not None], default=None)

    def waiting(self, *, now: float) -> str:
        """What this device waits for, since when and until when, in one line."""
        key_known = self.conversation.inbox.coordinator_key is not None
        return words.waiting(self.desk, key_known=key_known, now=now)

    def standing(self) -> Standing:
        """How this device stands."""
        return standing(self.desk, problem=self._problem)

    def presence(self, *, online: bool, session: int) -> Presence:
        """The birth certificate as it stands now; or a goodbye, or the last will, of `session`."""
        if not online:
            return Presence(online=False, session=session, public_key=self._public_key)
        opened = self.desk.trainer.opened
        return Presence(
            online=True,
            session=session,
            public_key=self._public_key,
            agent_version=self.desk.limits.agent_version,
            tasks=[] if opened is None else [opened.task],
            codecs=[DIGEST] if opened is None else [*opened.codecs, PACKED, DIGEST],
            num_examples=None if opened is None else opened.num_examples,
            problem=self._problem,
        )

    @property
    def _problem(self) -> str:
        """Why this device cannot take part now."""
        desk = self.desk
        return desk.storage.problem or self.workshop.problem or desk.conditions.problem or desk.budget.problem

    # ------------------------------------------------------------------------------ events

    def _take_in(self, event: Event, *, now: float) -> None:
        desk = self.desk
        match event:
            case AgentStarted():
                self._on_started(now=now)
            case Connected():
                self._on_connected(event, now=now)
            case Disconnected():
                self._on_disconnected(event, now=now)
            case PacketArrived():
                self.conversation.packet(event.topic, event.payload, now=now)
            case BlobFinished():
                if desk.following is not None and desk.following.run == event.run:
                    desk.do(*desk.following.blob(event, now=now))
            case PayloadLost():
                self._on_payload_lost(event, now=now)
            case TrainerStarted() | TrainerAnswered() | TrainerDied():
                if event.generation == desk.trainer.generation:
                    self.workshop.trainer_event(event, now=now)
            case DiskRefused():
                self._on_disk_refused(event, now=now)
            case DiskMended():
                self._on_disk_mended(now=now)
            case ConditionsRead(readings):
                desk.conditions.read(readings, now=now)
            case TimePassed():
                pass
            case _:
                assert_never(event)

    def _advance(self, *, now: float) -> None:
        """Do whatever has become possible or due. The commit comes first: what is sent below relies on it."""
        self._advance_rest(now=now)
        self._stop_writing()
        self._commit(now=now)
        self._leave_session()
        self.workshop.advance(now=now)
        self._advance_model(now=now)
        self.workshop.advance_lease(now=now)
        self.workshop.ask_trainer(now=now)
        if self.desk.following is not None:
            self.desk.do(*self.desk.following.flush())
        hello_is_due = self.desk.contact.hello_is_due(now=now)
        budget = self.desk.budget
        metered, outbox = self.desk.conditions.metered, self.desk.outbox
        sending = [] if metered else outbox.poll(fits=budget.fits, left=budget.left, now=now)
        self._advance_rest(now=now)
        self._greet()  # before all else that is said: the coordinator learns our key from it
        self.desk.do(*sending)
        if hello_is_due:
            self._say_hello()

    def _commit(self, *, now: float) -> None:
        ledger, budget, request = self.desk.ledger, self.desk.budget, self.desk.trainer.request
        busy = request.run if isinstance(request, Train | Restore) else None
        ledger.reserve_sessions(now=now)
        for run in ledger.sweep(busy=busy, now=now):
            self.desk.forget(run)
        if budget.worth_keeping:
            ledger.commit_soon(now=now)
        storage, removes = self.desk.storage, False
        if ledger.commit_at is None and storage.retry_at is None:
            return
        trying = storage.is_due(now=now)
        if trying:
            storage.trying()
        due = ledger.commit_at is not None and (trying or ledger.commit_at <= now)
        if due and not storage.books_wait:
            effects = ledger.commit(budget.keep())
            self.desk.do(*effects)
            self.desk.outbox.commit(ledger.is_durable)
            removes = len(effects) > 1
        if trying or (removes and not storage.takes):  # what is removed makes room
            storage.trying()
            self.desk.do(TryDisk(storage.room_bytes))

    def _leave_session(self) -> None:
        """Connect anew once the number is on disk; if that fails, the coordinator will say it again."""
        contact, kept = self.desk.contact, self.desk.ledger.session_is_kept
        if contact.leaves is not None and contact.leaves == contact.session and kept:
            self.desk.do(Reconnect(contact.session))
        contact.leaves = None

    def _advance_rest(self, *, now: float) -> None:
        """Stop listening when the daily budget is used up or a condition does not hold; and begin again."""
        desk = self.desk
        desk.conditions.pass_time(now=now)
        self._tell_of_rest()
        if self._resting == desk.resting:
            return
        self._resting = desk.contact.resting = desk.resting
        if self._resting:
            self._rested = True
            desk.do(Unsubscribe((desk.topics.announcement,)))
            if desk.following is not None:
                desk.do(*desk.following.pull.disconnected())
        elif desk.contact.session is not None:
            self._listen_again(now=now)

    def _tell_of_rest(self) -> None:
        """Say why it rests, and that it does not any more; and once what its board cannot tell."""
        desk, conditions, budget = self.desk, self.desk.conditions, self.desk.budget
        for text in conditions.untold:
            if text not in self._untold:
                desk.note("warning", text)
        self._untold = conditions.untold or self._untold
        if conditions.problem != self._why_resting and conditions.readings is not None:
            self._why_resting = conditions.problem
            rests = f"does not train: {conditions.problem}"
            desk.note("info", rests if conditions.problem else "trains again: its conditions hold")
        if bool(budget.problem) != bool(self._budget_problem):
            news = budget.problem or "a new day: the daily budget is whole again"
            desk.note("warning" if budget.problem else "info", news)
        self._budget_problem = budget.problem

    def _stop_writing(self) -> None:
        """Fetch nothing while the disk does not take it."""
        following = self.desk.following
        if not self.desk.storage.takes and following is not None and following.disk_takes:
            following.disk_takes = False
            self.desk.do(*following.pull.disconnected())

    def _listen_again(self, *, now: float) -> None:
        self.desk.do(Subscribe((self.desk.topics.announcement,)))
        self.desk.contact.expect_announcement(now=now)
        if self.desk.following is not None and self.desk.may_fetch:
            self.desk.following.pull.connected()

    def _advance_model(self, *, now: float) -> None:
        following = self.desk.following
        if following is None:
            return
        wanted = following.pull.wanted_bytes
        if wanted and not self.desk.budget.fits(wanted, f"the model ({following.pull.progress})"):
            self.desk.do(*following.pull.disconnected())
        self.desk.do(*following.poll(now=now, received=self.desk.budget.received))
        trouble = following.take_trouble()
        if trouble:
            self.desk.note("warning", f"cannot get the model: {trouble}", run=following.run)
            self.desk.report("model-unreachable", trouble, run=following.run)

    # ------------------------------------------------------------------------------ connection

    def _on_started(self, *, now: float) -> None:
        desk = self.desk
        desk.contact.since = now
        if self._found:
            desk.note("info", f"found on the disk: {self._found}")
        desk.ledger.identify(self._public_key, now=now)
        for run in desk.ledger.state.runs.values():
            for pending in run.pending:
                desk.outbox.add(pending, from_before=True, now=now)

    def _on_connected(self, event: Connected, *, now: float) -> None:
        desk = self.desk
        desk.contact.connected(event.session, now=now)
        self._greet()
        desk.outbox.connected(event.max_packet_bytes, now=now)
        if desk.resting:
            desk.do(Unsubscribe((desk.topics.announcement,)))  # as above: it may have been lost
            return
        if self._rested:
            self._listen_again(now=now)  # the word to the broker may have been lost with a connection
        elif desk.following is not None and desk.may_fetch:
            desk.following.pull.connected()

    def _on_disconnected(self, event: Disconnected, *, now: float) -> None:
        desk = self.desk
        desk.contact.disconnected(event.reason, now=now)
        desk.outbox.disconnected()
        if desk.following is not None:
            desk.do(*desk.following.pull.disconnected())

    def _on_payload_lost(self, event: PayloadLost, *, now: float) -> None:
        desk, run, counter = self.desk, event.run, event.counter
        if not desk.outbox.is_to_be_sent(run, counter):
            return  # settled while its packet was queued, or the trainer will find out
        text = f"update {counter} is lost: its file {event.file} is gone, unreadable or damaged"
        desk.note("error", text, run=run)
        desk.report("other", text, run=run)
        desk.settle(run, counter, now=now)

    # ------------------------------------------------------------------------------ disk

    def _on_disk_refused(self, event: DiskRefused, *, now: float) -> None:
        desk, books, room_bytes = self.desk, False, 0
        for effect in event.effects:
            match effect:
                case CommitState():
                    desk.ledger.refused(now=now)
                    desk.outbox.commit(desk.ledger.is_durable)
                    books = desk.storage.books_wait = True
                case PinCoordinator(public_key):
                    self._unpinned = public_key
                case TryDisk():
                    pass
                case _:
                    if desk.following is not None:
                        desk.following.not_written(effect)
                    room_bytes += _size(effect)
        desk.disk_refused(event.fault, event.detail, room_bytes=room_bytes, chain=books, now=now)

    def _on_disk_mended(self, *, now: float) -> None:
        desk = self.desk
        lasted = desk.storage.mended(now=now)
        if lasted:
            desk.note("info", f"the disk takes what is written again, after {lasted}")
        if self._unpinned is not None:
            desk.do(PinCoordinator(self._unpinned))
            self._unpinned = None
        if desk.following is not None:
            desk.do(*desk.following.disk_mended(now=now))
            if desk.may_fetch:
                desk.following.pull.connected()

    def _greet(self) -> None:
        """Publish the birth certificate, again when something in it changes or somebody may have missed it."""
        desk = self.desk
        session = desk.contact.session
        if session is not None and desk.contact.changed((session, desk.trainer.opened, self._problem)):
            presence = self.presence(online=True, session=session)
            desk.do(Send(desk.topics.presence(desk.device), presence, retain=True))

    def _say_hello(self) -> None:
        desk, following = self.desk, self.desk.following
        run = None if following is None else following.run
        version = None if following is None else following.replica.held
        desk.do(Send(desk.topics.up(desk.device, "hello"), Hello(run=run, version=version)))


def _size(effect: SaveModelIndex | StoreBlob | WriteBlobPart | FinishBlob) -> int:
    """How much room a model file takes that was not written: all of it, where a chunk was refused."""
    match effect:
        case StoreBlob(data=data):
            return len(data)
        case WriteBlobPart(head=head):
            return head.link.ref.size
        case _:
            return 0
