"""An agent in a process of its own, with a trainer that needs no PyTorch: SETTINGS.json [PAYLOAD_BYTES [WAIT_FOR]]."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from fedmq.logs import begin_logging
from fedmq_edge_agent import AgentSettings, run_agent
from fedmq_edge_agent.core import outbox
from fedmq_edge_agent.shell.notify import Notifier
from tests.edge_agent.shell.fake_child import UNHURRIED, FakeChild


async def main(settings: AgentSettings, payload_bytes: str = "2000", wait_for: str = "") -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def start_child() -> FakeChild:
        gate = Path(wait_for) if wait_for else None
        return FakeChild(payload_bytes=int(payload_bytes), wait_for=gate)

    begin_logging(verbose=True)
    outbox.RESEND = UNHURRIED
    await run_agent(settings, stop=stop, start_child=start_child, notifier=Notifier())


read = AgentSettings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
asyncio.run(main(read, *sys.argv[2:]))
