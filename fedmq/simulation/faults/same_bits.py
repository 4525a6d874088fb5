"""Two coordinators' cores, side by side: what of their state differs, to the bit."""

from __future__ import annotations

from fedmq_coordinator.core.machine import Coordinator
from fedmq_coordinator.core.run import Run

_PLAIN = (
    "state",
    "round",
    "round_open",
    "goal",
    "lease",
    "cohort",
    "cohort_lease",
    "members",
    "answered",
    "leases",
    "last_lease_version",
    "version",
    "num_steps",
    "dirty",
    "published_at",
    "durations",
    "norms",
    "usual_norms",
    "examples",
    "arrivals",
    "evaluations",
    "federated",
    "updates_by_device",
    "num_accepted",
    "num_rejected",
    "best_version",
    "end_reason",
)


def differences(one: Coordinator, other: Coordinator) -> list[str]:
    """Names of what is not the same; empty: they hold the same state, weights and sums to the bit."""
    found: list[str] = []
    if one.state.epoch != other.state.epoch:
        found.append("epoch")
    keys = [{name: device.public_key for name, device in core.state.devices.items()} for core in (one, other)]
    if keys[0] != keys[1]:
        found.append("devices")
    if one.state.queue != other.state.queue or one.runs.keys() != other.runs.keys():
        found.append("runs")
    for name in one.runs.keys() & other.runs.keys():
        found += [f"{name}: {what}" for what in _of_runs(one.runs[name], other.runs[name])]
    return found


def _of_runs(one: Run, other: Run) -> list[str]:
    found = [what for what in _PLAIN if getattr(one, what) != getattr(other, what)]
    settled = [{device: each.plain() for device, each in run.settled.items()} for run in (one, other)]
    if settled[0] != settled[1]:
        found.append("settled updates")
    if one.holds_model != other.holds_model:
        found.append("model")
    elif one.holds_model:
        if one.model.replica.tobytes() != other.model.replica.tobytes():
            found.append("replica")
        if not one.over and one.model.weights.tobytes() != other.model.weights.tobytes():
            found.append("weights")
        if one.model.manifest() != other.model.manifest():
            found.append("manifest")
    if not one.over and not other.over:
        if one.accumulator.total().tobytes() != other.accumulator.total().tobytes():
            found.append("sum")
        if one.accumulator.buffer != other.accumulator.buffer:
            found.append("buffer")
    return found
