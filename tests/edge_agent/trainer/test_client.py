"""A real child process: asked, killed, timed out, fed with garbage."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.client import TrainerClient
from fedmq_edge_agent.trainer.errors import TrainerError
from fedmq_edge_agent.trainer.residual import Owner, StoredResidual
from fedmq_protocol.codecs.model import decode_update
from fedmq_protocol.schema import TensorSchema
from tests.edge_agent.trainer.asking import WriteTask, task_text, train_arguments

SLOW = """
import os, time
def train(model, data, settings, context):
    open(context["started"], "w").close()
    while True:
        time.sleep(0.05)
"""


async def opened_and_begun(child: TrainerClient, task: str, folder: Path, **settings: object) -> TensorSchema:
    opened = await child.call("open", task=task, settings=settings, role="device")
    initial = (await child.call("init", seed=1, checkpoint=None))["file"]
    made = await child.call("snapshot", file=initial, codec="int8", out_file=str(folder / "s"))
    os.unlink(initial)  # noqa: PTH108 - one quick call
    await child.call("load_snapshot", version=0, file=str(folder / "s"), replica_hash=made["replica_hash"])
    return TensorSchema.model_validate(opened["schema"])


async def appears(path: Path) -> None:
    """Wait for a file that a trainer makes when it is where we want it."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)


def sent(reply: dict[str, Any], schema: TensorSchema) -> NDArray[np.float32]:
    """What an update carries for the parameters, dense."""
    return decode_update(Path(reply["payload_file"]).read_bytes(), schema).parameters.to_dense()


def residual(reply: dict[str, Any], schema: TensorSchema) -> NDArray[np.float32]:
    return StoredResidual(Path(reply["residual_file"]), schema.num_parameters, Owner(schema.hash)).read()


async def test_many_rounds_lose_nothing(child: TrainerClient, plain_task: str, tmp_path: Path) -> None:
    schema = await opened_and_begun(child, plain_task, tmp_path)
    rounds = 20
    file = None
    sum_sent = np.zeros(schema.num_parameters)
    sum_delta = np.zeros(schema.num_parameters)
    old = np.zeros(schema.num_parameters, np.float32)
    for counter in range(rounds):
        plain = await child.call("train", **train_arguments(tmp_path / "plain", counter, codec="float32"))
        delta = sent(plain, schema)
        sparse = train_arguments(
            tmp_path / "run", counter, residual_file=file, residual_cap=1e6, density=0.05
        )
        reply = await child.call("train", **sparse)
        left = residual(reply, schema)
        np.testing.assert_array_equal(sent(reply, schema) + left, delta + old)  # to the bit, at every step
        sum_sent += sent(reply, schema)
        sum_delta += delta
        old, file = left, reply["residual_file"]
    # over all rounds the float32 additions delta + old round, one unit in the last place a round
    np.testing.assert_allclose(sum_sent + old, sum_delta, rtol=1e-5, atol=1e-5)


async def test_errors_come_with_their_code(child: TrainerClient, write_task: WriteTask) -> None:
    broken = write_task("def broken(:\n")
    with pytest.raises(TrainerError, match="SyntaxError") as caught:
        await child.call("open", task=broken, settings={}, role="device")
    assert caught.value.code == "task-error"
    assert (await child.call("ping"))["pid"] == child.pid
    assert (await child.call("usage"))["peak_bytes"] > 20e6


async def test_a_child_killed_while_it_trains_is_told_as_such(
    child: TrainerClient, write_task: WriteTask, tmp_path: Path
) -> None:
    marker = tmp_path / "started"
    await opened_and_begun(
        child, write_task(task_text(extra=SLOW, train="train")), tmp_path, started=str(marker)
    )
    training = asyncio.create_task(child.call("train", **train_arguments(tmp_path)))
    await appears(marker)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(TrainerError, match=r"killed by SIGKILL during train; .*out of memory") as caught:
        await training
    assert caught.value.code == "trainer-died"
    with pytest.raises(TrainerError, match="killed by SIGKILL"):
        await child.call("ping")


async def test_a_task_that_leaves_the_process_is_told(
    child: TrainerClient, write_task: WriteTask, tmp_path: Path
) -> None:
    extra = "import os\ndef train(model, data, settings, context):\n    os._exit(4)"
    await opened_and_begun(child, write_task(task_text(extra=extra, train="train")), tmp_path)
    with pytest.raises(TrainerError, match="ended during train with exit status 4"):
        await child.call("train", **train_arguments(tmp_path))


async def test_a_timeout_ends_the_child(child: TrainerClient, write_task: WriteTask, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    await opened_and_begun(
        child, write_task(task_text(extra=SLOW, train="train")), tmp_path, started=str(marker)
    )
    with pytest.raises(TrainerError, match=r"train took longer than 0\.2 s") as caught:
        await child.call("train", **train_arguments(tmp_path), timeout_s=0.2)
    assert caught.value.code == "trainer-timeout"
    assert child.ended is not None
    await child.close()
    assert child.pid is not None
    assert not Path(f"/proc/{child.pid}").exists()  # noqa: ASYNC240 - one quick call


async def test_a_cancelled_call_does_not_disturb_the_next(child: TrainerClient, plain_task: str) -> None:
    opening = asyncio.create_task(child.call("open", task=plain_task, settings={}, role="device"))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert (await child.call("ping"))["pid"] == child.pid
    answers = await asyncio.gather(child.call("ping"), child.call("usage"), child.call("ping"))
    assert ["pid" in answer for answer in answers] == [True, False, True]


async def test_a_tasks_prints_do_not_reach_standard_output(
    write_task: WriteTask, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # nor are they lost with the child
    child = await TrainerClient.spawn(threads=1)
    await child.call("open", task=write_task(task_text(extra="print('hello')")), settings={}, role="device")
    await child.close()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == "hello\n"


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\1\x01", b"GET / HTTP/1.1\r\n"]
)
def test_garbage_ends_the_child_with_one_line(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        descriptor = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "fedmq_edge_agent.trainer", "--fd", str(descriptor), "--threads", "1"],
            pass_fds=[descriptor],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        ours.sendall(garbage)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed.startswith("trainer: ")
    assert printed.count("\n") == 1


def test_the_parents_side_stays_light() -> None:
    code = (
        "import sys, fedmq_edge_agent.trainer.client, fedmq_edge_agent.trainer.trial\n"
        "print({name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy')})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
