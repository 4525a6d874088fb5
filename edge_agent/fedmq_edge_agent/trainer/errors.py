"""What can go wrong in a trainer, with a stable code that travels over the channel."""

from __future__ import annotations

from fedmq_protocol.errors import FedmqError
from fedmq_protocol.limits import MAX_TEXT_CHARS


class TrainerError(FedmqError):
    """An operation failed.

    Attributes:
        code: from the child: `task-error`, `no-data`, `train-failed`, `bad-model`, `bad-residual`, `bad-file`,
            `bad-checkpoint`, `bad-request`, and those of `disk_faults`; from the client: `trainer-died`,
            `trainer-timeout`.
        detail: one line that names the mend where there is one.
        room_bytes: where the disk is the reason, about how much has to fit on it.
    """

    def __init__(self, code: str, detail: str, room_bytes: int = 0) -> None:
        line = " ".join(detail.split())
        if len(line) > MAX_TEXT_CHARS:
            line = line[: MAX_TEXT_CHARS - 1] + "…"
        super().__init__(line)
        self.code = code
        self.detail = line
        self.room_bytes = room_bytes
