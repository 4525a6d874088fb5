"""A trainer child without PyTorch: it keeps the protocol, writes the files, and follows orders in a file."""

# ruff: noqa: ASYNC240 - a child may block: it stands for another process

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

from fedmq_edge_agent.core.backoff import Backoff
from fedmq_edge_agent.trainer.errors import TrainerError
from tests.edge_agent.scripted import TASK

_PIECE_BYTES = 1 << 16
UNHURRIED = Backoff(first_s=100.0, longest_s=100.0)
"""For `outbox.RESEND`: nothing is sent twice because a machine that does much else answers late."""


class FakeChild:
    """Answers like a trainer.

    Args:
        payload_bytes: size of its updates.
        wait_for: a training waits until this file is there.
    """

    def __init__(self, *, payload_bytes: int = 2_000, wait_for: Path | None = None) -> None:
        self.payload_bytes = payload_bytes
        self.wait_for = wait_for
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.version: int | None = None
        self.refuse: dict[str, TrainerError] = {}
        """By operation: refuse it once."""
        self.killed = asyncio.Event()

    async def call(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        if self.killed.is_set():
            raise TrainerError("trainer-died", "the trainer ended")
        self.calls.append((op, arguments))
        refusal = self.refuse.pop(op, None)
        if refusal is not None:
            raise refusal
        work = asyncio.ensure_future(getattr(self, f"_{op}")(**arguments))
        death = asyncio.ensure_future(self.killed.wait())
        await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if not work.done():
            work.cancel()
            raise TrainerError("trainer-died", f"the trainer ended during {op}")
        result: dict[str, Any] = work.result()
        return result

    @property
    def pid(self) -> int | None:
        return None

    def kill(self) -> None:
        self.killed.set()

    async def close(self) -> None:
        pass

    async def _open(self, **_: Any) -> dict[str, Any]:
        return {**TASK.model_dump(), "num_examples": 143, "codecs": ["topk-log4"], "num_test_examples": 0}

    async def _load_snapshot(self, *, version: int, file: str, replica_hash: bytes) -> dict[str, Any]:
        assert Path(file).is_file()
        self.version = version
        return {}

    async def _apply_delta(self, *, version: int, file: str, **_: Any) -> dict[str, Any]:
        assert Path(file).is_file()
        assert self.version == version - 1
        self.version = version
        return {}

    async def _train(
        self, *, run_dir: str, counter: int, base_version: int, lease: int, **_: Any
    ) -> dict[str, Any]:
        assert self.version == base_version
        while self.wait_for is not None and not self.wait_for.exists():  # noqa: ASYNC110 - orders come in a file
            await asyncio.sleep(0.01)
        digest = hashlib.sha256()
        with (Path(run_dir) / f"update-{counter}.bin").open("wb") as file:
            for start in range(0, self.payload_bytes, _PIECE_BYTES):  # its process' memory is looked at
                piece = os.urandom(
                    min(_PIECE_BYTES, self.payload_bytes - start)
                )  # another training, another update
                digest.update(piece)
                file.write(piece)
        (Path(run_dir) / f"residual-{counter}.bin").write_bytes(f"residual {lease}".encode())
        return {
            "payload_file": f"{run_dir}/update-{counter}.bin",
            "size": self.payload_bytes,
            "sha256": digest.digest(),
            "residual_file": f"{run_dir}/residual-{counter}.bin",
            "num_examples": 143,
            "train_s": 0.01,
            "metrics": {"train_loss": 0.5, "broken": float("nan")},
            "evaluation": {
                "version": base_version,
                "num_examples": 10,
                "loss": 0.4,
                "metrics": {"accuracy": 0.9},
            },
            "residual_dropped": 0.0,
            "warning": None,
        }

    async def _restore(self, *, out_file: str, **_: Any) -> dict[str, Any]:
        Path(out_file).write_bytes(b"restored")
        return {}
