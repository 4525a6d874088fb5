"""The coordinator's own words, asked for over its API, as a part of the one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedmq_broker.watching.picture import CoordinatorPicture, DevicePicture, RunPicture
from fedmq_coordinator.core.devices import LAST_WILL
from fedmq_coordinator.core.views import DeviceView, RunView
from fedmq_coordinator.shell.client import Client
from fedmq_coordinator.shell.tally import WatchView

_TIMEOUT_S: Final = 10.0
_USUAL_TIMES: Final = 2.0
"""Beyond so many times its usual length of training, a device counts as silent."""


def ask(state_dir: Path) -> tuple[CoordinatorPicture, list[DevicePicture]]:
    """Ask the coordinator whose state is in `state_dir`.

    Raises:
        FedmqError: it does not answer, or is not there; the text says which.
    """
    with Client(state_dir) as client:
        told = client.watch(timeout_s=_TIMEOUT_S)
    return coordinator_of(told), devices_of(told)


def coordinator_of(told: WatchView) -> CoordinatorPicture:
    """What the coordinator tells of the federation."""
    federation = told.federation
    states: dict[str, int] = {}
    for device in federation.devices:
        states[device.state] = states.get(device.state, 0) + 1
    return CoordinatorPicture(
        federation=federation.federation,
        told_by="coordinator",
        up=True,
        detail="",
        epoch=federation.epoch,
        at_broker=federation.broker_connected,
        queued_runs=len(federation.queued_runs),
        run=None if told.run is None else _run(told.run),
        states=states,
        steps=told.tally.steps,
        updates_accepted=told.tally.updates_accepted,
        updates_rejected=told.tally.updates_rejected,
        refused=federation.rejections,
    )


def devices_of(told: WatchView) -> list[DevicePicture]:
    """Every device that ever joined, and for how long it has been silent."""
    return [_device(device) for device in told.federation.devices]


def _run(view: RunView) -> RunPicture:
    return RunPicture(
        run=view.run,
        state=view.state,
        mode=view.settings.mode,
        task=f"{view.task.name} {view.task.version}",
        round=view.round,
        rounds=view.settings.rounds,
        version=view.version,
        round_open=view.round_open,
        round_age_s=view.round_age_s,
        closes_in_s=view.closes_in_s,
        answered=view.answered,
        goal=view.goal,
        leases=view.leases,
        accepted=view.accepted,
        rejected=view.rejected,
        waiting=view.waiting,
    )


def _device(view: DeviceView) -> DevicePicture:
    by_will = view.state == "offline" and view.gone_by == LAST_WILL
    silent_s = 0.0
    if by_will:
        silent_s = view.since_s
    elif view.state != "offline" and view.lease_age_s is not None and view.task_time_s is not None:
        silent_s = max(0.0, view.lease_age_s - _USUAL_TIMES * view.task_time_s)
    return DevicePicture.model_validate(
        {
            "device": view.device,
            "state": view.state,
            "silent_s": silent_s,
            "since_s": view.since_s,
            "by_will": by_will,
            "floods": view.floods,
            "problem": view.problem,
            "updates": view.updates,
            "lease_age_s": view.lease_age_s,
            "rejections": sum(view.rejections.values()),
            "sent_bytes": view.sent_bytes,
            "received_bytes": view.received_bytes,
        }
    )
