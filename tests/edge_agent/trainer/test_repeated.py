"""A training done twice, since the power was cut before its commit, gives the same update to the bit.

Whatever chance it uses comes from what is durable: the run's seed, the device, the lease and the version. So neither
what the child did before nor how often it was started shows.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmq_edge_agent.trainer.client import TrainerClient
from tests.edge_agent.trainer.asking import Ask, Begun, WriteTask, begin, task_text, train_arguments
from tests.edge_agent.trainer.test_client import appears

CHANCY = "nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))"
SHUFFLES = """
import os, random, numpy as np
def train(model, data, settings, context):
    x, y = data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        rows = random.sample(range(len(x)), 16)
        noise = torch.from_numpy(np.random.normal(size=(16, 6))).float()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows] + noise + torch.randn(16, 6)), y[rows]).backward()
        optimizer.step()
    if "started" in context.settings and not os.path.exists(context["started"]):
        open(context["started"], "w").close()
        import time
        time.sleep(600)
"""
CODECS: list[dict[str, Any]] = [
    {"codec": "topk-log4"},
    {"codec": "topk-sign"},
    {"codec": "topk-block4", "rounding": "stochastic"},
    {"codec": "topk-int8", "rounding": "stochastic", "per_tensor": True},
    {"codec": "randk-int8"},
    {"codec": "topk-log4", "update_bytes": 300},
]


def files(reply: dict[str, Any]) -> tuple[bytes, bytes]:
    """The update and the residual that it leaves."""
    return Path(reply["payload_file"]).read_bytes(), Path(reply["residual_file"]).read_bytes()


def rounds(
    ask: Ask, begun: Begun, folder: Path, leases: list[int], residual: str | None, upload: dict[str, Any]
) -> list[tuple[bytes, bytes]]:
    """Train for some leases, one after the other."""
    done = []
    for lease in leases:
        reply = ask("train", **train_arguments(folder, lease, residual_file=residual, **upload))
        residual = reply["residual_file"]
        done.append(files(reply))
    return done


@pytest.mark.parametrize("training", ["the usual one", "the task's own"])
@pytest.mark.parametrize("upload", CODECS, ids=lambda upload: "-".join(map(str, upload.values())))
def test_a_lease_that_is_trained_for_again_gives_the_same_update(
    write_task: WriteTask, tmp_path: Path, upload: dict[str, Any], training: str
) -> None:
    text = task_text(CHANCY, SHUFFLES, train="train") if training == "the task's own" else task_text(CHANCY)
    task = write_task(text)
    ask, first = Ask(), tmp_path / "first"
    first.mkdir()
    begun = begin(ask, task, first)
    done = rounds(ask, begun, first, [1, 2, 3], None, upload)
    # The power is cut before the third is committed: another process, with another past.
    torch.manual_seed(random.randrange(1 << 30))
    np.random.seed(None)  # noqa: NPY002
    random.seed()
    again, second = Ask(), tmp_path / "second"
    second.mkdir()
    begin(again, task, second)
    rounds(again, begun, second, [9], None, upload)  # for a lease of an update that had no receipt yet
    left = str(first / "residual-2.bin")
    assert rounds(again, begun, second, [3], left, upload) == done[2:]
    assert rounds(again, begun, second, [4], left, upload) != done[2:]


async def test_a_child_that_was_killed_in_the_middle_gives_the_same_update_when_it_is_asked_again(
    write_task: WriteTask, tmp_path: Path
) -> None:
    task, replies = write_task(task_text(CHANCY, SHUFFLES, train="train")), []
    started = tmp_path / "started"
    for attempt in ("whole", "killed", "again"):
        folder = tmp_path / attempt
        folder.mkdir()
        child = await TrainerClient.spawn(threads=1)
        try:
            settings = {} if attempt == "whole" else {"started": str(started)}
            await child.call("open", task=task, settings=settings, role="device")
            initial = (await child.call("init", seed=1, checkpoint=None))["file"]
            made = await child.call("snapshot", file=initial, codec="int8", out_file=str(folder / "s"))
            await asyncio.to_thread(Path(initial).unlink)
            await child.call(
                "load_snapshot", version=0, file=str(folder / "s"), replica_hash=made["replica_hash"]
            )
            training = asyncio.ensure_future(child.call("train", **train_arguments(folder, 5)))
            if attempt == "killed":
                await appears(started)
                training.cancel()
                child.kill()
                assert not list(folder.glob("update-*")), "nothing of it is on disk"
            else:
                replies.append(files(await training))
        finally:
            await child.close()
    assert replies[0] == replies[1]
