"""One round of a task on this machine, without a broker: does it work, and what does it cost?

Stands behind `fedmq agent try`. The work is done in a trainer child, as on a device, so what is measured is what a
device will need. Imports neither PyTorch nor NumPy.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedmq_edge_agent.trainer.client import TrainerClient
from fedmq_protocol.messages import TrainSettings, UploadSettings
from fedmq_protocol.schema import Role, TensorSchema

_FLOAT32_BYTES: Final = 4
_RUN: Final = "trial"


@dataclass(frozen=True)
class Group:
    """The tensors of one role: how many, and how many elements they have together."""

    tensors: int
    elements: int


@dataclass(frozen=True)
class Measured:
    """An evaluation."""

    loss: float
    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Trial:
    """What one round of a task took.

    Attributes:
        name, version, schema_hash: of the task, as a run pins them.
        num_parameters: elements that are trained and federated.
        groups: the tensors, by role.
        num_examples: in this device's training data.
        num_test_examples: in its own test data.
        trained_on: examples that training says it used.
        snapshot_bytes: the whole model, as a device first downloads it.
        update_bytes: what a device sends after training.
        float32_bytes: the federated vector as plain float32: what a round would take each way without compression.
        open_s: seconds to import PyTorch and the task, make the model and load the data.
        train_s, encode_s: seconds to train, and to encode the update.
        peak_bytes: most memory that the trainer had resident.
        metrics: what training returned.
        evaluated_on: `test` (the device's own), `central` (held out, of the task) or `train` (there is nothing else).
        before, after: the evaluation on those, before and after the training.
    """

    name: str
    version: str
    schema_hash: str
    num_parameters: int
    groups: Mapping[Role, Group]
    num_examples: int
    num_test_examples: int
    trained_on: int
    snapshot_bytes: int
    update_bytes: int
    float32_bytes: int
    open_s: float
    train_s: float
    encode_s: float
    peak_bytes: int
    metrics: Mapping[str, float]
    evaluated_on: str
    before: Measured
    after: Measured


def try_task(
    task: str, settings: Mapping[str, Any], train: TrainSettings, upload: UploadSettings, *, seed: int = 0
) -> Trial:
    """Train a task for one round in a child process.

    Args:
        task: a .py file or `package.module`.
        settings: this device's data settings.
        train: the run's.
        upload: how to encode the update.
        seed: of the first weights and the training.

    Raises:
        TrainerError: what is wrong with the task, in one line.
    """
    return asyncio.run(_try(task, settings, train, upload, seed))


async def _try(
    task: str, settings: Mapping[str, Any], train: TrainSettings, upload: UploadSettings, seed: int
) -> Trial:
    client = await TrainerClient.spawn()
    try:
        with tempfile.TemporaryDirectory(prefix="fedmq-trial-") as folder:
            return await _measure(client, Path(folder), task, settings, train, upload, seed)
    finally:
        await client.close()


async def _measure(
    client: TrainerClient,
    folder: Path,
    task: str,
    settings: Mapping[str, Any],
    train: TrainSettings,
    upload: UploadSettings,
    seed: int,
) -> Trial:
    clock = asyncio.get_running_loop().time
    started = clock()
    opened = await client.call("open", task=task, settings=dict(settings), role="device")
    open_s = clock() - started
    schema = TensorSchema.model_validate(opened["schema"])
    initial = (await client.call("init", seed=seed, checkpoint=None))["file"]
    try:
        snapshot_file = str(folder / "snapshot.bin")
        snapshot = await client.call("snapshot", file=initial, codec="int8", out_file=snapshot_file)
        on = "test" if opened["num_test_examples"] else "central" if opened["has_central_data"] else "train"
        before = await client.call("evaluate", file=initial, on=on)
    finally:
        await asyncio.to_thread(Path(initial).unlink, missing_ok=True)
    await client.call("load_snapshot", version=0, file=snapshot_file, replica_hash=snapshot["replica_hash"])
    trained = await client.call(
        "train",
        run_dir=str(folder),
        run=_RUN,
        device=_RUN,
        counter=0,
        lease=0,
        base_version=0,
        seed=seed,
        train=train.model_dump(),
        upload=upload.model_dump(),
        updates_done=0,
        residual_file=None,
        evaluate=False,
        measure=on,
    )
    usage = await client.call("usage")
    return Trial(
        name=opened["name"],
        version=opened["version"],
        schema_hash=opened["schema_hash"],
        num_parameters=schema.num_parameters,
        groups=_groups(schema),
        num_examples=opened["num_examples"],
        num_test_examples=opened["num_test_examples"],
        trained_on=trained["num_examples"],
        snapshot_bytes=snapshot["size"],
        update_bytes=trained["size"],
        float32_bytes=_FLOAT32_BYTES * schema.size,
        open_s=open_s,
        train_s=trained["train_s"],
        encode_s=trained["encode_s"],
        peak_bytes=usage["peak_bytes"],
        metrics=trained["metrics"],
        evaluated_on=on,
        before=Measured(**before),
        after=Measured(**trained["after"]),
    )


def _groups(schema: TensorSchema) -> dict[Role, Group]:
    tensors, elements = Counter[Role](), Counter[Role]()
    for entry in schema.entries:
        tensors[entry.role] += 1
        elements[entry.role] += entry.size
    return {role: Group(tensors[role], elements[role]) for role in tensors}
