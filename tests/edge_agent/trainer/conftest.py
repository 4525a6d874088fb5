"""Tasks as users write them, in files, and hosts and children that run them."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from fedmq_edge_agent.trainer.client import TrainerClient
from tests.edge_agent.trainer.asking import PLAIN, Ask, WriteTask

torch.set_num_threads(1)  # as in a nursery: threads that wait for each other are slow where other tests run


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """Write a task's file, and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "mytask.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def plain_task(write_task: WriteTask) -> str:
    return write_task(PLAIN)


@pytest.fixture
def ask() -> Ask:
    return Ask()


@pytest.fixture
async def child() -> AsyncIterator[TrainerClient]:
    """A real trainer process."""
    client = await TrainerClient.spawn(threads=1)
    yield client
    await client.close()
