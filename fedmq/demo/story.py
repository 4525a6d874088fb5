"""What has happened in a demo so far: what the view shows of it, and what the report needs of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedmq.demo.options import DemoOptions
from fedmq.demo.view import DeviceLine, Scene
from fedmq.report.figures import Report, float32_bytes

if TYPE_CHECKING:
    from fedmq_coordinator.core.views import DeviceView, FederationView, RunView

_NOT_FIGURES: Final = frozenset({"broker", "out", "keep"})
"""Options that say where, and not what; a broker's URL may hold a password."""


@dataclass
class Story:
    """What has happened so far, for the view and the report."""

    options: DemoOptions
    started_at: float
    """Seconds since the epoch: when the command began."""
    broker: str = ""
    doing: str = "starting"
    """What goes on before and after the run; nothing while it runs."""
    news: list[str] = field(default_factory=list)
    killed_at: dict[str, float] = field(default_factory=dict)
    federation: FederationView | None = None
    run: RunView | None = None

    def tell(self, doing: str) -> None:
        self.doing = doing

    @property
    def rounds(self) -> int:
        """How many the run has, `--set` included."""
        return self.options.num_rounds if self.run is None else self.run.settings.rounds

    def scene(self) -> Scene:
        """What the view shows now."""
        run, devices = self.run, tuple(self._lines())
        measured = () if run is None else run.evaluations or run.federated
        rounds = [version for version in measured if version.version > 0]
        return Scene(
            elapsed_s=time.time() - self.started_at,
            broker=self.broker,
            doing=self.doing,
            waiting="" if run is None else run.waiting,
            round=0 if run is None else run.version,
            rounds=self.rounds,
            accuracies=tuple(version.metrics.get("accuracy", 0.0) for version in rounds),
            losses=tuple(version.loss for version in rounds),
            devices=devices,
            bytes_up=sum(device.bytes_up for device in devices),
            bytes_down=sum(device.bytes_down for device in devices),
            bytes_float32=0 if run is None else float32_bytes(run.size, run.accepted),
            late=0 if run is None else run.late,
            rejected=0 if run is None else run.rejected,
            news=tuple(self.news),
        )

    def killed(self, device: DeviceView) -> None:
        """A device has just been made to vanish."""
        self.killed_at[device.device] = time.time()
        into = "between two tasks"
        if device.lease_age_s is not None:
            into = f"{device.lease_age_s:.2f} s into its task"
        number = 0 if self.run is None else self.run.round
        self.news.append(f"{device.device} was killed in round {number}, {into}")

    def ended(self, device: str, log: Path) -> None:
        """A device's agent has ended by itself; `log` holds what it said."""
        self.killed_at.setdefault(device, time.time())
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        words = lines[-1].removeprefix("fedmq: ") if lines else "it said nothing"
        self.news.append(f"{device} ended by itself: {words}")

    def added_to(self, report: Report, *, broker: str) -> Report:
        """The report with what only the demo knows: the faults, its options, the time until the first round."""
        options = self.options
        slow = set(options.slow_ids)
        killed = {device: at - report.began_at for device, at in self.killed_at.items()}
        devices = [
            device.model_copy(
                update={
                    "slow_s": options.straggler_delay_s if device.id in slow else 0.0,
                    "killed_s": killed.get(device.id),
                }
            )
            for device in report.devices
        ]
        first = report.rounds[0].end_s + report.began_at - self.started_at if report.rounds else None
        demo = {name: value for name, value in asdict(options).items() if name not in _NOT_FIGURES}
        return report.model_copy(
            update={
                "devices": devices,
                "time_to_first_round_s": first,
                "settings": {"demo": demo, **report.settings},
                "versions": {**report.versions, "broker": broker},
            }
        )

    def _lines(self) -> Iterator[DeviceLine]:
        if self.federation is None:
            return
        slow = set(self.options.slow_ids)
        known = {device.device: device for device in self.federation.devices}
        for name in self.options.device_ids:
            device = known.get(name)
            if device is None:
                yield DeviceLine(name, "starting")
                continue
            remark = f"{self.options.straggler_delay_s:g} s slower" if name in slow else ""
            yield DeviceLine(
                id=name,
                state="killed" if name in self.killed_at else device.state,
                updates=device.updates,
                num_examples=device.num_examples,
                bytes_up=device.sent_bytes,
                bytes_down=device.received_bytes,
                task_time_s=device.task_time_s,
                remark=device.problem or remark,
            )
