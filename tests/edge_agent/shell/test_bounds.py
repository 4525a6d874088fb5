"""What the trainer may take, kept by real processes: children that eat memory, compute without end, hang and crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from fedmq_edge_agent.shell import bounds
from fedmq_edge_agent.shell.bounds import BoundedTrainer, own_bytes
from fedmq_edge_agent.shell.settings import TrainerSettings
from fedmq_edge_agent.trainer.client import TrainerClient
from fedmq_edge_agent.trainer.errors import TrainerError

CHILD = """
import os, socket, sys, time
from fedmq_edge_agent.trainer import channel
from fedmq_edge_agent.trainer.process import settle, stand_back

peer = socket.socket(fileno=int(sys.argv[1]))
settle(peer)
stand_back(int(sys.argv[2]))
kept = []
while (request := channel.read(peer)) is not None:
    match request["op"]:
        case "eat":
            for _ in range(request["megabytes"]):
                kept.append(bytearray(os.urandom(1)) * 1_000_000)
                time.sleep(0.002)
            time.sleep(request.get("then_s", 0))
        case "breed":
            for _ in range(request["children"]):
                if os.fork() == 0:
                    kept.append(bytearray(b"x") * (1_000_000 * request["megabytes"]))
                    time.sleep(600)
            time.sleep(request["then_s"])
        case "map":
            import mmap
            with open(request["file"], "rb") as file:
                kept.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                sum(kept[-1][::4096])
        case "count":
            end, turns = time.monotonic() + request["seconds"], 0
            while time.monotonic() < end:
                turns += 1
    peer.sendall(channel.pack({"id": request["id"], "ok": True, "cpu_s": time.process_time()}))
"""
"""A child that keeps the trainer's channel and PyTorch out of it."""

Start = Callable[..., Awaitable[BoundedTrainer]]

CYCLES = 15
"""Of work and rest, until the time that they took is looked at."""


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start such a child within bounds."""
    running: list[BoundedTrainer] = []

    async def one(*, memory_limit: int | None = None, share: float = 1.0, nice: int = 0) -> BoundedTrainer:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CHILD, str(theirs.fileno()), str(nice)),
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        client = TrainerClient(reader, writer, process)
        running.append(BoundedTrainer(client, memory_limit=memory_limit, share=share))
        await running[-1].call("ready")
        return running[-1]

    yield one
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid or 0, signal.SIGKILL)
        await child.close()


def cpu_s(pid: int | None) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


# ------------------------------------------------------------------------------------------------ memory


async def test_what_takes_too_much_is_killed_and_says_how_much(start: Start) -> None:
    child = await start(memory_limit=120_000_000)
    with pytest.raises(TrainerError, match=r"took \d{3} MB, 120 MB are allowed \(memory_limit\)") as caught:
        await child.call("eat", megabytes=600, then_s=600)  # however late somebody looks
    assert caught.value.code == "trainer-died"
    assert "during eat" in caught.value.detail


async def test_what_stays_within_is_left_alone(start: Start) -> None:
    child = await start(memory_limit=200_000_000)
    await child.call("eat", megabytes=50)
    pid = child.pid
    assert pid is not None
    assert 50_000_000 < own_bytes(pid) < 100_000_000


async def test_what_its_children_take_counts_too(start: Start) -> None:
    child = await start(memory_limit=120_000_000)
    await child.call("breed", children=1, megabytes=60, then_s=0)
    with pytest.raises(TrainerError, match="120 MB are allowed"):
        await child.call("breed", children=1, megabytes=60, then_s=600)


async def test_pages_of_files_do_not_count(start: Start, tmp_path: Path) -> None:
    """A model that lies in a file may be larger than the limit: the kernel takes its pages back when it needs them."""
    file = tmp_path / "model"
    file.write_bytes(os.urandom(1_000_000) * 200)
    child = await start(memory_limit=100_000_000)
    await child.call("map", file=str(file))
    await child.call("count", seconds=0.5)
    assert child.pid is not None
    assert psutil.Process(child.pid).memory_info().rss > 200_000_000
    assert own_bytes(child.pid) < 50_000_000


# ------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize("share", [0.25, 0.6])
async def test_a_share_of_the_time_is_about_that(
    start: Start, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU time against the clock's: what the child may have is what lies between its signals.

    Both children compute all they can; a busy machine slows the two alike, and makes signals late, but not each one.
    """
    send, since, works, rests = bounds._signal, 0.0, list[float](), list[float]()
    took: list[float] = []

    def noted(pid: int, number: signal.Signals) -> None:
        nonlocal since
        stops = number == signal.SIGSTOP
        if len(works) == len(rests) + 1 == CYCLES and not stops:
            took.extend(cpu_s(each.pid) for each in (rationed, free))
        now = time.monotonic()
        send(pid, number)
        now = time.monotonic() if stops else now  # so that nothing is done outside of what is counted as work
        (works if stops else rests).append(now - since)
        since = now

    free, rationed = await start(), await start(share=share)
    before = cpu_s(rationed.pid), cpu_s(free.pid)
    monkeypatch.setattr(bounds, "_signal", noted)
    since = begun = time.monotonic()
    counting = [asyncio.create_task(each.call("count", seconds=600)) for each in (rationed, free)]
    async with asyncio.timeout(90):
        while not took:  # noqa: ASYNC110 - of the kernel's
            await asyncio.sleep(0.05)
    lasted = time.monotonic() - begun
    for each in (rationed, free):
        each.kill()
    await asyncio.gather(*counting, return_exceptions=True)
    could, usual = sum(works[:CYCLES]), CYCLES * statistics.median(works[:CYCLES])
    assert took[0] - before[0] < could + 0.1
    assert took[0] - before[0] > 0.4 * usual * (took[1] - before[1]) / lasted
    assert min(works) / (min(works) + min(rests[: CYCLES - 1])) == pytest.approx(share, rel=0.3)


def test_who_may_compute_for_a_part_of_the_time_has_longer_for_it() -> None:
    """Or a board that opens its task in three minutes would, at a quarter, be taken for hung each time."""
    whole, quarter = TrainerSettings().limits(), TrainerSettings(cpu_share=0.25).limits()
    assert (quarter.open_s, quarter.model_s, quarter.first_train_s) == (
        4 * whole.open_s,
        4 * whole.model_s,
        4 * whole.first_train_s,
    )
    assert quarter.start_s == whole.start_s  # nothing holds it back until it is asked for something


async def test_it_is_not_left_stopped_when_a_call_ends_or_is_given_up(start: Start) -> None:
    child = await start(share=0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await child.call("count", seconds=30)
        assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED


async def test_a_stopped_child_can_be_ended(start: Start) -> None:
    child = await start(share=0.05)
    asked = asyncio.create_task(child.call("count", seconds=600))
    async with asyncio.timeout(60):
        while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - the kernel's word
            await asyncio.sleep(0.005)
    child.kill()
    with pytest.raises(TrainerError, match="SIGKILL"):
        await asked


def until_stopped(process: psutil.Process, give_up: float) -> None:
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < give_up
        time.sleep(0.001)


SUPERVISOR = """
import asyncio, sys
from fedmq_edge_agent.shell.bounds import BoundedTrainer
from fedmq_edge_agent.trainer.client import TrainerClient

async def main():
    child = BoundedTrainer(await TrainerClient.spawn(threads=1), memory_limit=None, share=0.05)
    print(child.pid, flush=True)
    await child.call("ping")
    while True:
        await child.call("open", task=sys.argv[1], settings={}, role="device")

asyncio.run(main())
"""


def test_a_child_that_is_stopped_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    """The kernel continues it then, since its process group has nobody left in the session to do so, and hangs up."""
    task = tmp_path / "never.py"
    task.write_text("import time\nwhile True: time.sleep(0.01)\n", encoding="utf-8")
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(task)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    child, give_up = psutil.Process(pid), time.monotonic() + 90
    while True:  # stop the supervisor at a moment at which it has stopped the child
        supervisor.send_signal(signal.SIGSTOP)
        until_stopped(psutil.Process(supervisor.pid), give_up)
        if child.status() == psutil.STATUS_STOPPED:
            break
        supervisor.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:  # nobody may have looked after it
            assert time.monotonic() < give_up, child.status()
            time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ manners


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_it_is_nice_in_the_background_and_the_first_to_go(start: Start) -> None:
    child = await start(nice=10)
    process = psutil.Process(child.pid)
    own = psutil.Process()
    assert process.nice() == min(own.nice() + 10, 19)
    assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH
    assert oom_score_adj(process.pid) == 800


async def test_beside_a_busy_process_on_its_core_it_gets_what_its_niceness_says(start: Start) -> None:
    """Linux weighs nice 0 with 1024 and nice 10 with 110 (sched(7)): a tenth; there is room for what else runs here."""
    core = min(os.sched_getaffinity(0))
    hog, child = await start(), await start(nice=10)
    for each in (hog, child):
        assert each.pid is not None
        os.sched_setaffinity(each.pid, {core})
    idle_s = cpu_s(child.pid)
    counting = [asyncio.create_task(each.call("count", seconds=600)) for each in (hog, child)]
    async with asyncio.timeout(90):
        while cpu_s(child.pid) < idle_s + 0.02:  # noqa: ASYNC110 - until both are at it
            await asyncio.sleep(0.05)
        # Should this process be held up between two looks, then to the hog's advantage.
        hog_before, child_before = cpu_s(hog.pid), cpu_s(child.pid)
        while cpu_s(hog.pid) - hog_before < 2.0:  # noqa: ASYNC110 - of the kernel's
            await asyncio.sleep(0.05)
        child_took = cpu_s(child.pid) - child_before
        hog_took = cpu_s(hog.pid) - hog_before
    for each in (hog, child):
        each.kill()
    await asyncio.gather(*counting, return_exceptions=True)
    assert child_took < 0.3 * hog_took


async def test_the_trainer_itself_stands_back(tmp_path: Path) -> None:
    client = await TrainerClient.spawn(threads=1, nice=7)
    try:
        pid = (await client.call("ping", timeout_s=500))["pid"]
        assert psutil.Process(pid).nice() == min(psutil.Process().nice() + 7, 19)
        assert oom_score_adj(pid) == 800
    finally:
        await client.close()
