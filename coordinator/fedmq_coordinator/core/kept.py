"""What a checkpoint keeps of each class of the state, attribute by attribute; see `checkpoint`."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from fedmq_coordinator.core import run as r
from fedmq_coordinator.core.dedupe import SettledUpdates
from fedmq_coordinator.core.plain import AS_IS, SET, Form, Table, lookup, mapping, newest, row
from fedmq_coordinator.core.traffic import Meter, Moved
from fedmq_protocol.messages import Cohort


def _cohort(plain: list[Any]) -> Cohort:
    devices, rate, seed = plain
    return Cohort(rate=rate, seed=seed) if devices is None else Cohort(devices=devices)


_COHORT: Final = Form(lambda value: [value.devices, value.rate, value.seed], _cohort)
_MOVED: Final = Form(
    lambda value: value.by_device,
    lambda plain: Moved({device: (sent, received) for device, (sent, received) in plain.items()}),
)
_METER: Final = Form(
    lambda value: dict(value.seen),
    lambda plain: Meter({device: (sent, received) for device, (sent, received) in plain.items()}),
)
_SETTLED: Final = Form(lambda value: value.plain(), SettledUpdates.from_plain)
_CENTRAL: Final = Form(lambda value: [value.loss, value.metrics], lambda plain: r.CentralScore(*plain))
_FEDERATED: Final = Form(
    lambda value: [value.num_examples, value.loss_sum, value.metric_sums],
    lambda plain: r.FederatedScore(*plain),
)
_RULE: Final = Form(
    lambda value: [_COHORT.plain(value.cohort), value.round, value.at, sorted(value.used)],
    lambda plain: r.Rule(_cohort(plain[0]), plain[1], plain[2], set(plain[3])),
)

STATE: Final = Table(
    kept={
        "epoch": AS_IS,
        "num_facts": AS_IS,
        "queue": AS_IS,
        "_active": AS_IS,
        "_skipped_leases": AS_IS,
        "_meter": _METER,
        "_moved": _MOVED,
        "_sessions": AS_IS,
    },
    left_out={
        "devices": "their keys are written, the rest is in the state's own attributes or comes from the broker",
        "runs": "written by their own tables",
        "_skip_steps": "of use during a replay alone",
    },
)

HISTORY: Final = Table(
    kept={
        "cohort": _COHORT,
        "members": SET,
        "answered": SET,
        "leases": mapping(row(r.HeldLease, "lease", "version", "granted_at", "expires_at")),
        "_unused": lookup(mapping(AS_IS, ordered=True)),
        "_rules": mapping(_RULE, ordered=True),
        "last_lease_version": AS_IS,
        "settled": mapping(_SETTLED),
        "durations": mapping(newest(r.DURATIONS_KEPT)),
        "norms": newest(r.NORMS_KEPT),
        "usual_norms": AS_IS,
        "examples": newest(r.NORMS_KEPT),
        "arrivals": newest(r.ARRIVALS_KEPT),
        "evaluations": mapping(_CENTRAL),
        "federated": mapping(_FEDERATED),
        "updates_by_device": AS_IS,
        "moved": _MOVED,
    },
)
"""What of a run grows with its devices and versions. Of one that is closed, it is read when it is first asked for."""

RUN: Final = Table(
    kept={
        "state": AS_IS,
        "started_at": AS_IS,
        "ended_at": AS_IS,
        "end_reason": AS_IS,
        "best_version": AS_IS,
        "num_steps": AS_IS,
        "_last_version": AS_IS,
        "round": AS_IS,
        "round_open": AS_IS,
        "opened_at": AS_IS,
        "goal": AS_IS,
        "lease": AS_IS,
        "cohort_lease": AS_IS,
        "cohort_granted_at": AS_IS,
        "lease_expires_at": AS_IS,
        "dirty": AS_IS,
        "published_at": AS_IS,
        "num_accepted": AS_IS,
        "num_rejected": AS_IS,
        "numbers": Form(
            lambda value: [value.created, value.chain, value.steps], lambda plain: r.FactNumbers(*plain)
        ),
    },
    left_out={
        **dict.fromkeys(
            (
                "id",
                "settings",
                "task",
                "schema",
                "has_central_data",
                "created_at",
                "recipe",
                "why_no_recipe",
                "_initial",
            ),
            "in the fact that made the run",
        ),
        "frozen": "the history itself, packed",
        "_model": "in the facts of its chain, and in its own `plain`",
        "_accumulator": "in its own `plain`",
        "_skip_steps": "of use during a replay alone",
        "decoded": "found again from the payload",
    },
)


def packed_history(run: r.Run) -> bytes:
    """The run's history; of a closed run it is packed once."""
    if run.frozen is not None:
        return run.frozen.packed
    packed: bytes = msgpack.packb(HISTORY.plain(run))
    if run.closed:
        run.frozen = r.Frozen(packed, restore_history)
    return packed


def freeze_history(run: r.Run, packed: bytes) -> None:
    """Let a closed run have its history when it is asked for."""
    for name in HISTORY.kept:
        delattr(run, name)
    run.frozen = r.Frozen(packed, restore_history)


def restore_history(run: r.Run, packed: bytes) -> None:
    """Give a run what `packed_history` wrote.

    Raises:
        KeyError: something is missing.
        ValueError: it is damaged.
    """
    HISTORY.restore(run, msgpack.unpackb(packed, strict_map_key=False))
