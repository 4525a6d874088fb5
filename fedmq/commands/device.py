"""`fedmq device`: what the operator does about devices. Its verbs are found in one table."""

from __future__ import annotations

from typing import Final

import click

from fedmq.verbs import Verbs

VERBS: Final[dict[str, tuple[str, str]]] = {
    "enroll": ("fedmq.commands.device_enroll:enroll", "Make identities: key, certificate, access, settings."),
    "flash": ("fedmq.commands.flash:flash", "Turn a board into a device: a bundle, over ssh, an SD card."),
    "ls": ("fedmq.commands.device_look:ls", "List the devices, and whose certificate expires."),
    "show": ("fedmq.commands.device_look:show", "Tell all that is known of one device."),
    "doctor": ("fedmq.commands.device_doctor:doctor", "Say what is wrong with a device, and how to mend it."),
    "renew": ("fedmq.commands.device_change:renew", "Issue a device a new certificate."),
    "rename": ("fedmq.commands.device_change:rename", "Give a device another name."),
    "release": ("fedmq.commands.guard:release", "Let a device in again that was cut off because it flooded."),
    "revoke": ("fedmq.commands.device_change:revoke", "Throw a device out, at once and for good."),
}
"""Each verb: where it is, and its line in `fedmq device --help`."""


@click.group(cls=Verbs, verbs=VERBS)
def device() -> None:
    """Let devices in, look after them, throw them out.

    These are for the operator, on the machine where the federation's authority is kept.
    """
