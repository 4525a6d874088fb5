"""What a device waits for, in a sentence: for what, since when, until when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmq_edge_agent.core.effects import ApplyDelta, LoadSnapshot, Restore, Train

if TYPE_CHECKING:
    from fedmq_edge_agent.core.machine import Agent


def span(seconds: float) -> str:
    """A length of time as people say it."""
    seconds = max(0.0, seconds)
    if seconds < 60:  # noqa: PLR2004  # seconds in a minute
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"  # noqa: PLR2004  # an hour and a half


def waiting(agent: Agent, *, now: float) -> str:
    """What `agent` waits for; the trainer's work first, then what hinders it, then what it waits to hear."""
    parts = [
        part
        for part in (_connection(agent, now), _trainer(agent, now), _run(agent, now), _outbox(agent, now))
        if part
    ]
    return "; ".join(parts)


def _connection(agent: Agent, now: float) -> str:
    if agent.contact.session is None:
        return f"offline for {span(now - agent.contact.since)} ({agent.contact.offline_reason}); trying again by itself"
    if agent.inbox.coordinator_key is None:
        return f"connected for {span(now - agent.contact.since)}; waiting for the coordinator's first sign of life"
    if agent.contact.coordinator_online is False:
        return "the coordinator is away; everything is kept until it is back"
    return ""


def _trainer(agent: Agent, now: float) -> str:
    trainer = agent.trainer
    since = span(now - trainer.since)
    until = "" if trainer.deadline is None else f", given up in {span(trainer.deadline - now)}"
    match trainer.state:
        case "down":
            why = f" ({trainer.last_failure})" if trainer.last_failure else ""
            return f"the trainer is started again in {span(trainer.resume_at - now)}{why}"
        case "starting":
            return f"the trainer has been starting for {since}{until}"
        case "opening":
            return f"the task has been opening for {since}{until}"
        case "busy":
            return f"{_request(agent)} for {since}{until}"
        case "idle":
            return ""


def _request(agent: Agent) -> str:
    match agent.trainer.request:
        case Train() as train:
            kept = agent.ledger.run(train.run)
            usual = "" if kept is None or kept.usual_s is None else f" (usually {span(kept.usual_s)})"
            return f"training for lease {train.lease} on version {train.base_version}{usual}"
        case LoadSnapshot(version=version) | ApplyDelta(version=version):
            return f"loading version {version}"
        case Restore(counter=counter):
            return f"putting the refused update {counter} back"
        case _:
            return "working"


def _run(agent: Agent, now: float) -> str:
    if agent.contact.session is None or agent.inbox.coordinator_key is None:
        return ""
    following = agent.following
    if agent.announcement is None:
        ask = "" if agent.contact.hello_at is None else f"; asking in {span(agent.contact.hello_at - now)}"
        return f"no run was announced for {span(now - agent.contact.since)}{ask}"
    if following is None:
        return agent.idle_reason
    if following.pull.since is not None:
        since = span(now - following.pull.since)
        rest = following.pull.not_before - now
        pause = f", which rests for {span(rest)} after a disagreement of hashes" if rest > 0 else ""
        return f"waiting for {since} for {following.pull.progress} of {following.run}{pause}"
    if agent.leases.held is not None:
        left = span(agent.leases.held.expires_at - now)
        return f"lease {agent.leases.held.lease} waits for the trainer, and runs out in {left}"
    if agent.trainer.ready:
        return f"holds version {following.replica.loaded} of {following.run}; waiting for a lease"
    return ""


def _outbox(agent: Agent, now: float) -> str:
    since = agent.outbox.oldest_since
    if since is None:
        return ""
    due = agent.outbox.next_deadline()
    again = "" if due is None else f", sent again in {span(due - now)}"
    full = "; none is trained before" if len(agent.outbox) >= agent.limits.outbox_limit else ""
    count = len(agent.outbox)
    return f"{count} update{'s' if count > 1 else ''} without a receipt for {span(now - since)}{again}{full}"
