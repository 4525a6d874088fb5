"""The brokers that fedmq can start, and amqtt where it is installed, under the load of a small federation.

    python benchmarks/brokers.py [--repeat 3] [--json]

Clients are bare sockets, so that the broker is what is measured: one to one at QoS 1 (messages a second, and from
publishing to arrival one at a time), ten devices that pull a model of 30 retained chunks of 128 KB by subscribing, two
at a time, and what the broker's process took for it all. Ratios are to Mosquitto in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import psutil

from benchmarks.mqtt_client import TOPIC, WINDOW, Bare
from fedmq_broker.mosquitto import find_mosquitto
from fedmq_broker.probe import answers_mqtt, find_free_port
from fedmq_broker.runner import BrokerKind, start_broker

DEVICES, CHUNKS, CHUNK_BYTES = 10, 30, 130_000
AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
async def main():
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}}
    await Broker({"listeners": listeners, "plugins": plugins}).start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Figures:
    """What one broker did."""

    start_s: float
    small_per_s: float
    """Messages of 10 KB a second, one to one."""
    chunks_per_s: float
    """Messages of 128 KB a second, one to one."""
    delivery_ms: float
    """From publishing 10 KB to its arrival, in the middle."""
    pull_s: float
    """Until ten devices have pulled a model of 3.9 MB each; infinite where connections were dropped instead."""
    cpu_s: float
    """CPU time of the broker's process for all of this."""
    peak_mb: float


def throughput(port: int, size: int, messages: int) -> float:
    """Messages a second from one client to another, at most a window of them under way."""
    receiver, sender = Bare(port, "receiver"), Bare(port, "sender")
    receiver.subscribe()

    def receive() -> None:
        for _ in range(messages):
            _receive(receiver)

    thread = threading.Thread(target=receive)
    start = time.perf_counter()
    thread.start()
    payload = bytes(size)
    for number in range(messages):
        sender.publish(number % 65_535 + 1, payload)
        if number >= WINDOW - 1:
            sender.packet()
    thread.join()
    return messages / (time.perf_counter() - start)


def delivery(port: int) -> float:
    """Seconds from publishing to arrival, one message at a time."""
    receiver, sender = Bare(port, "receiver"), Bare(port, "sender")
    receiver.subscribe()
    times = []
    for number in range(300):
        start = time.perf_counter()
        sender.publish(number + 1, bytes(10_000))
        _receive(receiver)
        times.append(time.perf_counter() - start)
        sender.packet()
    return statistics.median(times)


def pull(port: int) -> float:
    """Seconds until every device has every chunk, by subscribing to two at a time; infinite if the broker drops one."""
    dropped: list[int] = []
    publisher = Bare(port, "publisher")
    for chunk in range(CHUNKS):
        publisher.request(0x33, _text(f"m/{chunk}") + (chunk + 1).to_bytes(2) + bytes(CHUNK_BYTES))

    def device(number: int) -> None:
        bare = Bare(port, f"device-{number}")
        for first in range(0, CHUNKS, 2):
            topics = [f"m/{first}", f"m/{first + 1}"]
            bare.send(0x82, b"\x00\x01" + b"".join(_text(topic) + b"\x01" for topic in topics))
            received = 0
            while received < 2:
                received += bare.take_message()
            bare.request(0xA2, b"\x00\x02" + b"".join(map(_text, topics)))

    def try_device(number: int) -> None:
        try:
            device(number)
        except ConnectionError:
            dropped.append(number)

    threads = [threading.Thread(target=try_device, args=(number,)) for number in range(DEVICES)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return math.inf if dropped else time.perf_counter() - start


def _receive(bare: Bare) -> None:
    while not bare.take_message():
        pass


def _text(topic: str) -> bytes:
    return len(topic).to_bytes(2) + topic.encode()


@contextlib.contextmanager
def amqtt() -> Iterator[tuple[int, int]]:
    """A running amqtt: its port and process."""
    port = find_free_port("127.0.0.1")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        command = [sys.executable, "-c", AMQTT, str(port)]
        with subprocess.Popen(command, stdout=log, stderr=log) as process:  # noqa: S603
            while not answers_mqtt("127.0.0.1", port):
                time.sleep(0.01)
            yield port, process.pid
            process.terminate()


@contextlib.contextmanager
def ours(kind: BrokerKind) -> Iterator[tuple[int, int]]:
    """A running broker of ours: its port and process."""
    with start_broker(kind, port=0) as broker:
        yield broker.port, broker.pid


def measure(kind: str) -> Figures:
    """One broker from its start to its end."""
    start = time.perf_counter()
    with (
        amqtt() if kind == "amqtt" else ours("mosquitto" if kind == "mosquitto" else "embedded") as (
            port,
            pid,
        )
    ):
        started_s = time.perf_counter() - start
        small, chunks = throughput(port, 10_000, 2_000), throughput(port, CHUNK_BYTES, 300)
        arrival_s, pulled_s = delivery(port), pull(port)
        process = psutil.Process(pid)
        times = process.cpu_times()
        status = Path(f"/proc/{pid}/status")
        peak_kb = process.memory_info().rss / 1000
        if status.exists():
            peak_kb = float(status.read_text().partition("VmHWM:")[2].split()[0])
        return Figures(
            started_s, small, chunks, arrival_s * 1e3, pulled_s, times.user + times.system, peak_kb / 1000
        )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds = [
        *(["mosquitto"] if find_mosquitto() else []),
        "embedded",
        *(["amqtt"] if importlib.util.find_spec("amqtt") else []),
    ]
    runs: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    for _ in range(options.repeat):
        for kind in kinds:
            runs[kind].append(measure(kind))
    table = {
        kind: Figures(*(statistics.median(column) for column in zip(*map(astuple, of_kind), strict=True)))
        for kind, of_kind in runs.items()
    }
    if options.json:
        print(json.dumps({kind: asdict(figures) for kind, figures in table.items()}))
        return
    first = next(iter(table.values()))
    print(f"one topic {TOPIC!r}, median of {options.repeat}; in brackets, times {kinds[0]}'s")
    print("           start     10 KB msg/s     128 KB msg/s   arrival ms    ten pulls s     CPU s   peak MB")
    for kind, one in table.items():
        print(
            f"{kind:10}{one.start_s:6.2f}{one.small_per_s:8.0f} ({one.small_per_s / first.small_per_s:4.2f})"
            f"{one.chunks_per_s:9.0f} ({one.chunks_per_s / first.chunks_per_s:4.2f})"
            f"{one.delivery_ms:8.2f} ({one.delivery_ms / first.delivery_ms:3.1f})"
            f"{one.pull_s:8.2f} ({one.pull_s / first.pull_s:4.1f})"
            f"{one.cpu_s:9.2f}{one.peak_mb:10.0f}"
        )


if __name__ == "__main__":
    main()
