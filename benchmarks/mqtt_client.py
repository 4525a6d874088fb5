"""paho-mqtt under asyncio: its own thread, the loop's readers, or the loop's readers on a wire of ours?

    python benchmarks/mqtt_client.py [--repeat 5] [--sizes 10000 100000] [--json]

A sender in a process of its own publishes at QoS 1 through Mosquitto. A receiver, in a process of its own too, takes
the messages into asyncio and acknowledges each. Told for each receiver: messages a second, CPU time of its process a
message, and both as ratios to a bare socket that parses no more than it must. Then the time from `publish` to PUBACK.
The median of the repetitions counts; trust the ratios and the CPU time more than the rates of a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedmq_broker.runner import start_broker
from fedmq_protocol.aio import BrokerSettings, Connection, Message

TOPIC = "bench"
WINDOW = 20
TOTAL_BYTES = 40_000_000  # a run; below the broker's queue limit, so that nothing is dropped
ROUND_TRIPS = 500


@dataclass(frozen=True)
class Result:
    """One run of one receiver: rates, and the round trip in the middle."""

    messages_per_s: float
    cpu_us: float
    ack_ms: float


class Clock:
    """Wall and CPU time from the first message to the last."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.count = 0
        self._start = (0.0, 0.0)
        self.rates = (0.0, 0.0)

    def tick(self) -> bool:
        """Count a message; True at the last."""
        if self.count == 0:
            self._start = (time.perf_counter(), time.process_time())
        self.count += 1
        if self.count < self.messages:
            return False
        wall_s, cpu_s = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        self.rates = ((self.messages - 1) / wall_s, cpu_s / (self.messages - 1) * 1e6)
        return True


# ------------------------------------------------------------------------------------------- a bare socket


class Bare:
    """MQTT 3.1.1 by hand, as little of it as will do; blocking."""

    def __init__(self, port: int, name: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray(1 << 20)
        self.head = self.tail = 0
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2) + name.encode()
        self.sock.sendall(bytes([0x10, len(body)]) + body)
        self.packet()

    def need(self, count: int) -> None:
        if self.tail - self.head < count and self.head + count > len(self.buffer):
            self.buffer[: self.tail - self.head] = self.buffer[self.head : self.tail]
            self.head, self.tail = 0, self.tail - self.head
        while self.tail - self.head < count:
            received = self.sock.recv_into(memoryview(self.buffer)[self.tail :])
            if not received:
                raise ConnectionError
            self.tail += received

    def packet(self) -> tuple[int, memoryview]:
        length, shift, size = 0, 0, 2
        while True:
            self.need(size)
            byte = self.buffer[self.head + size - 1]
            length |= (byte & 127) << shift
            if byte < 128:
                break
            size, shift = size + 1, shift + 7
        self.need(size + length)
        first, start = self.buffer[self.head], self.head + size
        self.head = start + length
        if self.head == self.tail:
            self.head = self.tail = 0
        return first, memoryview(self.buffer)[start : start + length]

    def subscribe(self) -> None:
        self.request(0x82, b"\x00\x01" + len(TOPIC).to_bytes(2) + TOPIC.encode() + b"\x01")

    def send(self, first: int, body: bytes) -> None:
        length, header = len(body), bytearray([first])
        while True:
            length, byte = length >> 7, length & 127
            header.append(byte | (128 if length else 0))
            if not length:
                break
        self.sock.sendall(header + body)

    def request(self, first: int, body: bytes) -> None:
        """Send, and wait for the answer."""
        self.send(first, body)
        self.packet()

    def publish(self, packet_id: int, payload: bytes) -> None:
        self.send(0x32, len(TOPIC).to_bytes(2) + TOPIC.encode() + packet_id.to_bytes(2) + payload)

    def take_message(self) -> bool:
        """Read a packet; acknowledge it and say True if it is a message."""
        first, body = self.packet()
        if first >> 4 != 3:
            return False
        if not first & 6:
            return True  # at QoS 0
        position = 2 + int.from_bytes(body[:2])
        self.sock.sendall(b"\x40\x02" + bytes(body[position : position + 2]))
        return True


def bare_socket(port: int, messages: int, ready: Callable[[], None]) -> tuple[float, float]:
    """The bound: read, cut, acknowledge."""
    bare, clock = Bare(port, "receiver"), Clock(messages)
    bare.subscribe()
    ready()
    position = 2 + len(TOPIC)
    while True:
        first, body = bare.packet()
        if first >> 4 == 3:
            payload = bytes(body[position + 2 :])
            assert payload
            bare.sock.sendall(b"\x40\x02" + bytes(body[position : position + 2]))
            if clock.tick():
                return clock.rates


def bare_acks(port: int, size: int) -> list[float]:
    """The bound: write a message, read its PUBACK."""
    bare, times = Bare(port, "publisher"), []
    for number in range(ROUND_TRIPS):
        start = time.perf_counter()
        bare.publish(number % 65_535 + 1, bytes(size))
        bare.packet()
        times.append(time.perf_counter() - start)
    return times


# ------------------------------------------------------------------------------------------- paho, two ways


def _paho(name: str) -> tuple[Client, Properties]:
    client = Client(
        CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
    )
    properties = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = WINDOW
    return client, properties


class OwnThread:
    """paho's thread, and a bounded hand-off that blocks it while asyncio is behind."""

    def __init__(self, port: int, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.messages: asyncio.Queue[MQTTMessage] = asyncio.Queue()
        self.slots = threading.Semaphore(WINDOW)
        self.acks: dict[int, asyncio.Future[None]] = {}
        self.up = asyncio.Event()
        self.client, properties = _paho(name)
        self.client.on_connect = self._on_up
        self.client.on_subscribe = self._on_up
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.client.on_socket_open = _no_delay
        self.client.connect("127.0.0.1", port, properties=properties)
        self.client.loop_start()

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        self.slots.acquire()
        self.loop.call_soon_threadsafe(self.messages.put_nowait, message)

    def _on_up(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.up.set)

    def _on_publish(self, _client: Client, _userdata: object, mid: int, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._acknowledged, mid)

    def _acknowledged(self, mid: int) -> None:
        self.acks.pop(mid).set_result(None)

    async def next(self) -> bytes:
        message = await self.messages.get()
        self.client.ack(message.mid, message.qos)
        self.slots.release()
        return bytes(message.payload)

    async def publish(self, payload: bytes) -> None:
        done = self.loop.create_future()
        info = self.client.publish(TOPIC, payload, qos=1)
        self.acks[info.mid] = done
        await done

    async def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class LoopReaders:
    """paho on the loop's readers and writers, as its documentation shows, on the plain socket."""

    def __init__(self, port: int, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.messages: asyncio.Queue[MQTTMessage] = asyncio.Queue()
        self.acks: dict[int, asyncio.Future[None]] = {}
        self.up = asyncio.Event()
        self.client, properties = _paho(name)
        self.client.on_connect = lambda *_: self.up.set()
        self.client.on_subscribe = lambda *_: self.up.set()
        self.client.on_message = lambda _c, _u, message: self.messages.put_nowait(message)
        self.client.on_publish = lambda _c, _u, mid, *_: self.acks.pop(mid).set_result(None)
        self.client.on_socket_open = self._open
        self.client.on_socket_close = self._close
        self.client.on_socket_register_write = lambda c, _u, sock: self.loop.add_writer(sock, c.loop_write)
        self.client.on_socket_unregister_write = self._written
        self.client.connect("127.0.0.1", port, properties=properties)

    def _open(self, client: Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401  # paho's type is private
        _no_delay(client, None, sock)
        self.loop.add_reader(sock, client.loop_read)

    def _close(self, _client: Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401
        self.loop.remove_reader(sock)

    def _written(self, _client: Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401
        self.loop.remove_writer(sock)

    async def next(self) -> bytes:
        message = await self.messages.get()
        self.client.ack(message.mid, message.qos)
        return bytes(message.payload)

    async def publish(self, payload: bytes) -> None:
        done = self.loop.create_future()
        info = self.client.publish(TOPIC, payload, qos=1)
        self.acks[info.mid] = done
        await done

    async def close(self) -> None:
        self.client.disconnect()
        self.client.loop_write()


def _no_delay(_client: Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _paho_receives(
    make: type[OwnThread | LoopReaders], port: int, messages: int, ready: Callable[[], None]
) -> tuple[float, float]:
    receiver, clock = make(port, "receiver"), Clock(messages)
    await receiver.up.wait()
    receiver.up.clear()
    receiver.client.subscribe([(TOPIC, 1)])
    await receiver.up.wait()
    ready()
    while True:
        assert await receiver.next()
        if clock.tick():
            await receiver.close()
            return clock.rates


async def _paho_acks(make: type[OwnThread | LoopReaders], port: int, size: int) -> list[float]:
    publisher, times = make(port, "publisher"), []
    await publisher.up.wait()
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        await publisher.publish(bytes(size))
        times.append(time.perf_counter() - start)
    await publisher.close()
    return times


# ------------------------------------------------------------------------------------------- ours


async def _ours_receives(port: int, messages: int, ready: Callable[[], None]) -> tuple[float, float]:
    clock = Clock(messages)
    async with Connection(BrokerSettings(url=f"mqtt://127.0.0.1:{port}"), client_id="receiver") as connection:
        await connection.subscribe([TOPIC])
        async for event in connection.events():
            if not isinstance(event, Message):
                ready()
            elif clock.tick():
                return clock.rates
    raise AssertionError


async def _ours_acks(port: int, size: int) -> list[float]:
    times = []
    connection = Connection(BrokerSettings(url=f"mqtt://127.0.0.1:{port}"), client_id="publisher")
    await connection.start(wait=True)
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        await connection.publish(TOPIC, bytes(size))
        times.append(time.perf_counter() - start)
    await connection.stop()
    return times


# ------------------------------------------------------------------------------------------- processes

RECEIVERS: dict[str, Callable[[int, int, Callable[[], None]], tuple[float, float]]] = {
    "bare socket": bare_socket,
    "paho, own thread": lambda port, n, ready: asyncio.run(_paho_receives(OwnThread, port, n, ready)),
    "paho, loop readers": lambda port, n, ready: asyncio.run(_paho_receives(LoopReaders, port, n, ready)),
    "fedmq (readers on a wire)": lambda port, n, ready: asyncio.run(_ours_receives(port, n, ready)),
}
PUBLISHERS: dict[str, Callable[[int, int], list[float]]] = {
    "bare socket": bare_acks,
    "paho, own thread": lambda port, size: asyncio.run(_paho_acks(OwnThread, port, size)),
    "paho, loop readers": lambda port, size: asyncio.run(_paho_acks(LoopReaders, port, size)),
    "fedmq (readers on a wire)": lambda port, size: asyncio.run(_ours_acks(port, size)),
}


def child(role: str, name: str, port: int, size: int, messages: int) -> None:
    """What the processes do that this program starts."""
    match role:
        case "receive":
            rates = RECEIVERS[name](port, messages, lambda: print("ready", flush=True))
            print(json.dumps(rates), flush=True)
        case "acks":
            print(json.dumps(statistics.median(PUBLISHERS[name](port, size)) * 1e3), flush=True)
        case _:
            bare, payload = Bare(port, "sender"), os.urandom(size)
            for number in range(messages):
                bare.publish(number % 65_535 + 1, payload)
                if number >= WINDOW - 1:
                    bare.packet()
            for _ in range(min(messages, WINDOW - 1)):
                bare.packet()


def run(name: str, port: int, size: int) -> Result:
    """One repetition of one receiver."""
    messages = TOTAL_BYTES // size

    def start(role: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--child", role, name, str(port), str(size), str(messages)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this very file

    with start("receive") as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        with start("send") as sender:
            rate, cpu_us = json.loads(receiver.stdout.readline())
            sender.wait()
    with start("acks") as publisher:
        assert publisher.stdout is not None
        ack_ms = json.loads(publisher.stdout.readline())
    return Result(rate, cpu_us, ack_ms)


def main() -> None:
    """Measure, and print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        role, name, port, size, messages = options.child
        child(role, name, int(port), int(size), int(messages))
        return
    results: dict[int, dict[str, Result]] = {}
    with start_broker("mosquitto", port=0) as broker:
        for size in options.sizes:
            runs: dict[str, list[Result]] = {name: [] for name in RECEIVERS}
            for _ in range(options.repeat):
                for name in RECEIVERS:
                    runs[name].append(run(name, broker.port, size))
            results[size] = {
                name: Result(*(statistics.median(column) for column in zip(*map(_row, of_name), strict=True)))
                for name, of_name in runs.items()
            }
        description = broker.description
    if options.json:
        print(
            json.dumps(
                {size: {name: asdict(one) for name, one in table.items()} for size, table in results.items()}
            )
        )
        return
    print(f"receiving at QoS 1 from {description}, median of {options.repeat}; {os.cpu_count()} cores")
    for size, table in results.items():
        bound = table["bare socket"]
        print(f"\n{size / 1000:g} KB{'':21} msg/s  of bare   CPU us  x bare  publish to PUBACK")
        for name, one in table.items():
            print(
                f"{name:26} {one.messages_per_s:7.0f}  {one.messages_per_s / bound.messages_per_s:6.0%} "
                f"{one.cpu_us:8.0f}  {one.cpu_us / bound.cpu_us:6.1f}  {one.ack_ms:10.2f} ms"
            )


def _row(result: Result) -> tuple[float, float, float]:
    return result.messages_per_s, result.cpu_us, result.ack_ms


if __name__ == "__main__":
    main()
