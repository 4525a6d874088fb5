"""What goes wrong while a device is flashed."""

from __future__ import annotations

from fedmq_protocol.errors import UsageError


class FlashError(UsageError):
    """The device cannot be flashed so; the text names the mend."""
