"""A nursery: children that train, and that all end when the nursery's parent does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fedmq_edge_agent.trainer.client import TrainerClient, nursery_command
from fedmq_edge_agent.trainer.errors import TrainerError
from tests.edge_agent.trainer.asking import WriteTask, task_text, train_arguments
from tests.edge_agent.trainer.test_client import SLOW, appears, opened_and_begun

PARENT = """
import subprocess, sys, time
from pathlib import Path
from fedmq_edge_agent.trainer.client import nursery_command
process = subprocess.Popen(nursery_command(Path(sys.argv[1])))
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
async def nursery(tmp_path: Path, plain_task: str) -> AsyncIterator[Path]:
    """A nursery that has the plain task loaded."""
    path = tmp_path / "nursery"
    process = await asyncio.create_subprocess_exec(*nursery_command(path, preload=plain_task))
    yield path
    process.terminate()
    assert await process.wait() == 0
    assert not path.exists()


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def ends(pid: int) -> None:
    async with asyncio.timeout(30):
        while await asyncio.to_thread(alive, pid):  # noqa: ASYNC110 - another process ends
            await asyncio.sleep(0.02)


async def test_children_train_side_by_side_as_a_spawned_one_does(
    nursery: Path, child: TrainerClient, plain_task: str, tmp_path: Path
) -> None:
    children = await asyncio.gather(*[TrainerClient.connect(nursery) for _ in range(3)])
    assert len({each.pid for each in children}) == 3
    digests = set()
    for index, each in enumerate([*children, child]):
        await opened_and_begun(each, plain_task, tmp_path)
        reply = await each.call("train", **train_arguments(tmp_path / str(index)))
        digests.add(reply["sha256"])
    assert len(digests) == 1
    for each in children:
        await each.close()
        assert each.pid is not None
        await ends(each.pid)


async def test_a_killed_child_is_told_and_the_nursery_makes_another(nursery: Path) -> None:
    first = await TrainerClient.connect(nursery)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await ends(first.pid)
    with pytest.raises(TrainerError, match="the trainer ended") as caught:
        await first.call("ping")
    assert caught.value.code == "trainer-died"
    await first.close()
    second = await TrainerClient.connect(nursery)
    await second.call("ping")
    await second.close()


async def test_a_timeout_kills_the_child_and_no_other(
    nursery: Path, write_task: WriteTask, tmp_path: Path
) -> None:
    busy, idle = await asyncio.gather(TrainerClient.connect(nursery), TrainerClient.connect(nursery))
    marker = tmp_path / "started"
    task = write_task(task_text(extra=SLOW, train="train"))
    await opened_and_begun(busy, task, tmp_path, started=str(marker))
    with pytest.raises(TrainerError, match="took longer"):
        await busy.call("train", **train_arguments(tmp_path), timeout_s=0.2)
    assert busy.pid is not None
    await ends(busy.pid)
    await idle.call("ping")
    await busy.close()
    await idle.close()


async def test_all_end_when_the_nurserys_parent_is_killed(write_task: WriteTask, tmp_path: Path) -> None:
    path = tmp_path / "nursery"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    nursery_pid = int(await parent.stdout.readline())
    busy, idle = await asyncio.gather(TrainerClient.connect(path), TrainerClient.connect(path))
    marker = tmp_path / "started"
    task = write_task(task_text(extra=SLOW, train="train"))
    await opened_and_begun(busy, task, tmp_path, started=str(marker))
    training = asyncio.create_task(busy.call("train", **train_arguments(tmp_path)))
    await appears(marker)
    assert busy.pid is not None
    assert idle.pid is not None
    assert all(map(alive, (nursery_pid, busy.pid, idle.pid)))
    parent.kill()
    await parent.wait()
    for pid in (nursery_pid, busy.pid, idle.pid):
        await ends(pid)
    with pytest.raises(TrainerError, match="ended during train"):
        await training
    await busy.close()
    await idle.close()


async def test_children_end_with_their_supervisor_in_the_middle_of_training(
    nursery: Path, write_task: WriteTask, tmp_path: Path
) -> None:
    busy = await TrainerClient.connect(nursery)
    marker = tmp_path / "started"
    task = write_task(task_text(extra=SLOW, train="train"))
    await opened_and_begun(busy, task, tmp_path, started=str(marker))
    training = asyncio.create_task(busy.call("train", **train_arguments(tmp_path)))
    await appears(marker)
    await busy.close()
    assert busy.pid is not None
    await ends(busy.pid)
    with pytest.raises(TrainerError, match="was closed"):
        await training


async def test_no_nursery_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="no nursery listens on") as caught:
        await TrainerClient.connect(tmp_path / "none", timeout_s=0.1)
    assert caught.value.code == "trainer-died"


def test_a_nursery_without_its_parent_leaves_at_once(tmp_path: Path) -> None:
    command = nursery_command(tmp_path / "n")
    command[command.index("--parent") + 1] = str(2**22 + 1)  # nobody's
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
