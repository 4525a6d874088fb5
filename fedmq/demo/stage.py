"""The parts of a federation as processes on this machine: nursery, broker, coordinator, fleet.

PyTorch's import is the longest of all that has to happen before the first round, so the nursery, which imports it once
for all trainers, starts first, and everything else starts beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from fedmq.demo.child import command
from fedmq.demo.options import DemoOptions
from fedmq.demo.processes import Child, Processes
from fedmq_broker.runner import BrokerKind, RunningBroker, start_broker
from fedmq_edge_agent.trainer.client import nursery_command
from fedmq_protocol.errors import FedmqError

_LOOK_S: Final = 0.05
_API_WITHIN_S: Final = 60.0


@dataclass
class Stage:
    """What stands while a demo plays."""

    options: DemoOptions
    folder: Path
    federation: str
    tell: Callable[[str], None]
    """Takes what goes on now."""
    broker_name: str = ""
    broker_url: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    """Device -> the process id of its agent."""
    fleet_news: list[dict[str, Any]] = field(default_factory=list)
    """What the fleet has said since it was last looked at."""
    _processes: Processes = field(init=False)
    _broker: RunningBroker | None = None
    _fleet: Child | None = None
    _listener: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._processes = Processes(self.folder)

    @property
    def state_dir(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def nursery(self) -> Path:
        """The socket on which trainers are born."""
        return self.folder / "nursery"

    async def open(self) -> None:
        """Start everything; returns when the coordinator's API answers.

        Raises:
            FedmqError: a part did not start; one line that says why.
        """
        _, _, module, *arguments = nursery_command(self.nursery, preload=self.options.task_module)
        self._processes.start("nursery", command(module, *arguments))
        self.tell("starting the broker")
        await self._open_broker()
        self._write_settings()
        self.tell("starting the coordinator and the devices")
        coordinator = command("fedmq", "coordinator", "start", "--config", str(self.folder / "fed.toml"))
        self._processes.start("coordinator", coordinator)
        self._fleet = self._processes.start(
            "fleet", command("fedmq.demo.fleet", str(self.folder)), pipes=True
        )
        self._listener = asyncio.create_task(self._listen(self._fleet), name="fleet-listener")
        async with asyncio.timeout(_API_WITHIN_S):
            while not (self.state_dir / "api.json").exists():
                self.check()
                await asyncio.sleep(_LOOK_S)

    def check(self) -> None:
        """Look whether everything still stands.

        Raises:
            FedmqError: a part has ended by itself.
        """
        self._processes.check()
        if self._broker is not None and not self._broker.is_running:
            raise FedmqError(f"the broker has ended: {self._broker.log_tail()}")

    def kill_device(self, device: str) -> None:
        """End a device's agent as a power cut would."""
        assert self._fleet is not None
        assert self._fleet.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._fleet.process.stdin.write(json.dumps({"kill": device}).encode() + b"\n")
            self._fleet.process.stdin.flush()

    async def end_fleet(self) -> None:
        """End all devices; they take leave of the broker."""
        if self._fleet is not None:
            fleet, self._fleet = self._fleet, None
            await self._processes.end(fleet)

    async def close(self) -> None:
        """End everything that still stands, the broker last."""
        try:
            await self._processes.end_all()
        finally:
            if self._listener is not None:
                self._listener.cancel()
            if self._broker is not None:
                await asyncio.to_thread(self._broker.stop)

    async def _open_broker(self) -> None:
        outside = self.options.outside_broker
        if outside is not None:
            self.broker_url, self.broker_name = outside, "outside broker"
            return
        kind = cast("BrokerKind", self.options.broker or "auto")
        starting = asyncio.create_task(
            asyncio.to_thread(start_broker, kind, port=0, state_dir=self.folder / "broker")
        )
        try:
            self._broker = await asyncio.shield(starting)
        except asyncio.CancelledError:  # the thread goes on: what it starts is ours to stop
            with contextlib.suppress(FedmqError):
                self._broker = await starting
            raise
        self.broker_url, self.broker_name = self._broker.url, self._broker.description

    def _write_settings(self) -> None:
        coordinator = {
            "federation": {"name": self.federation},
            "broker": {"url": self.broker_url},
            "coordinator": {"state_dir": str(self.state_dir), "listen": "127.0.0.1:0"},
            "trainer": {"nursery": str(self.nursery)},
        }
        (self.folder / "fed.toml").write_text(_toml(coordinator), encoding="utf-8")
        slow = set(self.options.slow_ids)
        devices = [
            {
                "id": device,
                "federation": self.federation,
                "broker": self.broker_url,
                "state_dir": str(self.folder / "devices" / device),
                "task": self.options.task_module,
                "nursery": str(self.nursery),
                "slow_s": self.options.straggler_delay_s if device in slow else 0.0,
                "data": self.options.data_settings(number),
            }
            for number, device in enumerate(self.options.device_ids)
        ]
        (self.folder / "devices.json").write_text(json.dumps(devices), encoding="utf-8")

    async def _listen(self, fleet: Child) -> None:
        """Take in what the fleet's launcher says."""
        assert fleet.process.stdout is not None
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), fleet.process.stdout
        )
        try:
            async for line in _lines(reader):
                message = json.loads(line)
                if "started" in message:
                    self.pids = message["started"]
                else:
                    self.fleet_news.append(message)
        finally:
            transport.close()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while line := await reader.readline():
        yield line


def _toml(tables: dict[str, dict[str, str]]) -> str:
    """Tables of text; JSON's strings are TOML's basic strings."""
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"
