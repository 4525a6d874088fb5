"""A large model and a large update on a real broker: nothing travels twice, and nothing is held in memory."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from pathlib import Path

from fedmq_broker.runner import RunningBroker
from fedmq_edge_agent import AgentSettings
from fedmq_edge_agent.core.download import WINDOW
from fedmq_protocol.chunks import Assembly
from fedmq_protocol.messages import Get, Offer, Update, UploadChunk
from tests.broker_fixtures import Connect
from tests.edge_agent.scripted import EVERYBODY
from tests.edge_agent.shell.conftest import StartProcess
from tests.edge_agent.shell.on_air import OnAir

CHUNK_BYTES = 120_000
CHUNKS = 50
PACKET_BYTES = CHUNK_BYTES + 1_000  # of a chunk, with its envelope
SLACK_BYTES = 30_000  # all else that a device hears in such a test, acknowledgements of an upload included


async def begin(
    on_air: OnAir, *, retained: int, chunks: int = CHUNKS, run: str = "r1"
) -> list[tuple[str, bytes]]:
    """A run whose snapshot has `chunks` chunks, of which the broker holds `retained`; the others."""
    script = on_air.script
    script.chunk_bytes = CHUNK_BYTES
    script.begin(run, snapshot_bytes=chunks * CHUNK_BYTES - 1_000)
    packets = [
        script.seal(script.topics.chunk(run, 0, "snapshot", chunk.index), chunk)
        for chunk in script.chunks("snapshot", 0)
    ]
    for topic, packet in packets[:retained]:
        await on_air.connection.publish(topic, packet, retain=True)
    await on_air.announce(chunks=False, lease=1, cohort=EVERYBODY)
    return packets[retained:]


async def ends(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    await asyncio.to_thread(process.wait)


async def all_retained_came(on_air: OnAir, retained: int) -> None:
    """Until the coordinator is asked for the last chunk that is asked for at once: so all before them are on disk."""
    await on_air.wait_for(Get, lambda get: get.index == retained + WINDOW - 1)


def received_bytes(update: Update) -> int:
    assert update.header.traffic is not None
    return update.header.traffic[1]


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


async def test_killed_in_mid_download_it_fetches_only_what_it_lacks(
    on_air: OnAir, settings: AgentSettings, start_process: StartProcess
) -> None:
    others = await begin(on_air, retained=30)
    process = start_process(settings)
    await all_retained_came(on_air, 30)
    await ends(process)
    for topic, packet in others:
        await on_air.connection.publish(topic, packet, retain=True)
    start_process(settings)
    update = await on_air.receive("dev-1")
    files = await asyncio.to_thread(
        lambda: {file.name for file in (settings.state_dir / "runs" / "r1").iterdir()}
    )
    assert files == {"model.idx", "base-0.bin", "update-1.bin", "residual-1.bin"}
    assert 20 * CHUNK_BYTES < received_bytes(update) + 1_000 < 20 * PACKET_BYTES + SLACK_BYTES


async def test_disconnected_in_mid_download_it_fetches_only_what_it_lacks(
    on_air: OnAir,
    settings: AgentSettings,
    start_process: StartProcess,
    mosquitto: RunningBroker,
    connect: Connect,
) -> None:
    others = await begin(on_air, retained=30)
    start_process(settings)
    await all_retained_came(on_air, 30)
    # The broker lets the earlier one of a name go; which comes back, once.
    never = {"reconnect_min_s": 3_600.0, "reconnect_max_s": 3_600.0}
    intruder = await connect(mosquitto.url, "fedmq-home-dev-1", **never)
    for topic, packet in others:
        await on_air.connection.publish(topic, packet, retain=True)
    await intruder.stop()
    update = await on_air.receive("dev-1")
    assert CHUNKS * CHUNK_BYTES < received_bytes(update) + 1_000 < (CHUNKS + 4) * PACKET_BYTES + SLACK_BYTES


async def test_killed_in_mid_upload_it_sends_only_what_the_coordinator_lacks(
    on_air: OnAir, settings: AgentSettings, start_process: StartProcess
) -> None:
    await begin(on_air, retained=2, chunks=2)
    process = start_process(settings, "5000000")
    offer = await on_air.wait_for(Offer)
    update = ("dev-1", "r1", offer.header.counter)
    assembly = on_air.script.uploads[update] = Assembly(offer.header.payload, offer.chunk_bytes)
    await on_air.say(on_air.script.credit(*update, window=15))
    for _ in range(15):
        chunk = await on_air.wait_for(UploadChunk)
        assembly.add(chunk.index, chunk.data)
    await ends(process)
    start_process(settings, "5000000")
    whole = await on_air.receive("dev-1")
    assert await on_air.accept("dev-1", whole)
    sent = Counter(chunk.index for chunk in on_air.all_of(UploadChunk))
    assert assembly.count == 39
    assert sent == Counter(range(39))


async def test_the_supervisor_holds_neither_model_nor_update_in_memory(
    on_air: OnAir, settings: AgentSettings, start_process: StartProcess
) -> None:
    await begin(on_air, retained=2, chunks=2)
    small = start_process(settings, "2000")
    await on_air.accept("dev-1", await on_air.receive("dev-1"))
    before = peak_bytes(small)
    await ends(small)
    chunks = 150  # 18 MB
    await begin(on_air, retained=chunks, chunks=chunks, run="r2")
    large = start_process(settings, "5000000")
    while (update := await on_air.receive("dev-1")).header.run != "r2":
        await on_air.accept("dev-1", update)  # the receipt may not have been written down
    assert len(update.data) == 5_000_000
    assert peak_bytes(large) < before + 4_000_000
