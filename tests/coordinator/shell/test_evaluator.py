"""Evaluations: one at a time, in order, each answered by one event, the oldest skipped where too many wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from fedmq_coordinator.core.effects import Evaluate
from fedmq_coordinator.core.events import EvaluationFailed, EvaluationFinished
from fedmq_coordinator.shell.evaluator import MAX_WAITING, Evaluator
from fedmq_protocol.errors import UsageError
from tests.coordinator.shell.doubles import SIZE, TARGET, FakeModelHost

Answer = EvaluationFinished | EvaluationFailed


@pytest.fixture
async def host() -> FakeModelHost:
    return FakeModelHost()


@pytest.fixture
async def answers() -> asyncio.Queue[Answer]:
    return asyncio.Queue()


@pytest.fixture
async def evaluator(host: FakeModelHost, answers: asyncio.Queue[Answer]) -> AsyncIterator[Evaluator]:
    made = Evaluator(host, {"r": "find.py"}, answers.put)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def wanted(version: int, run: str = "r") -> Evaluate:
    return Evaluate(run, version, np.full(SIZE, version, dtype=np.float32))


async def test_evaluates_what_it_is_given(evaluator: Evaluator, answers: asyncio.Queue[Answer]) -> None:
    evaluator.put(Evaluate("r", 3, TARGET))
    assert await answers.get() == EvaluationFinished("r", 3, 0.0, 100, {"accuracy": 1.0})


async def test_skips_the_oldest_and_answers_for_it_too(
    evaluator: Evaluator, host: FakeModelHost, answers: asyncio.Queue[Answer]
) -> None:
    host.may_evaluate.clear()
    evaluator.put(wanted(0))
    await asyncio.sleep(0)  # version 0 is under way
    for version in range(1, MAX_WAITING + 4):
        evaluator.put(wanted(version))
    host.may_evaluate.set()
    seen = [await answers.get() for _ in range(MAX_WAITING + 4)]
    assert [each.version for each in seen if isinstance(each, EvaluationFailed)] == [1, 2, 3]
    assert [each.version for each in seen if isinstance(each, EvaluationFinished)] == [
        0,
        *range(4, MAX_WAITING + 4),
    ]
    assert "skipped" in next(each.detail for each in seen if isinstance(each, EvaluationFailed))


@pytest.mark.parametrize(
    ("breaks", "detail"),
    [
        (UsageError("find.py:9: no data"), "find.py:9: no data"),
        (RuntimeError("out of memory"), "the model host broke: RuntimeError: out of memory"),
    ],
)
async def test_goes_on_after_a_failure(
    evaluator: Evaluator, host: FakeModelHost, answers: asyncio.Queue[Answer], breaks: Exception, detail: str
) -> None:
    host.breaks = breaks
    evaluator.put(wanted(1))
    assert await answers.get() == EvaluationFailed("r", 1, detail)
    host.breaks = None
    evaluator.put(wanted(2))
    assert isinstance(await answers.get(), EvaluationFinished)


async def test_says_when_the_task_of_a_run_is_not_known(
    evaluator: Evaluator, answers: asyncio.Queue[Answer]
) -> None:
    evaluator.put(wanted(1, run="forgotten"))
    assert await answers.get() == EvaluationFailed(
        "forgotten", 1, "it is not known where the run's task lies"
    )
