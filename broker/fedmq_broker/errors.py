"""What goes wrong with a broker that we start ourselves."""

from __future__ import annotations

from fedmq_protocol.errors import FedmqError


class BrokerStartError(FedmqError):
    """A broker did not start, or ended by itself; the text holds the last lines of its log."""
