"""What a device waits for, in a sentence: for what, since when, until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedmq_edge_agent.core.effects import ApplyDelta, LoadSnapshot, Restore, Train
from fedmq_edge_agent.core.state import AgentState, ModelIndex, Part

if TYPE_CHECKING:  # the desk's parts speak too
    from fedmq_edge_agent.core.desk import Desk


def span(seconds: float) -> str:
    """A length of time as people say it."""
    seconds = max(0.0, seconds)
    if seconds < 60:  # noqa: PLR2004  # seconds in a minute
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"  # noqa: PLR2004  # an hour and a half


def size(count: float) -> str:
    """A number of bytes as people say it, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if count < 1_000:  # noqa: PLR2004  # the next unit
            return f"{count:.3g} {unit}"
        count /= 1_000
    return f"{count:.3g} GB"


def found(state: AgentState, indexes: Mapping[str, ModelIndex], parts: Mapping[str, tuple[Part, ...]]) -> str:
    """What a start finds on the disk; empty for a new device."""
    lines = []
    for run, kept in state.runs.items():
        counters = ", ".join(str(pending.header.counter) for pending in kept.pending)
        links = indexes.get(run, ModelIndex()).links
        things = [
            f"version {links[-1].version}" if links else "no model",
            *(_fetched(part) for part in parts.get(run, ())),
            "a residual" if kept.residual_file is not None else "",
            f"update{'s' if len(kept.pending) > 1 else ''} {counters} without a receipt" if counters else "",
        ]
        lines.append(f"{run}: {', '.join(thing for thing in things if thing)}")
    return "; ".join(lines)


def _fetched(part: Part) -> str:
    link = part.head.link
    return f"{len(part.have)} of {part.head.count} chunks of {link.blob} {link.version}"


def waiting(desk: Desk, *, key_known: bool, now: float) -> str:
    """What the device waits for; the trainer's work first, then what hinders it, then what it waits to hear."""
    parts = [
        part
        for part in (
            desk.storage.words(now=now),
            desk.conditions.words(now=now),
            desk.budget.problem,
            _connection(desk, key_known, now),
            _trainer(desk, now),
            _run(desk, key_known, now),
            _outbox(desk, now),
        )
        if part
    ]
    return "; ".join(parts)


def _connection(desk: Desk, key_known: bool, now: float) -> str:  # noqa: FBT001 - a fact, not a switch
    if desk.contact.session is None:
        return f"offline for {span(now - desk.contact.since)} ({desk.contact.offline_reason}); trying again by itself"
    if not key_known:
        return f"connected for {span(now - desk.contact.since)}; waiting for the coordinator's first sign of life"
    if desk.contact.coordinator_online is False:
        return "the coordinator is away; everything is kept until it is back"
    return ""


def _trainer(desk: Desk, now: float) -> str:
    trainer = desk.trainer
    since = span(now - trainer.since)
    until = "" if trainer.deadline is None else f", given up in {span(trainer.deadline - now)}"
    match trainer.state:
        case "down" if trainer.held:
            return ""
        case "down":
            why = f" ({trainer.last_failure})" if trainer.last_failure else ""
            return f"the trainer is started again in {span(trainer.resume_at - now)}{why}"
        case "starting":
            return f"the trainer has been starting for {since}{until}"
        case "opening":
            return f"the task has been opening for {since}{until}"
        case "busy":
            return f"{_request(desk)} for {since}{until}"
        case "idle":
            return ""


def _request(desk: Desk) -> str:
    match desk.trainer.request:
        case Train() as train:
            kept = desk.ledger.run(train.run)
            usual = "" if kept is None or kept.usual_s is None else f" (usually {span(kept.usual_s)})"
            return f"training for lease {train.lease} on version {train.base_version}{usual}"
        case LoadSnapshot(version=version) | ApplyDelta(version=version):
            return f"loading version {version}"
        case Restore(counter=counter):
            return f"putting the refused update {counter} back"
        case _:
            return "working"


def _run(desk: Desk, key_known: bool, now: float) -> str:  # noqa: FBT001 - a fact, not a switch
    if desk.contact.session is None or not key_known:
        return ""
    following = desk.following
    if desk.announcement is None:
        ask = "" if desk.contact.hello_at is None else f"; asking in {span(desk.contact.hello_at - now)}"
        return f"no run was announced for {span(now - desk.contact.since)}{ask}"
    if following is None:
        return desk.idle_reason
    if following.pull.since is not None:
        since = span(now - following.pull.since)
        rest = following.pull.not_before - now
        pause = f", which rests for {span(rest)} after a disagreement of hashes" if rest > 0 else ""
        return f"waiting for {since} for {following.pull.progress} of {following.run}{pause}"
    if desk.leases.held is not None:
        left = span(desk.leases.held.expires_at - now)
        return f"lease {desk.leases.held.lease} waits for the trainer, and runs out in {left}"
    if desk.trainer.ready:
        return f"holds version {following.replica.loaded} of {following.run}; waiting for a lease"
    return ""


def _outbox(desk: Desk, now: float) -> str:
    since = desk.outbox.oldest_since
    if since is None:
        return ""
    due = desk.outbox.next_deadline()
    again = "" if due is None else f", sent again in {span(due - now)}"
    if due is not None and desk.outbox.waits_for_turn:
        again = f", waiting for credit: others have their turn (sent all the same in {span(due - now)})"
    full = "; none is trained before" if len(desk.outbox) >= desk.limits.outbox_limit else ""
    count, unwritten = len(desk.outbox), desk.outbox.num_unwritten
    if unwritten == count:
        return f"{count} update{'s' if count > 1 else ''} not sent before the disk has them"
    return f"{count} update{'s' if count > 1 else ''} without a receipt for {span(now - since)}{again}{full}"
