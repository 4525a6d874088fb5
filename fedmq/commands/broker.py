"""`fedmq broker`: the federation's own Mosquitto, or a broker for trying out. Its verbs are found in one table."""

from __future__ import annotations

from typing import Final

import click

from fedmq.verbs import Verbs

VERBS: Final[dict[str, tuple[str, str]]] = {
    "init": (
        "fedmq.commands.broker_site:init",
        "Set up the federation's own Mosquitto, or bring it up to date.",
    ),
    "start": (
        "fedmq.commands.broker_start:start",
        "Run the federation's own Mosquitto, or a broker for trying out.",
    ),
    "status": ("fedmq.commands.broker_site:status", "Say how it stands, and what wants looking after."),
    "reload": (
        "fedmq.commands.broker_site:reload",
        "Bring a running one what has changed; nobody is cut off.",
    ),
    "renew": ("fedmq.commands.broker_site:renew", "New certificates of the broker and of the roles."),
    "stop": ("fedmq.commands.broker_site:stop", "End it."),
    "check": ("fedmq.commands.broker_check:check", "Say what is wrong with a mosquitto.conf, line by line."),
    "monitor": ("fedmq.commands.monitor:monitor", "Broker and federation on one screen, live."),
    "firewall": ("fedmq.commands.guard:firewall", "Rules for the kernel: what one address may do."),
    "guard": ("fedmq.commands.guard:guard", "Cut off who floods, for a stated time."),
    "exporter": ("fedmq.commands.exporter:exporter", "Broker and federation as Prometheus metrics."),
}
"""Each verb: where it is, and its line in `fedmq broker --help`."""


@click.group(cls=Verbs, verbs=VERBS)
def broker() -> None:
    """Set up and run the federation's own Mosquitto, or start a broker for trying out."""
