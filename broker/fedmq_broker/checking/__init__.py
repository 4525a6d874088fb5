"""What in a mosquitto.conf would lose messages, refuse chunks or let strangers in, and what the machine is short of.

    for finding in check(Path("/etc/mosquitto/mosquitto.conf"), devices=200, limits=plan(200, 300_000)):
        print(finding.line, finding.what, finding.mend)

- `options` knows every option of Mosquitto 2.0 and 2.1, `reading` reads a file as Mosquitto does.
- `losing`, `doors` and `wording` are the rules, each file a table at its end.
- `machine` compares the operating system's limits.
"""

from __future__ import annotations

from pathlib import Path

from fedmq_broker.checking import doors, losing, wording
from fedmq_broker.checking.finding import Context, Finding
from fedmq_broker.checking.machine import Machine, check_machine
from fedmq_broker.checking.options import NEWEST, Version
from fedmq_broker.checking.reading import read_file
from fedmq_broker.sizing import Limits

__all__ = ["Finding", "Machine", "check", "check_machine"]


def check(
    path: Path, *, devices: int, limits: Limits, version: Version = NEWEST, machine: Machine | None = None
) -> list[Finding]:
    """Read a configuration and all that it includes, and look at it with every rule.

    Args:
        path: the main file; what it names by relative paths is looked for beside it.
        devices: how many the broker is to serve.
        limits: what these need.
        version: the Mosquitto that will read the file.
        machine: where it will run; None leaves that out.

    Returns:
        What was found, errors first, then in the order of the file. A file that cannot be read is a finding too.
    """
    reading = read_file(path)
    context = Context(reading, devices, limits, version)
    rules = (
        wording.RULES
        if not list(reading.lines) and reading.complaints
        else (
            *losing.RULES,
            *doors.RULES,
            *wording.RULES,
        )
    )
    found = [finding for rule in rules for finding in rule(context)]
    if machine is not None:
        found += check_machine(machine, limits)
    order = {id(line): place for place, line in enumerate(reading.lines)}
    return sorted(
        found, key=lambda one: (one.severity, order.get(id(one.line), -1) if one.line else len(order))
    )
