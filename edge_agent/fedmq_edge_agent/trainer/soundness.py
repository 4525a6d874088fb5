"""`python -m fedmq_edge_agent.trainer.soundness`: does PyTorch work here, does the task open, are there data?

One JSON object on a line of standard input says what to try:

    {"task": ..., "settings": {...}, "device": ..., "nice": 10}

Each step that is done is a JSON object on a line of standard output, so that a process that hangs or dies has said how
far it came:

    {"step": "torch", "version": "2.13.0", "took_s": 1.9}
    {"step": "task", "name": ..., "version": ..., "schema_hash": ..., "parameters": ..., "elements": ...}
    {"step": "data", "num_examples": 512, "num_test_examples": 128}
    {"step": "end", "peak_bytes": ..., "own_bytes": ...}

A step that fails has `error` in it, and is the last. Where memory is short the system ends this process first.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from fedmq_edge_agent.trainer.process import peak_bytes, stand_back

_SIZE = 64
_STDOUT, _STDERR = 1, 2


def main() -> int:
    """Take the steps; the exit code is 0 where all went well."""
    said = os.fdopen(os.dup(_STDOUT), "w", encoding="utf-8")
    os.dup2(_STDERR, _STDOUT)  # what a task prints must not mix with what is said here
    wanted = json.loads(sys.stdin.readline())
    stand_back(wanted["nice"])
    return 0 if _try_torch(said) and _try_task(said, wanted) else 1


def _say(said: TextIO, step: str, **found: Any) -> None:  # noqa: ANN401 - whatever JSON can say
    said.write(json.dumps({"step": step, **found}) + "\n")
    said.flush()


def _try_torch(said: TextIO) -> bool:
    """Import it, multiply matrices and go back through the product, where the results are known exactly."""
    begun = time.monotonic()
    try:
        import torch  # noqa: PLC0415 - it is what is tried

        rows = torch.arange(_SIZE, dtype=torch.float32)
        left = rows.reshape(-1, 1).repeat(1, _SIZE).requires_grad_()
        product = left @ torch.ones(_SIZE, _SIZE)
        product.sum().backward()
        right = torch.equal(product, (rows * _SIZE).reshape(-1, 1).repeat(1, _SIZE))
        right = right and left.grad is not None and torch.equal(left.grad, torch.full_like(left, _SIZE))
    except Exception as error:  # noqa: BLE001 - a broken PyTorch raises whatever it likes
        _say(said, "torch", error=f"{type(error).__name__}: {error}".partition("\n")[0][:300])
        return False
    took_s = round(time.monotonic() - begun, 3)
    if not right:
        _say(said, "torch", version=torch.__version__, error="it computes wrong results")
        return False
    _say(said, "torch", version=torch.__version__, took_s=took_s)
    return True


def _try_task(said: TextIO, wanted: dict[str, Any]) -> bool:
    # They import PyTorch themselves.
    from fedmq_edge_agent.trainer.blame import blaming  # noqa: PLC0415
    from fedmq_edge_agent.trainer.context import DeviceContext  # noqa: PLC0415
    from fedmq_edge_agent.trainer.dataset import examples  # noqa: PLC0415
    from fedmq_edge_agent.trainer.errors import TrainerError  # noqa: PLC0415
    from fedmq_edge_agent.trainer.loading import load_task  # noqa: PLC0415
    from fedmq_edge_agent.trainer.opened import load_device_data  # noqa: PLC0415
    from fedmq_edge_agent.trainer.tensors import schema_of  # noqa: PLC0415

    step = "task"
    try:
        task = load_task(wanted["task"])
        with blaming("task-error", "making the model"):
            schema = schema_of(task.model())
        _say(
            said,
            step,
            name=task.name,
            version=task.version,
            schema_hash=schema.hash,
            parameters=schema.num_parameters,
            elements=schema.size,
        )
        step = "data"
        train, test = load_device_data(task, DeviceContext.of(wanted["settings"], device=wanted["device"]))
        held_out = 0 if test is None else examples(test, "test data").count
        _say(
            said,
            step,
            num_examples=examples(train, "training data").count,
            num_test_examples=held_out,
        )
    except TrainerError as error:
        _say(said, step, error=error.detail, code=error.code)
        return False
    _say(said, "end", peak_bytes=peak_bytes(), own_bytes=_own_bytes())
    return True


def _own_bytes() -> int:
    """What this process has of memory that the system cannot take back; 0: it is not told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
