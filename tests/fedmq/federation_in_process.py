"""FedAvg in one process, without a broker: the trainer's own hosts, the protocol's own codecs, nothing between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmq_coordinator.core.settings import RunSettings
from fedmq_edge_agent.trainer.host import Host
from fedmq_protocol.codecs import CodecSpec
from fedmq_protocol.codecs.model import (
    apply_delta,
    decode_update,
    encode_delta,
    encode_snapshot,
    replica_sha256,
)
from fedmq_protocol.messages import UploadSettings
from fedmq_protocol.schema import TensorSchema

torch.set_num_threads(1)  # as in a nursery: threads that wait for each other are slow where other tests run


def ask(host: Host, op: str, **arguments: Any) -> dict[str, Any]:
    reply = host.handle({"id": 1, "op": op, **arguments})
    assert reply["ok"], reply
    return reply


def accuracies(
    task: str,
    devices: Sequence[dict[str, Any]],
    run: RunSettings,
    folder: Path,
    *,
    seed: int,
    central: dict[str, Any] | None = None,
) -> list[float]:
    """Central accuracy after each round, all devices taking part in all of them.

    Args:
        task: a file or a module.
        devices: each one's data settings.
        run: rounds, training and compression.
        folder: for the files of the devices.
        seed: of the first weights and the training.
        central: the coordinator's data settings.
    """
    coordinator = Host()
    opened = ask(coordinator, "open", task=task, settings=central or {}, role="coordinator")
    schema = TensorSchema.model_validate(opened["schema"])
    fleet = [Host() for _ in devices]
    for host, settings in zip(fleet, devices, strict=True):
        ask(host, "open", task=task, settings=settings, role="device")
    initial = Path(ask(coordinator, "init", seed=seed, checkpoint=None)["file"])
    weights = np.fromfile(initial, "<f4")
    initial.unlink()
    down, up = run.compression, run.compression
    snapshot, replica = encode_snapshot(weights, schema, down.snapshot)
    file = folder / "model"
    file.write_bytes(snapshot)
    for host in fleet:
        ask(host, "load_snapshot", version=0, file=str(file), replica_hash=replica_sha256(replica))
    upload = UploadSettings(codec=up.up, density=up.density, first_density=up.first_density or up.density)
    residuals: list[str | None] = [None] * len(fleet)
    measured = []
    for version in range(run.rounds):
        step, total = np.zeros(schema.size, np.float32), 0
        for number, host in enumerate(fleet):
            reply = ask(
                host,
                "train",
                run_dir=str(folder / f"device-{number}"),
                run="run",
                device=f"device-{number}",
                counter=version,
                lease=version,
                base_version=version,
                seed=seed,
                train=run.train.model_dump(),
                upload=upload.model_dump(),
                updates_done=version,
                residual_file=residuals[number],
                evaluate=False,
            )
            residuals[number] = reply["residual_file"]
            update = decode_update(Path(reply["payload_file"]).read_bytes(), schema)
            update.parameters.add_to(step[: schema.num_parameters], reply["num_examples"])
            total += reply["num_examples"]
        weights += step / np.float32(total)
        delta = encode_delta(weights, replica, schema, CodecSpec(down.down, down.down_density))
        apply_delta(replica, delta, schema)
        file.write_bytes(delta)
        advance = {"version": version + 1, "file": str(file), "rebase": False}
        for host in fleet:
            ask(host, "apply_delta", **advance, replica_hash=replica_sha256(replica))
        (folder / "vector").write_bytes(replica.tobytes())
        measured.append(ask(coordinator, "evaluate", file=str(folder / "vector"))["metrics"]["accuracy"])
    return measured
