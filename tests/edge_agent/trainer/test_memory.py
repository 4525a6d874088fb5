"""A large model costs its device one copy of it, and what a codec needs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import large_task
from fedmq_edge_agent.trainer.client import TrainerClient
from fedmq_protocol.messages import TrainSettings, UploadSettings
from tests.edge_agent.trainer.asking import PLAIN, WriteTask

PARAMETERS = 24_000_000
MODEL_BYTES = 4 * PARAMETERS


async def test_a_large_model_is_in_memory_once(
    write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what PyTorch takes; and a quarter of it more for its snapshot, the rest is for temporaries."""
    monkeypatch.setenv(large_task.VARIABLE, str(PARAMETERS))
    task, base = large_task.__file__, str(tmp_path / "base-0.bin")
    child = await TrainerClient.spawn(threads=1)
    try:
        await child.call("open", task=task, settings={}, role="coordinator")
        initial = (await child.call("init", seed=1, checkpoint=None))["file"]
        made = await child.call("snapshot", file=initial, codec="int8", out_file=base)
        await asyncio.to_thread(Path(initial).unlink)
    finally:
        await child.close()
    child = await TrainerClient.spawn(threads=1)
    try:
        await child.call("open", task=write_task(PLAIN), settings={}, role="device")
        without = (await child.call("usage"))["peak_bytes"]
        await child.call("open", task=task, settings={}, role="device")
        await child.call("load_snapshot", version=0, file=base, replica_hash=made["replica_hash"])
        residual = None
        for counter in (1, 2):
            trained = await child.call(
                "train",
                run_dir=str(tmp_path),
                run="r1",
                device="dev-1",
                counter=counter,
                lease=counter,
                base_version=0,
                seed=1,
                train=TrainSettings().model_dump(),
                upload=UploadSettings(codec="topk-log4", density=0.01, first_density=0.01).model_dump(),
                updates_done=counter - 1,
                residual_file=residual,
                evaluate=False,
            )
            residual = trained["residual_file"]
        update = trained["payload_file"]
        snapshot = str(tmp_path / "base-1.bin")
        await child.call(
            "apply_delta", version=1, file=update, rebase=True, replica_hash=None, snapshot_file=snapshot
        )
        restored = str(tmp_path / "restored.bin")
        await child.call("restore", payload_file=update, residual_file=residual, out_file=restored)
        peak = (await child.call("usage"))["peak_bytes"]
    finally:
        await child.close()
    assert peak - without < 1.5 * MODEL_BYTES + 32_000_000
