"""Views made out of the state, on demand."""

from __future__ import annotations

from collections.abc import Mapping

from fedmq_coordinator.core.desk import Desk
from fedmq_coordinator.core.devices import Device
from fedmq_coordinator.core.run import CentralScore, FederatedScore, Run
from fedmq_coordinator.core.timing import closes_in
from fedmq_coordinator.core.views import DeviceView, FederationView, RunView, VersionView
from fedmq_coordinator.core.waiting import span, waiting


def federation(desk: Desk, *, broker: str, rejections: dict[str, int], now: float) -> FederationView:
    """Everything but the runs' own views."""
    state, active = desk.state, desk.state.active
    return FederationView(
        federation=desk.topics.federation,
        epoch=state.epoch,
        broker_connected=not broker,
        broker_detail=broker,
        active_run=None if active is None else active.id,
        queued_runs=[run.id for run in state.runs.values() if run.state == "queued"],
        devices=[
            device(each, state.current, paused=desk.roster.paused, now=now)
            for each in sorted(state.devices.values(), key=lambda each: each.id)
        ],
        runs=list(state.runs),
        rejections=rejections,
    )


def device(each: Device, run: Run | None, *, paused: Mapping[str, float], now: float) -> DeviceView:
    """One device, in the light of the active run, or else of the last one."""
    held = None if run is None else run.leases.get(each.id)
    if not each.online:
        state = "offline"
    elif each.trouble:
        state = "unable"
    elif paused.get(each.id, 0.0) > now:
        state = "paused"
    else:
        state = "training" if held is not None else "idle"
    presence = each.presence
    task = presence.tasks[0] if presence is not None and presence.tasks else None
    return DeviceView(
        device=each.id,
        state=state,
        since_s=now - each.since,
        gone_by="" if each.online else each.gone_by,
        problem=each.trouble,
        floods=bool(each.flood),
        task="" if task is None else f"{task.name} {task.version}",
        num_examples=None if presence is None else presence.num_examples,
        agent_version="" if presence is None else presence.agent_version,
        updates=0 if run is None else run.updates_by_device.get(each.id, 0),
        task_time_s=None if run is None else run.task_time(each.id),
        lease_age_s=None if held is None else now - held.granted_at,
        sent_bytes=each.sent,
        received_bytes=each.received,
        rejections=each.rejections,
    )


def scores(run: Run) -> dict[int, float]:
    """How good each evaluated version is, more being better: by the target metric, or else by minus the loss.

    By the central evaluation where there is one, else by the devices'.
    """
    metric = run.settings.target_metric
    measured: Mapping[int, CentralScore | FederatedScore] = run.evaluations or {
        version: score for version, score in run.federated.items() if score.num_examples
    }
    return {version: score.metrics.get(metric, -score.loss) for version, score in measured.items()}


def best_version(run: Run) -> int | None:
    """The version with the best target metric, or else the least loss; None if none is known."""
    if run.over:
        return run.best_version
    scored = scores(run)
    return max(scored, key=lambda version: (scored[version], version), default=None)


def federated(run: Run) -> list[VersionView]:
    """What devices measured of each version on their own test data, weighted by examples."""
    return [
        VersionView(version=version, loss=score.loss, metrics=score.metrics)
        for version, score in sorted(run.federated.items())
        if score.num_examples
    ]


def start(run: Run) -> str:
    """How the first weights come to the devices."""
    if run.recipe is not None:
        return f"from a seed: the first weights travel as a recipe of {len(run.recipe)} bytes"
    return "the first weights travel" + (f": {run.why_no_recipe}" if run.why_no_recipe else "")


def run(run: Run, desk: Desk, *, broker: str, evaluating: bool, now: float) -> RunView:
    """One run."""
    match run.state:
        case "queued":
            wait = broker or "the runs before it in the queue"
        case "active" if desk.making is not None and desk.making[0] == run.id:
            wait = (
                broker or f"version {run.version + 1}, which is being made since {span(now - desk.making[1])}"
            )
        case "active":
            wait = waiting(
                run,
                desk.state.devices,
                desk.crew(run),
                broker=broker,
                evaluating=evaluating,
                now=now,
                resumed_at=desk.resumed_at,
            )
            wait = "; ".join(part for part in (wait, desk.turns.words) if part)
        case _:
            wait = ""
    published = run.holds_model
    is_open = run.state == "active" and run.settings.mode == "sync" and run.round_open
    closes_in_s = None
    if is_open:
        flows_until = desk.turns.flows_until
        closes_in_s = closes_in(
            run, desk.crew(run), now=now, resumed_at=desk.resumed_at, flows_until=flows_until
        )
    return RunView(
        run=run.id,
        state=run.state,
        task=run.task,
        settings=run.settings,
        num_parameters=run.schema.num_parameters,
        size=run.schema.size,
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        end_reason=run.end_reason,
        round=run.round,
        version=run.version,
        best_version=run.best_version,
        round_open=is_open,
        round_age_s=now - run.opened_at if is_open else None,
        closes_in_s=closes_in_s,
        waiting=wait,
        updates_in_buffer=0 if run.over else run.accumulator.num_updates,
        goal=run.goal,
        answered=len(run.answered & run.members),
        accepted=run.num_accepted,
        rejected=run.num_rejected,
        leases=len(run.leases),
        late=sum(1 for held in run.leases.values() if held.granted_at < run.opened_at),
        evaluations=[
            VersionView(version=v, loss=e.loss, metrics=e.metrics) for v, e in sorted(run.evaluations.items())
        ],
        federated=federated(run),
        chain_bytes=run.model.chain_bytes if published else 0,
        snapshot_bytes=run.model.snapshot.ref.size if published else 0,
        start=start(run),
        moved=run.moved.by_device,
    )
