"""Nothing waits in silence: one sentence that says for what, since when, and until when."""

from __future__ import annotations

from collections.abc import Mapping

from fedmq_coordinator.core.devices import LAST_WILL, Device
from fedmq_coordinator.core.roster import Roster
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.selection import aim
from fedmq_coordinator.core.strategies import make_strategy
from fedmq_coordinator.core.timing import closes_in, round_length

_MINUTE = 60
_HOUR = 3600
_NAMED = 3


def span(seconds: float) -> str:
    """A length of time in words: 0.4 s, 42 s, 3 min, 2 h 5 min."""
    if seconds < 10:  # noqa: PLR2004  below ten seconds the tenths matter
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"


def waiting(
    run: Run,
    devices: Mapping[str, Device],
    roster: Roster,
    *,
    broker: str,
    evaluating: bool,
    now: float,
    resumed_at: float,
) -> str:
    """What an active run waits for."""
    if broker:
        return broker
    if run.rounds_done:
        return "the last version's evaluation" if evaluating else "nothing: the last version is published"
    need = run.settings.selection.min_available_devices
    idle = not run.round_open if run.settings.mode == "sync" else not run.leases and not run.num_accepted
    if idle and len(roster.available) < need:
        who = f"devices that can train {run.task.name} {run.task.version}"
        return f"{len(roster.available)} of {need} {who} (min_available_devices){_unable(devices)}"
    if run.settings.mode == "sync":
        return _sync(run, devices, roster, now=now, resumed_at=resumed_at)
    return _async(run, devices, roster, now=now)


def _sync(run: Run, devices: Mapping[str, Device], roster: Roster, *, now: float, resumed_at: float) -> str:
    if not run.round_open:
        return "a device that is free; all are at work under earlier leases"
    parts = [f"{roster.num_answered} of {len(run.members)} updates"]
    length = round_length(run, roster)
    waited_for = roster.awaited(within_s=length)
    if waited_for:
        parts.append(
            f"those of {_names(waited_for)} missing since {span(now - max(run.opened_at, resumed_at))}"
        )
    gone = sorted(name for name in run.members - run.answered if not roster.is_there(name))
    parts += [_gone(devices[name], now=now) for name in gone[:_NAMED] if name in devices]
    late = sorted(set(run.leases) - set(waited_for) - set(gone))
    if late:
        parts.append(f"{_names(late)} train{'s' if len(late) == 1 else ''} on, counted later")
    closes = closes_in(run, roster, now=now, resumed_at=resumed_at)
    if closes > 0:
        parts.append(f"closes in {span(closes)}")
    return "; ".join(parts)


def _async(run: Run, devices: Mapping[str, Device], roster: Roster, *, now: float) -> str:
    strategy = make_strategy(run.expected_settings, in_flight=aim(run, max(1, len(roster.available))))
    size = getattr(strategy, "buffer_size", 1)
    at_work = sorted(run.leases, key=lambda device: run.leases[device].granted_at)
    parts = [f"{run.accumulator.num_updates} of {size} updates for the next step"]
    if at_work:
        oldest = run.leases[at_work[0]]
        parts.append(f"{len(at_work)} at work, {at_work[0]} longest, since {span(now - oldest.granted_at)}")
    gone = [name for name in at_work if name in devices and not roster.is_there(name)]
    parts += [_gone(devices[name], now=now) for name in gone[:_NAMED]]
    if run.dirty:
        due = run.published_at + run.settings.strategy.publish_interval_s
        parts.append(f"publishes in {span(due - now)}")
    return "; ".join(parts)


def _gone(device: Device, *, now: float) -> str:
    if device.behind is not None:
        return f"{device.id} {device.trouble}"
    return f"{device.id} offline {span(now - device.since)} by {device.gone_by or LAST_WILL}"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _unable(devices: Mapping[str, Device]) -> str:
    unable = [
        f"{device.id}: {device.trouble}"
        for device in devices.values()
        if device.trouble and (device.online or device.behind is not None)
    ]
    return f" ({'; '.join(unable[:_NAMED])})" if unable else ""
