"""A picture as Prometheus reads it: its text format, version 0.0.4.

Mosquitto's own figures keep the names that exporters for Mosquitto gave them (`broker_clients_connected`), and no type,
since those names follow no convention. What is fedmq's follows Prometheus': `fedmq_`, base units, `_total` on counters.

The number of series is bounded: of devices and of clients, only as many are named as the cap says, the silent and the
troubled first, and `fedmq_devices_unnamed` tells how many are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from fedmq_broker.watching.log_lines import KINDS
from fedmq_broker.watching.picture import (
    DEVICE_STATES,
    STEPS_BY,
    BrokerPicture,
    CoordinatorPicture,
    Picture,
    RunPicture,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
DEFAULT_CAP: Final = 200

_LIMITS: Final = {
    "max_connections": ("fedmq_broker_limit_connections", "Connections that one listener takes."),
    "max_inflight_bytes": (
        "fedmq_broker_limit_inflight_bytes",
        "Bytes on the way to one client, not acknowledged.",
    ),
    "max_inflight_messages": ("fedmq_broker_limit_inflight_messages", "Messages on the way to one client."),
    "max_packet_size": ("fedmq_broker_limit_packet_bytes", "The largest packet that the broker takes."),
    "max_queued_bytes": (
        "fedmq_broker_limit_queued_bytes",
        "Bytes that may wait for one client before it drops.",
    ),
    "max_queued_messages": (
        "fedmq_broker_limit_queued_messages",
        "Messages that may wait for one client before it drops.",
    ),
    "memory_limit": ("fedmq_broker_limit_memory_bytes", "Memory that the broker may take for itself."),
    "resident_bytes": (
        "fedmq_broker_limit_resident_bytes",
        "Memory that the broker's process was planned to take at most.",
    ),
}


@dataclass
class Family:
    """One metric and its samples."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram", "untyped"] = "gauge"
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)
    """What follows the name, labels, value."""

    def add(self, value: float | None, **labels: str) -> Family:
        """A sample, where there is a value."""
        if value is not None:
            self.samples.append(("", labels, float(value)))
        return self


def exposition(picture: Picture, *, cap: int = DEFAULT_CAP) -> str:
    """The picture in Prometheus' text format.

    Args:
        picture: what to tell.
        cap: so many devices, and so many clients, are named at most.
    """
    return "".join(_text(family) for family in families(picture, cap=cap) if family.samples)


def families(picture: Picture, *, cap: int = DEFAULT_CAP) -> Iterator[Family]:
    """Every metric; those without a sample are not known now."""
    yield from _mosquitto(picture.broker)
    yield from _broker(picture.broker)
    yield from _clients(picture, cap)
    yield from _coordinator(picture.coordinator)
    yield from _run(picture.coordinator.run)
    yield from _devices(picture, cap)
    ends = Family(
        "fedmq_certificate_expiry_timestamp_seconds",
        "When a certificate, or the list of revoked ones, runs out; devices: the first of theirs.",
    )
    for name, at in sorted(picture.certificates.items()):
        ends.add(at, name=name)
    yield ends


def _mosquitto(broker: BrokerPicture) -> Iterator[Family]:
    for name, value in sorted(broker.figures.items()):
        topic = name.replace("_", " ")
        yield Family(name, f"Mosquitto's own figure: {topic}.", "untyped").add(value)


def _broker(broker: BrokerPicture) -> Iterator[Family]:
    yield Family("fedmq_broker_up", "Whether the exporter is connected to the broker.").add(broker.up)
    yield Family("fedmq_broker_figures_age_seconds", "Since the broker last told figures of itself.").add(
        broker.figures_age_s
    )
    yield Family(
        "fedmq_broker_queued_messages", "Messages that wait for clients: no client's queue is longer."
    ).add(broker.queued_messages)
    yield Family("fedmq_broker_queued_bytes", "About how many bytes wait for clients.").add(
        broker.queued_bytes
    )
    yield Family(
        "fedmq_broker_resident_bytes", "Memory of the broker's process, where it is on this machine."
    ).add(broker.resident_bytes)
    for option, (name, text) in _LIMITS.items():
        yield Family(name, text).add(broker.limits.get(option))
    events = Family(
        "fedmq_broker_events_total", "What befell clients, by the broker's log, since the start.", "counter"
    )
    for kind in KINDS:
        events.add(broker.events.get(kind, 0), kind=kind)
    yield events
    yield _probe(broker)
    yield Family(
        "fedmq_broker_probes_lost_total", "Probes that did not come back within ten seconds.", "counter"
    ).add(broker.probes_lost)


def _probe(broker: BrokerPicture) -> Family:
    name, text = "fedmq_broker_probe_duration_seconds", "From publishing a small message to receiving it."
    probe = Family(name, text, "histogram")
    for bound, number in broker.probe_buckets.items():
        probe.samples.append(("_bucket", {"le": bound}, float(number)))
    probe.samples.append(("_bucket", {"le": "+Inf"}, float(broker.probes)))
    probe.samples.append(("_sum", {}, broker.probe_sum_s))
    probe.samples.append(("_count", {}, float(broker.probes)))
    return probe


def _clients(picture: Picture, cap: int) -> Iterator[Family]:
    troubles = Family(
        "fedmq_client_troubles_total",
        "What befell a client that had trouble in the last 15 minutes, since the start.",
        "counter",
    )
    for client in picture.clients[:cap]:
        for kind, number in sorted(client.troubles.items()):
            troubles.add(number, client=client.client, kind=kind)
    yield troubles


def _coordinator(told: CoordinatorPicture) -> Iterator[Family]:
    yield Family("fedmq_coordinator_up", "Whether the coordinator's API answers.").add(told.up)
    yield Family("fedmq_coordinator_at_broker", "Whether the coordinator is connected to the broker.").add(
        told.at_broker
    )
    yield Family("fedmq_coordinator_epoch", "Grows at each start of the coordinator.").add(told.epoch)
    yield Family("fedmq_runs_queued", "Runs that wait for the active one.").add(told.queued_runs)
    states = Family("fedmq_devices", "Devices by state.")
    if told.states:
        for state in DEVICE_STATES:
            states.add(told.states.get(state, 0), state=state)
    yield states
    if not told.up:
        return
    steps = Family(
        "fedmq_steps_total",
        "Steps of the model since the coordinator's start, by what made them due; deadline and timeout: of a round "
        "that did not get what it waited for.",
        "counter",
    )
    for why in STEPS_BY:
        steps.add(told.steps.get(why, 0), closed_by=why)
    yield steps
    yield Family(
        "fedmq_updates_accepted_total", "Updates that count, since the coordinator's start.", "counter"
    ).add(told.updates_accepted)
    yield _by_reason(
        "fedmq_updates_rejected_total",
        "Updates that do not count, since the coordinator's start.",
        told.updates_rejected,
    )
    yield _by_reason(
        "fedmq_messages_refused_total",
        "Messages that were refused, since the coordinator's start.",
        told.refused,
    )


def _by_reason(name: str, text: str, numbers: Mapping[str, int]) -> Family:
    family = Family(name, text, "counter")
    for reason, number in sorted(numbers.items()):
        family.add(number, reason=reason)
    return family


def _run(run: RunPicture | None) -> Iterator[Family]:
    active = run is not None and run.state == "active"
    yield Family("fedmq_run_active", "Whether a run is active.").add(active)
    if run is None:
        return
    yield Family("fedmq_run_info", "The active run, or else the newest.").add(
        1, run=run.run, mode=run.mode, task=run.task, state=run.state
    )
    yield Family("fedmq_round", "The number of the round.").add(run.round)
    yield Family("fedmq_model_version", "The newest published version.").add(run.version)
    if not active:
        return
    yield Family("fedmq_round_age_seconds", "For how long the round has been open.").add(run.round_age_s)
    yield Family(
        "fedmq_round_closes_in_seconds", "Until the round closes with what it has; below 0: it should have."
    ).add(run.closes_in_s)
    yield Family("fedmq_round_updates", "Updates of the round that is open.").add(run.answered)
    yield Family("fedmq_round_goal", "Updates that the round waits for.").add(run.goal)
    yield Family("fedmq_leases", "Devices at work.").add(run.leases)


def _devices(picture: Picture, cap: int) -> Iterator[Family]:
    if not picture.devices:
        return
    named = picture.devices[:cap]
    silent = Family(
        "fedmq_device_silent_seconds",
        "For how long nothing came of a device that should have: since its last will, or beyond its usual time.",
    )
    floods = Family(
        "fedmq_device_floods", "1 for a device of which the coordinator reads nothing, since it floods."
    )
    state = Family("fedmq_device_state", "1 for the state that a device is in.")
    for each in named:
        silent.add(each.silent_s, device=each.device)
        state.add(1, device=each.device, state=each.state)
        if each.floods:
            floods.add(1, device=each.device)
    yield silent
    yield floods
    yield state
    yield Family("fedmq_devices_unnamed", "Devices that no metric of a single one is told for.").add(
        len(picture.devices) - len(named)
    )


# ------------------------------------------------------------------------------------------------- the text


def _text(family: Family) -> str:
    lines = [
        f"# HELP {family.name} {_escaped(family.help, quotes=False)}",
        f"# TYPE {family.name} {family.kind}",
    ]
    lines += [
        f"{family.name}{suffix}{_labels(labels)} {_number(value)}" for suffix, labels, value in family.samples
    ]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items()) + "}"


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def names(lines: Iterable[str]) -> set[str]:
    """The names of the metrics in a scrape, those of a histogram's parts included."""
    return {line.partition(" ")[0].partition("{")[0] for line in lines if line and not line.startswith("#")}
