"""What the parts of the machine share: the device's books, and the one list of what is to be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedmq_edge_agent.core.backoff import Chance
from fedmq_edge_agent.core.budget import Budget
from fedmq_edge_agent.core.conditions import Conditions, Rules
from fedmq_edge_agent.core.contact import Contact
from fedmq_edge_agent.core.effects import Effect, Note, RemoveFiles, Send
from fedmq_edge_agent.core.following import Following
from fedmq_edge_agent.core.leases import Leases
from fedmq_edge_agent.core.ledger import Ledger
from fedmq_edge_agent.core.outbox import Outbox
from fedmq_edge_agent.core.state import INDEX_FILE, AgentState, ModelIndex, Part, have_file, part_file
from fedmq_edge_agent.core.storage import Storage
from fedmq_edge_agent.core.supervision import Supervision, TimeLimits
from fedmq_edge_agent.disk_faults import ROOMY, DiskFault
from fedmq_protocol.limits import MAX_TEXT_CHARS
from fedmq_protocol.messages import Announcement, Report
from fedmq_protocol.topics import Topics

ReportCode = Literal[
    "train-failed",
    "task-mismatch",
    "no-data",
    "task-error",
    "model-unreachable",
    "busy",
    "bad-message",
    "other",
]


@dataclass(frozen=True)
class AgentLimits:
    """What the core is told of its device.

    Attributes:
        federation: which one.
        device: this device's id.
        outbox_limit: with so many updates without a receipt, no further training.
        agent_version: for the birth certificate.
        times: how long the trainer child may take.
        daily_bytes: the most that goes over the MQTT socket in a day, both ways; None: no limit.
        conditions: what has to hold for a training.
    """

    federation: str
    device: str
    outbox_limit: int = 4
    agent_version: str = "0"
    times: TimeLimits = field(default_factory=TimeLimits)
    daily_bytes: int | None = None
    conditions: Rules = field(default_factory=Rules)


class Desk:
    """The books of one device; the parts of the machine write in them, and put what is to be done on the list.

    Args:
        limits: what the device is told.
        state: what the last commit left.
        indexes: the model files on disk, by run.
        parts: likewise those that were being fetched.
        chance: fractions in [0, 1), for jitter.
        clock_s: seconds since 1970 at the start.
    """

    def __init__(
        self,
        limits: AgentLimits,
        *,
        state: AgentState,
        indexes: Mapping[str, ModelIndex],
        parts: Mapping[str, tuple[Part, ...]],
        chance: Chance,
        clock_s: float,
    ) -> None:
        self.limits = limits
        self.device = limits.device
        self.topics = Topics(limits.federation)
        self.chance = chance
        self.effects: list[Effect] = []
        self.packs = False
        """Whether the coordinator reads the shorter form of envelopes: it has written so, in this epoch."""
        self.ledger = Ledger(state, clock_s=clock_s)
        self.budget = Budget(limits.daily_bytes, state.spent)
        self.conditions = Conditions(limits.conditions)
        self.storage = Storage(chance=chance)
        self.contact = Contact(chance=chance)
        self.outbox = Outbox(topics=self.topics, device=limits.device, chance=chance)
        self.trainer = Supervision(limits=limits.times, chance=chance)
        self.leases = Leases()
        self.following: Following | None = None
        """The run whose model is held; None: there is none."""
        self.announcement: Announcement | None = None
        """The newest, whatever it is about."""
        self.announced_at = 0.0
        self.idle_reason = ""
        """Why the announced run is not followed."""
        self.ended = ""
        """The run that was last said to be over."""
        self._indexes = dict(indexes)
        self._parts = dict(parts)

    def do(self, *effects: Effect) -> None:
        """Put effects on the list."""
        self.effects += effects

    def note(
        self, level: Literal["debug", "info", "warning", "error"], text: str, **fields: str | float
    ) -> None:
        """A line for the log."""
        self.do(Note(level, text, fields))

    def place(self, run: str = "") -> tuple[str, int | None]:
        """What a line for the log is about: a run, or else the one that is followed, and the round announced for it."""
        if not run and self.following is not None:
            run = self.following.run
        newest = self.announcement
        return run, newest.round if newest is not None and run and newest.run == run else None

    def report(
        self, code: ReportCode, detail: str, *, run: str | None = None, lease: int | None = None
    ) -> None:
        """Tell the operator, if there is a connection; a lease that is named is given back."""
        if self.contact.session is not None:
            body = Report(code=code, detail=detail[:MAX_TEXT_CHARS], run=run, lease=lease)
            self.do(Send(self.topics.up(self.device, "report"), body))

    @property
    def resting(self) -> bool:
        """Whether it takes no part for now, by its daily budget or its conditions: it does not listen to rounds."""
        return self.budget.resting or self.conditions.resting

    @property
    def saving(self) -> bool:
        """Whether nothing is sent that can wait."""
        return self.budget.resting or self.conditions.metered

    @property
    def may_fetch(self) -> bool:
        """Whether a model may be fetched now."""
        return self.contact.session is not None and not self.resting and self.storage.takes

    def follow(self, run: str) -> Following:
        """Begin to follow a run, with what there is of it on disk."""
        index = self._indexes.pop(run, ModelIndex())
        parts = self._parts.pop(run, ())
        following = Following(
            run, index, topics=self.topics, device=self.device, chance=self.chance, parts=parts
        )
        following.disk_takes = self.storage.takes
        if self.may_fetch:
            following.pull.connected()
        self.following = following
        return following

    def stop_following(self) -> None:
        """Leave the run that is followed; its files stay until it is forgotten."""
        self.leases.drop()
        if self.following is not None:
            self.do(*self.following.pull.disconnected(), *self.following.flush())
            self._indexes[self.following.run] = self.following.replica.index
            self._parts[self.following.run] = self.following.pull.parts
            self.following = None

    def forget(self, run: str) -> None:
        """Nothing is kept of a run any more."""
        self._indexes.pop(run, None)
        self._parts.pop(run, None)

    def disk_refused(
        self, fault: DiskFault, detail: str, *, room_bytes: int = 0, chain: bool = False, now: float
    ) -> None:
        """Something was not written. Old files go first, and then it is tried at once.

        Args:
            fault: why.
            detail: likewise, in a line.
            room_bytes: as much has to fit.
            chain: what was not written is worth the model that is held, which can be fetched again.
            now: the time.
        """
        detail = detail[:MAX_TEXT_CHARS]
        if self.storage.refused(fault, detail, room_bytes=room_bytes, now=now):
            self.note("error", detail)
        if fault in ROOMY and self.make_room(chain=chain, now=now):
            self.note("warning", "gave up model files to make room; they are fetched again")
            self.storage.try_soon(now=now)

    def make_room(self, *, chain: bool, now: float) -> bool:
        """Give up model files, which can be fetched again; whether there were any.

        Args:
            chain: those of the followed run too.
            now: the time.
        """
        effects: list[Effect] = []
        for run in dict.fromkeys([*self._indexes, *self._parts]):
            names = [link.file for link in self._indexes.pop(run, ModelIndex()).links]
            heads = [part.head.link for part in self._parts.pop(run, ())]
            names += [name(link.blob, link.version) for link in heads for name in (part_file, have_file)]
            if names:
                effects.append(RemoveFiles(run, (INDEX_FILE, *names)))
        if chain and not effects and self.following is not None:
            effects = self.following.give_up_files(now=now)
        self.do(*effects)
        return any(isinstance(effect, RemoveFiles) for effect in effects)

    def settle(self, run: str, counter: int, *, now: float) -> None:
        """The last word on an update was spoken."""
        self.outbox.remove(run, counter)
        self.ledger.settled(run, counter, now=now)
