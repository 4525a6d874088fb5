"""Which coordinator may write: the one that began the newest epoch in this store, wherever the others run.

The table `fence` has one row, with the newest epoch. Every transaction that writes takes hold of the row first, and
looks whether the epoch is still the one that it knows. So a coordinator that was stopped, swapped out or cut off, and
comes back after another one has begun, writes nothing more; and none begins while another's transaction is under way.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, inspect, select, update

from fedmq_coordinator.shell.store_database import Database
from fedmq_coordinator.shell.store_schema import FENCE
from fedmq_protocol.errors import StoreError

_LOCK: Final = select(FENCE).with_for_update()


class FencedError(StoreError):
    """Another coordinator has begun on this store: this one must end, and say nothing more."""


class Fence:
    """This process's knowledge of the fence of one store.

    Attributes:
        epoch: the one that this process began.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.epoch = 0

    @staticmethod
    def make(connection: Connection) -> None:
        """Fill the table of a new journal."""
        connection.execute(insert(FENCE).values(epoch=0, host="", pid=0, since=0.0))

    def begin(self, connection: Connection) -> None:
        """Begin a new epoch: once this transaction is done, whoever began an earlier one writes nothing more."""
        self.epoch = self.lock(connection).epoch + 1
        mine = {"epoch": self.epoch, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        connection.execute(update(FENCE).values(**mine))

    def overtake(self, connection: Connection) -> None:
        """Fence out whoever holds a journal that is there, before anything else is known of it."""
        if inspect(connection).has_table(FENCE.name):
            self.begin(connection)

    def check(self, connection: Connection) -> None:
        """Let a transaction write only if no newer epoch has begun, and none begin before it has ended.

        Raises:
            FencedError: a newer one has begun.
        """
        row = self.lock(connection)
        if row.epoch != self.epoch:
            who = f" (pid {row.pid} on {row.host})" if row.host else ""
            raise FencedError(
                f"another coordinator{who} has begun epoch {row.epoch} on {self._database.name}, after this one's "
                f"{self.epoch}: it goes on, this one ends"
            )

    def lock(self, connection: Connection) -> Row[Any]:
        """The fence's row, held by this transaction until it ends; waits for whoever holds it."""
        rows = connection.execute(_LOCK).all()
        if len(rows) != 1:
            raise self._database.damaged(f"its table fence has {len(rows)} rows instead of one")
        if not isinstance(rows[0].epoch, int):
            raise self._database.damaged(f"the epoch in its table fence is {rows[0].epoch!r}")
        return rows[0]

    def reach(self, connection: Connection, epoch: int) -> None:
        """Facts that begin `epoch` are being written."""
        connection.execute(update(FENCE).where(FENCE.c.epoch < epoch).values(epoch=epoch))
