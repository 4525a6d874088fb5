"""How these tests ask a trainer: in this process, with the arguments of a run filled in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq_edge_agent.trainer.host import Host
from fedmq_protocol.messages import TrainSettings, UploadSettings
from fedmq_protocol.schema import TensorSchema

WriteTask = Callable[[str], str]

HEAD = """
import torch
from torch import nn
from fedmq import Task

def data(context, n=40):
    g = torch.Generator().manual_seed(context.partition_id)
    x = torch.randn(n, 6, generator=g)
    return x, (x[:, 0] > 0).long()
"""

MLP = "nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))"


def task_text(model: str = MLP, extra: str = "", **fields: str) -> str:
    """A task's file: 40 examples of 6 features in two classes a device, 50 held out."""
    given = {"name": "'t'", "model": "model", "load_data": "data", **fields}
    arguments = ", ".join(f"{name}={value}" for name, value in given.items())
    return f"{HEAD}\n{extra}\n\ndef model():\n    return {model}\n\ntask = Task({arguments})\n"


PLAIN = task_text(load_test_data="lambda context: data(context, 50)")


class Ask:
    """A host in this process."""

    def __init__(self) -> None:
        self.host = Host()

    def __call__(self, op: str, **arguments: Any) -> dict[str, Any]:
        reply = self.host.handle({"id": 7, "op": op, **arguments})
        assert reply.pop("id") == 7
        assert reply.pop("ok"), reply
        return reply

    def fails(self, op: str, **arguments: Any) -> tuple[str, str]:
        """The code and the one line of an error."""
        reply = self.host.handle({"id": 7, "op": op, **arguments})
        assert reply["ok"] is False, reply
        assert "\n" not in reply["detail"]
        return reply["code"], reply["detail"]


@dataclass(frozen=True)
class Begun:
    """A task that is open and holds its version 0."""

    opened: dict[str, Any]
    schema: TensorSchema
    vector: NDArray[np.float32]
    vector_file: Path
    snapshot_file: Path
    replica_hash: bytes


def begin(ask: Ask, task: str, folder: Path, *, codec: str = "int8", **settings: Any) -> Begun:
    """Open `task` as a device, and let it load a first version made from a seed."""
    opened = ask("open", task=task, settings=settings, role="device")
    vector_file = Path(ask("init", seed=11, checkpoint=None)["file"]).rename(folder / "initial.f32")
    snapshot_file = folder / "snapshot.bin"
    made = ask("snapshot", file=str(vector_file), codec=codec, out_file=str(snapshot_file))
    ask("load_snapshot", version=0, file=str(snapshot_file), replica_hash=made["replica_hash"])
    return Begun(
        opened=opened,
        schema=TensorSchema.model_validate(opened["schema"]),
        vector=np.fromfile(vector_file, "<f4"),
        vector_file=vector_file,
        snapshot_file=snapshot_file,
        replica_hash=made["replica_hash"],
    )


def train_arguments(run_dir: Path, counter: int = 0, **changed: Any) -> dict[str, Any]:
    """The arguments of `train`, any field of the settings among them."""
    train = {name: changed.pop(name) for name in list(changed) if name in TrainSettings.model_fields}
    upload = {name: changed.pop(name) for name in list(changed) if name in UploadSettings.model_fields}
    defaults = {"codec": "topk-log4", "density": 0.1, "first_density": 0.1}
    return {
        "run_dir": str(run_dir),
        "run": "r1",
        "device": "dev-1",
        "counter": counter,
        "lease": counter,
        "base_version": 0,
        "seed": 3,
        "train": TrainSettings(**train).model_dump(),
        "upload": UploadSettings(**{**defaults, **upload}).model_dump(),
        "updates_done": counter,
        "residual_file": None,
        "evaluate": False,
        **changed,
    }
