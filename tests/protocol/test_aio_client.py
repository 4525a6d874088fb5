"""The short way for plain packets says what paho's own way says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedmq_protocol.aio_client import PahoClient

VERSIONS = [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5]
Heard = tuple[str | None, bytes, int, int, bool, bool]


def read(client: Client, first: int, packet: bytes) -> object:
    """What comes of a packet that has been read whole."""
    client._in_packet |= {"command": first, "packet": bytearray(packet), "remaining_length": len(packet)}
    try:
        return client._packet_handle()
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        return type(error)


def both(protocol: MQTTProtocolVersion, first: int, packet: bytes) -> list[tuple[object, list[Heard]]]:
    """What comes of it, and what is heard, paho's own way and ours."""
    results = []
    for kind in (Client, PahoClient):
        heard: list[Heard] = []
        client = kind(CallbackAPIVersion.VERSION2, protocol=protocol, manual_ack=True)

        def note(_client: Any, _userdata: object, message: MQTTMessage, heard: list[Heard] = heard) -> None:
            try:
                topic = message.topic
            except UnicodeDecodeError:
                topic = None
            heard.append(
                (topic, bytes(message.payload), message.mid, message.qos, message.retain, message.dup)
            )

        def hears(topic: bytes, *rest: Any, heard: list[Heard] = heard) -> None:
            try:
                heard.append((topic.decode(), *rest))
            except UnicodeDecodeError:
                heard.append((None, *rest))

        client.on_message = note
        if isinstance(client, PahoClient):
            client.hears = hears
        results.append((read(client, first, packet), heard))
    return results


def with_properties() -> bytes:
    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = 5
    packed: bytes = properties.pack()
    return packed


@given(
    st.sampled_from(VERSIONS),
    st.integers(0, 15).map(lambda flags: 0x30 | flags),
    st.binary(max_size=6) | st.sampled_from([b"a/b", "höhe".encode(), b"\xff"]),
    st.sampled_from([b"\0", with_properties(), b"\x80\0", b""]),
    st.binary(max_size=12),
    st.integers(0, 12),
)
def test_a_publish_is_heard_as_paho_hears_it(
    protocol: MQTTProtocolVersion, first: int, topic: bytes, properties: bytes, payload: bytes, cut: int
) -> None:
    packet = (
        len(topic).to_bytes(2, "big") + topic + (b"\x12\x34" if first & 6 else b"") + properties + payload
    )
    for each in (packet, packet[:cut], payload):
        theirs, ours = both(protocol, first, each)
        assert ours == theirs


@pytest.mark.parametrize("protocol", VERSIONS)
def test_a_plain_publish_goes_the_short_way(protocol: MQTTProtocolVersion) -> None:
    heard: list[object] = []
    client = PahoClient(CallbackAPIVersion.VERSION2, protocol=protocol, manual_ack=True)
    client.hears = lambda *what: heard.append(what)
    plain = b"\0" if protocol == MQTTProtocolVersion.MQTTv5 else b""
    assert read(client, 0x3B, b"\0\x03a/b\x12\x34" + plain + b"x") == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert heard == [(b"a/b", b"x", 0x1234, 1, True, True)]


@pytest.mark.parametrize("protocol", VERSIONS)
@pytest.mark.parametrize(
    "packet", [b"\0\x01", b"\0\x02", b"\0\x01\x87", b"\0\x01\x10\0", b"\0\x01\x99", b"", b"\0"]
)
@pytest.mark.parametrize("first", [0x40, 0x70])
def test_an_acknowledgement_is_read_as_paho_reads_it(
    protocol: MQTTProtocolVersion, packet: bytes, first: int
) -> None:
    results = []
    for kind in (Client, PahoClient):
        client = kind(CallbackAPIVersion.VERSION2, protocol=protocol)
        said: list[tuple[int, int]] = []

        def note(_c: Any, _u: object, mid: int, code: Any, _p: object, said: list[Any] = said) -> None:
            said.append((mid, code.value))

        client.on_publish = note
        client._out_messages[1] = MQTTMessage(1, b"a")
        results.append((read(client, first, packet), said, list(client._out_messages)))
    assert results[0] == results[1]
