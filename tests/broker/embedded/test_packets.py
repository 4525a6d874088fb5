"""Packets against the standard's own tables, and against whatever anyone may send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq_broker.embedded.packets import (
    Connack,
    Connect,
    Disconnect,
    Framer,
    MalformedPacketError,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    decode,
    encode,
)

# Written out by hand from the figures of MQTT 3.1.1.
CONNECT_BODY = bytes.fromhex(
    "0004 4d515454 04 ce 000a"  # MQTT, level 4, flags of the example in figure 3.3, keepalive 10 s
    "0002 6964"  # client id
    "0001 77 0003 627965"  # will
    "0001 75 0002 7077"  # user name and password
)
GOLDEN = [
    (0x10, CONNECT_BODY, Connect(4, "id", 10, True, Publish("w", b"bye", 1), "u", b"pw")),  # noqa: FBT003
    (
        0x3B,
        bytes.fromhex("0003 612f62 000a 6869"),
        Publish("a/b", b"hi", 1, retain=True, duplicate=True, packet_id=10),
    ),
    (0x30, bytes.fromhex("0003 612f62"), Publish("a/b", b"")),
    (0x40, bytes.fromhex("000a"), Puback(10)),
    (0x82, bytes.fromhex("000a 0003 612f62 01 0003 632f64 02"), Subscribe(10, (("a/b", 1), ("c/d", 2)))),
    (0xA2, bytes.fromhex("000a 0003 612f62 0003 632f64"), Unsubscribe(10, ("a/b", "c/d"))),
    (0xC0, b"", Pingreq()),
    (0xE0, b"", Disconnect()),
]


@pytest.mark.parametrize(("first", "body", "packet"), GOLDEN)
def test_decoding_by_the_standard(first: int, body: bytes, packet: object) -> None:
    assert decode(first, body) == packet


@pytest.mark.parametrize(
    ("packet", "hexadecimal"),
    [
        (Connack(0), "20 02 00 00"),
        (Publish("a/b", b"hi", 1, retain=True, duplicate=True, packet_id=10), "3b 09 0003 612f62 000a 6869"),
        (Publish("a/b", b""), "30 05 0003 612f62"),
        (Puback(10), "40 02 000a"),
        (Suback(10, (0, 1, 128)), "90 05 000a 00 01 80"),
        (Unsuback(10), "b0 02 000a"),
        (Pingresp(), "d0 00"),
    ],
)
def test_encoding_by_the_standard(
    packet: Connack | Publish | Puback | Suback | Unsuback | Pingresp, hexadecimal: str
) -> None:
    assert encode(packet) == bytes.fromhex(hexadecimal)


@pytest.mark.parametrize(
    ("first", "body"),
    [
        (0x10, b""),
        (0x10, b"\x00\x04HTTP\x04\x02\x00\x05\x00\x00"),
        (0x10, CONNECT_BODY + b"x"),
        (0x10, CONNECT_BODY[:-1]),
        (0x10, CONNECT_BODY[:7] + b"\xcf" + CONNECT_BODY[8:]),  # the reserved flag
        (0x10, b"\x00\x04MQTT\x04\x42\x00\x05\x00\x00"),  # a password and no user name
        (0x10, b"\x00\x04MQTT\x04\x20\x00\x05\x00\x00"),  # a retained will that is none
        (0x36, b"\x00\x01a\x00\x01"),  # QoS 3
        (0x34, b"\x00\x01a\x00\x01"),  # QoS 2
        (0x32, b"\x00\x01a\x00\x00"),  # packet id 0
        (0x30, b"\x00\x01\xff"),
        (0x30, b"\x00\x01\x00"),
        (0x80, b"\x00\x01\x00\x01a\x00"),  # SUBSCRIBE without its flag
        (0x82, b"\x00\x01"),
        (0x82, b"\x00\x01\x00\x01a\x03"),
        (0xA2, b"\x00\x01"),
        (0x40, b"\x00\x01x"),
        (0x20, b"\x00\x00"),  # for brokers only
        (0x50, b"\x00\x01"),
        (0xF0, b""),
        (0x00, b""),
    ],
)
def test_what_breaks_the_standard_is_refused(first: int, body: bytes) -> None:
    with pytest.raises(MalformedPacketError):
        decode(first, body)


@pytest.mark.parametrize(("name", "level"), [(b"MQTT", 5), (b"MQTT", 3), (b"MQIsdp", 3)])
def test_another_version_is_told_apart_from_garbage(name: bytes, level: int) -> None:
    body = len(name).to_bytes(2) + name + bytes([level]) + b"anything at all"
    packet = decode(0x10, body)
    assert isinstance(packet, Connect)
    assert packet.level != 4


@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(first: int, body: bytes) -> None:
    try:
        decode(first, body)
    except MalformedPacketError as error:
        assert str(error)  # noqa: PT017  # it is the outcome, not the expectation


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=400)), max_size=8),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_packets_come_out_of_the_stream_however_it_is_cut(
    packets: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(bytes([first]) + _length(len(body)) + body for first, body in packets)
    framer, received, position, turn = Framer(1_000), [], 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        received += list(framer.feed(stream[position : position + size]))
        position, turn = position + size, turn + 1
    assert received == packets


@given(st.integers(0, 268_435_455))
def test_lengths_agree_with_the_formula_of_the_standard(length: int) -> None:
    if length > 1_000:
        with pytest.raises(MalformedPacketError, match="above the limit of 1000"):
            list(Framer(1_000).feed(b"\x30" + _length(length)))
    else:
        assert list(Framer(1_000).feed(b"\x30" + _length(length) + bytes(length))) == [(0x30, bytes(length))]


def test_a_length_of_five_bytes_is_refused() -> None:
    with pytest.raises(MalformedPacketError, match="more than four bytes"):
        list(Framer(1_000).feed(b"\x30\xff\xff\xff\xff"))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50), st.binary())
def test_what_we_send_reads_back(topic: str, payload: bytes) -> None:
    packet = Publish(topic, payload, 1, retain=True, packet_id=7)
    [(first, body)] = Framer(10_000).feed(encode(packet))
    assert decode(first, body) == packet


def _length(length: int) -> bytes:
    """Section 2.2.3, as written there."""
    encoded = bytearray()
    while True:
        byte = length % 128
        length //= 128
        encoded.append(byte | 128 if length > 0 else byte)
        if length <= 0:
            return bytes(encoded)
