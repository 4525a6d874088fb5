"""A plan out of a seed. Small fleets, small models and short waits: what goes wrong does so between two messages."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from fedmq.simulation.faults.plan import COORDINATOR, DevicePlan, Fault, Kind, Plan, WillTiming
from fedmq_protocol.limits import MAX_PACKET_BYTES, PACKET_OVERHEAD_BYTES

_UP: Final = ("presence", "hello", "update", "update", "update", "offer", "chunk", "report", "get", "")
_TO_DEVICE: Final = ("receipt", "receipt", "receipt", "run", "run", "lease", "status", "credit", "chunk", "")
_TO_COORDINATOR: Final = ("presence", "update", "update", "hello", "")
_BY_COORDINATOR: Final = ("run", "run", "status", "receipt", "receipt", "lease", "model", "credit", "")
_EFFECTS: Final = (
    "",
    "",
    "CommitState",
    "CommitState",
    "SendUpdate",
    "Ask",
    "SaveModelIndex",
    "StoreBlob",
    "Send",
)
_FEWEST_FAULTS, _MOST_FAULTS = 5, 14


def draw_plan(seed: int) -> Plan:
    """The plan of that name; the same on every machine."""
    chance = random.Random(f"fedmq faults {seed}")  # noqa: S311 - a history is to be repeated
    large = chance.random() < 0.15
    whole = chance.random() < 0.12
    devices = tuple(_device(chance, number + 1, large=large) for number in range(chance.randint(2, 5)))
    runs = chance.choice((1, 1, 1, 2))
    plan = Plan(
        seed=seed,
        devices=devices,
        parameters=chance.randint(300, 500) if large else chance.choice((8, 16, 24, 24, 40, 64)),
        runs=tuple(_settings(chance, len(devices), large=large, whole=whole) for _ in range(runs)),
        asked_at_once=runs,
        packet_bytes=PACKET_OVERHEAD_BYTES + chance.choice((40, 64, 200))
        if chance.random() < 0.6
        else MAX_PACKET_BYTES,
        inflight=chance.choice((1, 4, 20)),
        queued=chance.choice((3, 10, 100, 1_000)),
        latency_s=chance.choice((0.005, 0.05, 0.3)),
        stops_at=None if whole else chance.randint(200, 203),
    )
    return plan.but(faults=tuple(draw_faults(chance, plan, chance.randint(_FEWEST_FAULTS, _MOST_FAULTS))))


def more_faults(plan: Plan, round_number: int) -> tuple[Fault, ...]:
    """Further faults for a history in which too few took effect, that strike later."""
    chance = random.Random(f"fedmq faults {plan.seed} again {round_number}")  # noqa: S311
    return tuple(draw_faults(chance, plan, _FEWEST_FAULTS))


def more_run(plan: Plan, round_number: int) -> dict[str, Any]:
    """One run more for a history that was too short."""
    chance = random.Random(f"fedmq run {plan.seed} again {round_number}")  # noqa: S311
    whole = plan.stops_at is None
    settings = _settings(chance, len(plan.devices), large=plan.parameters >= 300, whole=whole)
    return settings | {"rounds": min(2, settings["rounds"] - 1)} if whole else settings


def _device(chance: random.Random, number: int, *, large: bool) -> DevicePlan:
    return DevicePlan(
        name=f"dev-{number}",
        train_s=round(chance.choice((0.5, 1.0, 2.0, 2.0, 5.0, 20.0)) * chance.uniform(0.8, 1.25), 3),
        outbox_limit=chance.choice((1, 2, 4, 4)),
        packet_bytes=PACKET_OVERHEAD_BYTES + chance.choice((64, 1_024))
        if large or chance.random() < 0.4
        else MAX_PACKET_BYTES,
        ahead_s=chance.choice((0.0, 0.0, -1.8e9, 3_600.0, -7_200.0)),
        rate=chance.choice((1.0, 1.0, 0.9, 1.2)),
        joins_at_s=chance.choice((0.0, 0.0, 0.0, 1.0, 30.0)),
    )


def _settings(chance: random.Random, devices: int, *, large: bool, whole: bool) -> dict[str, Any]:
    """Settings of a run, as a user would write them."""
    mode = chance.choice(("sync", "fedbuff", "fedasync"))
    exotic = chance.random() < 0.2
    up = chance.choice(
        ("float32", "int8", "int4", "topk-log4", "topk-sign")
        if exotic
        else ("topk-log4", "topk-log4", "float32")
    )
    down = chance.choice(
        ("float32", "int8", "topk-sign") if exotic else ("topk-log4", "topk-log4", "float32")
    )
    settings: dict[str, Any] = {
        "mode": mode,
        "rounds": chance.randint(2, 4) if whole else chance.choice((5, 9, 30)),
        "seed": chance.randrange(1_000),
        "evaluate_every": chance.choice((0, 1, 3)),
        "selection": {
            "fraction_train": chance.choice((1.0, 1.0, 0.5)),
            "min_available_devices": chance.randint(1, min(2, devices)),
            "min_updates": chance.randint(1, 2),
            "over_selection": chance.choice((1.0, 1.0, 1.5)),
            "deadline_factor": chance.choice((0.0, 2.0, 2.0)),
            "round_timeout_s": chance.choice((20.0, 60.0, 120.0)),
        },
        "strategy": {
            "staleness": chance.choice(("constant", "polynomial", "hinge")),
            "max_staleness": chance.choice((None, None, 0, 1, 3)),
            "clip": chance.choice(("none", "none", "median")),
            "publish_interval_s": chance.choice((0.0, 0.0, 2.0)),
        },
        "compression": {
            "up": "float32" if large else up,
            "down": down,
            "snapshot": chance.choice(("int8", "int8", "float32", "int4")),
            "start": "snapshot",
            "density": chance.choice((0.1, 0.3, 1.0)),
            "down_density": chance.choice((0.1, 0.3, 1.0)),
            "residual_cap": chance.choice((10.0, 1e6, 1e6)),
            "code_ms": 0,
            "coders": (),
        },
    }
    if mode == "fedbuff":
        settings["strategy"]["buffer_size"] = chance.choice((None, 1, 2, 3))
    return settings


def draw_faults(chance: random.Random, plan: Plan, count: int) -> list[Fault]:
    """So many faults."""
    names = [device.name for device in plan.devices]
    kinds = list(_DRAWS)
    return [
        _DRAWS[kind](chance, kind, chance.choice(names)) for kind in chance.choices(kinds, _ODDS, k=count)
    ]


def _will(chance: random.Random) -> WillTiming:
    return chance.choice(("", "", "late", "never"))


def _message(chance: random.Random, kind: Kind, device: str) -> Fault:
    way = "up" if kind in {"lose-ack", "false-ack"} or chance.random() < 0.5 else "down"
    by_coordinator = chance.random() < 0.4
    if kind == "overtake" and chance.random() < 0.6:
        at, seconds = chance.randint(2, 9), chance.uniform(0.5, 20)
        return Fault(
            kind, device, at, what=chance.choice(("run", "run", "lease")), way="down", seconds=seconds
        )
    if by_coordinator:
        what = chance.choice(_BY_COORDINATOR if way == "up" else _TO_COORDINATOR)
    else:
        what = chance.choice(_UP if way == "up" else _TO_DEVICE)
    return Fault(
        kind,
        COORDINATOR if by_coordinator else device,
        at=chance.randint(1, 40) if not what else 1 + min(chance.randrange(12), chance.randrange(12)),
        what=what,
        way="up" if way == "up" else "down",
        seconds={"overtake": chance.uniform(0.1, 20), "delay": chance.uniform(1, 90)}.get(kind, 0.0),
        extra=chance.randint(1, 2) if kind == "duplicate" else 0,
        will=_will(chance),
        cuts=kind in {"lose", "lose-ack"} and chance.random() < 0.5,
    )


def _party(chance: random.Random, kind: Kind, device: str) -> Fault:
    """At the count-th event of all."""
    who = COORDINATOR if chance.random() < 0.3 else device
    seconds = {
        "stall": chance.uniform(5, 90),
        "clock-jumps": chance.choice((-90_000, -3_600, -5, 5, 60, 3_600, 90_000)),
    }
    return Fault(kind, who, at=chance.randint(5, 180), seconds=seconds.get(kind, 0.0), will=_will(chance))


def _broker(chance: random.Random, kind: Kind, device: str) -> Fault:  # noqa: ARG001 - one signature
    seconds = chance.choice((0.0, 0.0, 3.0, 60.0))
    return Fault(kind, "broker", at=chance.randint(5, 180), seconds=seconds)


def _on_device(chance: random.Random, kind: Kind, device: str) -> Fault:
    """At the count-th effect."""
    what = chance.choice(_EFFECTS)
    return Fault(
        kind,
        device,
        at=chance.randint(1, 150) if not what else 1 + min(chance.randrange(16), chance.randrange(16)),
        what=what,
        seconds=chance.choice((0.1, 1.0, 10.0, 200.0)),
        extra=chance.randrange(2),
        will=_will(chance),
    )


def _in_device(chance: random.Random, kind: Kind, device: str) -> Fault:
    """At the count-th event of all."""
    return Fault(
        kind, device, at=chance.randint(5, 180), seconds=chance.choice((1.0, 10.0, 60.0)), will=_will(chance)
    )


def _disk_full(chance: random.Random, kind: Kind, device: str) -> Fault:
    """At the count-th event of all; or between a training's files and the commit that names them."""
    fault = _in_device(chance, kind, device)
    return fault if fault.at % 2 else replace(fault, at=1 + fault.at % 8 // 2, what="training")


def _wiped(chance: random.Random, kind: Kind, device: str) -> Fault:
    """At the count-th event of all; or with a receipt, when what was trained counts and its lease is still said."""
    if chance.random() < 0.3:
        return _in_device(chance, kind, device)
    at = 1 + min(chance.randrange(8), chance.randrange(8))
    return Fault(kind, device, at, what="receipt", seconds=chance.choice((0.1, 0.5, 1.0)), will=_will(chance))


def _restored(chance: random.Random, kind: Kind, device: str) -> Fault:
    """At the count-th event of all; so many events earlier the backup is made."""
    at = chance.randint(30, 180)
    return Fault(kind, device, at, extra=chance.randint(5, min(80, at - 5)), seconds=1.0, will=_will(chance))


def _of_coordinator(chance: random.Random, kind: Kind, device: str) -> Fault:  # noqa: ARG001 - one signature
    """At the count-th batch with facts in it."""
    return Fault(
        kind,
        COORDINATOR,
        at=1 + min(chance.randrange(70), chance.randrange(70)),
        seconds=chance.choice((0.1, 2.0, 30.0)),
        extra=chance.randint(1, 3),
        will=_will(chance),
    )


_Draw = Callable[[random.Random, Kind, str], Fault]
_DRAWS: Final[dict[Kind, _Draw]] = {
    "lose": _message,
    "lose-ack": _message,
    "false-ack": _message,
    "duplicate": _message,
    "overtake": _message,
    "delay": _message,
    "cut": _message,
    "stall": _party,
    "disconnect": _party,
    "clock-jumps": _party,
    "broker-restarts": _broker,
    "broker-forgets": _broker,
    "device-dies": _on_device,
    "device-power-cut": _on_device,
    "device-stops": _in_device,
    "trainer-dies": _in_device,
    "device-wiped": _wiped,
    "device-restored": _restored,
    "disk-full": _disk_full,
    "file-rots": _in_device,
    "coordinator-dies-before-commit": _of_coordinator,
    "coordinator-dies-after-commit": _of_coordinator,
    "coordinator-dies-between-sends": _of_coordinator,
    "coordinator-stops": _of_coordinator,
}
_ODDS: Final = [
    {
        "lose": 5,
        "false-ack": 4,
        "duplicate": 4,
        "device-dies": 6,
        "device-power-cut": 3,
        "device-wiped": 1.5,
    }.get(kind, 2)
    for kind in _DRAWS
]
