"""Bulk that is written ahead of its fact has negative numbers. No table changed; an older fedmq would not find it."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Nothing of a journal of version 1 is different in version 2."""
