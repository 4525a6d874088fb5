"""Lending what takes longer to make than to use, such as zstd's contexts, and must not have two users at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """Makes a thing where none is idle, and keeps it for the next user; any thread may borrow.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._idle: list[T] = []

    @contextmanager
    def lend(self) -> Iterator[T]:
        """One for the time of a `with`; whatever it failed with, it is not lent again then."""
        try:
            thing = self._idle.pop()
        except IndexError:
            thing = self._make()
        yield thing
        self._idle.append(thing)
