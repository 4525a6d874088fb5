"""Evaluations of published versions: one at a time, in the background, the oldest skipped when too many wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fedmq_coordinator.core.effects import Evaluate
from fedmq_coordinator.core.events import EvaluationFailed, EvaluationFinished
from fedmq_coordinator.shell.model_host import ModelHost
from fedmq_protocol.errors import FedmqError

_log = logging.getLogger(__name__)

MAX_WAITING: Final = 8
"""Each that waits holds a model's vector."""


class Evaluator:
    """Has the model host evaluate what the core asks for; every `Evaluate` is answered by one event.

    Args:
        host: who does it.
        sources: run -> where its task lies; may grow later.
        report: takes the events; may wait.
    """

    def __init__(
        self,
        host: ModelHost,
        sources: Mapping[str, str],
        report: Callable[[EvaluationFinished | EvaluationFailed], Awaitable[None]],
    ) -> None:
        self._host = host
        self._sources = sources
        self._report = report
        self._waiting: deque[Evaluate] = deque()
        self._skipped: deque[Evaluate] = deque()
        self._filled = asyncio.Event()

    def put(self, wanted: Evaluate) -> None:
        """Queue an evaluation; the oldest one that waits makes room when there are too many."""
        if len(self._waiting) >= MAX_WAITING:
            self._skipped.append(self._waiting.popleft())
        self._waiting.append(wanted)
        self._filled.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            while self._skipped:
                skipped = self._skipped.popleft()
                text = f"skipped: {MAX_WAITING} newer versions wait for their evaluation"
                await self._report(EvaluationFailed(skipped.run, skipped.version, text))
            if self._waiting:
                await self._report(await self._evaluate(self._waiting.popleft()))
                continue
            self._filled.clear()
            await self._filled.wait()

    async def _evaluate(self, wanted: Evaluate) -> EvaluationFinished | EvaluationFailed:
        task = self._sources.get(wanted.run)
        if task is None:
            return EvaluationFailed(wanted.run, wanted.version, "it is not known where the run's task lies")
        try:
            loss, num_examples, metrics = await self._host.evaluate(task, wanted.vector)
        except FedmqError as error:
            return EvaluationFailed(wanted.run, wanted.version, str(error))
        except Exception as error:  # noqa: BLE001
            # Somebody else's code: whatever it does, the run goes on without this evaluation.
            _log.exception("the model host broke on version %d", wanted.version, extra={"run": wanted.run})
            what = f"the model host broke: {type(error).__name__}: {error}"
            return EvaluationFailed(wanted.run, wanted.version, what)
        return EvaluationFinished(wanted.run, wanted.version, loss, num_examples, metrics)
