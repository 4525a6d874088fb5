"""What `fedmq device flash` does for each kind of target, and what it tells."""

from __future__ import annotations

from fedmq.flashing.job import Job
from fedmq.flashing.onto_board import ssh
from fedmq.flashing.onto_card import card
from fedmq.flashing.to_file import bundle

__all__ = ["Job", "bundle", "card", "ssh"]
