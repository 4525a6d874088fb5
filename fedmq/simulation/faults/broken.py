"""The word for what must never be seen."""

from __future__ import annotations

from fedmq_protocol.errors import FedmqError


class BrokenError(FedmqError):
    """An invariant does not hold.

    Args:
        invariant: its name; `docs/simulation.md` says what each demands.
        text: what was seen.
        concerned: the parties whose doings tell how it came about.
    """

    def __init__(self, invariant: str, text: str, *concerned: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant, self.text, self.concerned = invariant, text, concerned
