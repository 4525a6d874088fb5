"""A broken history as somebody would tell it: who was there, what went wrong on purpose, and what led to the end."""

from __future__ import annotations

from fedmq.simulation.faults.history import Outcome
from fedmq.simulation.faults.plan import COORDINATOR
from fedmq.simulation.faults.witness import Entry
from fedmq.simulation.world import START_S
from fedmq_coordinator.core import effects as do
from fedmq_coordinator.core import events as e
from fedmq_coordinator.core import facts as f
from fedmq_edge_agent.core import effects as device_do
from fedmq_edge_agent.core import events as device_e

_LAST = 40


def tell(outcome: Outcome, *, last: int = _LAST) -> str:
    """The story of a broken history, in lines of text."""
    broken, plan = outcome.broken, outcome.plan
    if broken is None:
        return f"history {plan.seed}: {outcome.events} events, nothing broke"
    lines = [
        f"history {plan.seed} breaks «{broken.invariant}» at event {broken.at_event}: {broken.text}",
        "",
        f"  {len(plan.devices)} devices, {plan.parameters} parameters, latency {plan.latency_s:g} s",
    ]
    for number, run in enumerate(plan.runs, start=1):
        strategy = {key: value for key, value in run["strategy"].items() if value not in {None, "none", 0.0}}
        lines.append(f"  run r{number}: {run['mode']}, {run['rounds']} rounds, {strategy}")
    lines += ["", "  faults that were to strike:"]
    lines += [f"    {fault}" for fault in plan.faults] or ["    none"]
    concerned = set(broken.concerned) or {device.name for device in plan.devices} | {COORDINATOR}
    entries = [entry for entry in outcome.log if entry[1] in concerned or entry[2] == "fault"]
    told = [line for line in (_line(entry) for entry in entries) if line]
    lines += ["", f"  the last of what {' and '.join(sorted(concerned))} did:"]
    lines += [f"    {line}" for line in told[-last:]]
    if broken.trace:
        lines += ["", *(f"    {line}" for line in broken.trace.strip().splitlines()[-12:])]
    return "\n".join(lines)


def _line(entry: Entry) -> str:
    at, who, kind, what = entry
    text = _words(kind, what)
    return f"{at - START_S:10.3f} s  {who:<11}  {text}" if text else ""


def _words(kind: str, what: object) -> str:  # noqa: C901 - a case a thing
    match kind, what:
        case "fault", _:
            return f"*** {what}"
        case ("died", str(why)):
            return f"*** {why}"
        case "started", _:
            return f"starts, life {what}"
        case "journal", f.Fact():
            return f"journals {_fields(type(what).__name__, what)}"
        case "told", (e.PacketArrived(topic=topic) | device_e.PacketArrived(topic=topic)):
            return f"hears {topic.split('/', 3)[-1]}"
        case "told", (e.TimePassed() | device_e.TimePassed()):
            return ""
        case "told", device_e.TrainerAnswered(answer=answer):
            return f"trainer: {_fields(type(answer).__name__, answer)}"
        case "did", device_do.CommitState(state):
            pending = {
                run: [each.header.counter for each in kept.pending] for run, kept in state.runs.items()
            }
            return f"commits: waiting for receipts: {pending}"
        case "did", (do.Note(text=text) | device_do.Note(text=text)):
            return f"notes: {text}"
        case "did", (do.Send(topic, body) | device_do.Send(topic, body)):
            return f"says {topic.split('/', 3)[-1]}: {_fields(type(body).__name__, body)}"
        case "did", do.SendChunk(topic=topic):
            return f"says {topic.split('/', 3)[-1]}"
        case "did", (device_do.SendUpdate(header, _)):
            return f"sends {_fields('update', header)}"
        case "did", device_do.Ask(request=request):
            return f"asks its trainer: {_fields(type(request).__name__, request)}"
        case "did", _:
            return ""
        case _:
            return f"{kind}: {type(what).__name__}"


_TOLD = (
    "run",
    "device",
    "round",
    "version",
    "lease",
    "devices",
    "counter",
    "base_version",
    "outcome",
    "reason",
)
_TOLD_TOO = ("residual", "closed_by", "num_updates", "why", "state", "online", "session", "epoch", "code")


def _fields(name: str, what: object) -> str:
    values = ((field, getattr(what, field, None)) for field in (*_TOLD, *_TOLD_TOO))
    return f"{name}({', '.join(f'{field}={value}' for field, value in values if value is not None and value != '')})"
