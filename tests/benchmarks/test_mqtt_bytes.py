"""A device's stream, cut anywhere, and every byte of it in one line."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import first_at, paired
from benchmarks.mqtt_bytes import MODEL, Line, MqttBytes
from benchmarks.proxy import Connection, Way, client_id
from fedmq_protocol.chunks import blob_ref
from fedmq_protocol.envelope import Sealer
from fedmq_protocol.messages import (
    Announcement,
    Body,
    Cohort,
    Manifest,
    ModelChunk,
    Receipt,
    TaskRef,
    TrainSettings,
    UploadSettings,
)
from fedmq_protocol.signing import SigningKey
from fedmq_protocol.topics import Topics

TOPICS = Topics("home")
SEALER = Sealer(sender="coordinator", epoch=1, key=SigningKey(bytes(range(32))))
HASH = hashlib.sha256(b"").digest()
CLIENT = "fedmq-home-dev-1"


def packet(first: int, body: bytes) -> bytes:
    length, head = len(body), bytearray([first])
    while True:
        length, low = length >> 7, length & 0x7F
        head.append(low | (0x80 if length else 0))
        if not length:
            return bytes(head) + body


def text(words: str) -> bytes:
    return len(words).to_bytes(2, "big") + words.encode()


def connect(version: int) -> bytes:
    properties = b"\x03\x21\x00\x14" if version == 5 else b""  # receive maximum 20
    return packet(
        0x10, text("MQTT") + bytes([version, 2, 0, 60]) + properties + text(CLIENT) + b"\0" * (version == 5)
    )


def publish(topic: str, body: Body, *, version: int, retained: bool = False) -> bytes:
    properties = b"\0" if version == 5 else b""
    payload = SEALER.seal(topic, body)
    return packet(0x32 | retained, text(topic) + b"\0\1" + properties + payload)


def announcement(version: int, delta: bytes | None) -> Announcement:
    return Announcement(
        run="r",
        state="running",
        task=TaskRef(name="t", version="1", schema_hash="ab" * 32),
        mode="sync",
        round=version,
        manifest=Manifest(
            version=version,
            chain_hash=HASH,
            base=0,
            snapshot=blob_ref(b"s"),
            chain_bytes=0,
            delta=None if delta is None else blob_ref(delta),
        ),
        inline_delta=delta,
        cohort=Cohort(devices=["dev-1"]),
        lease=1,
        lease_s=1.0,
        train=TrainSettings(),
        upload=UploadSettings(codec="topk-log4", density=0.1, first_density=0.1),
    )


def pieces(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        yield stream[start:end]


@pytest.mark.parametrize("version", [4, 5])
@given(cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_every_byte_is_in_one_line(version: int, cuts: list[int]) -> None:
    delta, chunk = b"d" * 700, b"s" * 300
    down = [
        packet(0x20, b"\0\0"),
        publish(TOPICS.announcement, announcement(0, None), version=version, retained=True),
        publish(
            TOPICS.chunk("r", 0, "snapshot", 0),
            ModelChunk(
                run="r",
                version=0,
                blob="snapshot",
                index=0,
                count=1,
                ref=blob_ref(chunk),
                chain_hash=HASH,
                data=chunk,
            ),
            version=version,
            retained=True,
        ),
        publish(TOPICS.announcement, announcement(1, delta), version=version),
        publish(
            TOPICS.down("dev-1", "receipt"),
            Receipt(run="r", counter=0, outcome="accepted", residual="keep"),
            version=version,
        ),
        packet(0x30, text("elsewhere") + (b"\0" if version == 5 else b"") + b"no message"),
    ]
    up = [connect(version), packet(0xC0, b""), packet(0x40, b"\0\1")]
    tap, connection = MqttBytes(), Connection(CLIENT)
    ways: tuple[tuple[Way, list[bytes]], ...] = (("up", up), ("down", down))
    for way, packets in ways:
        for piece in pieces(b"".join(packets), cuts):
            tap(connection, way, piece)
    assert {line.what: size for line, _, size in tap.table() if line.way == "up"} == {
        "CONNECT, CONNACK": len(up[0]),
        "PING": 2,
        "PUBACK": 4,
    }
    assert {line.what: size for line, _, size in tap.table() if line.way == "down"} == {
        "CONNECT, CONNACK": 4,
        "announcement (retained copy)": len(down[1]),
        f"modelchunk (retained copy){MODEL}": 300,
        "modelchunk (retained copy)": len(down[2]) - 300,
        f"announcement{MODEL}": 700,
        "announcement": len(down[3]) - 700,
        "receipt": len(down[4]),
        "not a message": len(down[5]),
    }
    assert tap.packets[Line("down", "announcement")] == 1
    assert tap.snapshot_bytes == len(down[2])
    sent = len(b"".join(up))
    assert tap.to_version(0) == (sent, len(b"".join(down[:3])))
    assert tap.to_version(1) == (sent, len(b"".join(down[:4])))


def test_only_devices_count() -> None:
    tap = MqttBytes()
    tap(Connection("fedmq-home-coordinator"), "up", packet(0xC0, b""))
    assert not tap.lines


@pytest.mark.parametrize("version", [4, 5])
def test_finds_the_client_id(version: int) -> None:
    assert client_id(connect(version)) == CLIENT
    assert client_id(b"POST / HTTP/1.1\r\n") == ""


def test_the_target_is_reached_with_the_mean_of_three() -> None:
    assert first_at([0.96, 0.90, 0.95, 0.99, 0.99]) == 5
    assert first_at([0.95, 0.95]) is None


def test_paired_interval() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt 3, and Student's t with two degrees of freedom is 4.30.
    mean, half = paired([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.30 / 3**0.5)
