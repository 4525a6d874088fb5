"""What must hold of each party after every event: memory within bounds that no number of updates moves; no idle wait.

A party that waits has a deadline in the future, or a sentence that says what for. One that is woken again and again at
the same moment spins.
"""

from __future__ import annotations

from fedmq.simulation.coordinator import VirtualCoordinator
from fedmq.simulation.device import VirtualDevice
from fedmq.simulation.faults.broken import BrokenError
from fedmq_coordinator.core.dedupe import WINDOW
from fedmq_coordinator.core.run import Run
from fedmq_coordinator.core.uploads import MAX_OPEN
from fedmq_edge_agent.core.download import WINDOW as PULL_WINDOW

_SPINS = 50
_LEASES_KEPT = 64
_NORMS_KEPT = 64
_SPARSE_BYTES, _KEPT_BYTES = 2, 8
"""As `aggregation` promises: two bytes a parameter, and at most one update beyond."""
_UPLOADS_BYTES = 16 * 1024 * 1024
_CLEARS = 4_096


class Bounds:
    """Looks at whoever has just handled something."""

    def __init__(self) -> None:
        self._woken: dict[str, tuple[float, int]] = {}
        self._heard: dict[str, tuple[int, int, int]] = {}
        """Of each device: its life, and the run and the version of the announcement that it goes by."""

    def woken(self, name: str, now: float) -> None:
        """A party's deadline has come."""
        at, count = self._woken.get(name, (-1.0, 0))
        count = count + 1 if at == now else 1
        self._woken[name] = now, count
        if count > _SPINS:
            raise BrokenError("no-idle-wait", f"{name} is woken {count} times at one moment", name)

    def device(self, device: VirtualDevice) -> None:
        """A device's sizes, and its wait."""
        agent, name = device.agent, device.name
        desk = agent.desk
        if len(desk.outbox) > desk.limits.outbox_limit:
            raise BrokenError("memory", f"{name} keeps {len(desk.outbox)} updates", name)
        pending = sum([len(kept.pending) for kept in desk.ledger.state.runs.values()])
        if pending != len(desk.outbox):
            text = f"{name} has {len(desk.outbox)} updates to send, and {pending} on disk"
            raise BrokenError("device-memory", text, name)
        if desk.following is not None and len(desk.following.pull._asked) > PULL_WINDOW:
            raise BrokenError("memory", f"{name} asks for {len(desk.following.pull._asked)} chunks", name)
        if len(desk.ledger.state.runs) > 2 + desk.limits.outbox_limit:
            raise BrokenError("memory", f"{name} remembers {len(desk.ledger.state.runs)} runs", name)
        if len(device.disk.files) > 64:
            raise BrokenError("memory", f"{name} keeps {len(device.disk.files)} files", name)
        if desk.announcement is not None:
            run, version = int(desk.announcement.run[1:]), desk.announcement.manifest.version
            known = self._heard.get(name, (0, 0, 0))
            if (device.starts, run, version) < known:
                text = f"{name} goes back to version {version} of r{run}, and knew {known[2]} of r{known[1]}"
                raise BrokenError("forwards", text, name)
            self._heard[name] = device.starts, run, version
        now = device.now
        deadline = device.deadline
        if deadline is not None and deadline <= now:
            raise BrokenError("no-idle-wait", f"{name} wants to be woken at a moment that is over", name)
        if deadline is None and not agent.waiting(now=now):
            raise BrokenError("no-idle-wait", f"{name} waits, and cannot say what for", name)

    def coordinator(self, coordinator: VirtualCoordinator) -> None:
        """The coordinator's sizes, and its wait."""
        core = coordinator.core
        uploads = core._conversation._uploads
        if len(uploads._open) > MAX_OPEN or uploads.held_bytes > _UPLOADS_BYTES:
            raise BrokenError("memory", f"{len(uploads._open)} uploads are open", "coordinator")
        run = core.active
        if run is not None:
            self._run(run)
        if len(core._progress._clear_at) > _CLEARS:
            raise BrokenError("memory", "retained chunks are not cleared", "coordinator")
        deadline = coordinator.deadline
        if deadline is not None and deadline <= coordinator.told_at:
            raise BrokenError(
                "no-idle-wait", "the coordinator wants to be woken at a moment that is over", "coordinator"
            )
        if deadline is None and run is not None and not core.run_view(run.id, now=coordinator.now).waiting:
            raise BrokenError("no-idle-wait", f"{run.id} waits, and cannot say what for", "coordinator")

    @staticmethod
    def _run(run: Run) -> None:
        held = run.accumulator
        sparse = sum(indices.nbytes + values.nbytes for indices, values in held._sparse)
        if sparse > (_SPARSE_BYTES + _KEPT_BYTES) * run.schema.num_parameters:
            raise BrokenError("memory", f"the sum of {run.id} takes {sparse} bytes", "coordinator")
        for device, settled in run.settled.items():
            if len(settled._outcomes) > WINDOW:
                raise BrokenError(
                    "memory", f"{len(settled._outcomes)} outcomes are kept of {device}", "coordinator"
                )
        for device, unused in run._unused.items():
            if len(unused) > _LEASES_KEPT:
                raise BrokenError("memory", f"{len(unused)} leases are kept of {device}", "coordinator")
        if len(run.norms) > _NORMS_KEPT or len(run._rules) > _LEASES_KEPT:
            raise BrokenError("memory", f"{run.id} keeps too much of what was", "coordinator")
