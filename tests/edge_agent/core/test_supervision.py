"""The trainer child's time limits."""

from __future__ import annotations

from fedmq_edge_agent.core.effects import ApplyDelta, LoadSnapshot, Request
from fedmq_edge_agent.core.events import TaskOpened
from fedmq_edge_agent.core.supervision import Supervision, TimeLimits
from fedmq_protocol.messages import BlobRef
from tests.edge_agent.scripted import TASK


def test_a_large_model_may_take_longer_at_rebases_too() -> None:
    trainer = Supervision(limits=TimeLimits(model_s=120), chance=lambda: 0.5)
    trainer.start(now=0)
    trainer.started(now=0)
    trainer.task_opened(TaskOpened(TASK, (), 1), now=0)
    large, small = (BlobRef(size=size, sha256=bytes(32)) for size in (100_000_000, 1_000))
    delta = ApplyDelta("r1", 1, "delta-1.bin", small, rebase=True, replica_hash=None)
    asked: list[tuple[Request, float]] = [
        (LoadSnapshot("r1", 0, "base-0.bin", large, None), 220),
        (delta, 220),
        (LoadSnapshot("r2", 0, "base-0.bin", small, None), 120.001),
        (delta, 120.001),
    ]
    for request, limit_s in asked:
        trainer.ask(request, now=1_000)
        assert trainer.deadline == 1_000 + limit_s
        trainer.answered(now=1_000)
