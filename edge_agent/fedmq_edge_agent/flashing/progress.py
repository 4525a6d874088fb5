"""How long work tells how far it is, without knowing who looks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of each step that takes long."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what` is done; the first call has `done` 0, the last `done` equal to `total`."""
        ...


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
