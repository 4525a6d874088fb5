"""Bugs planted on purpose, to see that histories find them: each a small change of the real cores, for a while.

A mutant that no history finds tells of an invariant, or a fault, that is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from fedmq.simulation import coordinator as virtual_coordinator
from fedmq.simulation.coordinator import VirtualCoordinator
from fedmq.simulation.faults.drawing import draw_plan
from fedmq.simulation.faults.history import History
from fedmq_coordinator.core import conversation, publication
from fedmq_coordinator.core import facts as f
from fedmq_coordinator.core.dedupe import SettledUpdates
from fedmq_coordinator.core.effects import Record
from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.progress import Progress
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.state import FederationState
from fedmq_edge_agent.core.conversation import Conversation
from fedmq_edge_agent.core.inbox import Inbox
from fedmq_edge_agent.core.leases import Leases
from fedmq_edge_agent.core.ledger import Ledger
from fedmq_edge_agent.core.outbox import Outbox
from fedmq_edge_agent.core.workshop import Workshop
from fedmq_protocol.messages import Announcement

Patch = tuple[Any, str, Callable[[Any], Any]]
"""Where, the name of what is replaced, and what makes the new one of the old one."""


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: short.
        text: what it does.
        patches: how.
    """

    name: str
    text: str
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class Found:
    """What became of a mutant.

    Attributes:
        mutant: which.
        invariant: what it broke; "": nothing.
        histories: how many it took.
        seed: the one that found it.
        text: what was seen.
    """

    mutant: Mutant
    invariant: str
    histories: int
    seed: int
    text: str


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """With the bug in the code, until the block ends."""
    before = [(where, name, getattr(where, name)) for where, name, _ in mutant.patches]
    try:
        for where, name, make in mutant.patches:
            setattr(where, name, make(getattr(where, name)))
        yield
    finally:
        for where, name, original in before:
            setattr(where, name, original)


def hunt(mutant: Mutant, *, histories: int, seed: int = 0) -> Found:
    """Look for a mutant in histories `seed` ... `seed + histories - 1`."""
    with planted(mutant):
        for number in range(histories):
            broken = History(draw_plan(seed + number)).run().broken
            if broken is not None:
                return Found(mutant, broken.invariant, number + 1, seed + number, broken.text)
    return Found(mutant, "", histories, -1, "")


# ------------------------------------------------------------------------------------------ the planted bugs

_CHECK_AGE: Final = Inbox._check_age


def _instead(new: Callable[..., Any]) -> Callable[[Any], Any]:
    """Something else altogether."""
    return lambda _: new


def _after(then: Callable[..., Any]) -> Callable[[Any], Any]:
    """The old one, and then something more with the same arguments."""

    def make(old: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(old)
        def new(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the old one takes
            result = old(*args, **kwargs)
            then(*args, **kwargs)
            return result

        return new

    return make


def _accept_but(when: Callable[[f.UpdateAccepted], bool]) -> Callable[[Any], Any]:
    """An update that is accepted does not come into the sum."""

    def make(old: Callable[[Run, f.UpdateAccepted], None]) -> Callable[[Run, f.UpdateAccepted], None]:
        def accept(run: Run, fact: f.UpdateAccepted) -> None:
            if not when(fact):
                old(run, fact)
                return
            fold, held = type(run.accumulator).fold, run.accumulator
            try:
                type(held).fold = lambda self, update, *, weight, clip: self.count(weight=weight)  # type: ignore[method-assign]  # noqa: ARG005
                old(run, fact)
            finally:
                type(held).fold = fold  # type: ignore[method-assign]

        return accept

    return make


def _send_first(old: Callable[..., None]) -> Callable[..., None]:
    """What is to be said goes out before the facts of its batch are on disk."""

    def handle(self: VirtualCoordinator, batch: list[Any], *, at_once: bool = False) -> None:
        core_handle = self.core.handle

        def say_at_once(event: Any, *, now: float) -> list[Any]:  # noqa: ANN401
            effects = core_handle(event, now=now)
            for effect in effects:
                if not isinstance(effect, Record):
                    self._perform(effect)
                    self.watch.coordinator_did(self, effect)
            return [effect for effect in effects if isinstance(effect, Record)]

        self.core.handle = say_at_once  # type: ignore[method-assign]
        try:
            old(self, batch, at_once=at_once)
        finally:
            self.core.handle = core_handle  # type: ignore[method-assign]

    return handle


def _no_dedupe(self: SettledUpdates, counter: int, sha256: bytes) -> None:
    """Nothing was ever settled."""


def _by_number_alone(self: SettledUpdates, counter: int, sha256: bytes) -> Any:  # noqa: ANN401, ARG001
    return self._outcomes.get(counter)


def _no_residual(self: Ledger, run: str, residual_file: str | None) -> None:
    self.state = self.state.with_run(run, residual_file=None if residual_file else residual_file)


def _commit_later(old: Callable[..., Any]) -> Callable[..., Any]:
    def trained(self: Ledger, *args: Any, now: float, **kwargs: Any) -> Any:  # noqa: ANN401
        pending = old(self, *args, now=now, **kwargs)
        self.commit_at = now + 1.0
        return pending

    return trained


def _forget_buffer(self: FederationState, *_: Any, **__: Any) -> None:  # noqa: ANN401
    for run in self.runs.values():
        run._accumulator = None


def _forget_settled(self: FederationState, *_: Any, **__: Any) -> None:  # noqa: ANN401
    for run in self.runs.values():
        run.settled.clear()


def _released(self: Run) -> None:
    if self.over:
        self.settled.clear()


def _always_granted(old: Callable[..., Any]) -> Callable[..., Any]:
    def was_granted(self: Run, device: str, lease: int) -> float:
        found: float | None = old(self, device, lease)
        return self.opened_at if found is None else found

    return was_granted


def _any_lease(self: Leases, lease: Any, *, committed: int) -> None:  # noqa: ANN401, ARG001
    if self.held is None or lease.lease > self.held.lease:
        self.held = lease


def _believe_older(self: Inbox, envelope: Any) -> None:  # noqa: ANN401
    if not isinstance(envelope.body, Announcement):
        _CHECK_AGE(self, envelope)


def _discard_all(old: Callable[..., None]) -> Callable[..., None]:
    def on_receipt(self: Conversation, receipt: Any, *, now: float) -> None:  # noqa: ANN401
        if receipt.residual == "restore":
            receipt = receipt.model_copy(update={"residual": "discard"})
        old(self, receipt, now=now)

    return on_receipt


def _restore_all(old: Callable[..., None]) -> Callable[..., None]:
    def on_receipt(self: Conversation, receipt: Any, *, now: float) -> None:  # noqa: ANN401
        if receipt.residual == "discard":
            receipt = receipt.model_copy(update={"residual": "restore"})
        old(self, receipt, now=now)

    return on_receipt


def _forget_oldest(self: Outbox, *_: Any, **__: Any) -> None:  # noqa: ANN401
    while len(self._entries) > 1:
        del self._entries[next(iter(self._entries))]


def _same_epoch(old: Callable[..., None]) -> Callable[..., None]:
    def started(self: Any, event: Any) -> None:  # noqa: ANN401
        old(self, type(event)(max(1, event.epoch - 1), event.public_key))

    return started


def _fresh(old: Callable[..., Any]) -> Callable[..., Any]:
    def judge(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        verdict = old(*args, **kwargs)
        return (
            verdict.model_copy(update={"staleness": 0}) if isinstance(verdict, f.UpdateAccepted) else verdict
        )

    return judge


def _as_of_now(old: Callable[..., Any]) -> Callable[..., Any]:
    def judge(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        verdict = old(*args, **kwargs)
        if not isinstance(verdict, f.UpdateAccepted):
            return verdict
        return verdict.model_copy(
            update={"base_version": verdict.base_version + verdict.staleness, "staleness": 0}
        )

    return judge


def _without_leases(old: Callable[..., FederationState]) -> Callable[..., FederationState]:
    def load(*args: Any) -> FederationState:  # noqa: ANN401
        state = old(*args)
        for run in state.runs.values():
            run._unused.clear()
        return state

    return load


def _step_twice(self: publication.PublishedModel, accumulator: Any, scale: float) -> None:  # noqa: ANN401
    self._step = accumulator, 2 * scale


def _silent(old: Callable[..., Any]) -> Callable[..., Any]:
    """An update is sent once."""

    def poll(self: Outbox, **kwargs: Any) -> Any:  # noqa: ANN401
        sent = old(self, **kwargs)
        for entry in self._entries.values():
            if entry.attempts and not entry.restoring:
                entry.next_send_at = max(entry.next_send_at, kwargs["now"] + 1e9)
        return sent

    return poll


def _send_again(self: Outbox, *, now: float) -> None:
    """What was sent is not sent again, on a new connection or to a new coordinator."""


def _mutants() -> tuple[Mutant, ...]:
    nothing = _instead(lambda *_, **__: None)
    return (
        Mutant("no dedupe", "a duplicate is judged again", ((SettledUpdates, "find", _instead(_no_dedupe)),)),
        Mutant(
            "send before commit",
            "messages leave before their batch is on disk",
            ((VirtualCoordinator, "_handle", _send_first),),
        ),
        Mutant(
            "drop the residual",
            "a training begins without what was left over",
            ((Ledger, "_replace_residual", _instead(_no_residual)),),
        ),
        Mutant(
            "forget a late update",
            "accepted, journaled, and not summed",
            ((Run, "_accept", _accept_but(lambda fact: fact.staleness > 0)),),
        ),
        Mutant(
            "forget the buffer",
            "a restart loses what waits for the next step",
            ((FederationState, "fold", _after(_forget_buffer)),),
        ),
        Mutant(
            "forget the verdicts",
            "a restart loses what was settled",
            ((FederationState, "fold", _after(_forget_settled)),),
        ),
        Mutant(
            "forget runs that are over",
            "the next run's beginning loses what was settled",
            ((Run, "release_model", _after(_released)),),
        ),
        Mutant(
            "number for update",
            "another update of a used number is taken for a duplicate",
            ((SettledUpdates, "find", _instead(_by_number_alone)),),
        ),
        Mutant(
            "a lease for ever",
            "a lease counts as often as it is trained for",
            ((Run, "was_granted", _always_granted), (Leases, "offer", _instead(_any_lease))),
        ),
        Mutant(
            "send before the device's commit",
            "an update leaves before it is on the device's disk",
            (
                (Ledger, "trained", _commit_later),
                (Ledger, "is_durable", _instead(lambda *_: True)),
            ),
        ),
        Mutant(
            "believe older announcements",
            "an announcement that comes late is followed",
            ((Inbox, "_check_age", _instead(_believe_older)),),
        ),
        Mutant(
            "discard what is to be restored",
            "a refused update's mass is thrown away",
            ((Conversation, "_on_receipt", _discard_all),),
        ),
        Mutant(
            "restore what is to be discarded",
            "a refused update's mass goes back unasked",
            ((Conversation, "_on_receipt", _restore_all),),
        ),
        Mutant(
            "no requantisation",
            "a rebase leaves the coordinator's own replica as it was",
            ((publication, "requantise_inplace", nothing),),
        ),
        Mutant(
            "a small outbox",
            "the oldest update makes room for the next",
            ((Outbox, "add", _after(_forget_oldest)),),
        ),
        Mutant(
            "the same epoch", "a start does not grow the epoch", ((Coordinator, "_started", _same_epoch),)
        ),
        Mutant(
            "never stale",
            "a late update is weighed, and written down, as if it were fresh",
            ((conversation, "judge", _fresh),),
        ),
        Mutant(
            "as if trained on the newest",
            "a late update is written down as one of the newest version",
            ((conversation, "judge", _as_of_now),),
        ),
        Mutant(
            "a checkpoint without leases",
            "a start from a checkpoint knows of no lease that was granted",
            ((virtual_coordinator, "load", _without_leases),),
        ),
        Mutant(
            "send after a refused commit",
            "what a full disk did not take is sent all the same",
            ((Ledger, "is_durable", _instead(lambda *_: True)),),
        ),
        Mutant(
            "a step twice",
            "a step goes twice as far as the journal says",
            ((publication.PublishedModel, "step", _instead(_step_twice)),),
        ),
        Mutant(
            "send once",
            "an update without a receipt is not sent again",
            ((Outbox, "poll", _silent), (Outbox, "send_again", _instead(_send_again))),
        ),
        Mutant("leases do not end", "who has vanished is waited for", ((Progress, "_expire", nothing),)),
        Mutant(
            "one lease too many",
            "a device trains on although its outbox is full",
            ((Workshop, "advance_lease", nothing),),
        ),
    )


MUTANTS: Final = _mutants()
