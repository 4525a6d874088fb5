"""What it takes to let one more device in while the broker runs, by how many there are; and what the others notice.

A Mosquitto as `fedmq broker init` sets it up, over mutual TLS, on loopback. A bystander sends itself a small message
over and over; the longest that one is under way while a device is enrolled says for how long nobody was served: the
security plugin writes its whole file after each command, and the broker does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fedmq_broker import membership
from fedmq_broker.preparing import Plan, prepare
from fedmq_broker.probe import find_free_port
from fedmq_broker.service import start_site
from fedmq_broker.site import Site
from fedmq_broker.sizing import plan
from fedmq_protocol.access import MONITOR, OPERATOR
from fedmq_protocol.aio import BrokerSettings, Connection, Message
from fedmq_protocol.topics import Topics

HOST = "localhost"
TOPICS = Topics("bench")


class Bystander:
    """Sends itself a message at a time, and remembers the slowest."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slowest_s = 0.0

    async def run(self) -> None:
        await self._connection.subscribe([TOPICS.monitor_probe])
        events = self._connection.events()
        while True:
            sent = time.perf_counter()
            await self._connection.publish(TOPICS.monitor_probe, b"?")
            async for event in events:
                if isinstance(event, Message):
                    break
            self._slowest_s = max(self._slowest_s, time.perf_counter() - sent)

    def slowest_s(self) -> float:
        """Since it was asked last."""
        slowest, self._slowest_s = self._slowest_s, 0.0
        return slowest


def settings(site: Site, member: str, port: int) -> BrokerSettings:
    """How a role comes in."""
    files = site.member(member)
    return BrokerSettings(
        url=f"mqtts://{HOST}:{port}",
        ca_file=site.authority.ca,
        cert_file=files.certificate,
        key_file=files.key,
    )


@contextlib.contextmanager
def site_of(members: int) -> Iterator[tuple[Site, int]]:
    """A site with so many devices, whose broker runs."""
    with tempfile.TemporaryDirectory(prefix="fedmq-enrolling-") as folder:
        site, port = Site(Path(folder)), find_free_port("127.0.0.1")
        wanted = Plan(
            TOPICS.federation,
            [HOST],
            plan(max(members, 1), 300_000),
            port=port,
            websockets_port=0,
            password_port=0,
            listen="127.0.0.1",
        )
        prepare(site, wanted, running=False)
        asyncio.run(membership.enrol(site, [f"dev-{number}" for number in range(members)], live=None))
        with start_site(site):
            yield site, port


async def measure(site: Site, port: int, repeats: int, many: int) -> dict[str, float]:
    """Enrol and revoke one by one, then many at once; medians in seconds."""
    live = settings(site, OPERATOR, port)
    connection = Connection(settings(site, MONITOR, port), client_id=MONITOR)
    await connection.start(wait=True, timeout_s=10)
    bystander = Bystander(connection)
    running = asyncio.create_task(bystander.run())
    await asyncio.sleep(0.5)
    found: dict[str, list[float]] = {
        "alone": [],
        "enrol_s": [],
        "enrol_others": [],
        "revoke_s": [],
        "revoke_others": [],
    }
    for number in range(repeats):
        bystander.slowest_s()
        await asyncio.sleep(0.3)
        found["alone"].append(bystander.slowest_s())
        for what, change in (
            ("enrol", membership.enrol(site, [f"new-{number}"], live=live)),
            ("revoke", membership.revoke(site, [f"new-{number}"], live=live)),
        ):
            started = time.perf_counter()
            await change
            found[f"{what}_s"].append(time.perf_counter() - started)
            found[f"{what}_others"].append(bystander.slowest_s())
    result = {name: statistics.median(values) for name, values in found.items()}
    started = time.perf_counter()
    await membership.enrol(site, [f"many-{number}" for number in range(many)], live=live)
    result["many_s"] = time.perf_counter() - started
    result["many_others"] = bystander.slowest_s()
    running.cancel()
    await asyncio.wait([running])
    await connection.stop()
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--members", type=int, nargs="+", default=[10, 100, 1_000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--many", type=int, default=50, help="devices enrolled at once, at the end")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    results = {}
    print("members   enrol one, others wait   revoke one, others wait   so many at once, others wait")
    for members in options.members:
        with site_of(members) as (site, port):
            got = asyncio.run(measure(site, port, options.repeats, options.many))
        results[members] = got
        print(
            f"{members:>7}   {got['enrol_s'] * 1e3:6.0f} ms {got['enrol_others'] * 1e3:8.0f} ms"
            f"   {got['revoke_s'] * 1e3:7.0f} ms {got['revoke_others'] * 1e3:8.0f} ms"
            f"   {options.many}: {got['many_s']:6.1f} s {got['many_others'] * 1e3:8.0f} ms"
            f"   (undisturbed {got['alone'] * 1e3:.0f} ms)"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
